//! Loads drivers and hands out ports to them.
//!
//! ```text
//! discover  which files are drivers                        no code of the file has run
//! inspect   ELF, host architecture, manifest, interface    no code of the file has run
//! verify    owner, mode, size and hash                     no code of the file has run
//! stage     a private copy under its content's name
//! dl        dlopen, header, layout checked both ways
//! open      configuration, services, then the driver's `open`
//! ```
//!
//! What comes out is a [`DriverPort`]. There are three kinds and nobody above
//! can tell them apart: a driver that is linked statically ([`InProcessPort::from_module`]), a
//! shared library in this process, and a shared library in a child process
//! ([`Placement::Child`]), where a crash costs the calls in flight and nothing else.
//!
//! Every refusal is a [`LoadError`]: one sentence that names both sides, and a hint.

#![deny(missing_docs)]

mod background;
mod child;
pub mod discover;
pub mod dl;
mod error;
pub mod ffi;
pub mod frame;
mod hub;
mod in_process;
pub mod inspect;
mod link;
mod open;
pub mod port;
mod process;
mod restart;
mod services;
pub mod stage;
pub mod verify;
pub mod wire;

pub use discover::discover;
pub use error::LoadError;
pub use in_process::InProcessPort;
pub use inspect::{Inspection, inspect};
pub use open::{ChildOptions, Loader, LoaderOptions, Placement};
pub use port::{Call, CancelFlag, DriverPort, PortHealth};
pub use process::ProcessPort;
pub use restart::RestartPolicy;
pub use services::{HostServices, NoServices};
pub use sm_abi::DriverModule_Ref;
