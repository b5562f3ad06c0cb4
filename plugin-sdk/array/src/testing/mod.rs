//! A test kit: an array in memory that behaves, and a driver over it.
//!
//! [`MemoryArray`] has the habits of a vendor ([`Habits`]), keeps other people's volumes beside
//! ours, and fails on command ([`Trouble`]) at any change: before it, after it, or for good. The
//! kit's own tests run a whole SR through it; a vendor's tests can do the same with the vendor's
//! [`Array`](crate::array::Array) over a simulator.

mod memory;
mod primitives;
mod product;

pub use memory::{Habits, MemoryArray, Trouble};
pub use product::{MemoryConnector, MemoryProduct};
