//! What is on an array, for who has not said everything yet.

use std::collections::BTreeMap;

use array_kit::array::{Array as _, Pool};
use array_kit::metadata::Document;
use array_kit::names::Role;
use array_kit::outcome::Class;
use plugin_sdk::config::RawConfig;
use plugin_sdk::model::sr::{FoundSr, ProbeItem, SrProbed};
use plugin_sdk::{Cx, Error, Result};

use crate::array::{EqualLogic, NAMES};
use crate::config::{Config, KeyPolicy};
use crate::session::ssh::HostKey;

/// What must be known before the array can be asked, with SMAPI's numbers.
const NEEDED: &[(&str, u16)] = &[("target", 160), ("username", 161), ("password", 162)];

/// Lists the pools, and the SRs in them; without a host key that is known, the key.
pub(crate) async fn probe(raw: &RawConfig, cx: &Cx) -> Result<SrProbed> {
    for (key, number) in NEEDED {
        raw.require::<String>(key).map_err(|error| error.legacy(*number))?;
    }
    let config = whole(raw)?;
    let host_key = match (&config.host_key_fingerprint, config.host_key_policy) {
        (Some(fingerprint), _) => HostKey::Is(fingerprint.clone()),
        (None, KeyPolicy::FirstUse) => HostKey::Any,
        (None, KeyPolicy::Pinned) => HostKey::Unknown,
    };
    let known = host_key != HostKey::Unknown;
    let sessions = crate::sessions(&config, host_key)?;
    let array = EqualLogic::new(
        sessions,
        config.habits()?,
        config.chapuser.clone(),
        crate::portal(&config),
    );
    let found = match array.pools(cx).await {
        Ok(pools) => items(&array, pools, cx).await,
        Err(failure) if failure.class == Class::Denied && !known => {
            let Some(fingerprint) = failure.facts.get("fingerprint") else {
                return Err(failure.into());
            };
            let key = ("host-key-fingerprint".to_owned(), fingerprint.clone());
            let note = "compare it with the array's own before you trust it".to_owned();
            Ok(vec![ProbeItem {
                configuration: [key].into(),
                extra_info: [("host-key".to_owned(), note)].into(),
                ..ProbeItem::default()
            }])
        }
        Err(failure) => Err(failure.into()),
    };
    array.close(cx).await;
    Ok(SrProbed { items: found? })
}

/// The configuration with an empty pool where none is given.
fn whole(raw: &RawConfig) -> Result<Config> {
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    for field in <Config as plugin_sdk::config::DeviceConfig>::FIELDS {
        if let Some(value) = raw.get::<String>(field.name)? {
            values.insert(field.name.to_owned(), value);
        }
    }
    values.entry("storagepool".to_owned()).or_default();
    values.into_iter().collect::<RawConfig>().complete()
}

/// A pool as a way to go on.
pub(crate) fn candidate(pool: &Pool) -> ProbeItem {
    let size = ("size".to_owned(), pool.size.to_string());
    ProbeItem {
        configuration: [("storagepool".to_owned(), pool.name.clone())].into(),
        complete: true,
        extra_info: [size, ("used".to_owned(), pool.used.to_string())].into(),
        ..ProbeItem::default()
    }
}

async fn items(array: &EqualLogic, pools: Vec<Pool>, cx: &Cx) -> Result<Vec<ProbeItem>> {
    let mut items: Vec<ProbeItem> = pools.iter().map(candidate).collect();
    let volumes = array.list(cx, "smr-").await.map_err(Error::from)?;
    for volume in volumes {
        let Some(named) = NAMES.parse(&volume.name).filter(|named| named.role == Role::Record)
        else {
            continue;
        };
        let Some(uuid) = named.sr else { continue };
        let document = volume.metadata.as_deref().and_then(|text| Document::read(text).ok());
        let document = document.unwrap_or_else(|| Document::new(uuid));
        let pool = array.pool_of(cx, &volume.name).await?;
        let (name, description) = (document.name, document.description);
        items.push(ProbeItem {
            configuration: pool.into_iter().map(|pool| ("storagepool".to_owned(), pool)).collect(),
            complete: true,
            sr: Some(FoundSr { uuid, name, description }),
            ..ProbeItem::default()
        });
    }
    Ok(items)
}
