//! What is kept with each snapshot of a set, on the storage: it survives forget and introduce, and
//! another host finds it there.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sm_model::vdi::VdiInfo;
use sm_model::{Error, Kind, Result, VdiUuid};
use uuid::Uuid;

use super::SnapshotSet;
/// The set's id: a group's snapshot without its guest is a set, too.
pub(super) use crate::marks::GROUP_SNAPSHOT as SET;

/// The snapshot that all of this is about: clones, and their snapshots, take keys over.
pub(super) const MEMBER: &str = "sm:set-member";
/// How many snapshots it had.
pub(super) const SIZE: &str = "sm:set-size";
/// What it can be relied on for.
pub(super) const CONSISTENCY: &str = "sm:consistency";
/// Present where they are of one point in time.
pub(super) const ONE_POINT: &str = "sm:one-point-in-time";
/// What the guest said that it is.
pub(super) const SYSTEM: &str = "sm:guest";
/// Bytes of the document.
pub(super) const DOCUMENT: &str = "sm:document-bytes";
/// A part of the document follows this, with its number.
const DOCUMENT_PART: &str = "sm:document-";
/// The set that a clone was made of, to show it to a host.
pub(super) const PRESENTED: &str = "sm:presented";

/// Bytes of the document in one key: base64 makes them 4,096, which is the longest value.
const PART: usize = 3072;

/// What a snapshot of a set gets.
pub(super) fn of_set(set: &SnapshotSet, member: VdiUuid) -> BTreeMap<String, Option<String>> {
    let mut keys: BTreeMap<String, Option<String>> = [
        (SET.to_owned(), Some(set.id.to_string())),
        (MEMBER.to_owned(), Some(member.to_string())),
        (SIZE.to_owned(), Some(set.size.to_string())),
        (CONSISTENCY.to_owned(), Some(set.consistency.to_string())),
    ]
    .into();
    if set.one_point_in_time {
        keys.insert(ONE_POINT.to_owned(), Some("true".to_owned()));
    }
    if !set.system.is_empty() {
        keys.insert(SYSTEM.to_owned(), Some(set.system.clone()));
    }
    keys
}

/// What the first snapshot of a set gets for its document.
pub(super) fn of_document(text: &str) -> BTreeMap<String, Option<String>> {
    let parts = text.as_bytes().chunks(PART).enumerate();
    let mut keys: BTreeMap<String, Option<String>> = parts
        .map(|(n, part)| (format!("{DOCUMENT_PART}{n:04}"), Some(BASE64.encode(part))))
        .collect();
    keys.insert(DOCUMENT.to_owned(), Some(text.len().to_string()));
    keys
}

/// The set a snapshot is of.
pub(super) fn set_of(vdi: &VdiInfo) -> Option<Uuid> {
    if !vdi.is_a_snapshot {
        // A disk that was made of a snapshot may have its keys.
        return None;
    }
    let member = vdi.keys.get(MEMBER).map(|member| member.parse() == Ok(vdi.uuid));
    // A group's snapshot without its guest says less.
    let own = member.unwrap_or(!vdi.keys.contains_key(SIZE));
    if own { vdi.keys.get(SET)?.parse().ok() } else { None }
}

/// The document that is kept with a snapshot, if one is.
pub(super) fn document(vdi: &VdiInfo) -> Result<Option<String>> {
    let Some(length) = vdi.keys.get(DOCUMENT) else { return Ok(None) };
    let wrong = || {
        let text = format!("the document that is kept with snapshot {} is damaged", vdi.uuid);
        Error::new(Kind::Corrupt, text)
    };
    let mut bytes = Vec::new();
    for n in 0.. {
        let Some(part) = vdi.keys.get(&format!("{DOCUMENT_PART}{n:04}")) else { break };
        bytes.extend(BASE64.decode(part).map_err(|_| wrong())?);
    }
    if length.parse() != Ok(bytes.len()) {
        return Err(wrong());
    }
    String::from_utf8(bytes).map(Some).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sm_model::vdi::Health;
    use sm_model::{Bytes, ImageFormat, name};

    fn snapshot(keys: BTreeMap<String, Option<String>>) -> VdiInfo {
        VdiInfo {
            uuid: VdiUuid::random(),
            name: String::new(),
            description: String::new(),
            virtual_size: Bytes(0),
            physical_utilisation: Bytes(0),
            exclusive: None,
            reclaimable: None,
            format: ImageFormat::Raw,
            vdi_type: sm_model::vdi::VdiType::User,
            read_only: true,
            sharable: false,
            is_a_snapshot: true,
            cbt_enabled: false,
            snapshot_of: None,
            snapshot_time: None,
            qos: sm_model::vdi::Qos::default(),
            keys: keys.into_iter().filter_map(|(key, value)| Some((key, value?))).collect(),
            incomplete: false,
            health: Health::Ok,
        }
    }

    #[test]
    fn a_document_of_any_length_is_what_it_was() {
        for length in [0, 1, PART - 1, PART, PART + 1, 20 * PART + 7] {
            let text: String = "<ü>".chars().cycle().take(length).collect();
            let keys = of_document(&text);
            for (key, value) in &keys {
                name::check_key(key, value.as_deref().unwrap()).unwrap();
            }
            let mut vdi = snapshot(keys);
            assert_eq!(document(&vdi).unwrap().as_deref(), Some(text.as_str()), "{length}");
            if vdi.keys.remove("sm:document-0000").is_some() {
                let error = document(&vdi).unwrap_err();
                assert_eq!(error.kind, Kind::Corrupt);
            }
        }
        assert_eq!(document(&snapshot(BTreeMap::new())).unwrap(), None);
    }

    #[test]
    fn a_disk_made_of_a_snapshot_is_not_of_its_set() {
        let set = SnapshotSet::begun(Uuid::from_u128(7), 0, 1);
        let member = VdiUuid::random();
        let mut vdi = snapshot(of_set(&set, member));
        assert_eq!(set_of(&vdi), None, "of another snapshot");
        vdi.uuid = member;
        assert_eq!(set_of(&vdi), Some(set.id));
        vdi.is_a_snapshot = false;
        assert_eq!(set_of(&vdi), None, "a disk");
        let group = [(SET.to_owned(), Some(set.id.to_string()))].into();
        assert_eq!(set_of(&snapshot(group)), Some(set.id), "without its guest");
    }
}
