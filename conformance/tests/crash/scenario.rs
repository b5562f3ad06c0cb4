//! The commands that are killed.

use super::place::{DISK, FLAT, Place, RAW, SR, State};

/// The operation that makes a snapshot with a log.
const LOGGED: &str = "0be70000-0000-4000-8000-0000000000c0";

/// A command and where it starts from.
pub(crate) struct Scenario {
    pub name: &'static str,
    /// What has happened since the starting point.
    pub before: fn(&Place),
    /// The command.
    pub arguments: fn(&Place) -> Vec<String>,
    /// Whether a state after a crash and a scan, without a retry, is allowed though it is neither
    /// that before nor that after.
    pub unfinished: fn(now: &State, before: &State) -> bool,
}

const fn scenario(name: &'static str, arguments: fn(&Place) -> Vec<String>) -> Scenario {
    Scenario { name, before: |_| {}, arguments, unfinished: |_, _| false }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// An import or copy that was cut leaves a disk that says it is not complete, and may still be
/// attached by nobody; all other disks are as before.
fn incomplete_disk(now: &State, before: &State) -> bool {
    let mut others = now.disks.clone();
    others.retain(|_, told| !told.contains("\"incomplete\":true"));
    now.disks.len() == before.disks.len() + 1
        && others == before.disks
        && now.attached == before.attached
        && now.srs == before.srs
}

/// A cut export leaves a `.partial` file beside the one it was to write.
fn partial_file(now: &State, before: &State) -> bool {
    let mut files = now.files.clone();
    files.retain(|name, _| !(name.starts_with("out/export.raw.") && name.ends_with(".partial")));
    now.disks == before.disks && now.attached == before.attached && files == before.files
}

/// A maintenance that was cut has done a part: every disk is as before, and a later one goes on.
fn maintained_in_part(now: &State, before: &State) -> bool {
    now.disks == before.disks && now.attached == before.attached && now.srs == before.srs
}

/// An attach or detach that was cut may have come half-way: claims are there and a process, or one of
/// them.
fn attachment_only(now: &State, before: &State) -> bool {
    let others = |state: &State| {
        let mut files = state.files.clone();
        files.retain(|name, _| !name.starts_with("run/") && !name.contains("/.sm/open/"));
        files
    };
    now.disks == before.disks && others(now) == others(before) && now.srs == before.srs
}

/// A host that was shut out in part: it is refused, and has some of its claims, or all.
fn shut_out_in_part(now: &State, before: &State) -> bool {
    let others = |state: &State| {
        let mut files = state.files.clone();
        files.retain(|name, _| !name.contains("/.sm/open/") && !name.contains("/.sm/fenced/"));
        files
    };
    now.disks == before.disks && others(now) == others(before) && now.srs == before.srs
}

/// A snapshot that was cut may leave a log of changes that goes when its disk is closed, and of a
/// group a disk that stays on the new leaf it went over to: every disk is as before.
fn taken_back(now: &State, before: &State) -> bool {
    let others = |state: &State| {
        let mut files = state.files.clone();
        files.retain(|name, _| !name.ends_with(".cbtlog") && !name.ends_with("<uuid>.vhd"));
        files
    };
    now.disks == before.disks
        && others(now) == others(before)
        && now.attached == before.attached
        && now.srs == before.srs
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("create", |_| words(&["vdi", "create", "--name", "new", "--size", "4MiB"])),
    scenario("create raw", |_| {
        words(&["vdi", "create", "--name", "new", "--size", "4MiB", "--format", "raw"])
    }),
    scenario("snapshot", |_| words(&["vdi", "snapshot", DISK, "--name", "new"])),
    // While a data path serves it: the leaf has no data, or has some.
    Scenario {
        name: "snapshot of an attached disk",
        before: |place| {
            place.must(&["vdi", "attach", DISK]);
        },
        arguments: |_| words(&["vdi", "snapshot", DISK, "--name", "new"]),
        unfinished: |_, _| false,
    },
    Scenario {
        name: "snapshot of an attached disk with data",
        before: |place| {
            place.write(DISK, 5 << 20, 9);
            place.must(&["vdi", "attach", DISK]);
        },
        arguments: |_| words(&["vdi", "snapshot", DISK, "--name", "new"]),
        unfinished: |_, _| false,
    },
    Scenario {
        name: "snapshot of a tracked disk",
        before: |place| {
            place.must(&["vdi", "cbt", "enable", DISK]);
            place.write(DISK, 5 << 20, 9);
        },
        arguments: |_| words(&["vdi", "snapshot", DISK, "--name", "new"]),
        unfinished: |_, _| false,
    },
    Scenario {
        name: "snapshot of an attached tracked disk",
        before: |place| {
            place.must(&["vdi", "cbt", "enable", DISK]);
            place.write(DISK, 5 << 20, 9);
            place.must(&["vdi", "attach", DISK]);
        },
        arguments: |_| words(&["vdi", "snapshot", DISK, "--name", "new"]),
        unfinished: taken_back,
    },
    // With data, and a raw one.
    Scenario {
        name: "snapshot of several disks",
        before: |place| {
            place.write(DISK, 5 << 20, 9);
            place.must(&["vdi", "cbt", "enable", DISK]);
        },
        arguments: |_| words(&["vdi", "snapshot", DISK, RAW, FLAT, "--name", "new"]),
        unfinished: taken_back,
    },
    // Nothing is switched.
    scenario("snapshot of several disks without data", |_| {
        words(&["vdi", "snapshot", DISK, FLAT, "--name", "new"])
    }),
    Scenario {
        name: "snapshot of several attached disks",
        before: |place| {
            place.write(DISK, 5 << 20, 9);
            place.write(RAW, 5 << 20, 9);
            place.must(&["vdi", "attach", DISK]);
            place.must(&["vdi", "attach", RAW]);
        },
        arguments: |_| words(&["vdi", "snapshot", DISK, RAW, "--name", "new"]),
        unfinished: taken_back,
    },
    scenario("cbt enable", |_| words(&["vdi", "cbt", "enable", DISK])),
    Scenario {
        name: "cbt enable of an attached disk",
        before: |place| {
            place.must(&["vdi", "attach", DISK]);
        },
        arguments: |_| words(&["vdi", "cbt", "enable", DISK]),
        unfinished: |_, _| false,
    },
    Scenario {
        name: "cbt disable of an attached disk",
        before: |place| {
            place.must(&["vdi", "cbt", "enable", DISK]);
            place.must(&["vdi", "attach", DISK]);
        },
        arguments: |_| words(&["vdi", "cbt", "disable", DISK]),
        unfinished: |_, _| false,
    },
    Scenario {
        name: "destroy a snapshot with a log",
        before: |place| {
            place.must(&["vdi", "cbt", "enable", DISK]);
            let operation = ["--operation-id", LOGGED];
            place.must(&[&operation[..], &["vdi", "snapshot", DISK, "--name", "logged"]].concat());
        },
        // By its UUID: a name is nobody's once it is destroyed.
        arguments: |_| {
            let logged: sm_model::OperationId = LOGGED.parse().unwrap();
            words(&["vdi", "destroy", &logged.vdi(0).to_string()])
        },
        unfinished: |_, _| false,
    },
    scenario("snapshot of a raw image", |_| words(&["vdi", "snapshot", FLAT, "--name", "new"])),
    scenario("clone", |_| words(&["vdi", "clone", RAW, "--name", "new"])),
    scenario("clone of a snapshot", |place| {
        words(&["vdi", "clone", &place.snapshot(), "--name", "new"])
    }),
    scenario("revert", |place| words(&["vdi", "revert", DISK, &place.snapshot()])),
    Scenario {
        name: "revert to a snapshot with data",
        before: |place| place.write(&place.snapshot(), 5 << 20, 9),
        arguments: |place| words(&["vdi", "revert", DISK, &place.snapshot()]),
        unfinished: |_, _| false,
    },
    scenario("resize", |_| words(&["vdi", "resize", DISK, "32MiB"])),
    scenario("resize beyond the block table", |_| words(&["vdi", "resize", RAW, "40GiB"])),
    Scenario {
        name: "resize of an attached disk",
        before: |place| {
            place.must(&["vdi", "attach", DISK]);
        },
        arguments: |_| words(&["vdi", "resize", DISK, "32MiB"]),
        unfinished: |_, _| false,
    },
    Scenario {
        name: "resize of an attached disk beyond the block table",
        before: |place| {
            place.must(&["vdi", "attach", RAW]);
        },
        arguments: |_| words(&["vdi", "resize", RAW, "40GiB"]),
        unfinished: |_, _| false,
    },
    scenario("resize raw", |_| words(&["vdi", "resize", FLAT, "32MiB"])),
    scenario("destroy", |_| words(&["vdi", "destroy", DISK])),
    scenario("destroy a snapshot", |place| words(&["vdi", "destroy", &place.snapshot()])),
    scenario("rename", |_| words(&["vdi", "rename", DISK, "renamed"])),
    Scenario {
        name: "introduce",
        before: |place| {
            let from = place.images().join(SR).join(format!("{RAW}.vhd"));
            let to = place.images().join(SR).join("1e7d0000-0000-4000-8000-000000000001.vhd");
            std::fs::copy(from, to).unwrap();
        },
        arguments: |_| {
            words(&["vdi", "introduce", "1e7d0000-0000-4000-8000-000000000001", "--name", "found"])
        },
        unfinished: |_, _| false,
    },
    Scenario {
        name: "import",
        before: |_| {},
        arguments: |place| {
            let file = place.file("pattern.raw").display().to_string();
            words(&["vdi", "import", &file, "--name", "new"])
        },
        unfinished: incomplete_disk,
    },
    Scenario {
        name: "export",
        before: |_| {},
        arguments: |place| {
            let file = place.file("out/export.raw").display().to_string();
            words(&["vdi", "export", DISK, &file])
        },
        unfinished: partial_file,
    },
    Scenario {
        name: "copy",
        before: |_| {},
        arguments: |_| words(&["vdi", "copy", DISK, "--name", "new"]),
        unfinished: incomplete_disk,
    },
    // A base copy whose only child is another one, with two children of its own; and a claim that
    // an earlier boot of this host has left.
    Scenario {
        name: "maintain",
        before: |place| {
            place.must(&["vdi", "destroy", &place.snapshot()]);
            place.claim_before_boot(FLAT);
        },
        arguments: |_| words(&["sr", "maintain", SR]),
        unfinished: maintained_in_part,
    },
    // A disk that is merged into its base copy and takes its place, after that base copy has left.
    Scenario {
        name: "maintain the chain of one disk",
        before: |place| {
            place.must(&["vdi", "destroy", &place.snapshot()]);
            place.must(&["vdi", "destroy", "clone"]);
            place.write(DISK, 5 << 20, 4);
        },
        arguments: |_| words(&["sr", "maintain", SR, "--parallel", "1"]),
        unfinished: maintained_in_part,
    },
    // The same while a data path serves the disk, whose own image names another parent then; and
    // where its own image is merged, by the data path.
    Scenario {
        name: "maintain below an attached disk",
        before: |place| {
            place.must(&["vdi", "destroy", &place.snapshot()]);
            place.must(&["vdi", "attach", DISK]);
        },
        arguments: |_| words(&["sr", "maintain", SR]),
        unfinished: maintained_in_part,
    },
    Scenario {
        name: "maintain an attached disk",
        before: |place| {
            place.must(&["vdi", "destroy", &place.snapshot()]);
            place.must(&["vdi", "destroy", "clone"]);
            place.write(DISK, 5 << 20, 4);
            place.must(&["vdi", "attach", DISK]);
        },
        arguments: |_| words(&["sr", "maintain", SR]),
        unfinished: maintained_in_part,
    },
    // Zeros, and dead space that a longer block table has left.
    Scenario {
        name: "reclaim",
        before: |place| {
            place.must(&["vdi", "resize", RAW, "9GiB"]);
            place.write_zeros(RAW, 2 << 20);
        },
        arguments: |_| words(&["vdi", "reclaim", RAW]),
        unfinished: |_, _| false,
    },
    Scenario {
        name: "reclaim raw",
        before: |place| place.write_zeros(FLAT, 1 << 20),
        arguments: |_| words(&["vdi", "reclaim", FLAT]),
        unfinished: |_, _| false,
    },
    Scenario {
        name: "attach",
        before: |_| {},
        arguments: |_| words(&["vdi", "attach", DISK]),
        unfinished: attachment_only,
    },
    Scenario {
        name: "attach raw",
        before: |_| {},
        arguments: |_| words(&["vdi", "attach", FLAT]),
        unfinished: attachment_only,
    },
    Scenario {
        name: "detach",
        before: |place| {
            place.must(&["vdi", "attach", DISK]);
        },
        arguments: |_| words(&["vdi", "detach", DISK]),
        unfinished: attachment_only,
    },
    Scenario {
        name: "host fence",
        before: |place| {
            place.claim_by("other", DISK);
            place.claim_by("other", FLAT);
        },
        arguments: |_| words(&["host", "fence", "other", "--yes"]),
        unfinished: shut_out_in_part,
    },
    Scenario {
        name: "sr attach of a host that was shut out",
        before: Place::shut_out,
        arguments: |_| words(&["sr", "attach", SR]),
        unfinished: |_, _| false,
    },
    scenario("sr update", |_| words(&["sr", "update", SR, "--name", "renamed"])),
    Scenario {
        name: "sr create",
        before: |_| {},
        arguments: |place| {
            let location = format!("location={}", place.images().display());
            words(&["sr", "create", "--driver", "file", "--name", "second", &location])
        },
        // The folder may be there before the catalog knows it: a probe shows it, a retry goes on.
        unfinished: |now, before| now.disks == before.disks && now.srs == before.srs,
    },
    Scenario {
        name: "sr destroy",
        before: |place| {
            let location = format!("location={}", place.images().display());
            let uuid = "5c000000-0000-4000-8000-000000000002";
            place.must(&[
                "sr", "create", "--driver", "file", "--name", "second", "--uuid", uuid, &location,
            ]);
        },
        arguments: |_| words(&["sr", "destroy", "5c000000-0000-4000-8000-000000000002"]),
        unfinished: |now, before| now.disks == before.disks,
    },
];
