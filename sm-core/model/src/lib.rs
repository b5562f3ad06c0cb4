//! The vocabulary of the storage manager.
//!
//! Everything that a toolstack, the core and a driver say to each other is a type of this crate,
//! and travels as JSON: in process, to a child process, into a log, into a test vector. There is
//! no I/O here and no policy.
//!
//! | module | what it names |
//! |---|---|
//! | [`operation`] | the operations, one row each: name, request, reply, does it change anything |
//! | [`sr`], [`vdi`] | requests and replies |
//! | [`access`] | how an attached disk is reached |
//! | [`error`], [`legacy`] | what went wrong, and SMAPI's numbers for it |
//! | [`manifest`] | what a driver says of itself |
//! | [`id`], [`size`], [`name`] | identifiers, byte counts, and the rule for names |
//! | [`host`] | what a driver may ask of the process that loaded it |
//!
//! Why JSON and not `repr(C)` structs: a typed request costs 0.3 µs to parse and dispatch, an
//! array's round trip a thousand times that; and a field can be added without an ABI event.
//!
//! # Rules of growth
//! A field is added with `#[serde(default)]`, never renamed, never given another type. An enum
//! that a peer reads has a variant marked `#[serde(other)]` or is only ever extended together
//! with the operation that carries it. `schemas/v1/` holds the JSON Schemas; a test compares
//! them, so a change shows in review.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod access;
pub mod candidate;
pub mod error;
pub mod host;
pub mod id;
pub mod legacy;
pub mod manifest;
pub mod name;
pub mod operation;
pub mod size;
pub mod sr;
pub mod vdi;

pub use uuid;

pub use access::{Access, AttachMode, ImageFormat};
pub use error::{Error, Kind, Result, Retry};
pub use id::{HostId, OperationId, SrUuid, VdiUuid};
pub use manifest::Manifest;
pub use operation::{Operation, Request};
pub use size::Bytes;

/// What a mutation did, so that a replay is visible.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Changed {
    /// Something new exists.
    Created,
    /// It was as asked before the call: a replay, or nothing to do.
    Already,
    /// Something that existed is different, or gone.
    Modified,
}

/// Device configuration: how to reach a backend, as flat text keys (`location`, `server`, ...).
pub type DeviceConfig = std::collections::BTreeMap<String, String>;
