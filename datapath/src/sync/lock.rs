//! The locks that [`super::regions`] uses. A test puts others in their place, which try one order
//! of the threads after the other.

pub(super) use std::sync::{Condvar, Mutex, MutexGuard};
