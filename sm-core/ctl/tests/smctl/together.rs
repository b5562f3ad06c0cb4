//! Several runs at once, and runs that are ended from outside.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::world::{PLACES, World};

/// Many runs on one SR at the same time do not disturb each other, and none is lost.
#[test]
fn two_at_once() {
    for place in PLACES {
        let world = World::with_sr(place);
        world.ok(&["vdi", "create", "--name", "base", "--size", "64MiB"]);
        // All are started before the first is waited for.
        let runs: Vec<(usize, Child)> = (0..8)
            .map(|n| {
                let name = format!("n{n}");
                let words = match n % 4 {
                    0 | 1 => vec!["vdi", "create", "--size", "8MiB", "--name", &name],
                    2 => vec!["vdi", "snapshot", "base", "--name", &name],
                    _ => vec!["vdi", "clone", "base", "--name", &name],
                };
                let mut command = world.command(&words);
                let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
                (n, child.unwrap())
            })
            .collect();
        for (n, child) in runs {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{place} {n}: {output:?}");
        }
        let names: Vec<String> = world.json(&["vdi", "list"])["vdis"]
            .as_array()
            .unwrap()
            .iter()
            .map(|vdi| vdi["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(names.len(), 9, "{place}: {names:?}");
        assert_eq!(world.json(&["vdi", "check", "base"])["findings"], serde_json::json!([]));
    }
}

/// The same wish, asked for by two runs at the same time, is done once.
#[test]
fn one_wish_twice_at_once() {
    let world = World::with_sr("child");
    let words = [
        "vdi",
        "create",
        "--name",
        "a",
        "--size",
        "8MiB",
        "--operation-id=22222222-2222-4222-8222-222222222222",
    ];
    let spawn = || world.command(&words).stdout(Stdio::piped()).spawn().unwrap();
    let (first, second) = (spawn(), spawn());
    let first = first.wait_with_output().unwrap();
    let second = second.wait_with_output().unwrap();
    assert!(first.status.success() && second.status.success());
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(world.json(&["vdi", "list"])["vdis"].as_array().unwrap().len(), 1);
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args(["-s", name, &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

/// Waits for what must come soon.
fn soon<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An import that waits for its stdin, and has read some of it.
fn stalled_import(world: &World) -> Child {
    let words = ["vdi", "import", "-", "--size", "64MiB", "--name", "slow"];
    let mut child = world
        .command(&words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(&vec![1; 4 << 20]).unwrap();
    soon("the import has begun", || {
        let vdis = world.json(&["vdi", "list"]);
        (vdis["vdis"].as_array()?.len() == 1).then_some(())
    });
    child
}

/// The first Ctrl-C cancels: status 15, and nothing half-made is left.
#[test]
fn the_first_interrupt_cancels() {
    for place in PLACES {
        let world = World::with_sr(place);
        let mut child = stalled_import(&world);
        signal(&child, "INT");
        // The data goes on until the import notices.
        let mut stdin = child.stdin.take().unwrap();
        let status = soon("the import ends", || {
            let _ = stdin.write_all(&vec![1; 1 << 20]);
            child.try_wait().unwrap()
        });
        assert_eq!(status.code(), Some(15), "{place}");
        assert_eq!(world.json(&["vdi", "list"])["vdis"], serde_json::json!([]), "{place}");
    }
}

/// The second ends the run at once: status 130, and how to ask again.
#[test]
fn the_second_interrupt_ends() {
    let world = World::with_sr("child");
    let mut child = stalled_import(&world);
    // Two that come before the first is looked at are one.
    let status = soon("the run ends", || {
        signal(&child, "INT");
        std::thread::sleep(Duration::from_millis(50));
        child.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(130));
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--operation-id="), "{said}");
}

/// `--timeout` ends a job that takes longer: status 16.
#[test]
fn a_job_has_the_time_it_was_given() {
    let world = World::with_sr("in-process");
    let words = ["vdi", "import", "-", "--size", "64MiB", "--name", "slow", "--timeout", "300ms"];
    let mut child = world
        .command(&words)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let status = soon("the import ends", || {
        let _ = stdin.write_all(&vec![1; 1 << 16]);
        child.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(16));
}

/// A job whose process died is shown as interrupted, and another process goes on with it.
#[test]
fn a_dead_job_is_resumed() {
    for place in PLACES {
        let world = World::with_sr(place);
        let mut bytes = vec![3u8; 6 << 20];
        bytes[..1 << 20].fill(0);
        std::fs::write(world.path("in.raw"), &bytes).unwrap();
        let id = "33333333-3333-4333-8333-333333333333";
        let option = format!("--operation-id={id}");
        let words = ["vdi", "import", "in.raw", "--name", "in", &option];
        let killed = world.command(&words).env("SM_STEP_KILL", "job.copying").output().unwrap();
        assert_eq!(killed.status.code(), None, "{killed:?}");
        assert_eq!(world.json(&["job", "show", id])["state"], "interrupted", "{place}");
        let said = world.fails(&["job", "wait", id], 17);
        assert!(said.contains(&format!("hint: smctl job resume {id}\n")), "{said}");
        assert!(world.ok(&["vdi", "list"]).contains("incomplete"));
        let uuid = world.ok(&["job", "resume", id]);
        assert_eq!(world.ok(&["job", "wait", id]), uuid);
        world.ok(&["vdi", "export", &uuid, "out.raw"]);
        assert!(std::fs::read(world.path("out.raw")).unwrap() == bytes, "{place}");
    }
}
