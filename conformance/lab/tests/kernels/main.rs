//! The lab itself: guests, networks, and what drivers are tested upon. One program, so that tests
//! that wait for a time-out have others beside them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod guests;
mod iscsi;
mod networks;
mod nfs;
mod storage;
