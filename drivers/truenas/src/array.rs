//! Volumes and snapshots: a request builder for each primitive.

use array_kit::array::{
    Array, Capabilities, CloneKind, DeleteKind, Group, GroupNaming, Identity, Initiator,
    LunAddressing, Mapping, Masking, MetadataPlace, New, Pool, SnapshotScope, Volume,
};
use array_kit::ledger::ResizeKind;
use array_kit::names::{Codec, NameRule, Role};
use array_kit::outcome::{Class, Failure, OrAbsent as _, Outcome};
use array_kit::pages::by_offset;
use array_kit::size::SizeRule;
use plugin_sdk::Cx;
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::model::{Bytes, SrUuid};
use plugin_sdk::tokio::sync::Mutex;
use serde_json::{Value, json};

use crate::api::{Api, Call, PAGE};
use crate::iscsi::Door;
use crate::object::{Dataset, PROPERTY, Snapshot, TEXT};

pub(crate) const DATASET: &str = "pool.dataset";
pub(crate) const SNAPSHOT: &str = "zfs.snapshot";

/// 63 characters: the name of an extent has 64 at most, and is that of its volume.
pub(crate) const NAMES: NameRule = NameRule::new(63);

/// The block of our volumes: what TrueNAS itself proposes.
const BLOCK: (&str, u64) = ("16K", 16 << 10);

const CAPABILITIES: Capabilities = Capabilities {
    names: NAMES,
    unique_names: true,
    size: SizeRule::new(Bytes(BLOCK.1), Bytes(BLOCK.1), Bytes(1 << 60)),
    resize: ResizeKind::Absolute,
    clone: CloneKind::Dependent,
    snapshots: SnapshotScope::Within,
    max_snapshots: None,
    group_snapshots: true,
    delete: DeleteKind::Immediate,
    // The array refuses, because no delete here is recursive.
    delete_takes_snapshots: false,
    restore_drops_newer: true,
    lun: LunAddressing::Chosen { first: 0, last: 1023 },
    metadata: MetadataPlace::AtCreate { limit: TEXT },
};

/// A TrueNAS, opened for one SR.
///
/// The SR is a dataset, `<pool>/<record>`; its volumes lie in that, `<pool>/<record>/<volume>`.
pub struct TrueNas {
    pub(crate) api: Api,
    /// The dataset that SRs lie in.
    pub(crate) root: String,
    /// The dataset of the SR.
    container: String,
    pub(crate) sr: SrUuid,
    /// The number of the portal, if it is configured.
    pub(crate) portal: Option<u64>,
    /// The address of the API, for portals that listen everywhere.
    pub(crate) host: String,
    /// A group that is about to be taken, by name, and the volumes that are not in it.
    others: Mutex<Option<(String, Vec<String>)>>,
    /// What this host needs at the array, once it was found or made.
    pub(crate) door: Mutex<Option<Door>>,
}

impl TrueNas {
    pub(crate) fn new(api: Api, root: String, portal: Option<u64>, host: String) -> Self {
        let (container, sr) = (String::new(), SrUuid(Uuid::nil()));
        let (others, door) = (Mutex::new(None), Mutex::new(None));
        Self { api, root, container, sr, portal, host, others, door }
    }

    /// Where a volume lies, or the dataset of the SR itself.
    fn path(&self, name: &str) -> String {
        match NAMES.parse(name) {
            Some(named) if named.role == Role::Record => format!("{}/{name}", self.root),
            _ => format!("{}/{name}", self.container),
        }
    }

    async fn datasets(&self, cx: &Cx, path: &str) -> Outcome<Option<Dataset>> {
        let call = Call::query("get", DATASET, &[("id", "=", json!(path))]).flat();
        Ok(self.api.run::<Vec<Dataset>>(cx, &call).await?.into_iter().next())
    }

    /// The volumes of the SR that are not in a group.
    async fn others(&self, cx: &Cx, group: &Group<'_>) -> Outcome<Vec<String>> {
        let all = self.list(cx, "").await?;
        let member = |id: &str| group.parts.iter().any(|part| part.volume.id == id);
        Ok(all.into_iter().map(|one| one.id).filter(|id| !member(id)).collect())
    }

    async fn all_snapshots(&self, cx: &Cx, prefix: &str) -> Outcome<Vec<Volume>> {
        let call = &Call::query("snapshots", SNAPSHOT, &[("id", "^", json!(prefix))]);
        let fetch = |offset| async move {
            self.api.run::<Vec<Snapshot>>(cx, &call.clone().page(offset)).await
        };
        let all = by_offset("snapshots", PAGE, |one: &Snapshot| &one.id, fetch).await?;
        Ok(all.into_iter().map(|snapshot| snapshot.volume(Bytes(0))).collect())
    }
}

impl Array for TrueNas {
    fn capabilities(&self) -> &Capabilities {
        &CAPABILITIES
    }

    fn assign(&mut self, sr: SrUuid) {
        self.sr = sr;
        if let Ok(codec) = Codec::new(NAMES, sr) {
            self.container = format!("{}/{}", self.root, codec.name(Role::Record, sr.0));
        }
    }

    async fn identity(&self, cx: &Cx) -> Outcome<Identity> {
        let info: Value = self.api.run(cx, &Call::config("identity", "system", "info")).await?;
        let text = |key: &str| info.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (vendor, model) = ("TrueNAS".to_owned(), text("system_product"));
        Ok(Identity { vendor, model, serial: text("system_serial"), version: text("version") })
    }

    async fn pools(&self, cx: &Cx) -> Outcome<Vec<Pool>> {
        // Of the dataset, not of the pool: that counts the parity of its disks as space.
        let Some(root) = self.datasets(cx, &self.root).await? else { return Ok(Vec::new()) };
        let (used, free) = root.space();
        Ok(vec![Pool { name: root.id, size: Bytes(used.0.saturating_add(free.0)), used }])
    }

    async fn create(&self, cx: &Cx, new: &New<'_>) -> Outcome<Volume> {
        let path = self.path(new.name);
        let properties = json!([{ "key": PROPERTY, "value": new.metadata }]);
        let body = if NAMES.parse(new.name).is_some_and(|named| named.role == Role::Record) {
            json!({ "name": path, "type": "FILESYSTEM", "user_properties": properties })
        } else {
            json!({
                "name": path,
                "type": "VOLUME",
                "volsize": new.size.0,
                "volblocksize": BLOCK.0,
                "sparse": true,
                "user_properties": properties,
            })
        };
        let call = Call::create("create", DATASET, body);
        let made: Dataset = self.api.run(cx, &call).await.map_err(|failure| {
            if failure.class != Class::NotFound {
                return failure;
            }
            let fact = format!("there is no dataset to make {path} in");
            failure.fact(fact).hint("look at the pool of the device configuration")
        })?;
        Ok(Volume { metadata: Some(new.metadata.to_owned()), ..made.volume() })
    }

    async fn get(&self, cx: &Cx, name: &str) -> Outcome<Volume> {
        let found = self.datasets(cx, &self.path(name)).await?;
        found.map(Dataset::volume).ok_or_else(|| Failure::not_found(format!("volume {name}")))
    }

    async fn list(&self, cx: &Cx, prefix: &str) -> Outcome<Vec<Volume>> {
        let prefix = json!(format!("{}/{prefix}", self.container));
        let call = &Call::query("list", DATASET, &[("id", "^", prefix)]).flat();
        let fetch = |offset| async move {
            self.api.run::<Vec<Dataset>>(cx, &call.clone().page(offset)).await
        };
        let all = by_offset("volumes", PAGE, |one: &Dataset| &one.id, fetch).await?;
        let ours = all.into_iter().filter(|one| one.kind == "VOLUME" && !one.name().is_empty());
        Ok(ours.map(Dataset::volume).collect())
    }

    async fn resize(&self, cx: &Cx, volume: &Volume, to: Bytes) -> Outcome<Option<Bytes>> {
        let call = Call::update("resize", DATASET, &json!(volume.id), json!({ "volsize": to.0 }));
        let size = self.api.run::<Dataset>(cx, &call).await?.volume().size;
        // Not all versions answer with what they made of it.
        Ok(Some(if size.0 == 0 { to } else { size }))
    }

    async fn delete(&self, cx: &Cx, volume: &Volume) -> Outcome<()> {
        // The array would remove the extent with the volume, whoever uses it.
        if volume.name.starts_with("smv") {
            self.remove_idle_extent(cx, volume).await?;
        }
        let options = json!({ "recursive": false, "force": false });
        let (id, more) = (json!(volume.id), vec![options.clone()]);
        self.api.just(cx, &Call::delete("delete", DATASET, &id, &options, more)).await
    }

    async fn snapshot(&self, cx: &Cx, volume: &Volume, new: &New<'_>) -> Outcome<Volume> {
        let (name, metadata) = (new.name, new.metadata);
        let mut body = json!({ "dataset": volume.id, "name": name, "recursive": false });
        if let Some(body) = body.as_object_mut()
            && !metadata.is_empty()
        {
            body.insert("properties".to_owned(), json!({ PROPERTY: metadata }));
        }
        let call = Call::create("snapshot", SNAPSHOT, body);
        let made: Snapshot = self.api.run(cx, &call).await?;
        let made = made.volume(volume.size);
        Ok(Volume { metadata: Some(metadata.to_owned()), ..made })
    }

    fn group_naming(&self) -> GroupNaming {
        GroupNaming::Shared
    }

    async fn prepare_group(&self, cx: &Cx, group: &Group<'_>) -> Outcome<()> {
        let others = self.others(cx, group).await?;
        *self.others.lock().await = Some((group.name.to_owned(), others));
        Ok(())
    }

    async fn snapshot_group(&self, cx: &Cx, group: &Group<'_>) -> Outcome<Vec<Volume>> {
        let known = self.others.lock().await.take().filter(|(name, _)| name == group.name);
        let others = match known {
            Some((_, others)) => others,
            None => self.others(cx, group).await?,
        };
        let name = group.parts.first().map(|part| part.name.as_str()).unwrap_or_default();
        // One transaction of ZFS takes a dataset with all below it; the array leaves the others out.
        let body = json!({
            "dataset": self.container, "name": name, "recursive": true, "exclude": others,
        });
        self.api.just(cx, &Call::create("snapshot_group", SNAPSHOT, body)).await?;
        let made = group.parts.iter().map(|part| Volume {
            id: format!("{}@{name}", part.volume.id),
            name: name.to_owned(),
            size: part.volume.size,
            snapshot_of: Some(part.volume.name.clone()),
            ..Volume::default()
        });
        Ok(made.collect())
    }

    async fn release_group(&self, cx: &Cx, group: &Group<'_>) -> Outcome<()> {
        let Some(named) = NAMES.parse(group.name) else { return Ok(()) };
        let tail = format!("@{}", Codec::inner(Role::Group, named.uuid));
        // What the dataset itself got would keep the SR from being destroyed; a volume that was made
        // after we had looked got one as well.
        let mut strays = vec![format!("{}{tail}", self.container)];
        let name = ("snapshot_name", "=", json!(tail.trim_start_matches('@')));
        let call = Call::query("group_strays", SNAPSHOT, &[name]);
        let below = format!("{}/", self.container);
        let member =
            |id: &str| group.parts.iter().any(|one| id == format!("{}{tail}", one.volume.id));
        let all: Vec<Snapshot> = self.api.run(cx, &call).await?;
        let of_others = all.into_iter().map(|one| one.id);
        strays.extend(of_others.filter(|id| id.starts_with(&below) && !member(id)));
        for id in strays {
            let stray = Volume { id, ..Volume::default() };
            self.delete_snapshot(cx, &stray).await.or_absent()?;
        }
        Ok(())
    }

    async fn get_snapshot(&self, cx: &Cx, name: &str, of: Option<&Volume>) -> Outcome<Volume> {
        let filter = match of {
            Some(volume) => ("id", "=", json!(format!("{}@{name}", volume.id))),
            None => ("snapshot_name", "=", json!(name)),
        };
        let call = Call::query("get_snapshot", SNAPSHOT, &[filter]);
        let found: Vec<Snapshot> = self.api.run(cx, &call).await?;
        let ours = |one: &Snapshot| {
            one.id.strip_prefix(&self.container).is_some_and(|rest| rest.starts_with('/'))
        };
        let found = found.into_iter().find(ours);
        let found = found.ok_or_else(|| Failure::not_found(format!("snapshot {name}")))?;
        Ok(found.volume(of.map_or(Bytes(0), |volume| volume.size)))
    }

    async fn snapshots(&self, cx: &Cx, of: Option<&Volume>) -> Outcome<Vec<Volume>> {
        let prefix = match of {
            Some(volume) => format!("{}@", volume.id),
            None => format!("{}/", self.container),
        };
        self.all_snapshots(cx, &prefix).await
    }

    async fn delete_snapshot(&self, cx: &Cx, snapshot: &Volume) -> Outcome<()> {
        let options = json!({ "defer": false, "recursive": false });
        let (id, more) = (json!(snapshot.id), vec![options.clone()]);
        self.api.just(cx, &Call::delete("delete_snapshot", SNAPSHOT, &id, &options, more)).await
    }

    async fn restore(&self, cx: &Cx, _: &Volume, snapshot: &Volume) -> Outcome<()> {
        // Not recursive: the array refuses where it would have to remove newer ones.
        let options = json!({ "recursive": false, "recursive_clones": false, "force": false });
        let body = json!({ "id": snapshot.id, "options": options });
        let params = vec![json!(snapshot.id), options];
        self.api.just(cx, &Call::method("restore", SNAPSHOT, "rollback", &body, params)).await
    }

    async fn clone_of(&self, cx: &Cx, source: &Volume, new: &New<'_>) -> Outcome<Volume> {
        let path = self.path(new.name);
        let body = json!({
            "snapshot": source.id,
            "dataset_dst": path,
            "dataset_properties": { PROPERTY: new.metadata },
        });
        let params = vec![body.clone()];
        self.api.just(cx, &Call::method("clone", SNAPSHOT, "clone", &body, params)).await?;
        // The answer says no more than that it is done.
        Ok(Volume {
            id: path,
            name: new.name.to_owned(),
            size: new.size,
            origin: Some(source.id.clone()),
            metadata: Some(new.metadata.to_owned()),
            ..Volume::default()
        })
    }

    async fn promote(&self, cx: &Cx, clone: &Volume) -> Outcome<()> {
        self.api.just(cx, &Call::of_object("promote", DATASET, &clone.id, "promote")).await
    }

    async fn describe(&self, cx: &Cx, volume: &Volume, metadata: &str) -> Outcome<()> {
        let namespace = if volume.snapshot_of.is_some() { SNAPSHOT } else { DATASET };
        let property = json!({ "key": PROPERTY, "value": metadata });
        let body = json!({ "user_properties_update": [property] });
        self.api.just(cx, &Call::update("describe", namespace, &json!(volume.id), body)).await
    }

    fn is_denied(&self) -> bool {
        self.api.is_denied()
    }

    async fn close(&self, cx: &Cx) {
        self.api.close(cx).await;
    }
}

impl Masking for TrueNas {
    async fn grant(&self, cx: &Cx, to: &Initiator) -> Outcome<()> {
        self.open_door(cx, to).await.map(drop)
    }

    async fn revoke(&self, cx: &Cx, from: &Initiator) -> Outcome<()> {
        self.close_door(cx, from).await
    }

    async fn map(&self, cx: &Cx, volume: &Volume, to: &Initiator) -> Outcome<Mapping> {
        self.map_volume(cx, volume, to).await
    }

    async fn unmap(&self, cx: &Cx, volume: &Volume, from: &Initiator) -> Outcome<()> {
        self.unmap_volume(cx, volume, from).await
    }

    async fn mappings(&self, cx: &Cx, volume: &Volume) -> Outcome<Vec<String>> {
        self.mapped_to(cx, volume).await
    }
}
