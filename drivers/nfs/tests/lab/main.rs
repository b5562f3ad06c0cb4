//! The driver over a real server and a real client of NFS, in guests of user-mode Linux, as a user
//! sees it: `smctl` loads the library.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod crash;
mod faults;
mod fence;
mod life;
mod probe;
mod site;
