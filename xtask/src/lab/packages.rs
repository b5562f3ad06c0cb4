//! What guests run that the machine need not have.
//!
//! The packages are loaded and unpacked into a folder that guests see over the machine's root.
//! They are not installed: an installed NFS server, iSCSI initiator or volume manager would start
//! on the machine, now or at its next boot, and take hold of its disks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::failure::{Doing, Failure, Result};
use crate::project::target;
use crate::tool::{self, Tool};

const LOAD: Duration = Duration::from_secs(10 * 60);
const UNPACK: Duration = Duration::from_secs(5 * 60);

/// The kernel with its modules, and the programs that tests use in guests.
const PACKAGES: &[&str] = &[
    "user-mode-linux",
    "btrfs-progs",
    "dmsetup",
    "e2fsprogs",
    "fdisk",
    "fio",
    "iproute2",
    "iputils-ping",
    "kmod",
    "kpartx",
    "lvm2",
    "mdadm",
    "multipath-tools",
    "nbd-client",
    "nfs-common",
    "nfs-kernel-server",
    "open-iscsi",
    "qemu-guest-agent",
    "qemu-utils",
    "rpcbind",
    "sg3-utils",
    "sg3-utils-udev",
    "thin-provisioning-tools",
    "udev",
    "xfsprogs",
];

/// Large, and of no use to a program.
const NOT_NEEDED: &[&str] =
    &["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info"];

fn folder() -> PathBuf {
    target().join("lab")
}

/// Says for what the folder was made; written last.
fn stamp() -> PathBuf {
    folder().join("tools.list")
}

/// What was asked for, and of which release: libraries of an older one would hide the machine's.
fn wanted() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    format!("{}\n{release}", PACKAGES.join("\n"))
}

/// Whether all is there.
pub(crate) fn are_there() -> bool {
    std::fs::read_to_string(stamp()).is_ok_and(|text| text == wanted())
        && folder().join("tools").is_dir()
}

/// Loads and unpacks what is missing.
pub(crate) fn ensure() -> Result<()> {
    if are_there() {
        return Ok(());
    }
    if tool::find("apt-get").is_none() {
        // Another system, where somebody has installed it all.
        return if Path::new("/usr/bin/linux.uml").exists() {
            Ok(())
        } else {
            Err(Failure::new("no apt-get to load the packages of the lab with").hint(format!(
                "install, or unpack into a folder that LAB_TOOLS names: {}",
                PACKAGES.join(", ")
            )))
        };
    }
    println!("unpacking for the lab: {}", PACKAGES.join(", "));
    let archives = folder().join(format!("archives.{}", std::process::id()));
    let doing = || format!("make {}", archives.display());
    std::fs::create_dir_all(archives.join("partial")).doing(doing)?;
    if load(&archives).is_err() {
        // The usual reason is a machine that has never asked what there is, or not for long.
        update()?;
        load(&archives)?;
    }
    let fresh = folder().join(format!("tools.{}", std::process::id()));
    unpack(&archives, &fresh)?;
    let tools = folder().join("tools");
    let place = || format!("put {} in its place", tools.display());
    if tools.exists() {
        std::fs::remove_dir_all(&tools).doing(place)?;
    }
    std::fs::rename(&fresh, &tools).doing(place)?;
    std::fs::remove_dir_all(&archives).doing(place)?;
    std::fs::write(stamp(), wanted()).doing(place)
}

fn update() -> Result<()> {
    Tool::new("apt-get").args(["update", "--quiet=2"]).deadline(LOAD).run().map(drop)
}

/// The packages, and those they need that the machine does not have.
fn load(archives: &Path) -> Result<()> {
    Tool::new("apt-get")
        .args(["install", "--yes", "--download-only", "--no-install-recommends", "--quiet=2"])
        .args(["-o", &format!("Dir::Cache::archives={}", archives.display())])
        // Nothing is installed, so nobody need be locked out, and no one else's lock matters.
        .args(["-o", "Debug::NoLocking=1"])
        .args(PACKAGES)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .deadline(LOAD)
        .run()
        .map(drop)
}

fn unpack(archives: &Path, into: &Path) -> Result<()> {
    let doing = || format!("unpack into {}", into.display());
    let _ = std::fs::remove_dir_all(into);
    std::fs::create_dir_all(into).doing(doing)?;
    for entry in std::fs::read_dir(archives).doing(doing)? {
        let file = entry.doing(doing)?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            Tool::new("dpkg-deb").arg("--extract").arg(&file).arg(into).deadline(UNPACK).run()?;
        }
    }
    // Some packages still say /lib where the machine has a link to /usr/lib. Laid over the
    // machine's root, a folder in the link's place would hide all libraries.
    for name in ["bin", "sbin", "lib", "lib64"] {
        let (old, new) = (into.join(name), into.join("usr").join(name));
        std::fs::create_dir_all(&new).doing(doing)?;
        if old.is_dir() {
            let all = old.join(".");
            Tool::new("cp").arg("-a").arg(&all).arg(&new).deadline(UNPACK).run()?;
            std::fs::remove_dir_all(&old).doing(doing)?;
        }
        std::os::unix::fs::symlink(format!("usr/{name}"), &old).doing(doing)?;
    }
    for name in NOT_NEEDED {
        let _ = std::fs::remove_dir_all(into.join(name));
    }
    Ok(())
}
