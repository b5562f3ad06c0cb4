//! What is for files without a store: check, repair, parents by UUID, differences. And what other
//! tools make of the same files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;

mod agree;
mod cases;
mod check;
mod diff;
mod repair;
