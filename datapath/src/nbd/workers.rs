//! Threads beside that of a connection, for requests that make their caller wait. They are started
//! when there is something to do, and end when there has been nothing for a while.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::buffer::{Output, Payload};
use super::context::Found;
use super::inbox::{Inbox, Message};
use super::link::{Link, lock};
use super::perform;
use super::protocol::Request;
use super::request::Action;

/// Threads of all connections together, and one more for each that has none. Disks of one machine
/// are seldom faster with more, and each has room for a reply.
pub(super) const THREADS: usize = 16;

/// How many there are.
static THREADS_NOW: AtomicUsize = AtomicUsize::new(0);

/// What requests of a connection that wait or are being done may hold, bytes; one may be larger.
const WEIGHT: usize = 2 << 20;

/// Requests that may wait.
const WAITING: usize = 64;

/// A thread that has nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(2);

/// Of a thread. The disk's engine runs on it.
pub(super) const STACK: usize = 512 * 1024;

/// A request for another thread.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) action: Action,
    pub(super) payload: Payload,
    /// It is a part of a longer write with this number: who asked for it answers, not the worker.
    pub(super) part_of: Option<usize>,
}

impl Job {
    /// Bytes that it holds.
    fn weight(&self) -> usize {
        let read = matches!(self.action, Action::Read { .. });
        if read { self.request.length as usize } else { self.payload.length() }
    }
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Bytes that they hold, and those that are being done.
    weight: usize,
    threads: usize,
    idle: usize,
    /// Jobs that wait or are being done.
    busy: usize,
    closed: bool,
}

impl Queue {
    fn is_full(&self, more: usize) -> bool {
        self.busy > 0 && (self.jobs.len() >= WAITING || self.weight + more > WEIGHT)
    }
}

struct Shared {
    link: Arc<Link>,
    /// Where replies go; none: to the client.
    inbox: Option<Arc<Inbox>>,
    queue: Mutex<Queue>,
    /// There is a job, or there will be none.
    more: Condvar,
    /// A job is done.
    less: Condvar,
}

/// The threads of one connection.
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    pub(super) fn new(link: Arc<Link>, inbox: Option<Arc<Inbox>>) -> Self {
        let (more, less) = (Condvar::new(), Condvar::new());
        let shared = Shared { link, inbox, queue: Mutex::default(), more, less };
        Self { shared: Arc::new(shared), threads: Vec::new() }
    }

    /// Requests that wait or are being done.
    pub(super) fn busy(&self) -> usize {
        lock(&self.shared.queue).busy
    }

    /// Whether there are not too many requests already.
    #[cfg(feature = "ring")]
    pub(super) fn has_room(&self) -> bool {
        !lock(&self.shared.queue).is_full(0)
    }

    /// Waits while there are too many requests, then gives away another one.
    pub(super) fn give(&mut self, job: Job) -> io::Result<()> {
        let weight = job.weight();
        let mut queue = lock(&self.shared.queue);
        while queue.is_full(weight) {
            queue = self.shared.less.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        drop(queue);
        self.give_now(job)
    }

    /// Gives away a request, however many there are.
    pub(super) fn give_now(&mut self, job: Job) -> io::Result<()> {
        let weight = job.weight();
        let mut queue = lock(&self.shared.queue);
        if queue.idle <= queue.jobs.len()
            && let Some(counted) = CountedThread::new(queue.threads == 0)
        {
            let shared = Arc::clone(&self.shared);
            let builder = std::thread::Builder::new().name("nbd-worker".to_owned());
            let work = move || {
                let _counted = counted;
                shared.work();
            };
            match builder.stack_size(STACK).spawn(work) {
                Ok(thread) => {
                    self.threads.retain(|thread| !thread.is_finished());
                    self.threads.push(thread);
                    queue.threads += 1;
                }
                Err(error) if queue.threads == 0 => return Err(error),
                Err(_) => {}
            }
        }
        queue.weight += weight;
        queue.busy += 1;
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.more.notify_one();
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        {
            let mut queue = lock(&self.shared.queue);
            queue.closed = true;
            // Nobody hears the answers any more, and nobody was promised anything.
            let waiting = queue.jobs.len();
            queue.jobs.clear();
            queue.busy -= waiting;
            (0..waiting).for_each(|_| self.shared.link.gauge.remove());
        }
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A thread that there is.
struct CountedThread;

impl CountedThread {
    /// One more, if that is not too many, or there must be one.
    fn new(must: bool) -> Option<Self> {
        let more = |now| (must || now < THREADS).then_some(now + 1);
        let counted = THREADS_NOW.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.is_ok().then(|| Self)
    }
}

impl Drop for CountedThread {
    fn drop(&mut self) {
        THREADS_NOW.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a job as done, also when the disk's engine panics in it.
struct Doing<'a>(&'a Shared, usize);

impl Drop for Doing<'_> {
    fn drop(&mut self) {
        let mut queue = lock(&self.0.queue);
        queue.busy -= 1;
        queue.weight -= self.1;
        self.0.link.gauge.remove();
        drop(queue);
        self.0.less.notify_all();
        if let Some(inbox) = &self.0.inbox {
            inbox.put(Message::Done);
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut out = Output::new(self.inbox.clone());
        let mut found = Found::default();
        while let Some(job) = self.next() {
            let _doing = Doing(self, job.weight());
            let Job { request, action, mut payload, part_of } = job;
            let link = &self.link;
            if let (Some(number), Some(inbox)) = (part_of, &self.inbox) {
                let written = link.agreed.export.write(request.offset, payload.bytes(), false);
                let failed = written.err().map(|error| {
                    link.log(&error);
                    error.errno
                });
                inbox.put(Message::Part(number, failed, payload));
                continue;
            }
            let began = Instant::now();
            let bytes = payload.bytes();
            let done = perform::perform(link, &request, action, bytes, &mut found, &mut out);
            let bytes = if matches!(action, Action::Read { .. }) { request.length } else { 0 };
            let bytes = payload.length().max(bytes as usize);
            link.pace.add(perform::kind(action), began.elapsed(), bytes);
            if done.and_then(|()| out.send(link)).is_err() {
                // The thread that receives sees the end.
                link.wire.close();
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.closed {
                queue.threads -= 1;
                return None;
            }
            queue.idle += 1;
            let (back, time) =
                self.more.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
            queue = back;
            queue.idle -= 1;
            if time.timed_out() && queue.jobs.is_empty() {
                queue.threads -= 1;
                return None;
            }
        }
    }
}
