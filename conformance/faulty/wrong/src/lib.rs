//! Wrong on demand.
#![forbid(unsafe_code)]
