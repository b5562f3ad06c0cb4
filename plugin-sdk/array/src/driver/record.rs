//! The SR itself: its record on the array, its session, what is left over from a crash.

use plugin_sdk::model::sr::{SrCreate, SrCreated, SrDone, SrInfo, SrRecovered, SrUpdate};
use plugin_sdk::model::vdi::Health;
use plugin_sdk::model::{Bytes, Changed, Error, Kind, VdiUuid};
use plugin_sdk::{Cx, Result, step};

use super::recent::Happened;
use super::{Connector as _, Offload, Product};
use crate::array::{Array as _, CloneKind, Masking as _, MetadataPlace, New, Volume};
use crate::ledger::{Intent, What};
use crate::metadata::Document;
use crate::names::{Codec, Role};
use crate::outcome::{Class, Failure, OrAbsent as _, Outcome};
use crate::retry::wait;

/// The key of the host's state that is there while the SR is attached here.
const HERE: &str = "sr-here";

impl<P: Product> Offload<P> {
    fn record_name(&self) -> String {
        self.codec.name(Role::Record, self.sr.0)
    }

    /// The SR's record, with its document.
    async fn record(&self, cx: &Cx) -> Outcome<Option<(Volume, Option<Document>)>> {
        let name = self.record_name();
        let volume = loop {
            // Before the read, which may take until it is no longer so.
            let recent = self.recent.of(VdiUuid(self.sr.0), P::SETTLE.stale);
            match self.array.get(cx, &name).await.or_absent()? {
                Some(volume) => break volume,
                None if recent == Some(Happened::Made) => wait(cx, P::SETTLE.pause).await?,
                None => return Ok(None),
            }
        };
        let text = match self.array.capabilities().metadata {
            MetadataPlace::Apart { .. } => {
                self.array.descriptions(cx, Some(&volume)).await?.remove(&volume.id)
            }
            _ => volume.metadata.clone(),
        };
        let document = text.filter(|text| !text.is_empty()).map(|text| {
            Document::read(&text).map_err(|reason| {
                Failure::from(
                    Error::new(Kind::Corrupt, format!("the record of SR {}: {reason}", self.sr))
                        .legacy(181),
                )
            })
        });
        Ok(Some((volume, document.transpose()?)))
    }

    pub(super) async fn create_record(&self, cx: &Cx, request: SrCreate) -> Result<SrCreated> {
        let size = self.array.capabilities().size.fit(Bytes(1))?;
        let document = Document {
            name: request.name,
            description: request.description,
            ..Document::new(self.sr)
        };
        let (name, text) = (self.record_name(), self.text(&document)?);
        let unique = self.array.capabilities().unique_names;
        let new = New { name: &name, size, pool: self.pool.as_deref(), metadata: &text };
        let new = &new;
        let (changed, mut volume) = Self::ledger(cx)
            .create(
                &name,
                unique,
                |cx| async move { self.array.get(&cx, new.name).await.or_absent() },
                |_| Ok(()),
                |cx| async move { self.array.create(&cx, new).await },
            )
            .await?;
        self.recent.note(VdiUuid(self.sr.0), Happened::Made);
        step!("array_sr_create.record_made");
        if changed == Changed::Created || self.record(cx).await?.is_some_and(|(_, d)| d.is_none()) {
            self.describe(cx, &mut volume, &document).await?;
        }
        Ok(SrCreated { changed, device_config: cx.device_config().clone() })
    }

    pub(super) async fn update_record(&self, cx: &Cx, request: SrUpdate) -> Result<SrDone> {
        let (mut volume, document) = self.record(cx).await?.ok_or_else(|| self.no_sr())?;
        let old = document.clone().unwrap_or_else(|| Document::new(self.sr));
        let mut new = old.clone();
        new.name = request.name.unwrap_or(new.name);
        new.description = request.description.unwrap_or(new.description);
        if document.is_some() && new == old {
            return Ok(SrDone { changed: Changed::Already });
        }
        self.describe(cx, &mut volume, &new).await?;
        Ok(SrDone { changed: Changed::Modified })
    }

    fn no_sr(&self) -> Error {
        Error::not_found(format!("the array has no SR {}", self.sr))
            .hint("look at its UUID; smctl sr probe lists the SRs of an array")
    }

    pub(super) async fn attach_sr(&self, cx: &Cx) -> Result<SrRecovered> {
        if self.record(cx).await?.is_none() {
            return Err(self.no_sr());
        }
        let initiator = self.connector.initiator(cx).await?;
        // Before the array knows of this host: a detach that follows has something to undo.
        cx.kv().put(HERE, &true).await?;
        self.array.grant(cx, &initiator).await?;
        self.settle(cx, true).await
    }

    pub(super) async fn detach_sr(&self, cx: &Cx) -> Result<SrDone> {
        // No VDI is attached any more; what attaches left that were cut would keep the entry.
        self.detach_all(cx).await?;
        let was_here = cx.kv().get::<bool>(HERE).await?.is_some();
        let initiator = self.connector.initiator(cx).await?;
        self.array.revoke(cx, &initiator).await?;
        cx.kv().remove(HERE).await?;
        Ok(SrDone { changed: if was_here { Changed::Modified } else { Changed::Already } })
    }

    pub(super) async fn destroy_record(&self, cx: &Cx) -> Result<SrDone> {
        let Some((record, _)) = self.record(cx).await? else {
            self.settle(cx, true).await?;
            cx.kv().remove(HERE).await?;
            Self::forget_all_resizes(cx).await?;
            return Ok(SrDone { changed: Changed::Already });
        };
        self.settle(cx, true).await?;
        let left = self.visible(cx).await?.len();
        if left > 0 {
            return Err(Error::new(Kind::InUse, format!("SR {} holds {left} VDIs", self.sr))
                .legacy(39)
                .hint("destroy them first; smctl vdi list shows them"));
        }
        // What is gone for the user and still there has something foreign hanging on it, or had.
        for item in self.items(cx).await? {
            if !item.is_snapshot
                && self.array.capabilities().delete_takes_snapshots
                && let Some(foreign) = self.seen_snapshot(cx, &item.volume).await?
            {
                let (volume, snapshot) = (&item.volume.name, &foreign.name);
                let text =
                    format!("volume {volume} has snapshot {snapshot}, which is not this SR's");
                return Err(Error::new(Kind::InUse, text).context("sr", self.sr).hint(
                    "it would go with the volume: if nobody needs it, remove it on the array",
                ));
            }
            self.remove_unseen(cx, &self.intent_of(&item), &item.volume).await?;
        }
        // A host that never detached the SR would leave its entry behind.
        let initiator = self.connector.initiator(cx).await?;
        self.array.revoke(cx, &initiator).await?;
        cx.kv().remove(HERE).await?;
        Self::forget_all_resizes(cx).await?;
        let changed = Self::ledger(cx)
            .delete(&record.name, Some(serde_json::json!(record)), |cx| {
                let record = &record;
                async move { self.array.delete(&cx, record).await }
            })
            .await?;
        self.recent.note(VdiUuid(self.sr.0), Happened::Removed);
        Ok(SrDone { changed })
    }

    pub(super) async fn stat(&self, cx: &Cx) -> Result<SrInfo> {
        let (_, document) = self.record(cx).await?.ok_or_else(|| self.no_sr())?;
        let pools = self.array.pools(cx).await?;
        let of_ours =
            |name: &String| self.pool.as_ref().is_none_or(|pool| pool.eq_ignore_ascii_case(name));
        let ours: Vec<_> = pools.iter().filter(|pool| of_ours(&pool.name)).collect();
        if ours.is_empty() {
            let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
            return Err(Error::config("the array has no pool of the name that is configured")
                .hint(format!("pools: {}", names.join(", "))));
        }
        let items = self.visible(cx).await?;
        let quarantined = items.iter().filter_map(|item| {
            matches!(item.info().health, Health::Quarantined { .. }).then_some(item.uuid)
        });
        let document = document.unwrap_or_else(|| Document::new(self.sr));
        Ok(SrInfo {
            uuid: self.sr,
            name: document.name,
            description: document.description,
            physical_size: Bytes(ours.iter().map(|pool| pool.size.0).sum()),
            physical_utilisation: Bytes(ours.iter().map(|pool| pool.used.0).sum()),
            virtual_allocation: Bytes(items.iter().map(|item| item.volume.size.0).sum()),
            vdis: items.len() as u64,
            quarantined: quarantined.collect(),
            health: Health::Ok,
            usage: None,
            warnings: Vec::new(),
            paths: None,
        })
    }

    /// Finishes or undoes what was begun and not concluded: by an operation that died, or, where
    /// `everything` is asked for, by whomever, because nobody else is at work.
    pub(super) async fn settle(&self, cx: &Cx, everything: bool) -> Result<SrRecovered> {
        let mut done = SrRecovered::default();
        if !everything {
            // The host repeats what it began, and a repetition settles its own intent.
            return Ok(done);
        }
        let restored = self.array.settle_restores(cx).await?;
        done.completed.extend(restored.into_iter().map(|name| format!("{name}: usable again")));
        let ledger = Self::ledger(cx);
        for (name, intent) in ledger.all_open().await? {
            cx.check()?;
            match self.settle_one(cx, &name, &intent).await? {
                Settled::Undone => done.undone.push(format!("{name}, which was never finished")),
                Settled::Completed(what) => done.completed.push(format!("{name}: {what}")),
                Settled::Nothing => {}
            }
            ledger.conclude(&name).await?;
        }
        Ok(done)
    }

    async fn settle_one(&self, cx: &Cx, name: &str, intent: &Intent) -> Outcome<Settled> {
        let group = self.codec.read(name).is_some_and(|named| named.role == Role::Group);
        if group && intent.what == What::Create {
            let whole = self.settle_group(cx, name, intent).await?;
            return Ok(if whole { Settled::Completed("made") } else { Settled::Undone });
        }
        match &intent.what {
            What::Create => {
                let inner = Codec::read_inner(name);
                let found = match self.array.get(cx, name).await.or_absent()? {
                    None => {
                        let of = intent.object.clone();
                        let of: Option<Volume> = of.and_then(|of| serde_json::from_value(of).ok());
                        self.array.get_snapshot(cx, name, of.as_ref()).await.or_absent()?
                    }
                    found => found,
                };
                let Some(volume) = found else { return self.settle_unmade(cx, name).await };
                let role = inner.map(|(role, _)| role);
                let role = role.or_else(|| self.codec.read(name).map(|named| named.role));
                if role != Some(Role::Hidden) {
                    match self.with_text(cx, volume.clone()).await? {
                        // Complete, or at least somebody has given it a name since.
                        Some(item) if !matches!(item.document, Ok(None)) => {
                            return Ok(Settled::Completed("made"));
                        }
                        Some(_) => {}
                        None => return Ok(Settled::Nothing),
                    }
                }
                // Nobody was ever told of it.
                self.remove_unseen(cx, name, &volume).await?;
                Ok(Settled::Undone)
            }
            What::Delete => {
                let volume = match intent.object.clone() {
                    Some(object) => serde_json::from_value::<Volume>(object).ok(),
                    // It was not removed yet: a clone of it was being turned around.
                    None => self.array.get(cx, name).await.or_absent()?,
                };
                let Some(volume) = volume else { return Ok(Settled::Nothing) };
                let is_snapshot = volume.snapshot_of.is_some();
                match self.remove_volume(cx, &volume, is_snapshot).await {
                    Ok(()) => Ok(Settled::Completed("removed")),
                    Err(failure) if failure.class == Class::InUse => Ok(Settled::Nothing),
                    Err(failure) => Err(failure),
                }
            }
            What::MakeThenName { before, made } => {
                let of = intent.object.clone();
                let of: Option<Volume> = of.and_then(|of| serde_json::from_value(of).ok());
                let Some(of) = of else { return Ok(Settled::Nothing) };
                let mut new = self.array.snapshots(cx, Some(&of)).await.or_absent()?;
                let new = new.get_or_insert_default();
                if new.iter().any(|one| one.name == name) {
                    // With its text, which a listing need not have: another host may have finished it.
                    let named = self.array.get_snapshot(cx, name, Some(&of)).await.or_absent()?;
                    let Some(named) = named else { return Ok(Settled::Nothing) };
                    let item = self.with_text(cx, named.clone()).await?;
                    if item.is_some_and(|item| !matches!(item.document, Ok(None))) {
                        return Ok(Settled::Completed("made"));
                    }
                    // Nobody was told of it.
                    self.remove_unseen(cx, name, &named).await?;
                    return Ok(Settled::Undone);
                }
                let Some(made) = made else {
                    // What is new may be anybody's.
                    new.retain(|one| {
                        !before.contains(&one.name) && self.read_snapshot(one).is_none()
                    });
                    let (all, new) = (new.len(), std::mem::take(new));
                    let others = self.array.remove_forgotten(cx, &of, new).await?;
                    let gone = others.len() < all;
                    return Ok(if gone { Settled::Undone } else { Settled::Nothing });
                };
                if let Some(one) = new.iter().find(|one| one.name == *made) {
                    self.remove_unseen(cx, name, one).await?;
                    return Ok(Settled::Undone);
                }
                Ok(Settled::Nothing)
            }
            // What the array shows is how it ended.
            What::Resize { .. } | What::Rename { .. } => Ok(Settled::Nothing),
        }
    }

    /// A clone that was never made may have a snapshot that it was to hang on.
    async fn settle_unmade(&self, cx: &Cx, name: &str) -> Outcome<Settled> {
        let named = self.codec.read(name).filter(|named| named.role == Role::Disk);
        let Some(named) = named.filter(|_| self.array.capabilities().clone == CloneKind::Dependent)
        else {
            return Ok(Settled::Nothing);
        };
        let hidden = self.snapshot_name(Role::Hidden, named.uuid);
        match self.array.get_snapshot(cx, &hidden, None).await.or_absent()? {
            Some(snapshot) => {
                self.remove_unseen(cx, &hidden, &snapshot).await?;
                Ok(Settled::Undone)
            }
            None => Ok(Settled::Nothing),
        }
    }
}

enum Settled {
    Nothing,
    Undone,
    Completed(&'static str),
}
