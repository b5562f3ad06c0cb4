//! Threads that may hang.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use plugin_sdk::tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
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
/// More work than that waits for its turn. What hangs is left behind, and counts until it ends: when
/// all threads hang, work is refused and not begun. A process whose threads hang can be killed, or ends
/// when what they wait for answers.
#[derive(Debug)]
pub struct Threads {
    free: Arc<Semaphore>,
    /// Threads that were left behind.
    left: Arc<Mutex<usize>>,
    most: usize,
}

/// Where a thread is with its work.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Runs,
    Left,
    Ended,
}

/// A thread's place among all, as long as it is there.
struct Counted {
    turn: Arc<Mutex<Turn>>,
    left: Arc<Mutex<usize>>,
    _place: OwnedSemaphorePermit,
}

impl Drop for Counted {
    fn drop(&mut self) {
        if std::mem::replace(&mut *lock(&self.turn), Turn::Ended) == Turn::Left {
            *lock(&self.left) -= 1;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Threads {
    /// At most so many at a time, those that hang among them.
    pub fn new(most: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(most)), left: Arc::default(), most }
    }

    /// Threads that run or hang.
    pub fn busy(&self) -> usize {
        self.most - self.free.available_permits()
    }

    /// A place for a thread.
    async fn place(&self, cx: &Cx, until: Instant) -> Result<OwnedSemaphorePermit> {
        let most = self.most;
        let none = || {
            Error::busy(format!("{most} earlier calls still wait for the storage"))
                .hint("they end when it answers, or with this process")
        };
        if let Ok(place) = Arc::clone(&self.free).try_acquire_owned() {
            return Ok(place);
        }
        if *lock(&self.left) >= most {
            return Err(none());
        }
        tokio::select! {
            place = Arc::clone(&self.free).acquire_owned() => place.map_err(|_| none()),
            () = tokio::time::sleep_until(until.into()) => Err(none()),
            () = cx.cancelled() => { cx.check()?; Err(none()) }
        }
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
        let place = self.place(cx, until).await?;
        let turn = Arc::new(Mutex::new(Turn::Runs));
        let counted =
            Counted { turn: Arc::clone(&turn), left: Arc::clone(&self.left), _place: place };
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
            () = stop => {
                let mut turn = lock(&turn);
                if *turn == Turn::Runs {
                    *turn = Turn::Left;
                    *lock(&self.left) += 1;
                }
                Ok(Ended::Left)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use plugin_sdk::testing::{TestHost, run};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn more_work_than_threads_waits_for_its_turn() -> Result<()> {
        run(TestHost::new().with_cx(LONG, |cx| async move {
            let (threads, until) = (Arc::new(Threads::new(2)), Instant::now() + LONG);
            let calls = (0..40).map(|number| {
                let (threads, cx) = (Arc::clone(&threads), cx.clone());
                tokio::spawn(async move { threads.run(&cx, until, move |_| Ok(number)).await })
            });
            for (number, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
                let ended = call.await.map_err(|_| Error::internal("a call is lost"))??;
                assert!(matches!(ended, Ended::Done(Ok(answer)) if answer == number), "{number}");
            }
            assert_eq!(threads.busy(), 0);
            Ok(())
        }))
    }

    #[test]
    fn work_is_refused_while_all_threads_hang_and_goes_on_when_one_ends() -> Result<()> {
        run(TestHost::new().with_cx(LONG, |cx| async move {
            let threads = Threads::new(1);
            let (end, hangs) = mpsc::channel::<()>();
            let hang = move |_: &Cx| {
                let _ = hangs.recv();
                Ok(())
            };
            assert!(matches!(threads.run(&cx, Instant::now(), hang).await?, Ended::Left));
            let until = Instant::now() + LONG;
            let refused = threads.run(&cx, until, |_| Ok(())).await.map(drop);
            let refused =
                refused.map_err(|error| (error.kind.name().to_owned(), error.message.clone()));
            let words = "1 earlier calls still wait for the storage".to_owned();
            assert_eq!(refused, Err(("busy".to_owned(), words)));
            drop(end);
            while threads.busy() > 0 {
                tokio::task::yield_now().await;
            }
            assert!(matches!(threads.run(&cx, until, |_| Ok(())).await?, Ended::Done(Ok(()))));
            Ok(())
        }))
    }
}
