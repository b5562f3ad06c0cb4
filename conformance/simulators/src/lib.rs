//! Storage arrays that behave: one process that is any of them, and a library for tests.
//!
//! | module | what |
//! |---|---|
//! | [`core`] | what all arrays have in common: objects, pages, sessions, jobs, faults, the log |
//! | [`http`] | the front of those that are managed over HTTP |
//! | [`iscsi`] | the data path: a target that serves each mapped volume, and enforces who may reach it |
//! | [`admin`] | the port for tests: inventory, requests, faults, clock |
//! | [`equallogic`] | Dell EqualLogic PS groups |
//! | [`truenas`] | TrueNAS |
//! | [`ontap`] | NetApp ONTAP |
//! | [`purestorage`] | Pure Storage FlashArray |
//! | [`powerstore`] | Dell PowerStore |
//!
//! A vendor's rules are written after its published documents, and named with their source in
//! `docs/simulators.md`. Nothing here was compared with a physical array.
//!
//! # Why not the target of the operating system
//! `tgt` cannot say the identity that a vendor's units say (the NAA identifier is its own), and the
//! kernel's target needs modules that a build machine does not have. Both would write into files
//! past the accounting of the pool. So the data path is a small iSCSI target of this crate, which
//! serves any initiator.

#![forbid(unsafe_code)]

pub mod admin;
pub mod core;
pub mod equallogic;
pub mod http;
pub mod iscsi;
pub mod ontap;
pub mod powerstore;
pub mod purestorage;
mod schema;
mod simulator;
pub mod truenas;

pub use simulator::{Plan, Simulator};
