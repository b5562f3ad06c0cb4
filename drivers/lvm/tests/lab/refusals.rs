//! What belongs to somebody else is not touched.

use plugin_sdk::prelude::*;
use plugin_sdk::testing;
use sm_driver_lvm::LvmDriver;

use crate::bench::*;

fn refused(device: &str) -> Error {
    let bench = Bench::open(SrUuid::random(), &[("device", device)]);
    bench.fails(SrCreate::default())
}

fn forced(device: &str) -> Bench {
    let bench = Bench::open(SrUuid::random(), &[("device", device), ("force", "true")]);
    let made = bench.call(SrCreate::default());
    // Meant for this once: a later creation must not find it in the configuration.
    assert!(!made.device_config.contains_key("force"), "{made:?}");
    bench
}

#[test]
fn a_device_with_somebodys_data_is_refused_unless_forced() -> lab::Result<()> {
    lab::in_guest(
        |lab| machine(lab, &[256, 256]),
        || {
            prepare();
            let uuid = "11111111-2222-4333-8444-555555555555";
            sh(&["mkfs.ext4", "-q", "-L", "photos", "-U", uuid, "/dev/ubda"]);
            sh(&["sh", "-c", "sha256sum /dev/ubda > /tmp/before"]);
            let error = refused("/dev/ubda");
            assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::Exists, 42));
            assert_eq!(error.message, format!("/dev/ubda holds ext4 \"photos\" ({uuid})"));
            assert_eq!(error.hint.as_deref(), Some("force=true erases it, with all that is on it"));
            // One of several is enough, and nothing was done to the other.
            assert_eq!(refused("/dev/ubdb,/dev/ubda").message, error.message);
            sh(&["sha256sum", "--check", "--quiet", "/tmp/before"]);
            assert_eq!(sh(&["wipefs", "--noheadings", "/dev/ubdb"]), "");

            // In use: not even by force.
            sh(&["mount", "/dev/ubda", "/mnt"]);
            let config = [("device", "/dev/ubda"), ("force", "true")];
            let busy = Bench::open(SrUuid::random(), &config).fails(SrCreate::default());
            assert_eq!((busy.kind.clone(), busy.legacy_code()), (Kind::InUse, 16));
            assert_eq!(busy.message, "/dev/ubda cannot be erased");
            sh(&["umount", "/mnt"]);
            sh(&["mount", "-o", "ro", "/dev/ubda", "/mnt"]);
            sh(&["umount", "/mnt"]);
            let bench = forced("/dev/ubda");
            assert!(bench.scan().is_empty());

            // An SR of ours, and its devices one by one.
            let error = refused("/dev/ubda");
            assert_eq!(error.message, format!("/dev/ubda belongs to SR {}", bench.sr));
            assert_eq!(error.kind, Kind::Exists);
            bench.call(SrDestroy::default());

            // Another volume group, active or not.
            sh(&["vgcreate", "-q", "theirs", "/dev/ubda", "/dev/ubdb"]);
            sh(&["lvcreate", "-q", "-L", "8M", "-n", "data", "theirs"]);
            let error = refused("/dev/ubdb");
            assert_eq!(error.message, "/dev/ubdb belongs to the volume group theirs");
            let busy = Bench::open(SrUuid::random(), &config).fails(SrCreate::default());
            assert_eq!(busy.kind, Kind::InUse, "{busy}");
            sh(&["vgck", "theirs"]);
            sh(&["lvremove", "-q", "-y", "theirs/data"]);
            sh(&["vgremove", "-q", "theirs"]);

            // A physical volume of no group has no data: a creation that was cut leaves one.
            let bench = Bench::open(SrUuid::random(), &[("device", "/dev/ubda,/dev/ubdb")]);
            bench.call(SrCreate::default());
            bench.call(SrDestroy::default());

            // Partitions: the disk as a whole is refused.
            let script =
                "echo 'label: gpt\nsize=16M' | sfdisk -q --no-reread --no-tell-kernel /dev/ubda";
            sh(&["sh", "-c", script]);
            let error = refused("/dev/ubda");
            assert_eq!(error.message, "/dev/ubda holds gpt");
            forced("/dev/ubda").call(SrDestroy::default());
        },
    )
}

#[test]
fn a_probe_tells_what_there_is() -> lab::Result<()> {
    lab::in_guest(
        |lab| machine(lab, &[256, 64, 64]),
        || {
            prepare();
            let probe = |config: &[(&str, &str)]| testing::run(testing::probe::<LvmDriver>(config));
            let uuid = "11111111-2222-4333-8444-555555555555";
            sh(&["mkfs.ext4", "-q", "-U", uuid, "/dev/ubdb"]);
            // Nothing is known yet: the disks, each with the key to add.
            let items = probe(&[]).unwrap().items;
            let devices: Vec<&String> =
                items.iter().map(|item| &item.configuration["device"]).collect();
            assert_eq!(devices, ["/dev/ubda", "/dev/ubdb", "/dev/ubdc"]);
            assert!(items.iter().all(|item| item.complete && item.sr.is_none()));
            assert_eq!(items[0].extra_info["size"], "256MiB");
            assert_eq!(items[1].extra_info["holds"], format!("ext4 ({uuid})"));

            let items = probe(&[("device", "/dev/ubdb")]).unwrap().items;
            assert_eq!(items.len(), 1);
            assert_eq!(items[0].extra_info["occupied"], format!("/dev/ubdb holds ext4 ({uuid})"));
            let empty = probe(&[("device", "/dev/ubdc")]).unwrap().items;
            assert!(empty[0].complete && empty[0].sr.is_none() && empty[0].extra_info.is_empty());

            let bench = Bench::open(SrUuid::random(), &[("device", "/dev/ubda,/dev/ubdc")]);
            bench.call(SrCreate { name: "n".into(), description: "d".into() });
            let item = probe(&[("device", "/dev/ubdc,/dev/ubda")]).unwrap().items.remove(0);
            assert!(item.complete);
            let found = item.sr.unwrap();
            assert_eq!(
                (found.uuid, found.name.as_str(), found.description.as_str()),
                (bench.sr, "n", "d")
            );
            // Half of it is not enough.
            let item = probe(&[("device", "/dev/ubda")]).unwrap().items.remove(0);
            assert_eq!(item.extra_info["missing"], "1 devices are not named");
            assert!(!item.complete && item.sr.unwrap().uuid == bench.sr);
            let half = Bench::open(bench.sr, &[("device", "/dev/ubda")]);
            let error = half.fails(SrAttach::default());
            assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::Unreachable, 47));
            assert_eq!(error.message, format!("1 of 2 devices of SR {} are missing", bench.sr));
            assert_eq!(
                half.call(SrStat::default()).health,
                Health::Degraded { reason: "1 of 2 devices are missing".to_owned() }
            );

            let gone = probe(&[("device", "/dev/nothing")]).unwrap_err();
            assert_eq!(
                (gone.kind.clone(), gone.message.as_str()),
                (Kind::Unreachable, "the device /dev/nothing is not there")
            );
            let null = probe(&[("device", "/dev/null")]).unwrap_err();
            assert_eq!(null.message, "/dev/null is not a block device");
            let twice = Bench::open(SrUuid::random(), &[("device", "/dev/ubdb,/dev/ubdb")]);
            let error = twice.fails(SrCreate::default());
            assert_eq!(error.message, "/dev/ubdb names a device a second time");
            let mut group = snapshot(VdiUuid::random(), "a");
            group.snapshots.extend(snapshot(VdiUuid::random(), "b").snapshots);
            let error = bench.fails(group);
            assert!(error.message.starts_with("there is no "), "{error}");
        },
    )
}

/// What guests write into their disks is nobody's business: a group in a VDI stays unseen and inactive, and no
/// device outside of the SR is read.
#[test]
fn groups_inside_of_vdis_are_not_seen() -> lab::Result<()> {
    lab::in_guest(
        |lab| machine(lab, &[512]),
        || {
            let bench = Bench::with_sr(&[("device", "/dev/ubda")]);
            let disk = bench.create("guest", 64 * MIB);
            let device = bench.attach(disk.uuid, AttachMode::ReadWrite);
            // As a guest would, which sees its disk as a disk.
            let seen = ["--config", "devices { scan_lvs=1 }"];
            sh(&[&["vgcreate"], &seen[..], &["-q", "guests", &device]].concat());
            sh(&[
                &["lvcreate"],
                &seen[..],
                &["-q", "-an", "-Zn", "-Wn", "-L", "8M", "-n", "data", "guests"],
            ]
            .concat());
            // Its group has our name, too: that of the SR.
            let name = format!("sm-{}", bench.sr);
            assert_eq!(bench.call(SrStat::default()).vdis, 1);
            let taken = bench.snapshot(disk.uuid, "twice the same group");
            let other = bench.attach(taken.uuid, AttachMode::ReadOnly);
            assert_eq!(bench.scan().len(), 2);
            assert_eq!(
                sh(&["lvs", "--noheadings", "-o", "vg_name", "--rows"])
                    .split_whitespace()
                    .collect::<std::collections::BTreeSet<_>>(),
                [name.as_str()].into()
            );
            for record in bench.host.commands() {
                let words = record.argv.join(" ");
                assert!(
                    !words.starts_with("lvm")
                        || words.contains(r#"filter=["a|^/dev/ubda$|","r|.*|"] scan_lvs=0"#),
                    "{words}"
                );
            }
            assert_ne!(device, other);
            bench.detach(taken.uuid);
            bench.detach(disk.uuid);
            // An operating system that activates all it finds leaves the disks alone.
            sh(&["vgchange", "-q", "-aay"]);
            sh(&["vgchange", "-q", "-ay"]);
            let active = sh(&["lvs", "--noheadings", "-o", "lv_name", "-S", "lv_active=active"]);
            assert_eq!(active, "pool");
        },
    )
}
