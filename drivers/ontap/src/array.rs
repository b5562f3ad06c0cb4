//! LUNs, their snapshots and clones: a request builder for each primitive.

use array_kit::prelude::*;
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::tokio::sync::Mutex;

use crate::api::{Web, cluster, version};
use crate::limits::rule;
use crate::object::{DISK, FIELDS, MEGABYTE, SNAPSHOT, TEXT, is_snapshot, uuid, volume};

pub(crate) const LUNS: &str = "storage/luns";
const VOLUMES: &str = "storage/volumes";

/// Both UUIDs in hexadecimal: paths of LUNs have 255 characters.
pub const NAMES: NameRule = NameRule::new(80);

const CAPABILITIES: Capabilities = Capabilities::usual(
    NAMES,
    // The array rounds sizes up to a geometry that it does not tell: 300 GiB become 39 MiB more.
    SizeRule {
        slack: Bytes(64 << 20),
        ..SizeRule::new(Bytes(4096), Bytes(4096), Bytes(140_737_488_355_328))
    },
    LunAddressing::Chosen { first: 0, last: 4095 },
    MetadataPlace::AtCreate { limit: TEXT },
);

/// An SVM of an ONTAP, opened for one SR in a FlexVol.
pub struct Ontap {
    pub(crate) api: Rest<Web>,
    volume: String,
    /// Where a FlexVol is made that is not there, and how large.
    aggregate: Option<(String, Bytes)>,
    pub(crate) sr: SrUuid,
    pub(crate) known: Known,
    /// The UUID of the FlexVol, once it was asked for.
    flexvol: Mutex<Option<String>>,
}

impl Ontap {
    pub(crate) fn new(api: Rest<Web>, volume: String, aggregate: Option<(String, Bytes)>) -> Self {
        let (sr, known) = (SrUuid(Uuid::nil()), Known::default());
        Self { api, volume, aggregate, sr, known, flexvol: Mutex::default() }
    }

    /// The same over another FlexVol, or over all of them: `*`.
    pub(crate) fn over(self, volume: &str) -> Self {
        Self { volume: volume.to_owned(), ..self }
    }

    fn path(&self, name: &str) -> String {
        format!("/vol/{}/{name}", self.volume)
    }

    pub(crate) fn svm(&self) -> Value {
        json!({ "name": self.api.vendor().svm })
    }

    /// LUNs by their names, which may have wildcards.
    async fn luns(&self, cx: &Cx, what: &'static str, name: &str) -> Outcome<Vec<Value>> {
        let request = Request::get(what, LUNS).query("name", &self.path(name));
        self.all(cx, request, FIELDS).await
    }

    async fn volumes(&self, cx: &Cx, what: &'static str, name: &str) -> Outcome<Vec<Volume>> {
        self.luns(cx, what, name).await?.iter().map(volume).collect()
    }

    async fn one(&self, cx: &Cx, what: &'static str, name: &str) -> Outcome<Volume> {
        let found = self.volumes(cx, what, name).await?.into_iter().next();
        found.ok_or_else(|| Failure::not_found(format!("LUN {name}")))
    }

    /// The FlexVols: one, or none if it is not there.
    async fn flexvols(&self, cx: &Cx) -> Outcome<Vec<Value>> {
        let request = Request::get("volumes", VOLUMES).query("name", &self.volume);
        self.all(cx, request, "uuid,name,comment,space.size,space.available").await
    }

    /// The UUID of the FlexVol, which a snapshot of it wants.
    async fn flexvol_uuid(&self, cx: &Cx) -> Outcome<String> {
        let mut known = self.flexvol.lock().await;
        if let Some(uuid) = known.as_ref() {
            return Ok(uuid.clone());
        }
        let found = self.flexvols(cx).await?;
        let gone = || Failure::not_found(format!("volume {}", self.volume));
        let uuid = found.first().ok_or_else(gone)?.need("uuid")?;
        Ok(known.insert(uuid.to_owned()).clone())
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
        self.finish(cx, "volume_create", request).await.or_there().map(drop)
    }

    /// Removes the FlexVol that was made for this SR, if nothing but the record was in it. A listing
    /// may still show that.
    async fn remove_flexvol(&self, cx: &Cx, record: &str) -> Outcome<()> {
        let found = self.flexvols(cx).await?;
        let Some(flexvol) = found.first() else { return Ok(()) };
        let left = self.volumes(cx, "list", "*").await?;
        if flexvol.text("comment") != self.mark() || left.iter().any(|lun| lun.name != record) {
            return Ok(());
        }
        let request = Request::delete("volume_delete", VOLUMES).segment(flexvol.need("uuid")?);
        self.finish(cx, "volume_delete", request).await.or_absent().map(drop)
    }

    async fn create_lun(&self, cx: &Cx, new: &New<'_>) -> Outcome<Option<Value>> {
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
        self.made(cx, Request::post("create", LUNS).json(&body)).await
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
        let made = match self.made(cx, Request::post(operation, LUNS).json(&body)).await? {
            Some(made) => volume(&made)?,
            None => self.one(cx, operation, name).await?,
        };
        // What it has is about its source.
        Ok(Volume { metadata: None, ..made })
    }

    /// Keeps a text that begins with the LUN it is about. `there`: the attribute is, most likely.
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
        if !there {
            if self.api.just(cx, add).await.or_there()?.is_none() {
                self.api.just(cx, set).await?;
            }
            return Ok(());
        }
        match self.api.just(cx, set).await {
            // The LUN is there and has no such attribute.
            Err(failure) if failure.code.as_deref() == Some("5374931") => {
                self.api.just(cx, add).await
            }
            other => other,
        }
    }

    /// LUN clones as the snapshots of a group.
    async fn clone_parts(&self, cx: &Cx, group: &Group<'_>) -> Outcome<Vec<Volume>> {
        let mut made = Vec::new();
        for Part { volume, name, .. } in group.parts {
            let from = format!(".snapshot/{}/{}", group.name, volume.name);
            let clone = self.clone_lun(cx, "group_part", &from, name).await?;
            made.push(Volume { snapshot_of: Some(volume.name.clone()), ..clone });
        }
        Ok(made)
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
        let cluster: Value = self.api.json(cx, cluster("identity")).await?;
        let text = |name: &str| cluster.text(name).to_owned();
        let version = version(&cluster).map(|part| part.to_string()).join(".");
        let (vendor, model) = ("NetApp".to_owned(), text("name"));
        Ok(Identity { vendor, model, serial: text("uuid"), version })
    }

    async fn pools(&self, cx: &Cx) -> Outcome<Vec<Pool>> {
        let pool = |one: &Value| {
            let space = |name: &str| one.number(&format!("space.{name}")).unwrap_or(0);
            let (size, free) = (space("size"), space("available"));
            let name = one.need("name")?.to_owned();
            Ok(Pool { name, size: Bytes(size), used: Bytes(size.saturating_sub(free)) })
        };
        self.flexvols(cx).await?.iter().map(pool).collect()
    }

    async fn records(&self, cx: &Cx) -> Outcome<Vec<(Option<String>, Volume)>> {
        let record = |lun: &Value| {
            let flexvol = lun.text("name").split('/').nth(2).map(str::to_owned);
            Ok((flexvol, volume(lun)?))
        };
        self.luns(cx, "records", "smr-*").await?.iter().map(record).collect()
    }

    async fn create(&self, cx: &Cx, new: &New<'_>) -> Outcome<Volume> {
        let mut made = self.create_lun(cx, new).await;
        if let (Err(failure), Some((aggregate, size))) = (&made, &self.aggregate)
            && failure.class == Class::NotFound
            && NAMES.is(new.name, Role::Record)
        {
            self.make_flexvol(cx, aggregate, *size).await?;
            made = self.create_lun(cx, new).await;
        }
        let made = made.map_err(|failure| {
            if failure.class != Class::NotFound {
                return failure;
            }
            let fact = format!("the SVM {} has no volume {}", self.api.vendor().svm, self.volume);
            failure.fact(fact).hint("look at svm and volume of the device configuration")
        })?;
        match made {
            Some(made) => Ok(Volume { metadata: Some(new.metadata.to_owned()), ..volume(&made)? }),
            None => self.one(cx, "create", new.name).await,
        }
    }

    async fn get(&self, cx: &Cx, name: &str) -> Outcome<Volume> {
        self.one(cx, "get", name).await
    }

    async fn list(&self, cx: &Cx, prefix: &str) -> Outcome<Vec<Volume>> {
        self.volumes(cx, "list", &format!("{prefix}*")).await
    }

    async fn resize(&self, cx: &Cx, volume: &Volume, to: Bytes) -> Outcome<Option<Bytes>> {
        let body = json!({ "space": { "size": to.0 } });
        let request = Request::patch("resize", LUNS).segment(uuid(volume)).json(&body);
        // It does not say what it made of the size.
        let has_it = self.api.just(cx, request).await.or_there()?.is_none();
        Ok(has_it.then_some(volume.size))
    }

    async fn delete(&self, cx: &Cx, volume: &Volume) -> Outcome<()> {
        let request = Request::delete("delete", LUNS).segment(uuid(volume));
        let gone = self.api.just(cx, request).await.or_absent()?.is_none();
        self.release_limits(cx, &volume.qos).await.map_err(Failure::partly)?;
        if self.aggregate.is_some() && NAMES.is(&volume.name, Role::Record) {
            self.remove_flexvol(cx, &volume.name).await.map_err(Failure::partly)?;
        }
        if gone { Err(Failure::not_found(format!("LUN {}", volume.name))) } else { Ok(()) }
    }

    async fn snapshot(&self, cx: &Cx, volume: &Volume, new: &New<'_>) -> Outcome<Volume> {
        if volume.metadata.is_none() {
            // The snapshot is told by it which disk it is of.
            self.set_attribute(cx, volume, DISK, "", true).await?;
        }
        let made = self.clone_lun(cx, "snapshot", &volume.name, new.name).await?;
        Ok(Volume { snapshot_of: Some(volume.name.clone()), ..made })
    }

    async fn prepare_group(&self, cx: &Cx, _: &Group<'_>) -> Outcome<()> {
        self.flexvol_uuid(cx).await.map(drop)
    }

    async fn snapshot_group(&self, cx: &Cx, group: &Group<'_>) -> Outcome<Vec<Volume>> {
        let flexvol = self.flexvol_uuid(cx).await?;
        let request = Request::post("group", VOLUMES).segment(&flexvol).then("/snapshots");
        self.finish(cx, "group", request.json(&json!({ "name": group.name }))).await?;
        self.clone_parts(cx, group).await.map_err(Failure::partly)
    }

    async fn release_group(&self, cx: &Cx, group: &Group<'_>) -> Outcome<()> {
        let flexvol = self.flexvol_uuid(cx).await?;
        let at = |request: Request| request.segment(&flexvol).then("/snapshots");
        let request = at(Request::get("snapshots", VOLUMES)).query("name", group.name);
        for snapshot in self.all(cx, request, "uuid,name").await? {
            let request = at(Request::delete("release", VOLUMES)).segment(snapshot.need("uuid")?);
            self.finish(cx, "release", request).await.or_absent()?;
        }
        Ok(())
    }

    fn qos_rule(&self) -> Option<QosRule> {
        Some(rule())
    }

    async fn set_qos(&self, cx: &Cx, volume: &Volume, wanted: &Qos) -> Outcome<()> {
        self.limit(cx, volume, wanted).await
    }

    async fn get_snapshot(&self, cx: &Cx, name: &str, _: Option<&Volume>) -> Outcome<Volume> {
        if !is_snapshot(name) {
            return Err(Failure::not_found(format!("snapshot {name}")));
        }
        self.one(cx, "get_snapshot", name).await
    }

    async fn snapshots(&self, cx: &Cx, of: Option<&Volume>) -> Outcome<Vec<Volume>> {
        let prefix = Codec::new(NAMES, self.sr)?.prefix(Role::Snapshot);
        let mut all = self.volumes(cx, "snapshots", &format!("{prefix}*")).await?;
        all.retain(|one| of.is_none_or(|of| one.snapshot_of.as_ref() == Some(&of.name)));
        Ok(all)
    }

    async fn delete_snapshot(&self, cx: &Cx, snapshot: &Volume) -> Outcome<()> {
        self.api.just(cx, Request::delete("delete_snapshot", LUNS).segment(uuid(snapshot))).await
    }

    async fn restore(&self, cx: &Cx, volume: &Volume, snapshot: &Volume) -> Outcome<()> {
        let mut body = json!({ "clone": { "source": { "name": self.path(&snapshot.name) } } });
        // The reference does not count the policy among what an overwritten LUN keeps.
        if let Some(policy) = qos::policy(&volume.qos, MEGABYTE) {
            body["qos_policy"] = json!({ "name": policy });
        }
        let request = Request::patch("restore", LUNS).segment(uuid(volume)).json(&body);
        self.api.just(cx, request).await
    }

    async fn clone_of(&self, cx: &Cx, source: &Volume, new: &New<'_>) -> Outcome<Volume> {
        self.clone_lun(cx, "clone", &source.name, new.name).await
    }

    async fn describe(&self, cx: &Cx, volume: &Volume, metadata: &str) -> Outcome<()> {
        let snapshot = volume.snapshot_of.is_some();
        let name = if snapshot { SNAPSHOT } else { DISK };
        let there = !snapshot || volume.metadata.is_some();
        self.set_attribute(cx, volume, name, metadata, there).await
    }

    fn is_denied(&self) -> bool {
        self.api.is_denied()
    }
}
