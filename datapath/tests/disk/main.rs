//! Disks in use, on real files: every byte against a model, deaths of the process, several threads
//! at once, and files that are exchanged underneath.
//!
//! `DISK_SEED` repeats what a test with chance has done; it prints its seed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

#[path = "../../../vhd/tests/common/build.rs"]
#[allow(dead_code, unreachable_pub, reason = "a test uses its part of a shared file")]
mod build;
mod death;
mod drive;
mod files;
mod model;
mod threads;
