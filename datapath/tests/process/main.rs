//! The process of a disk, from outside: real processes, sockets, clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod certificates;
mod changes;
mod life;
mod many;
mod memory;
mod moving;
mod pause;
mod people;
mod place;
mod remote;
