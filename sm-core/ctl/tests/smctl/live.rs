//! What is done with a disk while other programs use it, as people type it; and its bytes on their
//! way, with checksums.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world::{PLACES, World};

/// Runs a program that must succeed; what it said.
fn said(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words:?}: {text}{errors}");
    text
}

/// Commands of `qemu-io` on a disk.
fn guest(uri: &str, commands: &[&str]) {
    let mut words = vec!["-f", "raw"];
    for command in commands {
        words.extend(["-c", command]);
    }
    words.push(uri);
    let text = said("qemu-io", &words);
    assert!(!text.contains("failed"), "{commands:?}: {text}");
}

/// `fio` writes and verifies.
fn verified(world: &World, uri: &str, words: &[&str]) {
    let uri = format!("--uri={uri}");
    let mut all = vec!["--name=load", "--ioengine=nbd", &uri, "--verify=crc32c", "--do_verify=1"];
    all.extend(["--verify_state_save=0", "--randseed=7"]);
    all.extend(words);
    let output = Command::new("fio").args(&all).current_dir(world.folder.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("err= 0"), "{text}");
}

/// A server of others with a disk of zeros; ended when dropped.
struct Server(Child);

impl Server {
    fn start(world: &World, name: &str, size: u64) -> (Self, String) {
        let (image, socket) = (world.path(name), world.path(&format!("{name}.socket")));
        std::fs::File::create(&image).unwrap().set_len(size).unwrap();
        let mut server = Command::new("qemu-nbd");
        server.args(["-f", "raw", "--persistent", "--shared=8", "--socket", &socket, &image]);
        let server = Self(server.stdout(Stdio::null()).spawn().unwrap());
        let until = Instant::now() + Duration::from_secs(30);
        while std::os::unix::net::UnixStream::connect(Path::new(&socket)).is_err() {
            assert!(Instant::now() < until, "qemu-nbd does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
        (server, format!("nbd+unix:///?socket={socket}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_a_disk_does_is_counted_limited_and_changed_while_it_does_it() {
    for place in PLACES {
        let world = World::with_sr(place);
        let disk = world.ok(&["vdi", "create", "--name", "d", "--size", "64MiB"]);
        let uri = world.ok(&["vdi", "attach", "d"]);
        guest(&uri, &["write -P 1 0 4M", "read -P 1 0 1M", "flush"]);
        let shown = world.json(&["vdi", "show", "d"]);
        for (kind, bytes) in [("write", 4 << 20), ("read", 1 << 20)] {
            let counter = &shown["datapath"]["statistics"][kind];
            assert_eq!((&counter["bytes"], &counter["errors"]), (&bytes.into(), &0.into()));
            let steps: Vec<(u64, u64)> =
                serde_json::from_value(counter["latency"].clone()).unwrap();
            let count: u64 = steps.iter().map(|step| step.1).sum();
            assert_eq!(counter["operations"], count, "{kind}: each is in the histogram: {steps:?}");
            assert!(count > 0 && steps.is_sorted_by(|one, next| one.0 < next.0), "{steps:?}");
        }

        // A burst of 400 goes at once, and what is more at 200 in a second.
        let limit = ["vdi", "limit", "d", "--operations", "200", "--burst-seconds", "2"];
        let limited = world.json(&limit);
        let rate = serde_json::json!({"per_second": 200, "burst": 400});
        assert_eq!(limited["limits"]["operations"], rate);
        assert_eq!(world.json(&["vdi", "show", "d"])["datapath"]["limits"]["operations"], rate);
        let begin = Instant::now();
        verified(&world, &uri, &["--rw=randwrite", "--bs=4k", "--iodepth=8", "--io_size=1200k"]);
        // 300 writes and as many reads.
        let least = Duration::from_secs(1);
        assert!(begin.elapsed() >= least, "{:?}", begin.elapsed());
        world.ok(&["vdi", "limit", "d"]);

        // While it is written: a snapshot, a merge of what that leaves, and growth.
        let load = {
            let (world, uri) = (&world, uri.as_str());
            let words = ["--rw=randwrite", "--bs=4k", "--iodepth=8", "--offset=32M", "--size=16M"];
            move || verified(world, uri, &[&words[..], &["--io_size=64M"]].concat())
        };
        std::thread::scope(|scope| {
            let load = scope.spawn(load);
            let snapshot = world.ok(&["vdi", "snapshot", "d"]);
            world.ok(&["vdi", "destroy", &snapshot]);
            let merged = world.json(&["sr", "maintain", "images"]);
            assert_eq!(merged["finished"], true, "{merged}");
            let first = &merged["merged"][0];
            assert_eq!((&first["live"], &first["node"]), (&true.into(), &(*disk).into()));
            let grown = world.ok(&["vdi", "resize", "d", "96MiB"]);
            assert!(grown.starts_with(&format!("VDI {disk} has 96MiB")), "{grown}");
            load.join().unwrap();
        });
        assert_eq!(said("nbdinfo", &["--size", &uri]).trim(), (96 << 20).to_string());

        // What has changed by now, while it is written.
        world.ok(&["vdi", "cbt", "enable", "d"]);
        world.ok(&["vdi", "snapshot", "d", "--name", "before"]);
        guest(&uri, &["write -P 7 80M 64k", "write -P 7 90M 512"]);
        let changed = world.json(&["vdi", "cbt", "diff", "before", "d"]);
        assert_eq!((&changed["known"], &changed["changed"]), (&true.into(), &131_072.into()));
        assert_eq!(changed["ranges"][0]["offset"], 80 << 20);
        world.ok(&["vdi", "detach", "d"]);
        assert_eq!(world.json(&["vdi", "cbt", "diff", "before", "d"]), changed);
        assert!(world.ok(&["vdi", "check", "d"]).ends_with("is sound"));
    }
}

#[test]
fn a_disk_is_mirrored_and_its_place_is_taken_by_the_target() {
    let world = World::with_sr("child");
    let size = 32 << 20;
    let disk = world.ok(&["vdi", "create", "--name", "d", "--size", "32MiB"]);
    let uri = world.ok(&["vdi", "attach", "d"]);
    guest(&uri, &["write -P 1 0 16M", "flush"]);
    let (_server, target) = Server::start(&world, "target", size);
    let start = ["vdi", "mirror", "start", "d", &target, "--rate", "1MiB"];
    let begun = world.json(&start);
    assert_eq!(
        (&begun["mirror"]["rate"], &begun["mirror"]["target"]),
        (&(1 << 20).into(), &(*target).into())
    );
    let listed = world.json(&["vdi", "list", "--attached"]);
    assert_eq!(listed["vdis"][0]["datapath"]["mirror"]["phase"], "copying");
    let early = world.fails(&["vdi", "mirror", "switch", "d"], 8);
    assert!(early.contains("is not ready"), "{early}");
    assert_eq!(
        world.json(&["vdi", "mirror", "rate", "d"])["mirror"].get("rate"),
        Some(&Value::Null)
    );
    let ready = world.json(&["vdi", "mirror", "status", "d", "--wait"]);
    let mirror = &ready["mirror"];
    assert_eq!((&mirror["phase"], &mirror["dirty"]), (&"ready".into(), &0.into()), "{ready}");
    assert!(mirror["copied"].as_u64() >= Some(16 << 20), "{ready}");
    // Given up, and begun anew at once.
    assert_eq!(world.json(&["vdi", "mirror", "cancel", "d"])["changed"], "modified");
    assert_eq!(world.json(&["vdi", "mirror", "cancel", "d"])["changed"], "already");
    world.ok(&["vdi", "mirror", "start", "d", &target, "--wait"]);
    verified(
        &world,
        &uri,
        &["--rw=randwrite", "--bs=4k", "--iodepth=8", "--io_size=8M", "--size=8M"],
    );
    guest(&uri, &["write -P 3 20M 64k", "read -P 1 8M 8M"]);
    let switched = world.json(&["vdi", "mirror", "switch", "d", "--verify"]);
    assert_eq!(
        (&switched["moved"]["target"], &switched["moved"]["verified"]),
        (&(*target).into(), &true.into())
    );
    guest(&target, &["read -P 1 8M 8M", "read -P 3 20M 64k", "read -P 0 24M 8M"]);
    let refused = Command::new("qemu-io").args(["-f", "raw", "-c", "read 0 512", &uri]).output();
    assert!(!refused.unwrap().status.success(), "two disks");
    assert!(world.ok(&["vdi", "list", "--attached"]).contains("moved"));
    world.ok(&["vdi", "detach", "d"]);
    let gone = world.fails(&["vdi", "attach", &disk], 12);
    assert!(gone.contains(&*target), "{gone}");
}

#[test]
fn a_disk_is_served_at_an_address_until_that_is_ended() {
    let world = World::with_sr("in-process");
    world.ok(&["vdi", "create", "--name", "d", "--size", "8MiB"]);
    world.ok(&["vdi", "attach", "d"]);
    let open = world.fails(&["vdi", "serve", "d", "--listen", "0.0.0.0:0", "--plain"], 9);
    assert!(open.contains("loopback"), "{open}");
    let served = world.json(&["vdi", "serve", "d", "--listen", "127.0.0.1:0", "--plain"]);
    let uri = served["remote"]["uri"].as_str().unwrap().to_owned();
    assert!(uri.starts_with("nbd://127.0.0.1:"), "{uri}");
    guest(&uri, &["write -P 4 1M 64k", "read -P 4 1M 64k"]);
    assert!(said("qemu-img", &["info", &uri]).contains("8 MiB"));
    assert!(world.ok(&["vdi", "show", "d"]).contains(&uri));
    assert_eq!(world.json(&["vdi", "serve", "d", "--stop"])["changed"], "modified");
    let refused = Command::new("qemu-io").args(["-f", "raw", "-c", "read 0 512", &uri]).output();
    assert!(!refused.unwrap().status.success(), "it is served still");
    world.ok(&["vdi", "detach", "d"]);
}

#[test]
fn bytes_have_the_checksum_that_others_find() {
    let world = World::with_sr("child");
    let source = world.path("in.raw");
    let bytes: Vec<u8> = (0..8_u32 << 20).map(|at| (at * 31 % 251) as u8).collect();
    std::fs::write(&source, bytes).unwrap();
    let sum = said("sha256sum", &[&source]);
    let sum = format!("sha256:{}", sum.split_whitespace().next().unwrap());
    world.ok(&["vdi", "import", &source, "--name", "in", "--checksum", &sum, "--verify"]);
    let wrong = format!("sha256:{}", "0".repeat(64));
    let refused =
        world.fails(&["vdi", "import", &source, "--name", "no", "--checksum", &wrong], 13);
    assert!(refused.contains(&sum), "{refused}");
    assert_eq!(
        world.json(&["vdi", "list"])["vdis"].as_array().unwrap().len(),
        1,
        "nothing is kept"
    );
    let out = world.path("out.vhd");
    let exported = world.json(&["vdi", "export", "in", &out, "--checksum", "--verify"]);
    assert_eq!(exported["checksum"], *sum);
    said("qemu-img", &["compare", "-f", "vpc", "-F", "raw", &out, &source]);
    let two = format!("location={}", world.path("images"));
    world.ok(&["sr", "create", "--driver", "file", "--name", "two", &two]);
    let copy = ["vdi", "copy", "in", "--sr", "images", "--to", "two", "--checksum"];
    let copied = world.json(&copy);
    assert_eq!(copied["checksum"], *sum);
}

/// Of two disks at one point in time: what is written meanwhile waits, and is done when it is over.
#[test]
fn disks_are_paused_until_an_interrupt() {
    let world = World::with_sr("in-process");
    let mut uris = Vec::new();
    for name in ["a", "b"] {
        world.ok(&["vdi", "create", "--name", name, "--size", "8MiB"]);
        uris.push(world.ok(&["vdi", "attach", name]));
    }
    let mut child =
        world.command(&["vdi", "pause", "a", "b"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..2 {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert!(line.ends_with("is paused until Ctrl-C\n"), "{line}");
    }
    let state = |name| {
        let shown = world.json(&["vdi", "show", name]);
        shown["datapath"]["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(["a", "b"].map(state), ["paused", "paused"]);
    let words = ["-f", "raw", "-c", "write -P 5 0 64k", uris[0].as_str()];
    let mut writer = Command::new("qemu-io").args(words).stdout(Stdio::null()).spawn().unwrap();
    let writes = || {
        let shown = world.json(&["vdi", "show", "a"]);
        shown["datapath"]["statistics"]["write"]["operations"].as_u64().unwrap()
    };
    assert_eq!(writes(), 0);
    assert!(writer.try_wait().unwrap().is_none(), "it waits");
    // What else is to be done with them waits as well.
    let busy = world.fails(&["vdi", "snapshot", "a", "--timeout", "300ms"], 8);
    assert!(busy.contains("smctl"), "{busy}");
    let pid = child.id().to_string();
    said("kill", &["-INT", &pid]);
    assert!(child.wait().unwrap().success());
    assert!(writer.wait().unwrap().success());
    assert_eq!((["a", "b"].map(state), writes()), (["active", "active"].map(str::to_owned), 1));
    guest(&uris[0], &["read -P 5 0 64k"]);
    let refused = world.fails(&["vdi", "pause", "a", "no"], 3);
    assert!(refused.contains("no"), "{refused}");
    for name in ["a", "b"] {
        world.ok(&["vdi", "detach", name]);
    }
    let refused = world.fails(&["vdi", "pause", "a"], 14);
    assert!(refused.contains("which could be paused"), "{refused}");
}
