//! The whole driver against the simulated array, over both APIs, with every call going wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod open;
mod requests;
mod story;
mod world;
