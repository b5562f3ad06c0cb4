//! Several disks are caught at one instant, and what that costs while guests may be stopped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use plugin_sdk::prelude::*;
use plugin_sdk::testing::run;

use crate::sr::Sr;
use crate::vendor::Vendor;
use crate::wishes::{MIB, clone, create, destroy, snapshot, snapshots, vdi};

/// Where the number is on a disk, and how many bytes are written for it.
const PLACE: (u64, usize) = (1 << 20, 4096);

/// A program with two disks: it moves from one number to the next on the first, then on the second. So
/// at each instant the first has the number of the second, or the next.
struct Program {
    end: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Program {
    fn start<V: Vendor>(sr: &Sr<V>) -> Self {
        let (end, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (array, disks) = (sr.simulated.array.clone(), [sr.volume(1), sr.volume(2)]);
        let (told, count) = (end.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            for n in 1_u64.. {
                if told.load(Ordering::Relaxed) {
                    return;
                }
                let mut block = vec![0; PLACE.1];
                block[..8].copy_from_slice(&n.to_le_bytes());
                for disk in &disks {
                    array.write(disk, PLACE.0, &block).unwrap();
                }
                count.store(n, Ordering::Release);
            }
        });
        Self { end, done, thread: Some(thread) }
    }

    /// Waits until it has moved on twice.
    fn moves_on(&self) {
        let from = self.done.load(Ordering::Acquire);
        let end = Instant::now() + Duration::from_secs(20);
        while self.done.load(Ordering::Acquire) < from + 2 {
            assert!(Instant::now() < end, "the program writes nothing any more");
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

/// The number in a snapshot, by a clone of it.
async fn number<V: Vendor>(sr: &mut Sr<V>, snapshot: u32) -> Result<u64> {
    sr.until_done(clone(snapshot, 90)).await?;
    let bytes = sr.simulated.array.read(&sr.volume(90), PLACE.0, 8).unwrap();
    sr.until_done(destroy(90)).await?;
    Ok(u64::from_le_bytes(bytes.try_into().unwrap()))
}

/// What a program writes in order is in order in a group, while it goes on; snapshots one after the other
/// are shown to break that, so the test can fail.
///
/// # Panics
/// If it is not so.
pub fn of_one_instant<V: Vendor>() {
    run(async {
        let mut sr = Sr::<V>::new().await?;
        sr.until_done(SrCreate { name: "vms".into(), description: String::new() }).await?;
        sr.until_done(SrAttach {}).await?;
        for n in [1, 2, 3] {
            sr.until_done(create(n, 30 * MIB)).await?;
        }
        let program = Program::start(&sr);
        program.moves_on();
        let mut before = 0;
        for _ in 0..6 {
            program.moves_on();
            sr.until_done(snapshots(&[(1, 6), (2, 7)])).await?;
            sr.holds(&[1, 2, 3, 6, 7], "after a group").await?;
            let (a, b) = (number(&mut sr, 6).await?, number(&mut sr, 7).await?);
            assert!(a >= b && a - b <= 1, "{a} and {b} were never there at once");
            assert!(b > before, "{b} after {before}");
            before = b;
            sr.until_done(destroy(6)).await?;
            sr.until_done(destroy(7)).await?;
        }
        sr.until_done(snapshot(1, 6)).await?;
        program.moves_on();
        sr.until_done(snapshot(2, 7)).await?;
        let (a, b) = (number(&mut sr, 6).await?, number(&mut sr, 7).await?);
        assert!(b > a, "one after the other: {a} and {b}");
        drop(program);

        // One that is not there, or cannot be, and nothing is kept of the others.
        let error = sr.driver.call(snapshots(&[(1, 8), (9, 10)])).await.unwrap_err();
        assert_eq!(error.message, format!("there is no VDI {}", vdi(9)));
        let error = sr.driver.call(snapshots(&[(1, 8), (6, 10)])).await.unwrap_err();
        assert_eq!(error.message, format!("VDI {} is a snapshot", vdi(6)));
        sr.holds(&[1, 2, 3, 6, 7], "after refusals").await?;
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}

/// What can be done ahead is: the first request of a snapshot that was prepared takes it.
///
/// # Panics
/// If something is asked before it.
pub fn one_request_until_the_instant<V: Vendor>() {
    run(async {
        let mut sr = Sr::<V>::new().await?;
        sr.until_done(SrCreate { name: "vms".into(), description: String::new() }).await?;
        sr.until_done(SrAttach {}).await?;
        let mut pairs = Vec::new();
        for n in 1..=8 {
            sr.until_done(create(n, 30 * MIB)).await?;
            sr.write(n, 11);
            pairs.push((n, n + 20));
        }
        let foreign = sr.simulated.objects();
        let request = snapshots(&pairs);
        let ahead = VdiSnapshotPrepare {
            snapshots: request.snapshots.clone(),
            keys: BTreeMap::new(),
            abandon: false,
        };
        let id = OperationId::from_halves([78, 1]);
        sr.driver.call(ahead.clone()).operation_id(id).await?;
        sr.holds(&[1, 2, 3, 4, 5, 6, 7, 8], "prepared").await?;
        let abandoned = VdiSnapshotPrepare { abandon: true, ..ahead.clone() };
        sr.driver.call(abandoned).operation_id(id).await?;
        assert_eq!(sr.simulated.objects(), foreign, "nothing is left of what was abandoned");

        sr.driver.call(ahead).operation_id(id).await?;
        sr.simulated.array.requests().clear();
        let done = sr.driver.call(request).operation_id(id).await?;
        let asked = sr.simulated.array.requests().all();
        let first = asked.first().map(|asked| asked.call.clone()).unwrap_or_default();
        assert!(V::FACTS.changes(&asked[0]), "{first} is asked before the snapshots are taken");
        assert_eq!((done.vdis.len(), done.changed), (8, Changed::Created));
        let texts: Vec<&str> = asked.iter().map(|asked| asked.call.as_str()).collect();
        assert!(asked.len() <= 1 + 8 * V::FACTS.of_a_part + 4, "{texts:?}");
        // Again: the same answer.
        let again = sr.driver.call(snapshots(&pairs)).operation_id(id).await?;
        assert_eq!((again.changed, again.vdis.len()), (Changed::Already, 8));
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}
