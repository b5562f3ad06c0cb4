//! What is kept with each snapshot of a set, on the storage: it survives forget and introduce, and
//! another host finds it there.
//!
//! Some arrays have room for 127 characters with a snapshot, for its name and all else. So what every
//! snapshot of a set needs is one short key:
//!
//! ```text
//! sm:set = XyLg8A5NT1ydC2uPax96EQ  qRb4/w  f  8
//!          |                       |       |  how many snapshots it had
//!          |                       |       consistency: a, f or c; a capital: not of one point in time
//!          |                       the beginning of the UUID of the snapshot that it is about: clones,
//!          |                       and their snapshots, take keys over
//!          the set's id, base64 with - and /
//! ```
//!
//! (without the blanks). What only one of them has, since there may be no room, follows in keys of the
//! first one.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as SHORT};
use sm_model::vdi::VdiInfo;
use sm_model::{Error, Kind, Result, VdiUuid};
use sm_quiesce::Consistency;
use uuid::Uuid;

use super::SnapshotSet;
use crate::marks::SET;

/// Characters of a whole UUID.
const WHOLE: usize = 22;
/// Characters of a part of one: 36 bits.
const PART_OF: usize = 6;

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

/// What a key says of the set that a snapshot is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) set: Uuid,
    pub(super) size: u32,
    pub(super) consistency: Consistency,
    pub(super) one_point_in_time: bool,
}

impl Mark {
    pub(super) fn of(set: &SnapshotSet) -> Self {
        let SnapshotSet { id, size, consistency, one_point_in_time, .. } = *set;
        Self { set: id, size, consistency, one_point_in_time }
    }

    /// The key and its value, for this snapshot of the set.
    pub(super) fn key(&self, member: VdiUuid) -> (String, String) {
        let letter = match self.consistency {
            Consistency::Application => 'a',
            Consistency::FileSystem => 'f',
            Consistency::Crash => 'c',
        };
        let letter = if self.one_point_in_time { letter } else { letter.to_ascii_uppercase() };
        let whose: String = short(member.0).chars().take(PART_OF).collect();
        (SET.to_owned(), format!("{}{whose}{letter}{}", short(self.set), self.size))
    }

    /// What a snapshot says; none of a disk, nor of what has taken over the key of another one.
    pub(super) fn read(vdi: &VdiInfo) -> Option<Self> {
        let value = vdi.keys.get(SET).filter(|_| vdi.is_a_snapshot)?;
        let (set, rest) = value.split_at_checked(WHOLE)?;
        let (whose, rest) = rest.split_at_checked(PART_OF)?;
        let (letter, size) = rest.split_at_checked(1)?;
        if !short(vdi.uuid.0).starts_with(whose) {
            return None;
        }
        let consistency = match letter.to_ascii_lowercase().as_str() {
            "a" => Consistency::Application,
            "f" => Consistency::FileSystem,
            "c" => Consistency::Crash,
            _ => return None,
        };
        let bytes = SHORT.decode(set.replace('/', "_")).ok()?;
        Some(Self {
            set: Uuid::from_slice(&bytes).ok()?,
            size: size.parse().ok()?,
            consistency,
            one_point_in_time: letter.chars().all(char::is_lowercase),
        })
    }
}

fn short(uuid: Uuid) -> String {
    SHORT.encode(uuid.as_bytes()).replace('_', "/")
}

/// What the first snapshot of a set gets for what its guest said.
pub(super) fn of_system(system: &str) -> BTreeMap<String, Option<String>> {
    [(SYSTEM.to_owned(), Some(system.to_owned()))].into()
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
    fn what_a_set_is_fits_into_thirty_characters_and_is_read_back() {
        let levels = [Consistency::Application, Consistency::FileSystem, Consistency::Crash];
        for (consistency, one_point_in_time) in levels.into_iter().zip([true, false, true]) {
            let mark = Mark { set: Uuid::new_v4(), size: 8, consistency, one_point_in_time };
            let member = VdiUuid::random();
            let (key, value) = mark.key(member);
            assert_eq!((key.as_str(), value.len()), ("sm:set", 30), "{value}");
            // None of them takes an array's command line more than one.
            let plain = |c: char| c.is_ascii_alphanumeric() || "-/".contains(c);
            assert!(value.chars().all(plain), "{value}");
            let vdi = VdiInfo { uuid: member, ..snapshot([(key, Some(value))].into()) };
            assert_eq!(Mark::read(&vdi), Some(mark));
        }
    }

    #[test]
    fn a_disk_made_of_a_snapshot_is_not_of_its_set() {
        let set = SnapshotSet::begun(Uuid::from_u128(7), 0, 1);
        let member = VdiUuid::random();
        let (key, value) = Mark::of(&set).key(member);
        let mut vdi = snapshot([(key, Some(value))].into());
        assert_eq!(Mark::read(&vdi), None, "of another snapshot");
        vdi.uuid = member;
        assert_eq!(Mark::read(&vdi).map(|mark| mark.set), Some(set.id));
        for cut in [0, 5, 22, 28, 29] {
            let mut vdi = vdi.clone();
            vdi.keys.values_mut().for_each(|value| value.truncate(cut));
            assert_eq!(Mark::read(&vdi), None, "{cut}");
        }
        vdi.is_a_snapshot = false;
        assert_eq!(Mark::read(&vdi), None, "a disk");
    }
}
