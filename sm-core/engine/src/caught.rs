//! The word of a driver that the snapshots of a call hold what they are to hold, though the call goes
//! on: a guest that is at rest for them need not wait for their names and texts to be written.
//!
//! Why not two operations, one that takes and one that describes: between them a snapshot would be
//! there that nobody has described, and whoever finds it after a crash would have to know whose it is.
//! So it stays one call, which answers for all of it or undoes all of it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sm_model::{OperationId, SrUuid};

type Call = (SrUuid, OperationId);
type Tell = Box<dyn FnOnce() + Send>;

/// Who is told, by the call.
#[derive(Default)]
pub(crate) struct Caught(Mutex<HashMap<Call, Tell>>);

/// Until it is dropped somebody waits for the word.
pub(crate) struct Waiting<'a> {
    caught: &'a Caught,
    call: Call,
}

impl Caught {
    /// `tell` is called at most once, while the answer lives.
    pub(crate) fn wait(
        &self,
        sr: SrUuid,
        operation: OperationId,
        tell: impl FnOnce() + Send + 'static,
    ) -> Waiting<'_> {
        let call = (sr, operation);
        self.lock().insert(call, Box::new(tell));
        Waiting { caught: self, call }
    }

    /// A driver's word. Where nobody waits, or not any more, it is nobody's.
    pub(crate) fn say(&self, sr: SrUuid, operation: OperationId) {
        let tell = self.lock().remove(&(sr, operation));
        if let Some(tell) = tell {
            tell();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Call, Tell>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.caught.lock().remove(&self.call);
    }
}
