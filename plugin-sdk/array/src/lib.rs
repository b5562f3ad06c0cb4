//! What the drivers of storage arrays share.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod array;
pub mod classify;
pub mod driver;
pub mod http;
pub mod job;
pub mod ledger;
pub mod metadata;
pub mod names;
pub mod outcome;
pub mod pages;
pub mod recorder;
pub mod rest;
pub mod retry;
pub mod session;
pub mod size;
pub mod testing;
