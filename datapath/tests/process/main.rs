//! The process of a disk, from outside: real processes, sockets, clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod life;
mod pause;
mod people;
mod place;
