//! The driver over real device-mapper and LVM, in guests of user-mode Linux: called directly for
//! what it answers, through `smctl` and the loaded library for what a user sees.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod bench;
mod crash;
mod group;
mod kill;
mod life;
mod pool;
mod power;
mod refusals;
mod scale;
mod user;
