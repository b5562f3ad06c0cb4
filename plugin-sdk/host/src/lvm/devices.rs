//! The disks below an SR: their names, what is on them, and which there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use plugin_sdk::config::ConfigValue;
use plugin_sdk::model::manifest::FieldKind;
use plugin_sdk::model::sr::ProbeItem;
use plugin_sdk::model::{Bytes, Kind};
use plugin_sdk::{Cx, Error, Result};
use serde::Deserialize;

/// Where names are that do not change with the order in which disks are found.
const STABLE: &str = "/dev/disk/by-id";

/// The key `device`: one name, or several with commas between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices(Vec<String>);

impl ConfigValue for Devices {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
        let plain = |c: char| c.is_ascii_graphic() && !"\"'`$*?<>|&;".contains(c);
        let fits = |name: &String| {
            name.strip_prefix("/dev/").is_some_and(|rest| !rest.is_empty())
                && name.chars().all(plain)
                && !name.split('/').any(|part| part == "..")
        };
        if names.iter().all(fits) {
            Ok(Self(names))
        } else {
            Err("one or more paths below /dev/, with commas between".to_owned())
        }
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

impl Devices {
    /// One device.
    pub fn one(path: impl Into<String>) -> Self {
        Self(vec![path.into()])
    }

    /// The devices by the names that the kernel has for them now. Asked anew for each command: a
    /// stable name may lead somewhere else after a reboot.
    pub fn resolved(&self) -> Result<Vec<String>> {
        let mut found: Vec<String> = Vec::new();
        for name in &self.0 {
            let path = Path::new(name).canonicalize().map_err(|error| {
                Error::new(Kind::Unreachable, format!("the device {name} is not there"))
                    .legacy(47)
                    .source(&error)
                    .hint(
                        "is it plugged in? lsblk shows what there is, smctl sr probe what it holds",
                    )
            })?;
            let path = path.to_string_lossy().into_owned();
            if found.contains(&path) {
                return Err(Error::config(format!("{name} names a device a second time")));
            }
            found.push(path);
        }
        Ok(found)
    }

    /// Refuses what is no block device.
    pub fn check(&self) -> Result<()> {
        for path in self.resolved()? {
            let is_block =
                std::fs::metadata(&path).is_ok_and(|found| found.file_type().is_block_device());
            if !is_block {
                return Err(Error::config(format!("{path} is not a block device")).legacy(19));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Wipefs {
    signatures: Vec<Signature>,
}

/// Something that `wipefs` finds on a device.
#[derive(Clone, Debug, Deserialize)]
pub struct Signature {
    /// Without `/dev/`.
    device: String,
    #[serde(rename = "type")]
    kind: String,
    uuid: Option<String>,
    label: Option<String>,
}

impl Signature {
    /// The device it is on.
    pub fn device(&self) -> String {
        format!("/dev/{}", self.device)
    }

    /// Whether it says no more than that LVM may use the device.
    pub fn is_lvm(&self) -> bool {
        self.kind == "LVM2_member"
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(label) = &self.label {
            write!(f, " {label:?}")?;
        }
        if let Some(uuid) = &self.uuid {
            write!(f, " ({uuid})")?;
        }
        Ok(())
    }
}

/// What file systems, partition tables and other owners have left on devices.
pub async fn signatures(cx: &Cx, devices: &[String]) -> Result<Vec<Signature>> {
    let output = cx.command("wipefs").args(["--no-act", "--json"]).args(devices).run().await?;
    parse_signatures(&output.stdout)
}

fn parse_signatures(json: &[u8]) -> Result<Vec<Signature>> {
    if json.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let found: Wipefs = serde_json::from_slice(json)
        .map_err(|error| Error::internal("the list of wipefs cannot be read").source(&error))?;
    Ok(found.signatures)
}

/// Removes all of that. Refused by `wipefs` for a device that is in use.
pub async fn wipe(cx: &Cx, devices: &[String]) -> Result<()> {
    cx.check()?;
    let cx = cx.shielded();
    let output = cx.command("wipefs").args(["--all", "--quiet"]).args(devices).output().await?;
    if output.status == 0 {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let message = format!("{} cannot be erased", devices.join(", "));
    let kind = if words.contains("busy") { Kind::InUse } else { Kind::Internal };
    Err(Error::new(kind, message)
        .legacy(16)
        .backend(words)
        .hint("unmount what is on it, or deactivate its volume group, then try again"))
}

#[derive(Deserialize)]
struct Lsblk {
    blockdevices: Vec<Block>,
}

#[derive(Deserialize)]
struct Block {
    path: String,
    #[serde(rename = "type")]
    kind: String,
    size: u64,
    fstype: Option<String>,
    model: Option<String>,
    serial: Option<String>,
    pkname: Option<String>,
    mountpoint: Option<String>,
}

/// Disks and partitions of this host that somebody could mean.
pub async fn candidates(cx: &Cx) -> Result<Vec<ProbeItem>> {
    let columns = "PATH,TYPE,SIZE,FSTYPE,MODEL,SERIAL,PKNAME,MOUNTPOINT";
    let words = ["--json", "--bytes", "--list", "--paths", "--output", columns];
    let output = cx.command("lsblk").args(words).run().await?;
    let names = cx.blocking(|_| Ok(stable_names(STABLE))).await?;
    let mut items = parse_candidates(&output.stdout, &names)?;
    let paths: Vec<String> =
        items.iter().filter_map(|item| item.extra_info.get("path").cloned()).collect();
    if paths.is_empty() {
        return Ok(items);
    }
    // lsblk asks udev, which knows nothing where it does not run. A disk that cannot be read does
    // not hide the others.
    for found in signatures(cx, &paths).await.unwrap_or_default() {
        let device = found.device();
        let item = items.iter_mut().find(|item| item.extra_info.get("path") == Some(&device));
        if let Some(item) = item {
            item.extra_info.insert("holds".to_owned(), found.to_string());
        }
    }
    Ok(items)
}

fn parse_candidates(json: &[u8], names: &BTreeMap<String, String>) -> Result<Vec<ProbeItem>> {
    let found: Lsblk = serde_json::from_slice(json)
        .map_err(|error| Error::internal("the list of lsblk cannot be read").source(&error))?;
    let parents: BTreeSet<String> =
        found.blockdevices.iter().filter_map(|block| block.pkname.clone()).collect();
    let mut items = Vec::new();
    for block in found.blockdevices {
        let usable = matches!(block.kind.as_str(), "disk" | "part" | "mpath" | "raid1" | "raid10");
        // What others are on is named by them.
        if !usable || block.size == 0 || parents.contains(&block.path) {
            continue;
        }
        let device = names.get(&block.path).cloned().unwrap_or_else(|| block.path.clone());
        let facts = [
            ("path", Some(block.path)),
            ("size", Some(Bytes(block.size).to_string())),
            ("model", block.model.map(|text| text.trim().to_owned())),
            ("serial", block.serial.map(|text| text.trim().to_owned())),
            ("holds", block.fstype),
            ("mounted at", block.mountpoint),
        ];
        items.push(ProbeItem {
            configuration: [("device".to_owned(), device)].into(),
            complete: true,
            sr: None,
            extra_info: facts
                .into_iter()
                .filter_map(|(name, text)| Some((name.to_owned(), text.filter(|t| !t.is_empty())?)))
                .collect(),
            candidate: None,
        });
    }
    Ok(items)
}

/// From the kernel's name of a device to one that stays: the shortest, for people.
fn stable_names(folder: &str) -> BTreeMap<String, String> {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.path().to_string_lossy().into_owned();
        let Ok(target) = entry.path().canonicalize() else { continue };
        if Devices::parse(&name).is_err() {
            continue;
        }
        let best =
            names.entry(target.to_string_lossy().into_owned()).or_insert_with(|| name.clone());
        if (name.len(), &name) < (best.len(), best) {
            *best = name;
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths_below_dev() {
        let two = Devices::parse("/dev/sda, /dev/disk/by-id/wwn-0x5000-part1").unwrap();
        assert_eq!(two.to_string(), "/dev/sda, /dev/disk/by-id/wwn-0x5000-part1");
        for odd in [
            "",
            "/dev/",
            "sda",
            "/srv/x",
            "/dev/a,",
            "/dev/a,,/dev/b",
            "/dev/../etc/x",
            "/dev/a b",
            "/dev/a|b",
        ] {
            assert!(Devices::parse(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_name_that_is_not_there_and_one_that_is_no_device_are_told() {
        let gone = Devices::parse("/dev/sm-no-such-device").unwrap().resolved().unwrap_err();
        assert_eq!(gone.message, "the device /dev/sm-no-such-device is not there");
        assert_eq!(gone.kind, Kind::Unreachable);
        let null = Devices::parse("/dev/null").unwrap().check().unwrap_err();
        assert_eq!(null.message, "/dev/null is not a block device");
        let twice = Devices::parse("/dev/null,/dev/../dev/null");
        assert!(twice.is_err());
        let twice = Devices::parse("/dev/null,/dev/null").unwrap().resolved().unwrap_err();
        assert_eq!(twice.message, "/dev/null names a device a second time");
    }

    /// As `wipefs --json` of util-linux 2.38.1 says it.
    #[test]
    fn signatures_are_read() {
        assert!(parse_signatures(b"").unwrap().is_empty());
        assert!(parse_signatures(b"{\n   \"signatures\": [\n\n   ]\n}\n").unwrap().is_empty());
        let found = parse_signatures(
            br#"{"signatures": [{"device":"ubdb","offset":"0x438","type":"ext4","uuid":"9323dfa4","label":"data"},
                {"device":"ubda","offset":"0x218","type":"LVM2_member","uuid":"CiV13n","label":null}]}"#,
        )
        .unwrap();
        assert_eq!(found[0].to_string(), "ext4 \"data\" (9323dfa4)");
        assert_eq!((found[1].device(), found[1].is_lvm()), ("/dev/ubda".to_owned(), true));
    }

    #[test]
    fn candidates_are_leaves_by_their_stable_name() {
        let json = br#"{"blockdevices": [
            {"path":"/dev/sda","type":"disk","size":1000,"fstype":null,"model":"Disk ","serial":"7","pkname":null,"mountpoint":null},
            {"path":"/dev/sda1","type":"part","size":900,"fstype":"ext4","model":null,"serial":null,"pkname":"/dev/sda","mountpoint":"/"},
            {"path":"/dev/sdb","type":"disk","size":2147483648,"fstype":null,"model":"Disk ","serial":"8","pkname":null,"mountpoint":null},
            {"path":"/dev/sr0","type":"rom","size":5,"fstype":null,"model":null,"serial":null,"pkname":null,"mountpoint":null},
            {"path":"/dev/loop0","type":"loop","size":5,"fstype":null,"model":null,"serial":null,"pkname":null,"mountpoint":null}]}"#;
        let names = [("/dev/sdb".to_owned(), "/dev/disk/by-id/wwn-8".to_owned())].into();
        let items = parse_candidates(json, &names).unwrap();
        let device = |item: &ProbeItem| item.configuration["device"].clone();
        assert_eq!(
            items.iter().map(device).collect::<Vec<_>>(),
            ["/dev/sda1", "/dev/disk/by-id/wwn-8"]
        );
        assert_eq!(items[0].extra_info["holds"], "ext4");
        assert_eq!(items[1].extra_info["size"], "2GiB");
        assert_eq!(items[1].extra_info["serial"], "8");
    }
}
