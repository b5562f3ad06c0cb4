//! Brings another disk to the same content while the first is written.

pub mod bits;
mod lock;
pub mod regions;
