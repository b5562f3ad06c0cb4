//! What a storage vendor needs to write a driver.
//!
//! A driver is a shared library that serves one type of storage repository (SR). It implements
//! one trait, [`Driver`], with a method per operation; the SDK does the rest: the binary
//! interface, the runtime, panics, deadlines, cancel, logging, secrets.
//!
//! # A driver in one screen
//!
//! ```
//! #![forbid(unsafe_code)]
//! use plugin_sdk::prelude::*;
//!
//! // 1. How to reach the backend. The doc comments are the help an operator sees.
//! device_config! {
//!     /// How to reach the pool.
//!     pub struct Config {
//!         /// Management address of the array.
//!         pub target: String,
//!         /// Its port.
//!         pub port: u16 = "443",
//!         /// Password of the user.
//!         pub password: Secret,
//!     }
//! }
//!
//! // 2. One opened SR.
//! struct Acme {
//!     sr: SrUuid,
//!     address: String,
//! }
//!
//! impl Driver for Acme {
//!     type Config = Config;
//!
//!     // 3. What the driver says of itself: readable in the file, without loading it.
//!     const MANIFEST: Manifest = manifest! {
//!         name: "acme",
//!         title: "Acme 9000 series, REST API v3",
//!         operations: [sr_create, sr_stat],
//!         features: &[Feature::limit(feature::MAX_VDI_SIZE, 64 << 40, "REST guide 3.1, p. 44")],
//!     };
//!
//!     async fn open(config: Config, sr: SrUuid, _: &Cx) -> Result<Self> {
//!         Ok(Self { sr, address: format!("https://{}:{}", config.target, config.port) })
//!     }
//!
//!     // 4. The operations: typed request in, typed reply out.
//!     async fn sr_create(&self, cx: &Cx, request: SrCreate) -> Result<SrCreated> {
//!         cx.check()?; // Cancelled, or out of time?
//!         tracing::info!(name = request.name, "making a pool on {}", self.address);
//!         cx.progress(500, "pool");
//!         step!("sr_create.pool_made"); // A place where a test pulls the plug.
//!         Ok(SrCreated { changed: Changed::Created, device_config: cx.device_config().clone() })
//!     }
//!
//!     async fn sr_stat(&self, _: &Cx, _: SrStat) -> Result<SrInfo> {
//!         Err(Error::new(Kind::Unreachable, format!("no answer from {}", self.address))
//!             .hint(format!("look for the pool of {} on the array's console", self.sr)))
//!     }
//! }
//!
//! // 5. The library's one exported symbol.
//! export_driver!(Acme);
//!
//! // 6. A test, without building or loading the library.
//! # fn main() -> Result<()> {
//! use plugin_sdk::testing::{TestHost, run};
//!
//! run(async {
//!     let host = TestHost::new().secret("secret://array1", "rosebud");
//!     let config = [("target", "10.0.0.1"), ("password", "secret://array1")];
//!     let driver = host.open::<Acme>(SrUuid::random(), &config).await?;
//!
//!     let made = driver.call(SrCreate::default()).await?;
//!     assert_eq!(made.changed, Changed::Created);
//!     assert_eq!(host.progress()[0].stage, "pool");
//!
//!     let error = driver.call(SrStat::default()).await.unwrap_err();
//!     assert_eq!(error.message, "no answer from https://10.0.0.1:443");
//!
//!     let error = driver.call(SrScan::default()).await.unwrap_err();
//!     assert_eq!(error.message, "the driver acme does not support sr_scan");
//!     Ok(())
//! })
//! # }
//! # use plugin_sdk::tracing;
//! ```
//!
//! The crate needs this in its `Cargo.toml`, and no other dependency for the driver's sake:
//!
//! ```toml
//! [lib]
//! crate-type = ["cdylib", "rlib"]   # the library, and a crate for its unit tests
//!
//! [dependencies]
//! plugin-sdk = { path = "../storage-manager/plugin-sdk" }
//! serde_json = "1"                  # whatever the driver itself needs
//! ```
//!
//! `examples/scratch.rs` is a whole driver that serves disks from files.
//!
//! # What to read next
//!
//! | question | answer |
//! |---|---|
//! | What must an operation do, and what if it comes twice? | [`Driver`], its rules and each method |
//! | How long may it take, and who wants it to stop? | [`Cx`] |
//! | How do I run a program? | [`Cx::command`], [`command::Command`] |
//! | How do I do something that blocks? | [`Cx::blocking`] |
//! | How do I change a file so that a power cut does no harm? | [`files`] |
//! | Where do I keep a cache? | [`Cx::kv`] |
//! | How do I declare configuration and secrets? | [`device_config!`], [`Secret`] |
//! | How do I test it? | [`testing`], [`step!`] |
//!
//! # What a driver must not do
//! The process is shared: no `std::env::set_var`, no `set_current_dir`, no `exit`, no signal
//! handlers, no `fcntl` locks (any `close` of the file in the process drops them; `flock` is
//! fine). A thread of the runtime is not blocked for longer than a local file takes to read:
//! there is one of them, see [`Cx::blocking`]. Logging goes through [`tracing`]; what is printed
//! is lost.
//!
//! # Why not ...
//! *... a procedural macro on the trait?* The trait is an ordinary one: an editor completes it,
//! the compiler explains it, and `async fn` in it needs no box. The three macros
//! ([`device_config!`], [`manifest!`], [`export_driver!`]) are `macro_rules`, which cost no build
//! time and can be read.
//!
//! *... the host's runtime?* A shared library has its own copy of tokio, to which the host's
//! runtime is invisible; a future that is polled there works until it first needs a timer. So a
//! driver's code runs on threads of its own, always, and the host polls a handle.

#![deny(missing_docs, unsafe_code)]

pub mod command;
pub mod config;
mod cx;
mod driver;
#[doc(hidden)]
#[allow(unsafe_code)] // The binary interface.
pub mod export;
pub mod files;
mod host;
mod info;
mod kv;
#[doc(hidden)]
pub mod manifest;
mod panics;
pub mod prelude;
mod runtime;
mod secret;
pub mod testing;
mod trace;

pub use camino::{Utf8Path, Utf8PathBuf};
pub use config::RawConfig;
pub use cx::Cx;
pub use driver::{Driver, SessionHealth};
pub use info::{new_vdi, quarantined_vdi};
pub use kv::Kv;
pub use manifest::{Feature, Manifest};
pub use secret::Secret;
pub use sm_model as model;
pub use sm_model::{Error, Result};
pub use sm_step::step;
pub use tokio;
pub use tracing;
