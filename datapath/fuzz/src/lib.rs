//! What the fuzz targets of the protocol share.
//!
//! | module | |
//! |---|---|
//! | [`disk`] | a disk in memory that checks what it is asked |
//! | [`input`] | what one input says, taken byte by byte |
//! | [`pipe`] | a connection whose other side is an input |
//! | [`seeds`] | what a run starts from |

use std::alloc::System;

use cap::Cap;

pub mod disk;
pub mod input;
pub mod pipe;
pub mod seeds;

/// Refuses what goes beyond the limit; the fuzzer sees the abort.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Ends the process when one execution holds more than `bytes` at a time.
pub fn limit_memory(bytes: usize) {
    // Raised before it is lowered: what the last execution has left may be more.
    let _ = ALLOCATOR.set_limit(usize::MAX);
    ALLOCATOR.set_limit(ALLOCATOR.allocated() + bytes).expect("less was allocated a moment ago");
}
