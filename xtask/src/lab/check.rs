//! `cargo xtask lab check`: which features of the kernel and of the programs work in guests here.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use lab::kit::iscsi::{Initiator, Lun, Target};
use lab::kit::{self, dm, lvm, multipath, nbd, nfs, udev};
use lab::{Guest, Lab, Network};

use crate::failure::Result;

use super::failed;

const MIB: u64 = 1 << 20;
const IQN: &str = "iqn.2026-01.org.example.lab:array";

/// Modules that the tests do not use themselves, but whoever writes a driver may want to.
const MODULES: &[&str] = &[
    "dm-cache",
    "dm-clone",
    "dm-crypt",
    "dm-delay",
    "dm-dust",
    "dm-era",
    "dm-flakey",
    "dm-integrity",
    "dm-log-writes",
    "dm-mirror",
    "dm-multipath",
    "dm-raid",
    "dm-snapshot",
    "dm-thin-pool",
    "dm-writecache",
    "dm-zero",
    "dlm",
    "drbd",
    "gfs2",
    "ocfs2",
    "nvme-tcp",
    "nvmet-tcp",
    "rbd",
    "scsi_debug",
    "softdog",
    "target_core_iblock",
    "target_core_pscsi",
    "target_core_user",
    "tcm_loop",
];

/// Two hosts that the checks share, in their order.
struct Site {
    front: Network,
    back: Network,
    nas: Guest,
    host: Guest,
}

type Check = fn(&Site) -> lab::Result<String>;

const CHECKS: &[(&str, Check)] = &[
    ("kernel", |site| site.host.check(["uname", "-sr"])),
    ("network", network),
    ("device-mapper faults", faults),
    ("dm-log-writes", log_writes),
    ("LVM", linear),
    ("LVM thin", thin),
    ("md RAID 1", raid),
    ("XFS reflink", reflink),
    ("btrfs", btrfs),
    ("NBD client", network_disk),
    ("NFS server", nfs_server),
    ("NFS 4.2 client", |site| nfs_client(site, "vers=4.2", "/")),
    ("NFS 3 client", |site| nfs_client(site, "vers=3,nolock", "/srv/nfs")),
    ("LIO target", target),
    ("udev", |site| udev::start(&site.host).map(|()| "storage rules".into())),
    ("open-iscsi", initiator),
    ("dm-multipath", paths),
    ("SCSI-3 reservations", reservations),
];

pub(super) fn run(keep_logs: bool) -> Result<ExitCode> {
    let begun = Instant::now();
    let lab = Lab::new().map_err(failed)?;
    if keep_logs {
        lab.keep_logs();
    }
    let site = boot(&lab).map_err(failed)?;
    println!("{:<22} {:>6.1} s  two guests", "boot", begun.elapsed().as_secs_f64());
    let mut good = true;
    for (name, check) in CHECKS {
        let begun = Instant::now();
        let (word, text) = match check(&site) {
            Ok(text) => ("works", text),
            Err(error) => {
                good = false;
                ("FAILS", error.to_string())
            }
        };
        let text = text.replace('\n', "\n    ");
        println!("{name:<22} {:>6.1} s  {word}: {text}", begun.elapsed().as_secs_f64());
    }
    let (there, absent): (Vec<_>, Vec<_>) =
        MODULES.iter().partition(|module| site.host.load(&[module]).is_ok());
    println!("modules that load: {}", words(&there));
    println!("modules that do not: {}", words(&absent));
    println!("in {:.0} s", begun.elapsed().as_secs_f64());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn words(names: &[&&str]) -> String {
    names.iter().map(|name| **name).collect::<Vec<_>>().join(" ")
}

fn boot(lab: &Lab) -> lab::Result<Site> {
    let (front, back) = (lab.network()?, lab.network()?);
    let nas = lab.guest("nas").network(&front).network(&back).boot()?;
    let mut host = lab.guest("host").network(&front).network(&back);
    for (name, size) in [("a", 512), ("b", 512), ("c", 64), ("d", 64)] {
        host = host.disk(&lab.disk(name, size * MIB)?);
    }
    Ok(Site { front, back, nas, host: host.boot()? })
}

fn network(site: &Site) -> lab::Result<String> {
    let address = site.nas.address(&site.front)?.to_string();
    let text = site.host.check(["ping", "-c3", "-i0.2", "-W5", "-q", &address])?;
    Ok(text.lines().last().unwrap_or_default().to_owned())
}

fn faults(site: &Site) -> lab::Result<String> {
    let faulty = dm::Faulty::over(&site.host, "faulty", "/dev/ubdc")?;
    let to = format!("of={}", faulty.path());
    let write = || site.host.run(["dd", "if=/dev/zero", &to, "bs=4096", "count=1", "oflag=direct"]);
    let mut said = Vec::new();
    faulty.fail()?;
    said.push(("error", write()?.status == 1));
    faulty.fail_writes()?;
    said.push(("flakey", write()?.status == 1));
    faulty.slow(Duration::from_millis(200))?;
    let begun = Instant::now();
    said.push(("delay", write()?.status == 0 && begun.elapsed().as_millis() >= 200));
    faulty.healthy()?;
    faulty.remove()?;
    let (good, bad): (Vec<_>, Vec<_>) = said.into_iter().partition(|(_, good)| *good);
    let names =
        |list: &[(&str, bool)]| list.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
    if bad.is_empty() {
        Ok(names(&good))
    } else {
        Err(lab::Error::Wrong(format!("not: {}", names(&bad))))
    }
}

fn log_writes(site: &Site) -> lab::Result<String> {
    let recorder = dm::Recorder::over(&site.host, "recorder", "/dev/ubdc", "/dev/ubdd")?;
    let to = format!("of={}", recorder.path());
    site.host.check(["dd", "if=/dev/zero", &to, "bs=4096", "count=4", "oflag=direct"])?;
    recorder.mark("here")?;
    recorder.remove()?;
    Ok("writes and marks".into())
}

fn linear(site: &Site) -> lab::Result<String> {
    lvm::prepare(&site.host)?;
    site.host.check(["pvcreate", "-q", "/dev/ubda"])?;
    site.host.check(["vgcreate", "-q", "vg", "/dev/ubda"])?;
    site.host.check(["lvcreate", "-q", "-L", "32M", "-n", "linear", "vg"])?;
    site.host.check(["lvcreate", "-q", "-L", "8M", "-s", "-n", "snap", "vg/linear"])?;
    site.host.check(["lvs", "--noheadings", "-o", "lv_name,lv_attr", "vg"])
}

fn thin(site: &Site) -> lab::Result<String> {
    site.host.check(["lvcreate", "-q", "-L", "100M", "-T", "vg/pool"])?;
    site.host.check(["lvcreate", "-q", "-V", "1G", "-T", "vg/pool", "-n", "thin"])?;
    site.host.check([
        "dd",
        "if=/dev/urandom",
        "of=/dev/vg/thin",
        "bs=1M",
        "count=20",
        "oflag=direct",
    ])?;
    site.host.check(["lvcreate", "-q", "-s", "-n", "thin-snap", "vg/thin"])?;
    site.host.check(["blkdiscard", "/dev/vg/thin"])?;
    site.host.check(["lvs", "--noheadings", "-o", "lv_name,data_percent", "vg/pool"])
}

fn raid(site: &Site) -> lab::Result<String> {
    site.host.load(&["raid1"])?;
    let words = ["mdadm", "--create", "/dev/md0", "--run", "--level=1", "--raid-devices=2"];
    let words = words.into_iter().chain(["--metadata=1.2", "/dev/ubdc", "/dev/ubdd"]);
    site.host.check(words)?;
    let state = site.host.check(["cat", "/proc/mdstat"])?;
    site.host.check(["mdadm", "--stop", "/dev/md0"])?;
    Ok(state.lines().find(|line| line.starts_with("md0")).unwrap_or_default().to_owned())
}

fn reflink(site: &Site) -> lab::Result<String> {
    kit::xfs(&site.host, "/dev/ubdb", None, "/srv/xfs")?;
    site.host.check(["dd", "if=/dev/zero", "of=/srv/xfs/one", "bs=1M", "count=4"])?;
    site.host.check(["cp", "--reflink=always", "/srv/xfs/one", "/srv/xfs/two"])?;
    site.host.check(["umount", "/srv/xfs"])?;
    Ok("cp --reflink=always".into())
}

fn btrfs(site: &Site) -> lab::Result<String> {
    site.host.check(["mkfs.btrfs", "-q", "-f", "/dev/ubdb"])?;
    site.host.check(["mount", "/dev/ubdb", "/mnt"])?;
    site.host.check(["btrfs", "subvolume", "create", "/mnt/one"])?;
    site.host.check(["btrfs", "subvolume", "snapshot", "/mnt/one", "/mnt/two"])?;
    site.host.check(["umount", "/mnt"])?;
    Ok("subvolume and snapshot".into())
}

fn network_disk(site: &Site) -> lab::Result<String> {
    site.host.check(["qemu-img", "create", "-q", "-f", "vpc", "/tmp/disk.vhd", "16M"])?;
    let words = ["qemu-nbd", "-t", "-f", "vpc", "-k", "/run/disk.sock", "/tmp/disk.vhd"];
    let server = site.host.command(words).start()?;
    let device = nbd::connect(&site.host, "/run/disk.sock", 0)?;
    site.host.check(["mkfs.ext4", "-q", &device])?;
    nbd::disconnect(&site.host, &device)?;
    server.kill();
    Ok("over a Unix socket, a VHD served by qemu-nbd".into())
}

fn nfs_server(site: &Site) -> lab::Result<String> {
    kit::xfs(&site.nas, "/srv/nfs.img", Some(512 * MIB), "/srv/nfs")?;
    nfs::Server::start(&site.nas, "/srv/nfs")?;
    site.nas.check(["cat", "/proc/fs/nfsd/versions"])
}

fn nfs_client(site: &Site, version: &str, export: &str) -> lab::Result<String> {
    let server = site.nas.address(&site.front)?;
    nfs::mount(&site.host, server, export, "/sr", &format!("{version},soft,timeo=50"))?;
    site.host.check(["dd", "if=/dev/zero", "of=/sr/file", "bs=64k", "count=4", "conv=fsync"])?;
    site.host.check(["umount", "/sr"])?;
    Ok("mounted, written".into())
}

fn target(site: &Site) -> lab::Result<String> {
    let portals = [site.nas.address(&site.front)?, site.nas.address(&site.back)?];
    let mut target = Target::start(&site.nas, IQN, &portals)?;
    target.add(&Lun { number: 0, on: "/srv/lun".into(), bytes: 64 * MIB, serial: 0xbeef })?;
    target.allow(&Initiator::name_of(&site.host))?;
    Ok("two portals, a unit in a file".into())
}

fn initiator(site: &Site) -> lab::Result<String> {
    let initiator = Initiator::start(&site.host)?;
    let found = initiator.discover(site.nas.address(&site.front)?)?;
    initiator.login(IQN)?;
    Ok(format!("{} portals found, logged in", found.len()))
}

fn paths(site: &Site) -> lab::Result<String> {
    multipath::start(&site.host)?;
    multipath::wait_for(&site.host, 2, 0, Duration::from_secs(30))?;
    Ok("two paths up".into())
}

fn reservations(site: &Site) -> lab::Result<String> {
    let register = ["sg_persist", "--out", "--register", "--param-sark=123abc", "/dev/sda"];
    site.host.check(register)?;
    let reserve = ["sg_persist", "--out", "--reserve", "--param-rk=123abc", "--prout-type=5"];
    site.host.check(reserve.into_iter().chain(["/dev/sda"]))?;
    let text = site.host.check(["sg_persist", "--in", "--read-reservation", "/dev/sda"])?;
    Ok(text.lines().last().unwrap_or_default().trim().to_owned())
}
