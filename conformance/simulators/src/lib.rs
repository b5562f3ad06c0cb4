//! Storage arrays that behave.

#![forbid(unsafe_code)]

pub mod admin;
pub mod core;
pub mod http;
pub mod iscsi;
