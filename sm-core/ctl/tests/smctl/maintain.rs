//! `sr maintain` and `vdi reclaim`, as a person uses them.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vhd::{Disk, Mode, Tree};

use crate::world::{PLACES, World};

/// Writes bytes that are not compressible into zeros.
fn write(world: &World, vdi: &str, offset: u64, length: usize, seed: u64) {
    let sr = world.json(&["sr", "list"])["srs"][0]["uuid"].as_str().unwrap().to_owned();
    let tree = Tree::open(&world.folder.path().join("images").join(sr)).unwrap();
    let disk = tree.open_disk(vdi.parse().unwrap(), Mode::Write).unwrap();
    let bytes: Vec<u8> = (0..length as u64 / 8)
        .flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (seed | 1)).to_le_bytes())
        .collect();
    disk.write_at(offset, &bytes).unwrap();
    disk.flush().unwrap();
}

/// A disk `disk` of 64 MiB on two base copies that only it needs, the upper one with 24 MiB; its
/// content lies in the file `before.raw`.
fn layered(world: &World) -> String {
    let disk = world.ok(&["vdi", "create", "--name", "disk", "--size", "64MiB"]);
    write(world, &disk, 0, 8 << 20, 1);
    let first = world.ok(&["vdi", "snapshot", &disk, "--name", "first"]);
    write(world, &disk, 4 << 20, 24 << 20, 3);
    let second = world.ok(&["vdi", "snapshot", &disk, "--name", "second"]);
    write(world, &disk, 40 << 20, 1 << 20, 5);
    world.ok(&["vdi", "destroy", &first]);
    world.ok(&["vdi", "destroy", &second]);
    world.ok(&["vdi", "export", &disk, "before.raw"]);
    disk
}

/// Nothing was lost: the structure is sound, and every byte is as it was.
fn must_be_as_before(world: &World, disk: &str, context: &str) {
    let checked = world.json(&["vdi", "check", disk]);
    assert_eq!(checked["findings"], json!([]), "{context}");
    world.ok(&["vdi", "export", disk, "after.raw", "--force"]);
    let read = |name: &str| std::fs::read(world.path(name)).unwrap();
    assert!(read("before.raw") == read("after.raw"), "{context}: the content differs");
}

fn images(world: &World) -> usize {
    world.json(&["vdi", "tree"])["nodes"].as_array().unwrap().len()
}

/// A maintenance that takes half a minute, after it has begun to copy.
fn slow(world: &World, id: &str) -> Child {
    let option = format!("--operation-id={id}");
    let words = ["sr", "maintain", "images", "--rate", "1MiB", &option];
    let child = world.command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let begun = Instant::now();
    loop {
        let jobs = world.json(&["job", "list"]);
        let started = jobs["jobs"].as_array().unwrap().iter().any(|job| {
            job["id"] == id && job["permille"].as_u64() > Some(0) && job["state"] == "running"
        });
        if started {
            return child.unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it tells no progress: {jobs}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_is_done_and_what_is_left_is_said() {
    for place in PLACES {
        let world = World::with_sr(place);
        let disk = layered(&world);
        let sr = world.json(&["sr", "list"])["srs"][0]["uuid"].as_str().unwrap().to_owned();
        assert_eq!(images(&world), 3);
        let shown = world.ok(&["vdi", "show", &disk]);
        for line in ["exclusive", "reclaimable"] {
            assert!(shown.lines().any(|shown| shown.trim_start().starts_with(line)), "{shown}");
        }
        assert!(world.ok(&["vdi", "list"]).starts_with("UUID  "));
        assert!(world.ok(&["vdi", "list"]).contains("EXCLUSIVE"));
        let shown = world.ok(&["sr", "show", "images"]);
        assert!(shown.contains("base copies") && shown.contains("other"), "{shown}");

        let plan = world.ok(&["sr", "maintain", "images", "--dry-run"]);
        assert!(plan.starts_with("would merge: "), "{plan}");
        let last = plan.lines().last().unwrap();
        assert!(last.starts_with(&format!("SR {sr}: 2 merges to do, ")), "{plan}");
        assert_eq!(images(&world), 3, "a dry run changes nothing");
        assert_eq!(world.json(&["job", "list"])["jobs"].as_array().unwrap().len(), 1, "the export");

        world.ok(&["vdi", "attach", &disk]);
        let said = world.fails(&["vdi", "reclaim", &disk], 5);
        assert_eq!(
            said,
            format!(
                "smctl: VDI {disk} is attached by \"smctl\"\n\n\
                 hint: smctl vdi detach {disk} --datapath smctl\n"
            )
        );
        // What is attached is merged by its data path.
        let said = world.ok(&["sr", "maintain", "images", "--cpu=100%", "--parallel=2"]);
        let merged =
            |line: &&str| line.starts_with("merged: ") && line.ends_with("while it is in use");
        assert_eq!(said.lines().filter(merged).count(), 2, "{said}");
        let last = said.lines().last().unwrap();
        assert!(last.starts_with(&format!("SR {sr}: 2 merges done, ")), "{said}");
        assert_eq!(images(&world), 1);
        world.ok(&["vdi", "detach", &disk]);
        must_be_as_before(&world, &disk, place);
        let document = world.json(&["sr", "maintain", "images"]);
        assert_eq!(
            (&document["changed"], &document["finished"]),
            (&json!("already"), &json!(true))
        );
    }
}

/// Killed in the middle of a copy: the next run goes on, and nothing is lost.
#[test]
fn a_killed_maintenance_goes_on() {
    for place in PLACES {
        let world = World::with_sr(place);
        let disk = layered(&world);
        let id = "44444444-4444-4444-8444-444444444444";
        let mut child = slow(&world, id);
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        // The disk is whole while half of it is merged, and can be used.
        must_be_as_before(&world, &disk, place);
        let job = world.json(&["job", "show", id]);
        assert_eq!((&job["state"], &job["kind"]), (&json!("interrupted"), &json!("maintain")));
        assert_eq!(job["resumable"], true);
        assert_eq!(images(&world), 3);
        let done = world.json(&["sr", "maintain", "images"]);
        assert_eq!(done["finished"], true, "{done}");
        assert_eq!(done["merged"].as_array().unwrap().len(), 2, "{done}");
        assert_eq!(images(&world), 1);
        must_be_as_before(&world, &disk, place);
        // The job that died finds nothing left to do.
        let resumed = world.json(&["job", "resume", id, "--timeout=20s"]);
        assert_eq!(resumed["state"], "done");
        assert_eq!(resumed["maintained"]["finished"], true);
        let said = world.ok(&["job", "wait", id]);
        assert!(said.ends_with("nothing was merged or deleted"), "{said}");
    }
}

/// Cancelled from elsewhere, or by Ctrl-C: within a second, and what it says helps.
#[test]
fn a_cancelled_maintenance_ends_at_once() {
    for (place, by_signal) in [(PLACES[0], false), (PLACES[1], true)] {
        let world = World::with_sr(place);
        let disk = layered(&world);
        let id = "55555555-5555-4555-8555-555555555555";
        let child = slow(&world, id);
        let begin = Instant::now();
        if by_signal {
            let kill = std::process::Command::new("kill")
                .args(["-s", "INT", &child.id().to_string()])
                .status();
            assert!(kill.unwrap().success());
        } else {
            let said = world.ok(&["job", "cancel", id]);
            assert_eq!(said, format!("job {id} is asked to stop"));
        }
        let output = child.wait_with_output().unwrap();
        let took = begin.elapsed();
        assert_eq!(output.status.code(), Some(15), "{place}: {output:?}");
        assert!(took < Duration::from_secs(20), "{place}: it took {took:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("the maintenance was cancelled: 0 merges are done, "), "{said}");
        assert!(said.contains("hint: what was done stays done; smctl sr maintain "), "{said}");
        let job = world.json(&["job", "show", id]);
        assert_eq!(job["state"], "cancelled");
        assert_eq!(job["maintained"]["stopped"], "cancelled");
        must_be_as_before(&world, &disk, place);
        assert_eq!(world.json(&["sr", "maintain", "images"])["finished"], true);
        must_be_as_before(&world, &disk, place);
    }
}

/// `--time` ends it with what is done by then, as an answer; `--timeout` as an error.
#[test]
fn time_is_a_budget_and_a_timeout_is_an_end() {
    let world = World::with_sr("in-process");
    let disk = layered(&world);
    let done = world.json(&["sr", "maintain", "images", "--rate=1MiB/s", "--time=1s"]);
    assert_eq!((&done["stopped"], &done["finished"]), (&json!("out_of_time"), &json!(false)));
    assert_ne!(done["planned"], json!([]));
    let said = world.ok(&["sr", "maintain", "images", "--rate=1MiB/s", "--time=1s"]);
    assert!(said.contains("to copy, the time was over: smctl sr maintain "), "{said}");
    let words = ["sr", "maintain", "images", "--rate=1MiB/s", "--timeout=500ms"];
    let ran = world.run(&words);
    assert_eq!(ran.status, 16, "{ran:?}");
    must_be_as_before(&world, &disk, "in-process");
}

#[test]
fn an_impossible_budget_is_refused_with_the_reason() {
    let world = World::with_sr("in-process");
    for (option, why) in [
        ("--cpu=101%", "\"101%\" is not a part of a processor: say 1% to 100%"),
        ("--rate=0", "\"0\" is not a rate: it must be above zero"),
        ("--rate=fast", "\"fast\" is not a size"),
        ("--time=1d", "the unit is none of ms, s, m, h"),
        ("--parallel=0", "0 is not in 1..=64"),
    ] {
        let said = world.fails(&["sr", "maintain", "images", option], 2);
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(world.json(&["job", "list"])["jobs"], json!([]));
    let said = world.fails(&["sr", "maintain", "imagse"], 3);
    assert!(said.contains("imagse"), "{said}");
}

#[test]
fn a_reclaim_says_what_came_back() {
    for place in PLACES {
        let world = World::with_sr(place);
        std::fs::write(world.path("in.raw"), vec![7; 8 << 20]).unwrap();
        let disk = world.ok(&["vdi", "import", "in.raw", "--name", "disk"]);
        let said = world.ok(&["vdi", "reclaim", "disk"]);
        assert!(said.starts_with(&format!("VDI {disk} has nothing to give back; 8MiB ")), "{said}");
        let sr = world.json(&["sr", "list"])["srs"][0]["uuid"].as_str().unwrap().to_owned();
        let tree = Tree::open(&world.folder.path().join("images").join(sr)).unwrap();
        let open = tree.open_disk(disk.parse().unwrap(), Mode::Write).unwrap();
        open.write_at(2 << 20, &vec![0; 4 << 20]).unwrap();
        open.flush().unwrap();
        drop(open);
        let said = world.ok(&["vdi", "reclaim", "disk"]);
        assert!(said.starts_with(&format!("VDI {disk} gave back ")), "{said}");
        let again: Value = world.json(&["vdi", "reclaim", "disk"]);
        assert_eq!((&again["changed"], &again["freed"]), (&json!("already"), &json!(0)));
        world.ok(&["vdi", "export", "disk", "out.raw"]);
        let mut expected = vec![7; 8 << 20];
        expected[2 << 20..6 << 20].fill(0);
        assert!(std::fs::read(world.path("out.raw")).unwrap() == expected, "{place}");
    }
}
