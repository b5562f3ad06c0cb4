//! Lets go of what the process that started this one has left open, and of its limit of descriptors.
#![allow(
    unsafe_code,
    reason = "closing descriptors by number is a system call on what others opened"
)]

use std::os::fd::RawFd;

/// Closes every descriptor above the three standard ones. Must be the first thing that a program
/// does: what is open then was inherited.
pub(super) fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<RawFd> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in open {
        // Gone already: the descriptor of the listing itself.
        // SAFETY: nothing in this process owns a descriptor above 2 yet, so none is closed under
        // its owner; the only other one, of the listing, was closed with it above.
        let still_there = unsafe { rustix::fd::BorrowedFd::borrow_raw(number) };
        if rustix::io::fcntl_getfd(still_there).is_ok() {
            // SAFETY: as above.
            unsafe { rustix::io::close(number) };
        }
    }
}

/// As many descriptors as the system gives: a connection has up to six, and usual limits are below
/// what all connections may need. Not having them is no reason not to begin.
pub(super) fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
