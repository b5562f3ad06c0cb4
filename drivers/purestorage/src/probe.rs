//! What an address and a token can become: the SRs that are there, and a new one.

use std::collections::BTreeMap;

use array_kit::array::Array as _;
use array_kit::config::{Address, trust};
use array_kit::http::Request;
use array_kit::metadata::Document;
use array_kit::names::Role;
use plugin_sdk::config::RawConfig;
use plugin_sdk::model::sr::{FoundSr, ProbeItem, SrProbed};
use plugin_sdk::{Cx, Result};

use crate::api::Api;
use crate::array::{NAMES, PureStorage};
use crate::object::Object;

/// One item for each SR, then one for the array.
pub(crate) async fn probe(config: &RawConfig, cx: &Cx) -> Result<SrProbed> {
    let target: Address = config.require("target")?;
    let token = config.require("api-token")?;
    let trust = trust(config.get("ca")?, config.get("fingerprint")?)?;
    let api = Api::open(cx, target.url(), &trust, token).await?;
    let request = Request::get("records", &api.path("volumes")).query("filter", "name='smr-*'");
    let request = request.query("destroyed", "false");
    let records = api.list::<Object>(cx, "volumes", request).await?;
    let mut array = PureStorage::new(api, true)?;
    let mut items = Vec::new();
    for record in records {
        let named = NAMES.parse(&record.name).filter(|named| named.role == Role::Record);
        let Some(sr) = named.and_then(|named| named.sr) else { continue };
        array.assign(sr);
        let volume = array.get(cx, &record.name).await?;
        let mut texts = array.descriptions(cx, Some(&volume)).await?;
        let document = texts.remove(&volume.id).and_then(|text| Document::read(&text).ok());
        let (name, description) =
            document.map(|document| (document.name, document.description)).unwrap_or_default();
        items.push(item(Some(FoundSr { uuid: sr, name, description }), BTreeMap::new()));
    }
    for pool in array.pools(cx).await? {
        let free = pool.size.0.saturating_sub(pool.used.0);
        let pairs = [("free", free.to_string()), ("used", pool.used.0.to_string())];
        let mut extra: BTreeMap<_, _> =
            pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        extra.insert("array".to_owned(), pool.name);
        items.push(item(None, extra));
    }
    array.close(cx).await;
    Ok(SrProbed { items })
}

fn item(sr: Option<FoundSr>, extra_info: BTreeMap<String, String>) -> ProbeItem {
    let configuration = BTreeMap::new();
    ProbeItem { configuration, complete: true, sr, extra_info, candidate: None }
}
