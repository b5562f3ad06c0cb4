//! What is below a driver on one host: LVM, faults of disks, NBD, reflinks.

use std::time::{Duration, Instant};

use lab::kit::{self, dm, lvm, nbd};
use lab::log_writes::Log;
use lab::{Guest, Lab, Result};

const MIB: u64 = 1 << 20;

/// One block written past the page cache; whether it worked.
fn write(guest: &Guest, device: &str) -> Result<bool> {
    let to = format!("of={device}");
    let words =
        ["dd", "if=/dev/urandom", &to, "bs=4096", "count=1", "oflag=direct", "conv=notrunc"];
    let output = guest.run(words)?;
    assert!(output.status == 0 || output.errors().contains("Input/output error"), "{output:?}");
    Ok(output.status == 0)
}

fn sum(guest: &Guest, device: &str) -> Result<String> {
    let from = format!("if={device}");
    guest.check([
        "dd",
        &from,
        "bs=4096",
        "count=1",
        "iflag=direct",
        "of=/tmp/block",
        "status=none",
    ])?;
    guest.check(["sha256sum", "/tmp/block"])
}

#[test]
fn thin_volumes_are_made_snapshotted_and_discarded() -> Result<()> {
    let lab = Lab::new()?;
    let disk = lab.disk("a", 512 * MIB)?;
    let host = lab.guest("host").disk(&disk).boot()?;
    lvm::prepare(&host)?;
    let percent = |host: &Guest| -> Result<f64> {
        let words = ["lvs", "--noheadings", "-o", "data_percent", "vg/pool"];
        Ok(host.check(words)?.parse().unwrap())
    };
    host.check(["pvcreate", "-q", "/dev/ubda"])?;
    host.check(["vgcreate", "-q", "vg", "/dev/ubda"])?;
    host.check(["lvcreate", "-q", "-L", "200M", "-T", "vg/pool"])?;
    host.check(["lvcreate", "-q", "-V", "1G", "-T", "vg/pool", "-n", "disk"])?;
    let fill = ["dd", "if=/dev/urandom", "of=/dev/vg/disk", "bs=1M", "count=50", "oflag=direct"];
    host.check(fill)?;
    assert!((24.0..=26.0).contains(&percent(&host)?), "{}", percent(&host)?);

    host.check(["lvcreate", "-q", "-s", "-n", "snap", "vg/disk"])?;
    host.check(["lvchange", "-q", "-ay", "-K", "vg/snap"])?;
    let before = sum(&host, "/dev/vg/snap")?;
    assert_eq!(before, sum(&host, "/dev/vg/disk")?);
    assert!(write(&host, "/dev/vg/disk")?);
    assert_eq!(before, sum(&host, "/dev/vg/snap")?);
    assert_ne!(before, sum(&host, "/dev/vg/disk")?);

    host.check(["lvremove", "-q", "-f", "vg/snap"])?;
    host.check(["blkdiscard", "/dev/vg/disk"])?;
    assert!(percent(&host)? < 1.0, "{}", percent(&host)?);

    // The group is on the disk, whatever happens to the host.
    host.reboot()?;
    lvm::prepare(&host)?;
    host.check(["vgck", "vg"])?;
    assert_eq!(host.check(["lvs", "--noheadings", "-o", "lv_name", "vg/disk"])?, "disk");
    Ok(())
}

#[test]
fn a_disk_fails_on_demand() -> Result<()> {
    let lab = Lab::new()?;
    let disk = lab.disk("a", 16 * MIB)?;
    let host = lab.guest("host").disk(&disk).boot()?;
    let faulty = dm::Faulty::over(&host, "faulty", "/dev/ubda")?;
    let path = faulty.path();
    assert!(write(&host, &path)?);
    let good = sum(&host, "/dev/ubda")?;

    faulty.fail()?;
    assert!(!write(&host, &path)?);
    faulty.fail_writes()?;
    assert!(!write(&host, &path)?);
    assert_eq!(sum(&host, &path)?, good);
    faulty.drop_writes()?;
    assert!(write(&host, &path)?);
    assert_eq!(sum(&host, "/dev/ubda")?, good);

    faulty.slow(Duration::from_millis(400))?;
    let begun = Instant::now();
    assert!(write(&host, &path)?);
    assert!(begun.elapsed() >= Duration::from_millis(400));

    faulty.healthy()?;
    faulty.hang()?;
    let to = format!("of={path}");
    let writer =
        host.command(["dd", "if=/dev/zero", &to, "bs=4096", "count=1", "oflag=direct"]).start()?;
    host.wait_for("a writer that hangs", Duration::from_secs(10), |host| {
        let states = host.run(["sh", "-c", "cat /proc/[0-9]*/stat | grep '(dd)'"])?.text();
        Ok(if states.contains("(dd) D") { Ok(()) } else { Err(states) })
    })?;
    assert_eq!(writer.ended(), None);
    faulty.healthy()?;
    assert_eq!(writer.wait(Duration::from_secs(20))?.status, 0);
    faulty.remove()
}

/// What an ext4 promises of fsynced files, at every flush of its life and for many cuts between.
#[test]
fn a_log_of_writes_replays_to_what_the_disk_was() -> Result<()> {
    let lab = Lab::new()?;
    let (disk, log) = (lab.disk("a", 16 * MIB)?, lab.disk("b", 128 * MIB)?);
    let host = lab.guest("host").disk(&disk).disk(&log).boot()?;
    let recorder = dm::Recorder::over(&host, "recorder", "/dev/ubda", "/dev/ubdb")?;
    host.check([
        "mkfs.ext4",
        "-q",
        "-E",
        "lazy_itable_init=0,lazy_journal_init=0",
        &recorder.path(),
    ])?;
    recorder.mark("made")?;
    host.check(["mount", &recorder.path(), "/mnt"])?;
    for number in 0..4 {
        let file = format!("of=/mnt/{number}");
        host.check(["dd", "if=/dev/urandom", &file, "bs=16k", "count=3", "conv=fsync"])?;
        recorder.mark(&format!("file-{number}"))?;
    }
    host.check(["umount", "/mnt"])?;
    recorder.remove()?;
    host.power_off()?;

    let log = Log::open(&log)?;
    let image = lab.folder().join("image");
    let empty = || std::fs::File::create(&image).unwrap().set_len(16 * MIB).unwrap();
    empty();
    log.replay(0, log.entries().len(), &image)?;
    let same = std::fs::read(&image).unwrap() == std::fs::read(disk.path()).unwrap();
    assert!(same, "the whole log does not make the disk");

    let made = log.mark("made").unwrap();
    let points: Vec<usize> = log.points().into_iter().filter(|point| *point >= made).collect();
    assert!(points.len() >= 8, "{} points", points.len());
    let third = log.mark("file-2").unwrap();
    for (number, point) in points.iter().enumerate() {
        empty();
        log.cut(*point, number as u64, &image)?;
        // 0: sound; 1: the journal was replayed.
        let check = std::process::Command::new("e2fsck").arg("-p").arg(&image).output().unwrap();
        assert!(check.status.code().unwrap() <= 1, "seed {number} at {point}: {check:?}");
        let list = std::process::Command::new("debugfs")
            .args(["-R", "ls -p /"])
            .arg(&image)
            .output()
            .unwrap();
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        assert!(*point < third || list.contains("/2/49152/"), "at {point}: {list}");
    }
    Ok(())
}

/// Here qemu serves a VHD; a server of ours is used the same way.
#[test]
fn the_kernel_reads_and_writes_through_nbd() -> Result<()> {
    let lab = Lab::new()?;
    let disk = lab.share().join("disk.vhd");
    let image = disk.to_str().unwrap();
    let host = lab.guest("host").boot()?;
    host.check(["qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=dynamic", image, "64M"])?;
    let serve = ["qemu-nbd", "-t", "-f", "vpc", "-k", "/run/disk.sock", "--discard=unmap", image];
    let server = host.command(serve).start()?;
    let device = nbd::connect(&host, "/run/disk.sock", 0)?;
    host.check(["mkfs.ext4", "-q", &device])?;
    host.check(["mount", &device, "/mnt"])?;
    host.check(["dd", "if=/dev/urandom", "of=/mnt/file", "bs=1M", "count=8", "conv=fsync"])?;
    let written = host.check(["sha256sum", "/mnt/file"])?;
    host.check(["umount", "/mnt"])?;
    nbd::disconnect(&host, &device)?;

    let device = nbd::connect(&host, "/run/disk.sock", 1)?;
    host.check(["mount", &device, "/mnt"])?;
    assert_eq!(host.check(["sha256sum", "/mnt/file"])?, written);
    host.check(["umount", "/mnt"])?;

    // A server that dies is an error of the device, not a hang, and it is EIO: nbd-client has made
    // the connection by netlink and is gone, so nobody takes the size from the device, after which
    // a write would be told ENOSPC.
    server.kill();
    host.wait_for("an error", Duration::from_secs(20), |host| {
        Ok(if write(host, &device)? { Err("writes work".to_owned()) } else { Ok(()) })
    })
}

#[test]
fn xfs_shares_blocks_between_files() -> Result<()> {
    let lab = Lab::new()?;
    let disk = lab.disk("a", 512 * MIB)?;
    let host = lab.guest("host").disk(&disk).boot()?;
    kit::xfs(&host, "/dev/ubda", None, "/srv/files")?;
    host.check(["dd", "if=/dev/urandom", "of=/srv/files/one", "bs=1M", "count=32", "conv=fsync"])?;
    let used = |host: &Guest| -> Result<u64> {
        let text = host.check(["df", "--output=used", "-B1", "/srv/files"])?;
        Ok(text.lines().last().unwrap().trim().parse().unwrap())
    };
    let before = used(&host)?;
    host.check(["cp", "--reflink=always", "/srv/files/one", "/srv/files/two"])?;
    host.check(["cmp", "/srv/files/one", "/srv/files/two"])?;
    assert!(used(&host)? < before + MIB, "{} after {before}", used(&host)?);
    Ok(())
}
