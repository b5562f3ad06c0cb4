//! What the fuzz targets share.
//!
//! | module | |
//! |---|---|
//! | [`build`], [`cases`] | the builder of files and the corpus that the tests use, too |
//! | [`input`] | files as bytes of an input, and their checksums made right |
//! | [`mutate`] | changes to such inputs that know the format |
//! | [`memory`] | files and a directory in memory |
//! | [`seeds`] | what a run starts from |

#[path = "../../tests/common/build.rs"]
#[allow(dead_code, clippy::pedantic, reason = "shared with the tests")]
pub mod build;
#[path = "../../tests/common/cases/mod.rs"]
#[allow(dead_code, clippy::pedantic, reason = "shared with the tests")]
pub mod cases;
pub mod input;
mod limit;
pub mod memory;
pub mod mutate;
pub mod seeds;

pub use limit::limit_memory;
