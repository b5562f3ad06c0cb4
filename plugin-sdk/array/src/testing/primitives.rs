//! The primitives of the array in memory.

use std::collections::BTreeMap;

use plugin_sdk::Cx;
use plugin_sdk::model::Bytes;
use plugin_sdk::model::vdi::Qos;

use super::memory::{Disk, MemoryArray};
use crate::array::{
    Array, Capabilities, CloneKind, Group, GroupNaming, Identity, Initiator, LunAddressing,
    Mapping, Masking, MetadataPlace, New, Part, Pool, Target, Volume,
};
use crate::ledger::ResizeKind;
use crate::metadata::Document;
use crate::outcome::{Class, Failure, OrAbsent as _, Outcome};
use crate::qos::QosRule;

impl Array for MemoryArray {
    fn capabilities(&self) -> &Capabilities {
        self.caps()
    }

    async fn identity(&self, _: &Cx) -> Outcome<Identity> {
        Ok(Identity { vendor: "memory".to_owned(), ..Identity::default() })
    }

    async fn pools(&self, _: &Cx) -> Outcome<Vec<Pool>> {
        Ok(vec![Pool { name: "pool1".to_owned(), size: Bytes(1 << 44), used: Bytes(1 << 30) }])
    }

    async fn create(&self, _: &Cx, new: &New<'_>) -> Outcome<Volume> {
        self.change("create", |state, habits| {
            state.check_name(new.name, habits)?;
            let id = state.add(new, 0, None, habits);
            let objects = &mut state.now;
            if let Some(disk) = objects.volumes.get_mut(&id) {
                disk.size += habits.added;
            }
            objects
                .volumes
                .get(&id)
                .map(|disk| self.show(objects, &id, disk))
                .ok_or_else(|| Failure::not_found("the volume"))
        })
        .await
    }

    async fn get(&self, _: &Cx, name: &str) -> Outcome<Volume> {
        self.read("get", |objects, this| {
            let found = objects.volumes.iter().find(|(_, disk)| disk.name == name);
            found
                .map(|(id, disk)| this.show(objects, id, disk))
                .ok_or_else(|| Failure::not_found(format!("volume {name}")))
        })
    }

    async fn list(&self, _: &Cx, _: &str) -> Outcome<Vec<Volume>> {
        self.read("list", |objects, this| {
            Ok(objects.volumes.iter().map(|(id, disk)| this.show(objects, id, disk)).collect())
        })
    }

    async fn resize(&self, _: &Cx, volume: &Volume, to: Bytes) -> Outcome<Option<Bytes>> {
        let from = volume.size;
        self.change("resize", |state, habits| {
            let disk = state
                .now
                .volumes
                .get_mut(&volume.id)
                .ok_or_else(|| Failure::not_found("the volume"))?;
            disk.size = match habits.capabilities.resize {
                ResizeKind::Absolute => to.0 + habits.added,
                ResizeKind::Delta => disk.size + (to.0 - from.0),
            };
            Ok(None)
        })
        .await
    }

    async fn delete(&self, _: &Cx, volume: &Volume) -> Outcome<()> {
        self.change("delete", |state, habits| {
            let Some(disk) = state.now.volumes.get(&volume.id) else {
                return Err(Failure::not_found("the volume"));
            };
            if !disk.hosts.is_empty() {
                return Err(Failure::new(Class::InUse).words("the volume is mapped"));
            }
            let of = Some(volume.id.clone());
            let own: Vec<String> = state
                .now
                .snapshots
                .iter()
                .filter(|(_, disk)| disk.of == of)
                .map(|(id, _)| id.clone())
                .collect();
            let dependent = habits.capabilities.clone == CloneKind::Dependent;
            if dependent && !own.is_empty() {
                return Err(Failure::new(Class::InUse).words("the volume has snapshots"));
            }
            state.now.volumes.remove(&volume.id);
            state.now.snapshots.retain(|id, _| !own.contains(id));
            state.now.texts.retain(|id, _| *id != volume.id && !own.contains(id));
            Ok(())
        })
        .await
    }

    async fn snapshot(&self, _: &Cx, volume: &Volume, new: &New<'_>) -> Outcome<Volume> {
        let (name, text) = (new.name, new.metadata);
        self.change("snapshot", |state, habits| {
            let id = state.add_snapshot(&volume.id, name, text, habits)?;
            let disk = state.now.snapshots.get(&id);
            disk.map(|disk| self.show(&state.now, &id, disk))
                .ok_or_else(|| Failure::not_found("the snapshot"))
        })
        .await
    }

    async fn snapshot_unnamed(&self, _: &Cx, volume: &Volume, new: &New<'_>) -> Outcome<String> {
        let text = new.metadata;
        self.change("snapshot_unnamed", |state, habits| {
            let name = format!("{}-2009-06-10-12:00:00.{}", volume.name, state.next);
            let id = state.add_snapshot(&volume.id, &name, text, habits)?;
            if let Some(disk) = state.now.snapshots.get_mut(&id) {
                disk.text = Some(text.to_owned());
            }
            Ok(name)
        })
        .await
    }

    async fn taken_for(
        &self,
        _: &Cx,
        volume: &Volume,
        new: &New<'_>,
        names: Vec<String>,
    ) -> Outcome<Option<String>> {
        self.read("taken_for", |objects, _| {
            let of = Some(volume.id.clone());
            let mut own = objects.snapshots.values().filter(|disk| disk.of == of);
            let found = own.find(|disk| {
                names.contains(&disk.name) && disk.text.as_deref() == Some(new.metadata)
            });
            Ok(found.map(|disk| disk.name.clone()))
        })
    }

    async fn remove_forgotten(
        &self,
        cx: &Cx,
        _: &Volume,
        mut unnamed: Vec<Volume>,
    ) -> Outcome<Vec<Volume>> {
        let is_ours = |one: &mut Volume| {
            let document = one.metadata.as_deref().map(Document::read);
            matches!(document, Some(Ok(Document { snapshot_of: Some(_), .. })))
        };
        for ours in unnamed.extract_if(.., is_ours).collect::<Vec<_>>() {
            self.delete_snapshot(cx, &ours).await.or_absent()?;
        }
        Ok(unnamed)
    }

    async fn rename_snapshot(&self, _: &Cx, volume: &Volume, from: &str, to: &str) -> Outcome<()> {
        self.change("rename_snapshot", |state, _| {
            let of = Some(volume.id.clone());
            let found =
                state.now.snapshots.values_mut().find(|disk| disk.name == from && disk.of == of);
            found
                .map(|disk| to.clone_into(&mut disk.name))
                .ok_or_else(|| Failure::not_found("the snapshot"))
        })
        .await
    }

    fn group_naming(&self) -> GroupNaming {
        self.group_names()
    }

    async fn prepare_group(&self, _: &Cx, group: &Group<'_>) -> Outcome<()> {
        self.change("prepare_group", |state, _| {
            state.now.groups.insert(group.name.to_owned());
            Ok(())
        })
        .await
    }

    async fn release_group(&self, _: &Cx, group: &Group<'_>) -> Outcome<()> {
        self.change("release_group", |state, _| {
            state.now.groups.remove(group.name);
            Ok(())
        })
        .await
    }

    async fn snapshot_group(&self, _: &Cx, group: &Group<'_>) -> Outcome<Vec<Volume>> {
        self.change("snapshot_group", |state, habits| {
            if !state.now.groups.contains(group.name) {
                return Err(Failure::not_found("the group"));
            }
            let taken = |part: &Part| {
                let of = Some(&part.volume.id);
                let mut all = state.now.snapshots.values();
                all.any(|disk| disk.name == part.name && disk.of.as_ref() == of)
            };
            if group.parts.iter().any(taken) {
                return Err(Failure::new(Class::AlreadyExists));
            }
            let mut made = Vec::new();
            for Part { volume, name, .. } in group.parts {
                let id = state.add_snapshot(&volume.id, name, "", habits)?;
                let disk = state.now.snapshots.get(&id);
                made.extend(disk.map(|disk| self.show(&state.now, &id, disk)));
            }
            Ok(made)
        })
        .await
    }

    fn qos_rule(&self) -> Option<QosRule> {
        let (operations, bytes) = (Some(100..=1_000_000), Some(1 << 20..=1 << 36));
        Some(QosRule { operations, bytes, bytes_unit: 1 << 20, burst: false })
    }

    async fn set_qos(&self, _: &Cx, volume: &Volume, qos: &Qos) -> Outcome<()> {
        self.change("set_qos", |state, _| {
            let found = state.now.volumes.get_mut(&volume.id);
            found.map(|disk| disk.qos = *qos).ok_or_else(|| Failure::not_found("the volume"))
        })
        .await
    }

    async fn get_snapshot(&self, _: &Cx, name: &str, of: Option<&Volume>) -> Outcome<Volume> {
        self.read("get_snapshot", |objects, this| {
            let of = of.map(|volume| volume.id.clone());
            let mut all = objects.snapshots.iter();
            all.find(|(_, disk)| disk.name == name && (of.is_none() || disk.of == of))
                .map(|(id, disk)| this.show(objects, id, disk))
                .ok_or_else(|| Failure::not_found(format!("snapshot {name}")))
        })
    }

    async fn snapshots(&self, _: &Cx, of: Option<&Volume>) -> Outcome<Vec<Volume>> {
        self.read("snapshots", |objects, this| {
            let of = of.map(|volume| volume.id.clone());
            let all = objects.snapshots.iter();
            let all = all.filter(|(_, disk)| of.is_none() || disk.of == of);
            Ok(all.map(|(id, disk)| this.show(objects, id, disk)).collect())
        })
    }

    async fn delete_snapshot(&self, _: &Cx, snapshot: &Volume) -> Outcome<()> {
        self.change("delete_snapshot", |state, _| {
            let hangs = |disk: &Disk| disk.origin.as_ref() == Some(&snapshot.id);
            if state.now.volumes.values().any(hangs) {
                return Err(Failure::new(Class::InUse).words("the snapshot has dependent clones"));
            }
            state.now.texts.remove(&snapshot.id);
            let found = state.now.snapshots.remove(&snapshot.id);
            found.map(drop).ok_or_else(|| Failure::not_found("the snapshot"))
        })
        .await
    }

    async fn restore(&self, _: &Cx, volume: &Volume, snapshot: &Volume) -> Outcome<()> {
        self.change("restore", |state, _| {
            let from = state
                .now
                .snapshots
                .get(&snapshot.id)
                .cloned()
                .ok_or_else(|| Failure::not_found("the snapshot"))?;
            let disk = state
                .now
                .volumes
                .get_mut(&volume.id)
                .ok_or_else(|| Failure::not_found("the volume"))?;
            (disk.size, disk.content) = (from.size, from.content);
            Ok(())
        })
        .await
    }

    async fn clone_of(&self, _: &Cx, source: &Volume, new: &New<'_>) -> Outcome<Volume> {
        self.change("clone_of", |state, habits| {
            state.check_name(new.name, habits)?;
            let dependent = habits.capabilities.clone == CloneKind::Dependent;
            let all = &state.now;
            let from = all.snapshots.get(&source.id);
            let from = if dependent { from } else { from.or_else(|| all.volumes.get(&source.id)) };
            let from = from.cloned().ok_or_else(|| Failure::not_found("the source"))?;
            let origin = dependent.then(|| source.id.clone());
            let id = state.add(new, from.content, origin, habits);
            if let Some(disk) = state.now.volumes.get_mut(&id) {
                disk.size = from.size;
            }
            state
                .now
                .volumes
                .get(&id)
                .map(|disk| self.show(&state.now, &id, disk))
                .ok_or_else(|| Failure::not_found("the clone"))
        })
        .await
    }

    async fn promote(&self, _: &Cx, clone: &Volume) -> Outcome<()> {
        self.change("promote", |state, _| {
            let disk = state.now.volumes.get(&clone.id);
            let Some(origin) = disk.and_then(|disk| disk.origin.clone()) else {
                return Err(Failure::new(Class::NotFound).words("there is no such clone"));
            };
            let Some(at) = state.now.snapshots.get(&origin).cloned() else { return Ok(()) };
            if let Some(parent) = at.of.as_ref().and_then(|id| state.now.volumes.get_mut(id)) {
                let older = parent.origin.replace(origin);
                if let Some(disk) = state.now.volumes.get_mut(&clone.id) {
                    disk.origin = older;
                }
            }
            // It, and what is older, belongs to the clone from now on, and has another path.
            let moved = state.now.snapshots.iter();
            let moved = moved.filter(|(_, disk)| disk.of == at.of && disk.order <= at.order);
            for id in moved.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
                let new = state.id();
                if let Some(mut disk) = state.now.snapshots.remove(&id) {
                    disk.of = Some(clone.id.clone());
                    state.now.snapshots.insert(new.clone(), disk);
                }
                for disk in state.now.volumes.values_mut() {
                    if disk.origin.as_ref() == Some(&id) {
                        disk.origin = Some(new.clone());
                    }
                }
            }
            Ok(())
        })
        .await
    }

    async fn describe(&self, _: &Cx, volume: &Volume, metadata: &str) -> Outcome<()> {
        self.change("describe", |state, habits| {
            let all = &mut state.now;
            let disk = match all.volumes.get_mut(&volume.id) {
                Some(disk) => disk,
                None => all
                    .snapshots
                    .get_mut(&volume.id)
                    .ok_or_else(|| Failure::not_found("the volume"))?,
            };
            if matches!(habits.capabilities.metadata, MetadataPlace::Apart { .. }) {
                all.texts.insert(volume.id.clone(), metadata.to_owned());
            } else {
                disk.text = Some(metadata.to_owned());
            }
            Ok(())
        })
        .await
    }

    async fn descriptions(&self, _: &Cx, of: Option<&Volume>) -> Outcome<BTreeMap<String, String>> {
        self.read("descriptions", |objects, _| {
            let mut texts = objects.texts.clone();
            texts.retain(|id, _| of.is_none_or(|volume| volume.id == *id));
            Ok(texts)
        })
    }
}

impl Masking for MemoryArray {
    async fn map(&self, _: &Cx, volume: &Volume, to: &Initiator) -> Outcome<Mapping> {
        self.change("map", |state, habits| {
            let all = &mut state.now;
            let disk = match all.volumes.get_mut(&volume.id) {
                Some(disk) => disk,
                None => all
                    .snapshots
                    .get_mut(&volume.id)
                    .ok_or_else(|| Failure::not_found("the volume"))?,
            };
            disk.hosts.insert(to.iqn.clone());
            let lun = match habits.capabilities.lun {
                LunAddressing::Chosen { first, .. } => first,
                LunAddressing::TargetPerVolume { lun } => lun,
            };
            let target = Target {
                portal: "10.0.0.1:3260".to_owned(),
                iqn: "iqn.2001-05.example:a".to_owned(),
            };
            Ok(Mapping { lun, scsi_id: format!("36{}", volume.id), targets: vec![target] })
        })
        .await
    }

    async fn unmap(&self, _: &Cx, volume: &Volume, from: &Initiator) -> Outcome<()> {
        self.change("unmap", |state, _| {
            if state.connected.contains_key(&volume.id) {
                let violation = format!("{} was unmapped while it was connected", volume.name);
                state.violations.push(violation);
            }
            let all = &mut state.now;
            let disk =
                all.volumes.get_mut(&volume.id).or_else(|| all.snapshots.get_mut(&volume.id));
            if let Some(disk) = disk {
                disk.hosts.remove(&from.iqn);
            }
            Ok(())
        })
        .await
    }

    async fn mappings(&self, _: &Cx, volume: &Volume) -> Outcome<Vec<String>> {
        self.read("mappings", |objects, _| {
            let disk = objects.volumes.get(&volume.id);
            Ok(disk.map(|disk| disk.hosts.iter().cloned().collect()).unwrap_or_default())
        })
    }
}
