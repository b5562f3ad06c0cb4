//! As a user sees it: `smctl` loads the library.

use std::path::Path;

use conformance::built::artefact;
use lab::{Guest, Lab, kit};
use serde_json::Value;

use crate::bench::{MIB, machine};

/// `smctl` of a guest where LVM works, with what these tests ask of it.
pub(crate) struct Smctl<'a>(kit::smctl::Smctl<'a>);

impl<'a> Smctl<'a> {
    pub(crate) fn new(guest: &'a Guest) -> Self {
        kit::lvm::prepare(guest).unwrap();
        assert!(artefact("libsm_driver_lvm.so").is_file());
        Self(kit::smctl::Smctl::new(guest, artefact("smctl").display().to_string()))
    }

    pub(crate) fn call(&self, words: &[&str]) -> lab::Call<'a> {
        self.0.call(words)
    }

    pub(crate) fn ok(&self, words: &[&str]) -> String {
        self.0.check(words).unwrap()
    }

    /// Attaches; the device.
    pub(crate) fn attach(&self, words: &[&str]) -> String {
        let text = self.ok(&[&["vdi", "attach"], words].concat());
        text.strip_prefix("block device ").unwrap_or_else(|| panic!("{text}")).to_owned()
    }

    pub(crate) fn vdis(&self) -> Vec<Value> {
        self.json(&["vdi", "list"])["vdis"].as_array().unwrap().clone()
    }

    pub(crate) fn json(&self, words: &[&str]) -> Value {
        self.0.json(words).unwrap()
    }
}

fn sum(guest: &Guest, device: &str) -> String {
    let text = guest.check(["sha256sum", device]).unwrap();
    text.split_whitespace().next().unwrap().to_owned()
}

/// The whole life by commands; then the disk goes into another machine.
#[test]
fn smctl_uses_the_library_and_the_disk_moves_to_another_machine() -> lab::Result<()> {
    let lab = Lab::new()?;
    let (disk, unused) = (lab.disk("sr", 512 * MIB)?, lab.disk("unused", 16 * MIB)?);
    let modules = ["dm-mod", "dm-thin-pool", "dm-snapshot", "ext4"];
    let first = lab.guest("first").modules(&modules).disk(&disk).boot()?;
    let smctl = Smctl::new(&first);
    let info = smctl.ok(&["driver", "info", "lvm"]);
    assert!(info.contains("device") && info.contains("allocation"), "{info}");
    let sr = smctl.ok(&["sr", "create", "--driver", "lvm", "--name", "local", "device=/dev/ubda"]);
    smctl.ok(&["vdi", "create", "--name", "web server", "--size", "24MiB", "--key", "owner=a,b"]);
    let device = smctl.attach(&["web server"]);
    assert!(device.starts_with(&format!("/dev/sm-{sr}/vdi-")), "{device}");
    first.check(["mkfs.ext4", "-q", &device])?;
    first.check(["mount", &device, "/mnt"])?;
    first.write("/mnt/file", "first")?;
    first.check(["sync", "-f", "/mnt/file"])?;
    let taken = smctl.ok(&["vdi", "snapshot", "web server", "--name", "before"]);
    first.write("/mnt/file", "second")?;
    first.check(["umount", "/mnt"])?;
    let written = sum(&first, &device);
    smctl.ok(&["vdi", "detach", "web server"]);
    smctl.ok(&["vdi", "clone", "before", "--name", "copy"]);
    smctl.ok(&["vdi", "resize", "copy", "32MiB"]);
    smctl.ok(&["vdi", "copy", "web server", "--name", "full copy"]);
    smctl.ok(&["vdi", "export", "web server", "/var/tmp/out.raw", "--format", "raw"]);
    assert_eq!(sum(&first, "/var/tmp/out.raw"), written);
    smctl.ok(&["vdi", "import", "/var/tmp/out.raw", "--name", "imported"]);
    let before = smctl.vdis();
    assert!(smctl.ok(&["vdi", "check", "web server"]).len() < 200);
    let tree = smctl.ok(&["vdi", "tree"]);
    assert!(tree.contains("before") && tree.contains("copy"), "{tree}");
    smctl.ok(&["sr", "detach", "local"]);
    first.power_off()?;

    // There the disk is the second one.
    let second = lab.guest("second").modules(&modules).disk(&unused).disk(&disk).boot()?;
    let smctl = Smctl::new(&second);
    let probed = smctl.ok(&["sr", "probe", "--driver", "lvm", "device=/dev/ubdb"]);
    assert!(probed.contains(&sr) && probed.contains("local"), "{probed}");
    smctl.ok(&["sr", "introduce", "--driver", "lvm", "--uuid", &sr, "device=/dev/ubdb"]);
    assert_eq!(smctl.vdis(), before);
    let device = smctl.attach(&["web server", "--read-only"]);
    assert_eq!(sum(&second, &device), written);
    smctl.ok(&["vdi", "detach", "web server"]);
    let device = smctl.attach(&["imported"]);
    assert_eq!(sum(&second, &device), written);
    smctl.ok(&["vdi", "detach", "imported"]);
    smctl.ok(&["vdi", "revert", "web server", &taken]);
    let device = smctl.attach(&["web server"]);
    second.check(["mount", &device, "/mnt"])?;
    assert_eq!(second.read("/mnt/file")?, b"first");
    let busy = smctl.call(&["vdi", "detach", "web server"]).run()?;
    assert!(busy.errors().contains("is still open"), "{}", busy.errors());
    second.check(["umount", "/mnt"])?;
    smctl.ok(&["vdi", "detach", "web server"]);

    for vdi in &smctl.vdis() {
        smctl.ok(&["vdi", "destroy", vdi["uuid"].as_str().unwrap()]);
    }
    smctl.ok(&["sr", "destroy", "local"]);
    second.check(["sh", "-c", "test -z \"$(wipefs /dev/ubdb)\""])?;
    Ok(())
}

/// The recipe of `docs/drivers/lvm.md`: files of a guest's partition, out of a snapshot, for a backup.
#[test]
fn partitions_of_a_snapshot_are_mounted_for_a_backup() -> lab::Result<()> {
    let lab = Lab::new()?;
    let host = machine(&lab, &[512])?.boot()?;
    let smctl = Smctl::new(&host);
    smctl.ok(&["sr", "create", "--driver", "lvm", "--name", "local", "device=/dev/ubda"]);
    smctl.ok(&["vdi", "create", "--name", "web", "--size", "128MiB"]);
    let device = smctl.attach(&["web"]);
    // The guest partitions its disk and writes to it.
    let table =
        "echo 'label: gpt\nsize=16M\nsize=80M' | sfdisk -q --no-reread --no-tell-kernel \"$1\"";
    host.check(["sh", "-c", table, "sh", &device])?;
    let loops = host.check(["losetup", "--find", "--show", "--partscan", &device])?;
    let partition = partition(&host, &loops, 2);
    host.check(["mkfs.ext4", "-q", &partition])?;
    host.check(["mount", &partition, "/mnt"])?;
    host.write("/mnt/file", "precious")?;
    host.check(["sync", "-f", "/mnt/file"])?;

    smctl.ok(&["vdi", "snapshot", "web", "--name", "backup"]);
    host.write("/mnt/file", "changed since")?;
    host.check(["sync", "-f", "/mnt/file"])?;
    let taken = smctl.attach(&["backup", "--read-only"]);
    let taken = taken.as_str();
    let seen = host.check(["losetup", "--find", "--show", "--read-only", "--partscan", taken])?;
    let seen_partition = self::partition(&host, &seen, 2);
    host.check(["mkdir", "-p", "/backup"])?;
    // Its journal is not replayed: nothing can be written.
    host.check(["mount", "-o", "ro,noload", &seen_partition, "/backup"])?;
    assert_eq!(host.read("/backup/file")?, b"precious");
    host.check(["umount", "/backup"])?;
    host.check(["losetup", "--detach", &seen])?;

    // The same with kpartx, where the loop driver is not wanted.
    host.command(["kpartx", "-a", "-r", "-s", taken]).env("DM_DISABLE_UDEV", "1").check()?;
    let listed = host.check(["sh", "-c", "ls /dev/mapper/*-vdi*2"])?;
    let mapped = listed.lines().last().unwrap();
    host.check(["mount", "-o", "ro,noload", mapped, "/backup"])?;
    assert_eq!(host.read("/backup/file")?, b"precious");
    host.check(["umount", "/backup"])?;
    host.command(["kpartx", "-d", taken]).env("DM_DISABLE_UDEV", "1").check()?;

    smctl.ok(&["vdi", "detach", "backup"]);
    smctl.ok(&["vdi", "destroy", "backup"]);
    host.check(["umount", "/mnt"])?;
    host.check(["losetup", "--detach", &loops])?;
    smctl.ok(&["vdi", "detach", "web"]);
    Ok(())
}

/// The kernel makes the node of a partition by itself, in devtmpfs.
fn partition(host: &Guest, device: &str, number: u32) -> String {
    let path = format!("{device}p{number}");
    host.wait_for("the partition", std::time::Duration::from_secs(10), |host| {
        let there = host.run(["test", "-b", &path])?.status == 0;
        Ok(if there { Ok(()) } else { Err(format!("no {path}")) })
    })
    .unwrap();
    assert!(Path::new(&path).is_absolute());
    path
}
