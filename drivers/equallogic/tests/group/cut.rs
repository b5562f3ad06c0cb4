//! Whoever works on a wish dies, and does not ask again: what is left, and who finds it.

use std::path::Path;
use std::process::Command;

use array_matrix::host::IQN;
use array_matrix::{Simulated, Vendor as _, runtime};
use array_sim::core::{Effect, Fault, Snapshot, Trouble, Volume};
use conformance::built::artefact;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::TestHost;

use crate::support::{Driver, Fixture, MIB, Ps, Sr, create, name, run, snapshot, vdi};

/// When somebody takes a snapshot by hand, under a name like those that the group chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hand {
    Never,
    Before,
    After,
}

/// What is typed, in a process each.
struct Host<'a>(&'a Path);

impl Host<'_> {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(artefact("smctl"));
        command.env("SMCTL_STATE_DIR", self.0.join("state"));
        command.env("SM_RUN_DIR", self.0.join("run"));
        command.args(["--isolation", "child"]).args(words);
        command
    }

    fn types(&self, words: &[&str]) {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    }

    /// As [`Self::types`], killed at a step.
    fn dies(&self, words: &[&str], step: &str) {
        let output = self.command(words).env("SM_STEP_KILL", step).output().unwrap();
        assert!(!output.status.success(), "{words:?} does not come by {step}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("SIGKILL"), "{words:?} at {step}: {said}");
    }
}

/// The one volume that is a disk of ours.
fn disk(simulated: &Simulated) -> (String, std::sync::Arc<Volume>) {
    let all = simulated.array.current().all::<Volume>();
    let ours = |name: &str| Ps::FACTS.names.parse(name).is_some() && name.starts_with("smv-");
    all.into_iter().find(|(name, _)| ours(name)).unwrap()
}

/// The names of the snapshots of a volume.
fn snapshots(simulated: &Simulated, volume: &str) -> Vec<String> {
    let all = simulated.array.current().all::<Snapshot>();
    let own = all.into_iter().filter(|(_, snapshot)| snapshot.volume == volume);
    own.map(|(key, _)| key.rsplit('/').next().unwrap().to_owned()).collect()
}

fn take(simulated: &Simulated, volume: &str, name: &str) {
    let taken = simulated.array.change(|change| {
        change.create_snapshot(volume, &format!("{volume}/{name}"), serde_json::Map::new())
    });
    taken.map_err(|trouble: Trouble| format!("{trouble:?}")).unwrap();
}

fn remove(simulated: &Simulated, volume: &str, name: &str) {
    let key = format!("{volume}/{name}");
    simulated.array.change(|change| change.delete_snapshot(&key)).map_err(drop::<Trouble>).unwrap();
}

/// A name like the group's own, of a time that no backup has.
fn by_hand(volume: &str) -> String {
    format!("{}-2019-06-10-12:00:00.1.1", &volume[..38])
}

/// A revert is killed. Then the SR is attached, or not, and all is destroyed.
fn story(step: &str, attaches: bool, hand: Hand) {
    let what = format!("killed at {step}, attached after it: {attaches}, by hand: {hand:?}");
    println!("{what}");
    let folder = tempfile::tempdir().unwrap();
    // The driver's process is another user's, where the test is root's.
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), all).unwrap();
    let place = folder.path().join("array");
    std::fs::create_dir(&place).unwrap();
    let simulated = runtime().block_on(Ps::start(&place));
    let before = simulated.objects();
    let host = Host(folder.path());
    let driver = artefact(Ps::LIBRARY).display().to_string();
    let keys = simulated.config.iter().map(|(key, value)| format!("{key}={value}"));
    let keys: Vec<String> = keys.chain([format!("initiator={IQN}")]).collect();
    let mut words = vec!["sr", "create", "--driver", &driver, "--name", "vms"];
    words.extend(keys.iter().map(String::as_str));
    host.types(&words);
    host.types(&["vdi", "create", "--name", "disk", "--size", "30MiB"]);
    host.types(&["vdi", "snapshot", "disk", "--name", "snap"]);
    let volume = disk(&simulated).0;
    let foreign = by_hand(&volume);
    if hand == Hand::Before {
        take(&simulated, &volume, &foreign);
    }
    host.dies(&["vdi", "revert", "disk", "snap"], step);
    let mut kept = Vec::new();
    if hand == Hand::After {
        // Which of the two is the backup cannot be told any more.
        kept = snapshots(&simulated, &volume);
        kept.retain(|name| !name.starts_with("sms-"));
        take(&simulated, &volume, &foreign);
    }
    if hand != Hand::Never {
        kept.push(foreign);
        kept.sort();
    }
    if attaches {
        host.types(&["sr", "detach", "vms"]);
        host.types(&["sr", "attach", "vms"]);
        assert!(disk(&simulated).1.online, "{what}");
        let mut left = snapshots(&simulated, &volume);
        left.retain(|name| !name.starts_with("sms-"));
        assert_eq!(left, kept, "{what}");
    }
    host.types(&["vdi", "destroy", "snap"]);
    host.types(&["vdi", "destroy", "disk"]);
    if hand == Hand::Never {
        let gone = |name: &str| simulated.array.current().get::<Volume>(name).is_none();
        assert!(gone(&volume), "{what}: {:#}", simulated.objects());
    } else {
        // Kept for what is somebody else's.
        assert_eq!(snapshots(&simulated, &volume), kept, "{what}");
        for name in &kept {
            remove(&simulated, &volume, name);
        }
    }
    host.types(&["sr", "destroy", "vms"]);
    assert_eq!(simulated.objects(), before, "{what}");
}

/// The group's own backup goes, the disk comes back online, and what somebody took by hand stays.
#[test]
fn a_revert_that_is_killed_and_never_asked_for_again_leaves_nothing() {
    let steps = [
        "equallogic.restore_offline",
        "equallogic.restored",
        "equallogic.restore_online",
        "array.restored",
    ];
    std::thread::scope(|scope| {
        for half in [&steps[..2], &steps[2..]] {
            scope.spawn(move || {
                for step in half {
                    for hand in [Hand::Never, Hand::Before, Hand::After] {
                        story(step, true, hand);
                    }
                    story(step, false, Hand::Never);
                }
            });
        }
    });
}

/// A revert whose answers are lost over and over leaves as many backups; all of them go.
#[test]
fn a_revert_that_is_sent_again_leaves_no_backup_of_either() {
    run(async {
        let mut sr = Fixture::new().sr().await?;
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(SrAttach {}).await?;
        sr.until_done(create(1, 30 * MIB)).await?;
        sr.until_done(snapshot(1, 2)).await?;
        let effect = Effect::DropReply;
        let lost = Fault { call: "snapshot.restore".to_owned(), after: 0, times: 3, effect };
        sr.simulated.array.faults().add(lost);
        let revert = VdiRevert { vdi: vdi(1), snapshot: vdi(2) };
        sr.driver.call(revert).await?;
        assert!(sr.simulated.array.faults().left().is_empty(), "they were lost");
        assert_eq!(snapshots(&sr.simulated, &name(1)).len(), 1);
        assert!(disk(&sr.simulated).1.online);
        Ok(())
    })
    .unwrap();
}

/// A disk whose snapshot is taken and has no name yet, when its host is heard of no more.
async fn half_taken() -> Result<Sr> {
    let mut sr = Fixture::new().sr().await?;
    sr.until_done(SrCreate::default()).await?;
    sr.until_done(SrAttach {}).await?;
    sr.until_done(create(1, 30 * MIB)).await?;
    take(&sr.simulated, &name(1), &by_hand(&name(1)));
    sr.write(1, 7);
    let effect = Effect::Refuse { status: 500, retry_after: None, body: Some("No.".into()) };
    let refused = Fault { call: "snapshot.rename".to_owned(), after: 0, times: 0, effect };
    sr.simulated.array.faults().add(refused);
    sr.driver.call(snapshot(1, 2)).operation_id(wish()).await.unwrap_err();
    sr.simulated.array.faults().clear();
    assert_eq!(snapshots(&sr.simulated, &name(1)).len(), 2);
    Ok(sr)
}

fn wish() -> OperationId {
    OperationId::from_halves([81, 1])
}

/// Another host, which has nothing of the first one's state.
async fn another(sr: &Sr) -> Result<(TestHost, plugin_sdk::testing::Opened<Driver>)> {
    let host = TestHost::new();
    let driver = array_matrix::sr::open::<Ps, false>(&host, &sr.simulated.config).await?;
    driver.call(SrAttach {}).await?;
    Ok((host, driver))
}

/// The same wish on another host names the snapshot that the first one took, with what was in it then.
#[test]
fn a_snapshot_that_another_host_had_taken_is_finished() {
    run(async {
        let mut sr = half_taken().await?;
        sr.write(1, 8);
        let (host, driver) = another(&sr).await?;
        driver.call(snapshot(1, 2)).operation_id(wish()).await?;
        let ours = Ps::FACTS.names;
        let there = snapshots(&sr.simulated, &name(1));
        let named = there.iter().find(|name| ours.parse(name).is_some()).unwrap();
        assert_eq!(there.len(), 2, "it and what somebody took by hand: {there:?}");
        let key = format!("{}/{named}", name(1));
        let read = sr.simulated.array.read(&key, MIB, 4).unwrap();
        assert_eq!(read, [7; 4]);
        // The first one comes back, and finds it done.
        let again = array_matrix::sr::open::<Ps, false>(&sr.host, &sr.simulated.config).await?;
        again.call(SrAttach {}).await?;
        assert_eq!(snapshots(&sr.simulated, &name(1)), there);
        sr.driver = again;
        sr.holds(&[1, 2], "on both").await?;
        drop((host, driver));
        Ok(())
    })
    .unwrap();
}

/// Nobody asks for it again: it goes with its disk, on whichever host, or at the next attach on its own.
#[test]
fn a_snapshot_that_nobody_names_goes_and_one_by_hand_stays() {
    for own in [true, false] {
        run(async {
            let mut sr = half_taken().await?;
            let hand = [by_hand(&name(1))];
            if own {
                let config = sr.simulated.config.clone();
                sr.driver = array_matrix::sr::open::<Ps, false>(&sr.host, &config).await?;
                sr.driver.call(SrAttach {}).await?;
                assert_eq!(snapshots(&sr.simulated, &name(1)), hand);
            } else {
                let (_, driver) = another(&sr).await?;
                sr.driver = driver;
            }
            sr.driver.call(VdiDestroy { vdi: vdi(1) }).await?;
            assert_eq!(snapshots(&sr.simulated, &name(1)), hand, "the host's own: {own}");
            Ok(())
        })
        .unwrap();
    }
}

/// The snapshot was never taken, and somebody takes one: that is not ours because it is new.
#[test]
fn what_is_new_is_not_ours_for_that() {
    run(async {
        let mut sr = Fixture::new().sr().await?;
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(SrAttach {}).await?;
        sr.until_done(create(1, 30 * MIB)).await?;
        let effect = Effect::DropRequest;
        let lost = Fault { call: "snapshot.create".to_owned(), after: 0, times: 0, effect };
        sr.simulated.array.faults().add(lost);
        sr.driver.call(snapshot(1, 2)).operation_id(wish()).await.unwrap_err();
        assert!(!sr.simulated.array.faults().left().is_empty(), "it was asked for");
        sr.simulated.array.faults().clear();
        let hand = by_hand(&name(1));
        take(&sr.simulated, &name(1), &hand);
        let config = sr.simulated.config.clone();
        sr.driver = array_matrix::sr::open::<Ps, false>(&sr.host, &config).await?;
        sr.driver.call(SrAttach {}).await?;
        assert_eq!(snapshots(&sr.simulated, &name(1)), [hand]);
        Ok(())
    })
    .unwrap();
}
