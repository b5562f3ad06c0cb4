//! Small state of the driver's own, kept by the host.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sm_model::host::{KvGet, KvKeys, KvList, KvPut, KvValue};
use sm_model::{Error, Result};

use crate::cx::Cx;

/// Key-value state of the SR on this host, from [`Cx::kv`]. A driver that uses it lists `kv`
/// among its services.
///
/// It is a convenience: a cache, a hint, the number of a login session. What must survive the
/// machine, or be seen by another host, lies on the storage.
#[derive(Clone, Copy, Debug)]
pub struct Kv<'a> {
    pub(crate) cx: &'a Cx,
}

impl Kv<'_> {
    /// The value of a key, if there is one. Error kind `corrupt` if it has another type.
    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let answer: KvValue = self.cx.request("kv.get", &KvGet { key: key.to_owned() }).await?;
        answer.value.map(|value| typed(key, value)).transpose()
    }

    /// Sets a key.
    pub async fn put(&self, key: &str, value: &impl Serialize) -> Result<()> {
        let value = serde_json::to_value(value).map_err(|error| {
            Error::internal(format!("the value for the key {key} is no JSON")).source(&error)
        })?;
        self.set(key, Some(value), false).await
    }

    /// Removes a key; that it is gone already is success.
    pub async fn remove(&self, key: &str) -> Result<()> {
        self.set(key, None, false).await
    }

    /// As [`Self::remove`], and a loss of power does not bring it back. It costs a sync of the host's
    /// disk.
    pub async fn remove_durably(&self, key: &str) -> Result<()> {
        self.set(key, None, true).await
    }

    /// All keys that begin with `prefix`, and their values. Error kind `corrupt` if one has
    /// another type.
    pub async fn list<T: DeserializeOwned>(&self, prefix: &str) -> Result<BTreeMap<String, T>> {
        let request = KvList { prefix: prefix.to_owned() };
        let answer: KvKeys = self.cx.request("kv.list", &request).await?;
        answer
            .entries
            .into_iter()
            .map(|(key, value)| typed(&key, value).map(|value| (key, value)))
            .collect()
    }

    async fn set(&self, key: &str, value: Option<serde_json::Value>, durable: bool) -> Result<()> {
        let request = KvPut { key: key.to_owned(), value, durable };
        let _: serde_json::Value = self.cx.request("kv.put", &request).await?;
        Ok(())
    }
}

fn typed<T: DeserializeOwned>(key: &str, value: serde_json::Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| {
        Error::new(sm_model::Kind::Corrupt, format!("the state under the key {key} is unreadable"))
            .source(&error)
    })
}
