//! The loader's own runtime, and calls that outlive their caller.
//!
//! Sockets, children, timers and the requests of drivers live on one small runtime of the
//! loader's own. So a port works whatever runtime polls it, also none, and goes on working when
//! the runtime it was opened on is gone.

use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::Sleep;

use crate::LoadError;
use crate::port::Call;

/// The loader's runtime. It is made once and never shut down.
pub(crate) fn handle() -> Result<&'static Handle, LoadError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    // Two workers: a service that blocks by mistake must not stop the sockets.
    let runtime = RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("sm-loader")
            .enable_all()
            .build()
            .map_err(|error| error.to_string())
    });
    match runtime {
        Ok(runtime) => Ok(runtime.handle()),
        Err(why) => Err(LoadError::Host { what: "the loader's runtime", why: why.clone() }),
    }
}

/// A future that is driven to its end even if it is dropped: it is polled where it is awaited,
/// which costs nothing, and what is left of it at a drop moves to the loader's runtime.
pub(crate) struct ToTheEnd<T: Send + 'static> {
    future: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    on_drop: Option<Handle>,
}

impl<T: Send + 'static> ToTheEnd<T> {
    pub(crate) fn new(
        handle: &Handle,
        mutating: bool,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Self {
        Self { future: Some(Box::pin(future)), on_drop: mutating.then(|| handle.clone()) }
    }
}

impl<T: Send + 'static> Future for ToTheEnd<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(future) = self.future.as_mut() else {
            return Poll::Pending; // Polled after its end, which only a broken executor does.
        };
        let output = std::task::ready!(future.as_mut().poll(context));
        self.future = None;
        Poll::Ready(output)
    }
}

impl<T: Send + 'static> Drop for ToTheEnd<T> {
    fn drop(&mut self) {
        if let (Some(future), Some(handle)) = (self.future.take(), &self.on_drop) {
            handle.spawn(future);
        }
    }
}

/// Why a call is not waited for any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GaveUp {
    Deadline,
    Cancelled,
}

/// Waits for the answer; at the deadline or after a cancel calls `stop` and waits a grace.
///
/// `answer` is borrowed: it is never dropped here, since it may be a mutation.
pub(crate) async fn with_grace<A: Future + Unpin>(
    handle: &Handle,
    call: &Call,
    grace: Duration,
    answer: &mut A,
    stop: impl FnOnce(),
) -> Result<A::Output, GaveUp> {
    // Each arm only returns a value, so it does not matter which of them is dropped where.
    let why = tokio::select! {
        biased;
        output = &mut *answer => return Ok(output),
        () = call.cancel.cancelled() => GaveUp::Cancelled,
        () = sleep_until(handle, call.deadline) => GaveUp::Deadline,
    };
    stop();
    tokio::select! {
        biased;
        output = &mut *answer => Ok(output),
        () = sleep_until(handle, Instant::now() + grace) => Err(why),
    }
}

/// A sleep on the loader's runtime, wherever it is polled.
pub(crate) fn sleep_until(handle: &Handle, instant: Instant) -> Sleep {
    let _context = handle.enter();
    tokio::time::sleep_until(instant.into())
}
