//! Maintenance beside all other work: whatever meets it, every disk reads as it was written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use camino::Utf8PathBuf;
use datapath::nbd::client::{Client, Options};
use sm_core::model::sr::{Budget, SrMaintain};
use sm_core::model::{Access, AttachMode, Bytes, Error, Kind, VdiUuid};
use sm_core::{NewSnapshot, NewVdi, Op, Sr};

use crate::{PLACEMENTS, Site};

/// What is written at a time, and how many of these a disk has.
const PIECE: usize = 64 << 10;
const PIECES: usize = 96;

/// Steps of a run.
const STEPS: usize = 120;

/// What each piece of a disk was last written with; 0 for nothing.
type Content = Vec<u8>;

struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// A client of the disk that an attach has named.
fn open(access: &[Access]) -> Client {
    let [Access::Nbd { uri }] = access else { panic!("{access:?}") };
    Client::connect(&uri.parse().unwrap(), &Options::default()).unwrap()
}

async fn attached<T>(
    sr: &Sr,
    vdi: VdiUuid,
    mode: AttachMode,
    work: impl FnOnce(&Client) -> T,
) -> T {
    let access = sr.vdi_attach(&Op::new(), vdi, "vm", mode).await.unwrap();
    sr.vdi_activate(&Op::new(), vdi, "vm").await.unwrap();
    // Later than the attach: the files have to be there still.
    tokio::task::yield_now().await;
    let disk = open(&access);
    let answer = work(&disk);
    disk.close();
    sr.vdi_deactivate(&Op::new(), vdi, "vm").await.unwrap();
    sr.vdi_detach(&Op::new(), vdi, "vm").await.unwrap();
    answer
}

async fn must_hold(sr: &Sr, vdi: VdiUuid, content: &Content, context: &str) {
    attached(sr, vdi, AttachMode::ReadOnly, |disk| {
        let mut piece = vec![0; PIECE];
        for (n, seed) in content.iter().enumerate() {
            disk.read((n * PIECE) as u64, &mut piece).unwrap();
            let wrong = piece.iter().position(|byte| byte != seed);
            assert_eq!(wrong, None, "{context}: {vdi}, piece {n} should be all {seed}");
        }
    })
    .await;
}

/// Kinds of errors that an operation may meet because something else is at work.
fn may_be_refused(error: &Error) -> bool {
    matches!(error.kind, Kind::Busy { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_meets_maintenance_every_disk_reads_as_written() {
    for placement in PLACEMENTS {
        let seed = std::env::var("SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1);
        println!("SEED={seed} ({placement:?})");
        // In memory: what is tested is who meets whom, not the disk.
        let temporary = tempfile::tempdir_in("/dev/shm").unwrap();
        let folder = Utf8PathBuf::from_path_buf(temporary.path().to_owned()).unwrap();
        let site = Site::in_folder_with(folder, placement, || {}).await;
        let ended = Arc::new(AtomicBool::new(false));
        let upkeep = tokio::spawn({
            let (manager, sr) = site.again().await;
            let ended = Arc::clone(&ended);
            async move {
                let mut merges = 0;
                while !ended.load(Ordering::SeqCst) {
                    // Slow enough that others come in between.
                    let budget =
                        Budget { bytes_per_second: Some(Bytes::mib(24)), ..Budget::default() };
                    let done = sr.maintain(&Op::new(), SrMaintain { budget, dry_run: false }).await;
                    match done {
                        Ok(done) => merges += done.merged.len(),
                        Err(error) => assert!(may_be_refused(&error), "{error}"),
                    }
                    // With nothing to do it would only keep the lock from the others.
                    tokio::time::sleep(Duration::from_millis(30)).await;
                }
                manager.close().await;
                merges
            }
        });
        let disks = run(&site, &mut Chance(seed)).await;
        ended.store(true, Ordering::SeqCst);
        let merges = upkeep.await.unwrap();
        println!("{merges} merges, {} disks at the end", disks.len());
        assert!(merges > 0, "the maintenance never found anything to do");

        let done = site.sr.maintain(&Op::new(), SrMaintain::default()).await.unwrap();
        assert!(done.finished && done.skipped.is_empty(), "{done:?}");
        for (vdi, content) in &disks {
            must_hold(&site.sr, *vdi, content, "at the end").await;
            let checked = site.sr.vdi_check(&Op::new(), *vdi).await.unwrap();
            assert_eq!(checked.findings, [], "{vdi}");
        }
        let listed = site.sr.vdis(&Op::new()).await.unwrap();
        assert_eq!(listed.len(), disks.len());
    }
}

async fn run(site: &Site, chance: &mut Chance) -> BTreeMap<VdiUuid, Content> {
    let sr = &site.sr;
    let mut disks: BTreeMap<VdiUuid, Content> = BTreeMap::new();
    // The ones that may be written.
    let mut writable = Vec::new();
    for name in ["a", "b"] {
        let size = Bytes((PIECE * PIECES) as u64);
        let new = NewVdi { name: name.into(), virtual_size: size, ..NewVdi::default() };
        let disk = sr.vdi_create(&Op::new(), new).await.unwrap().vdi.uuid;
        disks.insert(disk, vec![0; PIECES]);
        writable.push(disk);
    }
    for step in 0..STEPS {
        let disk = writable[chance.below(writable.len())];
        let others: Vec<VdiUuid> = disks.keys().copied().filter(|vdi| *vdi != disk).collect();
        let context = format!("step {step}");
        match chance.below(12) {
            0..=3 => {
                let seed = chance.below(255) as u8 + 1;
                let first = chance.below(PIECES);
                let count = (1 + chance.below(24)).min(PIECES - first);
                attached(sr, disk, AttachMode::ReadWrite, |open| {
                    open.write((first * PIECE) as u64, &vec![seed; count * PIECE], false).unwrap();
                    open.flush().unwrap();
                })
                .await;
                disks.get_mut(&disk).unwrap()[first..first + count].fill(seed);
            }
            4..=6 => {
                let spec =
                    [NewSnapshot { vdi: disk, name: "s".into(), description: String::new() }];
                let made = sr.vdi_snapshot(&Op::new(), &spec).await.unwrap().vdis[0].uuid;
                disks.insert(made, disks[&disk].clone());
            }
            7 => {
                let from = others.get(chance.below(others.len().max(1))).copied().unwrap_or(disk);
                let made = sr.vdi_clone(&Op::new(), from, "c", "").await.unwrap().vdi.uuid;
                disks.insert(made, disks[&from].clone());
                writable.push(made);
            }
            8 => {
                let mine = sr.vdis(&Op::new()).await.unwrap();
                let of = mine.iter().find(|vdi| vdi.snapshot_of == Some(disk));
                if let Some(of) = of.map(|vdi| vdi.uuid) {
                    sr.vdi_revert(&Op::new(), disk, of).await.unwrap();
                    let content = disks[&of].clone();
                    disks.insert(disk, content);
                }
            }
            _ if others.len() > 1 => {
                let gone = others[chance.below(others.len())];
                if !writable.contains(&gone) || writable.len() > 2 {
                    sr.vdi_destroy(&Op::new(), gone).await.unwrap();
                    disks.remove(&gone);
                    writable.retain(|vdi| *vdi != gone);
                }
            }
            _ => {}
        }
        let some: Vec<VdiUuid> = disks.keys().copied().collect();
        let looked = some[chance.below(some.len())];
        must_hold(sr, looked, &disks[&looked], &context).await;
    }
    disks
}
