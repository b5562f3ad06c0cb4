//! Volumes and snapshots: a request builder for each primitive.

use std::sync::{Mutex, PoisonError};

use array_kit::prelude::*;
use plugin_sdk::model::uuid::Uuid;

use crate::api::{BYTES, OPERATIONS, Purity};
use crate::tags::TEXT;

/// 63 characters, without case.
pub const NAMES: NameRule = NameRule::new(63).case_insensitive();

const CAPABILITIES: Capabilities = Capabilities {
    snapshots: SnapshotScope::Within,
    delete: DeleteKind::DestroyThenEradicate,
    delete_takes_snapshots: true,
    ..Capabilities::usual(
        NAMES,
        SizeRule::new(Bytes(512), Bytes(1 << 20), Bytes(4_503_599_627_370_496)),
        LunAddressing::Chosen { first: 1, last: 4095 },
        MetadataPlace::Apart { limit: TEXT },
    )
};

/// A FlashArray, opened for one SR.
///
/// The [`id`](Volume::id) of a volume, and of a frozen copy, is the array's; that of a snapshot has an
/// `@` before it.
pub struct PureStorage {
    pub(crate) api: Rest<Purity>,
    pub(crate) codec: Codec,
    eradicate: bool,
    /// Serial numbers by id, as they were seen last: a mapping needs them.
    serials: Mutex<Texts>,
    pub(crate) known: Known,
}

/// Where an object is: the path of its kind, and its id.
pub(crate) fn place(of: &Volume) -> (&'static str, &str) {
    match of.id.strip_prefix('@') {
        Some(id) => ("volume-snapshots", id),
        None => ("volumes", &of.id),
    }
}

/// What a volume is limited to. The largest limit is none: it is how one is lifted.
fn limits(object: &Value) -> Qos {
    let rate = |path: &str, most: u64| {
        qos::rate(object.number(path).filter(|limit| *limit > 0 && *limit < most))
    };
    Qos {
        operations: rate("qos.iops_limit", OPERATIONS.1),
        bytes: rate("qos.bandwidth_limit", BYTES.1),
    }
}

impl PureStorage {
    pub(crate) fn new(api: Rest<Purity>, eradicate: bool) -> Result<Self> {
        let codec = Codec::new(NAMES, SrUuid(Uuid::nil()))?;
        let (serials, known) = (Mutex::default(), Known::default());
        Ok(Self { api, codec, eradicate, serials, known })
    }

    /// A volume, or the snapshot that a frozen copy stands for.
    fn volume(&self, object: &Value) -> Outcome<Volume> {
        let (id, name) = (object.need("id")?.to_owned(), object.need("name")?);
        if let Ok(serial) = object.need("serial") {
            let mut serials = self.serials.lock().unwrap_or_else(PoisonError::into_inner);
            serials.insert(id.clone(), serial.to_owned());
        }
        let frozen = self.codec.read(name).filter(|named| named.role == Role::Snapshot);
        // Whatever the array says of its source, it is listed.
        let source = Some(object.text("source.name"));
        let source = source.filter(|name| self.codec.read(name).is_some()).unwrap_or(name);
        Ok(Volume {
            id,
            name: frozen.map_or_else(|| name.to_owned(), |own| Codec::inner(own.role, own.uuid)),
            size: Bytes(object.number("provisioned").unwrap_or(0)),
            used: object.number("space.unique").map(Bytes),
            snapshot_of: frozen.map(|_| source.to_owned()),
            order: object.number("created").unwrap_or(0),
            qos: limits(object),
            ..Volume::default()
        })
    }

    fn snapshot_volume(&self, object: &Value) -> Outcome<Volume> {
        let (of, name) = (object.text("source.name"), object.need("name")?);
        let suffix = name.strip_prefix(of).and_then(|rest| rest.strip_prefix('.'));
        let (name, id) = (suffix.unwrap_or(name).to_owned(), format!("@{}", object.need("id")?));
        let (snapshot_of, qos) = (Some(of.to_owned()), Qos::default());
        Ok(Volume { id, name, snapshot_of, qos, ..self.volume(object)? })
    }

    fn volumes(&self, all: &[Value]) -> Outcome<Vec<Volume>> {
        all.iter().map(|one| self.volume(one)).collect()
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
    async fn find(&self, cx: &Cx, path: &str, by: &str, value: &str) -> Outcome<Value> {
        let request = Request::get("get", path).query(by, value).query("destroyed", "false");
        let found = self.all(cx, request).await?.into_iter().find(|one| !one.is("destroyed"));
        found.ok_or_else(|| Failure::not_found(value))
    }

    /// Changes an object, by its place.
    async fn change(
        &self,
        cx: &Cx,
        operation: &'static str,
        (path, id): (&str, &str),
        body: &Value,
    ) -> Outcome<()> {
        self.api.just(cx, Request::patch(operation, path).query("ids", id).json(body)).await
    }

    /// A request for a volume with the content of a volume or snapshot.
    fn copy(operation: &'static str, from: &str, to: &str) -> Request {
        let body = json!({ "source": { "name": from } });
        Request::post(operation, "volumes").query("names", to).json(&body)
    }

    /// A frozen copy: the snapshot of a volume by that name, of what the array calls `from`.
    pub(crate) async fn freeze(
        &self,
        cx: &Cx,
        from: &str,
        volume: &Volume,
        name: &str,
    ) -> Outcome<Volume> {
        let snapshot_of = Some(volume.name.clone());
        let to = Volume { name: name.to_owned(), snapshot_of, ..Volume::default() };
        let made = self.one(cx, Self::copy("freeze", from, &self.full_name(&to))).await?;
        Ok(Volume { snapshot_of: to.snapshot_of, ..self.volume(&made)? })
    }

    /// The frozen copies of the SR's volumes, or of one.
    async fn frozen(&self, cx: &Cx, of: Option<&Volume>) -> Outcome<Vec<Volume>> {
        let mut filter = format!("name='{}*'", self.codec.prefix(Role::Snapshot));
        if let Some(of) = of {
            filter = format!("{filter} and source.name='{}'", of.name);
        }
        let request = Request::get("frozen", "volumes").query("filter", &filter);
        self.volumes(&self.all(cx, request.query("destroyed", "false")).await?)
    }

    /// The serial number that the identity of a volume's LUN is made of.
    pub(crate) async fn serial(&self, cx: &Cx, volume: &Volume) -> Outcome<String> {
        let known = |serials: &Texts| serials.get(&volume.id).cloned();
        if let Some(serial) = known(&self.serials.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(serial);
        }
        let (path, id) = place(volume);
        let found = self.find(cx, path, "ids", id).await?;
        found.need("serial").map(str::to_owned).map_err(|failure| {
            let failure = failure.object(volume.name.clone());
            failure.fact("the array does not tell its serial number")
        })
    }

    /// The name that what is destroyed gets, so that its own is free: with the id, which is never
    /// given twice.
    fn tombstone(&self, of: &Volume) -> String {
        let (path, id) = place(of);
        let id: String = id.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
        match path {
            "volumes" => format!("{}{id}", self.codec.prefix(Role::Disk).replacen("smv", "smz", 1)),
            _ => format!("z{id}"),
        }
    }

    /// Another name, destroyed, eradicated: each of them by the id, so that it can be taken up where
    /// an earlier try ended.
    async fn remove(&self, cx: &Cx, of: &Volume) -> Outcome<()> {
        let place = place(of);
        let now = self.one(cx, Request::get("state", place.0).query("ids", place.1)).await?;
        if !now.is("destroyed") {
            if now.number("connection_count").is_some_and(|count| count > 0) {
                let failure = Failure::new(Class::InUse).object(of.name.clone());
                return Err(failure.fact("it is connected"));
            }
            let tombstone = self.tombstone(of);
            if !now.text("name").ends_with(&tombstone) {
                let name = json!({ "name": tombstone });
                let renamed = self.change(cx, "rename", place, &name).await.or_absent();
                // There already: what a stale read did not show. The name is of this object alone.
                renamed.or_there()?;
            }
            let gone = self.change(cx, "destroy", place, &json!({ "destroyed": true })).await;
            match gone.or_absent() {
                Err(failure) if failure.class == Class::InUse => {
                    // Somebody has connected it meanwhile.
                    let own = json!({ "name": self.full_name(of) });
                    self.change(&cx.shielded(), "rename", place, &own).await?;
                    return Err(failure);
                }
                other => other.map_err(Failure::partly)?,
            };
        }
        if self.eradicate {
            let request = Request::delete("eradicate", place.0).query("ids", place.1);
            self.api.just(cx, request).await.or_absent().map_err(Failure::partly)?;
        }
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
        let one = self.one(cx, Request::get("identity", "arrays")).await?;
        let text = |name: &str| one.text(name).to_owned();
        let (vendor, model) = ("Pure Storage".to_owned(), text("os"));
        Ok(Identity { vendor, model, serial: text("id"), version: text("version") })
    }

    async fn pools(&self, cx: &Cx) -> Outcome<Vec<Pool>> {
        let all = self.all(cx, Request::get("pools", "arrays")).await?;
        let pool = |one: &Value| {
            // The older of the two names is deprecated in 2.26.
            let used = one.number("space.total_used").or(one.number("space.total_physical"));
            let (name, size) = (one.need("name")?.to_owned(), one.number("capacity").unwrap_or(0));
            Ok(Pool { name, size: Bytes(size), used: Bytes(used.unwrap_or(0)) })
        };
        all.iter().map(pool).collect()
    }

    async fn places(&self, cx: &Cx) -> Outcome<Vec<Place>> {
        let place = |pool: Pool| Place { more: vec![("array", pool.name.clone())], pool };
        Ok(self.pools(cx).await?.into_iter().map(place).collect())
    }

    async fn create(&self, cx: &Cx, new: &New<'_>) -> Outcome<Volume> {
        let request = Request::post("create", "volumes").query("names", new.name);
        let request = request.json(&json!({ "provisioned": new.size.0 }));
        self.volume(&self.one(cx, request).await?)
    }

    async fn get(&self, cx: &Cx, name: &str) -> Outcome<Volume> {
        self.volume(&self.find(cx, "volumes", "names", name).await?)
    }

    async fn list(&self, cx: &Cx, prefix: &str) -> Outcome<Vec<Volume>> {
        let request = Request::get("list", "volumes").query("filter", &format!("name='{prefix}*'"));
        self.volumes(&self.all(cx, request.query("destroyed", "false")).await?)
    }

    async fn resize(&self, cx: &Cx, volume: &Volume, to: Bytes) -> Outcome<Option<Bytes>> {
        let request = Request::patch("resize", "volumes").query("ids", &volume.id);
        let now = self.one(cx, request.json(&json!({ "provisioned": to.0 }))).await?;
        Ok(now.number("provisioned").map(Bytes))
    }

    async fn delete(&self, cx: &Cx, volume: &Volume) -> Outcome<()> {
        self.remove(cx, volume).await
    }

    async fn snapshot(&self, cx: &Cx, volume: &Volume, new: &New<'_>) -> Outcome<Volume> {
        if !self.tags_snapshots() {
            return self.freeze(cx, &volume.name, volume, new.name).await;
        }
        let request = Request::post("snapshot", "volume-snapshots").query("source_ids", &volume.id);
        let made = self.one(cx, request.json(&json!({ "suffix": new.name }))).await?;
        self.snapshot_volume(&made)
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
        if self.tags_snapshots() {
            let (by, value) = if let Some(of) = of {
                ("names", format!("{}.{name}", of.name))
            } else {
                let ours = self.codec.prefix(Role::Disk);
                ("filter", format!("suffix='{name}' and name='{ours}*'"))
            };
            let found = self.find(cx, "volume-snapshots", by, &value).await;
            if let Some(found) = found.or_absent()? {
                return self.snapshot_volume(&found);
            }
        }
        let Some((role, uuid)) = Codec::read_inner(name) else {
            return Err(Failure::not_found(format!("snapshot {name}")));
        };
        let name = self.codec.name(role, uuid);
        self.volume(&self.find(cx, "volumes", "names", &name).await?)
    }

    async fn snapshots(&self, cx: &Cx, of: Option<&Volume>) -> Outcome<Vec<Volume>> {
        let mut request = Request::get("snapshots", "volume-snapshots");
        request = match of {
            Some(of) => request.query("source_ids", &of.id),
            None => request.query("filter", &format!("name='{}*'", self.codec.prefix(Role::Disk))),
        };
        let found = self.all(cx, request.query("destroyed", "false")).await?;
        let mut all = self.frozen(cx, of).await?;
        for one in &found {
            all.push(self.snapshot_volume(one)?);
        }
        Ok(all)
    }

    async fn delete_snapshot(&self, cx: &Cx, snapshot: &Volume) -> Outcome<()> {
        self.remove(cx, snapshot).await
    }

    async fn restore(&self, cx: &Cx, volume: &Volume, snapshot: &Volume) -> Outcome<()> {
        let request = Self::copy("restore", &self.full_name(snapshot), &volume.name);
        self.api.just(cx, request.query("overwrite", "true")).await
    }

    async fn clone_of(&self, cx: &Cx, source: &Volume, new: &New<'_>) -> Outcome<Volume> {
        let request = Self::copy("clone", &self.full_name(source), new.name);
        self.volume(&self.one(cx, request).await?)
    }

    async fn describe(&self, cx: &Cx, volume: &Volume, metadata: &str) -> Outcome<()> {
        self.write_text(cx, volume, metadata).await
    }

    async fn descriptions(&self, cx: &Cx, of: Option<&Volume>) -> Outcome<Texts> {
        self.read_texts(cx, of).await
    }

    fn qos_rule(&self) -> Option<QosRule> {
        let range = |(least, most)| Some(least..=most);
        let (operations, bytes) = (range(OPERATIONS), range(BYTES));
        Some(QosRule { operations, bytes, bytes_unit: 1, burst: false })
    }

    async fn set_qos(&self, cx: &Cx, volume: &Volume, wanted: &Qos) -> Outcome<()> {
        // 2.2 knows no way to take a limit away; the largest is none.
        let (operations, bytes) = qos::numbers(wanted, 1);
        let body = json!({ "qos": {
            "iops_limit": operations.unwrap_or(OPERATIONS.1),
            "bandwidth_limit": bytes.unwrap_or(BYTES.1),
        } });
        self.change(cx, "qos", place(volume), &body).await
    }

    fn is_denied(&self) -> bool {
        self.api.is_denied()
    }

    async fn close(&self, cx: &Cx) {
        self.api.close(cx).await;
    }
}
