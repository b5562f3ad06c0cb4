//! The real program against the real file driver, with the driver in a child process and in
//! process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod cbt;
mod errors;
mod life;
mod live;
mod maintain;
mod names;
mod pages;
mod together;
mod vhd;
mod world;
