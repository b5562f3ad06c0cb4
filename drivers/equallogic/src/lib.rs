//! Driver for Dell EqualLogic PS groups: the group's command line over SSH.

#![forbid(unsafe_code)]
#![deny(missing_docs)]
