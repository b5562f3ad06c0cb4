//! Threads beside that of a connection, for requests that make their caller wait. They are started
//! when there is something to do, and end when there has been nothing for a while.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::buffer::Output;
use super::context::Found;
use super::link::{Link, lock};
use super::perform;
use super::protocol::Request;
use super::request::Action;

/// Threads of one connection. Disks of one machine are seldom faster with more.
pub(super) const THREADS: usize = 16;

/// Payload that may wait, bytes.
const PAYLOAD: usize = 4 << 20;

/// Requests that may wait.
const WAITING: usize = 64;

/// A thread that has nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(2);

/// Of a thread. The disk's engine runs on it.
pub(super) const STACK: usize = 512 * 1024;

struct Job {
    request: Request,
    action: Action,
    payload: Vec<u8>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Bytes of their payloads, and of those that are being done.
    payload: usize,
    threads: usize,
    idle: usize,
    /// Jobs that wait or are being done.
    busy: usize,
    closed: bool,
}

struct Shared {
    link: Arc<Link>,
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
    pub(super) fn new(link: Arc<Link>) -> Self {
        let (more, less) = (Condvar::new(), Condvar::new());
        let shared = Shared { link, queue: Mutex::default(), more, less };
        Self { shared: Arc::new(shared), threads: Vec::new() }
    }

    /// Requests that wait or are being done.
    pub(super) fn busy(&self) -> usize {
        lock(&self.shared.queue).busy
    }

    /// Gives away a request; waits while there are too many.
    pub(super) fn give(
        &mut self,
        request: Request,
        action: Action,
        payload: Vec<u8>,
    ) -> io::Result<()> {
        let mut queue = lock(&self.shared.queue);
        while queue.busy > 0
            && (queue.jobs.len() >= WAITING || queue.payload + payload.len() > PAYLOAD)
        {
            queue = self.shared.less.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.idle <= queue.jobs.len() && queue.threads < THREADS {
            let shared = Arc::clone(&self.shared);
            let builder = std::thread::Builder::new().name("nbd-worker".to_owned());
            match builder.stack_size(STACK).spawn(move || shared.work()) {
                Ok(thread) => {
                    self.threads.retain(|thread| !thread.is_finished());
                    self.threads.push(thread);
                    queue.threads += 1;
                }
                Err(error) if queue.threads == 0 => return Err(error),
                Err(_) => {}
            }
        }
        queue.payload += payload.len();
        queue.busy += 1;
        queue.jobs.push_back(Job { request, action, payload });
        drop(queue);
        self.shared.more.notify_one();
        Ok(())
    }

    /// Waits until nothing is being done.
    #[cfg(feature = "ring")]
    pub(super) fn drain(&self) {
        let mut queue = lock(&self.shared.queue);
        while queue.busy > 0 {
            queue = self.shared.less.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
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

/// Counts a job as done, also when the disk's engine panics in it.
struct Doing<'a>(&'a Shared, usize);

impl Drop for Doing<'_> {
    fn drop(&mut self) {
        let mut queue = lock(&self.0.queue);
        queue.busy -= 1;
        queue.payload -= self.1;
        self.0.link.gauge.remove();
        drop(queue);
        self.0.less.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        let mut out = Output::new();
        let mut found = Found::default();
        while let Some(job) = self.next() {
            let _doing = Doing(self, job.payload.len());
            let Job { request, action, payload } = job;
            let began = Instant::now();
            let done =
                perform::perform(&self.link, &request, action, &payload, &mut found, &mut out);
            let bytes = if matches!(action, Action::Read { .. }) { request.length } else { 0 };
            let bytes = payload.len().max(bytes as usize);
            self.link.pace.add(perform::kind(action), began.elapsed(), bytes);
            if done.and_then(|()| out.send(&self.link)).is_err() {
                // The thread that receives sees the end.
                self.link.wire.close();
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
