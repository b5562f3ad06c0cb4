//! The driver against a simulated array with real blocks: in guests of the lab, by `smctl`, with the
//! kernel's initiator.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use array_matrix::lab::luns;
use array_matrix::lab::stations::FlashArray;
use lab::Result;

#[test]
fn luns_are_reached_by_what_they_are_and_leave_nothing_behind() -> Result<()> {
    luns::<FlashArray>(|_| Ok(()))
}
