//! XenStore: a tree of small texts that the guests of a Xen host and its first domain share.
//!
//! Only what the conversation with a guest needs, see [`crate::vss`].

mod memory;
mod socket;

use std::time::Instant;

use sm_model::Result;

pub use memory::Memory;
pub use socket::{DEFAULT_SOCKET, Socket, serve};

/// The longest value: what a message of the store carries, with room for the path.
pub const LONGEST_VALUE: usize = 3072;

/// A store.
pub trait XenStore: Send {
    /// The text at a path, if there is one.
    fn read(&mut self, path: &str, until: Instant) -> Result<Option<String>>;

    /// Sets the text at a path; what lies on the way is made.
    fn write(&mut self, path: &str, value: &str, until: Instant) -> Result<()>;

    /// Removes a path with all below it; that there is none is success.
    fn remove(&mut self, path: &str, until: Instant) -> Result<()>;

    /// The names below a path, sorted; none if it is not there.
    fn list(&mut self, path: &str, until: Instant) -> Result<Vec<String>>;

    /// Gives a path to a domain: it may read and write it, and make what is below it.
    fn give(&mut self, path: &str, domain: u32, until: Instant) -> Result<()>;

    /// From now on [`Self::changed`] answers when this path, or one below it, has changed.
    fn watch(&mut self, path: &str, until: Instant) -> Result<()>;

    /// Waits until a path that is watched may have changed since it was asked last; answers at
    /// `until` whatever happens.
    fn changed(&mut self, until: Instant) -> Result<()>;
}
