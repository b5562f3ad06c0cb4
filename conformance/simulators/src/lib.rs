//! Storage arrays that behave.

#![forbid(unsafe_code)]

pub mod core;
