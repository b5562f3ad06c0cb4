//! The whole driver against the simulated array: what all drivers of arrays must hold, and what is
//! peculiar to this vendor.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod answers;
mod peculiar;
mod world;

array_matrix::matrix!(world::Ontap);

#[test]
fn disks_of_a_group_are_of_one_instant() {
    array_matrix::group::of_one_instant::<world::Ontap>();
}

#[test]
fn guests_wait_for_one_request() {
    array_matrix::group::one_request_until_the_instant::<world::Ontap>();
}

#[test]
fn a_driver_that_is_killed_anywhere_makes_one_object_and_leaves_none() {
    array_matrix::kills::at_each_step::<world::Ontap>();
}

#[test]
fn a_group_that_was_never_finished_leaves_nothing_wherever_that_is_cut_off() {
    array_matrix::kills::cleanup_of_a_group::<world::Ontap>();
}
