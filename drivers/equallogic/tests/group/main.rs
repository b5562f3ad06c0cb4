//! The driver over a simulated group, through real SSH.
//!
//! The simulator keeps what it says and does on real pages; nothing here was compared with a physical
//! array.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod copies;
mod cut;
mod kills;
mod life;
mod login;
mod reserve;
mod sessions;
mod support;

mod matrix {
    array_matrix::matrix!(crate::support::Ps);
}
