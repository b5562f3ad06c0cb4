//! The journal of operations: the same operation id, the same answer.
//!
//! Before a driver is asked to change anything the intent is recorded, and afterwards the answer.
//! A caller that retries gets the recorded answer; if there is none, because a process died in
//! between or the driver's answer was lost, the driver is asked again with the same id, which it
//! answers with what it finds (`already`), not by doing it twice.
//!
//! The records survive the death of every process. A power cut may take the newest: then the
//! retry reaches the driver, and the storage, which is the truth, decides.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sm_model::{Error, Kind, Operation, OperationId, Request, Result, SrUuid};

use crate::catalog::Catalog;

/// How long an answer is kept for a retry.
pub const KEEP: Duration = Duration::from_secs(2 * 24 * 3600);

/// How often old answers are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);

/// What is recorded of an operation: under `intent/<id>` until there is an answer, then under
/// `answer/<id>`. Intents are few, so looking for what is in doubt costs nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The SR it is about.
    pub sr: SrUuid,
    /// The operation's name.
    pub operation: String,
    /// The request.
    pub request: Value,
    /// The answer, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Value>,
    /// When it was first asked for, in seconds since 1970-01-01 UTC.
    pub time: u64,
}

/// What the journal knows of an operation that is about to run.
pub(crate) enum Begin<T> {
    /// Nothing was recorded, or an intent without an answer: ask the driver.
    Run,
    /// The answer of the first time.
    Replay(T),
}

fn intent(id: OperationId) -> String {
    format!("intent/{id}")
}

fn answer(id: OperationId) -> String {
    format!("answer/{id}")
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// What is recorded of an operation id.
pub(crate) fn find(catalog: &Catalog, id: OperationId) -> Result<Option<Entry>> {
    if let Some(found) = catalog.get::<Entry>(&answer(id))? {
        return Ok(Some(found.record));
    }
    Ok(catalog.get::<Entry>(&intent(id))?.map(|found| found.record))
}

/// Records the intent, unless this id has been used. The caller holds the lock of the operation.
pub(crate) fn begin<R: Request>(
    catalog: &Catalog,
    id: OperationId,
    sr: SrUuid,
    request: &R,
) -> Result<Begin<R::Reply>> {
    let entry = Entry {
        sr,
        operation: R::OPERATION.name().to_owned(),
        request: value(request)?,
        reply: None,
        time: now(),
    };
    let Some(found) = find(catalog, id)? else {
        catalog.set(&intent(id), &entry, false)?;
        return Ok(Begin::Run);
    };
    if (found.sr, &found.operation, &found.request) != (entry.sr, &entry.operation, &entry.request)
    {
        return Err(Error::new(
            Kind::Exists,
            format!("operation id {id} was used for {} with other arguments", found.operation),
        )
        .hint("repeat the first request exactly, or use a new operation id"));
    }
    match found.reply {
        Some(reply) => serde_json::from_value(reply).map(Begin::Replay).map_err(|error| {
            Error::new(Kind::Corrupt, format!("the journal's answer to {id} cannot be read"))
                .source(&error)
        }),
        None => Ok(Begin::Run),
    }
}

/// Records the answer in place of the intent.
pub(crate) fn finish<R: Request>(
    catalog: &Catalog,
    id: OperationId,
    reply: &R::Reply,
) -> Result<()> {
    let Some(found) = catalog.get::<Entry>(&intent(id))? else { return Ok(()) };
    let entry = Entry { reply: Some(value(reply)?), ..found.record };
    catalog.rename(&intent(id), &answer(id), &entry)
}

/// Forgets an operation that is known to have had no effect, or whose effect was undone.
pub(crate) fn forget(catalog: &Catalog, id: OperationId) -> Result<()> {
    catalog.remove(&intent(id), false)?;
    catalog.remove(&answer(id), false)
}

/// The SR of an operation of this kind that this id was used for, if it was answered.
pub(crate) fn answered<R: Request>(catalog: &Catalog, id: OperationId) -> Result<Option<SrUuid>> {
    let found = find(catalog, id)?;
    let answered = |entry: &Entry| entry.operation == R::OPERATION.name() && entry.reply.is_some();
    Ok(found.filter(answered).map(|entry| entry.sr))
}

/// Whether an error leaves open if the operation was done: the intent then stays.
pub(crate) fn leaves_doubt(error: &Error) -> bool {
    matches!(
        error.kind,
        Kind::Unknown | Kind::DeadlineExceeded | Kind::Cancelled | Kind::Unreachable
    )
}

/// The operations on an SR whose outcome is not known.
pub(crate) fn in_doubt(catalog: &Catalog, sr: SrUuid) -> Result<Vec<(OperationId, Entry)>> {
    let entries = catalog.list::<Entry>("intent/")?;
    Ok(entries
        .into_iter()
        .filter_map(|(key, entry)| Some((key.strip_prefix("intent/")?.parse().ok()?, entry)))
        .filter(|(_, entry)| entry.sr == sr)
        .collect())
}

/// Forgets answers older than [`KEEP`], now and then. Answers whether it looked.
pub(crate) fn prune(catalog: &Catalog) -> Result<bool> {
    const LAST: &str = "meta/pruned";
    let last = catalog.get::<u64>(LAST)?.map_or(0, |found| found.record);
    if now().saturating_sub(last) < PRUNE_EVERY.as_secs() {
        return Ok(false);
    }
    catalog.set(LAST, &now(), false)?;
    let oldest = now().saturating_sub(KEEP.as_secs());
    for (key, entry) in catalog.list::<Entry>("answer/")? {
        if entry.time < oldest {
            catalog.remove(&key, false)?;
        }
    }
    Ok(true)
}

/// The operation an entry is about, if this release knows it.
pub(crate) fn operation(entry: &Entry) -> Option<Operation> {
    entry.operation.parse().ok()
}

fn value<T: Serialize>(value: &T) -> Result<Value> {
    serde_json::to_value(value)
        .map_err(|error| Error::internal("a record cannot be written as JSON").source(&error))
}
