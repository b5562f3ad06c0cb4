//! VHDs in volumes: their layout, snapshots under a writer, and what is active.

use std::collections::BTreeMap;

use lab::kit::iscsi::Lun;
use lab::{Guest, Lab, Result};

use crate::array::{Place, lun, smctl};

/// A row of `lvs` for each volume: size in MiB, may be written, is active.
pub(crate) fn volumes(host: &Guest, lun: &Lun) -> BTreeMap<String, (u64, bool, bool)> {
    let filter = format!("devices {{ filter=[\"a|{}|\",\"r|.*|\"] }}", lun.scsi_id());
    let words = ["lvm", "lvs", "--config", &filter, "--noheadings", "--units", "m", "--nosuffix"];
    let text = host.check([&words[..], &["-o", "lv_name,lv_size,lv_attr"]].concat()).unwrap();
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let attributes = words[2].as_bytes();
        let size = words[1].split('.').next().unwrap().parse().unwrap();
        (words[0].to_owned(), (size, attributes[1] == b'w', attributes[4] == b'a'))
    };
    text.lines().map(row).collect()
}

/// Attaches; where a client of NBD connects to.
pub(crate) fn attach(host: &Guest, vdi: &str, more: &[&str]) -> String {
    let text = smctl(host).check(&[&["vdi", "attach", vdi][..], more].concat()).unwrap();
    let uri = text.split_whitespace().find(|word| word.starts_with("nbd+unix:"));
    uri.unwrap_or_else(|| panic!("{text}")).to_owned()
}

/// Fills a place of a disk, in KiB, with a byte, or looks whether it is filled so.
pub(crate) fn io(host: &Guest, uri: &str, write: bool, byte: u8, at: u64, length: u64) {
    let (uri, pattern) = (format!("--uri={uri}"), format!("--verify_pattern={byte:#04x}"));
    let (offset, size) = (format!("--offset={at}k"), format!("--size={length}k"));
    let words = ["fio", "--name=io", "--ioengine=nbd", "--bs=64k", "--verify=pattern"];
    let verify = ["--verify_fatal=1", "--verify_state_save=0", &uri, &pattern, &offset, &size];
    let how: &[&str] =
        if write { &["--rw=write", "--do_verify=0", "--end_fsync=1"] } else { &["--rw=read"] };
    let said = host.check([&words[..], &verify, how].concat()).unwrap();
    assert!(said.contains("err= 0"), "{said}");
}

#[test]
fn disks_are_vhds_in_xenservers_layout_and_only_what_is_used_is_active() -> Result<()> {
    let lab = Lab::new()?;
    let place = Place::new(&lab, &[(1, 256)])?;
    let (smctl, host, unit) = (place.smctl(), &place.host, lun(1, 256));
    let sr = place.create("san", &unit)?;
    let create = ["vdi", "create", "--sr", "san", "--name", "disk", "--description", "d", "--size"];
    let disk = smctl.check(&[&create[..], &["32MiB"]].concat())?;
    // XenServer's size for it: 32 MiB, its tables for 2 TiB, and a bitmap for each block.
    let (own, all) = (format!("VHD-{disk}"), volumes(host, &unit));
    assert_eq!(all.len(), 2, "{all:?}");
    assert_eq!((all[&own], all["sm-store"]), ((40, true, false), (8, true, false)));

    // The commands of LVM are counted by a program in its place.
    host.check(["mkdir", "-p", "/run/count"])?;
    let script = "#!/bin/sh\necho \"$1\" >>/run/count/log\nexec /sbin/lvm \"$@\"\n";
    host.write("/run/count/lvm", script)?;
    host.check(["chmod", "755", "/run/count/lvm"])?;
    let path = "/run/count:/usr/sbin:/usr/bin:/sbin:/bin";
    let counted = |words: &[&str], most: usize| -> Result<Vec<String>> {
        host.write("/run/count/log", "")?;
        smctl.call(words).env("PATH", path).check()?;
        let said = host.check(["cat", "/run/count/log"])?;
        let commands: Vec<String> = said.lines().map(str::to_owned).collect();
        assert!((1..=most).contains(&commands.len()), "{words:?}: {commands:?}");
        Ok(commands)
    };
    // One of them is for the limits of the disk, which the core reads first.
    counted(&["vdi", "attach", &disk], 5)?;
    // Again is the same.
    let uri = attach(host, "disk", &[]);
    io(host, &uri, true, 0xa1, 0, 1024);
    assert!(volumes(host, &unit)[&own].2);

    // A snapshot under a writer: the base is small and read-only, the disk has all its room.
    let snap = smctl.check(&["vdi", "snapshot", "disk", "--name", "snap"])?;
    io(host, &uri, true, 0xa2, 0, 64);
    io(host, &uri, false, 0xa1, 64, 960);
    let all = volumes(host, &unit);
    let base = all
        .keys()
        .find(|name| name.starts_with("VHD-") && **name != own && **name != format!("VHD-{snap}"));
    let base = base.unwrap_or_else(|| panic!("{all:?}")).clone();
    assert_eq!((all[&own], all[&base]), ((40, true, true), (4, false, true)), "{all:?}");
    assert_eq!(all[&format!("VHD-{snap}")], (4, true, false), "{all:?}");
    // The snapshot is read beside it, and its end leaves the disk what both need.
    let read = attach(host, "snap", &["--read-only"]);
    io(host, &read, false, 0xa1, 0, 1024);
    smctl.check(&["vdi", "detach", "snap"])?;
    let all = volumes(host, &unit);
    assert!(all[&own].2 && all[&base].2 && !all[&format!("VHD-{snap}")].2, "{all:?}");
    smctl.check(&["vdi", "detach", "disk"])?;
    assert!(volumes(host, &unit).values().all(|volume| !volume.2));
    assert_eq!(counted(&["sr", "scan", "san"], 3)?.first().map(String::as_str), Some("fullreport"));

    // What XenServer's own way to find a parent is: its volume's name.
    let group = format!("VG_XenStorage-{sr}");
    let script = "c='devices { filter=[\"a|'$1'|\",\"r|.*|\"] }'; lvm lvchange -ay -K --config \"$c\" $2/$3 && \
                  dd if=/dev/$2/$3 bs=4096 count=1 2>/dev/null | tr -d '\\000' | grep -c $4; \
                  lvm lvchange -an --config \"$c\" $2/$3";
    let found = host.check(["sh", "-c", script, "sh", &unit.scsi_id(), &group, &own, &base])?;
    assert_ne!(found.lines().next(), Some("0"), "{found}");
    Ok(())
}
