//! The command line of a group, apart from how it is reached: what is sent, and what comes back.
//!
//! | module | what |
//! |---|---|
//! | [`command`] | commands as text; what stands in them cannot be mistaken for more |
//! | [`screen`] | where a reply ends in what comes back |
//! | [`reply`] | the lines of a reply, without echo, events and pager; refusals |
//! | [`parse`] | `Key: value` texts and tables, wrapped or not |
//! | [`verdict`] | what refusals mean |
//!
//! Nothing here does I/O, and nothing here fails on what an array might say: it answers less.

pub mod command;
pub mod parse;
pub mod reply;
pub mod screen;
pub mod verdict;
