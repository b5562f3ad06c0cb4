//! What is said when something is wrong, and the exit status.

use std::io::Read;
use std::process::Stdio;

use serde_json::Value;

use crate::world::{PLACES, World};

/// An object that does not exist is status 3.
#[test]
fn what_is_not_there() {
    for place in PLACES {
        let world = World::with_sr(place);
        let uuid = "00000000-0000-4000-8000-000000000000";
        assert_eq!(
            world.fails(&["sr", "show", "nothing"], 3),
            "smctl: there is no SR \"nothing\"\n\nhint: smctl sr list shows them\n"
        );
        world.fails(&["sr", "show", uuid], 3);
        world.fails(&["vdi", "show", "nothing"], 3);
        world.fails(&["vdi", "show", uuid], 3);
        world.fails(&["vdi", "resize", uuid, "1GiB"], 3);
        world.fails(&["vdi", "list", "--sr", "nothing"], 3);
        world.fails(&["driver", "info", "nothing"], 3);
        world.fails(&["driver", "inspect", "/nothing.so"], 3);
        world.fails(&["job", "show", uuid], 3);
        world.fails(&["sr", "create", "--driver", "nothing", "--name", "x"], 3);
    }
}

/// A host is shut out of all SRs that can be reached; of the others it is said.
#[test]
fn a_host_that_stays_in_one_sr() {
    let world = World::with_sr("child");
    world.ok(&["sr", "create", "--driver", "file", "--name", "two", &world.location()]);
    let listed = world.json(&["sr", "list"]);
    let uuid = |name: &str| {
        let mut srs = listed["srs"].as_array().unwrap().iter();
        srs.find(|sr| sr["name"] == name).unwrap()["uuid"].as_str().unwrap().to_owned()
    };
    let (one, two) = (uuid("images"), uuid("two"));
    let mark = |sr: &str| {
        let folder = world.folder.path().join("images").join(sr).join(".sm/fenced");
        std::fs::create_dir_all(&folder).unwrap();
        folder.join("xen2.json")
    };
    let said = world.fails(&["host", "fence", "xen2", "--yes"], 3);
    assert!(said.contains("knows no host xen2"), "{said}");

    let text = r#"{"version": 1, "host": "xen2", "by": "xen1", "epoch": 1, "open": []}"#;
    std::fs::write(mark(&two), text).unwrap();
    assert_eq!(world.json(&["host", "fence", "xen2", "--yes"])["srs"][0]["sr"], two.as_str());

    std::fs::write(mark(&one), "{").unwrap();
    let ran = world.run(&["host", "fence", "xen2", "--yes"]);
    assert_eq!(ran.status, 13, "{ran:?}");
    assert!(ran.stdout.contains("host xen2 is shut out of two, epoch 1"), "{ran:?}");
    let path = mark(&one);
    let expected =
        format!("smctl: host xen2 is NOT shut out of images: {} cannot be read\n", path.display());
    assert_eq!(ran.stderr, expected);
    let ran = world.run(&["--json", "host", "fence", "xen2", "--yes"]);
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.status, &told["srs"][0]["sr"]), (13, &two.as_str().into()));
    let failed = &told["failed"][0];
    assert_eq!(
        (&failed["sr"], &failed["error"]["kind"]),
        (&one.as_str().into(), &"corrupt".into())
    );

    std::fs::remove_file(mark(&two)).unwrap();
    world.fails(&["host", "fence", "xen2", "--yes"], 13);
}

/// A name that means several objects lists them.
#[test]
fn what_is_ambiguous() {
    let world = World::with_sr("in-process");
    let first = world.ok(&["vdi", "create", "--name", "same", "--size", "8MiB"]);
    let second = world.ok(&["vdi", "create", "--name", "same", "--size", "8MiB"]);
    let said = world.fails(&["vdi", "show", "same"], 4);
    assert!(said.contains(&first) && said.contains(&second), "{said}");

    for n in 1..=2 {
        let uuid = format!("abcdef00-0000-4000-8000-00000000000{n}");
        world.ok(&["vdi", "create", "--name", "p", "--size", "8MiB", "--uuid", &uuid]);
    }
    let said = world.fails(&["vdi", "show", "abcdef00"], 4);
    assert!(said.contains("abcdef00-0000-4000-8000-000000000001"), "{said}");
    assert!(said.contains("abcdef00-0000-4000-8000-000000000002"), "{said}");

    world.ok(&["sr", "create", "--driver", "file", "--name", "two", &world.location()]);
    let said = world.fails(&["vdi", "list"], 2);
    assert!(said.contains("images") && said.contains("two") && said.contains("--sr SR"), "{said}");
}

/// All missing keys are named at once; an unknown key, and one that is not a key, are refused.
#[test]
fn device_configuration() {
    let world = World::empty("in-process");
    let create = |words: &[&str], status| {
        let mut all = vec!["sr", "create", "--driver", "file", "--name", "x"];
        all.extend(words);
        world.fails(&all, status)
    };
    let said = create(&[], 9);
    assert_eq!(
        said,
        "smctl: the device configuration lacks location\n\nhint: keys of file: location\n"
    );
    let said = world.run(&["--json", "sr", "create", "--driver", "file", "--name", "x"]).stderr;
    let document: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(document["error"]["missing"], serde_json::json!(["location"]));
    assert!(create(&["colour=red", &world.location()], 9).contains("does not know colour"));
    assert!(create(&["location=relative"], 9).contains("an absolute path"));
    assert!(create(&["location"], 2).contains("is not KEY=VALUE"));
    assert!(create(&["location=/a", "location=/b"], 2).contains("given twice"));
    let said = world.fails(&["sr", "create", "--name", "x", &world.location()], 2);
    let (_, found) = said.split_once("hint: drivers found: ").unwrap();
    assert!(found.trim().split(", ").any(|driver| driver == "file"), "{said}");
}

/// Sizes that make no sense are refused with the reason, and nothing is made.
#[test]
fn sizes() {
    for place in PLACES {
        let world = World::with_sr(place);
        let create = |size: &str, status| {
            world.fails(&["vdi", "create", "--name", "x", "--size", size], status)
        };
        assert_eq!(
            create("-1", 2),
            "smctl: --size <SIZE>: \"-1\" is not a size: it must not be negative\n"
        );
        assert!(create("10parsecs", 2).contains("the unit is none of B, KiB"));
        assert!(create("20000PiB", 2).contains("it is above 2^64 bytes"));
        assert!(create("0", 7).starts_with("smctl: the size of a VDI must be above 0\n"));
        let said = create("2041GiB", 7);
        assert!(said.contains("is above the limit of"), "{said}");
        world.ok(&["vdi", "create", "--name", "big", "--size", "2040GiB"]);
        world.fails(&["vdi", "resize", "big", "1GiB"], 7);
        assert_eq!(world.json(&["vdi", "list"])["vdis"].as_array().unwrap().len(), 1);
    }
}

/// The same operation id gets the same answer; with other arguments it is refused.
#[test]
fn operation_ids() {
    for place in PLACES {
        let world = World::with_sr(place);
        let id = "--operation-id=11111111-1111-4111-8111-111111111111";
        let first = world.ok(&["vdi", "create", "--name", "a", "--size", "8MiB", id]);
        let again = world.ok(&["vdi", "create", "--name", "a", "--size", "8MiB", id]);
        assert_eq!(first, again);
        world.fails(&["vdi", "create", "--name", "b", "--size", "8MiB", id], 4);
        assert_eq!(world.json(&["vdi", "list"])["vdis"].as_array().unwrap().len(), 1);
    }
}

/// A driver that dies leaves the outcome open: the error says so, names the operation id, and the
/// command it gives gets the answer.
#[test]
fn an_outcome_that_is_not_known() {
    let world = World::with_sr("child");
    let words = ["vdi", "create", "--name", "a b", "--size", "8MiB"];
    let run = |words: &[&str]| {
        let output = world.command(words).env("SM_STEP_KILL", "vdi_create.committed").output();
        crate::world::Ran::from(output.unwrap())
    };
    let ran = run(&words);
    assert_eq!(ran.status, 17, "{ran:?}");
    let command = ran.stderr.lines().find_map(|line| line.split_once("ask for the same again: "));
    let command = command.unwrap().1;
    assert!(command.ends_with("vdi create --name 'a b' --size 8MiB"), "{command}");
    let option = command.split(' ').find(|word| word.starts_with("--operation-id=")).unwrap();
    let mut again = vec![option];
    again.extend(words);
    let uuid = world.ok(&again);
    let vdis = world.json(&["vdi", "list"]);
    assert_eq!(vdis["vdis"].as_array().unwrap().len(), 1);
    assert_eq!(vdis["vdis"][0]["uuid"], uuid.as_str());

    let document = run(&["--json", "vdi", "create", "--name", "c", "--size", "8MiB"]).stderr;
    let document: Value = serde_json::from_str(&document).unwrap();
    assert!(document["operation_id"].is_string() && document["retry_command"].is_string());
}

/// A damaged image is status 13, and its SR works on.
#[test]
fn a_damaged_image() {
    let world = World::with_sr("in-process");
    let sr = world.json(&["sr", "list"])["srs"][0]["uuid"].as_str().unwrap().to_owned();
    let bad = world.ok(&["vdi", "create", "--name", "bad", "--size", "8MiB"]);
    world.ok(&["vdi", "create", "--name", "good", "--size", "8MiB"]);
    let image = world.folder.path().join("images").join(sr).join(format!("{bad}.vhd"));
    let length = std::fs::metadata(&image).unwrap().len();
    std::fs::write(&image, vec![0; length as usize]).unwrap();
    let list = world.ok(&["vdi", "list"]);
    assert!(list.contains("quarantined: ") && list.contains("good"), "{list}");
    assert!(world.ok(&["vdi", "tree"]).contains("quarantined: "));
    let ran = world.run(&["vdi", "check", &bad]);
    assert_eq!(ran.status, 13, "{ran:?}");
}

/// A reader who goes away early is no error.
#[test]
fn a_broken_pipe() {
    let world = World::with_sr("in-process");
    for n in 0..20 {
        let name = format!("{n}{}", "x".repeat(1000));
        world.ok(&["vdi", "create", "--name", &name, "--size", "8MiB"]);
    }
    for words in
        [&["vdi", "list"][..], &["--json", "vdi", "list"], &["--help"], &["completions", "zsh"]]
    {
        let mut child =
            world.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{words:?}");
        assert_eq!(said, "", "{words:?}");
    }
}

/// A command line that makes no sense is status 2.
#[test]
fn usage() {
    let world = World::empty("in-process");
    for words in [
        &["bogus"][..],
        &["sr", "bogus"],
        &["vdi", "create", "--size", "1GiB"],
        &["vdi", "list", "--timeout", "0s"],
        &["vdi", "list", "--operation-id", "x"],
        &["vdi", "set", "x"],
        &["vdi", "list", "--driver", "file"],
        &["sr", "introduce", "--driver", "file", "--uuid", "x"],
    ] {
        let said = world.fails(words, 2);
        assert!(said.starts_with("smctl: "), "{said}");
    }
    let nothing = world.run(&[]);
    assert_eq!(nothing.status, 2);
    assert!(nothing.stderr.contains("Usage: smctl"));
}

/// Without a colour that was asked for there is none.
#[test]
fn colour() {
    let world = World::with_sr("in-process");
    assert!(!world.ok(&["sr", "list"]).contains('\u{1b}'));
    assert!(world.ok(&["--color", "always", "sr", "list"]).contains("\u{1b}[1m"));
    assert!(!world.ok(&["--help"]).contains('\u{1b}'));
}
