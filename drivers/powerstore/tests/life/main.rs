//! The whole driver against the simulated array, with every call going wrong, and what is peculiar to
//! this vendor.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod array;
mod open;
mod traps;

use array::Array;

array_matrix::matrix!(Array);

#[test]
fn a_driver_that_is_killed_anywhere_makes_one_object_and_leaves_none() {
    array_matrix::kills::at_each_step::<Array>();
}
