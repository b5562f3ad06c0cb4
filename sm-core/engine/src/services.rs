//! What the core does for a driver that asks.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sm_loader::HostServices;
use sm_model::host::{
    CommandRecord, DatapathChanges, DatapathConverge, DatapathIsServed, DatapathMerge,
    DatapathMergeState, DatapathMerging, DatapathPause, DatapathPaused, DatapathRefresh,
    DatapathServed, KvGet, KvKeys, KvList, KvPut, KvValue, SecretGet, SecretText, SnapshotCaught,
};
use sm_model::vdi::VdiChanges;
use sm_model::{Bytes, Error, Kind, Result, SrUuid, VdiUuid};

use crate::attach::is_job;
use crate::catalog::{AttachmentRecord, Catalog};
use crate::caught::Caught;
use crate::secrets::Secrets;
use crate::serving::Datapaths;

/// The services of one SR's driver: its own state, its own secrets, the data paths of its VDIs, and
/// who waits for its snapshots.
pub(crate) struct SrServices {
    pub(crate) sr: SrUuid,
    pub(crate) catalog: Catalog,
    pub(crate) secrets: Secrets,
    pub(crate) boot: String,
    pub(crate) datapaths: Arc<Datapaths>,
    pub(crate) caught: Arc<Caught>,
}

impl SrServices {
    /// What is attached of a VDI, in this boot of the host.
    fn attachment(&self, vdi: VdiUuid) -> Result<Option<AttachmentRecord>> {
        let key = crate::attach::key(self.sr, vdi);
        let found = self.catalog.get::<AttachmentRecord>(&key)?;
        Ok(found.map(|found| found.record).filter(|record| record.boot == self.boot))
    }

    /// The name of somebody who has the images of a VDI open by himself.
    fn other_holder(&self, vdi: VdiUuid) -> Result<Option<String>> {
        let Some(record) = self.attachment(vdi)? else { return Ok(None) };
        let own = |name: &&String| !record.served || is_job(name);
        let mut holders = record.datapaths.keys().filter(own);
        Ok(holders.next().cloned())
    }

    async fn datapath_pause(&self, request: DatapathPause) -> Result<DatapathPaused> {
        let mut served = Vec::new();
        let DatapathPause { vdis, lock, close, operation } = request;
        for vdi in vdis {
            if let Some(name) = self.other_holder(vdi)? {
                return Err(Error::new(
                    Kind::InUse,
                    format!("VDI {vdi} is open by {name:?}, which cannot be paused"),
                )
                .legacy(24));
            }
            if self.attachment(vdi)?.is_some_and(|record| record.served) {
                served.push(vdi);
            }
        }
        let datapaths = Arc::clone(&self.datapaths);
        blocking(move || {
            datapaths.pause(&served, lock.as_deref(), close, operation)?;
            Ok(DatapathPaused { closed: close })
        })
        .await
    }

    /// A VDI of this SR that is open by its data path only.
    fn only_served(&self, vdi: VdiUuid) -> Result<Arc<Datapaths>> {
        let served = self.attachment(vdi)?.is_some_and(|record| record.served);
        match self.other_holder(vdi)? {
            None if served => Ok(Arc::clone(&self.datapaths)),
            Some(name) => {
                let text = format!("VDI {vdi} is open by {name:?}, which cannot be told");
                Err(Error::new(Kind::InUse, text).legacy(24).context("vdi", vdi))
            }
            None => {
                let text = format!("VDI {vdi} has no data path on this host");
                Err(Error::not_found(text).context("vdi", vdi))
            }
        }
    }

    async fn datapath_merge(&self, request: DatapathMerge) -> Result<()> {
        let datapaths = self.only_served(request.vdi)?;
        blocking(move || datapaths.merge(&request)).await
    }

    async fn datapath_merging(&self, vdi: VdiUuid) -> Result<DatapathMergeState> {
        let datapaths = self.only_served(vdi)?;
        blocking(move || datapaths.merge_state(vdi)).await
    }

    async fn datapath_converge(&self, request: DatapathConverge) -> Result<()> {
        let datapaths = self.only_served(request.vdi)?;
        blocking(move || datapaths.converge(request.vdi, request.lock.as_deref())).await
    }

    async fn datapath_cancel_merge(&self, vdi: VdiUuid) -> Result<()> {
        // Also of one that has been detached since.
        let datapaths = Arc::clone(&self.datapaths);
        blocking(move || datapaths.cancel_merge(vdi)).await
    }

    async fn datapath_changes(&self, vdi: VdiUuid) -> Result<VdiChanges> {
        let datapaths = self.only_served(vdi)?;
        let found = blocking(move || datapaths.changes(vdi)).await?;
        let (size, bits) =
            found.as_ref().map_or((0, Vec::new()), |map| (map.size(), map.to_msb_first()));
        Ok(VdiChanges {
            virtual_size: Bytes(size),
            known: found.is_some(),
            why: None,
            bitmap: VdiChanges::encode(&bits),
        })
    }

    async fn datapath_refresh(&self, request: DatapathRefresh) -> Result<()> {
        // Not another SR's.
        if self.attachment(request.vdi)?.is_none() {
            return Ok(());
        }
        let datapaths = Arc::clone(&self.datapaths);
        blocking(move || datapaths.refresh(request.vdi, &request.access)).await
    }
}

#[async_trait]
impl HostServices for SrServices {
    fn names(&self) -> &[&str] {
        &["command", "datapath", "kv", "secret", "snapshot"]
    }

    async fn request(&self, service: &str, request: Vec<u8>) -> Result<Vec<u8>> {
        // A driver cannot reach another SR's state: the prefix is not its to choose.
        let key = |key: &str| format!("kv/{}/{key}", self.sr);
        match service {
            "kv.get" => {
                let KvGet { key: name } = parse(service, &request)?;
                let value = self.catalog.get(&key(&name))?.map(|found| found.record);
                json(&KvValue { value })
            }
            "kv.put" => {
                let KvPut { key: name, value, durable } = parse(service, &request)?;
                match value {
                    Some(value) => self.catalog.set(&key(&name), &value, durable)?,
                    None => self.catalog.remove(&key(&name), durable)?,
                }
                json(&serde_json::json!({}))
            }
            "kv.list" => {
                let KvList { prefix } = parse(service, &request)?;
                let own = key("");
                let entries = self
                    .catalog
                    .list(&key(&prefix))?
                    .into_iter()
                    .filter_map(|(key, value)| Some((key.strip_prefix(&own)?.to_owned(), value)))
                    .collect();
                json(&KvKeys { entries })
            }
            "command.record" => {
                let record: CommandRecord = parse(service, &request)?;
                tracing::debug!(sr = %self.sr, argv = ?record.argv, status = ?record.status,
                    milliseconds = record.milliseconds, "a driver has run a command");
                json(&serde_json::json!({}))
            }
            "secret.get" => {
                let SecretGet { reference } = parse(service, &request)?;
                json(&SecretText { text: self.secrets.get(self.sr, &reference)? })
            }
            "datapath.pause" => json(&self.datapath_pause(parse(service, &request)?).await?),
            "datapath.merge" => {
                self.datapath_merge(parse(service, &request)?).await?;
                json(&serde_json::json!({}))
            }
            "datapath.merging" => {
                let DatapathMerging { vdi } = parse(service, &request)?;
                json(&self.datapath_merging(vdi).await?)
            }
            "datapath.converge" => {
                self.datapath_converge(parse(service, &request)?).await?;
                json(&serde_json::json!({}))
            }
            "datapath.cancel_merge" => {
                let DatapathMerging { vdi } = parse(service, &request)?;
                self.datapath_cancel_merge(vdi).await?;
                json(&serde_json::json!({}))
            }
            "datapath.changes" => {
                let DatapathChanges { vdi } = parse(service, &request)?;
                json(&self.datapath_changes(vdi).await?)
            }
            "datapath.refresh" => {
                self.datapath_refresh(parse(service, &request)?).await?;
                json(&serde_json::json!({}))
            }
            "datapath.served" => {
                let DatapathServed { vdi } = parse(service, &request)?;
                let served = self.attachment(vdi)?.is_some() && self.other_holder(vdi)?.is_none();
                json(&DatapathIsServed { served })
            }
            "snapshot.caught" => {
                let SnapshotCaught { operation } = parse(service, &request)?;
                self.caught.say(self.sr, operation);
                json(&serde_json::json!({}))
            }
            _ => Err(Error::unsupported(format!("this host has no service {service}"))),
        }
    }
}

/// Runs work that blocks on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal("a thread for blocking work panicked").source(&error))?
}

fn parse<T: DeserializeOwned>(service: &str, request: &[u8]) -> Result<T> {
    serde_json::from_slice(request).map_err(|error| {
        Error::internal(format!("the driver's request to {service} is malformed")).source(&error)
    })
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|error| Error::internal("an answer cannot be written as JSON").source(&error))
}
