//! The records of the core, typed, over a [`Store`].
//!
//! | key | record |
//! |---|---|
//! | `sr/<sr>` | [`SrRecord`] |
//! | `attach/<sr>/<vdi>` | [`AttachmentRecord`] |
//! | `intent/<operation id>`, `answer/<operation id>` | [`crate::journal::Entry`] |
//! | `job/<operation id>` | [`crate::jobs::JobRecord`] |
//! | `moved/<vdi>` | `mirror`: where a VDI went, or may have gone |
//! | `set/<operation id>/<attempt>` | `quiesced`: a set of snapshots while it is taken |
//! | `kv/<sr>/<key>` | a driver's own state |

use std::collections::BTreeMap;
use std::sync::Arc;

use datapath::control::protocol::Listen;
use datapath::disk::Limits;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sm_model::{
    Access, AttachMode, DeviceConfig, Error, Kind, OperationId, Result, SrUuid, VdiUuid,
};

use crate::store::{Batch, Change, Commit, Expectation, Store};

/// An SR this installation knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SrRecord {
    /// Its UUID.
    pub uuid: SrUuid,
    /// The driver that serves it.
    pub driver: String,
    /// Its name, as last seen on the storage.
    pub name: String,
    /// Its description, as last seen on the storage.
    pub description: String,
    /// How to reach it; secrets are `secret://` references.
    pub device_config: DeviceConfig,
    /// Whether it is to be usable on this host.
    pub attached: bool,
    /// The boot of this host in which it was last attached; in another one the driver has to
    /// attach it again.
    #[serde(default)]
    pub attached_in_boot: String,
    /// When this installation came to know it, in seconds since 1970-01-01 UTC.
    pub created: u64,
    /// The operation that created it, to know a replay; none if it was introduced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<OperationId>,
}

/// What holds a VDI on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentRecord {
    /// The VDI.
    pub vdi: VdiUuid,
    /// Who holds it, by the name they gave, and how.
    pub datapaths: BTreeMap<String, Datapath>,
    /// How it is reached.
    pub access: Vec<Access>,
    /// How the driver says that it is reached: the images, where a data path serves them.
    #[serde(default)]
    pub(crate) images: Vec<Access>,
    /// Whether a data path was, or is to be, started.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub served: bool,
    /// Epoch of the writer's lock on the storage, where there is one.
    #[serde(default)]
    pub(crate) epoch: u64,
    /// What its data path may do in a second.
    #[serde(default)]
    pub limits: Limits,
    /// The points in time since which clients can ask what changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) bitmaps: Vec<VdiUuid>,
    /// How other hosts reach it through its data path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Listen>,
    /// What the driver was last told: differs from the datapaths after a call that failed.
    pub driver_state: crate::automaton::State,
    /// Whether the driver was asked to attach and its answer is not recorded: it may hold what
    /// nobody knows of, and is told to let go of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) asked: bool,
    /// The boot of this host it belongs to; a record of an earlier boot says nothing.
    pub boot: String,
}

/// One holder of a VDI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datapath {
    /// For reading, or for writing too.
    pub mode: AttachMode,
    /// Whether I/O is allowed.
    pub activated: bool,
}

/// A record as it was read, with the version of its key.
#[derive(Clone, Debug)]
pub struct Versioned<T> {
    /// The record.
    pub record: T,
    /// The version to expect when it is written back.
    pub version: u64,
}

/// Typed access to the store.
#[derive(Clone)]
pub struct Catalog(Arc<dyn Store>);

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Catalog")
    }
}

impl Catalog {
    /// Over a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self(store)
    }

    /// The record under a key.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Versioned<T>>> {
        let Some(stored) = self.0.get(key)? else { return Ok(None) };
        Ok(Some(Versioned { record: parse(key, &stored.value)?, version: stored.version }))
    }

    /// All records whose key begins with `prefix`, sorted by key.
    pub fn list<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>> {
        self.0
            .list(prefix)?
            .into_iter()
            .map(|(key, stored)| {
                let record = parse(&key, &stored.value)?;
                Ok((key, record))
            })
            .collect()
    }

    /// Writes a record whatever is there.
    pub fn set<T: Serialize>(&self, key: &str, record: &T, durable: bool) -> Result<()> {
        let change = Change { key: key.to_owned(), value: Some(json(key, record)?) };
        self.unconditional(vec![change], durable)
    }

    /// Removes a key and writes a record under another one, together.
    pub fn rename<T: Serialize>(&self, from: &str, to: &str, record: &T) -> Result<()> {
        let changes = vec![
            Change { key: from.to_owned(), value: None },
            Change { key: to.to_owned(), value: Some(json(to, record)?) },
        ];
        self.unconditional(changes, false)
    }

    /// Removes a key, whatever is there.
    pub fn remove(&self, key: &str, durable: bool) -> Result<()> {
        self.unconditional(vec![Change { key: key.to_owned(), value: None }], durable)
    }

    /// Changes a record by reading, changing and writing it until nobody came between. `change`
    /// gets the record, if there is one, and answers what it shall be (`None`: removed).
    pub fn update<T, R>(
        &self,
        key: &str,
        durable: bool,
        mut change: impl FnMut(Option<T>) -> Result<(Option<T>, R)>,
    ) -> Result<R>
    where
        T: Serialize + DeserializeOwned,
    {
        // Every conflict means that another writer made progress, so this ends.
        loop {
            let (record, version) = match self.get::<T>(key)? {
                Some(found) => (Some(found.record), Some(found.version)),
                None => (None, None),
            };
            let (record, answer) = change(record)?;
            let value = record.map(|record| json(key, &record)).transpose()?;
            if value.is_none() && version.is_none() {
                return Ok(answer);
            }
            if self.change(key, version, value, durable)? == Commit::Done {
                return Ok(answer);
            }
        }
    }

    fn change(
        &self,
        key: &str,
        version: Option<u64>,
        value: Option<Vec<u8>>,
        durable: bool,
    ) -> Result<Commit> {
        self.0.commit(Batch {
            expect: vec![Expectation { key: key.to_owned(), version }],
            changes: vec![Change { key: key.to_owned(), value }],
            durable,
        })
    }

    fn unconditional(&self, changes: Vec<Change>, durable: bool) -> Result<()> {
        match self.0.commit(Batch { expect: Vec::new(), changes, durable })? {
            Commit::Done => Ok(()),
            Commit::Conflict => Err(Error::internal("a change without expectations conflicted")),
        }
    }
}

fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|error| {
        Error::new(Kind::Corrupt, format!("the catalog's record {key} cannot be read"))
            .source(&error)
    })
}

fn json<T: Serialize>(key: &str, record: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(record).map_err(|error| {
        Error::internal(format!("the record {key} cannot be written")).source(&error)
    })
}
