//! `smctl vhd`: tools for files that belong to no SR.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::world::{Ran, World};

const MIB: u64 = 1 << 20;

/// A folder, and no state directory that could be used.
fn world() -> World {
    let world = World::empty("in-process");
    std::fs::write(world.path("state"), "a file, so that nobody can make a folder of it").unwrap();
    world
}

fn tool(package: &str, program: &str, args: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| {
        panic!("{program} cannot be run ({error}): install the package {package}")
    });
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn same(world: &World, left: (&str, &str), right: (&str, &str)) {
    let (a, b) = (world.path(left.0), world.path(right.0));
    let (equal, said) =
        tool("qemu-utils", "qemu-img", &["compare", "-f", left.1, "-F", right.1, &a, &b]);
    assert!(equal, "{left:?} {right:?}: {said}");
}

/// A raw disk with data at both ends, in the middle, and holes.
fn disk(path: &str, size: u64) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (offset, length, byte) in
        [(0, 5000, 1), (3 * MIB + 512, 100_000, 2), (size / 2 + 7, MIB, 3), (size - 700, 700, 4)]
    {
        file.write_all_at(&vec![byte; length as usize], offset).unwrap();
    }
}

/// The files that are being written.
fn parts(world: &World) -> Vec<String> {
    std::fs::read_dir(world.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect()
}

fn patch(path: &str, offset: u64, bytes: &[u8]) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

fn checked(world: &World, args: &[&str]) -> (i32, Value) {
    let mut all = vec!["--json", "vhd", "check"];
    all.extend(args);
    let ran = world.run(&all);
    assert_eq!(ran.stderr, "", "{args:?}");
    (ran.status, serde_json::from_str(&ran.stdout).unwrap())
}

fn codes(document: &Value) -> Vec<&str> {
    let findings = document["findings"].as_array().unwrap();
    findings.iter().map(|finding| finding["code"].as_str().unwrap()).collect()
}

/// Raw, fixed and dynamic each to each, and qemu and libvhdi read them as the same disk.
#[test]
fn every_format_becomes_every_other() {
    let world = world();
    disk(&world.path("a.raw"), 64 * MIB);
    for (from, to, format) in [
        ("a.raw", "b.vhd", "dynamic"),
        ("a.raw", "c.vhd", "fixed"),
        ("b.vhd", "d.vhd", "fixed"),
        ("c.vhd", "e.vhd", "vhd"),
        ("d.vhd", "f.img", "raw"),
        ("e.vhd", "g.raw", "raw"),
    ] {
        world.ok(&["vhd", "convert", from, to, "--to", format]);
        let qemu = if format == "raw" { "raw" } else { "vpc" };
        same(&world, ("a.raw", "raw"), (to, qemu));
        if qemu == "vpc" {
            assert_eq!(checked(&world, &[to]).0, 0, "{to}");
            let (opens, said) = tool("libvhdi-utils", "vhdiinfo", &[&world.path(to)]);
            assert!(opens && said.contains("64 MiB"), "{said}");
        }
    }
    let bytes = |name: &str| std::fs::read(world.path(name)).unwrap();
    assert!(bytes("f.img") == bytes("a.raw") && bytes("g.raw") == bytes("a.raw"));
    // Nothing of the way there is left.
    assert_eq!(parts(&world), [""; 0]);
    assert!(Path::new(&world.path("state")).is_file());
}

/// Also what qemu has written.
#[test]
fn images_of_qemu_are_read() {
    let world = world();
    disk(&world.path("a.raw"), 64 * MIB);
    for (kind, name) in [("dynamic", "b.vhd"), ("fixed", "c.vhd")] {
        let options = format!("subformat={kind},force_size=on");
        let (a, b) = (world.path("a.raw"), world.path(name));
        let args = ["convert", "-f", "raw", "-O", "vpc", "-o", &options, &a, &b];
        assert!(tool("qemu-utils", "qemu-img", &args).0);
        assert_eq!(checked(&world, &[name]).0, 0);
        world.ok(&["vhd", "convert", name, "out.raw", "--to", "raw", "--force"]);
        assert!(std::fs::read(world.path("out.raw")).unwrap() == std::fs::read(&a).unwrap());
        world.ok(&["vhd", "info", name]);
    }
}

/// A disk that is not whole sectors is padded, and said to be.
#[test]
fn an_odd_length_is_padded() {
    let world = world();
    disk(&world.path("a.raw"), 5 * MIB + 100);
    let ran = world.run(&["vhd", "convert", "a.raw", "b.vhd", "--to", "fixed"]);
    assert!(ran.stderr.contains("412 zero bytes were added"), "{ran:?}");
    world.ok(&["vhd", "convert", "b.vhd", "c.raw", "--to", "raw"]);
    let mut wanted = std::fs::read(world.path("a.raw")).unwrap();
    wanted.resize((5 * MIB + 512) as usize, 0);
    assert!(std::fs::read(world.path("c.raw")).unwrap() == wanted);
    world.ok(&["vhd", "convert", "a.raw", "d.raw", "--to", "raw"]);
    assert_eq!(std::fs::metadata(world.path("d.raw")).unwrap().len(), 5 * MIB + 100);
}

/// A raw disk into which its guest has written a VHD stays the raw disk that it is.
#[test]
fn the_format_is_never_guessed() {
    let world = world();
    world.ok(&["vhd", "create", "inner.vhd", "--size", "8MiB"]);
    std::fs::copy(world.path("inner.vhd"), world.path("guest")).unwrap();
    let said = world.fails(&["vhd", "convert", "guest", "out.raw", "--to", "raw"], 2);
    assert!(said.contains("the format of guest is not known") && said.contains("--from"), "{said}");
    world.ok(&["vhd", "convert", "guest", "out.raw", "--to", "raw", "--from", "raw"]);
    let bytes = |name: &str| std::fs::read(world.path(name)).unwrap();
    assert!(bytes("out.raw") == bytes("guest"));
    // By its name it is raw, too.
    std::fs::rename(world.path("guest"), world.path("guest.img")).unwrap();
    world.ok(&["vhd", "convert", "guest.img", "out.vhd", "--to", "fixed"]);
    assert!(bytes("out.vhd")[..bytes("inner.vhd").len()] == bytes("inner.vhd"));
    // And a raw disk is no VHD because its name says so.
    disk(&world.path("named.vhd"), 4 * MIB);
    world.fails(&["vhd", "convert", "named.vhd", "x.raw", "--to", "raw"], 13);
    assert!(!Path::new(&world.path("x.raw")).exists());
}

/// A chain becomes one image; its parents are found by UUID, whatever their names are.
#[test]
fn a_chain_is_flattened() {
    let world = world();
    disk(&world.path("a.raw"), 64 * MIB);
    world.ok(&["vhd", "convert", "a.raw", "base.vhd", "--to", "vhd"]);
    let child = world.ok(&["vhd", "create", "child.vhd", "--parent", "base.vhd"]);
    world.ok(&["vhd", "create", "leaf.vhd", "--parent", "child.vhd", "--size", "70MiB"]);
    std::fs::rename(world.path("child.vhd"), world.path("renamed.vhd")).unwrap();
    let (status, document) = checked(&world, &["leaf.vhd"]);
    assert_eq!((status, document["chain"].as_array().unwrap().len()), (0, 3), "{document}");
    world.ok(&["vhd", "convert", "leaf.vhd", "flat.vhd", "--to", "dynamic"]);
    world.ok(&["vhd", "convert", "leaf.vhd", "flat.raw", "--to", "raw"]);
    same(&world, ("flat.vhd", "vpc"), ("flat.raw", "raw"));
    let mut wanted = std::fs::read(world.path("a.raw")).unwrap();
    wanted.resize(70 * MIB as usize, 0);
    assert!(std::fs::read(world.path("flat.raw")).unwrap() == wanted);

    let info = world.json(&["vhd", "info", "leaf.vhd", "--chain"]);
    assert_eq!(info["parent"]["uuid"], child.as_str());
    assert_eq!(info["parent"]["name"], "child.vhd");
    assert_eq!(info["parent"]["found"], "renamed.vhd");
    assert_eq!(info["chain"].as_array().unwrap().len(), 3);
    assert_eq!(info["virtual_size"], 70 * MIB);
    let text = world.ok(&["vhd", "info", "leaf.vhd", "--chain"]);
    assert!(text.contains("parent found:") && text.contains("differencing"), "{text}");

    std::fs::remove_file(world.path("base.vhd")).unwrap();
    let said = world.fails(&["vhd", "convert", "leaf.vhd", "y.raw", "--to", "raw"], 13);
    assert!(said.contains("is not in .") && said.contains("--parents DIR"), "{said}");
    let info = world.json(&["vhd", "info", "leaf.vhd"]);
    assert_eq!(codes(&info), ["parent-missing"]);
}

/// Nobody's file is replaced unasked, and what is read is never replaced.
#[test]
fn the_target_of_a_conversion_is_safe() {
    let world = world();
    disk(&world.path("a.raw"), 8 * MIB);
    world.ok(&["vhd", "convert", "a.raw", "b.vhd", "--to", "vhd"]);
    std::fs::write(world.path("mine"), "mine").unwrap();
    let said = world.fails(&["vhd", "convert", "b.vhd", "mine", "--to", "raw"], 4);
    assert_eq!(said, "smctl: mine exists\n\nhint: say --force to replace it\n");
    assert_eq!(std::fs::read(world.path("mine")).unwrap(), b"mine");
    world.fails(&["vhd", "convert", "b.vhd", "b.vhd", "--to", "fixed", "--force"], 5);
    world.ok(&["vhd", "create", "c.vhd", "--parent", "b.vhd"]);
    world.fails(&["vhd", "convert", "c.vhd", "b.vhd", "--to", "fixed", "--force"], 5);
    world.fails(&["vhd", "convert", "b.vhd", "images", "--to", "raw", "--force"], 4);
    world.fails(&["vhd", "convert", "b.vhd", "no/where", "--to", "raw"], 3);
    world.fails(&["vhd", "convert", "nothing.vhd", "x", "--to", "raw"], 3);
    world.ok(&["vhd", "convert", "b.vhd", "mine", "--to", "raw", "--force"]);
    assert_eq!(std::fs::metadata(world.path("mine")).unwrap().len(), 8 * MIB);
}

/// A signal ends a conversion, and nothing of it stays.
#[test]
fn a_conversion_that_is_ended_leaves_nothing() {
    let world = world();
    let file = std::fs::File::create(world.path("a.raw")).unwrap();
    // All data, so that it takes its time.
    for n in 0..512 {
        file.write_all_at(&vec![7; MIB as usize], n * MIB).unwrap();
    }
    let words = ["vhd", "convert", "a.raw", "b.vhd", "--to", "vhd"];
    let child = world.command(&words).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while parts(&world).is_empty() {
        assert!(Instant::now() < deadline, "it never begins");
        std::thread::yield_now();
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.status, 15, "{ran:?}");
    world.fails(&["vhd", "convert", "a.raw", "b.vhd", "--to", "vhd", "--timeout", "1ms"], 16);
    assert_eq!(parts(&world), [""; 0]);
    assert!(!Path::new(&world.path("b.vhd")).exists());
}

#[test]
fn images_are_made() {
    let world = world();
    let uuid = world.ok(&["vhd", "create", "a.vhd", "--size", "10GiB"]);
    let info = world.json(&["vhd", "info", "a.vhd"]);
    assert_eq!(info["uuid"], uuid.as_str());
    assert_eq!((&info["type"], &info["virtual_size"]), (&json!("dynamic"), &json!(10_u64 << 30)));
    assert_eq!((&info["blocks_in_use"], &info["batmap"]), (&json!(0), &json!("good")));
    assert_eq!(info["findings"], json!([]));
    let said = world.run(&["vhd", "create", "b.vhd", "--size", "3000001", "--fixed"]);
    assert_eq!((said.status, said.stderr.as_str()), (0, "the size is rounded up to 4MiB\n"));
    assert_eq!(
        checked(&world, &["b.vhd"]),
        (
            0,
            json!({
                "path": "b.vhd", "worst": null, "findings": [],
                "chain": [{"path": "b.vhd", "raw": false}],
            })
        )
    );
    for name in ["a.vhd", "b.vhd"] {
        assert!(tool("qemu-utils", "qemu-img", &["info", "-f", "vpc", &world.path(name)]).0);
        assert!(tool("libvhdi-utils", "vhdiinfo", &[&world.path(name)]).0);
    }
    world.fails(&["vhd", "create", "a.vhd", "--size", "1GiB"], 4);
    world.fails(&["vhd", "create", "c.vhd", "--size", "2041GiB"], 7);
    world.fails(&["vhd", "create", "c.vhd", "--size", "0"], 7);
    world.fails(&["vhd", "create", "c.vhd", "--size", "1GiB", "--parent", "a.vhd"], 7);
    let said = world.fails(&["vhd", "create", "c.vhd", "--size", "1G", "--block-size", "4MiB"], 14);
    assert!(said.contains("only those of 2MiB"), "{said}");
    std::fs::create_dir(world.path("sub")).unwrap();
    world.fails(&["vhd", "create", "sub/c.vhd", "--parent", "a.vhd"], 14);
    assert!(!Path::new(&world.path("c.vhd")).exists());
}

/// Sound, worth a warning, damaged, and not there at all are four answers.
#[test]
fn a_check_tells_by_its_status() {
    let world = world();
    world.ok(&["vhd", "create", "a.vhd", "--size", "64MiB"]);
    assert_eq!(world.ok(&["vhd", "check", "a.vhd"]), "1 file examined: sound");
    patch(&world.path("a.vhd"), 64, &[1]);
    let ran = world.run(&["vhd", "check", "a.vhd"]);
    assert_eq!(ran.status, 18, "{ran:?}");
    assert!(ran.stdout.starts_with("warning: footer-copy-missing: a.vhd: "), "{ran:?}");
    assert!(ran.stdout.ends_with("1 file examined: 1 warning\n"), "{ran:?}");
    assert!(ran.stderr.contains("smctl vhd repair --dry-run a.vhd"), "{ran:?}");
    let (status, document) = checked(&world, &["a.vhd"]);
    assert_eq!((status, &document["worst"]), (18, &json!("warning")));
    assert_eq!(document["findings"][0]["repairable"], true);
    patch(&world.path("a.vhd"), 512, &[1]);
    assert_eq!(checked(&world, &["a.vhd"]).0, 1);
    world.fails(&["vhd", "check", "nothing.vhd"], 3);
    world.fails(&["vhd", "info", "nothing.vhd"], 3);
    assert_eq!(codes(&checked(&world, &["images"]).1), ["not-a-file"]);
    std::os::unix::fs::symlink("a.vhd", world.path("link.vhd")).unwrap();
    assert_eq!(codes(&checked(&world, &["link.vhd"]).1), ["not-a-file"]);
    // What follows no link says what to do instead.
    let said = world.fails(&["vhd", "convert", "link.vhd", "x.raw", "--to", "raw"], 14);
    assert!(said.contains("symbolic link") && said.contains("hint: name the file"), "{said}");
    world.fails(&["vhd", "repair", "link.vhd"], 14);
}

#[test]
fn a_repair_says_what_it_does_and_does_what_it_says() {
    let world = world();
    let path = world.path("a.vhd");
    world.ok(&["vhd", "create", "a.vhd", "--size", "64MiB"]);
    let good = std::fs::read(&path).unwrap();
    assert_eq!(world.ok(&["vhd", "repair", "a.vhd"]), "a.vhd: nothing to repair");
    patch(&path, 64, &[1]);
    let bad = std::fs::read(&path).unwrap();
    let plan = world.json(&["vhd", "repair", "a.vhd", "--dry-run"]);
    let step = &plan["steps"][0];
    assert_eq!(
        (&step["code"], &step["offset"], &step["length"]),
        (&json!("footer-copy-missing"), &json!(0), &json!(512))
    );
    assert_eq!(std::fs::read(&path).unwrap(), bad);
    let text = world.ok(&["vhd", "repair", "a.vhd", "--dry-run"]);
    assert!(text.contains("WOULD WRITE") && text.contains("footer copy"), "{text}");

    let holder = std::fs::File::open(&path).unwrap();
    holder.lock().unwrap();
    let said = world.fails(&["vhd", "repair", "a.vhd"], 5);
    let me = format!("a.vhd is in use: process {} (", std::process::id());
    assert!(said.contains(&me), "{said}");
    drop(holder);

    let done = world.json(&["vhd", "repair", "a.vhd"]);
    assert_eq!((&done["steps"], &done["after"]), (&plan["steps"], &json!([])));
    assert_eq!(std::fs::read(&path).unwrap(), good);

    patch(&path, 512, &[1]);
    let said = world.fails(&["vhd", "repair", "a.vhd"], 13);
    assert!(said.contains("cannot be repaired, nothing was changed: dynamic header"), "{said}");
}

#[test]
fn differences_are_listed() {
    let world = world();
    let size = 64 * MIB;
    disk(&world.path("a.raw"), size);
    world.ok(&["vhd", "convert", "a.raw", "a.vhd", "--to", "vhd"]);
    world.ok(&["vhd", "create", "b.vhd", "--parent", "a.vhd"]);
    let ran = world.run(&["vhd", "diff", "a.vhd", "b.vhd"]);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("OFFSET  LENGTH\n", "no difference\n"));
    let file = std::fs::OpenOptions::new().write(true).open(world.path("a.raw")).unwrap();
    file.write_all_at(&[9; 512], 10 * MIB).unwrap();
    world.ok(&["vhd", "convert", "a.raw", "c.vhd", "--to", "vhd"]);
    let said = world.fails(&["vhd", "diff", "a.vhd", "c.vhd"], 14);
    assert!(said.contains("based on no common image") && said.contains("--content"), "{said}");
    let document = world.json(&["vhd", "diff", "a.vhd", "c.vhd", "--content"]);
    assert_eq!(document["extents"], json!([{"offset": 10 * MIB, "length": 512}]));
    assert_eq!((&document["relation"], &document["bytes"]), (&json!("unrelated"), &json!(512)));
    let ran = world.run(&["vhd", "diff", "a.vhd", "c.vhd", "--content"]);
    assert_eq!(ran.stdout, "  OFFSET  LENGTH\n10485760     512\n");
    assert_eq!(ran.stderr, "512B in 1 ranges differ\n");
}

/// Files that were made to hurt: an answer at once, in words that cannot steer a terminal.
#[test]
fn hostile_files_get_an_answer_at_once() {
    let world = world();
    let path = world.path("a.vhd");
    // A parent of its own, a name with an escape, and a locator to a file of this host.
    world.ok(&["vhd", "create", "base.vhd", "--size", "64MiB"]);
    world.ok(&["vhd", "create", "a.vhd", "--parent", "base.vhd"]);
    let good = std::fs::read(&path).unwrap();
    let sum = |bytes: &mut [u8]| {
        bytes[512 + 36..512 + 40].fill(0);
        let sum = !bytes[512..1536].iter().map(|byte| u32::from(*byte)).sum::<u32>();
        bytes[512 + 36..512 + 40].copy_from_slice(&sum.to_be_bytes());
    };
    let change = |at: usize, with: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        sum(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
    };
    let start = Instant::now();
    // Its own parent.
    change(512 + 40, &good[68..84]);
    assert_eq!(codes(&checked(&world, &["a.vhd"]).1), ["own-parent"]);
    // The null UUID: a raw file, which only a person may name.
    change(512 + 40, &[0; 16]);
    assert_eq!(codes(&checked(&world, &["a.vhd"]).1), ["parent-raw"]);
    let said = world.fails(&["vhd", "convert", "a.vhd", "x.raw", "--to", "raw"], 13);
    assert!(said.contains("--raw-parent FILE"), "{said}");
    disk(&world.path("r.raw"), 64 * MIB);
    world.ok(&["vhd", "convert", "a.vhd", "x.raw", "--to", "raw", "--raw-parent", "r.raw"]);
    assert!(
        std::fs::read(world.path("x.raw")).unwrap() == std::fs::read(world.path("r.raw")).unwrap()
    );
    // A locator of 4 GiB.
    change(512 + 576 + 8, &[0xff; 4]);
    assert_eq!(codes(&checked(&world, &["a.vhd"]).1), ["locator-range"]);
    // A table of 16 GiB.
    change(512 + 28, &[0xff; 4]);
    assert_eq!(codes(&checked(&world, &["a.vhd"]).1), ["table-outside"]);
    // A name that would clear the screen.
    change(512 + 64, &[0, 0x1b, 0, b'[', 0, b'2', 0, b'J', 0, 0]);
    std::fs::remove_file(world.path("base.vhd")).unwrap();
    for words in [&["vhd", "info", "a.vhd"][..], &["vhd", "check", "a.vhd"]] {
        let ran = world.run(words);
        assert!(!ran.stdout.contains('\u{1b}') && ran.stdout.contains("1b}[2J"), "{ran:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}
