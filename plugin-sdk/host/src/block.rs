//! SCSI disks of this host, by what they are and not by where they are.
//!
//! A disk is found by its SCSIid, the identifier of VPD page 83 that `scsi_id` and multipath use,
//! never by its number or its name: both can mean another disk a moment later. All of it is read
//! from sysfs: no program runs, and no udev is waited for.
//!
//! # Why not ...
//!
//! - **`/dev/disk/by-id`**: udev makes those names some time after the disk is there, and takes
//!   them away some time after it is gone; where it does not run there are none.
//! - **`scsi_id`, a process for each disk**: the kernel has read the same page when it found the
//!   disk. [`Disk::refresh`] makes it read it again.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use plugin_sdk::config::ConfigValue;
use plugin_sdk::model::Kind;
use plugin_sdk::model::manifest::FieldKind;
use plugin_sdk::{Cx, Error, Result, tokio};

pub use crate::lvm::{Signature, signatures, wipe};

/// Between two looks at a condition, at most.
const PAUSE: Duration = Duration::from_millis(100);
/// Most time until a disk has its block device.
const APPEARS: Duration = Duration::from_secs(10);
/// Most time for one write to sysfs. It ends when the disk has answered.
const SYSFS: Duration = Duration::from_secs(15);

/// What a LUN is called by everybody who can reach it: `3` and its NAA number, for instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScsiId(String);

impl ScsiId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The identifier in VPD page 83, as `scsi_id --whitelisted` tells it: of those that belong to
    /// the unit itself, the best kind.
    pub fn of_page83(page: &[u8]) -> Option<Self> {
        let body = page.get(4..)?;
        let length = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
        let mut rest = body.get(..length.min(body.len()))?;
        let mut best: Option<(u8, String)> = None;
        // SPC-4, 7.8.5: code set, association and kind, length, identifier.
        while let [codes, kind, _, length, after @ ..] = rest {
            let Some((value, next)) = after.split_at_checked(usize::from(*length)) else { break };
            rest = next;
            if (kind >> 4) & 3 != 0 {
                continue; // Of a port or a target, which many units have in common.
            }
            let hex = |digit: char| {
                value.iter().fold(String::from(digit), |mut text, byte| {
                    let _ = write!(text, "{byte:02x}");
                    text
                })
            };
            let candidate = match (kind & 15, codes & 15) {
                // Registered extended before registered before the others, as scsi_id does.
                (3, 1) => {
                    let rank = match value.first().map(|byte| byte >> 4) {
                        Some(6) => 0,
                        Some(5) => 1,
                        _ => 2,
                    };
                    Some((rank, hex('3')))
                }
                (2, 1) => Some((3, hex('2'))),
                (1, 2 | 3) => Some((4, format!("1{}", underscored(value)))),
                (0, 2 | 3) => Some((5, format!("0{}", underscored(value)))),
                _ => None,
            };
            if let Some(found) = candidate
                && best.as_ref().is_none_or(|best| found.0 < best.0)
            {
                best = Some(found);
            }
        }
        Self::parse(&best?.1).ok()
    }
}

/// Text of a disk as one word: blanks at the ends go, those within become one `_`.
fn underscored(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace('\0', " ");
    text.split_whitespace().collect::<Vec<_>>().join("_")
}

impl ConfigValue for ScsiId {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
        if !text.is_empty() && text.len() <= 128 && text.chars().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err("an identifier as scsi_id prints it, such as 3600140500...".to_owned())
        }
    }
}

impl fmt::Display for ScsiId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SCSI disk as the kernel knows it: one path to a LUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name, `sda`.
    pub name: String,
    /// Its identifier; none if it has no page 83.
    pub id: Option<ScsiId>,
    /// Size in bytes.
    pub size: u64,
    /// Who made it.
    pub vendor: String,
    /// What it is.
    pub model: String,
    /// The whole serial number, of which the identifier may have a part.
    pub serial: String,
    /// Number of the LUN at its target.
    pub lun: u64,
    /// SCSI host that it is at.
    pub host: u32,
    /// The iSCSI session that it is reached by.
    pub session: Option<u32>,
    /// `running`, `blocked`, `transport-offline`, ...
    pub state: String,
    /// Devices that are on top of it.
    pub holders: Vec<String>,
}

impl Disk {
    /// Its device.
    pub fn device(&self) -> String {
        format!("/dev/{}", self.name)
    }

    /// Whether the kernel sends it requests.
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }

    /// The number of its LUN, however the target addresses it: in the kernel's numbers flat
    /// addressing (SAM-5, 4.7.7.5) is above 16384.
    pub fn number(&self) -> u64 {
        if self.lun >> 14 == 1 { self.lun & 0x3fff } else { self.lun }
    }

    /// Has the kernel ask the disk anew what it is and how large. A path that is down is left
    /// alone: it would answer when it is up again.
    pub async fn refresh(&self, cx: &Cx) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        write(cx, attribute(&self.name, "rescan"), "1").await
    }

    /// Has the kernel forget this path. Nothing may be on top of it: error kind `in_use`.
    pub async fn remove(&self, cx: &Cx) -> Result<()> {
        if let Some(holder) = self.holders.first() {
            return Err(Error::new(Kind::InUse, format!("{holder} is on {}", self.device()))
                .legacy(16)
                .hint("lsblk shows what is on top of it"));
        }
        write(cx, attribute(&self.name, "delete"), "1").await
    }
}

fn attribute(disk: &str, name: &str) -> PathBuf {
    Path::new("/sys/block").join(disk).join("device").join(name)
}

/// All SCSI disks. One that goes away meanwhile is left out.
pub fn disks() -> Vec<Disk> {
    disks_below(Path::new("/sys"))
}

fn disks_below(sys: &Path) -> Vec<Disk> {
    let mut disks: Vec<Disk> = Vec::new();
    for entry in std::fs::read_dir(sys.join("block")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("sd")
            && let Some(disk) = read(&entry.path(), name)
        {
            disks.push(disk);
        }
    }
    disks.sort_by(|a, b| (a.name.len(), &a.name).cmp(&(b.name.len(), &b.name)));
    disks
}

fn read(folder: &Path, name: String) -> Option<Disk> {
    let text = |file: &str| {
        let text = std::fs::read_to_string(folder.join(file)).ok()?;
        Some(text.trim().to_owned())
    };
    let place = folder.join("device").canonicalize().ok()?;
    let parts: Vec<String> =
        place.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    let mut address = parts.last()?.split(':');
    let host = address.next()?.parse().ok()?;
    let lun = address.nth(2)?.parse().ok()?;
    let session = parts.iter().find_map(|part| part.strip_prefix("session")?.parse().ok());
    let page = |file: &str| std::fs::read(folder.join("device").join(file)).unwrap_or_default();
    let holders = std::fs::read_dir(folder.join("holders")).into_iter().flatten().flatten();
    Some(Disk {
        id: ScsiId::of_page83(&page("vpd_pg83")),
        size: text("size")?.parse::<u64>().ok()? * 512,
        vendor: text("device/vendor").unwrap_or_default(),
        model: text("device/model").unwrap_or_default(),
        // SPC-4, 7.8.15: four bytes of head, then text.
        serial: page("vpd_pg80").get(4..).map(underscored).unwrap_or_default(),
        lun,
        host,
        session,
        state: text("device/state").unwrap_or_default(),
        holders: holders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect(),
        name,
    })
}

/// The paths to a LUN that there are now. Error with SMAPI's 119 if they lead to different disks
/// that call themselves the same: nothing can tell them apart, so nothing may be written.
pub fn paths(id: &ScsiId) -> Result<Vec<Disk>> {
    let found: Vec<Disk> =
        disks().into_iter().filter(|disk| disk.id.as_ref() == Some(id)).collect();
    agree(id, &found)?;
    Ok(found)
}

/// Whether all paths lead to one disk.
pub fn agree(id: &ScsiId, paths: &[Disk]) -> Result<()> {
    let Some(first) = paths.first() else { return Ok(()) };
    for other in paths {
        let differs = if other.serial != first.serial {
            "serial numbers"
        } else if (&other.vendor, &other.model) != (&first.vendor, &first.model) {
            "products"
        } else {
            continue;
        };
        return Err(Error::new(
            Kind::Corrupt,
            format!(
                "{} and {} have the same SCSIid {id} and different {differs}",
                first.device(),
                other.device()
            ),
        )
        .legacy(119)
        .context("first", format!("LUN {}, serial {}", first.lun, first.serial))
        .context("second", format!("LUN {}, serial {}", other.lun, other.serial))
        .hint("two LUNs of the array have the same identifier: give one of them another"));
    }
    Ok(())
}

/// The size that all paths agree on; a rescan that has not reached all of them is an error of kind
/// `busy`.
pub fn size(id: &ScsiId, paths: &[Disk]) -> Result<u64> {
    let sizes: std::collections::BTreeSet<u64> = paths.iter().map(|path| path.size).collect();
    match sizes.into_iter().collect::<Vec<_>>()[..] {
        [size] => Ok(size),
        [] => Err(gone(id)),
        _ => Err(Error::busy(format!("the paths to {id} do not agree on its size"))
            .hint("one of them is down, or the array has not told all of them; scan again")),
    }
}

/// That no path leads to a LUN.
pub fn gone(id: &ScsiId) -> Error {
    Error::new(Kind::Unreachable, format!("no path leads to the LUN {id}"))
        .legacy(47)
        .hint("is the target up, and is the LUN shown to this host? smctl sr attach logs in again")
}

/// Asks a SCSI host for disks that it does not know yet; those that it knows stay as they are.
pub async fn scan_host(cx: &Cx, host: u32) -> Result<()> {
    write(cx, scan(host), "- - -").await
}

/// Asks a SCSI host for the disk with that number, if it does not know it yet, and for no other:
/// one whose LUN is about to go must not come back.
pub async fn scan_number(cx: &Cx, host: u32, number: u16) -> Result<()> {
    // How a target addresses larger ones is its own choice: it tells in its list of all.
    if number > 255 {
        return scan_host(cx, host).await;
    }
    write(cx, scan(host), format!("- - {number}")).await
}

fn scan(host: u32) -> PathBuf {
    PathBuf::from(format!("/sys/class/scsi_host/host{host}/scan"))
}

/// Waits until each disk that a SCSI host has found has its block device, which is made some time
/// after.
pub async fn settle(cx: &Cx, host: u32) -> Result<()> {
    let what = format!("the block device of a disk at SCSI host {host}");
    wait(cx, APPEARS, &what, || Ok(settled(Path::new("/sys"), host).then_some(()))).await
}

fn settled(sys: &Path, host: u32) -> bool {
    let begin = format!("{host}:");
    let entries = std::fs::read_dir(sys.join("class/scsi_device")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&begin)).all(|entry| {
        let device = entry.path().join("device");
        // SPC-4, 6.4.2: 0 is a disk.
        let is_disk = std::fs::read_to_string(device.join("type")).is_ok_and(|t| t.trim() == "0");
        !is_disk || device.join("block").exists()
    })
}

/// Writes to sysfs.
async fn write(cx: &Cx, file: PathBuf, text: impl Into<String>) -> Result<()> {
    let (path, text) = (file.clone(), text.into());
    match apart(cx, &file.display().to_string(), move || std::fs::write(&path, text)).await? {
        // What has gone away meanwhile has nothing left to be told.
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::internal(format!("{} cannot be written", file.display())).source(&error))
        }
        _ => Ok(()),
    }
}

/// Does something to `what` on a thread that is left behind if the kernel waits for a disk that
/// does not answer: nothing can end such a call.
pub(crate) async fn apart<T: Send + 'static>(
    cx: &Cx,
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let (done, answer) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("sysfs".to_owned());
    thread
        .spawn(move || drop(done.send(work())))
        .map_err(|error| Error::internal("a thread cannot be started").source(&error))?;
    let limit = SYSFS.min(cx.remaining());
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(Error::internal(format!("the work on {what} ended without an answer"))),
        Err(_) => {
            let seconds = limit.as_secs_f64();
            Err(Error::new(
                Kind::Unreachable,
                format!("{what} does not answer within {seconds:.0} s"),
            )
            .legacy(47)
            .hint("the host's log says which path is dead"))
        }
    }
}

/// A device of device-mapper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The kernel's name, `dm-0`.
    pub device: String,
    /// The name in /dev/mapper.
    pub name: String,
    /// What it was made as: `mpath-<SCSIid>`, `LVM-...`.
    pub uuid: String,
    /// Its size in bytes.
    pub size: u64,
    /// Devices below it.
    pub slaves: Vec<String>,
}

/// All devices of device-mapper.
pub fn mapped() -> Vec<Mapped> {
    mapped_below(Path::new("/sys"))
}

fn mapped_below(sys: &Path) -> Vec<Mapped> {
    let entries = std::fs::read_dir(sys.join("block")).into_iter().flatten().flatten();
    let read = |entry: std::fs::DirEntry| {
        let device = entry.file_name().to_string_lossy().into_owned();
        let text = |file: &str| {
            Some(std::fs::read_to_string(entry.path().join(file)).ok()?.trim().to_owned())
        };
        let slaves = std::fs::read_dir(entry.path().join("slaves")).into_iter().flatten().flatten();
        Some(Mapped {
            name: text("dm/name")?,
            uuid: text("dm/uuid")?,
            size: text("size")?.parse::<u64>().ok()? * 512,
            slaves: slaves.map(|slave| slave.file_name().to_string_lossy().into_owned()).collect(),
            device,
        })
    };
    let mut all: Vec<Mapped> = entries.filter_map(read).collect();
    all.sort_by(|a, b| a.device.cmp(&b.device));
    all
}

/// Looks until `condition` has an answer, with growing pauses. The error says what was waited for:
/// kind `unreachable`.
pub async fn wait<T>(
    cx: &Cx,
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let within = cx.within(limit);
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(found) = condition()? {
            return Ok(found);
        }
        if within.remaining().is_zero() {
            return Err(Error::new(
                Kind::Unreachable,
                format!("{what} did not appear within {:.0} s", limit.as_secs_f64()),
            )
            .legacy(47));
        }
        cx.check()?;
        tokio::time::sleep(pause.min(within.remaining())).await;
        pause = (pause * 2).min(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a target of Linux 6.1: NAA, T10 vendor, port, port group, LUN group, names of target and port.
    const LIO: &str = "008300b80103001060014050000beef000000000000000000201003 \
        04c494f2d4f52472046494c45494f3a303030306265656630303030303030303030303030303030303030303030\
        303000 5194000400000001 5195000400000000 0106000400000000 \
        5398002c69716e2e323032362d30312e6f72672e6578616d706c652e6c61623a61727261792c742c307830303031\
        0000 53a8002469716e2e323032362d30312e6f72672e6578616d706c652e6c61623a6172726179000000";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let text = |pair: &[u8]| String::from_utf8(pair.to_vec()).unwrap();
        digits.chunks(2).map(|pair| u8::from_str_radix(&text(pair), 16).unwrap()).collect()
    }

    fn id(text: &str) -> ScsiId {
        ScsiId::parse(text).unwrap()
    }

    #[test]
    fn the_identifier_is_the_one_of_scsi_id() {
        let page = bytes(LIO);
        assert_eq!(ScsiId::of_page83(&page), Some(id("360014050000beef00000000000000000")));
        // Without its first designator, the text of the vendor is left.
        let mut rest = page.clone();
        rest.drain(4..24);
        rest[3] -= 20;
        assert_eq!(
            ScsiId::of_page83(&rest).unwrap().as_str(),
            "1LIO-ORG_FILEIO:0000beef000000000000000000000000"
        );
        for cut in 0..page.len() {
            // Whatever is cut, nothing but a whole identifier is taken.
            let found = ScsiId::of_page83(&page[..cut]);
            assert!(cut >= 24 || found.is_none(), "{cut}: {found:?}");
        }
        // Registered extended before registered, whatever comes first; EUI-64 after both.
        let page = bytes(
            "0083 002a 0102 0008 0011223344556677 0103 0008 5000c500a1b2c3d4 0103 000e 60014050000beef0000000000000",
        );
        assert_eq!(ScsiId::of_page83(&page).unwrap().as_str(), "360014050000beef0000000000000");
    }

    #[test]
    fn an_identifier_is_a_plain_word() {
        for odd in ["", "../x", "a/b", "a b", "a\nb", "ä"] {
            assert!(ScsiId::parse(odd).is_err(), "{odd}");
        }
        assert_eq!(id("3600a").to_string(), "3600a");
    }

    /// A sysfs with these disks: name, place, size in sectors, serial.
    fn sysfs(disks: &[(&str, &str, u64, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let block = folder.path().join("block");
        std::fs::create_dir_all(&block).unwrap();
        for (name, place, sectors, serial) in disks {
            let device = folder.path().join("devices/platform").join(place);
            let disk = device.join("block").join(name);
            std::fs::create_dir_all(disk.join("holders/dm-0")).unwrap();
            std::os::unix::fs::symlink(&device, disk.join("device")).unwrap();
            std::os::unix::fs::symlink(&disk, block.join(name)).unwrap();
            std::fs::write(disk.join("size"), format!("{sectors}\n")).unwrap();
            for (file, text) in
                [("vendor", "LIO-ORG \n"), ("model", "FILEIO  \n"), ("state", "running\n")]
            {
                std::fs::write(device.join(file), text).unwrap();
            }
            std::fs::write(device.join("vpd_pg83"), bytes(LIO)).unwrap();
            let page = [&[0, 0x80, 0, serial.len() as u8][..], serial.as_bytes(), b"\0"].concat();
            std::fs::write(device.join("vpd_pg80"), page).unwrap();
        }
        folder
    }

    #[test]
    fn disks_are_read_with_where_they_are_and_how_they_are_reached() {
        let sys = sysfs(&[
            ("sdb", "host1/session4/target1:0:0/1:0:0:3", 131_072, "0000beef"),
            ("sda", "host0/session3/target0:0:0/0:0:0:3", 131_072, "0000beef"),
        ]);
        // No disk: a loop device, and one that is just going.
        std::fs::create_dir_all(sys.path().join("block/loop0")).unwrap();
        std::fs::create_dir_all(sys.path().join("block/sdz")).unwrap();
        let disks = disks_below(sys.path());
        let lun = id("360014050000beef00000000000000000");
        assert_eq!(
            disks[0],
            Disk {
                name: "sda".into(),
                id: Some(lun.clone()),
                size: 64 << 20,
                vendor: "LIO-ORG".into(),
                model: "FILEIO".into(),
                serial: "0000beef".into(),
                lun: 3,
                host: 0,
                session: Some(3),
                state: "running".into(),
                holders: vec!["dm-0".into()],
            }
        );
        assert_eq!((disks.len(), disks[1].session, disks[1].host), (2, Some(4), 1));
        agree(&lun, &disks).unwrap();
        assert_eq!(size(&lun, &disks).unwrap(), 64 << 20);
        assert_eq!(size(&lun, &[]).unwrap_err().kind, Kind::Unreachable);
    }

    #[test]
    fn two_disks_with_one_name_are_told_apart_by_all_else() {
        let lun = id("360014050000beef00000000000000000");
        let sys = sysfs(&[
            ("sda", "host0/session3/target0:0:0/0:0:0:3", 10, "one"),
            ("sdb", "host1/session4/target1:0:0/1:0:0:3", 20, "two"),
        ]);
        let mut disks = disks_below(sys.path());
        let error = agree(&lun, &disks).unwrap_err();
        assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::Corrupt, 119));
        assert_eq!(
            error.message,
            format!(
                "/dev/sda and /dev/sdb have the same SCSIid {lun} and different serial numbers"
            )
        );
        disks[1].serial = "one".into();
        agree(&lun, &disks).unwrap();
        // A LUN that has grown, and one of its paths does not know yet.
        assert!(matches!(size(&lun, &disks).unwrap_err().kind, Kind::Busy { .. }));
        disks[1].model = "OTHER".into();
        assert!(agree(&lun, &disks).unwrap_err().message.ends_with("different products"));
    }
}
