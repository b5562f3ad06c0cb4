//! Snapshots of all disks of a VM: with a guest that behaves, one that does not, a storage that is
//! late, and a storage manager that is killed.

use std::fs::File;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde_json::{Value, json};

use crate::fake::{Fake, Say};
use crate::world::{PLACES, Ran, World};

/// So soon a guest goes on when whoever froze it is killed.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(2);

/// Three disks, and a guest behind an agent.
struct Vm {
    world: World,
    fake: Fake,
    sr: String,
}

impl Vm {
    fn new(place: &'static str) -> Self {
        let world = World::with_sr(place);
        for name in ["a", "b", "c"] {
            world.ok(&["vdi", "create", "--name", name, "--size", "8MiB"]);
        }
        let fake = Fake::new(world.folder.path());
        let sr = world.json(&["sr", "show", "images"])["sr"]["uuid"].as_str().unwrap().to_owned();
        Self { world, fake, sr }
    }

    /// The words of a snapshot of all disks.
    fn words<'a>(more: &[&'a str]) -> Vec<&'a str> {
        let mut words = vec!["vm-snapshot", "--disk", "a", "--disk", "b", "--disk", "images/c"];
        words.extend(more);
        words
    }

    fn take(&self, more: &[&str]) -> Value {
        self.world.json(&Self::words(more))
    }

    /// One that fails; what it says.
    fn refused(&self, more: &[&str], status: i32) -> String {
        let ran = self.world.run(&Self::words(more));
        assert_eq!((ran.status, ran.stdout.as_str()), (status, ""), "{ran:?}");
        ran.stderr
    }

    fn agent(&self) -> String {
        self.fake.socket.to_str().unwrap().to_owned()
    }

    fn snapshots(&self) -> Vec<Value> {
        let listed = self.world.json(&["vdi", "list"]);
        let all = listed["vdis"].as_array().unwrap().iter();
        all.filter(|vdi| vdi["is_a_snapshot"] == true).cloned().collect()
    }

    fn sets(&self) -> Vec<Value> {
        self.world.json(&["snapshot-group", "list"])["sets"].as_array().unwrap().clone()
    }

    /// As long as this is held, the storage takes no snapshot.
    fn slow(&self) -> File {
        let path = self.world.folder.path().join("images").join(&self.sr).join(".sm/lock");
        let lock = File::options().create(true).append(true).open(path).unwrap();
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        lock
    }

    /// A snapshot whose guest is at rest and whose storage is slow.
    fn begun(&self, more: &[&str]) -> (Child, File) {
        let held = self.slow();
        let mut command = self.world.command(&Self::words(more));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        self.fake.wait("the guest is not frozen", |guest| guest.frozen > 0);
        (child, held)
    }

    fn goes_on(&self) {
        self.fake.wait("the guest is still frozen", |guest| guest.frozen == 0);
    }
}

#[test]
fn a_set_is_taken_with_its_guest_at_rest_and_says_what_it_is() {
    for place in PLACES {
        let vm = Vm::new(place);
        let agent = vm.agent();
        let document = vm.world.path("document");
        std::fs::write(&document, "<writers/>".repeat(1000)).unwrap();
        let set = vm.take(&["--agent", &agent, "--name", "n", "--metadata", &document]);
        assert_eq!(set["consistency"], "fs-consistent");
        assert_eq!((&set["one_point_in_time"], &set["size"]), (&json!(true), &json!(3)));
        assert_eq!(
            vm.fake.log()[vm.fake.log().len() - 2..],
            ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]
        );
        assert_eq!(vm.fake.guest().frozen, 0);
        let snapshots = vm.snapshots();
        assert_eq!(snapshots.len(), 3);
        for snapshot in &snapshots {
            assert!(snapshot["keys"]["sm:set"].as_str().unwrap().ends_with("f3"), "{snapshot}");
        }

        // What is kept is on the storage.
        vm.world.ok(&["sr", "detach", "images"]);
        vm.world.ok(&["sr", "forget", "images"]);
        let location = vm.world.location();
        let introduce = ["sr", "introduce", "--driver", "file", "--uuid", &vm.sr, &location];
        vm.world.ok(&introduce);
        let id = set["id"].as_str().unwrap();
        let written = vm.world.path("written");
        let shown = vm.world.json(&["snapshot-group", "show", &id[..8], "--metadata", &written]);
        assert_eq!(shown["members"], vm.sets()[0]["members"]);
        assert_eq!((&shown["consistency"], &shown["size"]), (&json!("fs-consistent"), &json!(3)));
        assert_eq!((&shown["system"], &shown["id"]), (&json!("Debian 12"), &set["id"]));
        assert_eq!(std::fs::read(&written).unwrap(), std::fs::read(&document).unwrap());

        vm.world.ok(&["snapshot-group", "destroy", id]);
        assert_eq!((vm.snapshots().len(), vm.sets().len()), (0, 0));
    }
}

#[test]
fn a_set_is_put_back_as_a_whole_and_shown_to_other_hosts() {
    let vm = Vm::new("in-process");
    let file = vm.world.path("one");
    let content = |name: &str, byte: u8| {
        std::fs::write(&file, vec![byte; 1 << 20]).unwrap();
        vm.world.ok(&["vdi", "import", &file, "--name", name, "--size", "8MiB"]);
    };
    content("d", 1);
    content("e", 1);
    let hooks = "true before,true after";
    let words = ["vm-snapshot", "--disk", "d", "--disk", "e", "--name", "s", "--exec", hooks];
    let set = vm.world.json(&words);
    assert_eq!(set["consistency"], "app-consistent");
    let id = set["id"].as_str().unwrap();

    // Another host's installation, which knows the storage only.
    let shown = vm.world.json(&["snapshot-group", "present", id, "--datapath", "backup"]);
    let shown = shown["presented"].as_array().unwrap();
    assert_eq!(shown.len(), 2);
    for one in shown {
        assert_eq!(one["vdi"], one["snapshot"]);
        assert!(!one["access"].as_array().unwrap().is_empty());
    }
    vm.world.ok(&["snapshot-group", "withdraw", id, "--datapath", "backup"]);
    let listed = vm.world.json(&["vdi", "list"])["vdis"].as_array().unwrap().len();
    let shown = vm.world.json(&["snapshot-group", "present", id, "--writable"]);
    assert_ne!(shown["presented"][0]["vdi"], shown["presented"][0]["snapshot"]);
    let by_snapshot = set["members"][1]["snapshot"].as_str().unwrap();
    vm.world.ok(&["snapshot-group", "withdraw", by_snapshot]);
    assert_eq!(vm.world.json(&["vdi", "list"])["vdis"].as_array().unwrap().len(), listed);

    // Nothing is put back while one is in use.
    vm.world.ok(&["vdi", "attach", "e"]);
    let error = vm.world.fails(&["snapshot-group", "revert", id], 5);
    assert!(error.contains("is attached by \"smctl\""), "{error}");
    vm.world.ok(&["vdi", "detach", "e"]);
    vm.world.ok(&["snapshot-group", "revert", id]);
    let members = set["members"].as_array().unwrap();
    let first = members[0]["snapshot"].as_str().unwrap();
    vm.world.ok(&["vdi", "destroy", first]);
    let error = vm.world.fails(&["snapshot-group", "revert", id], 13);
    assert!(error.contains("of the 2 snapshots of the set 1 are there"), "{error}");
}

#[test]
fn a_storage_that_is_late_keeps_no_guest_and_leaves_no_snapshot() {
    for place in PLACES {
        let vm = Vm::new(place);
        let agent = vm.agent();
        let (child, held) = vm.begun(&["--agent", &agent, "--window", "1s"]);
        vm.goes_on();
        drop(held);
        let ran = Ran::from(child.wait_with_output().unwrap());
        assert_eq!((ran.status, ran.stdout.as_str()), (16, ""), "{ran:?}");
        let message =
            "smctl: no snapshot is kept: the storage did not take the snapshots in time\n";
        assert!(ran.stderr.starts_with(message), "{ran:?}");
        assert!(vm.snapshots().is_empty());
        // The next one is as if there had been none.
        assert_eq!(vm.take(&["--agent", &agent])["consistency"], "fs-consistent");
        assert_eq!(vm.snapshots().len(), 3);
    }
}

#[test]
fn a_storage_manager_that_is_killed_keeps_no_guest_and_leaves_no_snapshot() {
    for place in PLACES {
        let vm = Vm::new(place);
        let agent = vm.agent();
        let id = "00000000-0000-4000-8000-00000000000a";
        let more = ["--agent", &agent, "--operation-id", id];
        let (mut child, held) = vm.begun(&more);
        let killed = Instant::now();
        child.kill().unwrap();
        child.wait().unwrap();
        vm.goes_on();
        let waited = killed.elapsed();
        assert!(waited < AT_ONCE, "the guest was at rest for {waited:?} more");
        drop(held);
        // Any command settles it.
        let ran = vm.world.run(&["sr", "show", "images"]);
        assert!(
            ran.stderr.starts_with("smctl: the unfinished snapshot set ")
                && ran.stderr.ends_with(" is destroyed\n")
                || ran.stderr.is_empty(),
            "{ran:?}"
        );
        assert!(vm.snapshots().is_empty());
        let set = vm.take(&more);
        assert_eq!(vm.snapshots().len(), 3);
        // The same wish, the same answer; no guest is asked again.
        let asked = vm.fake.log().len();
        assert_eq!(vm.take(&more), set);
        assert_eq!((vm.fake.log().len(), vm.snapshots().len()), (asked, 3));
    }
}

/// Wherever it is killed, the guest goes on, and what is there is a whole set or nothing.
#[test]
fn a_storage_manager_that_is_killed_at_any_step_keeps_no_guest_and_no_part_of_a_set() {
    for place in PLACES {
        let vm = Vm::new(place);
        let agent = vm.agent();
        let id = |n: usize| format!("00000000-0000-4000-8000-0000000001{n:02}");
        let log = vm.world.path("log");
        let more = |id: &str| -> Vec<String> {
            let words = Vm::words(&["--agent", &agent, "--operation-id", id]);
            words.into_iter().map(str::to_owned).collect()
        };
        let run = |id: &str, step: Option<(&str, &str)>| {
            let words = more(id);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let mut command = vm.world.command(&words);
            command.envs(step);
            Ran::from(command.output().unwrap())
        };
        let ran = run(&id(99), Some(("SM_STEP_LOG", &log)));
        assert_eq!(ran.status, 0, "{ran:?}");
        vm.world.ok(&["snapshot-group", "destroy", ran.stdout.trim()]);
        let visited = std::fs::read_to_string(&log).unwrap();
        let mut steps: Vec<&str> =
            visited.lines().filter(|step| step.starts_with("quiesce.")).collect();
        steps.dedup();
        let known =
            ["recorded", "frozen", "caught", "thawed", "answered", "kept", "marked", "done"];
        assert_eq!(steps, known.map(|step| format!("quiesce.{step}")));
        for (n, step) in steps.into_iter().enumerate() {
            let ran = run(&id(n), Some(("SM_STEP_KILL", step)));
            assert_eq!((ran.status, ran.stdout.as_str()), (-1, ""), "{step}: {ran:?}");
            vm.goes_on();
            // Somebody else's command settles it.
            let sets = vm.sets();
            let left = vm.snapshots().len();
            let kept = ["quiesce.kept", "quiesce.marked", "quiesce.done"].contains(&step);
            assert_eq!((sets.len(), left), if kept { (1, 3) } else { (0, 0) }, "{step}");
            for set in &sets {
                assert_eq!(set["members"].as_array().unwrap().len(), 3, "{step}: {set}");
                assert_eq!(set["consistency"], "fs-consistent", "{step}");
            }
            let ran = run(&id(n), None);
            assert_eq!(ran.status, 0, "{step}: {ran:?}");
            assert_eq!((vm.sets().len(), vm.snapshots().len()), (1, 3), "{step}");
            assert_eq!(vm.fake.guest().frozen, 0);
            vm.world.ok(&["snapshot-group", "destroy", ran.stdout.trim()]);
        }
        // Also the one who clears up is killed.
        for (n, step) in ["given_up", "member_destroyed", "destroyed"].into_iter().enumerate() {
            let id = id(50 + n);
            run(&id, Some(("SM_STEP_KILL", "quiesce.answered")));
            vm.goes_on();
            let mut list = vm.world.command(&["snapshot-group", "list"]);
            let ran =
                Ran::from(list.env("SM_STEP_KILL", format!("quiesce.{step}")).output().unwrap());
            assert_eq!(ran.status, -1, "{step}: {ran:?}");
            let ran = run(&id, None);
            assert_eq!(ran.status, 0, "{step}: {ran:?}");
            assert_eq!((vm.sets().len(), vm.snapshots().len()), (1, 3), "{step}");
            vm.world.ok(&["snapshot-group", "destroy", ran.stdout.trim()]);
        }
    }
}

#[test]
fn a_file_is_kept_with_snapshots_whose_guest_was_not_asked() {
    let vm = Vm::new("in-process");
    let (document, written) = (vm.world.path("document"), vm.world.path("written"));
    std::fs::write(&document, "<backup components/>").unwrap();
    let taken = vm.world.json(&["vdi", "snapshot", "a", "b", "--metadata", &document]);
    let sets = vm.sets();
    assert_eq!(sets.len(), 1);
    let set = &sets[0];
    assert_eq!((&set["size"], &set["document"]), (&json!(2), &json!(20)));
    assert_eq!(
        (&set["consistency"], &set["one_point_in_time"]),
        (&json!("crash-consistent"), &json!(true))
    );
    let first = taken["vdis"][1]["uuid"].as_str().unwrap();
    vm.world.ok(&["snapshot-group", "show", first, "--metadata", &written]);
    assert_eq!(std::fs::read(&written).unwrap(), std::fs::read(&document).unwrap());
    std::fs::write(&document, "x".repeat((256 << 10) + 1)).unwrap();
    let error = vm.world.fails(&["vdi", "snapshot", "c", "--metadata", &document], 7);
    assert!(error.contains("the metadata has 262145 bytes, the limit is 262144"), "{error}");
    assert_eq!(vm.snapshots().len(), 2);
}

#[test]
fn a_guest_has_one_snapshot_at_a_time() {
    let vm = Vm::new("in-process");
    let agent = vm.agent();
    let (child, held) = vm.begun(&["--agent", &agent]);
    let other = vm.world.path("other");
    std::os::unix::fs::symlink(&agent, &other).unwrap();
    let error = vm.refused(&["--agent", &other], 8);
    assert!(error.contains("is in progress"), "{error}");
    drop(held);
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.status, 0, "{ran:?}");
    assert_eq!((vm.snapshots().len(), vm.sets().len()), (3, 1));
}

#[test]
fn what_a_guest_says_against_it_is_told_and_nothing_is_kept() {
    let vm = Vm::new("in-process");
    let agent = vm.agent();
    let veto = "failed to add C:\\: writer SqlServerWriter vetoed";
    vm.fake.instead("guest-fsfreeze-freeze", Say::Error("GenericError", veto));
    let error = vm.refused(&["--agent", &agent], 8);
    assert!(error.contains("no snapshot is kept:") && error.contains("SqlServerWriter"), "{error}");

    let late = "couldn't hold writes: fsfreeze is limited up to 10 seconds: ";
    vm.fake.instead("guest-fsfreeze-thaw", Say::Error("GenericError", late));
    let error = vm.refused(&["--agent", &agent], 8);
    assert!(error.contains("no snapshot is kept:") && error.contains(late.trim()), "{error}");
    assert!(vm.snapshots().is_empty());

    let none = vm.world.path("none");
    let error = vm.refused(&["--agent", &none], 11);
    assert!(error.contains(&format!("nobody answers at {none}")), "{error}");
    assert!(error.contains("hint: is the guest running, and the guest agent in it?"), "{error}");
    let error = vm.refused(&[], 2);
    assert!(error.contains("how is the guest brought to rest?"), "{error}");
    assert!(vm.snapshots().is_empty());

    // Allowed, it says what it is.
    for (more, why) in [
        (vec!["--agent", &none], "nobody answers at"),
        (vec![], "the guest was not asked to come to rest"),
    ] {
        let mut more = more;
        more.push("--allow-crash-consistent");
        let set = vm.take(&more);
        assert_eq!(set["consistency"], "crash-consistent");
        assert_eq!(set["one_point_in_time"], true, "the driver takes them at once");
        if !more.contains(&"--agent") {
            continue;
        }
        assert!(set["notes"][0].as_str().unwrap().contains(why), "{set}");
    }
    vm.fake.instead("guest-fsfreeze-freeze", Say::Error("GenericError", veto));
    let set = vm.take(&["--agent", &agent, "--allow-crash-consistent"]);
    assert_eq!(set["consistency"], "crash-consistent");
    assert!(set["notes"][0].as_str().unwrap().contains("SqlServerWriter"), "{set}");
}

#[test]
fn a_disk_that_cannot_be_snapshot_keeps_all_others_from_it() {
    let vm = Vm::new("in-process");
    let listed = vm.world.json(&["vdi", "list"]);
    let disk = &listed["vdis"][1]["uuid"];
    let image = vm.world.folder.path().join("images").join(&vm.sr);
    let image = image.join(format!("{}.vhd", disk.as_str().unwrap()));
    let (image, after) = (image.to_str().unwrap(), vm.world.path("after"));
    // It is damaged when the guest is at rest.
    let hooks = format!("truncate --size 100 {image},touch {after}");
    let ran = vm.world.run(&Vm::words(&["--exec", &hooks]));
    assert_ne!(ran.status, 0, "{ran:?}");
    assert!(ran.stderr.starts_with("smctl: no snapshot is kept:"), "{ran:?}");
    assert!(std::path::Path::new(&after).exists(), "the guest was not let go on");
    assert!(vm.snapshots().is_empty());
    assert!(vm.sets().is_empty());
}
