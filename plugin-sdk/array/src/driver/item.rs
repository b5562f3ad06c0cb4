//! A VDI as it lies on the array, and how it is found.

use std::collections::BTreeMap;

use plugin_sdk::model::access::ImageFormat;
use plugin_sdk::model::vdi::{Health, VdiInfo};
use plugin_sdk::model::{Bytes, VdiUuid};
use plugin_sdk::{Cx, Result, quarantined_vdi};

use super::recent::Happened;
use super::{Offload, Product, no_vdi, quarantined};
use crate::array::{Array as _, MetadataPlace, Volume};
use crate::metadata::Document;
use crate::names::Role;
use crate::outcome::{OrAbsent as _, Outcome};
use crate::retry::wait;

/// A volume or snapshot of ours.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) uuid: VdiUuid,
    pub(super) is_snapshot: bool,
    pub(super) volume: Volume,
    /// None: it has no text. An error: the reason it is quarantined for.
    pub(super) document: Result<Option<Document>, String>,
}

impl Item {
    /// Destroyed for the user, and kept for what hangs on it.
    pub(super) fn is_gone(&self) -> bool {
        matches!(&self.document, Ok(Some(document)) if document.gone)
    }

    /// See [`Document::asked`].
    pub(super) fn asked(&self) -> Option<Bytes> {
        self.document.as_ref().ok()?.as_ref()?.asked
    }

    /// The document, for who goes on with it. Error kind `corrupt` if it cannot be read.
    pub(super) fn usable(&self, sr: plugin_sdk::model::SrUuid) -> Result<Document> {
        if let Some(trouble) = &self.volume.trouble {
            return Err(quarantined(self.uuid, trouble));
        }
        match &self.document {
            Ok(Some(document)) => Ok(document.clone()),
            Ok(None) => Ok(Document { read_only: self.is_snapshot, ..Document::new(sr) }),
            Err(reason) => Err(quarantined(self.uuid, reason)),
        }
    }

    pub(super) fn info(&self) -> VdiInfo {
        let used = self.volume.used.unwrap_or(Bytes(0));
        let reason = self.volume.trouble.as_ref().or(self.document.as_ref().err());
        let document = self.document.as_ref().ok().and_then(Option::as_ref);
        let mut info = quarantined_vdi(self.uuid, ImageFormat::Raw, String::new());
        info.virtual_size = self.volume.size;
        info.physical_utilisation = used;
        info.qos = self.volume.qos;
        info.is_a_snapshot = self.is_snapshot;
        info.read_only = self.is_snapshot;
        info.health = match (reason, document) {
            (Some(reason), _) => Health::Quarantined { reason: reason.clone() },
            (None, None) => Health::Degraded {
                reason: "its metadata on the array is missing: a new name restores it".to_owned(),
            },
            (None, Some(_)) => Health::Ok,
        };
        let Some(document) = document else { return info };
        info.name.clone_from(&document.name);
        info.description.clone_from(&document.description);
        info.vdi_type = document.vdi_type;
        info.read_only |= document.read_only;
        info.sharable = document.sharable;
        info.snapshot_of = document.snapshot_of;
        info.snapshot_time = document.snapshot_time;
        info.keys.clone_from(&document.keys);
        info.incomplete = document.incomplete;
        info
    }
}

impl<P: Product> Offload<P> {
    /// The item that a volume is, or `None` if it is foreign after all. `listed` tells that it came
    /// with others; one that was asked for by its whole name bears a UUID that only we know.
    pub(super) fn item(
        &self,
        mut volume: Volume,
        texts: Option<&BTreeMap<String, String>>,
        listed: bool,
    ) -> Option<Item> {
        let is_snapshot = volume.snapshot_of.is_some();
        let (role, uuid, certain) = if is_snapshot {
            let (role, uuid) = self.read_snapshot(&volume)?;
            (role, uuid, true)
        } else {
            let named = self.codec.read(&volume.name)?;
            (named.role, named.uuid, named.sr.is_some())
        };
        let fits = matches!(
            (role, is_snapshot),
            (Role::Disk, false) | (Role::Snapshot | Role::Group, true)
        );
        if !fits {
            return None;
        }
        if let Some(texts) = texts {
            volume.metadata = texts.get(&volume.id).cloned();
        }
        let text = volume.metadata.as_deref();
        let document = match self.recent.document(&volume.id, P::SETTLE.stale, text) {
            Some(document) => Some(Ok(document)),
            None => text.filter(|text| !text.is_empty()).map(Document::read),
        };
        match &document {
            // Another SR's, whatever the name says.
            Some(Ok(document)) if document.sr != self.sr => return None,
            // A short name is ours only if the text says so, too.
            None | Some(Err(_)) if listed && !certain => return None,
            _ => {}
        }
        let mut uuid = VdiUuid(uuid);
        if role == Role::Group {
            // Which one it is stands in its text alone.
            uuid = document.as_ref()?.as_ref().ok()?.itself?;
        }
        Some(Item { uuid, is_snapshot, volume, document: document.transpose() })
    }

    /// All items of the SR, those that are gone too: a listing of volumes, one of snapshots, and one
    /// of texts where the array keeps them apart. However many volumes there are.
    pub(super) async fn items(&self, cx: &Cx) -> Outcome<Vec<Item>> {
        let mut volumes = self.array.list(cx, &self.codec.prefix(Role::Disk)).await?;
        volumes.extend(self.array.snapshots(cx, None).await?);
        let texts = match self.array.capabilities().metadata {
            MetadataPlace::Apart { .. } => Some(self.array.descriptions(cx, None).await?),
            _ => None,
        };
        let items =
            volumes.into_iter().filter_map(|volume| self.item(volume, texts.as_ref(), true));
        // By UUID: an array that shows an object on two pages shows one disk.
        let mut sorted: BTreeMap<VdiUuid, Item> = items.map(|item| (item.uuid, item)).collect();
        for (vdi, happened) in self.recent.all(P::SETTLE.stale) {
            // The record of the SR is noted as well, and is no item.
            if happened == Happened::Made && vdi.0 != self.sr.0 && !sorted.contains_key(&vdi) {
                let found = self.find(cx, vdi).await?;
                sorted.extend(found.map(|item| (vdi, item)));
            }
        }
        Ok(sorted.into_values().collect())
    }

    /// The items that a user sees.
    pub(super) async fn visible(&self, cx: &Cx) -> Outcome<Vec<Item>> {
        let mut items = self.items(cx).await?;
        let recent = self.recent.all(P::SETTLE.stale);
        items.retain(|item| !item.is_gone() && recent.get(&item.uuid) != Some(&Happened::Removed));
        let unfinished = self.unfinished(cx).await?;
        items.retain(|item| !unfinished.contains(&item.uuid));
        Ok(items)
    }

    /// A volume or snapshot with its text.
    pub(super) async fn with_text(&self, cx: &Cx, volume: Volume) -> Outcome<Option<Item>> {
        let texts = match self.array.capabilities().metadata {
            MetadataPlace::Apart { .. } => Some(self.array.descriptions(cx, Some(&volume)).await?),
            _ => None,
        };
        Ok(self.item(volume, texts.as_ref(), false))
    }

    /// The item of a UUID, gone ones too. One that was made a moment ago is waited for.
    pub(super) async fn find(&self, cx: &Cx, vdi: VdiUuid) -> Outcome<Option<Item>> {
        loop {
            // Before the read, which may take until it is no longer so.
            let made = self.recent.of(vdi, P::SETTLE.stale) == Some(Happened::Made);
            let found = self.find_now(cx, vdi).await?;
            if found.is_some() || !made {
                return Ok(found);
            }
            wait(cx, P::SETTLE.pause).await?;
        }
    }

    async fn find_now(&self, cx: &Cx, vdi: VdiUuid) -> Outcome<Option<Item>> {
        if let Some(disk) = self.array.get(cx, &self.disk_name(vdi.0)).await.or_absent()? {
            return self.with_text(cx, disk).await;
        }
        let name = self.snapshot_name(Role::Snapshot, vdi.0);
        match self.array.get_snapshot(cx, &name, None).await.or_absent()? {
            Some(snapshot) => self.with_text(cx, snapshot).await,
            None => self.find_shared(cx, vdi).await,
        }
    }

    /// The VDI of a UUID. Error kind `not_found`.
    pub(super) async fn known(&self, cx: &Cx, vdi: VdiUuid) -> Result<Item> {
        let found = self.find(cx, vdi).await?.filter(|item| !item.is_gone());
        let found =
            found.filter(|_| self.recent.of(vdi, P::SETTLE.stale) != Some(Happened::Removed));
        found.ok_or_else(|| no_vdi(vdi))
    }

    /// Keeps the document of a volume on the array, if it is not there yet.
    pub(super) async fn describe(
        &self,
        cx: &Cx,
        volume: &mut Volume,
        document: &Document,
    ) -> Result<()> {
        let text = self.text(document)?;
        // What was read may be older than what was written last.
        let before = volume.metadata.as_deref();
        let written = self.recent.document(&volume.id, P::SETTLE.stale, before);
        let is_last = written.is_none_or(|written| written == *document);
        if volume.metadata.as_deref() == Some(&text) && is_last {
            return Ok(());
        }
        // The same text twice is the same as once: a lost answer is repeated.
        let mut tries = 0;
        loop {
            tries += 1;
            match self.array.describe(cx, volume, &text).await {
                Ok(()) => break,
                Err(failure) if !failure.class.is_certain() && tries < P::SETTLE.tries => {
                    cx.check()?;
                }
                Err(failure) => return Err(failure.object(volume.name.clone()).into()),
            }
        }
        self.recent.wrote(&volume.id, document, &text, volume.metadata.as_deref());
        volume.metadata = Some(text);
        Ok(())
    }
}
