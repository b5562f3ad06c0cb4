//! Cut at any place: between any two commands by SIGKILL of `smctl`, in the middle of one by the loss of
//! the host. Then everything is as before or as after, and nothing is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use conformance::built::artefact;
use lab::{Guest, Lab, kit};
use plugin_sdk::prelude::*;
use plugin_sdk::testing;
use serde_json::Value;

use crate::bench::*;
use crate::user::Smctl;

/// What a scan shows of one round's VDIs (its number ends their names): size, whether it is a
/// snapshot, health.
fn state(scan: &Value, round: &str) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    for vdi in scan["vdis"].as_array().unwrap() {
        let facts = ["virtual_size", "is_a_snapshot", "health", "incomplete", "read_only"];
        let facts: Vec<String> = facts.iter().map(|fact| vdi[*fact].to_string()).collect();
        if let Some(name) = vdi["name"].as_str().unwrap().strip_suffix(round) {
            seen.insert(name.to_owned(), facts.join(" "));
        }
    }
    seen
}

/// Volumes of the group that are no VDI.
fn others(guest: &Guest) -> BTreeSet<String> {
    let volumes = guest.check(["lvs", "--noheadings", "-o", "lv_name"]).unwrap();
    let names = volumes.split_whitespace().filter(|name| !name.starts_with("vdi-"));
    names.map(str::to_owned).collect()
}

struct Scenario {
    what: &'static str,
    /// What is done before. Words that name VDIs (`disk`, `snap`, `new`, `other`) mean those of the
    /// round.
    before: &'static [&'static [&'static str]],
    command: &'static [&'static str],
    steps: &'static [&'static str],
}

const DISK: &[&str] = &["vdi", "create", "--name", "disk", "--size", "16MiB"];
const SNAP: &[&str] = &["vdi", "snapshot", "disk", "--name", "snap"];

const THIN: &[Scenario] = &[
    Scenario {
        what: "create",
        before: &[],
        command: &["vdi", "create", "--name", "new", "--size", "8MiB"],
        steps: &["vdi_create.volume_made"],
    },
    Scenario {
        what: "snapshot",
        before: &[DISK],
        command: &["vdi", "snapshot", "disk", "--name", "new"],
        steps: &["vdi_snapshot.volume_made"],
    },
    Scenario {
        what: "group snapshot",
        before: &[DISK, &["vdi", "create", "--name", "other", "--size", "16MiB"]],
        command: &["vdi", "snapshot", "disk", "other", "--name", "new"],
        steps: &[
            "vdi_group.volume_made",
            "vdi_group.numbers_free",
            "vdi_group.caught",
            "vdi_group.settled",
        ],
    },
    Scenario {
        what: "resize",
        before: &[DISK],
        command: &["vdi", "resize", "disk", "32MiB"],
        steps: &["vdi_resize.recorded", "vdi_resize.extended"],
    },
    Scenario {
        what: "revert",
        before: &[DISK, SNAP, &["vdi", "resize", "disk", "64MiB"]],
        command: &["vdi", "revert", "disk", "snap"],
        steps: &["vdi_revert.new_made", "vdi_revert.old_removed", "vdi_revert.renamed"],
    },
    Scenario {
        what: "rename",
        before: &[DISK],
        command: &["vdi", "rename", "disk", "other"],
        steps: &["vdi_update.written"],
    },
    Scenario {
        what: "destroy",
        before: &[DISK, SNAP],
        command: &["vdi", "destroy", "snap"],
        steps: &["vdi_destroy.removed"],
    },
];

const THICK: &[Scenario] = &[
    Scenario {
        what: "thick create",
        before: &[],
        command: &["vdi", "create", "--name", "new", "--size", "8MiB"],
        steps: &["vdi_create.thick_made", "vdi_create.thick_zeroed", "vdi_create.whole"],
    },
    Scenario {
        what: "thick resize",
        before: &[DISK],
        command: &["vdi", "resize", "disk", "32MiB"],
        steps: &[
            "vdi_resize.recorded",
            "vdi_resize.extended",
            "vdi_resize.zeroed",
            "vdi_create.whole",
        ],
    },
];

/// One command that is cut at one step, with VDIs of its own.
struct Round {
    /// The command and the step.
    what: String,
    step: &'static str,
    /// What the names of its VDIs end with.
    end: String,
    /// The command, with an operation id of its own.
    words: Vec<String>,
    /// Whether it is repeated at once; else a scan comes first, and the repetition late.
    at_once: bool,
}

impl Round {
    /// Does what comes before, and names the VDIs by their UUIDs from then on, as `smctl` itself
    /// would.
    fn prepare(
        smctl: &Smctl<'_>,
        number: usize,
        scenario: &Scenario,
        step: &'static str,
        at_once: bool,
    ) -> Self {
        let end = format!("-{number}-");
        let mut uuids: BTreeMap<&str, String> = BTreeMap::new();
        let named = |uuids: &BTreeMap<&str, String>, words: &[&str]| -> Vec<String> {
            let name = |word: &&str| match (uuids.get(word), *word) {
                (Some(uuid), _) => uuid.clone(),
                (None, "disk" | "snap" | "new" | "other") => format!("{word}{end}"),
                (None, word) => word.to_owned(),
            };
            words.iter().map(name).collect()
        };
        for command in scenario.before {
            let made = smctl.ok(&borrowed(&named(&uuids, command)));
            if let Some(name) = command.iter().position(|word| *word == "--name") {
                uuids.insert(command[name + 1], made);
            }
        }
        let id = OperationId::random().to_string();
        let words =
            [vec!["--operation-id".to_owned(), id], named(&uuids, scenario.command)].concat();
        Self { what: format!("{} at {step}", scenario.what), step, end, words, at_once }
    }

    fn cut(&self, smctl: &Smctl<'_>) {
        let output =
            smctl.call(&borrowed(&self.words)).env("SM_STEP_KILL", self.step).run().unwrap();
        assert_eq!(output.status, 128 + 9, "{}: {}", self.what, output.errors());
    }

    fn repeat(&self, smctl: &Smctl<'_>) {
        smctl.ok(&borrowed(&self.words));
    }
}

fn borrowed(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// Cuts each command at each of its steps, twice: one is repeated at once, the other is left for a
/// scan, which finds all of these at the same time, and repeated after it.
fn cut_everywhere(allocation: &str, scenarios: &[Scenario]) -> lab::Result<()> {
    let lab = Lab::new()?;
    let host = machine(&lab, &[512])?.boot()?;
    let smctl = Smctl::new(&host);
    let allocation_key = format!("allocation={allocation}");
    let create = ["sr", "create", "--driver", "lvm", "--name", "l", "device=/dev/ubda"];
    smctl.ok(&[&create[..], &[&allocation_key]].concat());
    let scan = || smctl.json(&["sr", "scan", "l"]);
    let mut rounds = Vec::new();
    for scenario in scenarios {
        for (step, at_once) in scenario.steps.iter().flat_map(|s| [(*s, false), (*s, true)]) {
            rounds.push(Round::prepare(&smctl, rounds.len(), scenario, step, at_once));
        }
    }
    let (first, volumes) = (scan(), others(&host));
    for round in &rounds {
        round.cut(&smctl);
        if round.at_once {
            round.repeat(&smctl);
        }
    }
    // Somebody looks.
    let scanned = scan();
    assert_eq!(others(&host), volumes, "something is left over");
    let again = scan();
    assert!(is_empty(&again["recovered"]), "the second scan finds work: {again}");
    host.check(["vgck"])?;
    // Late, somebody repeats it.
    for round in rounds.iter().filter(|round| !round.at_once) {
        round.repeat(&smctl);
    }
    let last = scan();
    assert!(is_empty(&last["recovered"]), "the last scan finds work: {last}");
    assert_eq!(others(&host), volumes, "something is left over");
    host.check(["vgck"])?;

    for pair in rounds.chunks(2) {
        let [late, at_once] = pair else { panic!("rounds come in pairs") };
        let what = &late.what;
        let of = |scan: &Value, round: &Round| state(scan, &round.end);
        let (before, seen, after) = (of(&first, late), of(&scanned, late), of(&last, late));
        assert_ne!(before, after, "{what}: it does nothing that is seen");
        assert!(seen == before || seen == after, "{what}:\n{before:?}\n{seen:?}\n{after:?}");
        assert_eq!(of(&again, late), seen, "{what}: a second scan shows something else");
        for scan in [&scanned, &again, &last] {
            assert_eq!(of(scan, at_once), after, "{what}: repeated at once");
        }
    }
    Ok(())
}

fn is_empty(recovered: &Value) -> bool {
    ["completed", "undone", "removed"]
        .iter()
        .all(|field| recovered[*field].as_array().is_none_or(Vec::is_empty))
}

#[test]
fn a_cut_between_any_two_commands_is_as_before_or_as_after() -> lab::Result<()> {
    cut_everywhere("thin", THIN)
}

#[test]
fn a_cut_while_a_thick_volume_is_zeroed_is_as_before_or_as_after() -> lab::Result<()> {
    cut_everywhere("thick", THICK)
}

const CREATE: &[&str] =
    &["sr", "create", "--driver", "lvm", "--name", "l", "device=/dev/ubda", "force=true"];
const DESTROY: &[&str] = &["sr", "destroy", "l"];

/// Lives of an SR. Each command is cut at the step beside it, and repeated with the same id.
const LIVES: &[&[(&[&str], &str)]] = &[
    &[
        (CREATE, "sr_create.wiped"),
        (&["sr", "update", "l", "--description", "d"], "sr_update.written"),
        (&["sr", "detach", "l"], "sr_detach.inactive"),
        (&["sr", "attach", "l"], "sr_attach.pool_active"),
        (DESTROY, "sr_destroy.checked"),
    ],
    &[(CREATE, "sr_create.group_made"), (DESTROY, "sr_destroy.pool_removed")],
    &[(CREATE, "sr_create.pool_made"), (DESTROY, "sr_destroy.group_removed")],
    &[(CREATE, "sr_create.pool_made"), (DESTROY, "sr_destroy.labels_removed")],
];

/// The life of an SR cut at its steps, and every step of the library known to a scenario.
#[test]
fn a_cut_of_what_makes_or_removes_an_sr_is_repeated() -> lab::Result<()> {
    let lab = Lab::new()?;
    let host = machine(&lab, &[128])?.boot()?;
    let smctl = Smctl::new(&host);
    let library = artefact("libsm_driver_lvm.so").display().to_string();
    let inspected = smctl.json(&["driver", "inspect", &library]);
    let steps = inspected["steps"].as_array().unwrap().iter();
    let steps: BTreeSet<String> =
        steps.map(|step| step.as_str().unwrap_or_else(|| panic!("{step}")).to_owned()).collect();

    // Somebody's data, which is erased, as was asked for.
    host.check(["mkfs.ext4", "-q", "-F", "/dev/ubda"])?;
    for life in LIVES {
        for (command, step) in *life {
            let id = OperationId::random().to_string();
            let words = [&["--operation-id", &id][..], command].concat();
            let output = smctl.call(&words).env("SM_STEP_KILL", *step).run()?;
            assert_eq!(output.status, 128 + 9, "{command:?} at {step}: {}", output.errors());
            smctl.ok(&words);
        }
        host.check([
            "sh",
            "-c",
            "test -z \"$(wipefs /dev/ubda)\" || lvm pvs /dev/ubda | grep -q lvm2",
        ])?;
        assert_eq!(host.check(["vgs", "--noheadings"])?, "", "{life:?}");
    }

    let mut known: BTreeSet<String> =
        LIVES.iter().flat_map(|life| life.iter()).map(|(_, step)| (*step).to_owned()).collect();
    for scenario in THIN.iter().chain(THICK) {
        known.extend(scenario.steps.iter().map(|step| (*step).to_owned()));
    }
    // Cut by other tests, or without an effect that another command must follow.
    known.extend(
        [
            "pool.grown",
            "pool.resumed",
            "pool.counted",
            "pool.marked",
            "pool.sent",
            "pool.settled",
            "sr_recover.devices_grown",
            "vdi_activate.active",
            "vdi_activate.read_only",
            "vdi_deactivate.inactive",
            "vdi_deactivate.noted",
            "vdi_introduce.written",
            "vdi_create.removed_what_was_begun",
            "vdi_group.given_up",
            "vdi_group.suspended",
        ]
        .map(str::to_owned),
    );
    // The library has steps of the core and of parts of the host kit that it does not use, too.
    let is_ours = |step: &String| ["sr_", "vdi_", "pool."].iter().any(|of| step.starts_with(of));
    let ours: BTreeSet<String> = steps.into_iter().filter(is_ours).collect();
    assert_eq!(ours, known);
    Ok(())
}

/// The host loses power while LVM changes the group. Which write that is differs from run to run.
#[test]
fn a_host_that_is_lost_in_the_middle_of_a_command_comes_back() -> lab::Result<()> {
    let lab = Lab::new()?;
    let host = machine(&lab, &[256])?.boot()?;
    let smctl = Smctl::new(&host);
    let sr = smctl.ok(&["sr", "create", "--driver", "lvm", "--name", "l", "device=/dev/ubda"]);
    smctl.ok(&["vdi", "create", "--name", "disk", "--size", "32MiB"]);
    let device = smctl.attach(&["disk"]);
    host.check(["mkfs.ext4", "-q", &device])?;
    host.check(["mount", &device, "/mnt"])?;
    host.write("/mnt/file", "precious")?;
    host.check(["umount", "/mnt"])?;
    smctl.ok(&["vdi", "snapshot", "disk", "--name", "snap"]);
    smctl.ok(&["vdi", "detach", "disk"]);
    for command in [
        &["vdi", "snapshot", "disk", "--name", "later"][..],
        &["vdi", "create", "--name", "new", "--size", "8MiB"],
        &["vdi", "resize", "disk", "64MiB"],
        &["vdi", "revert", "disk", "snap"],
        &["vdi", "destroy", "snap"],
    ] {
        let smctl = Smctl::new(&host);
        let running = smctl.call(command).start()?;
        // Not the report, which changes nothing. One process, since each takes time from the other.
        let changing = "exec grep -qsaE 'lvm.(lv|vg)[a-z]+.--c' /proc/[0-9]*/cmdline";
        host.wait_for("a command that changes the group", Duration::from_secs(30), |host| {
            let seen = host.run(["sh", "-c", changing])?.status == 0;
            Ok(if seen { Ok(()) } else { Err(format!("{:?}", running.ended())) })
        })?;
        host.reboot()?;
        let smctl = Smctl::new(&host);
        smctl.ok(&["sr", "introduce", "--driver", "lvm", "--uuid", &sr, "device=/dev/ubda"]);
        smctl.ok(&["sr", "scan", "l"]);
        assert!(is_empty(&smctl.json(&["sr", "scan", "l"])["recovered"]));
        host.check(["vgck", &format!("sm-{sr}")])?;
        let device = smctl.attach(&["disk"]);
        host.check(["mount", &device, "/mnt"])?;
        assert_eq!(host.read("/mnt/file")?, b"precious");
        host.check(["umount", "/mnt"])?;
        smctl.ok(&["vdi", "check", "disk"]);
        smctl.ok(&["vdi", "detach", "disk"]);
    }
    Ok(())
}

/// A recovery is cut itself; the next one goes on. The content is the snapshot's, at once and for good.
#[test]
fn a_recovery_that_is_cut_is_completed_by_the_next() -> lab::Result<()> {
    let lab = Lab::new()?;
    let host = machine(&lab, &[256])?.boot()?;
    let smctl = Smctl::new(&host);
    smctl.ok(&["sr", "create", "--driver", "lvm", "--name", "l", "device=/dev/ubda"]);
    let disk = smctl.ok(&["vdi", "create", "--name", "disk", "--size", "16MiB"]);
    let fill = |word: &str| {
        let device = smctl.attach(&[&disk]);
        let script =
            "printf %s \"$1\" | dd of=\"$2\" bs=512 conv=sync,notrunc oflag=direct status=none";
        host.check(["sh", "-c", script, "sh", word, &device]).unwrap();
        smctl.ok(&["vdi", "detach", &disk]);
    };
    fill("before");
    let snap = smctl.ok(&["vdi", "snapshot", &disk, "--name", "snap"]);
    for (first, second) in [
        ("vdi_revert.new_made", "vdi_revert.old_removed"),
        ("vdi_revert.new_made", "vdi_revert.renamed"),
        ("vdi_revert.old_removed", "vdi_revert.renamed"),
    ] {
        fill("after");
        let cut = |words: &[&str], step: &str| {
            let output = smctl.call(words).env("SM_STEP_KILL", step).run().unwrap();
            assert_eq!(output.status, 128 + 9, "{step}: {}", output.errors());
            // At no time is the disk missing.
            assert!(smctl.vdis().iter().any(|vdi| vdi["uuid"] == *disk), "{step}");
        };
        cut(&["vdi", "revert", &disk, &snap], first);
        cut(&["sr", "scan", "l"], second);
        smctl.ok(&["sr", "scan", "l"]);
        assert!(is_empty(&smctl.json(&["sr", "scan", "l"])["recovered"]));
        let device = smctl.attach(&[&disk]);
        assert_eq!(host.check(["head", "-c", "6", &device])?, "before");
        smctl.ok(&["vdi", "detach", &disk]);
    }
    Ok(())
}

/// A device that does not answer costs a call, and leaves what it would have changed.
#[test]
fn a_disk_that_hangs_ends_the_call_and_not_the_driver() -> lab::Result<()> {
    let lab = Lab::new()?;
    let host = machine(&lab, &[128])?.boot()?;
    let faulty = kit::dm::Faulty::over(&host, "faulty", "/dev/ubda")?;
    let smctl = Smctl::new(&host);
    let device = format!("device={}", faulty.path());
    smctl.ok(&["sr", "create", "--driver", "lvm", "--name", "l", &device]);
    smctl.ok(&["vdi", "create", "--name", "disk", "--size", "8MiB"]);
    faulty.hang()?;
    let words = ["vdi", "create", "--name", "new", "--size", "8MiB", "--timeout", "12s"];
    let output = smctl.call(&words).run()?;
    assert_eq!(output.status, 11, "{}", output.errors());
    let said = format!("{} do not answer within 6 s", faulty.path());
    assert!(output.errors().contains(&said), "{}", output.errors());
    faulty.healthy()?;
    assert_eq!(smctl.vdis().len(), 1);
    let device = smctl.attach(&["disk"]);
    faulty.fail()?;
    // A list of nothing would say that the disks are gone.
    let output = smctl.call(&["vdi", "list"]).run()?;
    assert_eq!(output.status, 3, "{}", output.errors());
    assert!(output.errors().contains("there is no SR"), "{}", output.errors());
    // A guest can let go.
    let disk = device.rsplit_once("vdi-").unwrap().1;
    smctl.ok(&["vdi", "detach", disk]);
    assert_eq!(host.check(["sh", "-c", "dmsetup ls | grep -c -- -vdi--; true"])?, "0");
    faulty.healthy()?;
    // What was active below it has failed for good; as after a boot.
    let pool = "dmsetup ls | cut -f1 | grep pool | sort | while read m; do dmsetup remove $m; done";
    host.command(["sh", "-c", pool]).env("DM_DISABLE_UDEV", "1").check()?;
    smctl.ok(&["sr", "attach", "l"]);
    smctl.ok(&["vdi", "destroy", "disk"]);
    smctl.ok(&["sr", "destroy", "l"]);
    faulty.remove()
}

/// Two changes of one group at the same time: both wait for LVM's own lock, which the test holds
/// until both are there.
#[test]
fn two_operations_at_the_same_time_both_succeed() -> lab::Result<()> {
    lab::in_guest(
        |lab| machine(lab, &[256]),
        || {
            let bench = Bench::with_sr(&[("device", "/dev/ubda")]);
            let disks: Vec<VdiUuid> =
                ["a", "b"].iter().map(|name| bench.create(name, 16 * MIB).uuid).collect();
            let lvms = || {
                let all = std::fs::read_dir("/proc").unwrap().flatten();
                let names = all.map(|entry| std::fs::read_to_string(entry.path().join("comm")));
                names.flatten().filter(|name| name.trim() == "lvm").count()
            };
            let folder = "/run/lock/lvm";
            std::fs::create_dir_all(folder).unwrap();
            let lock = format!("{folder}/V_sm-{}", bench.sr);
            let lock = std::fs::File::options().create(true).append(true).open(lock).unwrap();
            lock.lock().unwrap();
            let other = Bench::open(bench.sr, &[("device", "/dev/ubda")]);
            std::thread::scope(|scope| {
                let taken = scope.spawn(|| bench.call(snapshot(disks[0], "s")));
                let resize = VdiResize { vdi: disks[1], virtual_size: Bytes(32 * MIB) };
                let resized = scope.spawn(|| other.call(resize));
                let end = std::time::Instant::now() + Duration::from_secs(30);
                while lvms() < 2 {
                    assert!(std::time::Instant::now() < end, "they do not meet");
                    std::thread::yield_now();
                }
                lock.unlock().unwrap();
                assert_eq!(taken.join().unwrap().changed, Changed::Created);
                assert_eq!(resized.join().unwrap().vdi.virtual_size, Bytes(32 * MIB));
            });
            assert_eq!(bench.scan().len(), 3);
            sh(&["vgck"]);

            // A recovery leaves alone what somebody is at: his revert is between two commands.
            let group = format!("sm-{}", bench.sr);
            let held =
                std::fs::File::options().write(true).open(format!("/run/lock/sm-lvm/{group}"));
            let held = held.unwrap();
            held.lock_shared().unwrap();
            let (from, name) =
                (format!("{group}/vdi-{}", disks[0]), format!("revert-{}", disks[0]));
            sh(&["lvcreate", "-q", "-s", "-n", &name, &from]);
            assert_eq!(bench.call(SrRecover::default()), SrRecovered::default());
            let begun = testing::run(async {
                bench.driver.call(SrDestroy::default()).budget(Duration::from_millis(300)).await
            });
            let busy = begun.unwrap_err();
            assert_eq!(busy.kind, Kind::DeadlineExceeded);
            assert!(
                busy.hint.as_ref().unwrap().contains("another process works on the SR"),
                "{busy:?}"
            );
            drop(held);
            let recovered = bench.call(SrRecover::default());
            assert_eq!(recovered.completed, [format!("revert of VDI {}", disks[0])]);
            assert_eq!(bench.scan().len(), 3);

            // A volume that LVM was killed upon is suspended: it goes on.
            let device = bench.attach(disks[1], AttachMode::ReadWrite);
            let mapped = std::fs::canonicalize(&device).unwrap().display().to_string();
            let suspend = std::process::Command::new("dmsetup")
                .args(["suspend", &mapped])
                .env("DM_DISABLE_UDEV", "1")
                .status();
            assert!(suspend.unwrap().success());
            let recovered = bench.call(SrRecover::default());
            assert_eq!(
                recovered.completed,
                [format!("vdi-{} was suspended, and goes on", disks[1])]
            );
            write(&device, 0, 1, MIB);
            assert_eq!(bench.call(SrRecover::default()), SrRecovered::default());
        },
    )
}
