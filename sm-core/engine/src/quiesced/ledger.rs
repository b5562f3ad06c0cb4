//! What is recorded of a set while it is taken: under `set/<operation id>/<attempt>` of the catalog.
//!
//! A record is written before the guest is asked to come to rest, and says which snapshots there
//! may be from then on: their ids follow from it, so whoever finds it can destroy them all, also
//! one that appears on the storage later.

use serde::{Deserialize, Serialize};
use sm_model::{OperationId, Result, SrUuid, VdiUuid};
use sm_quiesce::{Consistency, Limits, Method};
use uuid::Uuid;

use super::{SnapshotSet, VmSnapshot};
use crate::catalog::Catalog;

/// How far a set is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// The guest may be at rest, and any of the snapshots may be there.
    Taking,
    /// All are there and to be kept; their keys are not all set.
    Marking,
    /// They are to be destroyed.
    Discarding,
    /// All is done.
    Done,
}

/// A snapshot that there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) sr: SrUuid,
    pub(super) vdi: VdiUuid,
    pub(super) snapshot: VdiUuid,
    /// The operation that takes it.
    pub(super) operation: OperationId,
}

/// The record of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) operation: OperationId,
    /// Rises with each attempt of the same operation: what an earlier one leaves late must not be
    /// taken for a snapshot of this one.
    pub(super) attempt: u32,
    pub(super) phase: Phase,
    pub(super) request: VmSnapshot,
    /// What is in fact asked to bring the guest to rest.
    pub(super) method: Method,
    pub(super) limits: Limits,
    /// Since when it is, in seconds since 1970-01-01 UTC.
    pub(super) since: u64,
    /// When its snapshots were last tried to be destroyed.
    #[serde(default)]
    pub(super) tried: u64,
    pub(super) members: Vec<Member>,
    /// What is said of it on the storage.
    pub(super) set: SnapshotSet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) document: Option<String>,
}

impl Record {
    /// The set's id: one for each attempt.
    pub(super) fn id_of(operation: OperationId, attempt: u32) -> Uuid {
        operation.derived("set", attempt)
    }
}

impl SnapshotSet {
    /// One that is being taken.
    pub(super) fn begun(id: Uuid, time: u64, size: u32) -> Self {
        Self {
            id,
            consistency: Consistency::Crash,
            one_point_in_time: false,
            time,
            size,
            system: String::new(),
            document: 0,
            members: Vec::new(),
            frozen_microseconds: None,
            notes: Vec::new(),
        }
    }
}

fn key(operation: OperationId, attempt: u32) -> String {
    format!("set/{operation}/{attempt:06}")
}

/// The record of an attempt, as it is now.
pub(super) fn again(catalog: &Catalog, record: &Record) -> Result<Option<Record>> {
    Ok(catalog.get(&key(record.operation, record.attempt))?.map(|found| found.record))
}

/// The last attempt of an operation.
pub(super) fn last(catalog: &Catalog, operation: OperationId) -> Result<Option<Record>> {
    let found: Vec<(String, Record)> = catalog.list(&format!("set/{operation}/"))?;
    Ok(found.into_iter().next_back().map(|(_, record)| record))
}

/// What cannot be read, of another release, is left alone.
pub(super) fn all(catalog: &Catalog) -> Result<Vec<Record>> {
    let found: Vec<(String, serde_json::Value)> = catalog.list("set/")?;
    let read = |(key, value): (String, serde_json::Value)| match serde_json::from_value(value) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!(key, %error, "the record of a snapshot set cannot be read");
            None
        }
    };
    Ok(found.into_iter().filter_map(read).collect())
}

/// Safe from a power cut when this returns: a guest may be at rest after it.
pub(super) fn keep(catalog: &Catalog, record: &Record) -> Result<()> {
    catalog.set(&key(record.operation, record.attempt), record, true)
}

pub(super) fn forget(catalog: &Catalog, record: &Record) -> Result<()> {
    catalog.remove(&key(record.operation, record.attempt), false)
}
