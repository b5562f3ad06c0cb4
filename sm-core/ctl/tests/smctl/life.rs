//! Every command, from the first SR to its end.

use serde_json::{Value, json};

use crate::world::{PLACES, World, driver_file};

/// The one value at `pointer` that must be a text.
fn text(document: &Value, pointer: &str) -> String {
    let found = document.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no text at {pointer}: {document}")).to_owned()
}

/// `driver list`, `info` and `inspect` show the same manifest.
#[test]
fn drivers_are_shown() {
    let world = World::empty("in-process");
    assert!(world.ok(&["driver", "list"]).contains("\nfile "));
    let listed = world.json(&["driver", "list"]);
    // Other drivers of the workspace may lie in the same folder.
    let names =
        listed["drivers"].as_array().unwrap().iter().map(|driver| &driver["manifest"]["name"]);
    assert_eq!(names.filter(|name| *name == "file").count(), 1, "{listed}");
    let info = world.json(&["driver", "info", "file"]);
    let file = driver_file();
    let inspected = world.json(&["driver", "inspect", file.to_str().unwrap()]);
    assert_eq!(info["manifest"], inspected["manifest"]);
    assert_eq!(text(&info, "/manifest/name"), "file");
    assert!(world.ok(&["driver", "info", "file"]).contains("location"));
}

/// The whole life of an SR.
#[test]
fn an_sr_lives() {
    for place in PLACES {
        let world = World::empty(place);
        let location = world.location();

        // Found out what can be made, and made it.
        let probed = world.json(&["sr", "probe", "--driver", "file", &location]);
        assert_eq!(probed["items"][0]["complete"], true);
        let line = world.ok(&["sr", "probe", "--driver", "file", &location]);
        assert!(line.contains("sr create --name=NAME --driver=file location="), "{line}");
        let uuid = world.ok(&[
            "sr",
            "create",
            "--driver",
            "file",
            "--name",
            "images",
            "--description",
            "d",
            &format!("device-config:{location}"),
        ]);

        assert!(world.ok(&["sr", "list"]).contains(&uuid));
        assert_eq!(text(&world.json(&["sr", "list"]), "/srs/0/uuid"), uuid);
        let shown = world.json(&["sr", "show", &uuid[..8]]);
        assert_eq!(text(&shown, "/info/health/state"), "ok");
        assert_eq!(text(&shown, "/sr/description"), "d");
        assert!(world.ok(&["sr", "show", "images"]).contains("attached:"));
        assert_eq!(text(&world.json(&["sr", "stat", "images"]), "/uuid"), uuid);
        world.ok(&["sr", "stat", "images"]);

        world.ok(&["sr", "update", "images", "--name", "golden"]);
        assert_eq!(text(&world.json(&["sr", "stat", "golden"]), "/name"), "golden");
        assert_eq!(world.json(&["sr", "scan", "golden"])["vdis"], serde_json::json!([]));

        // Away and back.
        world.ok(&["sr", "detach", "golden"]);
        assert_eq!(world.json(&["sr", "show", "golden"])["info"], Value::Null);
        world.json(&["sr", "attach", "golden"]);
        world.ok(&["sr", "detach", "golden"]);
        let forgot = world.run(&["sr", "forget", "golden"]);
        assert!(forgot.stderr.contains("sr introduce --uuid="), "{forgot:?}");
        assert_eq!(world.json(&["sr", "list"])["srs"], serde_json::json!([]));
        let probed = world.json(&["sr", "probe", "--driver", "file", &location]);
        assert!(probed.to_string().contains(&uuid), "{probed}");
        let words = ["sr", "introduce", "--driver", "file", "--uuid", &uuid, &location];
        assert_eq!(world.ok(&words), uuid);
        assert_eq!(text(&world.json(&["sr", "show", &uuid]), "/sr/name"), "golden");

        world.ok(&["sr", "destroy", "golden"]);
        assert_eq!(world.json(&["sr", "list"])["srs"], serde_json::json!([]));
    }
}

/// The whole life of VDIs, but for the moving of bytes.
#[test]
fn a_vdi_lives() {
    for place in PLACES {
        let world = World::with_sr(place);
        let disk = world.ok(&["vdi", "create", "--name", "disk", "--size", "1GiB"]);
        let raw = world.json(&[
            "vdi", "create", "--name", "raw", "--size", "64MiB", "--format", "raw", "--key", "a=b",
        ]);
        assert_eq!(text(&raw, "/changed"), "created");
        assert_eq!(text(&raw, "/vdi/keys/a"), "b");
        assert_eq!(raw["vdi"]["virtual_size"], 64 << 20);
        assert!(world.ok(&["vdi", "list"]).contains("1GiB"));
        assert_eq!(world.json(&["vdi", "list"])["vdis"].as_array().unwrap().len(), 2);
        assert_eq!(text(&world.json(&["vdi", "show", &disk[..8]]), "/vdi/name"), "disk");

        world.ok(&["vdi", "resize", "disk", "2GiB"]);
        world.ok(&["vdi", "rename", "disk", "web"]);
        world.ok(&["vdi", "set", "web", "--key", "k=v", "--description", "d"]);
        world.ok(&["vdi", "set", "web", "--remove-key", "k", "--key", "l=w"]);
        let shown = world.json(&["vdi", "show", "web"]);
        assert_eq!(shown["vdi"]["keys"], serde_json::json!({"l": "w"}));
        assert_eq!(shown["vdi"]["virtual_size"], 2u64 << 30);

        // Attached, seen, refused, detached.
        let access = world.json(&["vdi", "attach", "web"]);
        assert_eq!(access["activated"], true);
        assert!(
            text(&access, "/access/0/uri").starts_with(&format!("nbd+unix:///{disk}?socket=/"))
        );
        assert!(world.ok(&["vdi", "show", "web"]).contains("smctl: read-write, I/O allowed"));
        let listed = world.json(&["vdi", "list", "--attached"]);
        assert_eq!(listed["vdis"].as_array().unwrap().len(), 1);
        assert_eq!(text(&listed, "/vdis/0/datapath/state"), "active");
        let listed = world.ok(&["vdi", "list", "--attached"]);
        assert!(listed.contains("read-write  active") && listed.ends_with("smctl"), "{listed}");
        let limited = world.ok(&["vdi", "limit", "web", "--operations", "500", "--bytes", "1MiB"]);
        assert!(limited.contains("at most 500 requests/s, 1MiB/s"), "{limited}");
        assert!(world.ok(&["vdi", "show", "web"]).contains("at most 500 requests/s"));
        assert!(world.ok(&["vdi", "limit", "web"]).contains("no limits"));
        let refused = world.fails(&["vdi", "destroy", "web"], 5);
        assert!(refused.contains("is attached by \"smctl\""), "{refused}");
        assert!(
            refused.contains(&format!("\n\nhint: smctl vdi detach {disk} --datapath smctl\n")),
            "{refused}"
        );
        world.ok(&["vdi", "detach", "web"]);
        assert_eq!(text(&world.json(&["vdi", "detach", "web"]), "/changed"), "already");
        let said = world.fails(&["vdi", "limit", "web"], 14);
        assert!(said.contains("has no data path on this host"), "{said}");

        let snapshot = world.ok(&["vdi", "snapshot", "web"]);
        let shown = world.json(&["vdi", "show", &snapshot]);
        assert_eq!(text(&shown, "/vdi/name"), "web", "a snapshot is called as its disk");
        assert_eq!(text(&shown, "/vdi/snapshot_of"), disk);
        let named = world.ok(&["vdi", "snapshot", &disk, "--name", "before"]);
        let clone = world.ok(&["vdi", "clone", "before", "--name", "copy"]);
        world.ok(&["vdi", "revert", &disk, "before"]);
        let forest = world.json(&["vdi", "tree"]).to_string();
        for uuid in [&disk, &snapshot, &named, &clone] {
            assert!(forest.contains(uuid.as_str()));
        }
        assert!(world.ok(&["vdi", "tree", "--ascii"]).is_ascii());
        assert!(world.ok(&["vdi", "check", "copy"]).ends_with("is sound"));
        assert_eq!(world.json(&["vdi", "check", "copy"])["findings"], serde_json::json!([]));

        world.fails(&["sr", "destroy", "images"], 5);
        assert_eq!(text(&world.json(&["vdi", "destroy", "copy"]), "/changed"), "modified");
        assert_eq!(text(&world.json(&["vdi", "destroy", &clone]), "/changed"), "already");
    }
}

/// `--wait` is there until Ctrl-C; the disk is detached then, and that is no failure.
#[test]
fn an_attach_that_waits_ends_with_a_detach() {
    use std::io::{BufRead, BufReader};
    let world = World::with_sr("in-process");
    world.ok(&["vdi", "create", "--name", "d", "--size", "8MiB"]);
    let mut child = world
        .command(&["vdi", "attach", "d", "--wait"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("nbd+unix:///"), "{line}");
    assert!(child.try_wait().unwrap().is_none(), "it waits");
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    assert_eq!(world.json(&["vdi", "show", "d"])["attachment"], Value::Null);
}

/// A second writer is refused, and leaves nothing behind.
#[test]
fn one_writer_at_a_time() {
    for place in PLACES {
        let world = World::with_sr(place);
        world.ok(&["vdi", "create", "--name", "d", "--size", "8MiB"]);
        world.ok(&["vdi", "attach", "d", "--datapath", "vm1"]);
        let refused = world.fails(&["vdi", "attach", "d", "--datapath", "vm2"], 5);
        assert!(refused.contains("is being written by \"vm1\""), "{refused}");
        let shown = world.json(&["vdi", "show", "d"]);
        let held = shown["attachment"]["datapaths"].as_object().unwrap();
        assert_eq!(held.keys().collect::<Vec<_>>(), ["vm1"]);
        let ran = world.run(&["vdi", "detach", "d"]);
        assert!(ran.stderr.contains("still attached: --datapath=vm1"), "{ran:?}");
        world.ok(&["vdi", "detach", "d", "--datapath", "vm1"]);
        assert_eq!(world.json(&["vdi", "show", "d"])["attachment"], Value::Null);
    }
}

/// An image that was laid into the SR's folder by hand is adopted.
#[test]
fn an_image_is_introduced() {
    let world = World::with_sr("in-process");
    let sr = text(&world.json(&["sr", "list"]), "/srs/0/uuid");
    let made = world.ok(&["vdi", "create", "--name", "d", "--size", "8MiB", "--format", "raw"]);
    let folder = world.folder.path().join("images").join(&sr);
    let uuid = "8d0c9f0e-0a3b-4a8e-b1c5-0d9c6b7a5e4f";
    std::fs::copy(folder.join(format!("{made}.raw")), folder.join(format!("{uuid}.raw"))).unwrap();
    assert_eq!(world.ok(&["vdi", "introduce", uuid, "--name", "found"]), uuid);
    assert_eq!(text(&world.json(&["vdi", "show", "found"]), "/vdi/uuid"), uuid);
}

/// Bytes go in and come out the same; each move is a job.
#[test]
fn bytes_are_moved() {
    for place in PLACES {
        let world = World::with_sr(place);
        let source = world.path("in.raw");
        let mut bytes = vec![0u8; 8 << 20];
        bytes[3 << 20..4 << 20].fill(7);
        std::fs::write(&source, &bytes).unwrap();

        let ran = world.run(&["vdi", "import", &source, "--name", "in"]);
        assert_eq!(ran.status, 0, "{ran:?}");
        assert!(ran.stderr.starts_with("8MiB in ") && ran.stderr.lines().count() == 1, "{ran:?}");
        world.ok(&["vdi", "export", "in", &world.path("out.raw")]);
        assert!(std::fs::read(world.path("out.raw")).unwrap() == bytes, "{place}");
        let refused = world.fails(&["vdi", "export", "in", &world.path("out.raw")], 4);
        assert!(refused.contains("out.raw"), "{refused}");
        world.ok(&["vdi", "export", "in", &world.path("out.raw"), "--force"]);
        let exported = world.json(&["vdi", "export", "in", &world.path("out.vhd")]);
        assert_eq!(exported["bytes"], 8 << 20);

        // A VHD is recognised by looking.
        let back = world.json(&["vdi", "import", &world.path("out.vhd"), "--name", "back"]);
        assert_eq!(back["vdi"]["virtual_size"], 8 << 20);
        world.ok(&["vdi", "export", "back", &world.path("back.img")]);
        assert!(std::fs::read(world.path("back.img")).unwrap() == bytes, "{place}");

        let other = world.path("images");
        world.ok(&[
            "sr",
            "create",
            "--driver",
            "file",
            "--name",
            "two",
            &format!("location={other}"),
        ]);
        world.fails(&["vdi", "list"], 2);
        world.ok(&["vdi", "copy", "in", "--sr", "images", "--to", "two", "--name", "moved"]);
        world.ok(&["vdi", "export", "--sr", "two", "moved", &world.path("moved.raw")]);
        assert!(std::fs::read(world.path("moved.raw")).unwrap() == bytes, "{place}");

        let jobs = world.json(&["job", "list"]);
        let jobs = jobs["jobs"].as_array().unwrap();
        assert!(jobs.len() >= 6, "{jobs:?}");
        let import = jobs.iter().find(|job| job["kind"] == "import").unwrap();
        let id = text(import, "/id");
        assert_eq!(text(import, "/state"), "done");
        assert!(world.ok(&["job", "list"]).contains(&id));
        assert!(world.ok(&["job", "show", &id[..8]]).contains("done"));
        world.json(&["job", "wait", &id]);
        world.fails(&["job", "cancel", &id], 4);
        world.fails(&["job", "resume", &id], 4);
    }
}

/// `-` is stdin; its size must be known.
#[test]
fn bytes_come_from_stdin() {
    use std::io::Write;
    let world = World::with_sr("in-process");
    world.fails(&["vdi", "import", "-", "--name", "x"], 2);
    world.fails(&["vdi", "import", "-", "--name", "x", "--size", "1MiB", "--format", "vhd"], 2);
    let words = ["vdi", "import", "-", "--name", "x", "--size", "4MiB"];
    let mut child = world
        .command(&words)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&vec![5; 4 << 20]).unwrap();
    assert!(child.wait().unwrap().success());
    world.ok(&["vdi", "export", "x", &world.path("x.raw")]);
    assert!(std::fs::read(world.path("x.raw")).unwrap() == vec![5; 4 << 20]);
}

/// Groups and limits, as people type them.
#[test]
fn a_group_is_made_caught_and_ended_and_limits_are_kept() {
    for place in PLACES {
        let world = World::with_sr(place);
        for name in ["data", "logs", "other"] {
            world.ok(&["vdi", "create", "--name", name, "--size", "8MiB"]);
        }
        let said = world.ok(&["group", "create", "db 1", "data", "logs"]);
        assert_eq!(said, "group \"db 1\" has 2 VDIs");
        let said = world.ok(&["group", "create", "db 1", "data", "logs"]);
        assert_eq!(said, "group \"db 1\" has 2 VDIs (it was so already)");
        world.fails(&["group", "add", "db 2", "other"], 3);
        world.fails(&["group", "create", "db 2", "data"], 5);
        let groups = world.json(&["group", "list"]);
        assert_eq!(groups["groups"][0]["name"], "db 1");
        assert_eq!(groups["groups"][0]["vdis"].as_array().unwrap().len(), 2);
        let uuids = world.ok(&["group", "snapshot", "db 1", "--name", "nightly"]);
        assert_eq!(uuids.lines().count(), 2);
        for uuid in uuids.lines() {
            let shown = world.ok(&["vdi", "show", uuid]);
            assert!(shown.contains("db 1") && !shown.contains("sm:group"), "{shown}");
        }
        world.ok(&["group", "remove", "db 1", "logs"]);
        let ended = world.json(&["group", "destroy", "db 1"]);
        assert_eq!((&ended["changed"], &ended["group"]["vdis"]), (&json!("modified"), &json!([])));

        let limits = ["vdi", "qos", "data", "--operations", "500", "--bytes", "50MiB"];
        let told = world.json(&limits);
        assert_eq!(told["qos"]["operations"], json!({"per_second": 500}));
        assert_eq!(world.ok(&["vdi", "qos", "data"]), "at most 500 requests/s, 50MiB/s");
        assert!(world.ok(&["vdi", "show", "data"]).contains("500 requests/s"));
        world.fails(&["vdi", "qos", "data", "--burst-seconds", "2"], 2);
        world.fails(&["vdi", "set", "data", "--key", "sm:qos=x"], 7);
        world.ok(&["vdi", "qos", "data", "--none"]);
        assert_eq!(world.ok(&["vdi", "qos", "data"]), "no limits");
    }
}
