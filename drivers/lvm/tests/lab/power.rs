//! The power goes, and with it what the disk had only in its cache: every write is written down by
//! dm-log-writes, and the disk is looked at as it was at each flush.

use std::collections::BTreeMap;
use std::path::Path;

use lab::Disk;
use lab::log_writes::Log;
use plugin_sdk::prelude::*;

use crate::bench::*;

const RECORDER: &str = "/dev/mapper/recorder";
/// The disk as it was at some place of the log.
const IMAGE: &str = "/run/image";
const LOOP: &str = "/dev/loop0";

fn dmsetup(words: &[&str]) {
    sh(&[&["env", "DM_DISABLE_UDEV=1", "dmsetup"], words].concat());
}

/// What a user sees of the VDIs.
fn state(bench: &Bench) -> BTreeMap<VdiUuid, String> {
    let facts = |vdi: &VdiInfo| {
        format!("{} {} {} {:?}", vdi.name, vdi.virtual_size, vdi.is_a_snapshot, vdi.health)
    };
    bench.scan().iter().map(|(uuid, vdi)| (*uuid, facts(vdi))).collect()
}

/// A change, and the states around it.
struct Change {
    name: &'static str,
    before: BTreeMap<VdiUuid, String>,
    after: BTreeMap<VdiUuid, String>,
}

#[test]
fn at_every_flush_a_disk_is_as_before_or_as_after() -> lab::Result<()> {
    lab::in_guest(
        |lab| Ok(machine(lab, &[96, 256])?.modules(&["dm-log-writes"])),
        || {
            prepare();
            let sectors = sh(&["blockdev", "--getsz", "/dev/ubda"]);
            let table = format!("0 {sectors} log-writes /dev/ubda /dev/ubdb");
            dmsetup(&["create", "recorder", "--table", &table]);
            let mark = |text: &str| dmsetup(&["message", "recorder", "0", "mark", text]);
            let bench = Bench::with_sr(&[("device", RECORDER)]);
            let precious = bench.create("precious", 16 * MIB).uuid;
            let device = bench.attach(precious, AttachMode::ReadWrite);
            write(&device, 0, 0xa5, MIB);
            bench.detach(precious);
            let snap = VdiUuid::random();

            let mut now = state(&bench);
            let mut changes = Vec::new();
            let mut change = |name: &'static str, work: &dyn Fn()| {
                mark(&format!("begin-{name}"));
                work();
                mark(&format!("end-{name}"));
                let after = state(&bench);
                assert_ne!(now, after, "{name} does nothing that is seen");
                changes.push(Change { name, before: now.clone(), after: after.clone() });
                now = after;
            };
            change("create", &|| drop(bench.create("new", 8 * MIB)));
            change("snapshot", &|| {
                let mut request = snapshot(precious, "snap");
                request.snapshots[0].uuid = snap;
                bench.done(request);
            });
            change("resize", &|| {
                bench.done(VdiResize { vdi: precious, virtual_size: Bytes(32 * MIB) });
            });
            change("destroy", &|| bench.done(VdiDestroy { vdi: snap }));
            bench.call(SrDetach::default());
            dmsetup(&["remove", "--retry", "recorder"]);

            let log = Log::open(&Disk::open("/dev/ubdb").unwrap()).unwrap();
            let clean = Path::new("/run/clean");
            let bytes = sectors.parse::<u64>().unwrap() * 512;
            std::fs::File::create(clean).unwrap().set_len(bytes).unwrap();
            let (mut at, mut looked) = (0, 0);
            for Change { name, before, after } in &changes {
                let begin = log.mark(&format!("begin-{name}")).unwrap();
                let end = log.mark(&format!("end-{name}")).unwrap();
                let mut seen_after = false;
                for point in log.points().into_iter().filter(|point| (begin..=end).contains(point))
                {
                    let new = &log.entries()[at..point];
                    if point != begin && new.iter().all(|entry| entry.length == 0) {
                        continue;
                    }
                    log.replay(at, point, clean).unwrap();
                    at = point;
                    looked += 1;
                    let found = look(&bench, precious);
                    assert!(
                        found == *before || found == *after,
                        "{name}, cut at {point} of {begin} to {end}:\n{before:?}\n{found:?}\n{after:?}"
                    );
                    // What has happened once does not go away again.
                    assert!(found == *after || !seen_after, "{name} at {point} is undone");
                    seen_after |= found == *after;
                }
                // dm-log-writes writes down at a flush what was written before it: what is missing
                // at the end was told although the power could still take it back.
                assert!(seen_after, "{name} was told before it was safe");
            }
            // The pool's own flushes at least, and ours, for each of the four.
            println!("{looked} places of {} in the log", log.entries().len());
            assert!(looked >= 8, "{looked} places");
        },
    )
}

/// The SR on a copy of the disk, as a host finds it at its next boot: recovered, sound, the content
/// of the disk that nobody changed where it was. What a scan shows.
fn look(bench: &Bench, precious: VdiUuid) -> BTreeMap<VdiUuid, String> {
    sh(&["cp", "--sparse=always", "/run/clean", IMAGE]);
    sh(&["losetup", LOOP, IMAGE]);
    let found = Bench::open(bench.sr, &[("device", LOOP)]);
    found.call(SrAttach::default());
    let seen = state(&found);
    found.call(activate(precious, AttachMode::ReadWrite));
    let device = format!("/dev/sm-{}/vdi-{precious}", bench.sr);
    assert!(is_all(&device, 0, 0xa5, MIB) && is_all(&device, MIB, 0, MIB));
    sh(&["vgck", &format!("sm-{}", bench.sr)]);
    // As the next loss of power does it, which takes a tenth of the time that LVM takes.
    dmsetup(&["remove_all"]);
    sh(&["losetup", "--detach", LOOP]);
    seen
}
