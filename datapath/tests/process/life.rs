//! Birth and death of a process.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use datapath::control::protocol::{FailureKind, State};
use datapath::control::run::Process;
use datapath::control::{self, Client, Place};
use datapath::disk::{Limits, Rate};
use datapath::error::Errno;
use datapath::nbd;

use super::place::{LONG, PROGRAM, SIZE, Site, until};

#[test]
fn a_disk_is_served_between_activate_and_deactivate_and_nothing_stays() {
    let site = Site::new();
    let mut client = site.start();
    let uri: nbd::Uri = site.place.uri().parse().unwrap();
    let refused = nbd::Client::connect(&uri, &nbd::client::Options::default());
    assert!(refused.is_err(), "not active yet");
    assert_eq!(client.status(LONG).unwrap().state, State::Attached);
    assert_eq!(client.flush(LONG).unwrap_err().kind(), Some(FailureKind::NotActive));

    client.activate(site.plan(), 7, LONG).unwrap();
    client.activate(site.plan(), 7, LONG).unwrap();
    let guest = site.connect();
    guest.write(4096, &[0x5a; 8192], false).unwrap();
    guest.flush().unwrap();
    let status = client.status(LONG).unwrap();
    assert_eq!((status.state, status.size, status.epoch), (State::Active, SIZE, 7));
    assert_eq!((status.connections, status.statistics.write.bytes), (1, 8192));
    assert_eq!(status.statistics.flush.operations, 1);

    client.deactivate(LONG).unwrap();
    client.deactivate(LONG).unwrap();
    assert!(guest.read(0, &mut [0]).is_err(), "clients are gone");
    assert_eq!(site.byte(site.disk, 4096), 0x5a);
    assert!(nbd::Client::connect(&uri, &nbd::client::Options::default()).is_err());
    client.end(LONG).unwrap();
    assert!(!site.place.exists() && !site.folder.path().join("run/i").exists());
    site.check();
}

#[test]
fn an_end_with_a_busy_client_keeps_what_was_answered() {
    let site = Site::new();
    let mut client = site.serve();
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let guest = site.connect();
            for index in 0..SIZE / 65536 {
                if guest.write(index * 65536, &[index as u8 + 1; 4096], false).is_err() {
                    return;
                }
                answered.store(index + 1, Ordering::SeqCst);
            }
        });
        until("some writes", || answered.load(Ordering::SeqCst) > 5);
        client.end(LONG).unwrap();
    });
    for index in 0..answered.load(Ordering::SeqCst) {
        assert_eq!(site.byte(site.disk, index * 65536), index as u8 + 1, "write {index}");
    }
    site.check();
}

#[test]
fn who_starts_it_at_the_same_time_gets_the_same_process() {
    let site = Site::new();
    let barrier = Barrier::new(6);
    let pids: Vec<u32> = std::thread::scope(|scope| {
        let start = || {
            barrier.wait();
            site.start().status(LONG).unwrap().pid
        };
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    control::end(&site.place, LONG).unwrap();
}

#[test]
fn starts_and_ends_that_meet_leave_one_process_or_none() {
    let site = Site::new();
    let barrier = Barrier::new(2);
    for _ in 0..20 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                // It may be ended before it can be asked.
                let _ = control::start(&site.place, Path::new(PROGRAM));
            });
            barrier.wait();
            control::end(&site.place, LONG).unwrap();
        });
        control::end(&site.place, LONG).unwrap();
        assert!(!site.place.exists());
    }
}

/// It has answered, and is killed before it has cleared its directory away.
#[test]
fn an_end_leaves_nothing_also_when_the_process_is_killed_after_its_answer() {
    let folder = tempfile::Builder::new().prefix("dp").tempdir().unwrap();
    let place = Place::at(folder.path().join("run/disk"));
    place.make().unwrap();
    let lock = place.lock().unwrap().unwrap();
    let control = UnixListener::bind(place.control()).unwrap();
    let _nbd = UnixListener::bind(place.nbd()).unwrap();
    // Nobody's.
    place.write_process(Process { pid: 0x3fff_ffff, started: 1 }).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = BufReader::new(control.accept().unwrap().0);
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            let asked: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(asked["command"], "end");
            stream.get_mut().write_all(b"{\"id\":1,\"done\":{}}\n").unwrap();
            drop(stream);
            // The kernel takes its lock away later than its connections.
            drop(lock);
        });
        control::end(&place, LONG).unwrap();
    });
    assert!(!place.exists() && !folder.path().join("run").exists());
}

#[test]
fn what_a_killed_process_answered_is_there_with_the_next() {
    let site = Site::new();
    site.serve();
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let guest = site.connect();
            for index in 0..SIZE / 4096 {
                if guest.write(index * 4096, &[index as u8 | 1; 4096], false).is_err() {
                    return;
                }
                answered.store(index + 1, Ordering::SeqCst);
            }
        });
        until("some writes", || answered.load(Ordering::SeqCst) > 300);
        site.signal("KILL");
    });
    until("its lock to be free", || site.place.lock().unwrap().is_some());
    // Its directory is as it left it, sockets and all.
    assert!(site.place.control().exists());
    let mut client = site.serve();
    client.end(LONG).unwrap();
    site.check();
    for index in 0..answered.load(Ordering::SeqCst) {
        assert_eq!(site.byte(site.disk, index * 4096), index as u8 | 1, "write {index}");
    }
}

#[test]
fn signals_end_it_in_order_and_a_hang_up_does_not() {
    let site = Site::new();
    let mut client = site.serve();
    let guest = site.connect();
    guest.write(0, &[9; 512], false).unwrap();
    site.signal("HUP");
    assert_eq!(client.status(LONG).unwrap().state, State::Active);
    site.signal("TERM");
    until("the directory to go", || !site.place.exists());
    assert_eq!(site.byte(site.disk, 0), 9);
    site.check();
}

#[test]
fn two_processes_never_write_one_leaf() {
    let site = Site::new();
    let _first = site.serve();
    let other = Place::at(site.folder.path().join("run/j").join(site.disk.to_string()));
    let mut second = control::start(&other, Path::new(PROGRAM)).unwrap();
    let error = second.activate(site.plan(), 8, LONG).unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
    assert_eq!(second.status(LONG).unwrap().state, State::Attached);
    site.signal("KILL");
    until("its lock to be free", || site.place.lock().unwrap().is_some());
    second.activate(site.plan(), 8, LONG).unwrap();
    second.end(LONG).unwrap();
}

#[test]
fn a_process_outlives_its_program_file() {
    let site = Site::new();
    let program = site.folder.path().join("sm-datapath");
    std::fs::copy(PROGRAM, &program).unwrap();
    let mut client = control::start(&site.place, &program).unwrap();
    client.activate(site.plan(), 1, LONG).unwrap();
    let old = client.status(LONG).unwrap().pid;
    std::fs::remove_file(&program).unwrap();
    std::fs::copy(PROGRAM, &program).unwrap();
    site.connect().write(0, &[3; 512], true).unwrap();
    assert_eq!(control::start(&site.place, &program).unwrap().status(LONG).unwrap().pid, old);
    client.end(LONG).unwrap();
    let mut client = control::start(&site.place, &program).unwrap();
    assert_ne!(client.status(LONG).unwrap().pid, old);
    client.end(LONG).unwrap();
}

#[test]
fn a_program_that_cannot_serve_is_an_error_with_its_words() {
    let site = Site::new();
    let error = control::locate(Some(Path::new("/nowhere/sm-datapath"))).unwrap_err();
    assert_eq!(error.to_string(), "the program sm-datapath is not at /nowhere/sm-datapath");
    let error = control::start(&site.place, Path::new("/bin/false")).unwrap_err().to_string();
    assert!(error.contains("/bin/false does not start: exit status: 1"), "{error}");
    assert!(control::find(&site.place).unwrap().is_none());
    control::end(&site.place, LONG).unwrap();
    assert!(!site.place.exists());
}

#[test]
fn lines_that_make_no_sense_are_answered_and_harm_nobody() {
    let site = Site::new();
    let mut client: Client = site.serve();
    for (line, answer) in [
        ("{\"version\":1,\"id\":3,\"command\":\"dance\"}", "unsupported"),
        ("{\"version\":9,\"id\":3,\"command\":\"status\"}", "malformed"),
        ("{\"version\":1,\"id\":3,\"command\":\"pause\"}", "malformed"),
        ("{\"id\":3}", "malformed"),
    ] {
        let got = site.say(format!("{line}\n").as_bytes());
        let start = format!("{{\"id\":3,\"error\":{{\"kind\":\"{answer}\"");
        assert!(got.len() == 1 && got[0].starts_with(&start), "{line}: {got:?}");
    }
    assert!(site.say(b"hello\n")[0].starts_with("{\"id\":0,\"error\":{\"kind\":\"malformed\""));
    assert_eq!(site.say(&vec![b'x'; 3 << 20]), Vec::<String>::new());
    // Each on a line of its own, whatever the pieces they come in.
    let two = "{\"version\":1,\"id\":1,\"command\":\"flush\"}\n".repeat(2);
    assert_eq!(site.say(two.as_bytes()), ["{\"id\":1,\"done\":{}}", "{\"id\":1,\"done\":{}}"]);
    assert_eq!(client.status(LONG).unwrap().state, State::Active);
    client.end(LONG).unwrap();
}

#[test]
fn limits_are_told_and_hold() {
    let site = Site::new();
    let mut client = site.serve();
    let rate = Rate { per_second: 50, burst: 0 };
    let limits = Limits { operations: Some(rate), bytes: None };
    client.limit(limits, LONG).unwrap();
    assert_eq!(client.status(LONG).unwrap().limits, limits);
    let guest = site.connect();
    let start = std::time::Instant::now();
    for _ in 0..11 {
        guest.read(0, &mut [0; 512]).unwrap();
    }
    // Ten turns of 20 ms lie between the first and the last.
    assert!(start.elapsed().as_millis() >= 200, "{:?}", start.elapsed());
    client.limit(Limits::default(), LONG).unwrap();
    client.end(LONG).unwrap();
}

#[test]
fn it_inherits_nothing() {
    let site = Site::new();
    let secret = site.folder.path().join("secret");
    std::fs::write(&secret, "s").unwrap();
    // A shell that has it open without close-on-exec, as careless programs do.
    let run = site.place.path().display();
    site.place.make().unwrap();
    let script =
        format!("exec 7<'{}'; CANARY=1 exec '{PROGRAM}' serve --run-dir '{run}'", secret.display());
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("it to be there", || control::find(&site.place).is_ok_and(|found| found.is_some()));
    let open = std::fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
    let targets: Vec<_> =
        open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()).collect();
    assert!(!targets.contains(&secret), "{targets:?}");
    control::end(&site.place, LONG).unwrap();
    child.wait().unwrap();
}

#[test]
fn a_parent_that_cannot_be_read_fails_those_reads_and_nothing_else() {
    const MIB: u64 = 1 << 20;
    let site = Site::new();
    let mut client = site.serve();
    let guest = site.connect();
    for block in 0..3 {
        guest.write(block * 2 * MIB, &vec![block as u8 + 1; MIB as usize], false).unwrap();
    }
    drop(guest);
    client.deactivate(LONG).unwrap();
    site.snapshot();
    let plan = site.plan();
    client.activate(plan.clone(), 7, LONG).unwrap();
    let guest = site.connect();

    // The tail of the parent is gone: what was the last block cannot be read any more.
    let parent = &plan.backing.first().unwrap().path;
    let whole = std::fs::read(parent).unwrap();
    let file = std::fs::File::options().write(true).open(parent).unwrap();
    file.set_len(whole.len() as u64 - 2 * MIB).unwrap();
    let failed = |result: Result<(), nbd::client::ClientError>| {
        let kind = result.unwrap_err().kind;
        assert_eq!(kind, nbd::client::Kind::Server(Errno::Io));
    };
    let mut bytes = vec![0; 4096];
    failed(guest.read(4 * MIB, &mut bytes));
    // A read over a good and a bad place fails as a whole.
    failed(guest.read(2 * MIB, &mut vec![0; 3 * MIB as usize]));
    guest.read(2 * MIB, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 2));

    // What the leaf holds needs no parent; and the rest is there again with the parent's bytes.
    guest.write(4 * MIB, &[9; 4096], false).unwrap();
    guest.flush().unwrap();
    guest.read(4 * MIB, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 9));
    failed(guest.read(4 * MIB + 4096, &mut bytes));
    std::os::unix::fs::FileExt::write_all_at(&file, &whole, 0).unwrap();
    guest.read(4 * MIB + 4096, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 3));
    client.end(LONG).unwrap();
    assert_eq!(site.byte(site.disk, 4 * MIB), 9);
    site.check();
}
