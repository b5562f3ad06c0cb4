//! sm-conformance
#![forbid(unsafe_code)]
fn main() {}
