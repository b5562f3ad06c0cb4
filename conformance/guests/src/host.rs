//! Backends that are made of what a kernel has: volume groups, NFS, iSCSI.

use lab::Lab;
use lab::kit::iscsi::{Initiator, Lun, Target};
use lab::kit::{self, nfs};

use crate::place::{Place, Settings};
use crate::{Failure, MEMORY};

const GIB: u64 = 1 << 30;

/// Size of a disk for an SR: one of a gibibyte must fit in, with room for all that is beside it.
const DISK: u64 = 6 * GIB;

/// Size of a LUN on which a disk can be written that is as large as the driver says: a VHD of 2040 GiB with
/// its bitmaps, for which a LUN has all space at once. Nothing is taken on the machine but what is written.
const LARGE: u64 = 2560 * GIB;

/// What the NFS server exports; with NFS 4 it is the root.
const EXPORT: &str = "/srv/nfs";

/// Where the driver mounts, unless told otherwise.
const MOUNTED: &str = "/run/sm/nfs";

/// The name of the iSCSI target, and of who may log in to it.
const IQN: &str = "iqn.2026-01.org.example.lab:array";
const USER: &str = "conformance";
const PASSWORD: &str = "simulated-password";

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

/// A guest with two disks.
pub(crate) fn lvm(lab: &Lab) -> Result<Place, Failure> {
    let disks = [lab.disk("first", DISK)?, lab.disk("second", DISK)?];
    let guest = lab.guest("host").memory(MEMORY).disk(&disks[0]).disk(&disks[1]);
    let host = guest.boot()?;
    kit::lvm::prepare(&host)?;
    let mut settings = Settings::default();
    settings.device.insert("device".into(), "/dev/ubda".into());
    settings.second.insert("device".into(), "/dev/ubdb".into());
    // Sizes are in steps of 4 MiB.
    settings.suite.insert("disk-size", quoted("8MiB"));
    settings.suite.insert("keep-sr", "true".into());
    settings.suite.insert("sequences", "2".into());
    settings.backend.extend([("volume-groups", "true".into()), ("host", "true".into())]);
    let config = settings.text();
    Ok(Place { host, config, _rest: Box::new(()) })
}

/// A guest that is its own server: so the suite sees the folder past the client.
pub(crate) fn nfs(lab: &Lab) -> Result<Place, Failure> {
    let disk = lab.disk("export", DISK)?;
    let network = lab.network()?;
    let host = lab.guest("host").memory(MEMORY).network(&network).disk(&disk).boot()?;
    kit::xfs(&host, "/dev/ubda", None, EXPORT)?;
    let server = nfs::Server::start(&host, EXPORT)?;
    let mut settings = Settings::default();
    settings.device.insert("server".into(), host.address(&network)?.to_string());
    settings.device.insert("serverpath".into(), "/".into());
    settings.backend.extend([
        ("directory", quoted(EXPORT)),
        ("mounted", quoted(MOUNTED)),
        ("host", "true".into()),
    ]);
    // To make an SR and to destroy it takes a quarter of the time: both mount.
    settings.suite.insert("keep-sr", "true".into());
    let config = settings.text();
    Ok(Place { host, config, _rest: Box::new((server, network)) })
}

/// A target with two LUNs in one guest, the driver in another. One path, and so neither udev nor
/// multipathd, with which each command of LVM takes several times as long: what these do, the driver's
/// own tests try.
pub(crate) fn lvmoiscsi(lab: &Lab) -> Result<Place, Failure> {
    let disks = [lab.disk("first", LARGE)?, lab.disk("second", DISK)?];
    let network = lab.network()?;
    let nas = lab.guest("nas").network(&network).disk(&disks[0]).disk(&disks[1]);
    let [nas, host] = lab.boot([nas, lab.guest("host").network(&network).memory(MEMORY)])?;
    let portal = nas.address(&network)?;
    let mut target = Target::start(&nas, IQN, &[portal])?;
    let lun = |number: u32, on: &str, bytes| {
        let (on, serial) = (on.to_owned(), 0xa000 + number);
        Lun { number, on, bytes, serial }
    };
    let luns = [lun(0, "/dev/ubda", LARGE), lun(1, "/dev/ubdb", DISK)];
    for lun in &luns {
        target.add(lun)?;
    }
    let initiator = Initiator::name_of(&host);
    target.allow(&initiator)?;
    target.demand_chap(&initiator, USER, PASSWORD)?;
    kit::lvm::prepare(&host)?;
    Initiator::start(&host)?;
    let mut settings = Settings::default();
    for (key, value) in [
        ("target", portal.to_string()),
        ("targetIQN", IQN.to_owned()),
        ("SCSIid", luns[0].scsi_id()),
        ("chapuser", USER.to_owned()),
        ("multihomed", "false".to_owned()),
    ] {
        settings.device.insert(key.to_owned(), value);
    }
    settings.second.insert("SCSIid".into(), luns[1].scsi_id());
    settings.secrets.insert("chappassword".into(), PASSWORD.into());
    settings.suite.insert("disk-size", quoted("8MiB"));
    settings.suite.insert("keep-sr", "true".into());
    settings.suite.insert("sequences", "2".into());
    settings.backend.extend([("volume-groups", "true".into()), ("host", "true".into())]);
    let config = settings.text();
    Ok(Place { host, config, _rest: Box::new((target, network, nas)) })
}
