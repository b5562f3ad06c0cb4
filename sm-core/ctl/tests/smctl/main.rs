//! The real program against the real file driver, with the driver in a child process and in
//! process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod cbt;
mod errors;
#[expect(dead_code, reason = "an agent that lies is of use beside the crate that asks it")]
#[path = "../../../quiesce/tests/quiesce/fake.rs"]
mod fake;
mod life;
mod live;
mod maintain;
mod names;
mod pages;
mod quiesce;
mod real_agent;
mod together;
mod vhd;
mod world;
