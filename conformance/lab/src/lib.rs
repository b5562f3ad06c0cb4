//! Real kernels for tests.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod call;
mod disk;
mod error;
mod guest;
mod inside;
pub mod kit;
mod lab;
pub mod log_writes;
mod machine;
mod network;
#[doc(hidden)]
pub mod wire;

pub use call::{Call, Output, Running};
pub use disk::Disk;
pub use error::{Error, Result};
pub use guest::{Builder, Guest};
pub use inside::{in_guest, inside};
pub use lab::Lab;
pub use network::Network;
pub use wire::Step;
