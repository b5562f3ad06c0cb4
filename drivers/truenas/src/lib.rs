//! Driver for TrueNAS.

#![forbid(unsafe_code)]
#![deny(missing_docs)]
