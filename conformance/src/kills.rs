//! `kill -9` of an array's driver at each of its steps, between what it asks of the array and what
//! it notes.
//!
//! The real `smctl` runs the real library in a process of its own, against an array that a test
//! simulates. A story from the SR's creation to its end is told once to learn by which steps each
//! command comes; then again and again, with each command killed at another one of its steps and
//! repeated with the same operation id, until all have had their turn.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::built::artefact;

/// The array of a story.
pub trait SimulatedArray {
    /// `key=value` of the device configuration of an SR on it.
    fn keys(&self) -> Vec<String>;

    /// All objects on it: what a leak is looked for in.
    fn objects(&self) -> String;
}

/// What is typed, and the VDIs that there are then.
type Chapter = (&'static [&'static str], &'static [&'static str]);

/// A revert comes before the clones: on some arrays what a clone hangs on is a newer snapshot.
const STORY: [Chapter; 16] = [
    (&["vdi", "create", "--name", "disk", "--size", "30MiB"], &["disk"]),
    (&["vdi", "snapshot", "disk", "--name", "snap"], &["disk", "snap"]),
    (&["vdi", "revert", "disk", "snap"], &["disk", "snap"]),
    (&["vdi", "clone", "disk", "--name", "second"], &["disk", "second", "snap"]),
    (&["vdi", "clone", "snap", "--name", "third"], &["disk", "second", "snap", "third"]),
    (&["vdi", "resize", "disk", "60MiB"], &["disk", "second", "snap", "third"]),
    (&["vdi", "destroy", "disk"], &["second", "snap", "third"]),
    (&["vdi", "destroy", "snap"], &["second", "third"]),
    (&["vdi", "destroy", "second"], &["third"]),
    (&["vdi", "destroy", "third"], &[]),
    // Without a snapshot that a user sees: the clone takes the place of what it hangs on.
    (&["vdi", "create", "--name", "last", "--size", "30MiB"], &["last"]),
    (&["vdi", "clone", "last", "--name", "fourth"], &["fourth", "last"]),
    (&["vdi", "destroy", "last"], &["fourth"]),
    (&["vdi", "snapshot", "fourth", "--name", "again"], &["again", "fourth"]),
    (&["vdi", "destroy", "again"], &["fourth"]),
    (&["vdi", "destroy", "fourth"], &[]),
];

/// Exit status of smctl for an outcome that nobody knows.
const UNKNOWN: i32 = 17;

/// A folder with the state of one story.
struct Place {
    folder: PathBuf,
    /// What the environment says of steps.
    log: PathBuf,
}

impl Place {
    fn smctl(&self, words: &[&str]) -> Command {
        let mut command = Command::new(artefact("smctl"));
        command.env("SMCTL_STATE_DIR", self.folder.join("state"));
        command.env("SM_RUN_DIR", self.folder.join("run"));
        command.args(["--isolation", "child"]).args(words);
        command
    }

    /// Types a command under an operation id; killed at a step, if one is armed, and then repeated.
    /// Answers the steps by which it came, or whether it was killed.
    fn tell(&self, id: usize, words: &[&str], armed: Option<&str>) -> Told {
        let id = format!("0be70000-0000-4000-8000-{id:012}");
        let words = [&["--operation-id", &id][..], words].concat();
        let mut killed = false;
        if let Some(armed) = armed {
            let output = self.smctl(&words).env(VARIABLE, armed).output();
            let code = output.as_ref().ok().and_then(|output| output.status.code());
            killed = code != Some(0);
            let said = || format!("{words:?} killed at {armed}: {output:?}");
            assert!(!killed || code == Some(UNKNOWN), "{}", said());
        }
        // The driver's process is another user's, where the test is root's.
        let emptied = std::fs::write(&self.log, "").and_then(|()| {
            std::fs::set_permissions(&self.log, std::fs::Permissions::from_mode(0o666))
        });
        assert!(emptied.is_ok(), "{}: {emptied:?}", self.log.display());
        let output = self.smctl(&words).env(LOG, &self.log).output();
        let ended = output.as_ref().is_ok_and(|output| output.status.success());
        assert!(ended, "{words:?}, after a kill at {armed:?}: {output:?}");
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        Told { killed, steps: log.lines().map(str::to_owned).collect() }
    }

    /// Names of all VDIs, each with its UUID.
    fn vdis(&self) -> Vec<(String, String)> {
        let output = self.smctl(&["--json", "vdi", "list"]).output();
        let text = output.as_ref().map(|output| output.stdout.clone()).unwrap_or_default();
        let list: Value = serde_json::from_slice(&text).unwrap_or_default();
        let all = list.get("vdis").and_then(Value::as_array).cloned().unwrap_or_default();
        let name = |vdi: &Value| {
            let is_well = vdi.pointer("/health/state").is_none_or(|state| state == "ok");
            assert!(is_well, "{vdi}");
            let text = |key: &str| vdi.get(key).and_then(Value::as_str).unwrap_or_default();
            (text("name").to_owned(), text("uuid").to_owned())
        };
        let mut names: Vec<(String, String)> = all.iter().map(name).collect();
        names.sort();
        names
    }
}

/// The variables of the crate `sm-step`.
const VARIABLE: &str = "SM_STEP_KILL";
/// See [`VARIABLE`].
const LOG: &str = "SM_STEP_LOG";

struct Told {
    killed: bool,
    steps: Vec<String>,
}

/// Tells the story once; `armed` says at which step each command dies. Answers what each came by.
fn tell<A: SimulatedArray>(
    library: &str,
    start: &impl Fn(&Path) -> A,
    armed: impl Fn(usize) -> Option<String>,
    killed: &Mutex<BTreeSet<String>>,
) -> Vec<Vec<String>> {
    let folder = tempfile::tempdir().map(tempfile::TempDir::keep).unwrap_or_default();
    // The driver's process is another user's, where the test is root's.
    let opened = std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755));
    assert!(opened.is_ok(), "{}: {opened:?}", folder.display());
    let array = start(&folder);
    let before = array.objects();
    let place = Place { log: folder.join("steps"), folder: folder.clone() };
    let driver = artefact(library).display().to_string();
    let keys = array.keys();
    let mut create = vec!["sr", "create", "--driver", driver.as_str(), "--name", "vms"];
    create.extend(keys.iter().map(String::as_str));
    let destroy: &[&str] = &["sr", "destroy", "vms"];
    let mut commands: Vec<(&[&str], &[&str])> = vec![(&create, &[])];
    commands.extend(STORY);
    commands.push((destroy, &[]));
    let mut visits = Vec::new();
    for (n, (words, vdis)) in commands.iter().enumerate() {
        let step = armed(n);
        // A name is gone with its VDI, and a command that is repeated must find what it is about.
        let all = if words.contains(&"destroy") { place.vdis() } else { Vec::new() };
        let typed: Vec<&str> = words
            .iter()
            .map(|word| {
                all.iter().find(|(name, _)| name == word).map_or(*word, |(_, uuid)| uuid.as_str())
            })
            .collect();
        let told = place.tell(n, &typed, step.as_deref());
        if let (true, Some(step)) = (told.killed, &step) {
            let name = step.split(':').next().unwrap_or_default().to_owned();
            killed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(name);
        }
        if *words != destroy {
            let names: Vec<String> = place.vdis().into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, *vdis, "{words:?}, killed at {step:?}");
        }
        visits.push(told.steps);
    }
    assert_eq!(array.objects(), before, "what is not ours, and nothing else");
    drop(array);
    let _ = std::fs::remove_dir_all(&folder);
    visits
}

/// Kills the driver of that library at each step of each command. Answers the names of the steps.
///
/// # Panics
/// If a repeated command fails, if there is another number of objects than there should be, or if
/// anything is left on the array in the end.
pub fn at_each_step<A: SimulatedArray>(
    library: &str,
    start: impl Fn(&Path) -> A + Sync,
) -> BTreeSet<String> {
    let killed = Mutex::new(BTreeSet::new());
    let visits = tell(library, &start, |_| None, &killed);
    let turns: Vec<Vec<String>> = visits.iter().map(|steps| of_driver(library, steps)).collect();
    let stories = turns.iter().map(Vec::len).max().unwrap_or_default();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= stories {
                        return;
                    }
                    let armed = |n: usize| turns.get(n)?.get(turn).cloned();
                    tell(library, &start, armed, &killed);
                }
            });
        }
    });
    let killed = killed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    println!("{library}: {stories} stories, killed at {killed:?}");
    killed
}

/// The first two visits of each step that is the kit's or the driver's own, `NAME.` of
/// `libsm_driver_NAME.so`.
fn of_driver(library: &str, steps: &[String]) -> Vec<String> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let name = library.trim_start_matches("libsm_driver_").trim_end_matches(".so");
    let driver = format!("{name}.");
    let own = steps.iter().filter(|step| step.starts_with("array") || step.contains(&driver));
    own.filter_map(|step| {
        let visit = seen.entry(step).or_default();
        *visit += 1;
        (*visit <= 2).then(|| format!("{step}:{visit}"))
    })
    .collect()
}
