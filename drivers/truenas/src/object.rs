//! The array's objects as it describes them, and what they are to the driver.

use std::collections::BTreeMap;

use array_kit::array::Volume;
use plugin_sdk::model::Bytes;
use serde::Deserialize;

/// The user property that the metadata of a volume or snapshot is kept in. ZFS wants a colon in it.
pub(crate) const PROPERTY: &str = "storage-manager:vdi";

/// Most bytes of a user property: `ZAP_MAXVALUELEN` of ZFS without the final zero, rounded down.
pub(crate) const TEXT: usize = 8000;

/// A property as the API shows it.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Property {
    #[serde(default)]
    rawvalue: Option<String>,
    #[serde(default)]
    source: Option<String>,
}

impl Property {
    fn number(&self) -> Option<Bytes> {
        self.rawvalue.as_ref()?.parse().ok().map(Bytes)
    }
}

/// The text of an object. User properties are inherited, by snapshots from their volume, too: only
/// its own counts.
fn text(properties: &BTreeMap<String, Property>) -> Option<String> {
    let property = properties.get(PROPERTY)?;
    let inherited = property.source.as_deref().is_some_and(|one| one.starts_with("INHERITED"));
    property.rawvalue.clone().filter(|_| !inherited)
}

/// A dataset: a volume, or a folder of volumes.
#[derive(Debug, Deserialize)]
pub(crate) struct Dataset {
    pub(crate) id: String,
    #[serde(default, rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    volsize: Option<Property>,
    #[serde(default)]
    pub(crate) used: Option<Property>,
    #[serde(default)]
    usedbydataset: Option<Property>,
    #[serde(default)]
    available: Option<Property>,
    #[serde(default)]
    origin: Option<Property>,
    #[serde(default)]
    user_properties: BTreeMap<String, Property>,
    #[serde(default)]
    locked: bool,
}

impl Dataset {
    /// The last part of its path.
    pub(crate) fn name(&self) -> &str {
        self.id.rsplit('/').next().unwrap_or_default()
    }

    /// Bytes in it and what is left for it.
    pub(crate) fn space(&self) -> (Bytes, Bytes) {
        let number = |property: &Option<Property>| {
            property.as_ref().and_then(Property::number).unwrap_or(Bytes(0))
        };
        (number(&self.used), number(&self.available))
    }

    pub(crate) fn text(&self) -> Option<String> {
        text(&self.user_properties)
    }

    pub(crate) fn volume(self) -> Volume {
        let origin = self.origin.as_ref().and_then(|origin| origin.rawvalue.clone());
        let used = self.usedbydataset.as_ref().or(self.used.as_ref());
        let locked = "it is locked on the array, with a passphrase or key".to_owned();
        Volume {
            name: self.name().to_owned(),
            size: self.volsize.as_ref().and_then(Property::number).unwrap_or(Bytes(0)),
            used: used.and_then(Property::number),
            origin: origin.filter(|origin| !origin.is_empty() && origin != "-"),
            metadata: self.text(),
            trouble: self.locked.then_some(locked),
            id: self.id,
            ..Volume::default()
        }
    }
}

/// A snapshot of a dataset.
#[derive(Debug, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    #[serde(default)]
    createtxg: Option<String>,
    #[serde(default)]
    properties: BTreeMap<String, Property>,
    #[serde(default)]
    user_properties: BTreeMap<String, Property>,
}

impl Snapshot {
    /// As a volume; `size` is that of the volume, where the array does not tell it with the
    /// snapshot.
    pub(crate) fn volume(self, size: Bytes) -> Volume {
        let (dataset, name) = self.id.split_once('@').unwrap_or((self.id.as_str(), ""));
        let number = |key: &str| self.properties.get(key).and_then(Property::number);
        let transaction = self.createtxg.as_deref().and_then(|text| text.parse().ok());
        Volume {
            name: name.to_owned(),
            size: number("volsize").unwrap_or(size),
            used: number("used"),
            snapshot_of: Some(dataset.rsplit('/').next().unwrap_or_default().to_owned()),
            metadata: text(&self.user_properties).or_else(|| text(&self.properties)),
            order: transaction.or_else(|| Some(number("createtxg")?.0)).unwrap_or(0),
            id: self.id.clone(),
            ..Volume::default()
        }
    }
}

/// A portal: addresses where targets are reached.
#[derive(Debug, Deserialize)]
pub(crate) struct Portal {
    pub(crate) id: u64,
    #[serde(default)]
    pub(crate) listen: Vec<Listen>,
    #[serde(default)]
    pub(crate) comment: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Listen {
    pub(crate) ip: String,
    #[serde(default)]
    pub(crate) port: Option<u16>,
}

/// What all targets have in common.
#[derive(Debug, Deserialize)]
pub(crate) struct Global {
    pub(crate) basename: String,
    #[serde(default)]
    pub(crate) listen_port: Option<u16>,
}

/// Who may reach a target.
#[derive(Debug, Deserialize)]
pub(crate) struct Initiators {
    pub(crate) id: u64,
    #[serde(default)]
    pub(crate) initiators: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    pub(crate) id: u64,
    #[serde(default)]
    pub(crate) groups: Vec<Group>,
}

/// That a target is reached at a portal by a group of initiators.
#[derive(Debug, Deserialize)]
pub(crate) struct Group {
    pub(crate) portal: u64,
    #[serde(default)]
    pub(crate) initiator: Option<u64>,
}

/// A volume as a LUN, before it has a number.
#[derive(Debug, Deserialize)]
pub(crate) struct Extent {
    pub(crate) id: u64,
    #[serde(default)]
    pub(crate) disk: Option<String>,
    #[serde(default)]
    pub(crate) naa: String,
    /// Whether the array serves it.
    #[serde(default = "yes")]
    pub(crate) enabled: bool,
}

fn yes() -> bool {
    true
}

/// The number of an extent in a target.
#[derive(Debug, Deserialize)]
pub(crate) struct Association {
    pub(crate) id: u64,
    pub(crate) target: u64,
    #[serde(default)]
    pub(crate) lunid: Option<u16>,
}
