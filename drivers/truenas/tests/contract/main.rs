//! What the driver sends, and how it reads the answers, over both APIs: one test per request shape.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod answers;
mod mapping;
mod refusals;
mod script;
mod shapes;
