//! Volumes and snapshots: a request builder for each primitive.

use array_kit::prelude::*;
use array_kit::text;
use plugin_sdk::tokio::sync::Mutex;

use crate::api::Web;
use crate::object::{SELECT, is_snapshot};
use crate::qos::rule;

/// 128 printable characters (`volume_create.name`).
pub const NAMES: NameRule = NameRule::new(128);

/// Snapshots, and the clones that are snapshots of a group.
const SNAPSHOTS: &str = "in.(Snapshot,Clone)";

/// Sizes of `volume_create.size`, and the characters of a description.
const CAPABILITIES: Capabilities = Capabilities {
    delete_takes_snapshots: true,
    ..Capabilities::usual(
        NAMES,
        SizeRule::new(Bytes(8192), Bytes(1 << 20), Bytes(256 << 40)),
        LunAddressing::Chosen { first: 0, last: 16383 },
        MetadataPlace::AtCreate { limit: 128 },
    )
};

/// A PowerStore, opened for one SR.
pub struct PowerStore {
    pub(crate) api: Rest<Web>,
    /// The appliance for new volumes, if one is configured.
    appliance: Option<Value>,
    version: String,
    pub(crate) codec: Option<Codec>,
    /// The group whose members were all named a moment ago.
    pub(crate) named: Mutex<Option<String>>,
    pub(crate) known: Known,
}

impl PowerStore {
    /// Looks which release the array has, and for the appliance.
    pub(crate) async fn new(cx: &Cx, api: Rest<Web>, appliance: Option<String>) -> Result<Self> {
        let (named, known) = (Mutex::new(None), Known::default());
        let mut array =
            Self { api, appliance: None, version: String::new(), codec: None, named, known };
        let request = Request::get("version", "software_installed")
            .query("select", "release_version")
            .query("is_cluster", "eq.true");
        let software = array.first(cx, request).await?.unwrap_or_default();
        array.version = software.text("release_version").to_owned();
        if !array.is_since(3) {
            return Err(Error::unsupported(format!(
                "the array has PowerStoreOS {}",
                array.version
            ))
            .hint("this driver is for PowerStoreOS 3.0 and later"));
        }
        if let Some(wanted) = appliance {
            let all = array.appliances(cx).await?;
            let is = |one: &&Value| one.text("id") == wanted || one.text("name") == wanted;
            array.appliance = Some(all.iter().find(is).cloned().ok_or_else(|| {
                let names: Vec<&str> = all.iter().map(|one| one.text("name")).collect();
                Error::config("the array has no appliance of the name that is configured")
                    .hint(format!("appliances: {}", names.join(", ")))
            })?);
        }
        Ok(array)
    }

    fn is_since(&self, major: u32) -> bool {
        let own = self.version.split('.').next().and_then(|own| own.parse::<u32>().ok());
        own.is_some_and(|own| own >= major)
    }

    /// The appliances of the cluster.
    async fn appliances(&self, cx: &Cx) -> Outcome<Vec<Value>> {
        let request = Request::get("appliances", "appliance");
        self.api.json(cx, request.query("select", "id,name,model,service_tag")).await
    }

    /// A request for volumes or snapshots, with their limits where the release has them.
    fn look(&self, operation: &'static str) -> Request {
        let [plain, limited] = SELECT;
        let select = if self.is_since(4) { limited } else { plain };
        Request::get(operation, "volume").query("select", select)
    }

    /// The volume of a name and of one of these types.
    async fn found(&self, cx: &Cx, name: &str, kind: &str, of: Option<&Volume>) -> Outcome<Volume> {
        let request = self.look("get").query("name", &format!("eq.{name}")).query("type", kind);
        let found = self.first(cx, request).await?.filter(is_there);
        let found = found.ok_or_else(|| Failure::not_found(format!("volume {name}")))?;
        self.volume(&found, of)
    }

    /// The space of an appliance, or of the cluster.
    async fn space(&self, cx: &Cx, appliance: Option<&Value>) -> Outcome<Pool> {
        let (entity, id, name) = match appliance {
            Some(one) => ("space_metrics_by_appliance", one.text("id"), one.text("name")),
            None => ("space_metrics_by_cluster", "0", "cluster"),
        };
        let body = json!({ "entity": entity, "entity_id": id });
        let request = Request::post("pools", "metrics/generate").json(&body).reading();
        let samples: Vec<Value> = self.api.json(cx, request).await?;
        // In the order of their time.
        let figure = |name: &str| samples.last()?.number(name).map(Bytes);
        let last = figure("physical_total").zip(figure("physical_used"));
        let (size, used) = last.ok_or_else(|| {
            Failure::new(Class::Busy)
                .fact("the array has no figures of its space yet")
                .hint("it collects them every five minutes")
        })?;
        Ok(Pool { name: name.to_owned(), size, used })
    }
}

/// Whether it is not on its way out: its name may be taken still, but it serves nobody.
fn is_there(object: &Value) -> bool {
    object.text("state") != "Destroying"
}

/// What a request that makes a volume brings with it.
fn made(id: String, new: &New<'_>) -> Volume {
    let (name, metadata) = (new.name.to_owned(), Some(new.metadata.to_owned()));
    Volume { id, name, size: new.size, metadata, ..Volume::default() }
}

/// Name and text of a volume to make.
fn named(new: &New<'_>) -> Value {
    json!({ "name": new.name, "description": text::encode(new.name, new.metadata) })
}

/// A request about a volume, or about what is below it, such as `/clone`.
fn of(request: fn(&'static str, &str) -> Request, operation: &'static str, id: &str) -> Request {
    request(operation, "volume").segment(id)
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
        let all = self.appliances(cx).await?;
        let own = self.appliance.as_ref().or(all.first()).unwrap_or(&Value::Null);
        let (model, serial) = (own.text("model").to_owned(), own.text("service_tag").to_owned());
        let (vendor, version) = ("DellEMC".to_owned(), self.version.clone());
        Ok(Identity { vendor, model, serial, version })
    }

    async fn pools(&self, cx: &Cx) -> Outcome<Vec<Pool>> {
        Ok(vec![self.space(cx, self.appliance.as_ref()).await?])
    }

    async fn places(&self, cx: &Cx) -> Outcome<Vec<Place>> {
        let all = match &self.appliance {
            Some(one) => vec![one.clone()],
            None => self.appliances(cx).await?,
        };
        let mut places = Vec::new();
        for one in all {
            let text = |name: &str| one.text(name).to_owned();
            let more = vec![("appliance_name", text("name")), ("model", text("model"))];
            places.push(Place { pool: self.space(cx, Some(&one)).await?, more });
        }
        Ok(places)
    }

    async fn create(&self, cx: &Cx, new: &New<'_>) -> Outcome<Volume> {
        let mut body = named(new);
        body["size"] = json!(new.size.0);
        if let Some(appliance) = &self.appliance {
            body["appliance_id"] = json!(appliance.text("id"));
        }
        let id = self.made(cx, Request::post("create", "volume").json(&body)).await?;
        Ok(made(id, new))
    }

    async fn get(&self, cx: &Cx, name: &str) -> Outcome<Volume> {
        self.found(cx, name, "not.eq.Snapshot", None).await
    }

    async fn list(&self, cx: &Cx, prefix: &str) -> Outcome<Vec<Volume>> {
        let request = self.look("list").query("type", "not.eq.Snapshot");
        let all = self.all(cx, &request.query("name", &format!("like.{prefix}*"))).await?;
        all.iter().filter(|one| is_there(one)).map(|one| self.volume(one, None)).collect()
    }

    async fn resize(&self, cx: &Cx, volume: &Volume, to: Bytes) -> Outcome<Option<Bytes>> {
        let request = of(Request::patch, "resize", &volume.id).json(&json!({ "size": to.0 }));
        self.api.just(cx, request).await?;
        Ok(Some(to))
    }

    async fn delete(&self, cx: &Cx, volume: &Volume) -> Outcome<()> {
        let deleted = self.api.just(cx, of(Request::delete, "delete", &volume.id)).await;
        match &deleted {
            Err(failure) if failure.class != Class::NotFound => {}
            // Also if it is gone already: an earlier try may have ended between the two.
            _ => self.release_limits(cx, &volume.qos).await.map_err(Failure::partly)?,
        }
        deleted
    }

    async fn snapshot(&self, cx: &Cx, volume: &Volume, new: &New<'_>) -> Outcome<Volume> {
        let request = of(Request::post, "snapshot", &volume.id).then("/snapshot");
        let id = self.made(cx, request.json(&named(new))).await?;
        Ok(Volume { snapshot_of: Some(volume.name.clone()), ..made(id, new) })
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
        self.found(cx, name, SNAPSHOTS, of).await
    }

    async fn snapshots(&self, cx: &Cx, of: Option<&Volume>) -> Outcome<Vec<Volume>> {
        let mut request = self.look("snapshots").query("type", SNAPSHOTS);
        request = if let Some(of) = of {
            request.query("protection_data->>source_id", &format!("eq.{}", of.id))
        } else {
            let prefix = self.codec.map(|codec| codec.prefix(Role::Snapshot));
            request.query("name", &format!("like.{}*", prefix.unwrap_or_default()))
        };
        let all = self.all(cx, &request).await?;
        let ours = all.iter().filter(|one| is_there(one) && is_snapshot(one));
        ours.map(|one| self.volume(one, of)).collect()
    }

    async fn delete_snapshot(&self, cx: &Cx, snapshot: &Volume) -> Outcome<()> {
        let request = of(Request::delete, "delete_snapshot", &snapshot.id);
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
        self.api.just(cx, of(Request::post, "restore", &volume.id).then(verb).json(&body)).await
    }

    async fn clone_of(&self, cx: &Cx, source: &Volume, new: &New<'_>) -> Outcome<Volume> {
        let request = of(Request::post, "clone", &source.id).then("/clone").json(&named(new));
        Ok(made(self.made(cx, request).await?, new))
    }

    async fn describe(&self, cx: &Cx, volume: &Volume, metadata: &str) -> Outcome<()> {
        let body = json!({ "description": text::encode(&volume.name, metadata) });
        self.api.just(cx, of(Request::patch, "describe", &volume.id).json(&body)).await
    }

    fn qos_rule(&self) -> Option<QosRule> {
        // The limits of volumes came with release 4.0.
        self.is_since(4).then(rule)
    }

    async fn set_qos(&self, cx: &Cx, volume: &Volume, wanted: &Qos) -> Outcome<()> {
        self.limit(cx, volume, wanted).await
    }

    fn is_denied(&self) -> bool {
        self.api.is_denied()
    }

    async fn close(&self, cx: &Cx) {
        self.api.close(cx).await;
    }
}
