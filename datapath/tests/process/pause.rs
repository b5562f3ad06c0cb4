//! Pauses, and what happens when the one who paused is gone.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

use datapath::control::protocol::{FailureKind, State};
use rustix::fs::{FlockOperation, flock};

use super::place::{LONG, Site, until};

#[test]
fn requests_wait_in_a_pause_and_others_must_not_end_it() {
    let site = Site::new();
    let mut client = site.serve();
    let guest = site.connect();
    guest.write(0, &[1; 512], false).unwrap();
    client.pause(None, LONG).unwrap();
    client.pause(None, LONG).unwrap();
    assert_eq!(site.state(), State::Paused);

    let mut other = datapath::control::find(&site.place).unwrap().unwrap();
    for result in [
        other.pause(None, LONG).map(drop),
        other.refresh(site.plan(), LONG),
        other.deactivate(LONG),
        other.end(LONG),
    ] {
        assert_eq!(result.unwrap_err().kind(), Some(FailureKind::Busy));
    }
    assert_eq!(other.resume(LONG).unwrap_err().kind(), Some(FailureKind::NotPaused));
    other.flush(LONG).unwrap();

    let written = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            guest.write(0, &[2; 512], false).unwrap();
            written.store(true, Ordering::SeqCst);
        });
        // What was written before is in the file; what comes now is not.
        site.answers_others();
        assert!(!written.load(Ordering::SeqCst));
        assert_eq!(site.byte(site.disk, 0), 1);
        client.resume(LONG).unwrap();
    });
    assert!(written.load(Ordering::SeqCst));
    assert_eq!(site.state(), State::Active);
    client.end(LONG).unwrap();
    assert_eq!(site.byte(site.disk, 0), 2);
}

#[test]
fn a_snapshot_under_load_splits_before_from_after() {
    let site = Site::new();
    let mut client = site.serve();
    let (done, rounds) = (AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    let mut snapshots = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Each round writes its number everywhere, in order: at any instant the numbers fall
            // by at most one along the disk.
            let guest = site.connect();
            let mut round = 0_u64;
            while !done.load(Ordering::SeqCst) {
                round += 1;
                for place in 0..64 {
                    guest.write(place * 65536, &[round as u8; 512], false).unwrap();
                }
                rounds.store(round, Ordering::SeqCst);
            }
        });
        for _ in 0..5 {
            let before = rounds.load(Ordering::SeqCst);
            until("another round", || rounds.load(Ordering::SeqCst) > before + 1);
            client.pause(Some(site.lock()), LONG).unwrap();
            snapshots.push(site.snapshot());
            client.refresh(site.plan(), LONG).unwrap();
            client.resume(LONG).unwrap();
        }
        done.store(true, Ordering::SeqCst);
    });
    client.end(LONG).unwrap();
    site.check();
    assert_eq!(site.plan().backing.len(), 5);
    let mut last = 0;
    for snapshot in snapshots.into_iter().chain([site.disk]) {
        let numbers: Vec<u8> = (0..64).map(|place| site.byte(snapshot, place * 65536)).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] >= pair[1]), "{numbers:?}");
        assert!(numbers[0] - numbers[63] <= 1, "{numbers:?}");
        assert!(numbers[63] >= last, "time goes forward: {last}, {numbers:?}");
        last = numbers[63];
    }
}

#[test]
fn it_goes_on_with_its_leaf_when_nothing_was_changed() {
    let site = Site::new();
    let mut client = site.serve();
    client.pause(Some(site.lock()), LONG).unwrap();
    drop(client);
    until("it to go on", || site.state() == State::Active);
    site.connect().write(0, &[4; 512], true).unwrap();
    datapath::control::end(&site.place, LONG).unwrap();
    assert_eq!(site.byte(site.disk, 0), 4);
}

#[test]
fn it_goes_over_to_a_leaf_that_was_put_upon_its_own() {
    let site = Site::new();
    let mut client = site.serve();
    let guest = site.connect();
    guest.write(0, &[1; 512], false).unwrap();
    client.pause(Some(site.lock()), LONG).unwrap();
    let snapshot = site.snapshot();
    // Twice: whoever did it was not told of it either.
    drop(client);
    until("it to go over", || {
        let status = site.status();
        status.state == State::Active && status.plan.is_some_and(|plan| plan == site.plan())
    });
    guest.write(0, &[2; 512], false).unwrap();
    datapath::control::end(&site.place, LONG).unwrap();
    assert_eq!((site.byte(snapshot, 0), site.byte(site.disk, 0)), (1, 2));
    site.check();
}

#[test]
fn it_waits_for_whoever_changes_the_images() {
    let site = Site::new();
    let mut client = site.serve();
    site.connect().write(0, &[1; 512], true).unwrap();
    let held = File::open(site.lock()).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    client.pause(Some(site.lock()), LONG).unwrap();
    drop(client);
    until("it to wait", || site.state() == State::Waiting);
    site.looks_again();
    assert_eq!(site.state(), State::Waiting);
    flock(&held, FlockOperation::Unlock).unwrap();
    until("it to go on", || site.state() == State::Active);
    datapath::control::end(&site.place, LONG).unwrap();
}

#[test]
fn it_waits_while_its_leaf_has_no_name_or_is_another_disk() {
    let site = Site::new();
    let mut client = site.serve();
    site.connect().write(0, &[1; 512], true).unwrap();
    let (leaf, aside) = (site.leaf(), site.folder.path().join("aside.vhd"));
    client.pause(None, LONG).unwrap();
    std::fs::rename(&leaf, &aside).unwrap();
    drop(client);
    until("it to wait", || site.state() == State::Waiting);
    let stranger =
        vhd::image::NewImage { uuid: uuid::Uuid::new_v4(), size: 16 << 20, parent: None };
    vhd::image::create(&leaf, &stranger).unwrap();
    site.looks_again();
    assert_eq!(site.state(), State::Waiting);
    std::fs::rename(&aside, &leaf).unwrap();
    until("it to go on", || site.state() == State::Active);
    assert_eq!(site.connect().size(), 16 << 20);
    datapath::control::end(&site.place, LONG).unwrap();
    site.check();
}

#[test]
fn a_disk_that_waits_for_nobody_can_be_ended() {
    let site = Site::new();
    let mut client = site.serve();
    client.pause(None, LONG).unwrap();
    std::fs::remove_file(site.leaf()).unwrap();
    drop(client);
    until("it to wait", || site.state() == State::Waiting);
    datapath::control::end(&site.place, LONG).unwrap();
    assert!(!site.place.exists());
}

/// The control plane was killed in a change, and its successor begins the change anew at once, with the
/// lock in its hand.
#[test]
fn a_pause_of_the_dead_is_taken_over() {
    let site = Site::new();
    let mut client = site.serve();
    let held = File::open(site.lock()).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    client.pause(Some(site.lock()), LONG).unwrap();
    drop(client);
    let mut successor = datapath::control::find(&site.place).unwrap().unwrap();
    successor.pause(Some(site.lock()), LONG).unwrap();
    assert_eq!(site.state(), State::Paused);
    successor.refresh(site.plan(), LONG).unwrap();
    successor.resume(LONG).unwrap();
    assert_eq!(site.state(), State::Active);
    site.connect().write(0, &[1; 512], true).unwrap();
    successor.end(LONG).unwrap();
}
