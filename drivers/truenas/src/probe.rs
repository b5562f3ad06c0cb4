//! What an incomplete device configuration can become: SRs that are there, pools, portals.

use std::collections::BTreeMap;

use array_kit::config::{Address, trust};
use array_kit::metadata::Document;
use array_kit::names::Role;
use plugin_sdk::config::RawConfig;
use plugin_sdk::model::sr::{FoundSr, ProbeItem, SrProbed};
use plugin_sdk::{Cx, Result};
use serde_json::json;

use crate::api::{Api, Call};
use crate::array::{DATASET, NAMES};
use crate::object::{Dataset, Portal};
use crate::{Choice, DatasetPath, credentials};

/// One item for each SR, then one for each pool; each of them for every portal, where there are
/// several and none is named.
pub(crate) async fn probe(config: &RawConfig, cx: &Cx) -> Result<SrProbed> {
    let target: Address = config.require("target")?;
    let trust = trust(config.get("ca")?, config.get("fingerprint")?)?;
    let credentials =
        credentials(config.get("api-key")?, config.get("username")?, config.get("password")?)?;
    let choice = config.get("api")?.unwrap_or(Choice::Auto);
    let pool: Option<DatasetPath> = config.get("pool")?;
    let portal: Option<u64> = config.get("portal")?;
    let api = Api::open(cx, target.url(), &trust, credentials, choice).await?;
    let portals: Vec<Portal> = api.run(cx, &Call::query("portals", "iscsi.portal", &[])).await?;
    let folders = Call::query("folders", DATASET, &[("type", "=", json!("FILESYSTEM"))]).flat();
    let folders: Vec<Dataset> = api.run(cx, &folders).await?;
    api.close(cx).await;

    let portals: Vec<&Portal> =
        portals.iter().filter(|one| portal.is_none_or(|id| one.id == id)).collect();
    let mut items = Vec::new();
    let mut add = |place: &str, sr: Option<FoundSr>, extra: BTreeMap<String, String>| {
        let mut configuration = BTreeMap::new();
        if pool.is_none() {
            configuration.insert("pool".to_owned(), place.to_owned());
        }
        if portals.len() < 2 {
            let complete = !portals.is_empty();
            items.push(ProbeItem {
                configuration,
                complete,
                sr,
                extra_info: extra,
                candidate: None,
            });
            return;
        }
        for portal in &portals {
            let (mut configuration, mut extra_info) = (configuration.clone(), extra.clone());
            configuration.insert("portal".to_owned(), portal.id.to_string());
            let addresses: Vec<&str> = portal.listen.iter().map(|one| one.ip.as_str()).collect();
            extra_info.insert("portal_addresses".to_owned(), addresses.join(", "));
            if !portal.comment.is_empty() {
                extra_info.insert("portal_comment".to_owned(), portal.comment.clone());
            }
            items.push(ProbeItem {
                configuration,
                complete: true,
                sr: sr.clone(),
                extra_info,
                candidate: None,
            });
        }
    };
    for folder in &folders {
        let Some((place, name)) = folder.id.rsplit_once('/') else { continue };
        let wanted = pool.as_ref().is_none_or(|pool| pool.0 == place);
        let Some(uuid) = NAMES.parse(name).filter(|named| named.role == Role::Record) else {
            continue;
        };
        let Some(uuid) = uuid.sr.filter(|_| wanted) else { continue };
        let document = folder.text().and_then(|text| Document::read(&text).ok());
        let (name, description) =
            document.map(|document| (document.name, document.description)).unwrap_or_default();
        add(place, Some(FoundSr { uuid, name, description }), BTreeMap::new());
    }
    for folder in &folders {
        let wanted = match &pool {
            Some(pool) => pool.0 == folder.id,
            None => !folder.id.contains('/'),
        };
        if wanted {
            let (used, free) = folder.space();
            let extra = [("free", free), ("used", used)];
            let extra = extra.map(|(key, bytes)| (key.to_owned(), bytes.0.to_string()));
            add(&folder.id, None, extra.into());
        }
    }
    Ok(SrProbed { items })
}
