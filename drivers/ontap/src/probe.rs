//! What an incomplete device configuration can become: SRs that are there, and FlexVols.

use std::collections::BTreeMap;

use array_kit::config::{Address, trust};
use array_kit::metadata::Document;
use array_kit::names::Role;
use plugin_sdk::config::RawConfig;
use plugin_sdk::model::sr::{FoundSr, ProbeItem, SrProbed};
use plugin_sdk::{Cx, Result, Secret};

use crate::VolumeName;
use crate::api::Api;
use crate::array::{NAMES, flexvols, luns};

/// One item for each SR, then one for each FlexVol.
pub(crate) async fn probe(config: &RawConfig, cx: &Cx) -> Result<SrProbed> {
    let target: Address = config.require("target")?;
    let trust = trust(config.get("ca")?, config.get("fingerprint")?)?;
    let user: String = config.require("username")?;
    let password: Secret = config.require("password")?;
    let svm: String = config.require("svm")?;
    let volume: Option<VolumeName> = config.get("volume")?;
    let api = Api::open(cx, target.url(), &trust, &user, &password, &svm).await?;
    let wanted = volume.as_ref().map_or("*", |volume| volume.0.as_str());
    let places = flexvols(&api, cx, wanted).await?;

    let mut items = Vec::new();
    let mut add = |place: &str, sr: Option<FoundSr>, extra_info: BTreeMap<String, String>| {
        let named = volume.is_none().then(|| ("volume".to_owned(), place.to_owned()));
        let configuration = named.into_iter().collect();
        items.push(ProbeItem { configuration, complete: true, sr, extra_info, candidate: None });
    };
    for place in &places {
        for record in luns(&api, cx, "records", &format!("/vol/{}/smr-*", place.name)).await? {
            let named = NAMES.parse(&record.name).filter(|named| named.role == Role::Record);
            let Some(uuid) = named.and_then(|named| named.sr) else { continue };
            let document = record.metadata.and_then(|text| Document::read(&text).ok());
            let (name, description) =
                document.map(|found| (found.name, found.description)).unwrap_or_default();
            add(&place.name, Some(FoundSr { uuid, name, description }), BTreeMap::new());
        }
    }
    for place in &places {
        let pool = place.pool();
        let free = pool.size.0.saturating_sub(pool.used.0);
        let extra = [("free", free), ("used", pool.used.0)];
        add(
            &place.name,
            None,
            extra.map(|(key, bytes)| (key.to_owned(), bytes.to_string())).into(),
        );
    }
    Ok(SrProbed { items })
}
