//! What the core does for a driver that asks.

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sm_loader::HostServices;
use sm_model::host::{CommandRecord, KvGet, KvKeys, KvList, KvPut, KvValue, SecretGet, SecretText};
use sm_model::{Error, Result, SrUuid};

use crate::catalog::Catalog;
use crate::secrets::Secrets;

/// The services of one SR's driver: its own state and its own secrets.
pub(crate) struct SrServices {
    pub(crate) sr: SrUuid,
    pub(crate) catalog: Catalog,
    pub(crate) secrets: Secrets,
}

#[async_trait]
impl HostServices for SrServices {
    fn names(&self) -> &[&str] {
        &["command", "kv", "secret"]
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
                let KvPut { key: name, value } = parse(service, &request)?;
                match value {
                    Some(value) => self.catalog.set(&key(&name), &value, false)?,
                    None => self.catalog.remove(&key(&name), false)?,
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
            _ => Err(Error::unsupported(format!("this host has no service {service}"))),
        }
    }
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
