//! What comes back over the binary interface, made safe to use.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use sm_abi::async_ffi::FfiFuture;
use sm_abi::{CallContext, Reply};
use sm_model::{Error, OperationId};

/// The driver's future panicked; its text went to standard error, it does not cross.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicked;

/// Drives a driver's future. The SDK lets no panic come this far, another author might: then
/// `async-ffi` panics here, on the host's thread.
pub async fn guarded<T>(future: FfiFuture<T>) -> Result<T, Panicked> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Err(_) => Poll::Ready(Err(Panicked)),
    })
    .await
}

/// The answer to a call: the reply's JSON, or the error's.
pub async fn answer(future: FfiFuture<Reply>, driver: &str) -> Result<Vec<u8>, Vec<u8>> {
    match guarded(future).await {
        Ok(reply) => reply.into_result().map(Into::into).map_err(Into::into),
        Err(Panicked) => Err(to_json(&panicked(driver))),
    }
}

/// What a panic that reached the interface is reported as.
pub fn panicked(driver: &str) -> Error {
    Error::internal(format!("the driver {driver} panicked"))
        .hint("the text of the panic is in the log of this host; report it to the driver's author")
}

/// An error as JSON.
pub fn to_json(error: &Error) -> Vec<u8> {
    serde_json::to_vec(error).unwrap_or_else(|_| {
        br#"{"kind":"internal","message":"an error could not be written as JSON","retry":"permanent"}"#
            .to_vec()
    })
}

/// A driver's error out of its JSON.
pub fn from_json(json: &[u8], driver: &str) -> Error {
    serde_json::from_slice(json).unwrap_or_else(|error| {
        Error::internal(format!("the driver {driver} failed with something else than an error"))
            .source(&error)
            .backend(String::from_utf8_lossy(json.get(..200).unwrap_or(json)))
    })
}

/// The context of a call. The trace's id is the operation's, so that a backend's log can be
/// matched with the journal; the span's is the call's.
pub fn context(call: u64, operation: OperationId, budget_ms: u64) -> CallContext {
    CallContext {
        call_id: call,
        trace_id: operation.halves(),
        span_id: call,
        budget_ms,
        operation_id: operation.halves(),
        fence_epoch: 0,
        flags: 0,
    }
}
