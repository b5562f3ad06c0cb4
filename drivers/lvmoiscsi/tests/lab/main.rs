//! The driver against the kernel's own target, over two portals, with dm-multipath: in guests of
//! the lab, by `smctl`, as a user sees it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod array;
mod cuts;
mod faults;
mod fence;
mod hosts;
mod images;
mod life;
mod merges;
mod outage;
