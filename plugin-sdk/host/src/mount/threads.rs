//! Threads that may hang.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use plugin_sdk::tokio::sync::oneshot;
use plugin_sdk::{Cx, Error, Result, tokio, tracing};

/// After a cancel, for work that looks at it now and then: what it has begun it ends or undoes.
const GRACE: Duration = Duration::from_secs(5);

/// How work on a thread ended for who waited.
#[derive(Debug)]
pub enum Ended<T> {
    /// It did, in time.
    Done(Result<T>),
    /// It hangs, or is slow. It goes on by itself, to its own end, and nobody hears its answer. A
    /// change that it is at may still be made: the caller's error must say that it is not known.
    Left,
}

/// Runs work that can hang in the kernel, on threads of its own, so many at a time.
///
/// What hangs is left behind, and counts until it ends: after so many, work is refused and not
/// begun. A process whose threads hang can be killed, or ends when what they wait for answers.
#[derive(Debug)]
pub struct Threads {
    busy: Arc<AtomicUsize>,
    most: usize,
}

/// Counts a thread as long as it is there.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Threads {
    /// At most so many at a time, those that hang among them.
    pub fn new(most: usize) -> Self {
        Self { busy: Arc::new(AtomicUsize::new(0)), most }
    }

    /// Threads that run or hang.
    pub fn busy(&self) -> usize {
        self.busy.load(Ordering::SeqCst)
    }

    /// Runs work until a point in time; after a cancel of the call for 5 s more at most.
    ///
    /// Errors, before anything is begun: `busy` if there are too many threads. A panic of the work
    /// is an `internal` error.
    pub async fn run<T, F>(&self, cx: &Cx, until: Instant, work: F) -> Result<Ended<T>>
    where
        T: Send + 'static,
        F: FnOnce(&Cx) -> Result<T> + Send + 'static,
    {
        cx.check()?;
        let took = |busy| if busy < self.most { Some(busy + 1) } else { None };
        if self.busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, took).is_err() {
            let most = self.most;
            return Err(Error::busy(format!("{most} earlier calls still wait for the storage"))
                .hint("they end when it answers, or with this process"));
        }
        let counted = Counted(Arc::clone(&self.busy));
        let (tell, told) = oneshot::channel();
        let (inner, span) = (cx.clone(), tracing::Span::current());
        let thread = std::thread::Builder::new().name("drv-storage".to_owned());
        let started = thread.spawn(move || {
            let counted = counted;
            let result = span.in_scope(|| {
                catch_unwind(AssertUnwindSafe(|| work(&inner)))
                    .unwrap_or_else(|_| Err(Error::internal("the driver panicked")))
            });
            // Before it is told: who waited finds the place free.
            drop(counted);
            let _ = tell.send(result);
        });
        if let Err(error) = started {
            return Err(Error::busy("no thread can be started").source(&error));
        }
        let stop = async {
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                () = async { cx.cancelled().await; tokio::time::sleep(GRACE).await } => {}
            }
        };
        tokio::select! {
            biased;
            result = told => Ok(Ended::Done(
                result.unwrap_or_else(|_| Err(Error::internal("work on the storage was lost"))),
            )),
            () = stop => Ok(Ended::Left),
        }
    }
}
