//! The NBD server and client, by real counterparts and by hostile ones.
//!
//! Needed: `qemu-img`, `qemu-io`, `qemu-nbd` (qemu-utils), `nbdinfo`, `nbdcopy` (libnbd-bin),
//! `nbdkit`, `fio` with its nbd engine. A missing one fails the tests that want it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that finds something else than it wants ends there"
)]

#[path = "../common/certificates.rs"]
mod certificates;
mod client;
mod disks;
mod full;
mod hostile;
mod long;
mod many;
mod place;
mod raw;
mod ring;
mod tls;
mod tools;
