//! What an incomplete device configuration can become: the SRs that are there, then the places for a
//! new one.

use std::collections::BTreeMap;

use plugin_sdk::config::DeviceConfig as _;
use plugin_sdk::model::sr::{FoundSr, ProbeItem, SrProbed};
use plugin_sdk::{Cx, Result};

use super::Product;
use crate::array::{Array, MetadataPlace, Place, Volume};
use crate::metadata::Document;
use crate::names::{NameRule, Role};
use crate::outcome::Outcome;

/// The SR that a volume is the record of, by its name and the text kept with it.
pub fn record_of(names: NameRule, name: &str, text: Option<&str>) -> Option<FoundSr> {
    let named = names.parse(name).filter(|named| named.role == Role::Record)?;
    let document = text.and_then(|text| Document::read(text).ok());
    let (name, description) =
        document.map(|document| (document.name, document.description)).unwrap_or_default();
    Some(FoundSr { uuid: named.sr?, name, description })
}

/// Looks at an array that is open, and closes it. `pool` is what the configuration names already.
pub async fn look<P: Product>(
    mut array: P::Array,
    cx: &Cx,
    pool: Option<&str>,
) -> Result<SrProbed> {
    let found = items::<P>(&mut array, cx, pool).await;
    array.close(cx).await;
    Ok(SrProbed { items: found? })
}

async fn items<P: Product>(
    array: &mut P::Array,
    cx: &Cx,
    pool: Option<&str>,
) -> Outcome<Vec<ProbeItem>> {
    let places = array.places(cx).await?;
    let key = P::POOL_KEY.filter(|_| pool.is_none());
    // One that may be left out is named where there is a choice.
    let field = P::Config::FIELDS.iter().find(|field| Some(field.name) == key);
    let named = key.filter(|_| places.len() > 1 || field.is_some_and(|field| field.required));
    let configuration = |key: Option<&str>, pool: &str| {
        key.into_iter().map(|key| (key.to_owned(), pool.to_owned())).collect()
    };
    let mut items = Vec::new();
    for (pool, record) in array.records(cx).await? {
        let text = text(array, cx, &record).await?;
        let Some(sr) = record_of(array.capabilities().names, &record.name, text.as_deref()) else {
            continue;
        };
        let configuration =
            configuration(key.filter(|_| pool.is_some()), &pool.unwrap_or_default());
        items.push(ProbeItem {
            configuration,
            complete: true,
            sr: Some(sr),
            ..ProbeItem::default()
        });
    }
    for Place { pool, more } in places {
        let (size, used) = (pool.size.0, pool.used.0);
        let bytes = [("size", size), ("used", used), ("free", size.saturating_sub(used))];
        let bytes = bytes.map(|(key, bytes)| (key.to_owned(), bytes.to_string()));
        let mut extra_info = BTreeMap::from(bytes);
        extra_info.extend(more.into_iter().map(|(key, text)| (key.to_owned(), text)));
        let configuration = configuration(named, &pool.name);
        items.push(ProbeItem { configuration, complete: true, extra_info, ..ProbeItem::default() });
    }
    Ok(items)
}

/// The text of a record, wherever the array keeps it.
async fn text<A: Array>(array: &mut A, cx: &Cx, record: &Volume) -> Outcome<Option<String>> {
    let named = array.capabilities().names.parse(&record.name);
    match (array.capabilities().metadata, named.and_then(|named| named.sr)) {
        (MetadataPlace::Apart { .. }, Some(sr)) => {
            array.assign(sr);
            Ok(array.descriptions(cx, Some(record)).await?.remove(&record.id))
        }
        _ => Ok(record.metadata.clone()),
    }
}
