//! Mounting file systems of servers that may stop answering.
//!
//! A process that asks a dead server for anything can hang in the kernel, beyond the reach of
//! deadlines and sometimes of SIGKILL. So here nothing that might is done by who has to answer:
//!
//! 1. [`table`]: what is mounted, from the kernel's own list, which never asks a server.
//! 2. [`attach`], [`detach`]: mounting by `mount.nfs` as a program with a deadline; unmounting by a
//!    system call that does not look at what is mounted.
//! 3. [`Threads`]: work on the mounted files, on threads that are left behind if they hang.
//! 4. [`nfs`]: whether a server answers, what it exports, and its refusals as typed errors.
//!
//! Why not `cx.blocking`: it waits for its thread, and one that hangs takes the call along. Why not
//! `stat` with a timeout to see whether a mount is alive: each look would leave one more thread; a
//! request of our own to the server's port leaves nothing.

mod change;
pub mod nfs;
mod table;
mod threads;

pub use change::{attach, detach};
pub use table::{Mount, at, below, parse, table};
pub use threads::{Ended, Threads};
