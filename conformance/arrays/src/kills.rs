//! The real library in a process of its own, killed at each of its steps; and drivers that are cut off
//! between any two changes of a removal that nobody repeats.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use array_sim::core::{Asked, Effect, Fault};
use conformance::kills::{self, SimulatedArray};
use plugin_sdk::model::operation::Request;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::run;

use crate::host::IQN;
use crate::sr::{self, Sr};
use crate::vendor::{Simulated, Vendor, runtime};
use crate::wishes::{MIB, create, destroy, snapshots};

/// Steps of the kit that every driver comes by.
const STEPS: [&str; 9] = [
    "array.create_intended",
    "array.created",
    "array.resize_intended",
    "array.resized",
    "array.restored",
    "array.delete_intended",
    "array.volume_removed",
    "array.snapshot_removed",
    "array.deleted",
];

struct Place(Simulated);

impl Place {
    fn start<V: Vendor>(folder: &Path) -> Self {
        let place = folder.join("array");
        std::fs::create_dir(&place).unwrap();
        Self(runtime().block_on(V::start(&place)))
    }
}

impl SimulatedArray for Place {
    fn keys(&self) -> Vec<String> {
        let given = self.0.config.iter().map(|(key, value)| format!("{key}={value}"));
        given.chain([format!("initiator={IQN}")]).collect()
    }

    fn objects(&self) -> String {
        self.0.objects().to_string()
    }
}

/// See [`kills::at_each_step`]: there is one object of each or none, and in the end none.
///
/// # Panics
/// Also if nobody was killed at one of the kit's steps or of [`Facts::steps`](crate::Facts::steps).
pub fn at_each_step<V: Vendor>() {
    let killed = kills::at_each_step(V::LIBRARY, Place::start::<V>);
    for step in STEPS.iter().chain(V::FACTS.steps) {
        assert!(killed.contains(*step), "nobody was killed at {step}");
    }
}

/// After how many requests each of the changes was answered.
fn changes<V: Vendor>(asked: &[Asked]) -> Vec<u64> {
    let changes = asked.iter().zip(1..).filter(|(asked, _)| V::FACTS.changes(asked));
    changes.map(|(_, number)| number).collect()
}

/// A driver that is cut off from its array after so many requests and is never heard of again. Then
/// there is another one.
async fn cut_off<V: Vendor, R: Request>(sr: &mut Sr<V>, request: R, after: u64) -> Result<()> {
    let faults = sr.simulated.array.faults();
    faults.add(Fault { call: "*".to_owned(), after, times: 0, effect: Effect::DropRequest });
    // Done all the same, where what was left was not needed.
    let _ = sr.driver.call(request).budget(Duration::from_secs(2)).await;
    faults.clear();
    sr.driver = sr::open(&sr.host, &sr.simulated.config).await?;
    Ok(())
}

/// An SR with two disks.
async fn two_disks<V: Vendor>() -> Result<Sr<V>> {
    let mut sr = Sr::<V>::new().await?;
    V::steady(&sr.simulated);
    sr.until_done(SrCreate::default()).await?;
    sr.until_done(SrAttach {}).await?;
    sr.until_done(create(1, 30 * MIB)).await?;
    sr.until_done(create(2, 30 * MIB)).await?;
    sr.simulated.array.requests().clear();
    Ok(sr)
}

/// Tries all cuts at the same time, each on an array of its own: most of it is waiting for what may
/// still become visible.
fn each<T: Copy + Send>(cuts: &[T], attempt: impl Fn(T) -> Result<()> + Sync) {
    std::thread::scope(|scope| {
        for cut in cuts {
            let (cut, attempt) = (*cut, &attempt);
            scope.spawn(move || attempt(cut).unwrap());
        }
    });
}

/// A group that was never finished is removed when the SR is attached, also if that is cut off between
/// any two of its changes: nothing is left of it.
///
/// # Panics
/// If something is.
pub fn cleanup_of_a_group<V: Vendor>() {
    let pair = || snapshots(&[(1, 3), (2, 4)]);
    let begun = run(async {
        let sr = two_disks::<V>().await?;
        sr.driver.call(pair()).await?;
        Ok(changes::<V>(&sr.simulated.array.requests().all()))
    });
    // What it takes to clean up after each cut that leaves a part.
    let parts = Mutex::new(BTreeMap::new());
    each(&begun.unwrap(), |first| {
        run(async {
            let mut sr = two_disks::<V>().await?;
            cut_off(&mut sr, pair(), first).await?;
            sr.simulated.array.requests().clear();
            if !sr.driver.call(SrAttach {}).await?.undone.is_empty() {
                let removals = changes::<V>(&sr.simulated.array.requests().all());
                parts.lock().unwrap().insert(first, removals);
            }
            Ok(())
        })
    });
    // The last cut that leaves one: the one before the last text, or the one before the end.
    let (first, removals) =
        parts.into_inner().unwrap().pop_last().expect("a cut leaves a part of the group");
    each(&removals, |second| {
        run(async {
            let mut sr = two_disks::<V>().await?;
            let before = sr.simulated.objects();
            cut_off(&mut sr, pair(), first).await?;
            cut_off(&mut sr, SrAttach {}, second).await?;
            sr.driver.call(SrAttach {}).await?;
            sr.holds(&[1, 2], "after both").await?;
            assert_eq!(sr.simulated.objects(), before, "cut off after {first} and {second}");
            Ok(())
        })
    });
}

/// A disk that was kept for a snapshot of somebody else goes with the SR, also if that is cut off between
/// any two of its changes. `take` has somebody take a snapshot of the volume, `drop` remove it.
///
/// # Panics
/// If something is left on the array.
pub fn hidden_disks_go_with_the_sr<V: Vendor>(
    take: impl AsyncFn(&Simulated, &str) + Sync,
    drop: impl AsyncFn(&Simulated, &str) + Sync,
) {
    // What it takes to destroy the SR, cut off after that many requests, or not at all.
    let destroyed = async |after: Option<u64>| {
        let mut sr = Sr::<V>::new().await?;
        V::steady(&sr.simulated);
        let before = sr.simulated.objects();
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(SrAttach {}).await?;
        sr.until_done(create(1, 30 * MIB)).await?;
        let volume = sr.volume(1);
        take(&sr.simulated, &volume).await;
        sr.until_done(destroy(1)).await?;
        assert_eq!(sr.volume(1), volume, "it is there for the snapshot");
        drop(&sr.simulated, &volume).await;
        sr.until_done(SrDetach {}).await?;
        sr.simulated.array.requests().clear();
        if let Some(after) = after {
            cut_off(&mut sr, SrDestroy {}, after).await?;
        }
        sr.driver.call(SrDestroy {}).await?;
        assert_eq!(sr.simulated.objects(), before, "cut off after {after:?}");
        Ok(changes::<V>(&sr.simulated.array.requests().all()))
    };
    let mut cuts = run(destroyed(None)).unwrap();
    cuts.pop(); // After the last change it is done.
    assert!(!cuts.is_empty(), "the SR goes in one change");
    each(&cuts, |after| run(destroyed(Some(after))).map(|_| ()));
}
