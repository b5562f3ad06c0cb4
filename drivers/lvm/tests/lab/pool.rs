//! A pool that fills up says so before, grows if it can, and goes on when there is room again.

use std::fs::File;
use std::os::unix::fs::FileExt;

use plugin_sdk::prelude::*;

use crate::bench::*;

/// Writes until the kernel refuses; how many MiB it took, and the error.
fn fill(device: &str, from: u64, to: u64) -> (u64, Option<std::io::Error>) {
    let file = File::options().write(true).open(device).unwrap();
    for at in from..to {
        let done = file.write_all_at(&vec![7; MIB as usize], at * MIB).and_then(|()| file.sync_all());
        if let Err(error) = done {
            return (at - from, Some(error));
        }
    }
    (to - from, None)
}

#[test]
fn a_pool_that_fills_warns_refuses_and_recovers() -> lab::Result<()> {
    lab::in_guest(|lab| machine(lab, &[128, 128]), || {
        let bench = Bench::with_sr(&[("device", "/dev/ubda")]);
        let group = format!("sm-{}", bench.sr);
        let size = bench.call(SrStat::default()).physical_size.0 / MIB;
        assert!((80..=96).contains(&size), "{size}");
        let disk = bench.create("disk", 256 * MIB);
        let device = bench.attach(disk.uuid, AttachMode::ReadWrite);
        let room = size - 8;

        assert_eq!(fill(&device, 0, room * 70 / 100).1.map(|e| e.to_string()), None);
        assert!(bench.call(SrStat::default()).warnings.is_empty());
        assert_eq!(fill(&device, room * 70 / 100, room * 90 / 100).1.map(|e| e.to_string()), None);
        let stat = bench.call(SrStat::default());
        assert_eq!((stat.health.clone(), stat.warnings.len()), (Health::Ok, 1), "{stat:?}");
        let warning = format!("thin pool of {group}: data 9");
        assert!(stat.warnings[0].starts_with(&warning) || stat.warnings[0].contains("data 8"), "{stat:?}");
        assert!(stat.physical_utilisation.0 >= room * 90 / 100 * MIB, "{stat:?}");

        // Nothing new, long before a guest is refused.
        let (written, error) = fill(&device, room * 90 / 100, room * 97 / 100);
        assert!(error.is_none(), "{written} {error:?}");
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
        let (_, error) = fill(&device, room * 97 / 100, 250);
        assert_eq!(error.unwrap().kind(), std::io::ErrorKind::StorageFull);
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
        let (_, error) = fill(&device, room * 97 / 100, room);
        assert!(error.is_none(), "{error:?}");
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
    })
}
