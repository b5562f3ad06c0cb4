//! Snapshots of several disks at one instant: all of them, or none; and what can be done ahead.
//!
//! Guests may be stopped from before the instant until after it, so between the call and the request
//! that takes the snapshots nothing is asked of the array that could have been asked earlier
//! ([`Offload::prepare`]); once that request is answered the host is told, and guests may go on; the
//! texts are written afterwards, all at once.
//!
//! Until the last text is written the intent is open, and no listing shows a part. A group that was cut
//! is complete if all its snapshots have their texts, else it is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::try_join_all;
use plugin_sdk::model::vdi::{
    SnapshotSpec, VdiSnapshot, VdiSnapshotPrepare, VdiSnapshotPrepared, VdisDone,
};
use plugin_sdk::model::{Error, OperationId, VdiUuid};
use plugin_sdk::{Cx, Result, step};
use serde::{Deserialize, Serialize};

use super::item::Item;
use super::make::of_source;
use super::{Offload, Product};
use crate::array::{Array as _, Group, GroupNaming, MetadataPlace, Part, Volume};
use crate::ledger::{Begin, Intent, What};
use crate::metadata::Document;
use crate::names::{Codec, Role};
use crate::outcome::{Class, Failure, OrAbsent as _, Outcome};
use crate::retry::resolving;

/// How long what was read ahead may be used: a snapshot that comes later looks itself.
const FRESH: Duration = Duration::from_secs(60);

/// What was read ahead. Only to save time: a restart may lose it.
#[derive(Debug, Default)]
pub(super) struct Ahead(Mutex<BTreeMap<OperationId, Read>>);

#[derive(Debug)]
struct Read {
    at: Instant,
    specs: Vec<SnapshotSpec>,
    sources: Vec<Item>,
}

impl Ahead {
    fn keep(&self, operation: OperationId, specs: Vec<SnapshotSpec>, sources: Vec<Item>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, read| read.at.elapsed() < FRESH);
        all.insert(operation, Read { at: Instant::now(), specs, sources });
    }

    fn take(&self, operation: OperationId, specs: &[SnapshotSpec]) -> Option<Vec<Item>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let read = all.remove(&operation)?;
        (read.specs == specs && read.at.elapsed() < FRESH).then_some(read.sources)
    }
}

/// A snapshot of which the host was told that it has what it is to have is not taken again: it would
/// hold what was written since. The array is looked at for it instead.
pub(super) fn once(caught: &AtomicBool) -> Outcome<()> {
    if !caught.load(Ordering::Relaxed) {
        return Ok(());
    }
    Err(Failure::new(Class::AlreadyExists)
        .fact("a snapshot that the array has taken is gone again"))
}

/// What an intent remembers of a group.
#[derive(Debug, Serialize, Deserialize)]
struct Begun {
    parts: Vec<Part>,
    vdis: Vec<VdiUuid>,
}

impl<P: Product> Offload<P> {
    pub(super) async fn prepare(
        &self,
        cx: &Cx,
        request: VdiSnapshotPrepare,
    ) -> Result<VdiSnapshotPrepared> {
        let operation = cx.operation_id();
        let name = self.group_name(operation);
        let specs = request.snapshots;
        if request.abandon {
            self.ahead.take(operation, &specs);
            if specs.len() > 1 {
                let group = Group { name: &name, parts: &[] };
                self.array.release_group(&resolving(cx), &group).await?;
                Self::ledger(cx).conclude(&name).await?;
            }
            return Ok(VdiSnapshotPrepared::default());
        }
        let sources = self.sources(cx, &specs).await?;
        self.refuse_without_room(&specs, &sources, &request.keys)?;
        if specs.len() > 1 {
            let parts = self.parts(operation, &specs, &sources);
            // The object has the name of the operation, and goes with it: found again after a crash.
            let vdis = specs.iter().map(|spec| spec.uuid).collect();
            let begun = serde_json::json!(Begun { parts: parts.clone(), vdis });
            let ledger = Self::ledger(cx);
            if ledger.open(&name).await?.is_none() {
                ledger.intend(&name, What::Create, Some(begun)).await?;
            }
            step!("array.group_intended");
            self.array.prepare_group(cx, &Group { name: &name, parts: &parts }).await?;
            step!("array.group_prepared");
        }
        self.ahead.keep(operation, specs, sources);
        Ok(VdiSnapshotPrepared::default())
    }

    pub(super) async fn snapshot(&self, cx: &Cx, request: VdiSnapshot) -> Result<VdisDone> {
        let VdiSnapshot { snapshots: specs, time } = request;
        let ahead = self.ahead.take(cx.operation_id(), &specs);
        let prepared = ahead.is_some();
        let sources = match ahead {
            Some(sources) => sources,
            None => self.sources(cx, &specs).await?,
        };
        if let ([spec], [source]) = (specs.as_slice(), sources.as_slice()) {
            let (changed, vdi) = self.snapshot_one(cx, spec, source, time).await?;
            return Ok(VdisDone { changed, vdis: vec![vdi] });
        }
        self.snapshot_group(cx, &specs, &sources, time, prepared).await
    }

    /// The disks of a request, if snapshots can be taken of them.
    async fn sources(&self, cx: &Cx, specs: &[SnapshotSpec]) -> Result<Vec<Item>> {
        if specs.is_empty() || (specs.len() > 1 && !self.array.capabilities().group_snapshots) {
            return Err(Error::unsupported("the array cannot catch several disks at one instant"));
        }
        let sources = try_join_all(specs.iter().map(|spec| self.source(cx, spec.vdi))).await?;
        for (spec, source) in specs.iter().zip(&sources) {
            self.snapshot_document(spec, source, 0)?;
        }
        Ok(sources)
    }

    /// Error kind `limit` where a snapshot could not be described as it is to be in the end. After the
    /// instant it would be too late to say so.
    fn refuse_without_room(
        &self,
        specs: &[SnapshotSpec],
        sources: &[Item],
        keys: &BTreeMap<String, String>,
    ) -> Result<()> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let shared = specs.len() > 1 && self.array.group_naming() == GroupNaming::Shared;
        for (spec, source) in specs.iter().zip(sources) {
            let mut document = self.snapshot_document(spec, source, time)?;
            document.itself = shared.then_some(spec.uuid);
            document.keys.extend(keys.clone());
            self.text(&document).map_err(|error| error.context("vdi", spec.vdi))?;
        }
        Ok(())
    }

    fn group_name(&self, operation: OperationId) -> String {
        self.codec.name(Role::Group, operation.derived("group", 0))
    }

    fn parts(&self, operation: OperationId, specs: &[SnapshotSpec], of: &[Item]) -> Vec<Part> {
        let shared = Codec::inner(Role::Group, operation.derived("group", 0));
        let name = |vdi: VdiUuid| match self.array.group_naming() {
            GroupNaming::Each => self.snapshot_name(Role::Snapshot, vdi.0),
            GroupNaming::Shared => shared.clone(),
        };
        let pairs = specs.iter().zip(of);
        pairs
            .map(|(spec, source)| Part {
                volume: source.volume.clone(),
                name: name(spec.uuid),
                metadata: String::new(),
            })
            .collect()
    }

    /// All of them at one instant, or none.
    async fn snapshot_group(
        &self,
        cx: &Cx,
        specs: &[SnapshotSpec],
        sources: &[Item],
        time: u64,
        prepared: bool,
    ) -> Result<VdisDone> {
        let name = self.group_name(cx.operation_id());
        let shared = self.array.group_naming() == GroupNaming::Shared;
        let mut parts = self.parts(cx.operation_id(), specs, sources);
        let mut documents = Vec::new();
        for ((spec, source), part) in specs.iter().zip(sources).zip(&mut parts) {
            let mut document = self.snapshot_document(spec, source, time)?;
            document.itself = shared.then_some(spec.uuid);
            part.metadata = self.text(&document)?;
            documents.push(document);
        }
        let group = &Group { name: &name, parts: &parts };
        let vdis = specs.iter().map(|spec| spec.uuid).collect();
        let begun = serde_json::json!(Begun { parts: parts.clone(), vdis });
        let documents = &documents;
        let look = |cx: Cx| async move { self.look_for_group(&cx, group, documents).await };
        let begin = if prepared { Begin::Ahead } else { Begin::Now(Some(begun)) };
        // A look in between removes what was prepared.
        let prepared = &AtomicBool::new(prepared);
        let caught = &AtomicBool::new(false);
        let (changed, items) = Self::ledger(cx)
            .create_of(
                &name,
                begin,
                true,
                look,
                |items: &Vec<Item>| {
                    let mut pairs = specs.iter().zip(items);
                    pairs.try_for_each(|(spec, item)| {
                        of_source(spec, item).map_err(|error| error.message.clone())
                    })
                },
                |cx| async move {
                    once(caught)?;
                    let prepared = prepared.swap(false, Ordering::Relaxed);
                    self.take_group(&cx, group, documents, prepared, caught).await
                },
            )
            .await?;
        Ok(VdisDone { changed, vdis: items.iter().map(Item::info).collect() })
    }

    /// Takes a group, and writes its texts.
    async fn take_group(
        &self,
        cx: &Cx,
        group: &Group<'_>,
        documents: &[Document],
        prepared: bool,
        caught: &AtomicBool,
    ) -> Outcome<Vec<Item>> {
        if !prepared {
            self.array.prepare_group(cx, group).await?;
        }
        let taken = self.array.snapshot_group(cx, group).await;
        // From here on it is there, whatever else becomes of the call.
        let cx = &resolving(cx);
        let made = match taken {
            Ok(made) if made.len() == group.parts.len() => made,
            Ok(_) => {
                return Err(Failure::new(Class::Unknown)
                    .fact("the array does not answer with all snapshots of the group"));
            }
            Err(failure) => {
                if failure.class.is_certain() && failure.class != Class::AlreadyExists {
                    self.drop_group(cx, group.name, group.parts).await?;
                }
                return Err(failure);
            }
        };
        step!("array.group_taken");
        caught.store(true, Ordering::Relaxed);
        cx.snapshots_caught().await;
        let pairs = made.into_iter().zip(documents);
        let items = try_join_all(pairs.map(|(volume, text)| self.made(cx, volume, text))).await?;
        step!("array.group_described");
        self.array.release_group(cx, group).await?;
        Ok(items)
    }

    /// The items of a group that is there as a whole. A part of one is of no use, since its disks would
    /// be of different instants: it is removed.
    async fn look_for_group(
        &self,
        cx: &Cx,
        group: &Group<'_>,
        documents: &[Document],
    ) -> Outcome<Option<Vec<Item>>> {
        let mut found = Vec::new();
        for (part, document) in group.parts.iter().zip(documents) {
            let one = self.array.get_snapshot(cx, &part.name, Some(&part.volume)).await;
            found.extend(one.or_absent()?.map(|volume| (volume, document)));
        }
        if found.len() < group.parts.len() {
            self.drop_group(cx, group.name, group.parts).await?;
            return Ok(None);
        }
        let whole = found.into_iter().map(|(volume, document)| async move {
            let item = self.with_text(cx, volume.clone()).await?;
            match item.filter(|item| !matches!(item.document, Ok(None))) {
                Some(item) => Ok(item),
                None => self.made(cx, volume, document).await,
            }
        });
        let items = try_join_all(whole).await?;
        self.array.release_group(cx, group).await?;
        Ok(Some(items))
    }

    /// Removes what there is of a group that was never finished.
    async fn drop_group(&self, cx: &Cx, name: &str, parts: &[Part]) -> Outcome<()> {
        for part in parts {
            let found = self.array.get_snapshot(cx, &part.name, Some(&part.volume)).await;
            if let Some(snapshot) = &found.or_absent()? {
                // Under an intent of its own, as in `remove_unseen`; of those that share a name each.
                let intent = format!("{}.{}", part.volume.name, part.name);
                let object = Some(serde_json::json!(snapshot));
                let remove =
                    |cx: Cx| async move { self.array.delete_snapshot(&cx, snapshot).await };
                Self::ledger(cx).delete(&intent, object, remove).await?;
                step!("array.group_part_removed");
            }
        }
        self.array.release_group(cx, &Group { name, parts }).await
    }

    /// Settles a group that was begun by somebody who is not there any more: whether it is complete.
    pub(super) async fn settle_group(&self, cx: &Cx, name: &str, intent: &Intent) -> Outcome<bool> {
        let begun = intent.object.clone().map(serde_json::from_value::<Begun>);
        let Some(Ok(Begun { parts, .. })) = begun else { return Ok(false) };
        for part in &parts {
            let found = self.array.get_snapshot(cx, &part.name, Some(&part.volume)).await;
            let item = match found.or_absent()? {
                Some(snapshot) => self.with_text(cx, snapshot).await?,
                None => None,
            };
            if !item.is_some_and(|item| matches!(item.document, Ok(Some(_)))) {
                self.drop_group(cx, name, &parts).await?;
                return Ok(false);
            }
        }
        self.array.release_group(cx, &Group { name, parts: &parts }).await?;
        Ok(true)
    }

    /// The snapshots of groups that are not finished: nobody was told of them.
    pub(super) async fn unfinished(&self, cx: &Cx) -> Outcome<BTreeSet<VdiUuid>> {
        if !self.array.capabilities().group_snapshots {
            return Ok(BTreeSet::new());
        }
        let mut vdis = BTreeSet::new();
        for (name, intent) in Self::ledger(cx).all_open().await? {
            let group = self.codec.read(&name).is_some_and(|named| named.role == Role::Group);
            if let (true, Some(object)) = (group, intent.object)
                && let Ok(begun) = serde_json::from_value::<Begun>(object)
            {
                vdis.extend(begun.vdis);
            }
        }
        Ok(vdis)
    }

    /// The snapshot of a UUID among those that share their name with others.
    pub(super) async fn find_shared(&self, cx: &Cx, vdi: VdiUuid) -> Outcome<Option<Item>> {
        if self.array.group_naming() != GroupNaming::Shared {
            return Ok(None);
        }
        let shared = |volume: &Volume| matches!(self.read_snapshot(volume), Some((Role::Group, _)));
        let mut all = self.array.snapshots(cx, None).await?;
        all.retain(shared);
        if all.is_empty() {
            return Ok(None);
        }
        let texts = match self.array.capabilities().metadata {
            MetadataPlace::Apart { .. } => Some(self.array.descriptions(cx, None).await?),
            _ => None,
        };
        let mut items = all.into_iter().filter_map(|one| self.item(one, texts.as_ref(), true));
        Ok(items.find(|item| item.uuid == vdi))
    }
}
