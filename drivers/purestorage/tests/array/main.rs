//! The whole driver against the simulated array, in both versions of its API, with every call going
//! wrong; and what is peculiar to this vendor.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod array;
mod open;
mod traps;

mod newer {
    array_matrix::matrix!(crate::array::Newer);

    #[test]
    fn a_driver_that_is_killed_anywhere_makes_one_object_and_leaves_none() {
        array_matrix::kills::at_each_step::<crate::array::Newer>();
    }
}

/// What differs from one version to the other: the requests, and how listings go on.
mod older {
    use crate::array::Older;

    #[test]
    fn an_sr_lives_and_leaves_nothing_behind() {
        array_matrix::life::calm::<Older>();
    }

    #[test]
    fn each_operation_takes_the_requests_of_the_document() {
        array_matrix::budgets::as_documented::<Older>();
    }

    /// Both at once, because they mostly wait.
    #[test]
    fn every_change_may_go_wrong_and_lists_are_whole() {
        std::thread::scope(|scope| {
            scope.spawn(array_matrix::faults::all::<Older>);
            array_matrix::lists::whole_and_late::<Older>();
        });
    }
}
