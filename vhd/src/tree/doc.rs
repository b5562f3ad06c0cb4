//! The metadata documents: what the caller says about a disk, in an envelope of ours.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{Format, Tree};
use crate::error::{Error, Result};
use crate::store::At;
use crate::sys;

/// Version of our documents; a higher one is of a newer program and is left alone.
pub(super) const VERSION: u32 = 1;

/// Operations remembered per disk, so that a late replay is recognised.
const REMEMBERED: usize = 8;

/// Largest document we read, bytes.
const MAX_LENGTH: u64 = 4 << 20;

/// What is stored about a disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Doc {
    /// [`VERSION`].
    pub(super) sm: u32,
    pub(super) format: Format,
    /// The snapshot or clone that made the disk.
    #[serde(default)]
    pub(super) created_by: Option<Uuid>,
    /// The last operations with an id, the newest last.
    #[serde(default)]
    pub(super) ops: Vec<Uuid>,
    /// The caller's; never looked into.
    pub(super) metadata: Value,
}

impl Doc {
    pub(super) fn new(format: Format, metadata: &Value) -> Self {
        Self { sm: VERSION, format, created_by: None, ops: Vec::new(), metadata: metadata.clone() }
    }

    /// The same disk after an operation.
    pub(super) fn after(mut self, op: Uuid, metadata: &Value) -> Self {
        self.ops.retain(|known| *known != op);
        if self.ops.len() >= REMEMBERED {
            self.ops.remove(0);
        }
        self.ops.push(op);
        self.metadata = metadata.clone();
        self
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let damaged = |what: String| Error::Store { path: path.to_owned(), what };
        let doc: Self = serde_json::from_slice(bytes)
            .map_err(|error| damaged(format!("metadata document is damaged: {error}")))?;
        if doc.sm > VERSION {
            return Err(damaged(format!(
                "metadata document has version {}, known is {VERSION}",
                doc.sm
            )));
        }
        Ok(doc)
    }
}

impl Tree {
    /// Reads a whole small file; none when it is not there.
    pub(super) fn read_small(&self, at: &At) -> Result<Option<Vec<u8>>> {
        let file = match self.store.open(at, false) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let path = self.store.path_of(at);
        let mut bytes = vec![0; 4096];
        let mut got = 0;
        loop {
            let count = sys::read_upto(&*file, &path, &mut bytes[got..], got as u64)?;
            got += count;
            if got < bytes.len() {
                bytes.truncate(got);
                return Ok(Some(bytes));
            }
            if got as u64 >= MAX_LENGTH {
                let what = format!("is longer than {MAX_LENGTH} bytes");
                return Err(Error::Store { path, what });
            }
            bytes.resize(got * 4, 0);
        }
    }

    /// Writes a new small file and syncs it.
    pub(super) fn write_small<T: Serialize>(&self, at: &At, value: &T) -> Result<()> {
        let path = self.store.path_of(at);
        let bytes = self.to_json(at, value)?;
        let file = self.store.create(at, bytes.len() as u64)?;
        sys::write_at(&*file, &path, &bytes, 0)?;
        sys::sync(&*file, &path)
    }

    pub(super) fn to_json<T: Serialize>(&self, at: &At, value: &T) -> Result<Vec<u8>> {
        serde_json::to_vec(value)
            .map_err(|error| Error::Store { path: self.store.path_of(at), what: error.to_string() })
    }

    pub(super) fn doc(&self, uuid: Uuid) -> Result<Option<Doc>> {
        let at = Self::doc_at(uuid);
        let bytes = self.read_small(&at)?;
        bytes.map(|bytes| Doc::parse(&self.store.path_of(&at), &bytes)).transpose()
    }

    /// Writes a document under its temporary name and syncs it.
    pub(super) fn stage_doc(&self, uuid: Uuid, doc: &Doc) -> Result<()> {
        let at = Self::tmp_at(format!("{uuid}.json"));
        self.store.remove(&at)?;
        self.write_small(&at, doc)
    }

    /// Puts a staged document in place. Returns whether there was one.
    pub(super) fn place_doc(&self, uuid: Uuid) -> Result<bool> {
        match self.store.rename(&Self::tmp_at(format!("{uuid}.json")), &Self::doc_at(uuid)) {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
