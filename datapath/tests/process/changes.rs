//! Images that change in a pause that has closed them, and leaves that are merged: with clients at
//! it, and with those dying who had begun.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use datapath::control::Client;
use datapath::control::protocol::{FailureKind, MergePace, MergePhase, State};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use vhd::tree::LiveMerge;

use super::place::{LONG, SIZE, Site, until};

const HOLDER: &str = "a data path";

impl Site {
    fn other(&self) -> Client {
        datapath::control::find(&self.place).unwrap().unwrap()
    }

    /// Whether nobody has the leaf open for writing.
    fn leaf_is_free(&self) -> bool {
        let leaf = std::fs::File::open(self.leaf()).unwrap();
        flock(&leaf, FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    fn grow(&self, size: u64) {
        let guard = self.tree.lock(Instant::now() + LONG).unwrap();
        self.tree.resize(&guard, uuid::Uuid::new_v4(), self.disk, size, &Value::Null).unwrap();
    }

    /// The disk with a base copy of its own, and both with data.
    fn with_base(&self) {
        let mut client = self.serve();
        self.connect().write(0, &vec![1; 65536], false).unwrap();
        client.pause(Some(self.lock()), LONG).unwrap();
        let snapshot = self.snapshot();
        client.refresh(self.plan(), LONG).unwrap();
        client.resume(LONG).unwrap();
        let guard = self.tree.lock(Instant::now() + LONG).unwrap();
        self.tree.delete(&guard, snapshot).unwrap();
        self.tree.claim(&guard, self.disk, HOLDER).unwrap();
        drop(guard);
        self.connect().write(32768, &vec![2; 65536], false).unwrap();
    }

    fn begin(&self) -> LiveMerge {
        let guard = self.tree.lock(Instant::now() + LONG).unwrap();
        self.tree.begin_live_merge(&guard, self.disk, &[HOLDER]).unwrap()
    }

    fn finish(&self, live: &LiveMerge) {
        let guard = self.tree.lock(Instant::now() + LONG).unwrap();
        let op = uuid::Uuid::new_v4();
        self.tree.finish_live_merge(&guard, op, live, &[HOLDER]).unwrap();
    }
}

/// So slow that it does not come to its end.
fn slow() -> MergePace {
    MergePace { rate: Some(4096), cpu_percent: Some(1) }
}

fn until_ready(client: &mut Client) {
    until("the merge to be ready", || {
        let state = client.merging(LONG).unwrap();
        assert_ne!(state.phase, MergePhase::Failed, "{state:?}");
        state.phase == MergePhase::Ready
    });
}

#[test]
fn a_pause_that_closes_lets_go_of_the_leaf_and_a_refresh_takes_it_again() {
    let site = Site::new();
    let mut client = site.serve();
    let guest = site.connect();
    guest.write(0, &[1; 512], false).unwrap();
    assert!(!site.leaf_is_free());
    assert!(client.pause_closed(Some(site.lock()), LONG).unwrap().closed);
    assert!(site.leaf_is_free() && !site.place.has_pending(), "what was answered is in the leaf");
    assert_eq!(site.byte(site.disk, 0), 1);
    let (status, plan) = (site.status(), site.plan());
    assert_eq!((status.state, status.size, status.plan), (State::Paused, SIZE, Some(plan)));
    // Once more is the same, and so is a flush.
    assert!(client.pause(None, LONG).unwrap().closed);
    client.flush(LONG).unwrap();

    let written = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            guest.write(0, &[2; 512], false).unwrap();
            written.store(true, Ordering::SeqCst);
        });
        site.grow(SIZE * 2);
        assert!(!written.load(Ordering::SeqCst));
        client.refresh(site.plan(), LONG).unwrap();
        assert!(!site.leaf_is_free());
        client.resume(LONG).unwrap();
    });
    // Whoever was there before knows the size of before.
    assert_eq!(
        (guest.size(), site.connect().size(), site.status().size),
        (SIZE, SIZE * 2, SIZE * 2)
    );
    site.connect().write(SIZE * 2 - 512, &[3; 512], true).unwrap();
    guest.write(512, &[4; 512], false).unwrap();
    client.end(LONG).unwrap();
    site.check();
    let bytes = [0, 512, SIZE * 2 - 1].map(|at| site.byte(site.disk, at));
    assert_eq!(bytes, [2, 4, 3]);
}

#[test]
fn a_closed_disk_goes_on_by_a_resume_alone_or_when_its_owner_is_gone() {
    let site = Site::new();
    let mut client = site.serve();
    let guest = site.connect();
    client.pause_closed(Some(site.lock()), LONG).unwrap();
    client.resume(LONG).unwrap();
    guest.write(0, &[1; 512], false).unwrap();
    assert!(!site.leaf_is_free());

    client.pause_closed(Some(site.lock()), LONG).unwrap();
    site.grow(SIZE * 2);
    drop(client);
    until("it to go on", || site.state() == State::Active);
    guest.write(512, &[2; 512], false).unwrap();
    assert_eq!(site.connect().size(), SIZE * 2);
    site.other().end(LONG).unwrap();
    site.check();
    assert_eq!((site.byte(site.disk, 0), site.byte(site.disk, 512)), (1, 2));
}

#[test]
fn a_closed_disk_that_cannot_be_opened_waits_and_can_be_ended() {
    let site = Site::new();
    let mut client = site.serve();
    let guest = site.connect();
    guest.write(0, &[1; 512], false).unwrap();
    client.pause_closed(Some(site.lock()), LONG).unwrap();
    let (leaf, aside) = (site.leaf(), site.folder.path().join("aside.vhd"));
    let plan = site.plan();
    std::fs::rename(&leaf, &aside).unwrap();
    assert!(client.refresh(plan.clone(), LONG).is_err());
    assert!(client.resume(LONG).is_err());
    assert_eq!(site.state(), State::Paused);
    drop(client);
    until("it to wait", || site.state() == State::Waiting);
    // A file of that name that has the same numbers, or not, is another disk.
    let stranger = vhd::image::NewImage { uuid: uuid::Uuid::new_v4(), size: SIZE, parent: None };
    vhd::image::create(&leaf, &stranger).unwrap();
    site.looks_again();
    assert_eq!(site.state(), State::Waiting);
    std::fs::remove_file(&leaf).unwrap();

    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| guest.write(0, &[9; 512], false));
        site.answers_others();
        assert!(!waiting.is_finished());
        site.other().end(LONG).unwrap();
        assert!(waiting.join().unwrap().is_err(), "it was answered and is nowhere");
    });
    std::fs::rename(&aside, &leaf).unwrap();
    assert_eq!(site.byte(site.disk, 0), 1);
}

/// A base copy is taken out of the chain while the disk is closed, and whoever did it dies.
#[test]
fn a_closed_disk_whose_owner_dies_finds_its_chain_as_it_is_now() {
    let site = Site::new();
    site.with_base();
    let mut client = site.other();
    client.pause(Some(site.lock()), LONG).unwrap();
    let snapshot = site.snapshot();
    client.refresh(site.plan(), LONG).unwrap();
    client.resume(LONG).unwrap();
    site.connect().write(0, &[3; 512], true).unwrap();
    let before = site.plan();
    assert_eq!(before.backing.len(), 2);
    client.pause_closed(Some(site.lock()), LONG).unwrap();
    let guard = site.tree.lock(Instant::now() + LONG).unwrap();
    site.tree.delete(&guard, snapshot).unwrap();
    site.tree.unclaim(&guard, site.disk, HOLDER).unwrap();
    drop(guard);
    // The upper base goes into the lower one; the leaf is relinked, and would be merged next.
    let budget = vhd::tree::Budget::default();
    let merged = std::sync::atomic::AtomicUsize::new(0);
    let stop = |pace: vhd::tree::Pace| {
        merged.store(pace.merges_done, Ordering::SeqCst);
        if pace.merges_done > 0 {
            std::ops::ControlFlow::Break(())
        } else {
            std::ops::ControlFlow::Continue(())
        }
    };
    site.tree.maintain(Instant::now() + LONG, &budget, &stop).unwrap();
    assert_eq!(merged.load(Ordering::SeqCst), 1);
    assert_eq!(site.plan().backing.len(), 1);
    drop(client);
    until("it to go on", || site.state() == State::Active);
    assert_eq!(site.status().plan, Some(site.plan()));
    let guest = site.connect();
    let mut bytes = [0; 1];
    for (at, wanted) in [(0, 3), (600, 1), (33000, 2)] {
        guest.read(at, &mut bytes).unwrap();
        assert_eq!(bytes[0], wanted, "{at}");
    }
    site.other().end(LONG).unwrap();
    site.check();
}

#[test]
fn a_leaf_is_merged_under_load_and_its_parent_takes_its_place() {
    let site = Site::new();
    site.with_base();
    let done = AtomicBool::new(false);
    let rounds = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let guest = site.connect();
            while !done.load(Ordering::SeqCst) {
                let round = rounds.fetch_add(1, Ordering::SeqCst) + 1;
                for place in 0..64 {
                    guest.write(place * 65536, &[round as u8; 4096], false).unwrap();
                }
            }
        });
        for _ in 0..3 {
            let live = site.begin();
            let mut client = site.other();
            let plan = site.plan();
            let other = client.merge(MergePace::default(), Some("/other.vhd".into()), LONG);
            let (leaf, parent) = (plan.leaf.path.display(), &plan.backing[0].path);
            let said = format!("{leaf} is served with {}, not with /other.vhd", parent.display());
            assert_eq!(other.unwrap_err().to_string(), said);
            client.merge(MergePace::default(), Some(parent.clone()), LONG).unwrap();
            until_ready(&mut client);
            assert_eq!(
                site.other().merge(MergePace::default(), None, LONG).unwrap_err().kind(),
                Some(FailureKind::Busy)
            );
            assert_eq!(
                site.other().converge(None, LONG).unwrap_err().kind(),
                Some(FailureKind::NotMerging)
            );
            client.converge(Some(site.lock()), LONG).unwrap();
            site.finish(&live);
            assert_eq!(site.plan().backing.len(), 0);
            client.refresh(site.plan(), LONG).unwrap();
            client.resume(LONG).unwrap();
            assert_eq!(client.merging(LONG).unwrap().phase, MergePhase::None);
            // And a new base for the next round.
            let before = rounds.load(Ordering::SeqCst);
            until("another round", || rounds.load(Ordering::SeqCst) > before + 1);
            client.pause(Some(site.lock()), LONG).unwrap();
            let snapshot = site.snapshot();
            client.refresh(site.plan(), LONG).unwrap();
            client.resume(LONG).unwrap();
            let guard = site.tree.lock(Instant::now() + LONG).unwrap();
            site.tree.delete(&guard, snapshot).unwrap();
        }
        done.store(true, Ordering::SeqCst);
    });
    site.other().end(LONG).unwrap();
    site.check();
    let last = rounds.load(Ordering::SeqCst) as u8;
    for place in 0..64 {
        assert_eq!(site.byte(site.disk, place * 65536), last, "{place}");
    }
}

#[test]
fn whatever_else_is_done_with_the_disk_ends_a_merge_first() {
    type Other = fn(&Site, &mut Client);
    let others: [Other; 5] = [
        |site, client| {
            client.pause(Some(site.lock()), LONG).unwrap();
            site.snapshot();
            client.refresh(site.plan(), LONG).unwrap();
            client.resume(LONG).unwrap();
        },
        |site, client| client.refresh(site.plan(), LONG).unwrap(),
        |site, client| {
            client.deactivate(LONG).unwrap();
            client.activate(site.plan(), 8, LONG).unwrap();
        },
        |site, client| {
            client.end(LONG).unwrap();
            site.serve();
        },
        |site, _| {
            site.signal("KILL");
            until("its death", || site.place.lock().unwrap().is_some());
            site.serve();
        },
    ];
    for (index, other) in others.into_iter().enumerate() {
        let site = Site::new();
        site.with_base();
        site.begin();
        let mut merging = site.other();
        let pace = if index % 2 == 0 { slow() } else { MergePace::default() };
        merging.merge(pace, None, LONG).unwrap();
        other(&site, &mut site.other());
        if let Ok(state) = merging.merging(LONG) {
            assert_eq!(state.phase, MergePhase::None, "{index}");
        }
        let guest = site.connect();
        guest.write(0, &[7; 512], true).unwrap();
        let mut bytes = [0; 1];
        for (at, wanted) in [(0, 7), (600, 1), (33000, 2), (90000, 2), (99000, 0)] {
            guest.read(at, &mut bytes).unwrap();
            assert_eq!(bytes[0], wanted, "{index}: {at}");
        }
        site.other().end(LONG).unwrap();
        site.check();
    }
}

#[test]
fn a_merge_ends_with_its_connection() {
    let site = Site::new();
    site.with_base();
    site.begin();
    let mut client = site.other();
    client.merge(slow(), None, LONG).unwrap();
    drop(client);
    let mut next = site.other();
    until("the next merge", || next.merge(MergePace::default(), None, LONG).is_ok());
    until_ready(&mut next);
    next.cancel_merge(LONG).unwrap();
    assert_eq!(next.merging(LONG).unwrap().phase, MergePhase::None);
    next.end(LONG).unwrap();
    site.check();
}

/// Given up, or ended by a pause: the next one has only to copy what was written since. Where the leaf may have been changed in between, all of it.
#[test]
fn the_next_merge_has_only_to_copy_what_is_new() {
    let site = Site::new();
    site.with_base();
    site.begin();
    let total = || {
        let mut client = site.other();
        client.merge(MergePace::default(), None, LONG).unwrap();
        until_ready(&mut client);
        let total = client.merging(LONG).unwrap().total;
        client.cancel_merge(LONG).unwrap();
        total
    };
    let guest = site.connect();
    assert_eq!(total(), 2 * 65536);
    guest.write(9 << 20, &[5; 512], false).unwrap();
    assert_eq!(total(), 65536, "it was given up");
    let mut client = site.other();
    client.merge(MergePace::default(), None, LONG).unwrap();
    until_ready(&mut client);
    client.pause(Some(site.lock()), LONG).unwrap();
    client.resume(LONG).unwrap();
    guest.write(3 << 20, &[6; 512], false).unwrap();
    assert_eq!(total(), 65536, "it was paused");
    client.pause_closed(Some(site.lock()), LONG).unwrap();
    client.refresh(site.plan(), LONG).unwrap();
    client.resume(LONG).unwrap();
    assert_eq!(total(), 4 * 65536, "the images were closed");
    let live = site.begin();
    client.merge(MergePace::default(), None, LONG).unwrap();
    until_ready(&mut client);
    client.converge(Some(site.lock()), LONG).unwrap();
    site.finish(&live);
    client.refresh(site.plan(), LONG).unwrap();
    client.resume(LONG).unwrap();
    client.end(LONG).unwrap();
    site.check();
    let bytes = [0, 33000, 3 << 20, 9 << 20].map(|at| site.byte(site.disk, at));
    assert_eq!(bytes, [1, 2, 6, 5]);
}

/// Whoever had the merge converge is dead, but not all that belonged to him: the next who merges
/// waits until they have let go of the images.
#[test]
fn the_next_merge_waits_until_a_deserted_disk_goes_on() {
    let site = Site::new();
    site.with_base();
    site.begin();
    let mut client = site.other();
    client.merge(MergePace::default(), None, LONG).unwrap();
    until_ready(&mut client);
    let lock = std::fs::File::open(site.lock()).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    client.converge(Some(site.lock()), LONG).unwrap();
    drop(client);
    until("it to wait", || site.state() == State::Waiting);
    let mut next = site.other();
    std::thread::scope(|scope| {
        let merging = scope.spawn(|| next.merge(MergePace::default(), None, LONG));
        site.answers_others();
        let waits = !merging.is_finished();
        drop(lock);
        merging.join().unwrap().unwrap();
        assert!(waits, "it was merged while somebody held the lock");
    });
    until_ready(&mut next);
    next.cancel_merge(LONG).unwrap();
    next.end(LONG).unwrap();
    site.check();
}

/// Whoever had the merge converge dies before, or after, the parent has got the disk's name.
#[test]
fn a_disk_that_converged_goes_on_with_the_file_that_has_its_name() {
    for renamed in [false, true] {
        let site = Site::new();
        site.with_base();
        let live = site.begin();
        let mut client = site.other();
        client.merge(MergePace::default(), None, LONG).unwrap();
        until_ready(&mut client);
        let guest = site.connect();
        guest.write(65536, &[5; 512], false).unwrap();
        client.converge(Some(site.lock()), LONG).unwrap();
        if renamed {
            site.finish(&live);
        }
        drop(client);
        until("it to go on", || site.state() == State::Active);
        assert_eq!(site.status().plan, Some(site.plan()), "{renamed}");
        assert_eq!(site.plan().backing.is_empty(), renamed);
        guest.write(0, &[6; 512], true).unwrap();
        site.other().end(LONG).unwrap();
        site.check();
        let bytes = [0, 600, 33000, 65536].map(|at| site.byte(site.disk, at));
        assert_eq!(bytes, [6, 1, 2, 5], "{renamed}");
    }
}
