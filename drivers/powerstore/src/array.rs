//! Volumes and snapshots: a request builder for each primitive.

use array_kit::array::{
    Array, Capabilities, CloneKind, DeleteKind, Group, Identity, Initiator, LunAddressing, Mapping,
    MetadataPlace, New, Pool, SnapshotScope, Volume,
};
use array_kit::http::Request;
use array_kit::ledger::ResizeKind;
use array_kit::names::{Codec, NameRule, Role};
use array_kit::outcome::{Class, Failure, OrAbsent as _, Outcome};
use array_kit::qos::QosRule;
use array_kit::size::SizeRule;
use array_kit::text;
use plugin_sdk::model::vdi::Qos;
use plugin_sdk::model::{Bytes, SrUuid};
use plugin_sdk::tokio::sync::Mutex;
use plugin_sdk::{Cx, Error, Result};
use serde_json::{Value, json};

use crate::api::{Api, path};
use crate::host::Door;
use crate::object::{Object, SELECT, SELECT_LIMITED, text as member};
use crate::qos;

/// 128 printable characters (`volume_create.name`).
pub const NAMES: NameRule = NameRule::new(128);

/// Snapshots, and the clones that are snapshots of a group.
const SNAPSHOTS: &str = "in.(Snapshot,Clone)";

/// Characters of a description (`volume_create.description`).
const ROOM: usize = 128;

const CAPABILITIES: Capabilities = Capabilities {
    names: NAMES,
    unique_names: true,
    // `volume_create.size`
    size: SizeRule::new(Bytes(8192), Bytes(1 << 20), Bytes(256 << 40)),
    resize: ResizeKind::Absolute,
    clone: CloneKind::Independent,
    snapshots: SnapshotScope::Volume,
    max_snapshots: None,
    group_snapshots: true,
    delete: DeleteKind::Immediate,
    delete_takes_snapshots: true,
    restore_drops_newer: false,
    lun: LunAddressing::Chosen { first: 0, last: 16383 },
    metadata: MetadataPlace::AtCreate { limit: ROOM },
};

/// A PowerStore, opened for one SR.
pub struct PowerStore {
    pub(crate) api: Api,
    /// Id and configured name of the appliance for new volumes, if one is configured.
    appliance: Option<(String, String)>,
    version: String,
    codec: Option<Codec>,
    /// The group whose members were all named a moment ago.
    pub(crate) named: Mutex<Option<String>>,
    /// What this host needs at the array, once it was found or made.
    pub(crate) door: Mutex<Option<Door>>,
}

impl PowerStore {
    /// Looks which release the array has, and for the appliance.
    pub(crate) async fn new(cx: &Cx, api: Api, appliance: Option<String>) -> Result<Self> {
        let query = [("select", "release_version"), ("is_cluster", "eq.true")];
        let software: Vec<Value> = api.few(cx, "version", "software_installed", &query).await?;
        let version = software.first().map(|one| member(one, "release_version").to_owned());
        let version = version.unwrap_or_default();
        if !is_since(&version, 3) {
            return Err(Error::unsupported(format!("the array has PowerStoreOS {version}"))
                .hint("this driver is for PowerStoreOS 3.0 and later"));
        }
        let appliance = match appliance {
            None => None,
            Some(wanted) => {
                let all = appliances(&api, cx).await?;
                let names: Vec<&str> = all.iter().map(|one| member(one, "name")).collect();
                let is = |one: &&Value| ["id", "name"].iter().any(|key| member(one, key) == wanted);
                let found = all.iter().find(is).map(|one| member(one, "id").to_owned());
                let found = found.ok_or_else(|| {
                    Error::config("the array has no appliance of the name that is configured")
                        .hint(format!("appliances: {}", names.join(", ")))
                })?;
                Some((found, wanted))
            }
        };
        let (named, door) = (Mutex::new(None), Mutex::new(None));
        Ok(Self { api, appliance, version, codec: None, named, door })
    }

    /// The limits of volumes came with release 4.0.
    fn has_limits(&self) -> bool {
        is_since(&self.version, 4)
    }

    /// Volumes or snapshots that match; all of them if `whole` is asked for, else what fits a page.
    async fn find(
        &self,
        cx: &Cx,
        operation: &'static str,
        [one, other]: [(&str, &str); 2],
        whole: bool,
    ) -> Outcome<Vec<Object>> {
        let select = if self.has_limits() { SELECT_LIMITED } else { SELECT };
        let query = [("select", select), one, other];
        let mut found = if whole {
            self.api.all(cx, operation, "volume", &query, Object::id).await?
        } else {
            self.api.few(cx, operation, "volume", &query).await?
        };
        found.retain(Object::is_there);
        Ok(found)
    }

    async fn found(&self, cx: &Cx, name: &str, kind: &str) -> Outcome<Object> {
        let filters = [("name", &*format!("eq.{name}")), ("type", kind)];
        let found = self.find(cx, "get", filters, false).await?;
        found.into_iter().next().ok_or_else(|| Failure::not_found(format!("volume {name}")))
    }
}

/// What a request that makes a volume of that name brings with it.
fn made(id: String, name: &str, size: Bytes, metadata: &str) -> Volume {
    let (name, metadata) = (name.to_owned(), Some(metadata.to_owned()));
    Volume { id, name, size, metadata, ..Volume::default() }
}

/// The appliances of the cluster.
pub(crate) async fn appliances(api: &Api, cx: &Cx) -> Outcome<Vec<Value>> {
    api.few(cx, "appliances", "appliance", &[("select", "id,name,model,service_tag")]).await
}

/// Whether a version begins with this number or a larger one.
fn is_since(version: &str, major: u32) -> bool {
    version
        .split('.')
        .next()
        .and_then(|own| own.parse::<u32>().ok())
        .is_some_and(|own| own >= major)
}

/// A request for what is below a volume, such as `/clone`.
fn below(operation: &'static str, volume: &Volume, verb: &str) -> Request {
    Request::post(operation, &path("volume")).segment(&volume.id).then(verb)
}

impl Array for PowerStore {
    fn capabilities(&self) -> &Capabilities {
        &CAPABILITIES
    }

    fn text_size(&self, json: &str) -> usize {
        text::size(json)
    }

    fn assign(&mut self, sr: SrUuid) {
        self.codec = Codec::new(NAMES, sr).ok();
    }

    async fn identity(&self, cx: &Cx) -> Outcome<Identity> {
        let all = appliances(&self.api, cx).await?;
        let own =
            |one: &&Value| self.appliance.as_ref().is_none_or(|(id, _)| *id == member(one, "id"));
        let own = all.iter().find(own).unwrap_or(&Value::Null);
        let text = |name: &str| member(own, name).to_owned();
        let (model, serial) = (text("model"), text("service_tag"));
        let (vendor, version) = ("DellEMC".to_owned(), self.version.clone());
        Ok(Identity { vendor, model, serial, version })
    }

    async fn pools(&self, cx: &Cx) -> Outcome<Vec<Pool>> {
        let (entity, id, name) = match &self.appliance {
            Some((id, name)) => ("space_metrics_by_appliance", id.as_str(), name.as_str()),
            None => ("space_metrics_by_cluster", "0", "cluster"),
        };
        let body = json!({ "entity": entity, "entity_id": id });
        let request = Request::post("pools", &path("metrics/generate")).json(&body).reading();
        let samples: Vec<Value> = self.api.rest.json(cx, request).await?;
        // In the order of their time.
        let figure = |name: &str| samples.last()?.get(name)?.as_u64();
        let last = figure("physical_total").zip(figure("physical_used"));
        let (size, used) = last.ok_or_else(|| {
            Failure::new(Class::Busy)
                .fact("the array has no figures of its space yet")
                .hint("it collects them every five minutes")
        })?;
        Ok(vec![Pool { name: name.to_owned(), size: Bytes(size), used: Bytes(used) }])
    }

    async fn create(&self, cx: &Cx, new: &New<'_>) -> Outcome<Volume> {
        let mut body = json!({
            "name": new.name,
            "size": new.size.0,
            "description": text::encode(new.name, new.metadata),
        });
        if let (Some((id, _)), Some(body)) = (&self.appliance, body.as_object_mut()) {
            body.insert("appliance_id".to_owned(), json!(id));
        }
        let id = self.api.made(cx, Request::post("create", &path("volume")).json(&body)).await?;
        Ok(made(id, new.name, new.size, new.metadata))
    }

    async fn get(&self, cx: &Cx, name: &str) -> Outcome<Volume> {
        Ok(self.found(cx, name, "not.eq.Snapshot").await?.volume(None, None))
    }

    async fn list(&self, cx: &Cx, prefix: &str) -> Outcome<Vec<Volume>> {
        let filters = [("type", "not.eq.Snapshot"), ("name", &*format!("like.{prefix}*"))];
        let found = self.find(cx, "list", filters, true).await?;
        Ok(found.into_iter().map(|one| one.volume(None, None)).collect())
    }

    async fn resize(
        &self,
        cx: &Cx,
        volume: &Volume,
        _: Bytes,
        to: Bytes,
    ) -> Outcome<Option<Bytes>> {
        let request = Request::patch("resize", &path("volume")).segment(&volume.id);
        self.api.just(cx, request.json(&json!({ "size": to.0 }))).await?;
        Ok(Some(to))
    }

    async fn delete(&self, cx: &Cx, volume: &Volume) -> Outcome<()> {
        let request = Request::delete("delete", &path("volume")).segment(&volume.id);
        let deleted = self.api.just(cx, request).await;
        match &deleted {
            Err(failure) if failure.class != Class::NotFound => {}
            // Also if it is gone already: an earlier try may have ended between the two.
            _ => qos::release(&self.api, cx, &volume.qos).await.map_err(Failure::partly)?,
        }
        deleted
    }

    async fn snapshot(
        &self,
        cx: &Cx,
        volume: &Volume,
        name: &str,
        metadata: &str,
    ) -> Outcome<Volume> {
        let body = json!({ "name": name, "description": text::encode(name, metadata) });
        let id = self.api.made(cx, below("snapshot", volume, "/snapshot").json(&body)).await?;
        let snapshot_of = Some(volume.name.clone());
        Ok(Volume { snapshot_of, ..made(id, name, volume.size, metadata) })
    }

    async fn prepare_group(&self, cx: &Cx, group: &Group<'_>) -> Outcome<()> {
        self.prepare(cx, group).await
    }

    async fn snapshot_group(&self, cx: &Cx, group: &Group<'_>) -> Outcome<Vec<Volume>> {
        self.catch(cx, group).await
    }

    async fn release_group(&self, cx: &Cx, group: &Group<'_>) -> Outcome<()> {
        self.let_go(cx, group).await
    }

    async fn get_snapshot(&self, cx: &Cx, name: &str, of: Option<&Volume>) -> Outcome<Volume> {
        let found = self.found(cx, name, SNAPSHOTS).await?;
        Ok(found.volume(self.codec.as_ref(), of))
    }

    async fn snapshots(&self, cx: &Cx, of: Option<&Volume>) -> Outcome<Vec<Volume>> {
        let prefix = self.codec.as_ref().map(|codec| codec.prefix(Role::Snapshot));
        let filter = match of {
            Some(volume) => ("protection_data->>source_id", format!("eq.{}", volume.id)),
            None => ("name", format!("like.{}*", prefix.unwrap_or_default())),
        };
        let filters = [("type", SNAPSHOTS), (filter.0, &*filter.1)];
        let mut found = self.find(cx, "snapshots", filters, true).await?;
        found.retain(Object::is_snapshot);
        Ok(found.into_iter().map(|one| one.volume(self.codec.as_ref(), of)).collect())
    }

    async fn delete_snapshot(&self, cx: &Cx, snapshot: &Volume) -> Outcome<()> {
        let request = Request::delete("delete_snapshot", &path("volume")).segment(&snapshot.id);
        match self.api.just(cx, request.clone()).await {
            // A clone that is in its group still, because its maker died.
            Err(failure) if failure.class == Class::Invalid && snapshot.origin.is_some() => {
                self.leave_group(cx, snapshot).await?;
                self.api.just(cx, request).await
            }
            other => other,
        }
    }

    async fn restore(&self, cx: &Cx, volume: &Volume, snapshot: &Volume) -> Outcome<()> {
        // The array would keep a snapshot of what was there, under a name of its own.
        // One of a group is a clone, to which a volume of its family is refreshed.
        let (verb, from) = match &snapshot.origin {
            Some(_) => ("/refresh", "from_object_id"),
            None => ("/restore", "from_snap_id"),
        };
        let body = json!({ from: snapshot.id, "create_backup_snap": false });
        self.api.just(cx, below("restore", volume, verb).json(&body)).await
    }

    async fn clone_of(&self, cx: &Cx, source: &Volume, new: &New<'_>) -> Outcome<Volume> {
        let body = json!({
            "name": new.name,
            "description": text::encode(new.name, new.metadata),
        });
        let id = self.api.made(cx, below("clone", source, "/clone").json(&body)).await?;
        Ok(made(id, new.name, new.size, new.metadata))
    }

    async fn describe(&self, cx: &Cx, volume: &Volume, metadata: &str) -> Outcome<()> {
        let body: Value = json!({ "description": text::encode(&volume.name, metadata) });
        let request = Request::patch("describe", &path("volume")).segment(&volume.id);
        self.api.just(cx, request.json(&body)).await
    }

    fn qos_rule(&self) -> Option<QosRule> {
        self.has_limits().then(qos::rule)
    }

    async fn set_qos(&self, cx: &Cx, volume: &Volume, wanted: &Qos) -> Outcome<()> {
        qos::set(&self.api, cx, volume, wanted).await
    }

    async fn grant(&self, cx: &Cx, to: &Initiator) -> Outcome<()> {
        self.open_door(cx, to).await.map(drop)
    }

    async fn revoke(&self, cx: &Cx, from: &Initiator) -> Outcome<()> {
        self.close_door(cx, from).await.or_absent().map(drop)
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

    fn is_denied(&self) -> bool {
        self.api.rest.is_denied()
    }

    async fn close(&self, cx: &Cx) {
        self.api.rest.close(cx).await;
    }
}
