//! The conformance suite: laws that every driver must keep.
//!
//! [`built`] finds what the workspace built; the laws themselves are in `tests/`.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod built;
