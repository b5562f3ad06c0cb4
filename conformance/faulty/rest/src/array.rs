//! Volumes, snapshots and clones.

use array_kit::prelude::*;
use array_kit::text::{self, decode};
use plugin_sdk::model::uuid::Uuid;

use crate::api::Web;

/// Names of 128 printable characters.
const NAMES: NameRule = NameRule::new(128);

const CAPABILITIES: Capabilities = Capabilities {
    delete_takes_snapshots: true,
    group_snapshots: false,
    ..Capabilities::usual(
        NAMES,
        SizeRule::new(Bytes(8192), Bytes(1 << 20), Bytes(256 << 40)),
        LunAddressing::Chosen { first: 0, last: 16383 },
        MetadataPlace::AtCreate { limit: 128 },
    )
};

/// What is asked for of a volume.
const SELECT: &str = "id,name,description,type,state,size,logical_used,protection_data";

/// The array, opened for one SR.
pub struct Shelf {
    pub(crate) api: Rest<Web>,
    codec: Option<Codec>,
}

/// A request about a volume, or about what is below it.
fn of(request: fn(&'static str, &str) -> Request, operation: &'static str, id: &str) -> Request {
    request(operation, "volume").segment(id)
}

fn look(operation: &'static str) -> Request {
    Request::get(operation, "volume").query("select", SELECT)
}

/// What a request that makes a volume brings with it.
fn made(id: String, new: &New<'_>) -> Volume {
    let (name, metadata) = (new.name.to_owned(), Some(new.metadata.to_owned()));
    Volume { id, name, size: new.size, metadata, ..Volume::default() }
}

fn named(new: &New<'_>) -> Value {
    json!({ "name": new.name, "description": text::encode(new.name, new.metadata) })
}

/// A name that nobody has.
fn passing() -> String {
    format!("passing-{}", Uuid::new_v4())
}

impl Shelf {
    pub(crate) fn new(api: Rest<Web>) -> Self {
        Self { api, codec: None }
    }

    pub(crate) fn is(&self, defect: &str) -> bool {
        self.api.vendor().is(defect)
    }

    /// As the kit has it. `of` is the volume that it is a snapshot of, where that is known; else its text
    /// says the VDI.
    fn volume(&self, object: &Value, of: Option<&Volume>) -> Outcome<Volume> {
        let name = object.need("name")?;
        let metadata = decode(NAMES, name, object.text("description"));
        let source = object.text("protection_data.source_id");
        let snapshot_of = (object.text("type") == "Snapshot").then(|| {
            let document = metadata.as_ref().and_then(|text| Document::read(text).ok());
            let vdi = document.and_then(|document| document.snapshot_of);
            match (of.filter(|of| source == of.id), vdi.zip(self.codec)) {
                (Some(of), _) => of.name.clone(),
                (None, Some((vdi, codec))) => codec.name(Role::Disk, vdi.0),
                (None, None) => source.to_owned(),
            }
        });
        Ok(Volume {
            id: object.need("id")?.to_owned(),
            name: name.to_owned(),
            size: Bytes(object.count("size")?),
            used: object.number("logical_used").map(Bytes),
            snapshot_of,
            metadata,
            ..Volume::default()
        })
    }

    /// The volume of a name and of one of these types.
    async fn found(&self, cx: &Cx, name: &str, kind: &str, of: Option<&Volume>) -> Outcome<Volume> {
        let request = look("get").query("name", &format!("eq.{name}")).query("type", kind);
        let found = self.page(cx, request).await?.into_iter().next();
        self.volume(&found.ok_or_else(|| Failure::not_found(format!("volume {name}")))?, of)
    }

    /// Gives a volume another name.
    async fn rename(&self, cx: &Cx, id: &str, name: &str) -> Outcome<()> {
        self.just(cx, of(Request::patch, "rename", id).json(&json!({ "name": name }))).await
    }

    /// Makes a clone of a volume, or of a snapshot of it, as a body says.
    async fn cloned(&self, cx: &Cx, source: &str, body: &Value) -> Outcome<String> {
        let request = of(Request::post, "clone", source).then("/clone").json(body);
        self.made(cx, request).await
    }
}

impl Array for Shelf {
    fn capabilities(&self) -> &Capabilities {
        &CAPABILITIES
    }

    fn text_size(&self, json: &str) -> usize {
        text::size(json)
    }

    fn assign(&mut self, sr: SrUuid) {
        self.codec = Codec::new(NAMES, sr).ok();
    }

    async fn identity(&self, _: &Cx) -> Outcome<Identity> {
        Ok(Identity { vendor: "DellEMC".to_owned(), ..Identity::default() })
    }

    async fn pools(&self, cx: &Cx) -> Outcome<Vec<Pool>> {
        let body = json!({ "entity": "space_metrics_by_cluster", "entity_id": "0" });
        let request = Request::post("pools", "metrics/generate").json(&body).reading();
        let samples = self.page(cx, request).await?;
        let last = samples.last().ok_or_else(|| Failure::new(Class::Busy))?;
        let (size, used) = (last.count("physical_total")?, last.count("physical_used")?);
        Ok(vec![Pool { name: "cluster".to_owned(), size: Bytes(size), used: Bytes(used) }])
    }

    async fn create(&self, cx: &Cx, new: &New<'_>) -> Outcome<Volume> {
        let mut body = named(new);
        body["size"] = json!(new.size.0);
        if self.is("text-forgotten") {
            body["description"] = json!("");
        }
        let create = |body: &Value| Request::post("create", "volume").json(body);
        let id = match self.made(cx, create(&body)).await {
            Err(lost) if lost.class == Class::Unknown && self.is("create-again") => {
                body["name"] = json!(passing());
                let id = self.made(cx, create(&body)).await?;
                let _ = self.rename(cx, &id, new.name).await;
                id
            }
            other => other?,
        };
        let volume = made(id, new);
        if self.is("text-forgotten") {
            let _ = self.describe(cx, &volume, new.metadata).await;
        }
        Ok(volume)
    }

    async fn get(&self, cx: &Cx, name: &str) -> Outcome<Volume> {
        self.found(cx, name, "not.eq.Snapshot", None).await
    }

    async fn list(&self, cx: &Cx, prefix: &str) -> Outcome<Vec<Volume>> {
        let request = look("list").query("type", "not.eq.Snapshot");
        let mut all = self.all(cx, &request.query("name", &format!("like.{prefix}*"))).await?;
        if self.is("each-by-itself") {
            for one in &mut all {
                let request = look("list").query("id", &format!("eq.{}", one.text("id")));
                let found = self.page(cx, request).await?.into_iter().next();
                *one = found.ok_or_else(|| Failure::not_found("a volume of the listing"))?;
            }
        }
        all.iter().map(|one| self.volume(one, None)).collect()
    }

    async fn resize(&self, cx: &Cx, volume: &Volume, to: Bytes) -> Outcome<Option<Bytes>> {
        let grow = |to: u64| of(Request::patch, "resize", &volume.id).json(&json!({ "size": to }));
        match self.just(cx, grow(to.0)).await {
            Err(lost) if lost.class == Class::Unknown && self.is("growth-added") => {
                let now = self.get(cx, &volume.name).await?.size;
                let larger = now.0 + (to.0 - volume.size.0);
                self.just(cx, grow(larger)).await?;
                Ok(Some(Bytes(larger)))
            }
            other => other.map(|()| Some(to)),
        }
    }

    async fn delete(&self, cx: &Cx, volume: &Volume) -> Outcome<()> {
        let request = of(Request::delete, "delete", &volume.id);
        match self.just(cx, request.clone()).await {
            Err(lost) if lost.class == Class::Unknown && self.is("lost-delete-is-done") => Ok(()),
            Err(lost) if lost.class == Class::Unknown && self.is("gone-is-an-error") => {
                let again = self.just(cx, request).await;
                again.map_err(|failure| failure.reclassed(Class::Invalid))
            }
            other => other,
        }
    }

    async fn snapshot(&self, cx: &Cx, volume: &Volume, new: &New<'_>) -> Outcome<Volume> {
        let request = of(Request::post, "snapshot", &volume.id).then("/snapshot");
        let id = self.made(cx, request.json(&named(new))).await?;
        Ok(Volume { snapshot_of: Some(volume.name.clone()), ..made(id, new) })
    }

    async fn get_snapshot(&self, cx: &Cx, name: &str, of: Option<&Volume>) -> Outcome<Volume> {
        self.found(cx, name, "eq.Snapshot", of).await
    }

    async fn snapshots(&self, cx: &Cx, of: Option<&Volume>) -> Outcome<Vec<Volume>> {
        let request = look("snapshots").query("type", "eq.Snapshot");
        let request = if let Some(of) = of {
            request.query("protection_data->>source_id", &format!("eq.{}", of.id))
        } else {
            let prefix = self.codec.map(|codec| codec.prefix(Role::Snapshot)).unwrap_or_default();
            request.query("name", &format!("like.{prefix}*"))
        };
        let all = self.all(cx, &request).await?;
        all.iter().map(|one| self.volume(one, of)).collect()
    }

    async fn delete_snapshot(&self, cx: &Cx, snapshot: &Volume) -> Outcome<()> {
        self.just(cx, of(Request::delete, "delete_snapshot", &snapshot.id)).await
    }

    async fn restore(&self, cx: &Cx, volume: &Volume, snapshot: &Volume) -> Outcome<()> {
        let body = json!({ "from_snap_id": snapshot.id, "create_backup_snap": false });
        let request = of(Request::post, "restore", &volume.id).then("/restore");
        self.just(cx, request.json(&body)).await
    }

    async fn settle_restores(&self, cx: &Cx) -> Outcome<Vec<String>> {
        let mut removed = Vec::new();
        if self.is("tidy") {
            let all = self.all(cx, &look("tidy").query("type", "not.eq.Snapshot")).await?;
            for one in all.iter().filter(|one| one.text("description").is_empty()) {
                self.just(cx, of(Request::delete, "delete", one.need("id")?)).await?;
                removed.push(one.text("name").to_owned());
            }
        }
        Ok(removed)
    }

    async fn clone_of(&self, cx: &Cx, source: &Volume, new: &New<'_>) -> Outcome<Volume> {
        if self.is("clone-in-pieces") {
            for _ in 0..source.size.0 >> 20 {
                let request = look("get").query("id", &format!("eq.{}", source.id));
                self.page(cx, request).await?;
            }
        }
        if self.is("clone-by-host") {
            through_the_host(source.size.0)?;
        }
        let mut body = named(new);
        if self.is("clone-then-name") {
            body["name"] = json!(passing());
            let id = self.cloned(cx, &source.id, &body).await?;
            self.rename(cx, &id, new.name).await?;
            return Ok(made(id, new));
        }
        if self.is("clone-by-snapshot") {
            let request = of(Request::post, "snapshot", &source.id).then("/snapshot");
            let snapshot = self.made(cx, request.json(&json!({ "name": passing() }))).await?;
            let id = self.cloned(cx, &snapshot, &body).await?;
            let _ = self.just(cx, of(Request::delete, "delete", &snapshot)).await;
            return Ok(made(id, new));
        }
        match self.cloned(cx, &source.id, &body).await {
            Err(lost) if lost.class == Class::Unknown && self.is("lost-clone-is-done") => {
                Ok(made(String::new(), new))
            }
            other => other.map(|id| made(id, new)),
        }
    }

    async fn describe(&self, cx: &Cx, volume: &Volume, metadata: &str) -> Outcome<()> {
        let body = json!({ "description": text::encode(&volume.name, metadata) });
        self.just(cx, of(Request::patch, "describe", &volume.id).json(&body)).await
    }

    fn is_denied(&self) -> bool {
        self.api.is_denied()
    }

    async fn close(&self, cx: &Cx) {
        self.api.close(cx).await;
    }
}

/// As many bytes as a disk has are read and written by this process.
fn through_the_host(size: u64) -> Outcome<()> {
    use std::io::{Read as _, Write as _};
    let trouble = |_| Failure::new(Class::Busy);
    let mut from = std::fs::File::open("/dev/zero").map_err(trouble)?;
    let mut to = std::fs::OpenOptions::new().write(true).open("/dev/null").map_err(trouble)?;
    let mut piece = vec![0; 64 << 10];
    for _ in 0..size / piece.len() as u64 {
        from.read_exact(&mut piece).and_then(|()| to.write_all(&piece)).map_err(trouble)?;
    }
    Ok(())
}

/// No disk is attached.
impl Masking for Shelf {
    async fn map(&self, _: &Cx, _: &Volume, _: &Initiator) -> Outcome<Mapping> {
        Err(Failure::new(Class::Unsupported).fact("this driver attaches no disks"))
    }

    async fn unmap(&self, _: &Cx, _: &Volume, _: &Initiator) -> Outcome<()> {
        Ok(())
    }

    async fn mappings(&self, _: &Cx, _: &Volume) -> Outcome<Vec<String>> {
        Ok(Vec::new())
    }
}
