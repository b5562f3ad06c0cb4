//! Snapshots of several volumes at one instant, while they are written.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lab::Lab;
use plugin_sdk::model::vdi::VdiSnapshotPrepare;
use plugin_sdk::prelude::*;

use crate::bench::*;
use crate::user::Smctl;

/// A program that moves from one number to the next on the first device, then on the second, with each
/// on the storage before it goes on. So at each instant the first has the number of the second, or the
/// next one.
struct Program {
    end: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Program {
    fn start(devices: [String; 2]) -> Self {
        let (end, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, count) = (end.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let open = |device: &String| File::options().write(true).open(device).unwrap();
            let files: Vec<File> = devices.iter().map(open).collect();
            for n in 1_u64.. {
                if told.load(Ordering::Relaxed) {
                    return;
                }
                let mut block = vec![0; 4096];
                block[..8].copy_from_slice(&n.to_le_bytes());
                for file in &files {
                    file.write_all_at(&block, 0).unwrap();
                    file.sync_data().unwrap();
                }
                count.store(n, Ordering::Release);
            }
        });
        Self { end, done, thread: Some(thread) }
    }

    fn moves_on(&self) {
        let from = self.done.load(Ordering::Acquire);
        let end = Instant::now() + Duration::from_secs(60);
        while self.done.load(Ordering::Acquire) < from + 2 {
            assert!(Instant::now() < end, "the program is stopped");
            std::thread::yield_now();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn number(bench: &Bench, snapshot: VdiUuid) -> u64 {
    let device = bench.attach(snapshot, AttachMode::ReadOnly);
    let mut bytes = [0; 8];
    File::open(device).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bench.detach(snapshot);
    u64::from_le_bytes(bytes)
}

fn group(disks: &[VdiUuid]) -> VdiSnapshot {
    let all = disks.iter().map(|disk| snapshot(*disk, "g"));
    all.reduce(|mut all, one| {
        all.snapshots.extend(one.snapshots);
        all
    })
    .unwrap()
}

#[test]
fn what_a_program_writes_in_order_is_in_order_in_a_group_and_a_part_is_never_kept()
-> lab::Result<()> {
    lab::in_guest(
        |lab| machine(lab, &[512]),
        || {
            let bench = Bench::with_sr(&[("device", "/dev/ubda")]);
            let disks = ["a", "b", "c"].map(|name| bench.create(name, 16 * MIB).uuid);
            let [a, b, idle] = disks;
            let devices = [a, b].map(|disk| bench.attach(disk, AttachMode::ReadWrite));
            write(&bench.attach(idle, AttachMode::ReadWrite), 0, 9, 4096);
            bench.detach(idle);
            let program = Program::start(devices);
            let mut before = 0;
            for round in 0..3 {
                program.moves_on();
                let request = group(&disks);
                let id = OperationId::random();
                if round % 2 == 0 {
                    let snapshots = request.snapshots.clone();
                    let keys = BTreeMap::new();
                    let ahead = VdiSnapshotPrepare { snapshots, keys, abandon: false };
                    bench.called(id, ahead);
                    assert_eq!(bench.scan().len(), 3, "what is prepared is not shown");
                    program.moves_on();
                }
                let least = program.done.load(Ordering::Acquire);
                let taken = bench.called(id, request.clone());
                assert_eq!(taken.changed, Changed::Created);
                let again = bench.called(id, request);
                assert_eq!(again, VdisDone { changed: Changed::Already, ..taken.clone() });
                let [first, second, third] = &taken.vdis[..] else { panic!("{taken:?}") };
                assert!(first.is_a_snapshot && first.snapshot_time == Some(1_700_000_000));
                let (n, m) = (number(&bench, first.uuid), number(&bench, second.uuid));
                assert!(n >= m && n - m <= 1, "{n} and {m} were never there at once");
                assert!(m >= least && m > before, "{m} is older than the request: {least}");
                before = m;
                let kept = bench.attach(third.uuid, AttachMode::ReadOnly);
                assert!(is_all(&kept, 0, 9, 4096));
                bench.detach(third.uuid);
                for vdi in &taken.vdis {
                    bench.done(VdiDestroy { vdi: vdi.uuid });
                }
            }
            // One after the other is not the same.
            let first = bench.snapshot(a, "first").uuid;
            program.moves_on();
            let second = bench.snapshot(b, "second").uuid;
            assert!(number(&bench, first) < number(&bench, second));

            // One of three cannot be taken: none is kept, and the others go on.
            let known = bench.scan();
            let absent = VdiUuid::random();
            let error = bench.fails(group(&[a, absent, b]));
            assert_eq!(error.message, format!("there is no VDI {absent}"));
            // Somebody has taken the third one's device out of the pool meanwhile: the kernel refuses.
            let (id, request) = (OperationId::random(), group(&[a, b, idle]));
            let snapshots = request.snapshots.clone();
            let keys = BTreeMap::new();
            bench.called(id, VdiSnapshotPrepare { snapshots, keys, abandon: false });
            let pool = sh(&["sh", "-c", "dmsetup ls | grep -o '^[^[:space:]]*pool-tpool'"]);
            let volume = format!("sm-{}/vdi-{idle}", bench.sr);
            let third = sh(&["lvs", "--noheadings", "-o", "thin_id", &volume]);
            sh(&["dmsetup", "message", &pool, "0", &format!("delete {third}")]);
            let refused = plugin_sdk::testing::run(async {
                bench.driver.call(request).operation_id(id).await
            });
            assert_eq!(refused.unwrap_err().message, "dmsetup exited with status 1");
            program.moves_on();
            assert_eq!(bench.scan().keys().collect::<Vec<_>>(), known.keys().collect::<Vec<_>>());
            let ahead = |abandon| VdiSnapshotPrepare {
                snapshots: group(&[a, b]).snapshots,
                keys: BTreeMap::new(),
                abandon,
            };
            let (id, mut request) = (OperationId::random(), ahead(false));
            bench.called(id, request.clone());
            request.abandon = true;
            bench.called(id, request);
            drop(program);
            bench.detach(a);
            bench.detach(b);
            for vdi in bench.scan().into_keys() {
                bench.done(VdiDestroy { vdi });
            }
            bench.done(SrDetach {});
            bench.done(SrAttach {});
            bench.done(SrDestroy {});
        },
    )
}

/// Killed while the disks are suspended: they go on without anybody's help, and nothing is kept.
#[test]
fn disks_go_on_when_whoever_has_suspended_them_is_killed() -> lab::Result<()> {
    let lab = Lab::new()?;
    let host = machine(&lab, &[256])?.boot()?;
    let smctl = Smctl::new(&host);
    smctl.ok(&["sr", "create", "--driver", "lvm", "--name", "l", "device=/dev/ubda"]);
    let mut devices = Vec::new();
    for name in ["a", "b"] {
        smctl.ok(&["vdi", "create", "--name", name, "--size", "16MiB"]);
        devices.push(smctl.attach(&[name]));
    }
    let id = OperationId::random().to_string();
    let words = ["--operation-id", &id, "vdi", "snapshot", "a", "b", "--name", "g"];
    let cut = smctl.call(&words).env("SM_STEP_KILL", "vdi_group.suspended").run()?;
    assert_eq!(cut.status, 128 + 9, "{}", cut.errors());
    for device in &devices {
        let of = format!("of={device}");
        let write = ["dd", "if=/dev/zero", &of, "bs=4096", "count=1", "conv=fsync"];
        host.command(write).deadline(Duration::from_secs(30)).check()?;
    }
    smctl.ok(&["sr", "scan", "l"]);
    assert_eq!(smctl.vdis().len(), 2);
    smctl.ok(&words);
    assert_eq!(smctl.vdis().len(), 4);
    let again = smctl.json(&["sr", "scan", "l"]);
    assert_eq!(again["vdis"].as_array().map(Vec::len), Some(4));
    for name in ["a", "b"] {
        smctl.ok(&["vdi", "detach", name]);
    }
    host.check(["vgck"])?;
    Ok(())
}
