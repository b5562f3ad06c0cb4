//! The array's objects as it describes them, and what they are to the driver.

use array_kit::array::Volume;
use array_kit::names::Role;
use plugin_sdk::model::Bytes;
use plugin_sdk::model::vdi::{Qos, Rate};
use serde::Deserialize;

use crate::array::NAMES;

/// The attribute that has the metadata of a disk, and the one of a snapshot.
///
/// The value begins with the name of the LUN that it is about. A clone begins with the attributes of its
/// source, so a text about another LUN is none about this one; and in a snapshot the text about its disk
/// says which disk that is. A disk that is put back to a snapshot may get the snapshot's attributes: the
/// text about the disk is among them.
pub(crate) const DISK: &str = "storage-manager.disk";
pub(crate) const SNAPSHOT: &str = "storage-manager.snapshot";

/// Most bytes of a text: 4092 of name and value together, less the names.
pub(crate) const TEXT: usize = 3900;

/// Bytes in what the array calls a megabyte per second.
pub(crate) const MEGABYTE: u64 = 1 << 20;

/// What is asked of the array about LUNs.
pub(crate) const FIELDS: &str =
    "uuid,name,serial_number,space.size,space.used,status.state,qos_policy.name,attributes";

/// A LUN.
#[derive(Debug, Deserialize)]
pub(crate) struct Lun {
    uuid: String,
    pub(crate) name: String,
    #[serde(default)]
    serial_number: String,
    #[serde(default)]
    space: Space,
    #[serde(default)]
    status: Status,
    #[serde(default)]
    qos_policy: Named,
    #[serde(default)]
    attributes: Vec<Attribute>,
}

#[derive(Debug, Default, Deserialize)]
struct Space {
    #[serde(default)]
    size: u64,
    #[serde(default)]
    used: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
struct Status {
    #[serde(default)]
    state: String,
}

/// What has a name and a UUID.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Named {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) uuid: String,
    /// Of a QoS policy: how many use it.
    #[serde(default)]
    pub(crate) object_count: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Attribute {
    name: String,
    #[serde(default)]
    value: String,
}

/// The last part of a path.
pub(crate) fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Whether a name is one of a snapshot.
pub(crate) fn is_snapshot(name: &str) -> bool {
    NAMES.parse(name).is_some_and(|named| named.role == Role::Snapshot)
}

impl Lun {
    fn text(&self, attribute: &str) -> Option<(&str, &str)> {
        let found = self.attributes.iter().find(|one| one.name == attribute)?;
        found.value.split_once(' ')
    }

    pub(crate) fn volume(self) -> Volume {
        let name = base(&self.name);
        let snapshot = is_snapshot(name);
        let own = self.text(if snapshot { SNAPSHOT } else { DISK });
        let metadata = own.filter(|(of, text)| *of == name && !text.is_empty());
        let of = self.text(DISK).map(|(of, _)| of.to_owned());
        let offline = matches!(self.status.state.as_str(), "offline" | "nvfail" | "space_error");
        let trouble = format!("the array says that its LUN is {}", self.status.state);
        Volume {
            id: format!("{}/{}", self.uuid, self.serial_number),
            name: name.to_owned(),
            size: Bytes(self.space.size),
            used: self.space.used.map(Bytes),
            snapshot_of: snapshot.then(|| of.unwrap_or_default()),
            metadata: metadata.map(|(_, text)| text.to_owned()),
            qos: limits(&self.qos_policy.name),
            trouble: offline.then_some(trouble),
            ..Volume::default()
        }
    }
}

/// The UUID of a LUN, out of [`Volume::id`].
pub(crate) fn uuid(volume: &Volume) -> &str {
    volume.id.split_once('/').map_or(volume.id.as_str(), |(uuid, _)| uuid)
}

/// What `scsi_id` prints for a LUN.
pub(crate) fn scsi_id(volume: &Volume) -> Option<String> {
    let (_, serial) = volume.id.split_once('/')?;
    let digits = serial.bytes().flat_map(|byte| [byte >> 4, byte & 15]);
    let digits: String = digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect();
    (serial.len() == 12).then(|| format!("3600a0980{digits}"))
}

/// The policy of limits: its numbers are its name, so that LUNs share it and a listing tells them.
pub(crate) fn policy(qos: &Qos) -> Option<String> {
    let number = |rate: Option<Rate>, unit| rate.map_or(0, |rate| rate.per_second / unit);
    let numbers = (number(qos.operations, 1), number(qos.bytes, MEGABYTE));
    (numbers != (0, 0)).then(|| format!("smq-{}-{}", numbers.0, numbers.1))
}

/// The limits of a policy of ours.
pub(crate) fn limits(policy: &str) -> Qos {
    let numbers = policy.strip_prefix("smq-").and_then(|rest| rest.split_once('-'));
    let Some((operations, megabytes)) = numbers else { return Qos::default() };
    let rate = |text: &str, unit: u64| {
        let number = text.parse::<u64>().ok().filter(|number| *number > 0)?;
        Some(Rate { per_second: number.saturating_mul(unit), burst: None })
    };
    Qos { operations: rate(operations, 1), bytes: rate(megabytes, MEGABYTE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scsi_id_is_made_of_the_serial_number() {
        let volume = Volume { id: "u/81DaR$Qq/1ii".to_owned(), ..Volume::default() };
        assert_eq!(uuid(&volume), "u");
        let expected = "3600a098038314461522451712f316969";
        assert_eq!(scsi_id(&volume).as_deref(), Some(expected));
        assert_eq!(scsi_id(&Volume { id: "u/".to_owned(), ..Volume::default() }), None);
    }

    #[test]
    fn a_policy_tells_its_limits() {
        let rate = |per_second| Some(Rate { per_second, burst: None });
        let qos = Qos { operations: rate(500), bytes: rate(20 * MEGABYTE) };
        assert_eq!(policy(&qos).as_deref(), Some("smq-500-20"));
        assert_eq!(limits("smq-500-20"), qos);
        assert_eq!((policy(&Qos::default()), limits("gold")), (None, Qos::default()));
        assert_eq!(limits("smq-500-0").bytes, None);
    }
}
