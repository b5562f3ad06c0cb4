//! Sessions at the command line: how they begin, how many there are, and what a lost one means.
//!
//! | module | what |
//! |---|---|
//! | [`ssh`] | one connection: the host's key, the password |
//! | [`shell`] | one shell on it: a command, and its reply |
//! | [`pool`] | at most seven of them, over all processes of the host |

pub mod pool;
pub mod shell;
pub mod ssh;
