//! The driver's own runtime.
//!
//! A library has its own copy of tokio, to which the host's runtime is invisible, so it brings one
//! of its own. It is made when the driver is first opened, and never ended, as the library is
//! never unloaded.

use std::sync::{Mutex, PoisonError};

use sm_model::{Error, Result};
use tokio::runtime::{Builder, Handle, Runtime};

/// Most threads for blocking work: a stuck file system holds these, not the machine.
const BLOCKING_THREADS: usize = 16;

/// The runtime of a driver. In a library there is one; in a program that links several drivers
/// statically, one each, so that they do not wait for each other.
pub(crate) fn handle(driver: &'static str, workers: usize) -> Result<Handle> {
    static RUNTIMES: Mutex<Vec<(&'static str, Runtime)>> = Mutex::new(Vec::new());
    let mut runtimes = RUNTIMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, runtime)) = runtimes.iter().find(|(name, _)| *name == driver) {
        return Ok(runtime.handle().clone());
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(workers.max(1))
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name(format!("drv-{driver}"))
        .enable_all()
        .build()
        .map_err(|error| {
            Error::internal(format!("the driver {driver} cannot start its threads")).source(&error)
        })?;
    let handle = runtime.handle().clone();
    runtimes.push((driver, runtime));
    Ok(handle)
}
