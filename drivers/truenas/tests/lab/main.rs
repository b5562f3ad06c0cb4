//! The driver against the simulated array with real blocks: in guests of the lab, by `smctl`, with the
//! kernel's initiator and dm-multipath.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod life;
mod place;
