//! The tests that every driver of a storage array passes.
//!
//! A driver's test says in a [`Vendor`] how its simulator is started and what its arrays are like;
//! [`matrix!`] makes the tests of it:
//!
//! | module | what holds |
//! |---|---|
//! | [`life`] | everything a user does with an SR, with data and state checked at each step; nothing is left, nobody else's objects are touched |
//! | [`faults`] | the same with each change going wrong in each way: lost, answer lost, refused, session ended, array restarted |
//! | [`budgets`] | each operation takes the requests of the table in the driver's document |
//! | [`lists`] | 2,500 volumes are listed completely; lists that lag behind do no harm |
//! | [`busy`] | eight threads share a login that ends meanwhile; a busy array is asked again when it said |
//! | [`group`] | several disks are caught at one instant; for arrays that can: a test of the vendor calls it |
//! | [`secrets`] | passwords are nowhere |
//! | [`kills`] | the real library, killed at each of its steps; removals that are cut off and that nobody repeats |
//! | [`lab`] | a real LUN in a guest: identity, data, masking, cuts |
//!
//! The driver is its own [`Product`](array_kit::driver::Product), opened through the functions a
//! host calls; only its way to block devices is replaced by [`host::Watcher`], which looks whether
//! the array would serve the LUN to this host and to nobody else. The lab has the real one.
//!
//! # Why not ...
//!
//! - **the conformance suite alone** (`docs/conformance.md`): it sees a driver from outside, and so
//!   neither counts requests nor scripts what an array does.
//! - **a list of calls that change something for each vendor**: a life without faults shows which
//!   calls each operation sends. Only what merely reads has to be told.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "it is a part of tests, which fail so"
)]

pub mod budgets;
pub mod busy;
pub mod faults;
pub mod group;
pub mod host;
pub mod kills;
pub mod lab;
pub mod life;
pub mod lists;
pub mod secrets;
pub mod sr;
pub mod vendor;
pub mod wishes;

pub use sr::Sr;
pub use vendor::{Facts, Simulated, Vendor, runtime};

/// Makes the tests of a [`Vendor`].
#[macro_export]
macro_rules! matrix {
    ($vendor:ty) => {
        #[test]
        fn an_sr_lives_and_leaves_nothing_behind() {
            $crate::life::calm::<$vendor>();
        }

        #[test]
        fn an_image_and_its_clones_leave_nothing_behind() {
            $crate::life::image_with_clones::<$vendor>();
        }

        #[test]
        fn every_change_may_go_wrong() {
            $crate::faults::all::<$vendor>();
        }

        #[test]
        fn each_operation_takes_the_requests_of_the_document() {
            $crate::budgets::as_documented::<$vendor>();
        }

        #[test]
        fn lists_are_whole_and_late_ones_do_no_harm() {
            $crate::lists::whole_and_late::<$vendor>();
        }

        #[test]
        fn threads_share_a_login_and_a_busy_array_is_asked_when_it_said() {
            $crate::busy::threads::<$vendor>();
            $crate::busy::when_it_said::<$vendor>();
        }

        #[test]
        fn secrets_are_nowhere() {
            $crate::secrets::nowhere::<$vendor>();
        }
    };
}
