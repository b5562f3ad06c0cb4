//! Loads drivers.
pub mod port;
