//! Volumes and snapshots: a request builder for each primitive.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use array_kit::array::{
    Array, Capabilities, CloneKind, DeleteKind, Group, Identity, Initiator, LunAddressing, Mapping,
    MetadataPlace, New, Part, Pool, SnapshotScope, Volume,
};
use array_kit::http::Request;
use array_kit::ledger::ResizeKind;
use array_kit::names::{Codec, NameRule, Role};
use array_kit::outcome::{Class, Failure, OrAbsent as _, Outcome};
use array_kit::pieces;
use array_kit::qos::QosRule;
use array_kit::size::SizeRule;
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::model::vdi::{Qos, Rate};
use plugin_sdk::model::{Bytes, SrUuid};
use plugin_sdk::{Cx, Result, tokio};
use serde_json::{Value, json};

use crate::api::{Api, BYTES, OPERATIONS, SNAPSHOT_TAGS};
use crate::host::Here;
use crate::object::{Arrays, Object, Tag};

/// 63 characters, without case.
pub const NAMES: NameRule = NameRule::new(63).case_insensitive();

/// A tag's value has 256 characters at most; a text has a digit before it and takes four tags, of the
/// five that older arrays allow.
const PIECE: usize = 255;
const PIECES: usize = 4;

/// The suffix of a group's snapshot.
const INSTANT: &str = "instant";

const CAPABILITIES: Capabilities = Capabilities {
    names: NAMES,
    unique_names: true,
    size: SizeRule::new(Bytes(512), Bytes(1 << 20), Bytes(4_503_599_627_370_496)),
    resize: ResizeKind::Absolute,
    clone: CloneKind::Independent,
    snapshots: SnapshotScope::Within,
    max_snapshots: None,
    group_snapshots: true,
    delete: DeleteKind::DestroyThenEradicate,
    delete_takes_snapshots: true,
    restore_drops_newer: false,
    lun: LunAddressing::Chosen { first: 1, last: 4095 },
    metadata: MetadataPlace::Apart { limit: PIECE * PIECES },
};

/// A FlashArray, opened for one SR.
///
/// The [`id`](Volume::id) of a volume, and of a frozen copy, is the array's; that of a snapshot has an
/// `@` before it.
pub struct PureStorage {
    pub(crate) api: Api,
    codec: Codec,
    eradicate: bool,
    /// Serial numbers by id, as they were seen last: a mapping needs them.
    serials: Mutex<BTreeMap<String, String>>,
    /// What this host is on the array, once that was found or made.
    pub(crate) here: tokio::sync::Mutex<Option<Here>>,
}

/// Where an object is: the path of its kind, and its id.
fn place(of: &Volume) -> (&'static str, &str) {
    match of.id.strip_prefix('@') {
        Some(id) => ("volume-snapshots", id),
        None => ("volumes", &of.id),
    }
}

impl PureStorage {
    pub(crate) fn new(api: Api, eradicate: bool) -> Result<Self> {
        let codec = Codec::new(NAMES, SrUuid(Uuid::nil()))?;
        let (serials, here) = (Mutex::default(), tokio::sync::Mutex::new(None));
        Ok(Self { api, codec, eradicate, serials, here })
    }

    fn request(
        &self,
        make: fn(&'static str, &str) -> Request,
        operation: &'static str,
        path: &str,
    ) -> Request {
        make(operation, &self.api.path(path))
    }

    /// A volume, or the snapshot that a frozen copy stands for.
    fn volume(&self, one: Object) -> Volume {
        if let Some(serial) = &one.serial {
            let mut serials = self.serials.lock().unwrap_or_else(PoisonError::into_inner);
            serials.insert(one.id.clone(), serial.clone());
        }
        let frozen = self.codec.read(&one.name).filter(|named| named.role == Role::Snapshot);
        let (used, qos) = (one.unique(), one.limits());
        // Whatever the array says of its source, it is listed.
        let source = one.source.name.filter(|name| self.codec.read(name).is_some());
        let source = source.unwrap_or_else(|| one.name.clone());
        Volume {
            size: Bytes(one.provisioned.unwrap_or(0)),
            used,
            qos,
            order: one.created.unwrap_or(0),
            snapshot_of: frozen.map(|_| source),
            name: frozen.map_or(one.name, |named| Codec::inner(named.role, named.uuid)),
            id: one.id,
            ..Volume::default()
        }
    }

    fn snapshot_volume(&self, one: Object) -> Volume {
        let of = one.source.name.clone().unwrap_or_default();
        let suffix = one.name.strip_prefix(&of).and_then(|rest| rest.strip_prefix('.'));
        let name = suffix.unwrap_or(&one.name).to_owned();
        let id = format!("@{}", one.id);
        Volume { id, name, snapshot_of: Some(of), qos: Qos::default(), ..self.volume(one) }
    }

    /// What the array calls an object.
    fn full_name(&self, of: &Volume) -> String {
        let Some(volume) = &of.snapshot_of else { return of.name.clone() };
        match Codec::read_inner(&of.name) {
            Some((role, uuid)) if !of.id.starts_with('@') => self.codec.name(role, uuid),
            Some(_) => format!("{volume}.{}", of.name),
            None => of.name.clone(),
        }
    }

    /// The only object that such a query finds, which is not destroyed.
    async fn find(&self, cx: &Cx, path: &str, by: &str, value: &str) -> Outcome<Object> {
        let request = self.request(Request::get, "get", path).query(by, value);
        let found = self.api.list::<Object>(cx, path, request.query("destroyed", "false")).await?;
        let live = found.into_iter().find(|one| !one.destroyed);
        live.ok_or_else(|| Failure::not_found(value))
    }

    async fn change(
        &self,
        cx: &Cx,
        operation: &'static str,
        of: (&str, &str),
        body: Value,
    ) -> Outcome<()> {
        let request = self.request(Request::patch, operation, of.0).query("ids", of.1);
        self.api.just(cx, request.json(&body)).await
    }

    /// A volume with the content of a volume or snapshot.
    async fn copy(
        &self,
        cx: &Cx,
        operation: &'static str,
        from: &str,
        to: &str,
    ) -> Outcome<Object> {
        let request = self.request(Request::post, operation, "volumes").query("names", to);
        self.api.one(cx, request.json(&json!({ "source": { "name": from } }))).await
    }

    /// The frozen copies of the SR's volumes, or of one.
    async fn frozen(&self, cx: &Cx, of: Option<&Volume>) -> Outcome<Vec<Volume>> {
        let mut filter = format!("name='{}*'", self.codec.prefix(Role::Snapshot));
        if let Some(of) = of {
            filter = format!("{filter} and source.name='{}'", of.name);
        }
        let request = self.request(Request::get, "frozen", "volumes").query("filter", &filter);
        let all = self.api.list(cx, "volumes", request.query("destroyed", "false")).await?;
        Ok(all.into_iter().map(|one| self.volume(one)).collect())
    }

    /// The serial number that the identity of a volume's LUN is made of.
    pub(crate) async fn serial(&self, cx: &Cx, volume: &Volume) -> Outcome<String> {
        let known = |serials: &BTreeMap<String, String>| serials.get(&volume.id).cloned();
        if let Some(serial) = known(&self.serials.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(serial);
        }
        let (path, id) = place(volume);
        let found = self.find(cx, path, "ids", id).await?;
        found.serial.ok_or_else(|| {
            let failure = Failure::new(Class::Garbled).object(volume.name.clone());
            failure.fact("the array does not tell its serial number")
        })
    }

    /// The name that what is destroyed gets, so that its own is free: with the id, which is never
    /// given twice.
    fn tombstone(&self, of: &Volume) -> String {
        let id: String = place(of).1.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
        match place(of).0 {
            "volumes" => format!("{}{id}", self.codec.prefix(Role::Disk).replacen("smv", "smz", 1)),
            _ => format!("z{id}"),
        }
    }

    /// Another name, destroyed, eradicated: each of them by the id, so that it can be taken up where
    /// an earlier try ended.
    async fn remove(&self, cx: &Cx, of: &Volume) -> Outcome<()> {
        let (path, id) = place(of);
        let request = self.request(Request::get, "state", path).query("ids", id);
        let now: Object = self.api.one(cx, request).await?;
        if !now.destroyed {
            if now.connection_count.is_some_and(|count| count > 0) {
                return Err(Failure::new(Class::InUse)
                    .object(of.name.clone())
                    .fact("it is connected"));
            }
            let tombstone = self.tombstone(of);
            if !now.name.ends_with(&tombstone) {
                let renamed = self.change(cx, "rename", (path, id), json!({ "name": tombstone }));
                match renamed.await.or_absent() {
                    // What a stale read did not show: the name is of this object alone.
                    Err(failure) if failure.class == Class::AlreadyExists => {}
                    other => drop(other?),
                }
            }
            let gone = self.change(cx, "destroy", (path, id), json!({ "destroyed": true })).await;
            match gone.or_absent() {
                Err(failure) if failure.class == Class::InUse => {
                    // Somebody has connected it meanwhile.
                    let own = json!({ "name": self.full_name(of) });
                    self.change(&cx.shielded(), "rename", (path, id), own).await?;
                    return Err(failure);
                }
                other => drop(other.map_err(Failure::partly)?),
            }
        }
        if self.eradicate {
            let request = self.request(Request::delete, "eradicate", path).query("ids", id);
            self.api.just(cx, request).await.or_absent().map_err(Failure::partly)?;
        }
        Ok(())
    }

    fn tag(&self, number: &str) -> String {
        format!("{}{number}", self.codec.prefix(Role::Disk))
    }

    /// Adds the texts of a kind of objects.
    async fn texts(
        &self,
        cx: &Cx,
        (path, mark): (&str, &str),
        of: Option<&str>,
        texts: &mut BTreeMap<String, String>,
    ) -> Outcome<()> {
        let prefix = self.tag("");
        let mut request = self.request(Request::get, "tags", &format!("{path}/tags"));
        request = request.query("filter", &format!("key='{prefix}*'"));
        if let Some(id) = of {
            request = request.query("resource_ids", id);
        } else if self.api.version() < SNAPSHOT_TAGS {
            // Its pages go by offset: what moves under that shows in the count.
            request = request.query("total_item_count", "true");
        }
        let mut found: BTreeMap<String, BTreeMap<usize, String>> = BTreeMap::new();
        for tag in self.api.list::<Tag>(cx, "tags", request).await? {
            let number = tag.key.strip_prefix(&prefix).and_then(|number| number.parse().ok());
            if let (Some(id), Some(number)) = (tag.resource.id, number) {
                found.entry(format!("{mark}{id}")).or_default().insert(number, tag.value);
            }
        }
        texts.extend(found.into_iter().map(|(id, pieces)| (id, pieces::join(&pieces))));
        Ok(())
    }
}

impl Array for PureStorage {
    fn capabilities(&self) -> &Capabilities {
        &CAPABILITIES
    }

    /// The array counts characters.
    fn text_size(&self, text: &str) -> usize {
        text.chars().count()
    }

    fn assign(&mut self, sr: SrUuid) {
        if let Ok(codec) = Codec::new(NAMES, sr) {
            self.codec = codec;
        }
    }

    async fn identity(&self, cx: &Cx) -> Outcome<Identity> {
        let request = self.request(Request::get, "identity", "arrays");
        let one: Arrays = self.api.one(cx, request).await?;
        let (vendor, model) = ("Pure Storage".to_owned(), one.os.unwrap_or_default());
        Ok(Identity { vendor, model, serial: one.id, version: one.version })
    }

    async fn pools(&self, cx: &Cx) -> Outcome<Vec<Pool>> {
        let request = self.request(Request::get, "pools", "arrays");
        let all = self.api.list::<Arrays>(cx, "arrays", request).await?;
        let pool = |one: Arrays| {
            let size = Bytes(one.capacity.unwrap_or(0));
            Pool { name: one.name, size, used: one.space.used() }
        };
        Ok(all.into_iter().map(pool).collect())
    }

    async fn create(&self, cx: &Cx, new: &New<'_>) -> Outcome<Volume> {
        let request = self.request(Request::post, "create", "volumes").query("names", new.name);
        let request = request.json(&json!({ "provisioned": new.size.0 }));
        Ok(self.volume(self.api.one(cx, request).await?))
    }

    async fn get(&self, cx: &Cx, name: &str) -> Outcome<Volume> {
        Ok(self.volume(self.find(cx, "volumes", "names", name).await?))
    }

    async fn list(&self, cx: &Cx, prefix: &str) -> Outcome<Vec<Volume>> {
        let filter = format!("name='{prefix}*'");
        let request = self.request(Request::get, "list", "volumes").query("filter", &filter);
        let all = self.api.list(cx, "volumes", request.query("destroyed", "false")).await?;
        Ok(all.into_iter().map(|one| self.volume(one)).collect())
    }

    async fn resize(
        &self,
        cx: &Cx,
        volume: &Volume,
        _: Bytes,
        to: Bytes,
    ) -> Outcome<Option<Bytes>> {
        let request = self.request(Request::patch, "resize", "volumes").query("ids", &volume.id);
        let now: Object = self.api.one(cx, request.json(&json!({ "provisioned": to.0 }))).await?;
        Ok(now.provisioned.map(Bytes))
    }

    async fn delete(&self, cx: &Cx, volume: &Volume) -> Outcome<()> {
        self.remove(cx, volume).await
    }

    async fn snapshot(&self, cx: &Cx, volume: &Volume, name: &str, _: &str) -> Outcome<Volume> {
        if self.api.version() < SNAPSHOT_TAGS {
            let frozen = Volume {
                name: name.to_owned(),
                snapshot_of: Some(volume.name.clone()),
                ..Volume::default()
            };
            let to = self.full_name(&frozen);
            return Ok(self.volume(self.copy(cx, "snapshot", &volume.name, &to).await?));
        }
        let request = self.request(Request::post, "snapshot", "volume-snapshots");
        let request = request.query("source_ids", &volume.id);
        let made = self.api.one(cx, request.json(&json!({ "suffix": name }))).await?;
        Ok(self.snapshot_volume(made))
    }

    async fn prepare_group(&self, cx: &Cx, group: &Group<'_>) -> Outcome<()> {
        let there = |outcome: Outcome<()>| match outcome {
            Err(failure) if failure.class == Class::AlreadyExists => Ok(()),
            other => other,
        };
        let request = self.request(Request::post, "group", "protection-groups");
        there(self.api.just(cx, request.query("names", group.name)).await)?;
        for part in group.parts {
            let request = self.request(Request::post, "member", "protection-groups/volumes");
            let request = request.query("group_names", group.name);
            there(self.api.just(cx, request.query("member_names", &part.volume.name)).await)?;
        }
        Ok(())
    }

    async fn snapshot_group(&self, cx: &Cx, group: &Group<'_>) -> Outcome<Vec<Volume>> {
        let request = self.request(Request::post, "instant", "protection-group-snapshots");
        let request = request.query("source_names", group.name).json(&json!({ "suffix": INSTANT }));
        match self.api.just(cx, request).await {
            // An earlier request arrived: the instant has passed, and was one.
            Err(failure) if failure.class == Class::AlreadyExists => {}
            other => other?,
        }
        let mut made = Vec::new();
        for Part { volume, name, .. } in group.parts {
            let of = Some(volume.name.clone());
            let to = Volume { name: name.clone(), snapshot_of: of.clone(), ..Volume::default() };
            let to = self.full_name(&to);
            let from = format!("{}.{INSTANT}.{}", group.name, volume.name);
            let copied = match self.copy(cx, "keep", &from, &to).await {
                Err(failure) if failure.class == Class::AlreadyExists => {
                    self.find(cx, "volumes", "names", &to).await
                }
                other => other,
            };
            let copied = self.volume(copied.map_err(Failure::partly)?);
            made.push(Volume { snapshot_of: of, ..copied });
        }
        Ok(made)
    }

    async fn release_group(&self, cx: &Cx, group: &Group<'_>) -> Outcome<()> {
        let request = self.request(Request::patch, "destroy", "protection-groups");
        let request = request.query("names", group.name).json(&json!({ "destroyed": true }));
        self.api.just(cx, request).await.or_absent()?;
        let request = self.request(Request::delete, "eradicate", "protection-groups");
        self.api.just(cx, request.query("names", group.name)).await.or_absent().map(drop)
    }

    async fn get_snapshot(&self, cx: &Cx, name: &str, of: Option<&Volume>) -> Outcome<Volume> {
        if self.api.version() >= SNAPSHOT_TAGS {
            let found = if let Some(of) = of {
                let name = format!("{}.{name}", of.name);
                self.find(cx, "volume-snapshots", "names", &name).await
            } else {
                let ours = self.codec.prefix(Role::Disk);
                let filter = format!("suffix='{name}' and name='{ours}*'");
                self.find(cx, "volume-snapshots", "filter", &filter).await
            };
            if let Some(found) = found.or_absent()? {
                return Ok(self.snapshot_volume(found));
            }
        }
        let Some((role, uuid)) = Codec::read_inner(name) else {
            return Err(Failure::not_found(format!("snapshot {name}")));
        };
        let name = self.codec.name(role, uuid);
        Ok(self.volume(self.find(cx, "volumes", "names", &name).await?))
    }

    async fn snapshots(&self, cx: &Cx, of: Option<&Volume>) -> Outcome<Vec<Volume>> {
        let mut request = self.request(Request::get, "snapshots", "volume-snapshots");
        request = match of {
            Some(of) => request.query("source_ids", &of.id),
            None => request.query("filter", &format!("name='{}*'", self.codec.prefix(Role::Disk))),
        };
        let request = request.query("destroyed", "false");
        let found = self.api.list::<Object>(cx, "snapshots", request).await?;
        let mut all = self.frozen(cx, of).await?;
        all.extend(found.into_iter().map(|one| self.snapshot_volume(one)));
        Ok(all)
    }

    async fn delete_snapshot(&self, cx: &Cx, snapshot: &Volume) -> Outcome<()> {
        self.remove(cx, snapshot).await
    }

    async fn restore(&self, cx: &Cx, volume: &Volume, snapshot: &Volume) -> Outcome<()> {
        let request = self.request(Request::post, "restore", "volumes");
        let request = request.query("names", &volume.name).query("overwrite", "true");
        let body = json!({ "source": { "name": self.full_name(snapshot) } });
        self.api.just(cx, request.json(&body)).await
    }

    async fn clone_of(&self, cx: &Cx, source: &Volume, new: &New<'_>) -> Outcome<Volume> {
        let made = self.copy(cx, "clone", &self.full_name(source), new.name).await?;
        Ok(self.volume(made))
    }

    async fn describe(&self, cx: &Cx, volume: &Volume, metadata: &str) -> Outcome<()> {
        let (path, id) = place(volume);
        // A copy of the volume must not have the text of its source.
        let tag = |(number, value)| json!({ "key": self.tag(&format!("{number}")), "value": value, "copyable": false });
        let tags: Vec<Value> =
            pieces::cut(metadata, PIECE).into_iter().enumerate().map(tag).collect();
        let request = self.request(Request::put, "describe", &format!("{path}/tags/batch"));
        self.api.just(cx, request.query("resource_ids", id).json(&tags)).await
    }

    async fn descriptions(
        &self,
        cx: &Cx,
        of: Option<&Volume>,
    ) -> Outcome<BTreeMap<String, String>> {
        let mut texts = BTreeMap::new();
        match of.map(place) {
            Some(("volumes", id)) => self.texts(cx, ("volumes", ""), Some(id), &mut texts).await?,
            Some((path, id)) => self.texts(cx, (path, "@"), Some(id), &mut texts).await?,
            None => {
                self.texts(cx, ("volumes", ""), None, &mut texts).await?;
                if self.api.version() >= SNAPSHOT_TAGS {
                    self.texts(cx, ("volume-snapshots", "@"), None, &mut texts).await?;
                }
            }
        }
        Ok(texts)
    }

    fn qos_rule(&self) -> Option<QosRule> {
        let range = |(least, most)| Some(least..=most);
        let (operations, bytes) = (range(OPERATIONS), range(BYTES));
        Some(QosRule { operations, bytes, bytes_unit: 1, burst: false })
    }

    async fn set_qos(&self, cx: &Cx, volume: &Volume, qos: &Qos) -> Outcome<()> {
        // 2.2 knows no way to take a limit away; the largest is none.
        let limit = |rate: Option<Rate>, most: u64| rate.map_or(most, |rate| rate.per_second);
        let body = json!({ "qos": {
            "iops_limit": limit(qos.operations, OPERATIONS.1),
            "bandwidth_limit": limit(qos.bytes, BYTES.1),
        } });
        self.change(cx, "qos", place(volume), body).await
    }

    async fn grant(&self, cx: &Cx, to: &Initiator) -> Outcome<()> {
        self.enter(cx, to, true).await.map(drop)
    }

    async fn revoke(&self, cx: &Cx, from: &Initiator) -> Outcome<()> {
        self.leave(cx, from).await
    }

    async fn map(&self, cx: &Cx, volume: &Volume, to: &Initiator) -> Outcome<Mapping> {
        self.connect(cx, volume, to).await
    }

    async fn unmap(&self, cx: &Cx, volume: &Volume, from: &Initiator) -> Outcome<()> {
        self.disconnect(cx, volume, from).await
    }

    async fn mappings(&self, cx: &Cx, volume: &Volume) -> Outcome<Vec<String>> {
        self.connected_to(cx, volume).await
    }

    fn is_denied(&self) -> bool {
        self.api.is_denied()
    }

    async fn close(&self, cx: &Cx) {
        self.api.close(cx).await;
    }
}
