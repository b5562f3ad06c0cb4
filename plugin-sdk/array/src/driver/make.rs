//! Disks, snapshots and clones are made and changed.

use std::sync::atomic::{AtomicBool, Ordering};

use plugin_sdk::model::access::ImageFormat;
use plugin_sdk::model::vdi::{
    SnapshotSpec, VdiClone, VdiCreate, VdiDone, VdiInfo, VdiQos, VdiResize, VdiRevert, VdiUpdate,
};
use plugin_sdk::model::{Bytes, Changed, Error, Kind, VdiUuid};
use plugin_sdk::{Cx, Result, step};

use super::group::once;
use super::item::Item;
use super::recent::Happened;
use super::{Offload, Product, no_vdi};
use crate::array::{Array as _, CloneKind, New, SnapshotScope, Volume};
use crate::ledger::{Begin, What};
use crate::metadata::Document;
use crate::names::Role;
use crate::outcome::{Failure, OrAbsent as _, Outcome};
use crate::retry::resolving;

impl<P: Product> Offload<P> {
    /// Finds an object that may be half made, and gives it the text that it lacks, so that whoever
    /// finds it has it whole.
    pub(super) async fn look_whole(
        &self,
        cx: &Cx,
        found: Outcome<Volume>,
        document: &Document,
    ) -> Outcome<Option<Item>> {
        let Some(volume) = found.or_absent()? else { return Ok(None) };
        let Some(mut item) = self.with_text(cx, volume).await? else { return Ok(None) };
        if matches!(item.document, Ok(None)) {
            self.describe(cx, &mut item.volume, document).await?;
            item.document = Ok(Some(document.clone()));
        }
        self.recent.note(item.uuid, Happened::Made);
        Ok(Some(item))
    }

    /// What was just made, with its text.
    pub(super) async fn made(
        &self,
        cx: &Cx,
        mut volume: Volume,
        document: &Document,
    ) -> Outcome<Item> {
        if volume.metadata.as_ref() != Some(&self.text(document)?) {
            step!("array.made_without_text");
            self.describe(&resolving(cx), &mut volume, document).await?;
        }
        let (uuid, is_snapshot) = match volume.snapshot_of {
            Some(_) => {
                let named = self.read_snapshot(&volume).map(|(_, uuid)| uuid);
                (named.map(|named| document.itself.map_or(named, |vdi| vdi.0)), true)
            }
            None => (self.codec.read(&volume.name).map(|named| named.uuid), false),
        };
        let uuid = uuid.ok_or_else(|| {
            Error::internal(format!(
                "the array calls what it made {:?}, which is no name of ours",
                volume.name
            ))
        })?;
        self.recent.note(VdiUuid(uuid), Happened::Made);
        Ok(Item { uuid: VdiUuid(uuid), is_snapshot, volume, document: Ok(Some(document.clone())) })
    }

    pub(super) async fn create(&self, cx: &Cx, request: VdiCreate) -> Result<VdiDone> {
        if request.format.is_some_and(|format| format != ImageFormat::Raw) {
            return Err(Error::unsupported("an array keeps disks as raw volumes"));
        }
        let rule = &self.array.capabilities().size;
        let size = rule.fit(request.virtual_size)?;
        let document = Document {
            name: request.name,
            description: request.description,
            vdi_type: request.vdi_type,
            sharable: request.sharable,
            keys: request.keys,
            incomplete: request.incomplete,
            asked: rule.asked(size),
            ..Document::new(self.sr)
        };
        let (name, text) = (self.disk_name(request.uuid.0), self.text(&document)?);
        let new = New { name: &name, size, pool: self.pool.as_deref(), metadata: &text };
        let (new, document) = (&new, &document);
        let (changed, item) = Self::ledger(cx)
            .create(
                &name,
                self.array.capabilities().unique_names,
                |cx| async move {
                    let found = self.array.get(&cx, new.name).await;
                    self.look_whole(&cx, found, document).await
                },
                |item| {
                    if item.is_gone() {
                        return Err(
                            "it is a disk that was destroyed and is still needed".to_owned()
                        );
                    }
                    if rule.is(size, item.volume.size) && item.asked().is_none_or(|it| it == size) {
                        return Ok(());
                    }
                    Err(format!("it has {} bytes, not {}", item.volume.size.0, size.0))
                },
                |cx| async move {
                    let made = self.array.create(&cx, new).await?;
                    self.made(&cx, made, document).await
                },
            )
            .await?;
        Ok(VdiDone { changed, vdi: item.info() })
    }

    pub(super) async fn update(&self, cx: &Cx, request: VdiUpdate) -> Result<VdiDone> {
        let mut item = self.known(cx, request.vdi).await?;
        let old = item.usable(self.sr)?;
        let mut new = old.clone();
        new.name = request.name.unwrap_or(new.name);
        new.description = request.description.unwrap_or(new.description);
        new.vdi_type = request.vdi_type.unwrap_or(new.vdi_type);
        new.incomplete = request.incomplete.unwrap_or(new.incomplete);
        if let Some(read_only) = request.read_only {
            if item.is_snapshot && !read_only {
                return Err(Error::unsupported(format!(
                    "VDI {} is a snapshot, which stays read-only",
                    request.vdi
                ))
                .hint("clone it to get a disk that can be written"));
            }
            new.read_only = read_only;
        }
        for (key, value) in request.keys {
            match value {
                Some(value) => new.keys.insert(key, value),
                None => new.keys.remove(&key),
            };
        }
        let changed = if new == old && matches!(item.document, Ok(Some(_))) {
            Changed::Already
        } else {
            self.describe(cx, &mut item.volume, &new).await?;
            item.document = Ok(Some(new));
            Changed::Modified
        };
        Ok(VdiDone { changed, vdi: item.info() })
    }

    pub(super) async fn resize(&self, cx: &Cx, request: VdiResize) -> Result<VdiDone> {
        let capabilities = self.array.capabilities();
        let to = capabilities.size.fit(request.virtual_size)?;
        let mut item = self.known(cx, request.vdi).await?;
        let mut document = item.usable(self.sr)?;
        refuse_read_only(&item, &document)?;
        let now = item.volume.size;
        if now > to && document.asked != Some(to) {
            if Self::is_late_resize(cx, request.vdi, to).await? {
                return Ok(VdiDone { changed: Changed::Already, vdi: item.info() });
            }
            return Err(Error::new(
                Kind::Limit,
                format!(
                    "VDI {} has {} bytes and does not become smaller: {}",
                    request.vdi, now.0, to.0
                ),
            )
            .legacy_detail(79, "shrinking not allowed"));
        }
        if now < to && capabilities.size.slack > Bytes(0) {
            // Before it grows: a repetition then finds what it asks for.
            document.asked = Some(to);
            self.describe(cx, &mut item.volume, &document).await?;
            item.document = Ok(Some(document));
            step!("array.size_noted");
        }
        if now < to {
            Self::note_resize(cx, request.vdi, to).await?;
        }
        let first = AtomicBool::new(true);
        let (volume, first) = (&item.volume, &first);
        let (changed, size) = Self::ledger(cx)
            .resize(
                &volume.name,
                to,
                &capabilities.size,
                capabilities.resize,
                |cx| async move {
                    // It was read a moment ago.
                    if first.swap(false, Ordering::Relaxed) {
                        return Ok(now);
                    }
                    Ok(self.array.get(&cx, &volume.name).await?.size)
                },
                |cx, from, to| async move {
                    let now = Volume { size: from, ..volume.clone() };
                    self.array.resize(&cx, &now, to).await
                },
            )
            .await?;
        item.volume.size = size;
        // Also if it had that size: an earlier try may have ended between the two.
        self.resized(cx, request.vdi, size).await?;
        Ok(VdiDone { changed, vdi: item.info() })
    }

    pub(super) async fn qos(&self, cx: &Cx, request: VdiQos) -> Result<VdiDone> {
        let mut item = self.known(cx, request.vdi).await?;
        refuse_read_only(&item, &item.usable(self.sr)?)?;
        let Some(rule) = self.array.qos_rule() else {
            return Err(Error::unsupported("the array cannot limit what is asked of a volume"));
        };
        let qos = rule.fit(&request.qos)?;
        if item.volume.qos == qos {
            return Ok(VdiDone { changed: Changed::Already, vdi: item.info() });
        }
        let mut tries = 0;
        loop {
            tries += 1;
            match self.array.set_qos(cx, &item.volume, &qos).await {
                Ok(()) => break,
                // Twice is the same as once.
                Err(failure) if !failure.class.is_certain() && tries < P::SETTLE.tries => {
                    cx.check()?;
                }
                Err(failure) => return Err(failure.object(item.volume.name.clone()).into()),
            }
        }
        step!("array.qos_set");
        item.volume.qos = qos;
        Ok(VdiDone { changed: Changed::Modified, vdi: item.info() })
    }

    /// A disk that a snapshot or clone can be made of.
    pub(super) async fn source(&self, cx: &Cx, vdi: VdiUuid) -> Result<Item> {
        let source = self.known(cx, vdi).await?;
        if source.usable(self.sr)?.incomplete {
            return Err(Error::busy(format!(
                "VDI {vdi} is not complete: an import or copy is filling it, or was interrupted"
            )));
        }
        Ok(source)
    }

    pub(super) fn snapshot_document(
        &self,
        spec: &SnapshotSpec,
        source: &Item,
        time: u64,
    ) -> Result<Document> {
        if source.is_snapshot {
            return Err(Error::unsupported(format!("VDI {} is a snapshot", source.uuid))
                .hint("clone it, and snapshot the clone"));
        }
        Ok(Document {
            name: spec.name.clone(),
            description: spec.description.clone(),
            snapshot_of: Some(spec.vdi),
            snapshot_time: Some(time),
            read_only: true,
            reverted: None,
            cloned_from: None,
            itself: None,
            ..source.usable(self.sr)?
        })
    }

    pub(super) async fn snapshot_one(
        &self,
        cx: &Cx,
        spec: &SnapshotSpec,
        source: &Item,
        time: u64,
    ) -> Result<(Changed, VdiInfo)> {
        let document = &self.snapshot_document(spec, source, time)?;
        let name = &self.snapshot_name(Role::Snapshot, spec.uuid.0);
        let (volume, text) = (&source.volume, &self.text(document)?);
        let new = &snapshot_of(volume, name, text);
        let ledger = Self::ledger(cx);
        let caught = &AtomicBool::new(false);
        if self.array.capabilities().snapshots == SnapshotScope::Unnamed {
            let (changed, item) =
                ledger
                    .make_then_name(
                        name,
                        Some(serde_json::json!(volume)),
                        |cx| async move {
                            let all = self.array.snapshots(&cx, Some(volume)).await?;
                            Ok(all.into_iter().map(|snapshot| snapshot.name).collect())
                        },
                        |cx, names| async move {
                            self.array.taken_for(&cx, volume, new, names).await
                        },
                        // Asked for once.
                        |cx| async move {
                            let made = self.array.snapshot_unnamed(&cx, volume, new).await?;
                            cx.snapshots_caught().await;
                            Ok(made)
                        },
                        |cx, from| async move {
                            self.array.rename_snapshot(&cx, volume, &from, name).await
                        },
                        |cx| async move {
                            self.recent.note(spec.uuid, Happened::Made);
                            let gone = || Failure::from(no_vdi(spec.uuid));
                            let item = self.find(&cx, spec.uuid).await?.ok_or_else(gone)?;
                            let found = self.look_whole(&cx, Ok(item.volume), document).await?;
                            found.ok_or_else(gone)
                        },
                    )
                    .await?;
            of_source(spec, &item)?;
            return Ok((changed, item.info()));
        }
        let (changed, item) = ledger
            .create(
                name,
                true,
                |cx| async move {
                    let found = self.array.get_snapshot(&cx, name, Some(volume)).await;
                    self.look_whole(&cx, found, document).await
                },
                |item| of_source(spec, item).map_err(|error| error.message.clone()),
                |cx| async move {
                    once(caught)?;
                    let made = self.array.snapshot(&cx, volume, new).await?;
                    caught.store(true, Ordering::Relaxed);
                    cx.snapshots_caught().await;
                    self.made(&cx, made, document).await
                },
            )
            .await?;
        Ok((changed, item.info()))
    }

    pub(super) async fn clone_vdi(&self, cx: &Cx, request: VdiClone) -> Result<VdiDone> {
        let capabilities = self.array.capabilities();
        if capabilities.clone == CloneKind::None {
            return Err(Error::unsupported("the array cannot clone"));
        }
        let source = self.source(cx, request.vdi).await?;
        let document = Document {
            name: request.name,
            description: request.description,
            read_only: false,
            snapshot_of: None,
            snapshot_time: None,
            reverted: None,
            cloned_from: Some(request.vdi),
            itself: None,
            ..source.usable(self.sr)?
        };
        let (name, text) = (self.disk_name(request.uuid.0), self.text(&document)?);
        let ledger = Self::ledger(cx);
        let hidden;
        let mut begin = Begin::Now(None);
        let mut from = &source.volume;
        if capabilities.clone == CloneKind::Dependent && !source.is_snapshot {
            if ledger.open(&name).await?.is_none() {
                // Before there is a snapshot for it, which nobody would find otherwise.
                ledger.intend(&name, What::Create, None).await?;
                begin = Begin::Ahead;
            }
            hidden = match self.hidden_snapshot(cx, &source.volume, request.uuid).await {
                Err(failure) if failure.class.is_certain() && begin == Begin::Ahead => {
                    ledger.conclude(&name).await?;
                    return Err(failure.into());
                }
                made => made?,
            };
            from = &hidden;
        }
        let (size, pool) = (source.volume.size, self.pool.as_deref());
        let new = New { name: &name, size, pool, metadata: &text };
        let (new, document) = (&new, &document);
        let outcome = ledger
            .create_of(
                &name,
                begin,
                capabilities.unique_names,
                |cx| async move {
                    let found = self.array.get(&cx, new.name).await;
                    self.look_whole(&cx, found, document).await
                },
                |item| match &item.document {
                    Ok(Some(found)) if found.cloned_from == document.cloned_from => Ok(()),
                    _ => Err(format!("it is no clone of VDI {}", request.vdi)),
                },
                |cx| async move {
                    let made = self.array.clone_of(&cx, from, new).await?;
                    self.made(&cx, made, document).await
                },
            )
            .await;
        match outcome {
            Ok((changed, item)) => Ok(VdiDone { changed, vdi: item.info() }),
            Err(failure) => {
                if failure.class.is_certain() && *from != source.volume {
                    // Best effort: the next attach of the SR does it, too, or a destroy of the source.
                    let _ = self.remove_unseen(&resolving(cx), &from.name, from).await;
                }
                Err(failure.into())
            }
        }
    }

    /// The snapshot that a dependent clone of a volume hangs on; nobody sees it.
    async fn hidden_snapshot(&self, cx: &Cx, volume: &Volume, clone: VdiUuid) -> Outcome<Volume> {
        let name = &self.snapshot_name(Role::Hidden, clone.0);
        let made = Self::ledger(cx)
            .create(
                name,
                true,
                // Of whichever volume: a promotion may have moved it.
                |cx| async move { self.array.get_snapshot(&cx, name, None).await.or_absent() },
                |_| Ok(()),
                |cx| async move {
                    self.array.snapshot(&cx, volume, &snapshot_of(volume, name, "")).await
                },
            )
            .await?;
        step!("array.hidden_snapshot_made");
        Ok(made.1)
    }

    pub(super) async fn revert(&self, cx: &Cx, request: VdiRevert) -> Result<VdiDone> {
        let mut item = self.known(cx, request.vdi).await?;
        let mut document = item.usable(self.sr)?;
        refuse_read_only(&item, &document)?;
        if document.reverted == Some(cx.operation_id()) {
            return Ok(VdiDone { changed: Changed::Already, vdi: item.info() });
        }
        let snapshot = self.known(cx, request.snapshot).await?;
        let then = snapshot.usable(self.sr)?;
        if then.snapshot_of != Some(request.vdi)
            || snapshot.volume.snapshot_of.as_ref() != Some(&item.volume.name)
        {
            return Err(Error::new(
                Kind::Limit,
                format!("VDI {} is not a snapshot of VDI {}", request.snapshot, request.vdi),
            )
            .legacy(66)
            .hint("clone it instead, which gives a new disk"));
        }
        if self.array.capabilities().restore_drops_newer {
            let all = self.array.snapshots(cx, Some(&item.volume)).await?;
            let newer = all.iter().filter(|one| one.order > snapshot.volume.order).count();
            if newer > 0 {
                return Err(Error::new(
                    Kind::InUse,
                    format!("VDI {} has {newer} snapshots that are newer, and the array would remove them", request.vdi),
                )
                .hint(
                    "clone the snapshot instead, or first destroy the newer ones, and what was cloned of the \
                     VDI since",
                ));
            }
        }
        let mut tries = 0;
        loop {
            tries += 1;
            match self.array.restore(cx, &item.volume, &snapshot.volume).await {
                Ok(()) => break,
                // Twice is the same as once.
                Err(failure) if !failure.class.is_certain() && tries < P::SETTLE.tries => {
                    cx.check()?;
                }
                Err(failure) => return Err(failure.object(item.volume.name.clone()).into()),
            }
        }
        step!("array.restored");
        (document.reverted, document.asked) = (Some(cx.operation_id()), then.asked);
        let cx = &resolving(cx);
        item.volume.size = Bytes(0);
        if let Some(now) = self.find(cx, request.vdi).await? {
            item.volume = now.volume;
        }
        self.describe(cx, &mut item.volume, &document).await?;
        item.document = Ok(Some(document));
        self.resized(cx, request.vdi, item.volume.size).await?;
        Ok(VdiDone { changed: Changed::Modified, vdi: item.info() })
    }
}

/// Whether an item is the snapshot that is asked for. Error kind `exists`.
pub(super) fn of_source(spec: &SnapshotSpec, item: &Item) -> Result<()> {
    match &item.document {
        Ok(Some(found)) if found.snapshot_of == Some(spec.vdi) => Ok(()),
        _ => Err(Error::new(Kind::Exists, format!("it is no snapshot of VDI {}", spec.vdi))),
    }
}

fn refuse_read_only(item: &Item, document: &Document) -> Result<()> {
    if !item.is_snapshot && !document.read_only {
        return Ok(());
    }
    let what = if item.is_snapshot { "a snapshot, which stays read-only" } else { "read-only" };
    Err(Error::unsupported(format!("VDI {} is {what}", item.uuid))
        .legacy(46)
        .hint("clone it to get a disk that can be written"))
}

/// The snapshot of a volume that is to be made.
fn snapshot_of<'a>(volume: &Volume, name: &'a str, metadata: &'a str) -> New<'a> {
    New { name, size: volume.size, pool: None, metadata }
}
