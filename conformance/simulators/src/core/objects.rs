//! The objects of an array: typed records in tables, changed all or none.
//!
//! A change is one line of the journal. A line that is not whole was never answered for, and is
//! dropped when the array starts again: so a `kill -9` leaves the state before or after a change.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What a table holds.
pub trait Record: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The table's name, unique over the array.
    const TABLE: &'static str;
}

#[derive(Debug)]
struct Entry {
    json: Value,
    typed: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Entry {
    fn new(json: Value) -> Arc<Self> {
        Arc::new(Self { json, typed: OnceLock::new() })
    }

    fn typed<R: Record>(&self) -> Option<Arc<R>> {
        if self.typed.get().is_none() {
            let record: R = serde_json::from_value(self.json.clone()).ok()?;
            let _ = self.typed.set(Arc::new(record));
        }
        self.typed.get()?.clone().downcast().ok()
    }
}

type Table = Arc<BTreeMap<String, Arc<Entry>>>;

/// The objects as they are, or were, at one moment. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct View {
    tables: BTreeMap<String, Table>,
}

impl View {
    /// The record of that key.
    pub fn get<R: Record>(&self, key: &str) -> Option<Arc<R>> {
        self.tables.get(R::TABLE)?.get(key)?.typed()
    }

    /// All records of a table, by key.
    pub fn all<R: Record>(&self) -> Vec<(String, Arc<R>)> {
        let Some(table) = self.tables.get(R::TABLE) else { return Vec::new() };
        table.iter().filter_map(|(key, entry)| Some((key.clone(), entry.typed()?))).collect()
    }

    /// As [`all`](Self::all), one after the other.
    pub(super) fn each<R: Record>(&self) -> impl Iterator<Item = (&str, Arc<R>)> {
        let table = self.tables.get(R::TABLE).map(|table| table.iter());
        table.into_iter().flatten().filter_map(|(key, entry)| Some((key.as_str(), entry.typed()?)))
    }

    /// The records whose keys begin so, by key.
    pub fn starting<R: Record>(&self, prefix: &str) -> Vec<(String, Arc<R>)> {
        let Some(table) = self.tables.get(R::TABLE) else { return Vec::new() };
        table
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter_map(|(key, entry)| Some((key.clone(), entry.typed()?)))
            .collect()
    }

    /// How many records a table has.
    pub fn count<R: Record>(&self) -> usize {
        self.tables.get(R::TABLE).map_or(0, |table| table.len())
    }

    /// Everything, for the inventory: tables, keys, records.
    pub fn json(&self) -> Value {
        let tables =
            self.tables.iter().filter(|(_, table)| !table.is_empty()).map(|(name, table)| {
                let records = table.iter().map(|(key, entry)| (key.clone(), entry.json.clone()));
                (name.clone(), Value::Object(records.collect()))
            });
        Value::Object(tables.collect())
    }

    fn set(&mut self, table: &str, key: &str, entry: Option<Arc<Entry>>) -> Option<Arc<Entry>> {
        let records = Arc::make_mut(self.tables.entry(table.to_owned()).or_default());
        match entry {
            Some(entry) => records.insert(key.to_owned(), entry),
            None => records.remove(key),
        }
    }
}

/// One changed record: table, key, and what it is now.
type Changed = (String, String, Option<Value>);

/// The objects with their journal.
#[derive(Debug)]
pub(super) struct Objects {
    pub(super) now: View,
    undo: Vec<(String, String, Option<Arc<Entry>>)>,
    changed: Vec<Changed>,
    journal: File,
}

impl Objects {
    /// Reads the journal, and writes it anew without what is past.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join("journal");
        let mut now = View::default();
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let mut lines = text.split_inclusive('\n').enumerate().peekable();
        while let Some((number, line)) = lines.next() {
            let whole = line.ends_with('\n');
            match serde_json::from_str::<Vec<Changed>>(line) {
                Ok(changes) if whole => {
                    for (table, key, value) in changes {
                        now.set(&table, &key, value.map(Entry::new));
                    }
                }
                // The last line may be cut: it was never answered for.
                _ if lines.peek().is_none() && !whole => {}
                _ => {
                    let text = format!("line {} of {} is damaged", number + 1, path.display());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
            }
        }
        let all: Vec<Changed> = now
            .tables
            .iter()
            .flat_map(|(name, table)| {
                table.iter().map(|(key, e)| (name.clone(), key.clone(), Some(e.json.clone())))
            })
            .collect();
        let fresh = folder.join("journal.new");
        let mut line = serde_json::to_vec(&all)?;
        line.push(b'\n');
        fs::write(&fresh, line)?;
        fs::rename(&fresh, &path)?;
        let journal = OpenOptions::new().append(true).open(&path)?;
        Ok(Self { now, undo: Vec::new(), changed: Vec::new(), journal })
    }

    pub(super) fn put<R: Record>(&mut self, key: &str, record: &R) -> io::Result<()> {
        let json = serde_json::to_value(record)?;
        self.changed.push((R::TABLE.to_owned(), key.to_owned(), Some(json.clone())));
        let entry = Entry::new(json);
        let _ = entry.typed.set(Arc::new(record.clone()));
        let before = self.now.set(R::TABLE, key, Some(entry));
        self.undo.push((R::TABLE.to_owned(), key.to_owned(), before));
        Ok(())
    }

    pub(super) fn remove<R: Record>(&mut self, key: &str) {
        if let Some(before) = self.now.set(R::TABLE, key, None) {
            self.changed.push((R::TABLE.to_owned(), key.to_owned(), None));
            self.undo.push((R::TABLE.to_owned(), key.to_owned(), Some(before)));
        }
    }

    /// Makes what was put and removed last. Nothing changed is nothing written.
    pub(super) fn commit(&mut self) -> io::Result<bool> {
        if self.changed.is_empty() {
            return Ok(false);
        }
        let written =
            serde_json::to_vec(&self.changed).map_err(io::Error::from).and_then(|mut line| {
                line.push(b'\n');
                self.journal.write_all(&line)
            });
        match written {
            Ok(()) => {
                self.undo.clear();
                self.changed.clear();
                Ok(true)
            }
            Err(error) => {
                self.roll_back();
                Err(error)
            }
        }
    }

    /// Takes back what was put and removed since the last commit.
    pub(super) fn roll_back(&mut self) {
        for (table, key, before) in std::mem::take(&mut self.undo).into_iter().rev() {
            self.now.set(&table, &key, before);
        }
        self.changed.clear();
    }
}
