//! A pool that fills up says so before, grows if it can, and goes on when there is room again.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use plugin_sdk::prelude::*;

use crate::bench::*;

/// Writes as QEMU does, past the page cache, until the kernel refuses; the error.
fn fill(device: &str, from: u64, to: u64) -> Option<std::io::Error> {
    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let file = File::options().write(true).custom_flags(flags).open(device).unwrap();
    let buffer = vec![7; MIB as usize + 4096];
    let aligned = buffer.as_ptr().align_offset(4096);
    let block = &buffer[aligned..aligned + MIB as usize];
    (from..to).find_map(|at| file.write_all_at(block, at * MIB).err())
}

#[test]
fn a_pool_that_fills_warns_refuses_and_recovers() -> lab::Result<()> {
    lab::in_guest(
        |lab| machine(lab, &[128, 128]),
        || {
            let bench = Bench::with_sr(&[("device", "/dev/ubda")]);
            let group = format!("sm-{}", bench.sr);
            let size = bench.call(SrStat::default()).physical_size.0 / MIB;
            // 128 MiB less 33 for LVM's texts, 4 extents for the pool's metadata, now and later.
            assert_eq!(size, 76);
            let disk = bench.create("disk", 256 * MIB);
            let device = bench.attach(disk.uuid, AttachMode::ReadWrite);
            let room = size;

            assert!(fill(&device, 0, room * 70 / 100).is_none());
            assert!(bench.call(SrStat::default()).warnings.is_empty());
            assert!(fill(&device, room * 70 / 100, room * 90 / 100).is_none());
            let stat = bench.call(SrStat::default());
            assert_eq!((stat.health.clone(), stat.warnings.len()), (Health::Ok, 1), "{stat:?}");
            let warning = format!("thin pool of {group}: data 89.");
            assert!(stat.warnings[0].starts_with(&warning), "{stat:?}");
            assert_eq!(stat.physical_utilisation.0.div_ceil(MIB), room * 90 / 100);

            // Nothing new, long before a guest is refused.
            assert!(fill(&device, room * 90 / 100, room * 97 / 100).is_none());
            for refused in [
                bench.fails(create("new", MIB)),
                bench.fails(snapshot(disk.uuid, "s")),
                bench.fails(clone(disk.uuid, "c")),
                bench.fails(VdiResize { vdi: disk.uuid, virtual_size: Bytes(512 * MIB) }),
            ] {
                assert_eq!((refused.kind.clone(), refused.legacy_code()), (Kind::NoSpace, 44));
                let begin = format!("the thin pool of {group} is nearly full: data 9");
                assert!(refused.message.starts_with(&begin), "{refused}");
                assert!(refused.message.ends_with(" %, nothing new from 95.00 % on"), "{refused}");
                assert!(refused.hint.as_ref().unwrap().contains("add a disk to the group"));
            }
            assert_eq!(bench.scan().len(), 1);

            // Full: a writer is told at once, and does not hang.
            let error = fill(&device, room * 97 / 100, 250).unwrap();
            assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
            let stat = bench.call(SrStat::default());
            let full = "the thin pool is full: writes fail with ENOSPC".to_owned();
            assert_eq!(stat.health, Health::Degraded { reason: full.clone() });
            assert_eq!(bench.scan()[&disk.uuid].health, Health::Degraded { reason: full });
            let attach = VdiAttach { vdi: disk.uuid, mode: AttachMode::ReadWrite };
            assert_eq!(bench.fails(attach.clone()).kind, Kind::NoSpace);
            // What was there is still there, and what gives room back works.
            assert!(is_all(&device, 0, 7, 32 * MIB));

            // A disk more, as the page of this driver says it; the next look lets the pool grow.
            let both = [("device", "/dev/ubda,/dev/ubdb")];
            sh(&["vgextend", "-q", "-y", &group, "/dev/ubdb"]);
            let larger = Bench::open(bench.sr, &both);
            larger.call(SrRecover::default());
            let stat = larger.call(SrStat::default());
            assert_eq!((stat.health, stat.warnings), (Health::Ok, vec![]));
            assert!(stat.physical_size.0 > (size + 90) * MIB, "{}", stat.physical_size);
            larger.call(attach);
            assert!(fill(&device, room * 97 / 100, room + 40).is_none());
            larger.snapshot(disk.uuid, "s");

            // Room comes back with what a guest discards, too.
            let used = larger.call(SrStat::default()).physical_utilisation.0;
            larger.detach(disk.uuid);
            for vdi in larger.scan().into_keys() {
                larger.call(VdiDestroy { vdi });
            }
            let disk = larger.create("other", 64 * MIB);
            let device = larger.attach(disk.uuid, AttachMode::ReadWrite);
            write(&device, 0, 1, 64 * MIB);
            let taken = larger.scan()[&disk.uuid].physical_utilisation;
            assert_eq!(taken, Bytes(64 * MIB));
            sh(&["blkdiscard", "--length", &(32 * MIB).to_string(), &device]);
            assert_eq!(larger.scan()[&disk.uuid].physical_utilisation, Bytes(32 * MIB));
            assert!(larger.call(SrStat::default()).physical_utilisation.0 < used / 2);
        },
    )
}
