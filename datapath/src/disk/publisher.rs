//! The thread that puts new metadata into the leaf now and then.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::drive::Drive;
use crate::error::{Error, Result};

/// The thread that publishes now and then.
#[derive(Default)]
pub(super) struct Publisher {
    wake: Arc<(Mutex<Wake>, Condvar)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Wake {
    soon: bool,
    stop: bool,
}

impl Publisher {
    pub(super) fn start(&self, drive: &Arc<Drive>, after: Duration) -> Result<()> {
        let (wake, weak) = (self.wake.clone(), Arc::downgrade(drive));
        let thread = std::thread::Builder::new()
            .name("publisher".to_owned())
            .spawn(move || publish(&wake, &weak, after))
            .map_err(|error| Error::io("start a thread", &error))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    pub(super) fn wake(&self) {
        let mut wake = self.wake.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !wake.soon {
            wake.soon = true;
            self.wake.1.notify_all();
        }
    }

    pub(super) fn stop(&self) {
        self.wake.0.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.wake.1.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // It ends with what it is doing; a panic there has been printed.
            let _ = thread.join();
        }
    }
}

fn publish(wake: &(Mutex<Wake>, Condvar), drive: &Weak<Drive>, after: Duration) {
    let failing = AtomicBool::new(false);
    loop {
        let held = wake.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut held, _) = wake
            .1
            .wait_timeout_while(held, after, |wake| !wake.soon && !wake.stop)
            .unwrap_or_else(PoisonError::into_inner);
        if held.stop {
            return;
        }
        held.soon = false;
        drop(held);
        let Some(drive) = drive.upgrade() else { return };
        if drive.mind_shut_out() {
            return;
        }
        let result = drive.publish();
        // Said once; who flushes is told each time.
        match result {
            Ok(()) => failing.store(false, Ordering::Relaxed),
            Err(error) if !failing.swap(true, Ordering::Relaxed) => {
                tracing::error!(%error, "metadata cannot be published");
            }
            Err(_) => {}
        }
    }
}
