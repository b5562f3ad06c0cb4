//! A VDI is destroyed, with all that only it needed.

use futures_util::future::BoxFuture;
use plugin_sdk::model::vdi::VdiDestroyed;
use plugin_sdk::model::{Changed, Error, Kind, VdiUuid};
use plugin_sdk::{Cx, Result, step};

use super::item::Item;
use super::recent::Happened;
use super::{Offload, Product};
use crate::array::{Array as _, CloneKind, Masking as _, Volume};
use crate::ledger::{Intent, What};
use crate::names::Role;
use crate::outcome::{Class, Failure, OrAbsent as _, Outcome};

/// How often a volume is freed of what keeps it. Once does, unless clones come and go meanwhile.
const ROUNDS: u32 = 4;

impl<P: Product> Offload<P> {
    pub(super) async fn destroy(&self, cx: &Cx, vdi: VdiUuid) -> Result<VdiDestroyed> {
        let ledger = Self::ledger(cx);
        // Nobody uses it here. What an attach left that was cut goes before the volume does.
        self.detach(cx, vdi).await?;
        let Some(item) = self.find(cx, vdi).await? else {
            // Out of sight, but perhaps not all the way gone.
            let names = [self.disk_name(vdi.0), self.snapshot_name(Role::Snapshot, vdi.0)];
            for name in names {
                let Some(Intent { what: What::Delete, object: Some(object), .. }) =
                    ledger.open(&name).await?
                else {
                    continue;
                };
                if let Ok(volume) = serde_json::from_value::<Volume>(object) {
                    self.remove_volume(cx, &volume, volume.snapshot_of.is_some()).await?;
                    ledger.conclude(&name).await?;
                    return Ok(VdiDestroyed { changed: Changed::Modified });
                }
            }
            return Ok(VdiDestroyed { changed: Changed::Already });
        };
        let removed = self.recent.of(vdi, P::SETTLE.stale) == Some(Happened::Removed);
        if item.is_gone() || removed {
            return Ok(VdiDestroyed { changed: Changed::Already });
        }
        if !item.is_snapshot
            && self.array.capabilities().delete_takes_snapshots
            && self.seen_snapshot(cx, &item.volume).await?.is_some()
        {
            return self.hide(cx, item).await;
        }
        let (volume, name) = (&item.volume, &self.intent_of(&item));
        let object = Some(serde_json::json!(volume));
        let removed = ledger
            .delete(name, object, |cx| async move {
                self.remove_volume(&cx, volume, item.is_snapshot).await
            })
            .await;
        match removed {
            Ok(changed) => {
                self.recent.note(vdi, Happened::Removed);
                Ok(VdiDestroyed { changed })
            }
            Err(failure) if failure.class == Class::InUse => {
                if self.is_needed(cx, &item).await? {
                    return self.hide(cx, item).await;
                }
                let hosts = match self.array.mappings(cx, volume).await {
                    Ok(hosts) if !hosts.is_empty() => format!(": {}", hosts.join(", ")),
                    _ => String::new(),
                };
                Err(Error::new(Kind::InUse, format!("VDI {vdi} is mapped to other hosts{hosts}"))
                    .legacy(24)
                    .backend(failure.to_string())
                    .hint("detach it there, or remove the mapping on the array"))
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// Marks a VDI as gone: nobody sees it any more, and it goes with the last that hangs on it.
    async fn hide(&self, cx: &Cx, mut item: Item) -> Result<VdiDestroyed> {
        let mut document = match &item.document {
            Ok(Some(document)) => document.clone(),
            _ => crate::metadata::Document::new(self.sr),
        };
        document.gone = true;
        self.describe(cx, &mut item.volume, &document).await?;
        self.recent.note(item.uuid, Happened::Removed);
        Ok(VdiDestroyed { changed: Changed::Modified })
    }

    /// A snapshot that a user sees, ours or not, of a volume which is to go.
    pub(super) async fn seen_snapshot(&self, cx: &Cx, volume: &Volume) -> Outcome<Option<Volume>> {
        let mut unnamed = Vec::new();
        for one in self.array.snapshots(cx, Some(volume)).await? {
            match self.read_snapshot(&one) {
                Some((Role::Hidden, _)) => {}
                Some((_, uuid)) => {
                    let recent = self.recent.of(VdiUuid(uuid), P::SETTLE.stale);
                    // One that was removed a moment ago may still be in the array's list.
                    if recent != Some(Happened::Removed) {
                        return Ok(Some(one));
                    }
                }
                None => unnamed.push(one),
            }
        }
        if unnamed.is_empty() {
            return Ok(None);
        }
        // What was begun for us and forgotten goes.
        let foreign = self.array.remove_forgotten(cx, volume, unnamed).await?;
        Ok(foreign.into_iter().next())
    }

    /// Whether snapshots or clones hang on what could not be removed.
    async fn is_needed(&self, cx: &Cx, item: &Item) -> Outcome<bool> {
        if item.is_snapshot {
            return Ok(self.array.capabilities().clone == CloneKind::Dependent);
        }
        // Snapshots that stand by themselves keep nothing: it is in use by a host.
        if self.array.capabilities().clone == CloneKind::Independent
            && !self.array.mappings(cx, &item.volume).await?.is_empty()
        {
            return Ok(false);
        }
        Ok(!self.array.snapshots(cx, Some(&item.volume)).await?.is_empty())
    }

    /// Removes a volume or snapshot, and what was kept only for it. Can be repeated at any point.
    pub(super) async fn remove_volume(
        &self,
        cx: &Cx,
        volume: &Volume,
        is_snapshot: bool,
    ) -> Outcome<()> {
        if is_snapshot {
            self.array.delete_snapshot(cx, volume).await.or_absent()?;
            step!("array.snapshot_removed");
            if let Some(parent) = &volume.snapshot_of {
                self.reap(cx, parent).await.map_err(Failure::partly)?;
            }
            return Ok(());
        }
        let Some(mut volume) = self.as_intended(cx, volume).await? else { return Ok(()) };
        let mut unmapped = false;
        let mut rounds = 0;
        loop {
            match self.array.delete(cx, &volume).await {
                Ok(()) => break,
                Err(failure) if failure.class == Class::NotFound => break,
                Err(failure) if failure.class == Class::InUse => {
                    if !unmapped && self.unmap_stale(cx, &volume).await? {
                        unmapped = true;
                    } else if rounds < ROUNDS && self.free(cx, &volume, rounds == 0).await? {
                        rounds += 1;
                        let Some(now) = self.as_intended(cx, &volume).await? else { break };
                        volume = now;
                    } else {
                        return Err(failure);
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
        step!("array.volume_removed");
        if let Some(named) = self.codec.read(&volume.name) {
            self.recent.forget(VdiUuid(named.uuid));
        }
        if let Some(origin) = &volume.origin {
            self.reap_origin(cx, &volume, origin).await.map_err(Failure::partly)?;
        }
        Ok(())
    }

    /// A volume as the intent to remove it has it, in which what it hangs on is right. A
    /// [promotion](Self::free) changes that: it leaves the intent without an object until the volume was
    /// read again. None: the volume is gone, and was not removed by us.
    async fn as_intended(&self, cx: &Cx, volume: &Volume) -> Outcome<Option<Volume>> {
        let ledger = Self::ledger(cx);
        let object = match ledger.open(&volume.name).await? {
            Some(Intent { what: What::Delete, object, .. }) => object,
            _ => return Ok(Some(volume.clone())),
        };
        if let Some(object) = object {
            let known = serde_json::from_value(object).ok();
            return Ok(Some(known.unwrap_or_else(|| volume.clone())));
        }
        let Some(now) = self.array.get(cx, &volume.name).await.or_absent()? else {
            return Ok(None);
        };
        ledger.intend(&volume.name, What::Delete, Some(serde_json::json!(now))).await?;
        Ok(Some(now))
    }

    /// Frees a volume of hidden snapshots, so that it can go: those that no clone hangs on are removed,
    /// and the clone of the newest one is turned around, which takes all older ones along. Only where no
    /// visible snapshot keeps the volume anyway. Whether it is worth another try.
    async fn free(&self, cx: &Cx, volume: &Volume, first: bool) -> Outcome<bool> {
        if self.array.capabilities().clone != CloneKind::Dependent {
            return Ok(false);
        }
        let snapshots = self.array.snapshots(cx, Some(volume)).await?;
        if snapshots.is_empty() {
            // The last one went meanwhile, with its clone; or a host has the volume.
            return Ok(first);
        }
        if !snapshots.iter().all(|one| matches!(self.read_snapshot(one), Some((Role::Hidden, _)))) {
            return Ok(false);
        }
        let mut all = self.array.list(cx, &self.codec.prefix(Role::Disk)).await?;
        all.retain(|one| self.codec.read(&one.name).is_some());
        let mut freed = false;
        let mut newest: Option<(u64, &Volume)> = None;
        for snapshot in &snapshots {
            match all.iter().find(|one| one.origin.as_ref() == Some(&snapshot.id)) {
                Some(clone) if newest.is_none_or(|(order, _)| order < snapshot.order) => {
                    newest = Some((snapshot.order, clone));
                }
                Some(_) => {}
                None => match self.array.delete_snapshot(cx, snapshot).await.or_absent() {
                    Ok(_) => freed = true,
                    // Somebody else's clone hangs on it.
                    Err(failure) if failure.class == Class::InUse => {}
                    Err(failure) => return Err(failure),
                },
            }
        }
        if let Some((_, clone)) = newest {
            Self::ledger(cx).intend(&volume.name, What::Delete, None).await?;
            // A clone may go meanwhile.
            self.array.promote(cx, clone).await.or_absent()?;
            step!("array.promoted");
            freed = true;
        }
        Ok(freed)
    }

    /// What was removed hung on a snapshot: that goes, if it was kept only for it.
    async fn reap_origin(&self, cx: &Cx, clone: &Volume, origin: &str) -> Outcome<()> {
        let own = match self.codec.read(&clone.name) {
            Some(named) => {
                let hidden = self.snapshot_name(Role::Hidden, named.uuid);
                self.array.get_snapshot(cx, &hidden, None).await.or_absent()?
            }
            None => None,
        };
        let found = match own.filter(|own| own.id == origin) {
            // Another clone's, since one of the two was turned around; or one that the user saw once.
            None => {
                let all = self.array.snapshots(cx, None).await?;
                all.into_iter().find(|one| one.id == origin)
            }
            own => own,
        };
        let (name, snapshot) = match found {
            Some(hidden) if matches!(self.read_snapshot(&hidden), Some((Role::Hidden, _))) => {
                (hidden.name.clone(), hidden)
            }
            Some(seen) => match self.with_text(cx, seen).await? {
                Some(item) if item.is_gone() => (self.intent_of(&item), item.volume),
                _ => return Ok(()),
            },
            // Gone already, but perhaps not what was kept for it.
            None => {
                let all = Self::ledger(cx).all_open().await?.into_iter();
                let mut removals = all.filter_map(|(name, intent)| match intent {
                    Intent { what: What::Delete, object: Some(object), .. } => {
                        Some((name, serde_json::from_value::<Volume>(object).ok()?))
                    }
                    _ => None,
                });
                match removals.find(|(_, one)| one.id == origin) {
                    Some(removal) => removal,
                    None => return Ok(()),
                }
            }
        };
        // Another clone may hang on it.
        self.remove_unseen(cx, &name, &snapshot).await.unless_in_use()?;
        step!("array.origin_removed");
        Ok(())
    }

    /// Removes a volume that was kept for its snapshots, if it has none any more.
    async fn reap(&self, cx: &Cx, name: &str) -> Outcome<()> {
        let ledger = Self::ledger(cx);
        let volume = match self.array.get(cx, name).await.or_absent()? {
            Some(volume) => {
                let Some(item) = self.with_text(cx, volume).await? else { return Ok(()) };
                if !item.is_gone() || self.seen_snapshot(cx, &item.volume).await?.is_some() {
                    return Ok(());
                }
                item.volume
            }
            None => match ledger.open(name).await? {
                Some(Intent { what: What::Delete, object: Some(object), .. }) => {
                    let Ok(volume) = serde_json::from_value(object) else { return Ok(()) };
                    volume
                }
                _ => return Ok(()),
            },
        };
        self.remove_unseen(cx, name, &volume).await.unless_in_use().map(drop)
    }

    /// What the intent to remove something is found by: its name. One that shares its name with others
    /// is known by its UUID.
    pub(super) fn intent_of(&self, item: &Item) -> String {
        match self.read_snapshot(&item.volume) {
            Some((Role::Group, _)) if item.is_snapshot => {
                self.snapshot_name(Role::Snapshot, item.uuid.0)
            }
            _ => item.volume.name.clone(),
        }
    }

    /// Removes what no user sees, under an intent of its own: half removed it may have another name, by
    /// which nobody would find it.
    pub(super) async fn remove_unseen(&self, cx: &Cx, name: &str, volume: &Volume) -> Outcome<()> {
        let object = Some(serde_json::json!(volume));
        let remove = |cx: Cx| async move { self.removal(&cx, volume).await };
        Self::ledger(cx).delete(name, object, remove).await.map(drop)
    }

    /// [`Self::remove_volume`] in a box, because what it removes may keep something else.
    fn removal<'a>(&'a self, cx: &'a Cx, volume: &'a Volume) -> BoxFuture<'a, Outcome<()>> {
        Box::pin(self.remove_volume(cx, volume, volume.snapshot_of.is_some()))
    }
}
