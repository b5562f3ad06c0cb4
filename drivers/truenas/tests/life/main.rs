//! The whole driver against the simulated array, over both APIs, with every call going wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod array;
mod identity;
mod open;

mod rest {
    array_matrix::matrix!(crate::array::Rest);
}

mod websocket {
    array_matrix::matrix!(crate::array::WebSocket);

    #[test]
    fn what_a_program_writes_in_order_is_in_order_in_a_group() {
        array_matrix::group::of_one_instant::<crate::array::WebSocket>();
    }

    #[test]
    fn a_group_that_was_prepared_is_taken_by_the_first_request() {
        array_matrix::group::one_request_until_the_instant::<crate::array::WebSocket>();
    }

    #[test]
    fn a_driver_that_is_killed_anywhere_makes_one_object_and_leaves_none() {
        array_matrix::kills::at_each_step::<crate::array::WebSocket>();
    }
}
