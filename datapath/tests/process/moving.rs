//! A disk that moves to another place while it is used, and who may die meanwhile.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use datapath::control::protocol::{
    Command as Said, FailureKind, MirrorPhase, MirrorStart, MirrorStatus, MirrorSwitch, Moved,
    State,
};
use datapath::control::{self, Client};
use datapath::nbd;

use super::place::{LONG, SIZE, Site, until};

/// A program that ends with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves a raw file, and answers its address. `{socket}` and `{file}` in the arguments.
fn server(site: &Site, name: &str, program: &str, arguments: &[&str]) -> (Program, String) {
    let folder = site.folder.path();
    let (socket, file) = (folder.join(format!("{name}.sock")), folder.join(name));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let of = |word: &&str| word.replace("{socket}", &text(&socket)).replace("{file}", &text(&file));
    let child = Command::new(program)
        .args(arguments.iter().map(of))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}: see `cargo xtask setup`"));
    until(program, || UnixStream::connect(&socket).is_ok());
    (Program(child), format!("nbd+unix:///?socket={}", socket.display()))
}

fn qemu(site: &Site, name: &str) -> (Program, String) {
    let arguments = ["-f", "raw", "--persistent", "--shared=0", "-k", "{socket}", "{file}"];
    server(site, name, "qemu-nbd", &arguments)
}

fn raw(site: &Site, name: &str, size: u64) {
    std::fs::File::create(site.folder.path().join(name)).unwrap().set_len(size).unwrap();
}

fn to(target: &str) -> MirrorStart {
    MirrorStart { target: target.to_owned(), credentials: None, server_name: None, rate: None }
}

fn switch(client: &mut Client, verify: bool) -> control::client::Result<Moved> {
    client.mirror_switch(MirrorSwitch { verify, milliseconds: 10_000 }, LONG)
}

fn phase(site: &Site) -> Option<MirrorPhase> {
    site.status().mirror.map(|mirror| mirror.phase)
}

/// The mirror, when its target fails just now.
fn retrying(site: &Site) -> Option<MirrorStatus> {
    site.status().mirror.filter(|mirror| mirror.phase == MirrorPhase::Retrying)
}

fn wait_ready(site: &Site) {
    until("the mirror to be ready", || phase(site) == Some(MirrorPhase::Ready));
}

/// Writes the number of each write to a place of its own, one after the other, until it is refused
/// or told to stop. The numbers of those that were answered are below `answered`.
fn write_on(guest: &nbd::Client, answered: &AtomicU64, stop: &AtomicBool) {
    for number in 0_u64.. {
        let at = number * 4096 % SIZE;
        let block = number.to_le_bytes().repeat(512);
        if stop.load(Ordering::SeqCst) || guest.write(at, &block, false).is_err() {
            return;
        }
        answered.store(number + 1, Ordering::SeqCst);
    }
}

/// Whether each place holds the last write of it that was answered, or the one that was not.
fn assert_holds(content: &[u8], answered: u64, context: &str) {
    let places = SIZE / 4096;
    for place in 0..places.min(answered) {
        let last = (answered - 1 - place) / places * places + place;
        let found = &content[(place * 4096) as usize..][..4096];
        let number = u64::from_le_bytes(found[..8].try_into().unwrap());
        assert!(
            number == last || number == answered,
            "{context}: {number} at {place} of {answered}"
        );
        assert!(found.chunks(8).all(|word| word == number.to_le_bytes()), "{context}: torn");
    }
}

fn content(uri: &str) -> Vec<u8> {
    let uri = uri.parse().unwrap();
    let client = nbd::Client::connect(&uri, &nbd::client::Options::default()).unwrap();
    let mut content = vec![0; SIZE as usize];
    client.read(0, &mut content).unwrap();
    content
}

#[test]
fn a_disk_that_is_written_moves_to_another_process_and_ends_here() {
    for verify in [false, true] {
        let (source, target) = (Site::new(), Site::new());
        let (mut client, _there) = (source.serve(), target.serve());
        let (answered, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let moved = std::thread::scope(|scope| {
            let guest = source.connect();
            let (answered, stop) = (&answered, &stop);
            scope.spawn(move || write_on(&guest, answered, stop));
            until("some writes", || answered.load(Ordering::SeqCst) > 500);
            let status = client.mirror_start(to(&target.place.uri()), LONG).unwrap();
            assert_eq!(status.target, target.place.uri());
            // The same again is done already; another one is refused.
            client.mirror_start(to(&target.place.uri()), LONG).unwrap();
            let error = client.mirror_start(to("nbd://127.0.0.1:1"), LONG).unwrap_err();
            assert_eq!(error.kind(), Some(FailureKind::InUse));
            assert_eq!(
                error.to_string(),
                format!("the disk is mirrored to {} already", target.place.uri())
            );
            // Whoever asked goes, and another one comes.
            drop(client);
            wait_ready(&source);
            let before = answered.load(Ordering::SeqCst);
            until("more writes", || answered.load(Ordering::SeqCst) > before + 500);
            let mut client = Client::connect(&source.place.control()).unwrap();
            let moved = switch(&mut client, verify);
            stop.store(true, Ordering::SeqCst);
            moved.unwrap()
        });
        assert_eq!((moved.target.as_str(), moved.verified), (target.place.uri().as_str(), verify));
        let status = source.status();
        assert_eq!((status.state, status.moved.as_ref()), (State::Moved, Some(&moved)));
        assert_eq!((status.plan, status.connections, status.mirror), (None, 0, None));
        let refused = nbd::Client::connect(
            &source.place.uri().parse().unwrap(),
            &nbd::client::Options::default(),
        );
        assert!(refused.is_err(), "the source serves nobody");
        assert_holds(&content(&target.place.uri()), answered.load(Ordering::SeqCst), "the target");

        // Once is enough, and there is no way back.
        let mut client = Client::connect(&source.place.control()).unwrap();
        assert_eq!(switch(&mut client, false).unwrap(), moved);
        let error = client.activate(source.plan(), 9, LONG).unwrap_err();
        assert_eq!(error.kind(), Some(FailureKind::Moved));
        assert_eq!(error.to_string(), format!("the disk was moved to {}", target.place.uri()));
        client.deactivate(LONG).unwrap();
        assert_eq!(source.state(), State::Moved);
        source.check();
        // Whoever ends it has been told.
        client.end(LONG).unwrap();
        assert!(!source.place.exists());
        target.connect().flush().unwrap();
    }
}

#[test]
fn what_is_no_target_is_refused_and_the_disk_goes_on() {
    let site = Site::new();
    let mut client = site.start();
    let uri = format!("nbd+unix:///?socket={}", site.folder.path().join("nothing").display());
    let error = client.mirror_start(to(&uri), LONG).unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::NotActive));
    client.activate(site.plan(), 1, LONG).unwrap();
    let mut refuse = |target: &str, kind: FailureKind, words: &str| {
        let error = client.mirror_start(to(target), LONG).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (Some(kind), words));
    };
    let words = format!("{uri}: No such file or directory (os error 2)");
    refuse(&uri, FailureKind::Unreachable, &words);
    let own = site.place.uri();
    refuse(&own, FailureKind::Refused, &format!("{own} is this disk itself"));
    let linked = site.folder.path().join("linked");
    std::os::unix::fs::symlink(site.place.nbd(), &linked).unwrap();
    let other = format!("nbd+unix:///?socket={}", linked.display());
    refuse(&other, FailureKind::Refused, &format!("{other} is this disk itself"));
    let words = "'elsewhere' is no NBD address: \
                 it does not begin with nbd:, nbds:, nbd+unix: or nbds+unix:";
    refuse("elsewhere", FailureKind::Invalid, words);
    let words = "nbds://127.0.0.1:1/x needs a certificate, its key and an authority";
    refuse("nbds://127.0.0.1:1/x", FailureKind::Invalid, words);

    raw(&site, "small", SIZE - 512);
    let (_small, uri) = qemu(&site, "small");
    let words = format!("the target has {} bytes, the source {SIZE}", SIZE - 512);
    refuse(&uri, FailureKind::TooSmall, &words);
    raw(&site, "fixed", SIZE);
    let read_only = ["-r", "-f", "raw", "--persistent", "--shared=0", "-k", "{socket}", "{file}"];
    let (_fixed, uri) = server(&site, "fixed", "qemu-nbd", &read_only);
    refuse(&uri, FailureKind::Refused, &format!("{uri}: the server lets nobody write"));

    assert_eq!(phase(&site), None);
    let error = switch(&mut client, false).unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (Some(FailureKind::NotReady), "the disk is not mirrored")
    );
    client.mirror_cancel(LONG).unwrap();
    site.connect().write(0, &[1; 512], true).unwrap();
    client.end(LONG).unwrap();
    assert_eq!(site.byte(site.disk, 0), 1);
}

#[test]
fn a_mirror_is_slowed_down_and_cancelled_and_ends_with_the_activation() {
    let site = Site::new();
    let mut client = site.serve();
    let guest = site.connect();
    guest.write(0, &vec![3; SIZE as usize], true).unwrap();
    raw(&site, "t", SIZE);
    let (_peer, uri) = qemu(&site, "t");
    let slow = MirrorStart { rate: Some(64 << 10), ..to(&uri) };
    let status = client.mirror_start(slow.clone(), LONG).unwrap();
    assert_eq!((status.phase, status.rate), (MirrorPhase::Copying, Some(64 << 10)));
    let error = switch(&mut client, false).unwrap_err();
    assert_eq!(error.to_string(), "the mirror is not ready: it is copying");
    assert_eq!(site.state(), State::Active);
    client.mirror_cancel(LONG).unwrap();
    assert_eq!(phase(&site), None);
    guest.write(0, &[4; 4096], false).unwrap();

    client.mirror_start(slow.clone(), LONG).unwrap();
    assert_eq!(client.mirror_rate(None, LONG).unwrap().rate, None);
    wait_ready(&site);
    let status = site.status().mirror.unwrap();
    assert!(status.copied >= SIZE && status.dirty == 0 && status.total == SIZE, "{status:?}");
    // A snapshot meanwhile: a pause and a refresh by somebody else.
    let mut other = Client::connect(&site.place.control()).unwrap();
    other.pause(None, LONG).unwrap();
    for error in [switch(&mut client, false).map(drop), client.mirror_cancel(LONG)] {
        assert_eq!(error.unwrap_err().to_string(), "the disk is paused by somebody else");
    }
    site.snapshot();
    other.refresh(site.plan(), LONG).unwrap();
    other.resume(LONG).unwrap();
    guest.write(8192, &[5; 4096], false).unwrap();
    wait_ready(&site);
    client.deactivate(LONG).unwrap();
    assert_eq!((phase(&site), site.state()), (None, State::Attached));
    client.activate(site.plan(), 8, LONG).unwrap();

    client.mirror_start(slow, LONG).unwrap();
    // Ended in the middle, with a target that is slow to say anything.
    client.end(LONG).unwrap();
    assert!(!site.place.exists());
    for (offset, byte) in [(0, 4), (8192, 5), (1 << 20, 3)] {
        assert_eq!(site.byte(site.disk, offset), byte);
    }
    site.check();
}

#[test]
fn a_target_that_differs_is_found_and_mended_and_the_disk_stays_here() {
    let site = Site::new();
    let mut client = site.serve();
    let guest = site.connect();
    guest.write(1 << 20, &vec![7; 65536], true).unwrap();
    raw(&site, "t", SIZE);
    let (peer, uri) = qemu(&site, "t");
    client.mirror_start(to(&uri), LONG).unwrap();
    wait_ready(&site);
    // Somebody else writes there as well.
    let other = nbd::Client::connect(&uri.parse().unwrap(), &nbd::client::Options::default());
    other.unwrap().write((1 << 20) + 4096, &[8], true).unwrap();
    let error = switch(&mut client, true).unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::Differs));
    let words = "the target differs from the disk, first at byte 1052672: 65536 bytes are copied \
                 again, and the mirror goes on";
    assert_eq!(error.to_string(), words);
    assert!(site.place.moved().is_none());
    guest.write(0, &[9; 512], true).unwrap();
    guest.write((1 << 20) + 8192, &[6; 4096], true).unwrap();
    wait_ready(&site);
    assert_eq!(site.state(), State::Active);
    assert!(switch(&mut client, true).unwrap().verified);
    client.end(LONG).unwrap();
    drop(peer);
    let there = std::fs::read(site.folder.path().join("t")).unwrap();
    let mut wanted = vec![7; 65536];
    wanted[8192..12288].fill(6);
    assert!(there[1 << 20..(1 << 20) + 65536] == wanted, "what was found is there again");
    assert_eq!((there[0], there[511], there[512]), (9, 9, 0), "what came later is, too");
}

#[test]
fn a_target_that_dies_or_is_full_is_seen_and_the_guest_is_not() {
    let site = Site::new();
    let mut client = site.serve();
    let guest = site.connect();
    guest.write(0, &vec![1; 4 << 20], true).unwrap();
    raw(&site, "t", SIZE);
    let (peer, uri) = qemu(&site, "t");
    client.mirror_start(to(&uri), LONG).unwrap();
    wait_ready(&site);
    drop(peer);
    // It is tried again soon: then nothing has failed until that does.
    let mut failed = None;
    until("the death to be seen", || {
        guest.write(0, &[2; 4096], false).unwrap();
        failed = retrying(&site);
        failed.is_some()
    });
    assert!(failed.as_ref().is_some_and(|mirror| mirror.retries > 0), "{failed:?}");
    assert!(failed.is_some_and(|mirror| mirror.reason.is_some()));
    assert_eq!(switch(&mut client, false).unwrap_err().kind(), Some(FailureKind::NotReady));
    let _peer = {
        std::fs::remove_file(site.folder.path().join("t.sock")).unwrap();
        qemu(&site, "t")
    };
    wait_ready(&site);
    client.mirror_cancel(LONG).unwrap();

    // Full after a few megabytes: what is answered is ENOSPC, and it is tried again.
    raw(&site, "full", SIZE);
    let arguments = [
        "-f",
        "-U",
        "{socket}",
        "--filter=error",
        "file",
        "{file}",
        "error=ENOSPC",
        "error-pwrite-rate=100%",
    ];
    let (_full, uri) = server(&site, "full", "nbdkit", &arguments);
    client.mirror_start(to(&uri), LONG).unwrap();
    let mut failed = None;
    until("the failure", || {
        failed = retrying(&site);
        failed.is_some()
    });
    let reason = failed.unwrap().reason.unwrap();
    assert_eq!(reason, "the server has failed: no space left");
    guest.write(0, &[3; 4096], true).unwrap();
    client.mirror_cancel(LONG).unwrap();
    client.end(LONG).unwrap();
    assert_eq!(site.byte(site.disk, 0), 3);
    site.check();
}

/// The target takes a connection and says nothing more at the switch: the process is killed while
/// it waits. Nobody has been told, so the source is the disk.
#[test]
fn a_process_that_is_killed_before_the_switch_is_done_leaves_the_disk_here() {
    let site = Site::new();
    let mut client = site.serve();
    let guest = site.connect();
    raw(&site, "t", SIZE);
    let (peer, uri) = qemu(&site, "t");
    client.mirror_start(to(&uri), LONG).unwrap();
    wait_ready(&site);
    guest.write(0, &[6; 4096], false).unwrap();
    wait_ready(&site);
    let pid = peer.0.id().to_string();
    assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let mut other = Client::connect(&site.place.control()).unwrap();
            switch(&mut other, false)
        });
        until("it to switch", || phase(&site) == Some(MirrorPhase::Switching));
        site.signal("KILL");
        assert_eq!(asked.join().unwrap().unwrap_err().kind(), None, "there was no answer");
    });
    assert!(site.place.moved().is_none());
    until("its lock to be free", || site.place.lock().unwrap().is_some());
    let mut client = site.serve();
    assert_eq!(client.status(LONG).unwrap().mirror, None);
    client.end(LONG).unwrap();
    assert_eq!(site.byte(site.disk, 0), 6);
    site.check();
}

/// Killed at any moment around a switch that guests write against: one of the two is the disk, and
/// has all that was answered; the other serves nobody.
#[test]
fn a_process_that_is_killed_at_the_switch_leaves_one_disk() {
    let (mut here, mut there) = (0, 0);
    for round in 0..24 {
        let (site, target) = (Site::new(), Site::new());
        let mut client = site.serve();
        let _target = target.serve();
        let (answered, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let told = std::thread::scope(|scope| {
            let guest = site.connect();
            let (answered, stop) = (&answered, &stop);
            scope.spawn(move || write_on(&guest, answered, stop));
            client.mirror_start(to(&target.place.uri()), LONG).unwrap();
            wait_ready(&site);
            let asked = scope.spawn(move || switch(&mut client, false));
            if round % 2 == 0 {
                // As soon as it is recorded, and before it can be answered.
                until("the record", || site.place.moved().is_some() || asked.is_finished());
            } else {
                std::thread::sleep(Duration::from_micros(round * 400));
            }
            site.signal("KILL");
            let told = asked.join().unwrap();
            stop.store(true, Ordering::SeqCst);
            told.ok()
        });
        until("its lock to be free", || site.place.lock().unwrap().is_some());
        let answered = answered.load(Ordering::SeqCst);
        let context = format!("round {round}, answered {told:?}");
        let moved = site.place.moved();
        assert!(told.is_none() || moved.is_some(), "{context}: what was answered is recorded");
        let mut next = site.start();
        let activated = next.activate(site.plan(), 8, LONG);
        if moved.is_some() {
            there += 1;
            assert_eq!(activated.unwrap_err().kind(), Some(FailureKind::Moved), "{context}");
            assert_eq!(next.status(LONG).unwrap().moved, moved);
            assert_holds(&content(&target.place.uri()), answered, &context);
        } else {
            here += 1;
            activated.unwrap();
            assert_holds(&content(&site.place.uri()), answered, &context);
            next.end(LONG).unwrap();
            site.check();
        }
    }
    println!("{here} stayed, {there} moved");
    assert!(here > 0 && there > 0, "{here} stayed, {there} moved: one side was never seen");
}

#[test]
fn a_signal_keeps_the_record_of_a_move_and_an_end_does_not() {
    let (site, target) = (Site::new(), Site::new());
    let (mut client, _there) = (site.serve(), target.serve());
    client.mirror_start(to(&target.place.uri()), LONG).unwrap();
    wait_ready(&site);
    let moved = switch(&mut client, false).unwrap();
    site.signal("TERM");
    until("it to end", || site.place.lock().unwrap().is_some());
    assert_eq!(site.place.moved(), Some(moved));
    assert!(!site.place.control().exists() && !site.place.nbd().exists(), "no socket stays");
    let mut client = site.start();
    assert_eq!(client.activate(site.plan(), 8, LONG).unwrap_err().kind(), Some(FailureKind::Moved));
    // A record that cannot be read is one of a move.
    let record = site.place.path().join("moved.json");
    std::fs::write(&record, "{").unwrap();
    site.signal("KILL");
    until("its lock to be free", || site.place.lock().unwrap().is_some());
    let mut client = site.start();
    let error = client.activate(site.plan(), 8, LONG).unwrap_err();
    assert_eq!(error.to_string(), "the disk was moved to an unknown place");
    client.end(LONG).unwrap();
    assert!(!site.place.exists());
}

/// A server that never answers costs whoever asks for the mirror its time, and nobody else.
#[test]
fn a_target_that_says_nothing_keeps_nobody_from_the_disk() {
    let site = Site::new();
    let mut client = site.serve();
    let socket = site.folder.path().join("mute");
    let _mute = UnixListener::bind(&socket).unwrap();
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let mut other = Client::connect(&site.place.control()).unwrap();
            other.mirror_start(to(&uri), LONG).unwrap_err().kind()
        });
        let guest = site.connect();
        for _ in 0..20 {
            guest.write(0, &[1; 512], true).unwrap();
            client.pause(None, LONG).unwrap();
            client.resume(LONG).unwrap();
        }
        assert_eq!(asked.join().unwrap(), Some(FailureKind::Unreachable));
    });
    client.end(LONG).unwrap();
}

#[test]
fn mirrors_are_asked_for_by_lines_that_people_can_write() {
    let site = Site::new();
    let _client = site.serve();
    let line = "{\"version\":1,\"id\":4,\"command\":\"mirror_switch\",\"milliseconds\":1}\n";
    let words =
        "{\"id\":4,\"error\":{\"kind\":\"not_ready\",\"message\":\"the disk is not mirrored\"}}";
    assert_eq!(site.say(line.as_bytes()), [words]);
    let line = "{\"version\":1,\"id\":5,\"command\":\"mirror_cancel\"}\n";
    assert_eq!(site.say(line.as_bytes()), ["{\"id\":5,\"done\":{\"cancelled\":false}}"]);
    let text = serde_json::to_string(&Said::MirrorStart(to("nbd://h"))).unwrap();
    assert_eq!(text, "{\"command\":\"mirror_start\",\"target\":\"nbd://h\"}");
    control::end(&site.place, LONG).unwrap();
}
