//! The real library in a process of its own, killed at each of its steps; and drivers that are cut off
//! between any two changes of a removal that nobody repeats.

use std::path::Path;
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

/// A group that was never finished is removed when the SR is attached, also if that is cut off between
/// any two of its changes: nothing is left of it.
///
/// # Panics
/// If something is.
pub fn cleanup_of_a_group<V: Vendor>() {
    let pair = || snapshots(&[(1, 3), (2, 4)]);
    run(async {
        let sr = two_disks::<V>().await?;
        sr.driver.call(pair()).await?;
        let mut begun = changes::<V>(&sr.simulated.array.requests().all());
        drop(sr);
        // The last cut that leaves a part: the one before the last text, or the one before the end.
        let (first, removals) = loop {
            let first = begun.pop().expect("a cut leaves a part of the group");
            let mut sr = two_disks::<V>().await?;
            cut_off(&mut sr, pair(), first).await?;
            sr.simulated.array.requests().clear();
            if !sr.driver.call(SrAttach {}).await?.undone.is_empty() {
                break (first, changes::<V>(&sr.simulated.array.requests().all()));
            }
        };
        for second in removals {
            let mut sr = two_disks::<V>().await?;
            let before = sr.simulated.objects();
            cut_off(&mut sr, pair(), first).await?;
            cut_off(&mut sr, SrAttach {}, second).await?;
            sr.driver.call(SrAttach {}).await?;
            sr.holds(&[1, 2], "after both").await?;
            assert_eq!(sr.simulated.objects(), before, "cut off after {first} and {second}");
        }
        Ok(())
    })
    .unwrap();
}

/// A disk that was kept for a snapshot of somebody else goes with the SR, also if that is cut off between
/// any two of its changes. `take` has somebody take a snapshot of the volume, `drop` remove it.
///
/// # Panics
/// If something is left on the array.
pub fn hidden_disks_go_with_the_sr<V: Vendor>(
    take: impl AsyncFn(&Simulated, &str),
    drop: impl AsyncFn(&Simulated, &str),
) {
    run(async {
        let mut last = Vec::new();
        for turn in 0.. {
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
            // The first time nothing goes wrong, to learn what it takes. After the last change it is done.
            if turn > 0 {
                let Some(after) = last.pop() else { return Ok(()) };
                cut_off(&mut sr, SrDestroy {}, after).await?;
            }
            sr.driver.call(SrDestroy {}).await?;
            if turn == 0 {
                last = changes::<V>(&sr.simulated.array.requests().all());
                last.pop();
                assert!(!last.is_empty(), "the SR goes in one change");
            }
            assert_eq!(sr.simulated.objects(), before, "turn {turn}");
        }
        Ok(())
    })
    .unwrap();
}
