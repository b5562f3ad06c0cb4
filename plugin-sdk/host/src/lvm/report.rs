//! What `lvm fullreport` says: groups, physical volumes and volumes in one command.
//!
//! `lvs` says nothing of a group without volumes, `vgs` nothing of volumes; both at once, each for
//! one group, would be two commands of the same cost.

use plugin_sdk::{Error, Result};
use serde::Deserialize;

use crate::lvm::names::Names;

/// Columns of each part of the report. A column of another part would change the report's type,
/// which is an error of status 5.
pub(crate) const COLUMNS: [(&str, &str); 5] = [
    ("vg", "vg_name,vg_size,vg_free,vg_extent_size,vg_tags,vg_missing_pv_count"),
    ("pv", "pv_name,dev_size,pe_start,pv_size"),
    (
        "lv",
        "lv_name,lv_uuid,lv_size,lv_attr,lv_tags,lv_health_status,lv_layout,origin,data_percent,\
         metadata_percent,lv_metadata_size,lv_check_needed",
    ),
    // It cannot be left out.
    ("pvseg", "pvseg_start"),
    ("seg", "lv_uuid,seg_start,segtype,seg_pe_ranges,transaction_id,thin_id"),
];

/// All that lies on the devices that were looked at.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The volume groups.
    pub groups: Vec<Group>,
    /// Names of physical volumes of no group, which hold no data.
    pub orphans: Vec<String>,
}

/// A volume group.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that no volume has.
    pub free: u64,
    /// Bytes of an extent.
    pub extent: u64,
    /// Its tags.
    pub tags: Vec<String>,
    /// Physical volumes that are not among the devices.
    pub missing: u64,
    /// Names of the devices; one that is missing is `[unknown]`.
    pub devices: Vec<String>,
    /// How much of its devices the group has.
    pub sizes: Vec<Device>,
    /// Its volumes.
    pub volumes: Vec<Volume>,
}

/// How much of a device a group has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// LVM's name of it.
    pub name: String,
    /// Its size now.
    pub size: u64,
    /// Where the first extent of the group begins.
    pub first: u64,
    /// Where the last extent of the group ends.
    pub used_to: u64,
}

/// A piece of a volume: bytes in a row on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the volume.
    pub start: u64,
    /// How many.
    pub length: u64,
    /// LVM's name of the device.
    pub device: String,
    /// Where on the device.
    pub offset: u64,
}

/// A logical volume.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// The identity that no rename changes.
    pub id: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its tags.
    pub tags: Vec<String>,
    /// Empty, or LVM's word for what is wrong.
    pub health: String,
    /// The volume that it is a snapshot of, or empty.
    pub origin: String,
    /// Mapped blocks of a thin volume, or used ones of a pool, in ten-thousandths; LVM knows it
    /// while the volume is active.
    pub data: Option<u64>,
    /// The same of a pool's metadata.
    pub metadata: Option<u64>,
    /// Bytes of a pool's metadata.
    pub metadata_size: u64,
    /// Whether it has a device.
    pub active: bool,
    /// Whether its device is suspended.
    pub suspended: bool,
    /// Whether LVM lets it be written.
    pub writable: bool,
    /// A thin pool.
    pub is_pool: bool,
    /// A volume of a thin pool.
    pub is_thin: bool,
    /// A pool's metadata need a check.
    pub needs_check: bool,
    /// Of a pool, the number of the last change that LVM has recorded; of a thin volume, that of the
    /// change before the one that made it.
    pub transaction: Option<u64>,
    /// The number of a thin volume in its pool.
    pub number: Option<u64>,
    /// Where a linear volume lies, from its start to its end; empty for another one.
    pub pieces: Vec<Piece>,
}

#[derive(Deserialize)]
struct Document {
    report: Vec<Part>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Part {
    vg: Vec<RawGroup>,
    pv: Vec<RawDevice>,
    lv: Vec<RawVolume>,
    seg: Vec<RawSegment>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawSegment {
    lv_uuid: String,
    seg_start: String,
    segtype: String,
    seg_pe_ranges: String,
    transaction_id: String,
    thin_id: String,
}

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "as LVM calls them")]
struct RawGroup {
    vg_name: String,
    vg_size: String,
    vg_free: String,
    vg_extent_size: String,
    vg_tags: String,
    vg_missing_pv_count: String,
}

#[derive(Deserialize)]
struct RawDevice {
    pv_name: String,
    // Missing in what is recorded of older releases of this crate.
    #[serde(default)]
    dev_size: String,
    #[serde(default)]
    pe_start: String,
    #[serde(default)]
    pv_size: String,
}

#[derive(Deserialize)]
struct RawVolume {
    lv_name: String,
    lv_uuid: String,
    lv_size: String,
    lv_attr: String,
    lv_tags: String,
    lv_health_status: String,
    lv_layout: String,
    origin: String,
    data_percent: String,
    metadata_percent: String,
    lv_metadata_size: String,
    lv_check_needed: String,
}

impl Report {
    /// Reads the JSON of `lvm fullreport --reportformat json --units b --nosuffix`.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let document: Document = serde_json::from_slice(json)
            .map_err(|error| Error::internal("the report of lvm cannot be read").source(&error))?;
        let mut report = Self::default();
        for Part { vg, pv, lv, seg } in document.report {
            let sizes: Vec<Device> = pv.iter().map(Device::read).collect::<Result<_>>()?;
            let devices: Vec<String> = pv.into_iter().map(|device| device.pv_name).collect();
            let Some(group) = vg.into_iter().next() else {
                report.orphans.extend(devices);
                continue;
            };
            let extent = number("vg_extent_size", &group.vg_extent_size)?.max(512);
            let mut volumes: Vec<Volume> =
                lv.into_iter().map(Volume::read).collect::<Result<_>>()?;
            place(&mut volumes, &seg, &sizes, extent)?;
            report.groups.push(Group {
                size: number("vg_size", &group.vg_size)?,
                free: number("vg_free", &group.vg_free)?,
                extent,
                missing: number("vg_missing_pv_count", &group.vg_missing_pv_count)?,
                tags: list(&group.vg_tags),
                name: group.vg_name,
                devices,
                sizes,
                volumes,
            });
        }
        Ok(report)
    }
}

impl Device {
    fn read(raw: &RawDevice) -> Result<Self> {
        // Nothing is known of one that is missing.
        let or_zero = |column, text: &str| match text {
            "" => Ok(0),
            text => number(column, text),
        };
        let first = or_zero("pe_start", &raw.pe_start)?;
        let used_to = first + or_zero("pv_size", &raw.pv_size)?;
        let size = or_zero("dev_size", &raw.dev_size)?;
        Ok(Self { name: raw.pv_name.clone(), size, first, used_to })
    }
}

/// Gives volumes what their segments say: linear ones their places, thin ones their numbers. One whose
/// segments do not cover it in order gets no place.
fn place(
    volumes: &mut [Volume],
    segments: &[RawSegment],
    devices: &[Device],
    extent: u64,
) -> Result<()> {
    for volume in volumes {
        let mut pieces: Vec<Piece> = Vec::new();
        for segment in segments.iter().filter(|segment| segment.lv_uuid == volume.id) {
            volume.transaction = segment.transaction_id.parse().ok();
            volume.number = segment.thin_id.parse().ok();
            let start = number("seg_start", &segment.seg_start)?;
            // `/dev/sda:0-255`; of a striped segment there are several.
            let range = segment.seg_pe_ranges.rsplit_once(':').and_then(|(device, range)| {
                let (first, last) = range.split_once('-')?;
                Some((device, first.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
            });
            let on = |name: &str| devices.iter().find(|device| device.name == name);
            let found = range.and_then(|(name, first, last)| Some((on(name)?, first, last)));
            let Some((device, first, last)) = found.filter(|_| segment.segtype == "linear") else {
                pieces.clear();
                break;
            };
            pieces.push(Piece {
                start,
                length: (last + 1).saturating_sub(first).saturating_mul(extent),
                device: device.name.clone(),
                offset: first.saturating_mul(extent).saturating_add(device.first),
            });
        }
        pieces.sort_by_key(|piece| piece.start);
        let mut end = 0;
        let mut in_order = true;
        for piece in &pieces {
            in_order &= piece.start == end;
            end = piece.start.saturating_add(piece.length);
        }
        if in_order && end == volume.size {
            volume.pieces = pieces;
        }
    }
    Ok(())
}

impl Group {
    /// How its volumes are called, if it is an SR.
    pub fn names(&self) -> Names {
        Names::of(&self.name)
    }

    /// The volume of that name.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.name == name)
    }

    /// A size as the group can have it: whole extents. LVM counts those of a volume in 32 bits, and
    /// silently makes less of a larger number.
    pub fn rounded(&self, bytes: u64) -> Option<u64> {
        let size = bytes.checked_next_multiple_of(self.extent)?;
        u32::try_from(size / self.extent).is_ok().then_some(size)
    }
}

impl Volume {
    fn read(raw: RawVolume) -> Result<Self> {
        // lvs(8), "Attributes": type, permissions, allocation, fixed minor, state, open, ...
        let attribute = |index| raw.lv_attr.as_bytes().get(index).copied().unwrap_or(b'-');
        let state = attribute(4);
        let layout: Vec<&str> = raw.lv_layout.split(',').collect();
        let is_pool = layout.contains(&"pool");
        Ok(Self {
            size: number("lv_size", &raw.lv_size)?,
            data: percent("data_percent", &raw.data_percent)?,
            metadata: percent("metadata_percent", &raw.metadata_percent)?,
            metadata_size: match raw.lv_metadata_size.as_str() {
                "" => 0,
                text => number("lv_metadata_size", text)?,
            },
            // A suspended device is there: `s`, or with a wrong table `S`, `m`, `M`.
            active: state != b'-' && state != b'X',
            suspended: matches!(state, b's' | b'S' | b'm' | b'M'),
            writable: attribute(1) == b'w',
            is_pool,
            is_thin: layout.contains(&"thin") && !is_pool,
            needs_check: raw.lv_check_needed == "check needed",
            transaction: None,
            number: None,
            pieces: Vec::new(),
            tags: list(&raw.lv_tags),
            health: raw.lv_health_status,
            origin: raw.origin,
            name: raw.lv_name,
            id: raw.lv_uuid,
        })
    }

    /// Bytes that are mapped, while LVM knows it.
    pub fn mapped(&self) -> Option<u64> {
        let bytes = u128::from(self.size) * u128::from(self.data?) / 10_000;
        u64::try_from(bytes).ok()
    }
}

/// A comma is in no tag.
fn list(text: &str) -> Vec<String> {
    text.split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
}

fn number(column: &str, text: &str) -> Result<u64> {
    text.parse().map_err(|_| {
        Error::internal(format!("lvm reports {text:?} as {column}, which is no number"))
    })
}

/// `12.34` is 1234.
fn percent(column: &str, text: &str) -> Result<Option<u64>> {
    if text.is_empty() {
        return Ok(None);
    }
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let part = format!("{part:0<2}");
    let hundredths = part.get(..2).unwrap_or_default();
    Ok(Some(number(column, whole)? * 100 + number(column, hundredths)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded, see `tests/fixtures/README.md`.
    fn recorded(json: &str) -> Report {
        Report::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn a_group_is_read_with_its_volumes() {
        let report = recorded(include_str!("../../tests/fixtures/lvm/thin.json"));
        let [group] = &report.groups[..] else { panic!("{report:?}") };
        assert_eq!((group.size, group.free, group.extent), (528_482_304, 377_487_360, 4 << 20));
        assert_eq!(group.devices, ["/dev/ubda", "/dev/ubdb"]);
        // 2^40 extents and one would be a volume of one.
        let most = u64::from(u32::MAX) * (4 << 20);
        assert_eq!((group.rounded(1), group.rounded(most)), (Some(4 << 20), Some(most)));
        for size in [most + 1, (1 << 62) + 1, u64::MAX] {
            assert_eq!(group.rounded(size), None);
        }
        assert_eq!((group.tags.len(), group.missing), (2, 0));
        let disk = group.volume("vdi-11111111-2222-4333-8444-555555555551").unwrap();
        assert!(disk.is_thin && !disk.is_pool && disk.writable && disk.active && disk.suspended);
        assert_eq!(disk.tags, ["sm#0/0/1#x=y", "sm:v=1"]);
        // 15.62 % of 64 MiB: LVM says no more exactly that it is 10 MiB.
        assert_eq!((disk.data, disk.mapped()), (Some(1562), Some(10_482_404)));
        let snapshot = group.volume("vdi-11111111-2222-4333-8444-555555555552").unwrap();
        assert!(!snapshot.active && !snapshot.suspended && !snapshot.writable);
        assert_eq!((&snapshot.origin, snapshot.mapped()), (&disk.name, None));
        let pool = group.volume("pool").unwrap();
        assert!(pool.is_pool && !pool.is_thin && pool.active && !pool.needs_check);
        assert_eq!(
            (pool.data, pool.metadata, pool.metadata_size),
            (Some(833), Some(1094), 4 << 20)
        );
        let linear = group.volume("linear").unwrap();
        assert!(linear.active && !linear.is_thin && !linear.is_pool && linear.tags.is_empty());
    }

    #[test]
    fn what_is_missing_or_full_is_told() {
        let report = recorded(include_str!("../../tests/fixtures/lvm/missing.json"));
        let group = &report.groups[0];
        assert_eq!((group.missing, group.devices[1].as_str()), (1, "[unknown]"));
        assert!(group.volumes.iter().filter(|v| v.is_thin).all(|v| v.health == "partial"));
        let report = recorded(include_str!("../../tests/fixtures/lvm/full.json"));
        let pool = report.groups[0].volume("pool").unwrap();
        assert_eq!((pool.health.as_str(), pool.data), ("out_of_data", Some(10_000)));
    }

    #[test]
    fn a_linear_volume_is_where_its_segments_are() {
        let json = |segments: &str| {
            format!(
                r#"{{"report":[{{"vg":[{{"vg_name":"g","vg_size":"41943040","vg_free":"0",
                "vg_extent_size":"4194304","vg_tags":"","vg_missing_pv_count":"0"}}],
                "pv":[{{"pv_name":"/dev/a","dev_size":"99","pe_start":"1048576","pv_size":"8"}},
                {{"pv_name":"/dev/b:1","dev_size":"99","pe_start":"2097152","pv_size":"8"}}],
                "lv":[{{"lv_name":"v","lv_uuid":"id","lv_size":"12582912","lv_attr":"-wi-------",
                "lv_tags":"","lv_health_status":"","lv_layout":"linear","origin":"",
                "data_percent":"","metadata_percent":"","lv_metadata_size":"",
                "lv_check_needed":"unknown"}}],"seg":[{segments}]}}]}}"#
            )
        };
        let one = r#"{"lv_uuid":"id","seg_start":"8388608","segtype":"linear","seg_pe_ranges":"/dev/a:7-7"}"#;
        let two =
            r#"{"lv_uuid":"id","seg_start":"0","segtype":"linear","seg_pe_ranges":"/dev/b:1:2-3"}"#;
        let other =
            r#"{"lv_uuid":"x","seg_start":"0","segtype":"linear","seg_pe_ranges":"/dev/a:0-0"}"#;
        let pieces = |segments: &str| recorded(&json(segments)).groups[0].volumes[0].pieces.clone();
        let (mib, b) = (1 << 20, "/dev/b:1".to_owned());
        assert_eq!(
            pieces(&format!("{one},{other},{two}")),
            [
                Piece { start: 0, length: 8 * mib, device: b, offset: 10 * mib },
                Piece {
                    start: 8 * mib,
                    length: 4 * mib,
                    device: "/dev/a".into(),
                    offset: 29 * mib
                },
            ]
        );
        // A part of it, a device that is missing, another type: none, rather than wrong ones.
        assert_eq!(pieces(one), []);
        assert_eq!(pieces(&format!("{one},{}", two.replace("/dev/b:1", "[unknown]"))), []);
        assert_eq!(pieces(&format!("{one},{}", two.replace("linear", "striped"))), []);
    }

    #[test]
    fn devices_without_a_group_and_groups_without_volumes_are_there() {
        let report = recorded(include_str!("../../tests/fixtures/lvm/orphan_and_empty.json"));
        assert_eq!(report.orphans, ["/dev/ubda"]);
        assert_eq!((report.groups[0].name.as_str(), report.groups[0].volumes.len()), ("empty", 0));
        let none = recorded(include_str!("../../tests/fixtures/lvm/nothing.json"));
        assert!(none.groups.is_empty() && none.orphans.is_empty());
    }

    #[test]
    fn what_is_no_report_is_an_error() {
        assert!(Report::parse(b"").is_err());
        assert!(Report::parse(b"{}").is_err());
        let odd = include_str!("../../tests/fixtures/lvm/thin.json").replace("528482304", "504m");
        let error = Report::parse(odd.as_bytes()).unwrap_err();
        assert_eq!(error.message, r#"lvm reports "504m" as vg_size, which is no number"#);
        for (text, value) in [
            ("", None),
            ("0.00", Some(0)),
            ("100.00", Some(10_000)),
            ("7", Some(700)),
            ("7.5", Some(750)),
        ] {
            assert_eq!(percent("p", text).unwrap(), value);
        }
        assert!(percent("p", "a.b").is_err());
    }
}
