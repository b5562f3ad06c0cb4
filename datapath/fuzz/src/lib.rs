//! What the fuzz targets of the protocol share.
//!
//! | module | |
//! |---|---|
//! | [`disk`] | a disk in memory that checks what it is asked |
//! | [`input`] | what one input says, taken byte by byte |
//! | [`pipe`] | a connection whose other side is an input |
//! | [`seeds`] | what a run starts from |

pub mod disk;
pub mod input;
#[path = "../../../vhd/fuzz/src/limit.rs"]
mod limit;
pub mod pipe;
pub mod seeds;

pub use limit::limit_memory;
