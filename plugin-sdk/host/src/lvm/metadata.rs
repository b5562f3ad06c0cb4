//! What we keep about a VDI and about the SR, in tags of the volume and of the group.

use std::collections::BTreeMap;

use plugin_sdk::model::vdi::{Health, VdiInfo, VdiType};
use plugin_sdk::model::{Bytes, ImageFormat, Kind, OperationId, VdiUuid};
use plugin_sdk::prelude::quarantined_vdi;
use plugin_sdk::{Error, Result};

use crate::lvm::names::Names;
use crate::lvm::report::{Group, Volume};
use crate::lvm::tags;

/// Version of the documents. One with a higher version is left alone.
const VERSION: &str = "1";
/// How many changing operations a VDI remembers.
const REMEMBERED: usize = 8;
/// Most bytes of a VDI's tags. The group's metadata area holds 16 MiB twice, for all of its volumes.
const LARGEST: usize = 128 << 10;

/// The document of a VDI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) vdi_type: VdiType,
    pub(crate) read_only: bool,
    pub(crate) sharable: bool,
    pub(crate) is_a_snapshot: bool,
    pub(crate) snapshot_of: Option<VdiUuid>,
    pub(crate) snapshot_time: Option<u64>,
    pub(crate) incomplete: bool,
    pub(crate) keys: BTreeMap<String, String>,
    /// Bytes it took when it was last active: LVM does not know it while it is not.
    pub(crate) used: u64,
    /// The operation that made it.
    pub(crate) made_by: Option<OperationId>,
    /// The last operations that changed its content, the newest last.
    pub(crate) changed_by: Vec<OperationId>,
    /// From where on it may hold what others left on the disk: a thick volume that is not wholly
    /// zeroed. From 0 on, it is not a VDI yet.
    pub(crate) zeroed_to: Option<u64>,
}

impl Metadata {
    /// The document of a volume; the default for one that somebody else made. Error kind
    /// `corrupt`.
    pub(crate) fn of(volume: &Volume) -> Result<Self> {
        Self::read(volume).map_err(|reason| {
            Error::new(Kind::Corrupt, format!("the tags of {} are damaged: {reason}", volume.name))
                .legacy(181)
        })
    }

    fn read(volume: &Volume) -> Result<Self, String> {
        let mut document = tags::decode(volume.tags.iter().map(String::as_str))?;
        let Some(version) = document.remove("v") else {
            return if document.is_empty() {
                Ok(Self::default())
            } else {
                Err("the version is missing".to_owned())
            };
        };
        if version != VERSION {
            return Err(format!("they have version {version}, this release knows {VERSION}"));
        }
        let mut metadata = Self::default();
        for (field, value) in document {
            let wrong = || format!("{field} is {value:?}");
            match field.as_str() {
                "name" => metadata.name = value,
                "description" => metadata.description = value,
                "type" => {
                    metadata.vdi_type =
                        serde_json::from_value(value.clone().into()).map_err(|_| wrong())?;
                }
                "read-only" => metadata.read_only = true,
                "sharable" => metadata.sharable = true,
                "snapshot" => metadata.is_a_snapshot = true,
                "incomplete" => metadata.incomplete = true,
                "of" => metadata.snapshot_of = Some(value.parse().map_err(|_| wrong())?),
                "time" => metadata.snapshot_time = Some(value.parse().map_err(|_| wrong())?),
                "used" => metadata.used = value.parse().map_err(|_| wrong())?,
                "zeroed-to" => metadata.zeroed_to = Some(value.parse().map_err(|_| wrong())?),
                "by" => metadata.made_by = Some(value.parse().map_err(|_| wrong())?),
                "changed" => {
                    let ids = value.split_whitespace().map(str::parse);
                    metadata.changed_by = ids.collect::<Result<_, _>>().map_err(|_| wrong())?;
                }
                // A field that a later release added: what it means is not known, and it would be
                // lost by the next change.
                _ => match field.strip_prefix("key/") {
                    Some(key) => drop(metadata.keys.insert(key.to_owned(), value)),
                    None => return Err(format!("{field} is not known")),
                },
            }
        }
        Ok(metadata)
    }

    /// The tags to store. Error kind `limit` if they are too long.
    pub(crate) fn tags(&self) -> Result<Vec<String>> {
        let mut document: BTreeMap<String, String> =
            self.keys.iter().map(|(key, value)| (format!("key/{key}"), value.clone())).collect();
        let mut put = |field: &str, value: String| {
            if !value.is_empty() {
                document.insert(field.to_owned(), value);
            }
        };
        put("v", VERSION.to_owned());
        put("name", self.name.clone());
        put("description", self.description.clone());
        if self.vdi_type != VdiType::default() {
            let name = serde_json::to_value(self.vdi_type).ok();
            put("type", name.and_then(|name| Some(name.as_str()?.to_owned())).unwrap_or_default());
        }
        for (field, set) in [
            ("read-only", self.read_only),
            ("sharable", self.sharable),
            ("snapshot", self.is_a_snapshot),
            ("incomplete", self.incomplete),
        ] {
            put(field, if set { "1".to_owned() } else { String::new() });
        }
        let text = |number: Option<u64>| number.map(|n| n.to_string()).unwrap_or_default();
        put("of", self.snapshot_of.map(|vdi| vdi.to_string()).unwrap_or_default());
        put("time", text(self.snapshot_time));
        put("used", text(Some(self.used).filter(|used| *used > 0)));
        put("zeroed-to", text(self.zeroed_to));
        put("by", self.made_by.map(|id| id.to_string()).unwrap_or_default());
        let ids: Vec<String> = self.changed_by.iter().map(ToString::to_string).collect();
        put("changed", ids.join(" "));
        let tags = tags::encode(&document);
        let bytes: usize = tags.iter().map(String::len).sum();
        if bytes > LARGEST {
            return Err(Error::new(
                Kind::Limit,
                format!(
                    "name, description and keys take {bytes} bytes as tags, the limit is {LARGEST}"
                ),
            ));
        }
        Ok(tags)
    }

    /// Remembers an operation that changes the content.
    pub(crate) fn remember(&mut self, operation: OperationId) {
        self.changed_by.push(operation);
        let surplus = self.changed_by.len().saturating_sub(REMEMBERED);
        self.changed_by.drain(..surplus);
    }

    /// The VDI with these properties.
    pub(crate) fn info(self, uuid: VdiUuid, size: u64, used: u64) -> VdiInfo {
        VdiInfo {
            uuid,
            name: self.name,
            description: self.description,
            virtual_size: Bytes(size),
            physical_utilisation: Bytes(used),
            vdi_type: self.vdi_type,
            read_only: self.read_only,
            sharable: self.sharable,
            is_a_snapshot: self.is_a_snapshot,
            snapshot_of: self.snapshot_of,
            snapshot_time: self.snapshot_time,
            keys: self.keys,
            incomplete: self.incomplete,
            health: Health::Ok,
            ..quarantined_vdi(uuid, ImageFormat::Raw, "")
        }
    }
}

/// What to change so that a volume or group has these tags: words for `lvchange` and `vgchange`.
/// Tags of others stay. Empty if nothing is to change.
pub(crate) fn difference(before: &[String], after: &[String]) -> Vec<String> {
    let gone = before.iter().filter(|tag| tags::is_ours(tag) && !after.contains(tag));
    let new = after.iter().filter(|tag| !before.contains(tag));
    let words = |option: &'static str| move |tag: &String| [option.to_owned(), tag.clone()];
    gone.flat_map(words("--deltag")).chain(new.flat_map(words("--addtag"))).collect()
}

/// A VDI as a volume of the group. Whatever is wrong with it, it is described.
#[derive(Debug)]
pub(crate) struct Vdi<'a> {
    pub(crate) uuid: VdiUuid,
    pub(crate) volume: &'a Volume,
    pub(crate) metadata: Result<Metadata>,
}

impl Vdi<'_> {
    /// Bytes it takes: what it maps, or mapped when it was last active.
    pub(crate) fn used(&self) -> u64 {
        if !self.volume.is_thin {
            return self.volume.size;
        }
        let noted = self.metadata.as_ref().map_or(0, |metadata| metadata.used);
        self.volume.mapped().unwrap_or(noted)
    }

    pub(crate) fn info(&self, group: &Group) -> VdiInfo {
        let metadata = self.metadata.clone().unwrap_or_default();
        VdiInfo {
            health: self.health(group),
            ..metadata.info(self.uuid, self.volume.size, self.used())
        }
    }

    fn health(&self, group: &Group) -> Health {
        if let Err(error) = &self.metadata {
            return Health::Quarantined { reason: error.message.clone() };
        }
        // Of a volume; of a pool there are others, which the SR shows.
        if self.volume.health.contains("partial") {
            let reason = format!("{} of its devices is missing", group.missing.max(1));
            return Health::Quarantined { reason };
        }
        if self.metadata.as_ref().is_ok_and(|metadata| metadata.zeroed_to.is_some()) {
            let reason = "its newest part is not zeroed yet; smctl sr scan completes it".to_owned();
            return Health::Degraded { reason };
        }
        match crate::lvm::pool::trouble(group) {
            Some(reason) => Health::Degraded { reason },
            None => Health::Ok,
        }
    }
}

/// The VDIs of a group: not those that are being made. One that a revert has lost its volume in is
/// there by the volume that takes its place.
pub(crate) fn vdis(group: &Group) -> Vec<Vdi<'_>> {
    let mut vdis: BTreeMap<VdiUuid, Vdi<'_>> = BTreeMap::new();
    let names = group.names();
    for replace in [false, true] {
        for volume in &group.volumes {
            let name = &volume.name;
            let found = if replace { names.vdi_of(name) } else { Names::reverted_of(name) };
            let Some(uuid) = found else { continue };
            let metadata = Metadata::of(volume);
            let being_made = metadata.as_ref().is_ok_and(|m| m.zeroed_to == Some(0));
            if !being_made && (replace || !vdis.contains_key(&uuid)) {
                vdis.insert(uuid, Vdi { uuid, volume, metadata });
            }
        }
    }
    vdis.into_values().collect()
}

/// What the group's tags say of the SR.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SrDocument {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) thick: bool,
    pub(crate) made_by: Option<OperationId>,
}

impl SrDocument {
    /// The document of a group; none if it is no SR. Error kind `corrupt` or `unsupported`.
    pub(crate) fn of(group: &Group) -> Result<Option<Self>> {
        let corrupt = |reason: String| {
            Error::new(Kind::Corrupt, format!("the tags of {} are damaged: {reason}", group.name))
                .legacy(181)
        };
        let mut document = tags::decode(group.tags.iter().map(String::as_str)).map_err(corrupt)?;
        let Some(version) = document.remove("v") else {
            // One that XenServer made has no tags of ours, and says by its name what it is.
            let theirs = group.names() == Names::XenServer && Names::sr_of(&group.name).is_some();
            return Ok(theirs.then(|| Self { thick: true, ..Self::default() }));
        };
        if version != VERSION {
            return Err(Error::unsupported(format!(
                "{} has version {version}, this release knows {VERSION}",
                group.name
            )));
        }
        let mut take = |field: &str| document.remove(field).unwrap_or_default();
        Ok(Some(Self {
            name: take("name"),
            description: take("description"),
            thick: take("allocation") == "thick",
            made_by: take("by").parse().ok(),
        }))
    }

    /// The tags to store.
    pub(crate) fn tags(&self) -> Vec<String> {
        let allocation = if self.thick { "thick" } else { "thin" };
        let by = self.made_by.map(|id| id.to_string()).unwrap_or_default();
        let pairs = [
            ("v", VERSION),
            ("name", &self.name),
            ("description", &self.description),
            ("allocation", allocation),
            ("by", &by),
        ];
        let document = pairs.iter().filter(|(_, value)| !value.is_empty());
        tags::encode(&document.map(|(f, v)| ((*f).to_owned(), (*v).to_owned())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::report::Report;

    fn full() -> Metadata {
        let id = |n: u8| -> OperationId {
            format!("{n:08x}-2222-4333-8444-555555555555").parse().unwrap()
        };
        Metadata {
            name: "räume".to_owned(),
            description: "x".repeat(3000),
            vdi_type: VdiType::RedoLog,
            read_only: true,
            sharable: true,
            is_a_snapshot: true,
            snapshot_of: Some("11111111-2222-4333-8444-555555555555".parse().unwrap()),
            snapshot_time: Some(1_700_000_000),
            incomplete: true,
            keys: [("a/b".to_owned(), String::new())].into(),
            used: 5,
            made_by: Some(id(1)),
            changed_by: vec![id(2), id(3)],
            zeroed_to: Some(0),
        }
    }

    #[test]
    fn everything_about_a_vdi_comes_back_from_its_tags() {
        for metadata in [full(), Metadata::default()] {
            let volume = Volume { tags: metadata.tags().unwrap(), ..Volume::default() };
            assert_eq!(Metadata::of(&volume).unwrap(), metadata);
        }
        let untagged = Volume { tags: vec!["theirs".to_owned()], ..Volume::default() };
        assert_eq!(Metadata::of(&untagged).unwrap(), Metadata::default());
    }

    #[test]
    fn a_document_of_a_later_release_is_not_understood_by_half() {
        let said = |tags: &[&str]| {
            let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
            Metadata::of(&Volume { name: "v".into(), tags, ..Volume::default() })
                .unwrap_err()
                .message
                .clone()
        };
        assert_eq!(
            said(&["sm:v=2"]),
            "the tags of v are damaged: they have version 2, this release knows 1"
        );
        assert_eq!(
            said(&["sm:v=1", "sm:colour=red"]),
            "the tags of v are damaged: colour is not known"
        );
        assert_eq!(said(&["sm:name=x"]), "the tags of v are damaged: the version is missing");
        assert_eq!(said(&["sm:v=1", "sm:of=x"]), "the tags of v are damaged: of is \"x\"");
    }

    #[test]
    fn the_last_eight_changes_are_remembered() {
        let mut metadata = Metadata::default();
        let ids: Vec<OperationId> = (0..10).map(|_| OperationId::random()).collect();
        for id in &ids {
            metadata.remember(*id);
        }
        assert_eq!(metadata.changed_by, ids[2..]);
    }

    #[test]
    fn tags_of_others_stay() {
        let tags = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let before = tags(&["theirs", "sm:v=1", "sm:name=a"]);
        let words = difference(&before, &tags(&["sm:v=1", "sm:name=b"]));
        assert_eq!(words, ["--deltag", "sm:name=a", "--addtag", "sm:name=b"]);
        assert!(difference(&before, &before[1..]).is_empty());
    }

    /// Between two commands of a revert the volume of a disk may have another name; the disk is
    /// there once.
    #[test]
    fn a_listing_has_every_disk_once_whatever_was_cut() {
        let report = Report::parse(include_bytes!("../../tests/fixtures/lvm/thin.json")).unwrap();
        let mut group = report.groups.into_iter().next().unwrap();
        // The fixture's tags are no document; give them one.
        for volume in &mut group.volumes {
            volume.tags = Metadata::default().tags().unwrap();
        }
        assert_eq!(vdis(&group).len(), 2);
        let mut new = group.volumes[3].clone();
        let names = group.names();
        let uuid = names.vdi_of(&new.name).unwrap();
        new.name = Names::revert(uuid);
        new.size = 1;
        group.volumes.push(new);
        assert_eq!(vdis(&group).len(), 2);
        assert_ne!(vdis(&group).iter().find(|vdi| vdi.uuid == uuid).unwrap().volume.size, 1);
        group.volumes.retain(|volume| names.vdi_of(&volume.name) != Some(uuid));
        assert_eq!(vdis(&group).len(), 2);
        assert_eq!(vdis(&group).iter().find(|vdi| vdi.uuid == uuid).unwrap().volume.size, 1);
        // One that is being made is not there yet.
        let making = Metadata { zeroed_to: Some(0), ..Metadata::default() };
        group.volumes[4 - 1].tags = making.tags().unwrap();
        assert_eq!(vdis(&group).len(), 1);
    }
}
