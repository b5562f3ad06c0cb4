//! LUNs, their snapshots and clones: a request builder for each primitive.

use array_kit::array::{
    Array, Capabilities, CloneKind, DeleteKind, Group, Identity, Initiator, LunAddressing, Mapping,
    MetadataPlace, New, Part, Pool, SnapshotScope, Volume,
};
use array_kit::http::Request;
use array_kit::ledger::ResizeKind;
use array_kit::names::{Codec, NameRule, Role};
use array_kit::outcome::{Class, Failure, OrAbsent as _, Outcome};
use array_kit::qos::QosRule;
use array_kit::size::SizeRule;
use plugin_sdk::Cx;
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::model::vdi::Qos;
use plugin_sdk::model::{Bytes, SrUuid};
use plugin_sdk::tokio::sync::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{Api, Cluster, cluster};
use crate::object::{
    DISK, FIELDS, Lun, MEGABYTE, Named, SNAPSHOT, TEXT, is_snapshot, policy, uuid,
};
use crate::san::Door;

const LUNS: &str = "/api/storage/luns";
const VOLUMES: &str = "/api/storage/volumes";
const POLICIES: &str = "/api/storage/qos/policies";

/// Both UUIDs in hexadecimal: paths of LUNs have 255 characters.
pub const NAMES: NameRule = NameRule::new(80);

const CAPABILITIES: Capabilities = Capabilities {
    names: NAMES,
    unique_names: true,
    // The array rounds sizes up to a geometry that it does not tell: 300 GiB become 39 MiB more.
    size: SizeRule {
        slack: Bytes(64 << 20),
        ..SizeRule::new(Bytes(4096), Bytes(4096), Bytes(140_737_488_355_328))
    },
    resize: ResizeKind::Absolute,
    clone: CloneKind::Independent,
    snapshots: SnapshotScope::Volume,
    max_snapshots: None,
    group_snapshots: true,
    delete: DeleteKind::Immediate,
    delete_takes_snapshots: false,
    restore_drops_newer: false,
    lun: LunAddressing::Chosen { first: 0, last: 4095 },
    metadata: MetadataPlace::AtCreate { limit: TEXT },
};

/// An SVM of an ONTAP, opened for one SR in a FlexVol.
pub struct Ontap {
    pub(crate) api: Api,
    volume: String,
    /// Where a FlexVol is made that is not there, and how large.
    aggregate: Option<(String, Bytes)>,
    pub(crate) sr: SrUuid,
    pub(crate) door: Mutex<Option<Door>>,
    /// The UUID of the FlexVol, once it was asked for.
    flexvol: Mutex<Option<String>>,
}

/// A FlexVol.
#[derive(Debug, Deserialize)]
pub(crate) struct FlexVol {
    uuid: String,
    pub(crate) name: String,
    #[serde(default)]
    comment: String,
    #[serde(default)]
    space: Space,
}

#[derive(Debug, Default, Deserialize)]
struct Space {
    #[serde(default)]
    size: u64,
    #[serde(default)]
    available: u64,
}

impl FlexVol {
    pub(crate) fn pool(&self) -> Pool {
        let used = Bytes(self.space.size.saturating_sub(self.space.available));
        Pool { name: self.name.clone(), size: Bytes(self.space.size), used }
    }
}

/// FlexVols of a name, which may have wildcards.
pub(crate) async fn flexvols(api: &Api, cx: &Cx, name: &str) -> Outcome<Vec<FlexVol>> {
    let request = Request::get("volumes", VOLUMES).query("name", name);
    let fields = "uuid,name,comment,space.size,space.available";
    api.records(cx, "volumes", request.query("fields", fields)).await
}

/// LUNs by their paths, which may have wildcards.
pub(crate) async fn luns(
    api: &Api,
    cx: &Cx,
    what: &'static str,
    path: &str,
) -> Outcome<Vec<Volume>> {
    let request = Request::get(what, LUNS).query("name", path).query("fields", FIELDS);
    let all: Vec<Lun> = api.records(cx, what, request).await?;
    Ok(all.into_iter().map(Lun::volume).collect())
}

impl Ontap {
    pub(crate) fn new(api: Api, volume: String, aggregate: Option<(String, Bytes)>) -> Self {
        let sr = SrUuid(Uuid::nil());
        Self { api, volume, aggregate, sr, door: Mutex::default(), flexvol: Mutex::default() }
    }

    fn path(&self, name: &str) -> String {
        format!("/vol/{}/{name}", self.volume)
    }

    fn svm(&self) -> Value {
        json!({ "name": self.api.svm() })
    }

    async fn one(&self, cx: &Cx, what: &'static str, name: &str) -> Outcome<Volume> {
        let found = luns(&self.api, cx, what, &self.path(name)).await?.into_iter().next();
        found.ok_or_else(|| Failure::not_found(format!("LUN {name}")))
    }

    /// The FlexVol, if it is there.
    async fn flexvol(&self, cx: &Cx) -> Outcome<Option<FlexVol>> {
        Ok(flexvols(&self.api, cx, &self.volume).await?.into_iter().next())
    }

    /// The UUID of the FlexVol, which a snapshot of it wants.
    async fn flexvol_uuid(&self, cx: &Cx) -> Outcome<String> {
        let mut known = self.flexvol.lock().await;
        if let Some(uuid) = known.as_ref() {
            return Ok(uuid.clone());
        }
        let found = self.flexvol(cx).await?;
        let found = found.ok_or_else(|| Failure::not_found(format!("volume {}", self.volume)))?;
        Ok(known.insert(found.uuid).clone())
    }

    /// What tells a FlexVol that was made for an SR.
    fn mark(&self) -> String {
        format!("storage-manager {}", self.sr)
    }

    async fn make_flexvol(&self, cx: &Cx, aggregate: &str, size: Bytes) -> Outcome<()> {
        let body = json!({
            "name": self.volume, "aggregates": [{ "name": aggregate }], "size": size.0,
            "guarantee": { "type": "none" }, "comment": self.mark(),
            // Nobody restores the FlexVol, and its snapshots keep what disks have given back.
            "snapshot_policy": { "name": "none" }, "svm": self.svm(),
        });
        let request = Request::post("volume_create", VOLUMES).json(&body);
        match self.api.finish(cx, "volume_create", request).await {
            Err(failure) if failure.class == Class::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Removes the FlexVol that was made for this SR, if nothing but the record was in it. A listing
    /// may still show that.
    async fn remove_flexvol(&self, cx: &Cx, record: &str) -> Outcome<()> {
        let Some(flexvol) = self.flexvol(cx).await? else { return Ok(()) };
        let left = luns(&self.api, cx, "list", &self.path("*")).await?;
        if flexvol.comment != self.mark() || left.iter().any(|lun| lun.name != record) {
            return Ok(());
        }
        let request = Request::delete("volume_delete", VOLUMES).segment(&flexvol.uuid);
        self.api.finish(cx, "volume_delete", request).await.or_absent().map(drop)
    }

    async fn create_lun(&self, cx: &Cx, new: &New<'_>) -> Outcome<Option<Lun>> {
        let body = json!({
            "name": self.path(new.name),
            "os_type": "linux",
            "space": {
                "size": new.size.0,
                "guarantee": { "requested": false },
                "scsi_thin_provisioning_support_enabled": true,
            },
            "attributes": [{ "name": DISK, "value": format!("{} {}", new.name, new.metadata) }],
            "svm": self.svm(),
        });
        self.api.made(cx, Request::post("create", LUNS).json(&body)).await
    }

    /// A LUN that shares the blocks of another one, or of one in a snapshot of the FlexVol.
    async fn clone_lun(
        &self,
        cx: &Cx,
        operation: &'static str,
        from: &str,
        name: &str,
    ) -> Outcome<Volume> {
        let body = json!({
            "name": self.path(name), "clone": { "source": { "name": self.path(from) } },
            "svm": self.svm(),
        });
        match self.api.made::<Lun>(cx, Request::post(operation, LUNS).json(&body)).await? {
            Some(made) => Ok(made.volume()),
            None => self.one(cx, operation, name).await,
        }
    }

    /// Keeps a text that begins with the LUN it is about.
    async fn set_attribute(
        &self,
        cx: &Cx,
        volume: &Volume,
        name: &str,
        text: &str,
        there: bool,
    ) -> Outcome<()> {
        let value = format!("{} {text}", volume.name);
        let at = |request: Request| request.segment(uuid(volume)).then("/attributes");
        let add = at(Request::post("attribute_add", LUNS));
        let add = add.json(&json!({ "name": name, "value": value }));
        let set =
            at(Request::patch("describe", LUNS)).segment(name).json(&json!({ "value": value }));
        let (first, second, class) =
            if there { (set, add, Class::NotFound) } else { (add, set, Class::AlreadyExists) };
        match self.api.send(cx, first).await {
            // 5374931: the LUN is there and has no such attribute.
            Err(failure)
                if failure.class == class
                    && (!there || failure.code.as_deref() == Some("5374931")) =>
            {
                self.api.send(cx, second).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    /// Removes a policy of limits that no LUN has any more. It is of no consequence if it stays.
    async fn drop_policy(&self, cx: &Cx, qos: &Qos) -> Outcome<()> {
        let Some(name) = policy(qos) else { return Ok(()) };
        let request = Request::get("policies", POLICIES).query("name", &name);
        let request = request.query("fields", "uuid,name,object_count");
        for found in self.api.records::<Named>(cx, "policies", request).await? {
            if found.object_count == Some(0) {
                let request = Request::delete("policy_delete", POLICIES).segment(&found.uuid);
                if let Err(failure) = self.api.finish(cx, "policy_delete", request).await {
                    plugin_sdk::tracing::info!(policy = name, "a policy stays: {failure}");
                }
            }
        }
        Ok(())
    }
}

impl Array for Ontap {
    fn capabilities(&self) -> &Capabilities {
        &CAPABILITIES
    }

    fn assign(&mut self, sr: SrUuid) {
        self.sr = sr;
    }

    async fn identity(&self, cx: &Cx) -> Outcome<Identity> {
        let Cluster { name, uuid, version } = self.api.json(cx, cluster("identity")).await?;
        let version = format!("{}.{}.{}", version.generation, version.major, version.minor);
        Ok(Identity { vendor: "NetApp".to_owned(), model: name, serial: uuid, version })
    }

    async fn pools(&self, cx: &Cx) -> Outcome<Vec<Pool>> {
        Ok(self.flexvol(cx).await?.iter().map(FlexVol::pool).collect())
    }

    async fn create(&self, cx: &Cx, new: &New<'_>) -> Outcome<Volume> {
        let mut made = self.create_lun(cx, new).await;
        let is_record = NAMES.parse(new.name).is_some_and(|named| named.role == Role::Record);
        if let (Err(failure), true, Some((aggregate, size))) = (&made, is_record, &self.aggregate)
            && failure.class == Class::NotFound
        {
            self.make_flexvol(cx, aggregate, *size).await?;
            made = self.create_lun(cx, new).await;
        }
        let made = made.map_err(|failure| {
            if failure.class != Class::NotFound {
                return failure;
            }
            let fact = format!("the SVM {} has no volume {}", self.api.svm(), self.volume);
            failure.fact(fact).hint("look at svm and volume of the device configuration")
        })?;
        match made {
            Some(made) => Ok(Volume { metadata: Some(new.metadata.to_owned()), ..made.volume() }),
            None => self.one(cx, "create", new.name).await,
        }
    }

    async fn get(&self, cx: &Cx, name: &str) -> Outcome<Volume> {
        self.one(cx, "get", name).await
    }

    async fn list(&self, cx: &Cx, prefix: &str) -> Outcome<Vec<Volume>> {
        luns(&self.api, cx, "list", &format!("{}*", self.path(prefix))).await
    }

    async fn resize(
        &self,
        cx: &Cx,
        volume: &Volume,
        from: Bytes,
        to: Bytes,
    ) -> Outcome<Option<Bytes>> {
        let body = json!({ "space": { "size": to.0 } });
        let request = Request::patch("resize", LUNS).segment(uuid(volume)).json(&body);
        let reply = self.api.send(cx, request).await?;
        // It does not say what it made of the size; refused is only the one that it has.
        Ok((!reply.is_success()).then_some(from))
    }

    async fn delete(&self, cx: &Cx, volume: &Volume) -> Outcome<()> {
        let request = Request::delete("delete", LUNS).segment(uuid(volume));
        let gone = self.api.send(cx, request).await.or_absent()?.is_none();
        self.drop_policy(cx, &volume.qos).await.map_err(Failure::partly)?;
        let is_record = NAMES.parse(&volume.name).is_some_and(|named| named.role == Role::Record);
        if is_record && self.aggregate.is_some() {
            self.remove_flexvol(cx, &volume.name).await.map_err(Failure::partly)?;
        }
        if gone { Err(Failure::not_found(format!("LUN {}", volume.name))) } else { Ok(()) }
    }

    async fn snapshot(&self, cx: &Cx, volume: &Volume, name: &str, _: &str) -> Outcome<Volume> {
        if volume.metadata.is_none() {
            // The snapshot is told by it which disk it is of.
            self.set_attribute(cx, volume, DISK, "", true).await?;
        }
        let made = self.clone_lun(cx, "snapshot", &volume.name, name).await?;
        Ok(Volume { snapshot_of: Some(volume.name.clone()), metadata: None, ..made })
    }

    async fn prepare_group(&self, cx: &Cx, _: &Group<'_>) -> Outcome<()> {
        self.flexvol_uuid(cx).await.map(drop)
    }

    async fn snapshot_group(&self, cx: &Cx, group: &Group<'_>) -> Outcome<Vec<Volume>> {
        let flexvol = self.flexvol_uuid(cx).await?;
        let request = Request::post("group", VOLUMES).segment(&flexvol).then("/snapshots");
        self.api.finish(cx, "group", request.json(&json!({ "name": group.name }))).await?;
        let mut made = Vec::new();
        for Part { volume, name, .. } in group.parts {
            let from = format!(".snapshot/{}/{}", group.name, volume.name);
            let clone = self.clone_lun(cx, "group_part", &from, name).await;
            let clone = clone.map_err(Failure::partly)?;
            let snapshot_of = Some(volume.name.clone());
            made.push(Volume { snapshot_of, metadata: None, ..clone });
        }
        Ok(made)
    }

    async fn release_group(&self, cx: &Cx, group: &Group<'_>) -> Outcome<()> {
        let flexvol = self.flexvol_uuid(cx).await?;
        let at = |request: Request| request.segment(&flexvol).then("/snapshots");
        let request = at(Request::get("snapshots", VOLUMES)).query("name", group.name);
        let found =
            self.api.records::<Named>(cx, "snapshots", request.query("fields", "uuid,name"));
        for snapshot in found.await? {
            let request = at(Request::delete("release", VOLUMES)).segment(&snapshot.uuid);
            self.api.finish(cx, "release", request).await.or_absent()?;
        }
        Ok(())
    }

    fn qos_rule(&self) -> Option<QosRule> {
        Some(QosRule {
            operations: Some(1..=2_147_483_647),
            bytes: Some(MEGABYTE..=4_194_303 * MEGABYTE),
            bytes_unit: MEGABYTE,
            burst: false,
        })
    }

    async fn set_qos(&self, cx: &Cx, volume: &Volume, qos: &Qos) -> Outcome<()> {
        let name = policy(qos);
        if let Some(name) = &name {
            let rate = |rate: Option<plugin_sdk::model::vdi::Rate>, unit: u64| {
                rate.map_or(0, |rate| rate.per_second / unit)
            };
            let body = json!({
                "name": name, "svm": self.svm(),
                "fixed": {
                    "max_throughput_iops": rate(qos.operations, 1),
                    "max_throughput_mbps": rate(qos.bytes, MEGABYTE),
                    // For each of its LUNs, not for all of them together.
                    "capacity_shared": false,
                },
            });
            let request = Request::post("policy_create", POLICIES).json(&body);
            match self.api.finish(cx, "policy_create", request).await {
                Err(failure) if failure.class == Class::AlreadyExists => {}
                other => other?,
            }
        }
        let body = json!({ "qos_policy": { "name": name.unwrap_or_default() } });
        let request = Request::patch("qos", LUNS).segment(uuid(volume)).json(&body);
        self.api.send(cx, request).await?;
        if volume.qos == *qos { Ok(()) } else { self.drop_policy(cx, &volume.qos).await }
    }

    async fn get_snapshot(&self, cx: &Cx, name: &str, _: Option<&Volume>) -> Outcome<Volume> {
        if !is_snapshot(name) {
            return Err(Failure::not_found(format!("snapshot {name}")));
        }
        self.one(cx, "get_snapshot", name).await
    }

    async fn snapshots(&self, cx: &Cx, of: Option<&Volume>) -> Outcome<Vec<Volume>> {
        let prefix = match Codec::new(NAMES, self.sr) {
            Ok(codec) => codec.prefix(Role::Snapshot),
            Err(error) => return Err(error.into()),
        };
        let mut all = luns(&self.api, cx, "snapshots", &format!("{}*", self.path(&prefix))).await?;
        if let Some(volume) = of {
            all.retain(|one| one.snapshot_of.as_ref() == Some(&volume.name));
        }
        Ok(all)
    }

    async fn delete_snapshot(&self, cx: &Cx, snapshot: &Volume) -> Outcome<()> {
        let request = Request::delete("delete_snapshot", LUNS).segment(uuid(snapshot));
        self.api.send(cx, request).await.map(drop)
    }

    async fn restore(&self, cx: &Cx, volume: &Volume, snapshot: &Volume) -> Outcome<()> {
        let mut body = json!({ "clone": { "source": { "name": self.path(&snapshot.name) } } });
        // The reference does not count the policy among what an overwritten LUN keeps.
        if let (Some(policy), Some(body)) = (policy(&volume.qos), body.as_object_mut()) {
            body.insert("qos_policy".to_owned(), json!({ "name": policy }));
        }
        let request = Request::patch("restore", LUNS).segment(uuid(volume)).json(&body);
        self.api.send(cx, request).await.map(drop)
    }

    async fn clone_of(&self, cx: &Cx, source: &Volume, new: &New<'_>) -> Outcome<Volume> {
        let made = self.clone_lun(cx, "clone", &source.name, new.name).await?;
        // What it has is about its source.
        Ok(Volume { metadata: None, ..made })
    }

    async fn describe(&self, cx: &Cx, volume: &Volume, metadata: &str) -> Outcome<()> {
        let snapshot = volume.snapshot_of.is_some();
        let name = if snapshot { SNAPSHOT } else { DISK };
        let there = !snapshot || volume.metadata.is_some();
        self.set_attribute(cx, volume, name, metadata, there).await
    }

    async fn grant(&self, cx: &Cx, to: &Initiator) -> Outcome<()> {
        self.open_door(cx, to).await.map(drop)
    }

    async fn revoke(&self, cx: &Cx, from: &Initiator) -> Outcome<()> {
        self.close_door(cx, from).await
    }

    async fn map(&self, cx: &Cx, volume: &Volume, to: &Initiator) -> Outcome<Mapping> {
        self.map_lun(cx, volume, to).await
    }

    async fn unmap(&self, cx: &Cx, volume: &Volume, from: &Initiator) -> Outcome<()> {
        self.unmap_lun(cx, volume, from).await
    }

    async fn mappings(&self, cx: &Cx, volume: &Volume) -> Outcome<Vec<String>> {
        self.mapped_to(cx, volume).await
    }

    fn is_denied(&self) -> bool {
        self.api.is_denied()
    }
}
