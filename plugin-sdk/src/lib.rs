//! Drivers.

#![deny(missing_docs, unsafe_code)]

pub mod command;
pub mod config;
mod cx;
mod driver;
#[doc(hidden)]
#[allow(unsafe_code)]
pub mod export;
pub mod files;
mod host;
mod kv;
#[doc(hidden)]
pub mod manifest;
mod panics;
mod runtime;
mod secret;
pub mod testing;
mod trace;

pub use camino::{Utf8Path, Utf8PathBuf};
pub use cx::Cx;
pub use driver::{Driver, SessionHealth};
pub use kv::Kv;
pub use manifest::{Feature, Manifest};
pub use secret::Secret;
pub use sm_model as model;
pub use sm_model::{Error, Result};
pub use sm_step::step;
pub use tokio;
pub use tracing;
