//! What an incomplete device configuration can become: SRs that are there, appliances.

use std::collections::BTreeMap;

use array_kit::array::Array as _;
use array_kit::config::{Address, trust};
use array_kit::metadata::Document;
use array_kit::names::Role;
use plugin_sdk::config::RawConfig;
use plugin_sdk::model::sr::{FoundSr, ProbeItem, SrProbed};
use plugin_sdk::{Cx, Result};

use crate::api::Api;
use crate::array::{NAMES, PowerStore, appliances};
use crate::object::text;

/// One item for each SR, then one for each appliance, where a new one can be.
pub(crate) async fn probe(config: &RawConfig, cx: &Cx) -> Result<SrProbed> {
    let target: Address = config.require("target")?;
    let trust = trust(config.get("ca")?, config.get("fingerprint")?)?;
    let (user, password) = (config.require("username")?, config.require("password")?);
    let wanted: Option<String> = config.get("appliance")?;
    let api = Api::open(cx, target.url(), &trust, user, password).await?;
    let array = PowerStore::new(cx, api, wanted.clone()).await?;
    let records = array.list(cx, "smr-").await?;
    let appliances = appliances(&array.api, cx).await?;
    let pools = array.pools(cx).await?;
    array.close(cx).await;

    let item = |configuration, sr, extra_info| ProbeItem {
        configuration,
        complete: true,
        sr,
        extra_info,
        candidate: None,
    };
    let mut items = Vec::new();
    for record in records {
        let named = NAMES.parse(&record.name).filter(|named| named.role == Role::Record);
        let Some(uuid) = named.and_then(|named| named.sr) else { continue };
        let document = record.metadata.and_then(|text| Document::read(&text).ok());
        let (name, description) =
            document.map(|document| (document.name, document.description)).unwrap_or_default();
        items.push(item(
            BTreeMap::new(),
            Some(FoundSr { uuid, name, description }),
            BTreeMap::new(),
        ));
    }
    let several = appliances.len() > 1;
    for one in appliances {
        let (id, name) = (text(&one, "id"), text(&one, "name"));
        if wanted.as_ref().is_some_and(|wanted| wanted != name && wanted != id) {
            continue;
        }
        let mut configuration = BTreeMap::new();
        if several && wanted.is_none() {
            configuration.insert("appliance".to_owned(), name.to_owned());
        }
        let extra = [("appliance_name", name), ("model", text(&one, "model"))];
        let extra = extra.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut extra = BTreeMap::from(extra);
        if let (Some(pool), false) = (pools.first(), several && wanted.is_none()) {
            extra.insert("size".to_owned(), pool.size.0.to_string());
            extra.insert("used".to_owned(), pool.used.0.to_string());
        }
        items.push(item(configuration, None, extra));
    }
    Ok(SrProbed { items })
}
