//! What this host does for a driver that asks: the same services as the core's, over the disks that
//! the check has open.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use datapath::disk::{Drive, Paused};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sm_loader::HostServices;
use sm_model::host::{
    DatapathIsServed, DatapathPause, DatapathPaused, DatapathRefresh, DatapathServed, KvGet,
    KvKeys, KvList, KvPut, KvValue, SecretGet, SecretText,
};
use sm_model::{Access, Error, Kind, Result, VdiUuid};

use crate::disk::{self, STORAGE};

/// What one SR's sessions share.
#[derive(Default)]
pub(crate) struct Services {
    state: Mutex<BTreeMap<String, Value>>,
    secrets: BTreeMap<String, String>,
    drives: Mutex<HashMap<VdiUuid, Arc<Drive>>>,
    paused: Mutex<HashMap<VdiUuid, Paused>>,
    /// Argument vectors and stored state: places where a secret must not be.
    seen: Mutex<Vec<String>>,
    backend: Option<PathBuf>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Services {
    /// With the texts behind references.
    pub(crate) fn new(secrets: BTreeMap<String, String>, backend: Option<PathBuf>) -> Self {
        Self { secrets, backend, ..Self::default() }
    }

    /// A disk's images are open for writing from now on.
    pub(crate) fn serve(&self, vdi: VdiUuid, drive: Arc<Drive>) {
        lock(&self.drives).insert(vdi, drive);
    }

    /// They are not any more.
    pub(crate) fn forget(&self, vdi: VdiUuid) {
        lock(&self.drives).remove(&vdi);
    }

    /// A call has ended, and with it the pauses it asked for.
    pub(crate) fn let_go(&self) {
        lock(&self.paused).clear();
    }

    /// All that was put where a secret must not be.
    pub(crate) fn seen(&self) -> Vec<String> {
        lock(&self.seen).clone()
    }

    fn drive(&self, vdi: VdiUuid) -> Option<Arc<Drive>> {
        lock(&self.drives).get(&vdi).cloned()
    }

    fn pause(&self, request: &DatapathPause) -> Result<DatapathPaused> {
        let mut paused = Vec::new();
        for vdi in &request.vdis {
            let Some(drive) = self.drive(*vdi) else { continue };
            let pause = match lock(&self.paused).remove(vdi) {
                Some(pause) => pause,
                None => drive.pause(Instant::now() + STORAGE).map_err(|e| failed(*vdi, &e))?,
            };
            paused.push((*vdi, pause));
        }
        if request.close {
            for (vdi, pause) in &paused {
                pause.close_files().map_err(|error| failed(*vdi, &error))?;
            }
        }
        lock(&self.paused).extend(paused);
        Ok(DatapathPaused { closed: request.close })
    }

    fn refresh(&self, request: &DatapathRefresh) -> Result<()> {
        let Some(drive) = self.drive(request.vdi) else { return Ok(()) };
        let paused = lock(&self.paused).remove(&request.vdi);
        let paused = match paused {
            Some(paused) => paused,
            None => drive.pause(Instant::now() + STORAGE).map_err(|e| failed(request.vdi, &e))?,
        };
        let plan = self.plan(&request.access, drive.plan().read_only)?;
        let prepared = drive.prepare(&plan).map_err(|error| failed(request.vdi, &error))?;
        paused.replace(prepared).map_err(|error| failed(request.vdi, &error))
    }

    fn plan(&self, access: &[Access], read_only: bool) -> Result<datapath::disk::Plan> {
        let none = || Error::internal("a data path was told of no image");
        let plan = access.first().and_then(|first| disk::plan(first, read_only));
        let plan = plan.ok_or_else(none)?;
        let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
        if let Some(backend) = self.backend.as_ref().map(real)
            && !plan.layers().all(|layer| real(&layer.path).starts_with(&backend))
        {
            return Err(Error::internal("a data path was told of a file outside of the backend"));
        }
        Ok(plan)
    }
}

fn failed(vdi: VdiUuid, error: &datapath::error::Error) -> Error {
    Error::new(Kind::Internal, format!("the data path of VDI {vdi}: {error}"))
}

#[async_trait]
impl HostServices for Services {
    fn names(&self) -> &[&str] {
        &["command", "datapath", "kv", "secret"]
    }

    async fn request(&self, service: &str, request: Vec<u8>) -> Result<Vec<u8>> {
        match service {
            "kv.get" => {
                let KvGet { key } = parse(service, &request)?;
                answer(&KvValue { value: lock(&self.state).get(&key).cloned() })
            }
            "kv.put" => {
                let KvPut { key, value, .. } = parse(service, &request)?;
                lock(&self.seen).push(format!("kv {key} {value:?}"));
                match value {
                    Some(value) => lock(&self.state).insert(key, value),
                    None => lock(&self.state).remove(&key),
                };
                answer(&json!({}))
            }
            "kv.list" => {
                let KvList { prefix } = parse(service, &request)?;
                let state = lock(&self.state);
                let own = state.iter().filter(|(key, _)| key.starts_with(&prefix));
                answer(&KvKeys { entries: own.map(|(k, v)| (k.clone(), v.clone())).collect() })
            }
            "command.record" => {
                lock(&self.seen).push(String::from_utf8_lossy(&request).into_owned());
                answer(&json!({}))
            }
            "secret.get" => {
                let SecretGet { reference } = parse(service, &request)?;
                let text = self.secrets.get(&reference).cloned();
                let text = text.ok_or_else(|| Error::not_found("there is no such secret"))?;
                answer(&SecretText { text })
            }
            "datapath.pause" => answer(&self.pause(&parse(service, &request)?)?),
            "datapath.refresh" => {
                self.refresh(&parse(service, &request)?)?;
                answer(&json!({}))
            }
            "datapath.served" => {
                let DatapathServed { vdi } = parse(service, &request)?;
                answer(&DatapathIsServed { served: self.drive(vdi).is_some() })
            }
            _ => Err(Error::unsupported(format!("this host has no service {service}"))),
        }
    }
}

fn parse<T: DeserializeOwned>(service: &str, request: &[u8]) -> Result<T> {
    serde_json::from_slice(request).map_err(|error| {
        Error::internal(format!("the driver's request to {service} is malformed")).source(&error)
    })
}

fn answer<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|error| Error::internal("an answer cannot be written as JSON").source(&error))
}
