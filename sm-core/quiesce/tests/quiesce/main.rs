//! Guests that behave and guests that do not, and the process that holds them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod agent;
mod fake;
mod freezer;
mod vss;
