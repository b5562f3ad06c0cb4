//! Where the core keeps what the storage cannot know.
//!
//! A store is a sorted map of keys to values with versions, changed by conditional batches: all
//! of a batch or nothing, and only if every expectation in it holds. That is what SQLite gives on
//! one host and what etcd gives a pool, so the rest of the core knows neither.

use sm_model::Result;

/// A value and the version of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Rises with every change of the key; never 0.
    pub version: u64,
    /// The value, JSON.
    pub value: Vec<u8>,
}

/// What a batch expects of a key before anything is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// The key.
    pub key: String,
    /// Its version; `None`: the key is not there.
    pub version: Option<u64>,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// The new value; `None` removes the key.
    pub value: Option<Vec<u8>>,
}

/// Changes that happen together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// What must hold.
    pub expect: Vec<Expectation>,
    /// What to change.
    pub changes: Vec<Change>,
    /// Whether the batch must survive a power cut once committed. Without it, it survives the
    /// death of the process, and a power cut may lose the newest batches, never a part of one.
    pub durable: bool,
}

/// Whether a batch was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Commit {
    /// It was.
    Done,
    /// An expectation did not hold; nothing was changed.
    Conflict,
}

/// See the module.
pub trait Store: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &str) -> Result<Option<Stored>>;

    /// All keys that begin with `prefix`, sorted.
    fn list(&self, prefix: &str) -> Result<Vec<(String, Stored)>>;

    /// Applies a batch if its expectations hold.
    fn commit(&self, batch: Batch) -> Result<Commit>;
}
