//! Panics of the driver become errors that say where.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Once;
use std::task::{Context, Poll};

use sm_model::Error;

thread_local! {
    /// How many [`caught`] calls this thread is in.
    static DEPTH: RefCell<u32> = const { RefCell::new(0) };
    /// Where the last panic of this thread was.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What a panic said, and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Panic {
    text: String,
    place: Option<String>,
}

impl Panic {
    pub(crate) fn error(self) -> Error {
        let error = Error::internal(format!("driver panicked: {}", self.text))
            .hint("this is a defect of the driver; report it to its vendor");
        match self.place {
            Some(place) => error.context("location", place),
            None => error,
        }
    }
}

/// Installs a hook that keeps the place of a panic for [`caught`] and logs it. A panic elsewhere
/// goes to the hook that was there before: a driver linked into a program is not alone.
pub(crate) fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if DEPTH.with_borrow(|depth| *depth == 0) {
                return before(info);
            }
            let place = info.location().map(ToString::to_string);
            let text = text(info.payload());
            tracing::error!(location = place.as_deref(), "driver panicked: {text}");
            PLACE.set(place);
        }));
    });
}

/// Runs `work`; a panic in it is returned.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    struct Depth;
    impl Drop for Depth {
        fn drop(&mut self) {
            DEPTH.with_borrow_mut(|depth| *depth -= 1);
        }
    }
    DEPTH.with_borrow_mut(|depth| *depth += 1);
    let _depth = Depth;
    // What `work` borrowed is not looked at again after a panic: the call ends with the error.
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|payload| Panic { text: text(payload.as_ref()), place: PLACE.take() })
}

/// A future whose panic becomes its output.
pub(crate) struct Caught<F>(Pin<Box<F>>);

impl<F: Future> Caught<F> {
    pub(crate) fn new(future: F) -> Self {
        Self(Box::pin(future))
    }
}

impl<F: Future> Future for Caught<F> {
    type Output = Result<F::Output, Panic>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match caught(|| self.0.as_mut().poll(cx)) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

fn text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").to_owned()
}
