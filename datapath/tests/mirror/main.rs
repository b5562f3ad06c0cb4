//! Mirrors of a disk that is written all the time: to our own server, to `qemu-nbd` and to `nbdkit`,
//! which also fail, are slow, and die. Afterwards every byte is compared.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod guests;
mod peers;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use datapath::disk::{Drive, Format};
use datapath::error::Errno;
use datapath::export::Export;
use datapath::sync::{Mirror, Options, Phase, Switched};
use guests::{MIB, quick, seed, soon, wait_for, with_guests};
use peers::{Peer, mirror, new_disk, open, our_server, target};

const SIZE: u64 = 48 * MIB;

fn raw(path: &Path, size: u64) {
    std::fs::File::create(path).unwrap().set_len(size).unwrap();
}

fn more(changes: &AtomicU64, count: u64) {
    let goal = changes.load(Ordering::Relaxed) + count;
    wait_for("more changes", || changes.load(Ordering::Relaxed) >= goal);
}

/// Switches while guests write as fast as they can. A refusal is for good reasons, and not for ever.
fn switch(mirror: &Mirror) -> Switched {
    let mut switched = None;
    wait_for("a switch under load", || {
        mirror.wait_ready(soon()).unwrap();
        switched = mirror.switch(soon()).ok();
        switched.is_some()
    });
    let switched = switched.unwrap();
    assert_eq!(switched.verify().unwrap(), None, "the target differs there");
    switched
}

/// Mirrors under load and ends the source; what it held last is in the file of the target.
fn mirror_to_file(drive: &Arc<Drive>, mirror: &Mirror, seed: u64, file: &Path) {
    let (content, count) = with_guests(drive, seed, 4, |changes| {
        mirror.wait_ready(soon()).unwrap();
        more(changes, 200);
        let switched = switch(mirror);
        let content = content(&switched);
        switched.finish().unwrap();
        assert_eq!(drive.write(0, b"late", false).unwrap_err().errno, Errno::Shutdown);
        assert_eq!(drive.read(0, &mut [0]).unwrap_err().errno, Errno::Shutdown);
        content
    });
    println!("{count} changes, {:?}", mirror.progress());
    let there = std::fs::read(file).unwrap();
    assert_eq!(there.len(), content.len());
    assert!(there == content, "the file differs");
}

fn content(switched: &Switched) -> Vec<u8> {
    let mut content = vec![0; SIZE as usize];
    switched.source().read(0, &mut content).unwrap();
    content
}

#[test]
fn a_mirror_to_our_own_server_is_the_same_and_ends_the_source() {
    let (seed, dir) = (seed(), tempfile::tempdir().unwrap());
    let drive = new_disk(dir.path(), SIZE, seed);
    let path = dir.path().join("target.raw");
    raw(&path, SIZE);
    let there = open(&path, Format::Raw);
    let socket = dir.path().join("nbd");
    let server = our_server(&socket, &there);
    let mirror = mirror(&drive, &socket, true);
    mirror_to_file(&drive, &mirror, seed, &path);
    assert!(mirror.progress().forwarded > 0);
    drop(mirror);
    assert!(server.stop(Duration::from_secs(20)), "nobody is left at the server");
    there.close(soon()).unwrap();
}

/// What goes from file to file without being read is looked at all the same.
#[test]
fn a_raw_disk_is_mirrored_from_its_file_and_its_zeros_take_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let region = 64 << 10;
    let mut content = vec![7; 5 * MIB as usize + 12_800];
    // A region of zeros, several, one that only begins with them, and the last one.
    let zeros = [3..4, 20..37, 78..79].map(|numbers| numbers.start * region..numbers.end * region);
    for range in &zeros {
        content[range.clone()].fill(0);
    }
    content[50 * region..][..4096].fill(0);
    let end = content.len();
    content[80 * region..end].fill(0);
    let (from, to) = (dir.path().join("from.raw"), dir.path().join("to.raw"));
    std::fs::write(&from, &content).unwrap();
    raw(&to, end as u64);
    let (drive, there) = (open(&from, Format::Raw), open(&to, Format::Raw));
    let socket = dir.path().join("nbd");
    let server = our_server(&socket, &there);
    let mirror = mirror(&drive, &socket, true);
    mirror.wait_ready(soon()).unwrap();
    switch(&mirror).finish().unwrap();
    assert!(std::fs::read(&to).unwrap() == content);
    let zero = zeros.iter().map(|range| range.len() as u64).sum::<u64>();
    let taken = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&to).unwrap()) * 512;
    assert!(taken <= end as u64 - zero, "{taken} bytes are taken");
    drop(mirror);
    assert!(server.stop(Duration::from_secs(20)), "nobody is left at the server");
    there.close(soon()).unwrap();
}

#[test]
fn a_mirror_to_qemu_nbd_is_the_same_whatever_was_there_before() {
    let (seed, dir) = (seed(), tempfile::tempdir().unwrap());
    let drive = new_disk(dir.path(), SIZE, seed);
    let path = dir.path().join("target.raw");
    std::fs::write(&path, vec![0xee; SIZE as usize]).unwrap();
    let peer = Peer::qemu(&dir.path().join("nbd"), &path);
    let mirror = mirror(&drive, &peer.socket, false);
    mirror_to_file(&drive, &mirror, seed, &path);
}

/// `qemu-nbd` takes one client unless told otherwise, and says that there can be no second.
#[test]
fn a_server_for_one_connection_gets_one() {
    let (seed, dir) = (seed(), tempfile::tempdir().unwrap());
    let drive = new_disk(dir.path(), SIZE, seed);
    let path = dir.path().join("target.raw");
    raw(&path, SIZE);
    let file = path.to_str().unwrap();
    let arguments = ["-f", "raw", "--persistent", "-k", "{socket}", file];
    let peer = Peer::start(&dir.path().join("nbd"), "qemu-nbd", &arguments);
    let mirror = mirror(&drive, &peer.socket, true);
    mirror_to_file(&drive, &mirror, seed, &path);
}

#[test]
fn a_target_that_fails_now_and_then_ends_up_the_same() {
    let (seed, dir) = (seed(), tempfile::tempdir().unwrap());
    let drive = new_disk(dir.path(), SIZE, seed);
    let path = dir.path().join("target.raw");
    raw(&path, SIZE);
    let file = path.to_str().unwrap();
    let rate = ["error-pwrite-rate=2%", "error-zero-rate=2%", "error=EIO"];
    let mut arguments = vec!["-f", "-U", "{socket}", "--filter=error", "file", file];
    arguments.extend(rate);
    let peer = Peer::start(&dir.path().join("nbd"), "nbdkit", &arguments);
    let mirror = mirror(&drive, &peer.socket, true);
    mirror_to_file(&drive, &mirror, seed, &path);
    assert!(mirror.progress().retries > 0, "it did fail: {:?}", mirror.progress());
}

/// Four guests write flat out, and each write of the target takes its time.
#[test]
fn a_slow_target_is_reached_whatever_the_guests_write() {
    let (seed, dir) = (seed(), tempfile::tempdir().unwrap());
    let drive = new_disk(dir.path(), SIZE, seed);
    let path = dir.path().join("target.raw");
    raw(&path, SIZE);
    let file = path.to_str().unwrap();
    let arguments = ["-f", "-U", "{socket}", "--filter=delay", "file", file, "wdelay=3ms"];
    let peer = Peer::start(&dir.path().join("nbd"), "nbdkit", &arguments);
    let mirror = mirror(&drive, &peer.socket, true);
    mirror_to_file(&drive, &mirror, seed, &path);
}

#[test]
fn a_target_that_is_killed_goes_on_where_it_was_and_the_guest_never_notices() {
    let (seed, dir) = (seed(), tempfile::tempdir().unwrap());
    let drive = new_disk(dir.path(), SIZE, seed);
    let (path, socket) = (dir.path().join("target.raw"), dir.path().join("nbd"));
    raw(&path, SIZE);
    let mut peer = Peer::qemu(&socket, &path);
    let mirror = mirror(&drive, &socket, true);
    let ((), count) = with_guests(&drive, seed, 4, |changes| {
        for moment in 0..4 {
            match moment {
                // In the middle of the copy, and when it is done.
                0 => wait_for("some progress", || mirror.progress().copied > MIB),
                _ => mirror.wait_ready(soon()).unwrap(),
            }
            let before = mirror.progress().retries;
            peer.kill();
            wait_for("the death to be seen", || {
                matches!(mirror.progress().phase, Phase::Retrying(_))
            });
            assert!(mirror.switch(soon()).is_err(), "there is nobody to switch to");
            // The guests write on meanwhile.
            more(changes, 100);
            peer = Peer::qemu(&socket, &path);
            wait_for("it to go on", || !matches!(mirror.progress().phase, Phase::Retrying(_)));
            assert!(mirror.progress().retries > before);
        }
        mirror.wait_ready(soon()).unwrap();
        switch(&mirror).back();
        drive.write(0, b"goes on", false).unwrap();
    });
    println!("{count} changes, {:?}", mirror.progress());
    assert_eq!(mirror.progress().phase, Phase::Ended);
}

#[test]
fn a_target_that_never_comes_back_fails_for_good_and_another_disk_is_not_taken_for_it() {
    let (seed, dir) = (seed(), tempfile::tempdir().unwrap());
    let drive = new_disk(dir.path(), SIZE, seed);
    let (path, socket) = (dir.path().join("target.raw"), dir.path().join("nbd"));
    raw(&path, SIZE);

    let peer = Peer::qemu(&socket, &path);
    let first = mirror(&drive, &socket, true);
    first.wait_ready(soon()).unwrap();
    peer.kill();
    raw(&path, SIZE * 2);
    let peer = Peer::qemu(&socket, &path);
    wait_for("the failure", || {
        drive.write(0, b"a write that is forwarded", false).unwrap();
        matches!(first.progress().phase, Phase::Failed(_))
    });
    let Phase::Failed(what) = first.progress().phase else { panic!() };
    assert!(what.contains("another disk is there now: 100663296 bytes"), "{what}");
    first.cancel(soon()).unwrap();
    peer.kill();

    raw(&path, SIZE);
    let peer = Peer::qemu(&socket, &path);
    let options = Options { give_up: Duration::from_millis(50), ..quick() };
    let second = Mirror::start(&drive, target(&socket, true), options, soon()).unwrap();
    second.wait_ready(soon()).unwrap();
    peer.kill();
    wait_for("the failure", || {
        drive.write(4096, b"a write that is forwarded", false).unwrap();
        matches!(second.progress().phase, Phase::Failed(_))
    });
    let _again = Peer::qemu(&socket, &path);
    let error = second.switch(soon()).err().unwrap();
    assert!(error.what.starts_with("the mirror has failed"), "{error}");
    second.cancel(soon()).unwrap();
    drive.write(0, b"goes on", false).unwrap();
}

#[test]
fn a_cancelled_mirror_leaves_the_disk_alone_whenever_it_is_cancelled() {
    let (seed, dir) = (seed(), tempfile::tempdir().unwrap());
    let drive = new_disk(dir.path(), SIZE, seed);
    let (path, socket) = (dir.path().join("target.raw"), dir.path().join("nbd"));
    raw(&path, SIZE);
    let _peer = Peer::qemu(&socket, &path);
    with_guests(&drive, seed, 2, |changes| {
        for ready in [false, true, false] {
            let mirror = mirror(&drive, &socket, true);
            if ready {
                mirror.wait_ready(soon()).unwrap();
            }
            mirror.cancel(soon()).unwrap();
            assert_eq!(mirror.progress().phase, Phase::Ended);
            assert!(mirror.switch(soon()).is_err());
            more(changes, 20);
        }
        // Dropped without a word is the same.
        drop(mirror(&drive, &socket, true));
        more(changes, 20);
    });
}

#[test]
fn a_target_that_is_too_small_or_read_only_is_refused() {
    let (seed, dir) = (seed(), tempfile::tempdir().unwrap());
    let drive = new_disk(dir.path(), SIZE, seed);
    let (path, socket) = (dir.path().join("target.raw"), dir.path().join("nbd"));
    raw(&path, SIZE - 512);
    let peer = Peer::qemu(&socket, &path);
    let error = Mirror::start(&drive, target(&socket, true), quick(), soon()).err().unwrap();
    assert_eq!(error.errno, Errno::Invalid);
    assert_eq!(error.what, format!("the target has {} bytes, the source {SIZE}", SIZE - 512));
    peer.kill();

    let file = path.to_str().unwrap();
    let arguments = ["-r", "-f", "raw", "--persistent", "-k", "{socket}", file];
    let _peer = Peer::start(&socket, "qemu-nbd", &arguments);
    let uri = datapath::nbd::uri::Uri::unix(&socket, "");
    let options = datapath::nbd::client::Options::default();
    let failure = datapath::sync::NbdTarget::connect(uri, options, true).err().unwrap();
    assert!(failure.permanent && failure.what.ends_with("the server lets nobody write"));
}
