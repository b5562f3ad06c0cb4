//! The binary interface between the storage manager and a driver.
//!
//! A driver is a shared library with one exported symbol: the header of an `abi_stable` root
//! module, [`DriverModule`], of three functions. An opened driver is a [`Driver`] object; the
//! process that loaded it is a [`Host`] object. That is all; everything that grows (operations,
//! requests, replies, errors, configuration) crosses as JSON bytes of the types of `sm-model`.
//!
//! This is the only crate that names `abi_stable`, which is no longer maintained: if it has to
//! go, one crate changes and the ABI gets a new major version. The loader and the SDK's export
//! file reach it through here.
//!
//! # Rules
//! * The version of this crate is part of the layout check. Raise the minor when an entry is
//!   added, never take the workspace's version.
//! * New fields of [`DriverModule`] come after `open`, as `Option<extern "C" fn ...>` written out
//!   in full (the derive knows function pointers by their syntax, not through an alias). New
//!   methods of the traits come after the last one and have a default body.
//! * Nothing is reordered, retyped or removed within a major version. [`CallContext`] is a plain
//!   struct and cannot grow: what is new goes into the JSON or behind `flags`.
//! * No panic may leave a function of this interface: it would abort the process. The SDK catches
//!   them.

// What the macros of abi_stable 0.11 expand to in this crate, on Rust 1.95.
#![allow(
    missing_docs,
    non_camel_case_types,
    non_local_definitions,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::expect_used,
    clippy::undocumented_unsafe_blocks
)]

pub mod compat;
mod interface;

pub use abi_stable;
pub use async_ffi;

pub use interface::{
    Bytes, CallContext, Driver, Driver_TO, DriverBox, DriverModule, DriverModule_Ref, Host,
    Host_TO, HostBox, LogLevel, OpenResult, Reply,
};

/// Version of the interface, `major.minor`: what a manifest states as `abi`.
pub const ABI: &str =
    concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));

/// Major version of the interface. Another major is refused.
pub const ABI_MAJOR: &str = env!("CARGO_PKG_VERSION_MAJOR");
