//! Simulated arrays, by clients that know nothing of our drivers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod common;
mod faults;
mod luns;
mod powerstore;
mod purestorage;
mod state;
mod truenas;
