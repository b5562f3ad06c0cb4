//! A store in memory, for tests and simulations. Clones are the same store, each with watches of
//! its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sm_model::Result;

use super::XenStore;

/// A store in memory.
#[derive(Debug, Default)]
pub struct Memory {
    shared: Arc<Shared>,
    watched: Vec<String>,
    /// How many changes were seen.
    seen: usize,
}

#[derive(Debug, Default)]
struct Shared {
    content: Mutex<Content>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Content {
    texts: BTreeMap<String, String>,
    /// Who may write there, by [`XenStore::give`].
    owners: BTreeMap<String, u32>,
    /// Every path that changed, in order.
    changes: Vec<String>,
}

impl Clone for Memory {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), watched: Vec::new(), seen: 0 }
    }
}

impl Memory {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whom a path was given to.
    pub fn owner(&self, path: &str) -> Option<u32> {
        self.content().owners.get(path).copied()
    }

    /// All paths with their texts.
    pub fn dump(&self) -> BTreeMap<String, String> {
        self.content().texts.clone()
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.shared.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, path: &str, change: impl FnOnce(&mut BTreeMap<String, String>)) {
        let mut content = self.content();
        change(&mut content.texts);
        content.changes.push(path.to_owned());
        drop(content);
        self.shared.changed.notify_all();
    }
}

/// Whether a path is another one or lies below it.
fn is_within(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl XenStore for Memory {
    fn read(&mut self, path: &str, _: Instant) -> Result<Option<String>> {
        let content = self.content();
        let below = || content.texts.keys().any(|key| is_within(key, path));
        Ok(content.texts.get(path).cloned().or_else(|| below().then(String::new)))
    }

    fn write(&mut self, path: &str, value: &str, _: Instant) -> Result<()> {
        self.change(path, |texts| drop(texts.insert(path.to_owned(), value.to_owned())));
        Ok(())
    }

    fn remove(&mut self, path: &str, _: Instant) -> Result<()> {
        self.change(path, |texts| texts.retain(|key, _| !is_within(key, path)));
        Ok(())
    }

    fn list(&mut self, path: &str, _: Instant) -> Result<Vec<String>> {
        let content = self.content();
        let names = content.texts.keys().filter(|key| is_within(key, path)).filter_map(|key| {
            let below = key.get(path.len() + 1..)?;
            below.split('/').next().map(str::to_owned)
        });
        let mut names: Vec<String> = names.collect();
        names.dedup();
        Ok(names)
    }

    fn give(&mut self, path: &str, domain: u32, _: Instant) -> Result<()> {
        self.content().owners.insert(path.to_owned(), domain);
        Ok(())
    }

    fn watch(&mut self, path: &str, _: Instant) -> Result<()> {
        self.watched.push(path.to_owned());
        Ok(())
    }

    fn changed(&mut self, until: Instant) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut content = shared.content.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let fresh = content.changes.get(self.seen..).unwrap_or_default();
            // A removal changes what was below it, too.
            let touched = |path: &String| {
                self.watched.iter().any(|it| is_within(path, it) || is_within(it, path))
            };
            let found = fresh.iter().any(touched);
            self.seen = content.changes.len();
            let left = until.saturating_duration_since(Instant::now());
            if found || left == Duration::ZERO {
                return Ok(());
            }
            let waited = shared.changed.wait_timeout(content, left);
            content = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
