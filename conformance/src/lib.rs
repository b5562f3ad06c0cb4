//! The conformance suite: laws that every driver must keep.
//!
//! [`built`] finds what the workspace built, [`kills`] tells a story to an array's driver that dies at
//! each step; the laws themselves are in `tests/`.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod built;
pub mod kills;
