//! The array's objects as it describes them, and what they are to the driver.

use array_kit::prelude::*;

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

/// Whether a name is one of a snapshot.
pub(crate) fn is_snapshot(name: &str) -> bool {
    NAMES.is(name, Role::Snapshot)
}

/// What an attribute says, and the name of the LUN that it says it of.
fn attribute<'a>(lun: &'a Value, name: &str) -> Option<(&'a str, &'a str)> {
    let mut all = lun.list("attributes").iter();
    all.find(|one| one.text("name") == name)?.text("value").split_once(' ')
}

/// A LUN as the kit has it.
pub(crate) fn volume(lun: &Value) -> Outcome<Volume> {
    let name = lun.need("name")?.rsplit('/').next().unwrap_or_default();
    let snapshot = is_snapshot(name);
    let own = attribute(lun, if snapshot { SNAPSHOT } else { DISK });
    let metadata = own.filter(|(of, text)| *of == name && !text.is_empty());
    let of = attribute(lun, DISK).map(|(of, _)| of.to_owned());
    let state = lun.text("status.state");
    let offline = matches!(state, "offline" | "nvfail" | "space_error");
    Ok(Volume {
        id: format!("{}/{}", lun.need("uuid")?, lun.text("serial_number")),
        name: name.to_owned(),
        size: Bytes(lun.number("space.size").unwrap_or(0)),
        used: lun.number("space.used").map(Bytes),
        snapshot_of: snapshot.then(|| of.unwrap_or_default()),
        metadata: metadata.map(|(_, text)| text.to_owned()),
        qos: qos::limits(lun.text("qos_policy.name"), MEGABYTE),
        trouble: offline.then(|| format!("the array says that its LUN is {state}")),
        ..Volume::default()
    })
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
}
