//! SRs and VDIs from their beginning to their end, with data.

use plugin_sdk::prelude::*;

use crate::bench::*;

#[test]
fn a_thin_sr_lives_with_its_disks_and_their_data() -> lab::Result<()> {
    lab::in_guest(
        |lab| machine(lab, &[512]),
        || {
            let bench = Bench::open(SrUuid::random(), &[("device", "/dev/ubda")]);
            let gone = bench.fails(SrAttach::default());
            assert_eq!((gone.kind.clone(), gone.legacy_code()), (Kind::NotFound, 47));
            let id = OperationId::random();
            let request = SrCreate { name: "räume & co".into(), description: "d".into() };
            assert_eq!(bench.called(id, request.clone()).changed, Changed::Created);
            assert_eq!(bench.called(id, request.clone()).changed, Changed::Already);
            let twice = bench.fails(request);
            assert_eq!((twice.kind.clone(), twice.legacy_code()), (Kind::Exists, 42));
            assert!(bench.call(SrAttach::default()).completed.is_empty());
            let empty = bench.call(SrStat::default());
            assert_eq!((empty.name.as_str(), empty.vdis), ("räume & co", 0));
            assert!(empty.physical_size.0 > 400 * MIB, "{empty:?}");

            // A disk reads as zeros, has whole extents, and is there once.
            let id = OperationId::random();
            let request = create("disk", 30 * MIB + 1);
            let made = bench.called(id, request.clone());
            assert_eq!((made.changed, made.vdi.virtual_size), (Changed::Created, Bytes(32 * MIB)));
            assert_eq!(bench.called(id, request.clone()).changed, Changed::Already);
            let other = bench.fails(VdiCreate { virtual_size: Bytes(MIB), ..request });
            assert_eq!((other.kind.clone(), other.legacy_code()), (Kind::Exists, 43));
            let disk = made.vdi.uuid;
            let device = bench.attach(disk, AttachMode::ReadWrite);
            assert_eq!(size_of(&device), 32 * MIB);
            assert!(is_all(&device, 0, 0, 32 * MIB));
            assert!(device.starts_with("/dev/sm-"), "{device}");

            // A snapshot of a disk that is being written keeps what was there.
            write(&device, 0, 1, 4 * MIB);
            let id = OperationId::random();
            let request = snapshot(disk, "before");
            let taken = bench.called(id, request.clone());
            assert_eq!(taken.changed, Changed::Created);
            assert_eq!(bench.called(id, request.clone()).changed, Changed::Already);
            assert_eq!(bench.fails(request).kind, Kind::Exists);
            let before = taken.vdis[0].clone();
            assert!(before.is_a_snapshot && before.read_only);
            assert_eq!(
                (before.snapshot_of, before.snapshot_time),
                (Some(disk), Some(1_700_000_000))
            );
            assert_eq!(before.physical_utilisation, Bytes(4 * MIB));
            write(&device, 0, 2, 2 * MIB);
            write(&device, 8 * MIB, 2, MIB);
            let seen = bench.attach(before.uuid, AttachMode::ReadOnly);
            assert!(is_all(&seen, 0, 1, 4 * MIB) && is_all(&seen, 4 * MIB, 0, 28 * MIB));
            assert!(is_all(&device, 0, 2, 2 * MIB) && is_all(&device, 2 * MIB, 1, 2 * MIB));
            assert!(refuses_writes(&seen));
            let refused = bench.fails(VdiAttach { vdi: before.uuid, mode: AttachMode::ReadWrite });
            assert_eq!((refused.kind.clone(), refused.legacy_code()), (Kind::Unsupported, 46));
            bench.detach(before.uuid);
            bench.detach(before.uuid);

            // A clone of the snapshot can be written, and nobody else sees it.
            let copy = bench.call(clone(before.uuid, "copy")).vdi;
            assert!(!copy.is_a_snapshot && !copy.read_only && copy.snapshot_of.is_none());
            let written = bench.attach(copy.uuid, AttachMode::ReadWrite);
            assert!(is_all(&written, 0, 1, 4 * MIB));
            write(&written, 0, 3, MIB);
            assert!(is_all(&device, 0, 2, 2 * MIB));
            bench.detach(copy.uuid);

            // Larger, while it is in use; the new part is zeros.
            let id = OperationId::random();
            let larger = VdiResize { vdi: disk, virtual_size: Bytes(64 * MIB) };
            assert_eq!(bench.called(id, larger.clone()).vdi.virtual_size, Bytes(64 * MIB));
            assert_eq!(size_of(&device), 64 * MIB);
            assert!(is_all(&device, 32 * MIB, 0, 32 * MIB) && is_all(&device, 0, 2, 2 * MIB));
            let latest = VdiResize { vdi: disk, virtual_size: Bytes(80 * MIB) };
            assert_eq!(bench.call(latest).changed, Changed::Modified);
            // The earlier one comes again: it knows itself, and takes nothing back.
            assert_eq!(bench.called(id, larger.clone()).changed, Changed::Already);
            assert_eq!(size_of(&device), 80 * MIB);
            let smaller = bench.fails(larger);
            assert_eq!((smaller.kind.clone(), smaller.legacy_code()), (Kind::Limit, 79));

            // Back to the snapshot, which stays; name and keys are the disk's own.
            let id = OperationId::random();
            let back = VdiRevert { vdi: disk, snapshot: before.uuid };
            assert_eq!(bench.fails(back.clone()).kind, Kind::InUse);
            bench.detach(disk);
            assert!(!std::path::Path::new(&device).exists());
            let reverted = bench.called(id, back.clone());
            assert_eq!(
                (reverted.changed, reverted.vdi.virtual_size),
                (Changed::Modified, Bytes(32 * MIB))
            );
            assert_eq!(reverted.vdi.name, "disk");
            let device = bench.attach(disk, AttachMode::ReadWrite);
            assert!(is_all(&device, 0, 1, 4 * MIB) && is_all(&device, 4 * MIB, 0, 28 * MIB));
            write(&device, 0, 4, MIB);
            // It comes again, late: what was written since stays.
            assert_eq!(bench.called(id, back).changed, Changed::Already);
            assert!(is_all(&device, 0, 4, MIB));
            bench.detach(disk);
            let foreign = bench.fails(VdiRevert { vdi: copy.uuid, snapshot: before.uuid });
            assert_eq!((foreign.kind.clone(), foreign.legacy_code()), (Kind::Limit, 66));

            // A scan and a look at one say the same, also by another session.
            let scanned = bench.scan();
            assert_eq!(scanned.len(), 3);
            let again = Bench::open(bench.sr, &[("device", "/dev/ubda")]);
            for (uuid, info) in &scanned {
                assert_eq!(&again.call(VdiStat::of(*uuid)), info);
                assert_eq!(info.health, Health::Ok);
            }
            // Known although it is not active: 4 MiB of the snapshot.
            assert_eq!(scanned[&disk].physical_utilisation, Bytes(4 * MIB));
            assert_eq!(bench.call(SrRecover::default()), SrRecovered::default());
            let tree = bench.call(VdiTree {}).nodes;
            assert_eq!(tree.iter().filter(|node| node.parent == Some(before.uuid)).count(), 2);
            assert!(bench.call(VdiCheck { vdi: disk }).findings.is_empty());

            // Nothing of ours goes while somebody needs it; then all of it goes.
            let full = bench.fails(SrDestroy::default());
            assert_eq!((full.kind.clone(), full.legacy_code()), (Kind::InUse, 39));
            assert!(full.message.contains("it holds 3 volumes"), "{full}");
            let device = bench.attach(disk, AttachMode::ReadWrite);
            let open = std::fs::File::open(&device).unwrap();
            for error in [
                bench.fails(VdiDestroy { vdi: disk }),
                bench.fails(VdiDeactivate { vdi: disk }),
                bench.fails(SrDetach::default()),
            ] {
                assert_eq!(error.kind, Kind::InUse, "{error}");
                assert!(error.backend.as_ref().unwrap().contains("in use"), "{error}");
            }
            drop(open);
            bench.detach(disk);
            bench.call(VdiDestroy { vdi: before.uuid });
            // What shared with it keeps its content.
            let device = bench.attach(copy.uuid, AttachMode::ReadOnly);
            assert!(is_all(&device, 0, 3, MIB) && is_all(&device, MIB, 1, 3 * MIB));
            assert!(refuses_writes(&device));
            bench.detach(copy.uuid);
            for vdi in [disk, copy.uuid] {
                assert_eq!(bench.call(VdiDestroy { vdi }).changed, Changed::Modified);
                assert_eq!(bench.call(VdiDestroy { vdi }).changed, Changed::Already);
            }
            let lost = bench.fails(VdiStat::of(disk));
            assert_eq!((lost.kind.clone(), lost.legacy_code()), (Kind::NotFound, 144));
            assert_eq!(bench.call(SrDetach::default()).changed, Changed::Modified);
            assert_eq!(bench.call(SrDetach::default()).changed, Changed::Already);
            assert_eq!(bench.call(SrDestroy::default()).changed, Changed::Modified);
            assert_eq!(bench.call(SrDestroy::default()).changed, Changed::Already);
            assert_eq!(sh(&["wipefs", "--no-act", "--noheadings", "/dev/ubda"]), "");
        },
    )
}

/// Each command costs tens of milliseconds: they are counted.
#[test]
fn an_operation_is_one_report_and_one_change() -> lab::Result<()> {
    lab::in_guest(
        |lab| machine(lab, &[512]),
        || {
            let bench = Bench::open(SrUuid::random(), &[("device", "/dev/ubda")]);
            let count = |expected: &[&str], work: &dyn Fn()| {
                assert_eq!(bench.commands(expected.len(), work), expected);
            };
            let report = "fullreport";
            count(&[report, "wipefs", "vgcreate", report, "lvcreate"], &|| {
                bench.call(SrCreate::default());
            });
            count(&[report, "dmsetup"], &|| bench.done(SrAttach::default()));
            let (disk, other) = (create("a", 16 * MIB), create("b", 16 * MIB));
            let vdi = disk.uuid;
            count(&[report, "lvcreate"], &|| bench.done(disk.clone()));
            count(&[report, "lvcreate"], &|| bench.done(other.clone()));
            let taken = snapshot(vdi, "s");
            count(&[report, "lvcreate"], &|| bench.done(taken.clone()));
            count(&[report, "lvcreate"], &|| bench.done(clone(vdi, "c")));
            count(&[report], &|| drop(bench.scan()));
            count(&[report], &|| bench.done(SrStat::default()));
            count(&[report, "dmsetup"], &|| bench.done(SrRecover::default()));
            count(&[report], &|| bench.done(VdiStat::of(vdi)));
            let mode = AttachMode::ReadWrite;
            count(&[report], &|| bench.done(VdiAttach { vdi, mode }));
            count(&["lvchange"], &|| bench.done(activate(vdi, mode)));
            count(&[report, "lvchange"], &|| bench.done(VdiDeactivate { vdi }));
            count(&[], &|| bench.done(VdiDetach { vdi }));
            // The operation is recorded on the volume before it is done.
            let larger = VdiResize { vdi, virtual_size: Bytes(32 * MIB) };
            count(&[report, "lvchange", "lvextend"], &|| bench.done(larger.clone()));
            let back = VdiRevert { vdi, snapshot: taken.snapshots[0].uuid };
            count(&[report, "lvcreate", "lvremove", "lvrename"], &|| {
                bench.done(back.clone());
            });
            let renamed: VdiUpdate =
                serde_json::from_value(serde_json::json!({ "vdi": vdi, "name": "new" })).unwrap();
            count(&[report, "lvchange"], &|| bench.done(renamed.clone()));
            count(&[report], &|| bench.done(renamed.clone()));
            count(&[report, "lvremove"], &|| bench.done(VdiDestroy { vdi }));
            count(&[report, "vgchange"], &|| bench.done(SrDetach::default()));
            // However many VDIs there are; see the test of a thousand.
            count(&[report, "lvchange", "dmsetup"], &|| bench.done(SrAttach::default()));
            count(&[report, "lvcreate"].repeat(3), &|| {
                for number in 0..3 {
                    bench.create(&number.to_string(), 4 * MIB);
                }
            });
            count(&[report], &|| assert_eq!(bench.scan().len(), 6));
        },
    )
}

/// What a disk held before belongs to somebody else: a guest reads zeros.
#[test]
fn a_thick_volume_reads_as_zeros_and_has_no_snapshots() -> lab::Result<()> {
    lab::in_guest(
        |lab| machine(lab, &[256]),
        || {
            prepare();
            write("/dev/ubda", 0, 0xaa, 256 * MIB);
            let config = [("device", "/dev/ubda"), ("allocation", "thick")];
            let bench = Bench::with_sr(&config);
            assert_eq!(bench.call(SrStat::default()).vdis, 0);
            let disk = bench.create("disk", 40 * MIB);
            assert_eq!(disk.physical_utilisation, Bytes(40 * MIB));
            let device = bench.attach(disk.uuid, AttachMode::ReadWrite);
            assert!(is_all(&device, 0, 0, 40 * MIB));
            write(&device, 0, 1, 40 * MIB);
            let larger = VdiResize { vdi: disk.uuid, virtual_size: Bytes(80 * MIB) };
            assert_eq!(bench.call(larger).vdi.physical_utilisation, Bytes(80 * MIB));
            assert!(is_all(&device, 0, 1, 40 * MIB) && is_all(&device, 40 * MIB, 0, 40 * MIB));
            bench.detach(disk.uuid);
            let larger = VdiResize { vdi: disk.uuid, virtual_size: Bytes(84 * MIB) };
            bench.call(larger);
            let scanned = bench.scan();
            assert_eq!((scanned.len(), &scanned[&disk.uuid].health), (1, &Health::Ok));
            let device = bench.attach(disk.uuid, AttachMode::ReadOnly);
            assert!(is_all(&device, 40 * MIB, 0, 44 * MIB));
            bench.detach(disk.uuid);

            let refused =
                [bench.fails(snapshot(disk.uuid, "s")), bench.fails(clone(disk.uuid, "c"))];
            for error in refused {
                assert_eq!(error.kind, Kind::Unsupported);
                let message = format!(
                    "VDI {} is a thick volume, which has no snapshots and clones",
                    disk.uuid
                );
                assert_eq!(error.message, message);
            }
            let full = bench.fails(create("too large", 200 * MIB));
            assert_eq!((full.kind.clone(), full.legacy_code()), (Kind::NoSpace, 44));
            let full = bench.fails(VdiResize { vdi: disk.uuid, virtual_size: Bytes(300 * MIB) });
            assert_eq!((full.kind.clone(), full.legacy_code()), (Kind::NoSpace, 44));
            // Nothing is left of either.
            assert_eq!(bench.scan(), scanned);
            assert_eq!(bench.call(SrRecover::default()), SrRecovered::default());
            bench.call(VdiDestroy { vdi: disk.uuid });
            bench.call(SrDestroy::default());
        },
    )
}

#[test]
fn odd_texts_are_kept_byte_for_byte() -> lab::Result<()> {
    lab::in_guest(
        |lab| machine(lab, &[256]),
        || {
            let bench = Bench::with_sr(&[("device", "/dev/ubda")]);
            let odd = "-rf / \"'`$(x)\\ ,=+#:&!/ \u{202e}ü💽\n\t@sm:name=x";
            let long = "é".repeat(8 * 1024);
            bench.call(SrUpdate { name: Some(odd.into()), description: Some(long.clone()) });
            let mut request = create(odd, 8 * MIB);
            request.description.clone_from(&long);
            request.keys = [("k", "v"), (odd, odd), ("a/b", ""), ("=", "=")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into();
            request.vdi_type = VdiType::HaStatefile;
            request.sharable = true;
            let made = bench.call(request.clone()).vdi;
            let taken = bench.snapshot(made.uuid, odd);

            let again = Bench::open(bench.sr, &[("device", "/dev/ubda")]);
            let sr = again.call(SrStat::default());
            assert_eq!((sr.name.as_str(), sr.description.as_str()), (odd, long.as_str()));
            let scanned = again.scan();
            assert_eq!(scanned[&made.uuid], made);
            assert_eq!(
                (&made.name, &made.description, &made.keys),
                (&request.name, &long, &request.keys)
            );
            assert_eq!((made.vdi_type, made.sharable), (VdiType::HaStatefile, true));
            assert_eq!(scanned[&taken.uuid], taken);
            assert_eq!((&taken.keys, taken.vdi_type), (&request.keys, VdiType::HaStatefile));

            let update =
                |json: serde_json::Value| -> VdiUpdate { serde_json::from_value(json).unwrap() };
            let changed = again.call(update(serde_json::json!({
            "vdi": made.uuid, "description": "", "keys": { odd: null, "k": "w" }, "read_only": true,
        })));
            assert_eq!(changed.vdi.keys.len(), 3);
            assert_eq!(bench.scan()[&made.uuid], changed.vdi);
            assert!(changed.vdi.read_only && changed.vdi.description.is_empty());
            // LVM's own permission follows.
            let device = bench.attach(made.uuid, AttachMode::ReadOnly);
            assert_eq!(sh(&["blockdev", "--getro", &device]), "1");
            bench.detach(made.uuid);
            bench.call(update(serde_json::json!({ "vdi": made.uuid, "read_only": false })));
            let device = bench.attach(made.uuid, AttachMode::ReadWrite);
            write(&device, 0, 1, MIB);
            bench.detach(made.uuid);
            let snapshot = update(serde_json::json!({ "vdi": taken.uuid, "read_only": false }));
            assert_eq!(bench.fails(snapshot).kind, Kind::Unsupported);

            // More than the group's metadata should hold of one disk.
            let keys: serde_json::Map<_, _> =
                (0..20).map(|n| (n.to_string(), "ü".repeat(2000).into())).collect();
            let refused =
                bench.fails(update(serde_json::json!({ "vdi": made.uuid, "keys": keys })));
            assert_eq!(refused.kind, Kind::Limit, "{refused}");
        },
    )
}

/// A volume that somebody else made in the pool, under a VDI's name, is taken in.
#[test]
fn a_volume_made_by_hand_is_introduced_and_others_are_left_alone() -> lab::Result<()> {
    lab::in_guest(
        |lab| machine(lab, &[256]),
        || {
            let bench = Bench::with_sr(&[("device", "/dev/ubda")]);
            let (group, uuid) = (format!("sm-{}", bench.sr), VdiUuid::random());
            let name = format!("vdi-{uuid}");
            sh(&["lvcreate", "-V", "16M", "-T", &format!("{group}/pool"), "-n", &name]);
            sh(&["lvcreate", "-V", "16M", "-T", &format!("{group}/pool"), "-n", "mine"]);
            assert_eq!(bench.scan().into_keys().collect::<Vec<_>>(), [uuid]);
            let introduce: VdiIntroduce =
                serde_json::from_value(serde_json::json!({ "uuid": uuid, "name": "found" }))
                    .unwrap();
            assert_eq!(bench.call(introduce.clone()).changed, Changed::Modified);
            assert_eq!(bench.call(introduce).changed, Changed::Already);
            assert_eq!(bench.scan()[&uuid].name, "found");
            let none =
                serde_json::from_value(serde_json::json!({ "uuid": VdiUuid::random() })).unwrap();
            assert_eq!(bench.fails::<VdiIntroduce>(none).kind, Kind::NotFound);
            sh(&["lvchange", "-an", &format!("{group}/{name}")]);
            bench.call(VdiDestroy { vdi: uuid });
            let foreign = bench.fails(SrDestroy::default());
            let message =
                format!("SR {} is not empty: it holds 1 volumes, among them mine", bench.sr);
            assert_eq!(foreign.message, message);

            // Tags that a person has spoilt: the disk is shown, and left alone.
            let disk = bench.create("disk", 4 * MIB);
            let path = format!("{group}/vdi-{}", disk.uuid);
            sh(&["lvchange", "--addtag", "sm:name=other", &path]);
            let shown = bench.scan();
            let reason =
                format!("the tags of vdi-{} are damaged: the field name is there twice", disk.uuid);
            assert_eq!(shown[&disk.uuid].health, Health::Quarantined { reason });
            assert_eq!(bench.call(SrStat::default()).quarantined, [disk.uuid]);
            let mode = AttachMode::ReadOnly;
            let refused = bench.fails(VdiAttach { vdi: disk.uuid, mode });
            assert_eq!((refused.kind.clone(), refused.legacy_code()), (Kind::Corrupt, 65));
            let found = bench.call(VdiCheck { vdi: disk.uuid }).findings;
            assert_eq!((found.len(), found[0].severity), (1, Severity::Error));
            sh(&["lvchange", "--deltag", "sm:name=other", &path]);
            assert_eq!(bench.scan()[&disk.uuid].health, Health::Ok);
            sh(&["lvchange", "--deltag", "sm:v=1", "--addtag", "sm:v=2", &path]);
            let newer = format!(
                "the tags of vdi-{} are damaged: they have version 2, this release knows 1",
                disk.uuid
            );
            assert_eq!(bench.scan()[&disk.uuid].health, Health::Quarantined { reason: newer });
            bench.call(VdiDestroy { vdi: disk.uuid });
            assert!(bench.scan().is_empty());
        },
    )
}
