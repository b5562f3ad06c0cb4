//! LVM's own commands, killed in the middle: at what they ask of device-mapper when they suspend a
//! volume, tell the pool of a change, and tell it the change's number.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use plugin_sdk::prelude::*;
use plugin_sdk::testing;

use crate::bench::*;

/// What the next command of a name is to suffer: `NAME CALL AFTERWARDS`.
const ORDER: &str = "/run/kill";
/// What the killed command has asked of the kernel.
const TRACE: &str = "/run/kill.trace";
/// While it is there, no command of LVM works: as if the driver had died with the command.
const DEAD: &str = "/run/kill.dead";

/// Takes the place of `lvm` in the way to it.
fn install() {
    let lvm = sh(&["sh", "-c", "command -v lvm"]);
    let path = sh(&["sh", "-c", "echo $PATH"]);
    let folder = path.split(':').next().unwrap();
    assert_ne!(Path::new(&lvm).parent(), Some(Path::new(folder)), "nothing comes before {lvm}");
    fs::create_dir_all(folder).unwrap();
    let place = format!("{folder}/lvm");
    let script = format!(
        "#!/bin/sh\n\
         test ! -e {DEAD} || exit 5\n\
         if test -e {ORDER}; then\n\
           read -r name call afterwards < {ORDER}\n\
           if test \"$1\" = \"$name\"; then\n\
             rm {ORDER}\n\
             test \"$afterwards\" != dead || touch {DEAD}\n\
             test \"$call\" = 0 || kill=\"-e inject=ioctl:signal=KILL:when=$call\"\n\
             exec strace -f -o {TRACE} -e trace=ioctl $kill {lvm} \"$@\"\n\
           fi\n\
         fi\n\
         exec {lvm} \"$@\"\n"
    );
    fs::write(&place, script).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
}

fn order(command: &str, call: usize, dead: bool) {
    let afterwards = if dead { "dead" } else { "alive" };
    fs::write(ORDER, format!("{command} {call} {afterwards}\n")).unwrap();
}

/// Those of a command's calls with one of these names, counted from 1.
fn calls(names: &[&str]) -> Vec<usize> {
    let trace = fs::read_to_string(TRACE).unwrap();
    let calls = trace.lines().filter(|line| line.contains("ioctl("));
    let mut found = Vec::new();
    for (at, line) in calls.enumerate() {
        if names.iter().any(|name| line.contains(name)) {
            found.push(at + 1);
        }
    }
    found
}

/// The number of the last change, as LVM has it and as the pool has it.
fn changes(bench: &Bench) -> (String, String) {
    let pool = format!("sm-{}/pool", bench.sr);
    let recorded = sh(&["lvs", "--noheadings", "-o", "transaction_id", &pool]);
    let status = sh(&["sh", "-c", "dmsetup status --target thin-pool | cut -d' ' -f5"]);
    (recorded, status)
}

/// A call that is cut, with all that it needs anew for each cut.
enum Act {
    Create(VdiCreate),
    Snapshot(VdiSnapshot),
    Destroy(VdiDestroy),
}

impl Act {
    fn call(&self, bench: &Bench, id: OperationId) -> Result<()> {
        testing::run(async {
            match self {
                Self::Create(request) => {
                    bench.driver.call(request.clone()).operation_id(id).await.map(drop)
                }
                Self::Snapshot(request) => {
                    bench.driver.call(request.clone()).operation_id(id).await.map(drop)
                }
                Self::Destroy(request) => {
                    bench.driver.call(request.clone()).operation_id(id).await.map(drop)
                }
            }
        })
    }

    /// The VDI that is there when it is done.
    fn made(&self) -> Option<VdiUuid> {
        match self {
            Self::Create(request) => Some(request.uuid),
            Self::Snapshot(request) => Some(request.snapshots[0].uuid),
            Self::Destroy(_) => None,
        }
    }
}

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dead {
    /// The command.
    Command,
    /// The driver with it.
    Driver,
    /// The driver with it, and once more in the recovery.
    Recovery,
}

type Make = fn(&Bench, VdiUuid) -> Act;

/// What is done, by which command, to what LVM asks of device-mapper for it.
const ACTS: &[(&str, &str, Make)] = &[
    ("create", "lvcreate", |_, _| Act::Create(create("new", 8 * MIB))),
    ("snapshot of an active disk", "lvcreate", |_, disk| Act::Snapshot(snapshot(disk, "snap"))),
    ("destroy", "lvremove", |bench, _| {
        let vdi = bench.create("gone", 8 * MIB).uuid;
        Act::Destroy(VdiDestroy { vdi })
    }),
];

#[test]
fn what_a_killed_command_of_lvm_has_begun_is_ended_by_the_driver() -> lab::Result<()> {
    lab::in_guest(
        |lab| machine(lab, &[512]),
        || {
            let bench = Bench::with_sr(&[("device", "/dev/ubda")]);
            install();
            let disk = bench.create("disk", 16 * MIB).uuid;
            let device = bench.attach(disk, AttachMode::ReadWrite);
            write(&device, 0, 7, 8192);
            let mut open = 0;
            for (what, command, make) in ACTS {
                order(command, 0, false);
                make(&bench, disk).call(&bench, OperationId::random()).unwrap();
                let told = calls(&["DM_TARGET_MSG"]);
                let [message, number] = told[..] else { panic!("{what}: {told:?}") };
                let mut cuts = vec![
                    (message - 1, Dead::Recovery),
                    (message, Dead::Driver),
                    (message, Dead::Command),
                    (number, Dead::Command),
                ];
                cuts.extend(calls(&["DM_DEV_SUSPEND"]).first().map(|call| (*call, Dead::Driver)));
                for (call, dead) in cuts {
                    open += cut(&bench, what, command, &make(&bench, disk), call, dead);
                    // The disk that is in use goes on.
                    write(&device, 8192, 8, 4096);
                }
            }
            assert!(open >= 5, "only {open} of all cuts were where LVM and the pool differ");
            assert!(is_all(&device, 0, 7, 8192));
            bench.detach(disk);
            for vdi in bench.scan().into_keys() {
                bench.done(VdiDestroy { vdi });
            }
            assert_eq!(sh(&["dmsetup", "status", "--target", "thin"]), "");
            bench.done(SrDetach::default());
            bench.done(SrDestroy::default());
        },
    )
}

/// Cuts a call, and looks at all after it. Whether LVM and the pool differed then.
fn cut(bench: &Bench, what: &str, command: &str, act: &Act, call: usize, dead: Dead) -> usize {
    let what = format!("{what}, {command} killed at {call}, with it: {dead:?}");
    let id = OperationId::random();
    order(command, call, dead != Dead::Command);
    let error = act.call(bench, id).unwrap_err();
    assert_eq!(
        (&error.kind, error.message.as_str()),
        (&Kind::Internal, "lvm was ended by signal 9")
    );
    let mut differed = 0;
    if dead != Dead::Command {
        let (recorded, done) = changes(bench);
        differed = usize::from(recorded != done);
        fs::remove_file(DEAD).unwrap();
        if dead == Dead::Recovery {
            order("lvremove", 1, true);
            // It may say that it was cut, or leave the rest to the next one.
            let _ = testing::run(async { bench.driver.call(SrRecover::default()).await });
            fs::remove_file(DEAD).unwrap();
        }
        let recovered = bench.call(SrRecover::default());
        println!("{what}: {recovered:?}");
        let done = recovered.completed.len() + recovered.undone.len();
        assert!(differed == 0 || done > 0, "{what}: {recovered:?}");
        let again = bench.call(SrRecover::default());
        assert_eq!(again, SrRecovered::default(), "{what}");
    }
    let (recorded, done) = changes(bench);
    assert_eq!(recorded, done, "{what}");
    // Whatever was seen in between, the same wish is granted.
    act.call(bench, id).unwrap_or_else(|error| panic!("{what}: {error}"));
    if let Some(made) = act.made() {
        let device = bench.attach(made, AttachMode::ReadOnly);
        let expected = if let Act::Snapshot(_) = act { 7 } else { 0 };
        assert!(is_all(&device, 0, expected, 8192), "{what}");
        bench.detach(made);
    }
    let next = bench.create("next", 4 * MIB).uuid;
    bench.done(VdiDestroy { vdi: next });
    let suspended = sh(&["dmsetup", "info", "-c", "--noheadings", "-o", "name,suspended"]);
    assert!(!suspended.contains("Suspended"), "{what}: {suspended}");
    sh(&["vgck", &format!("sm-{}", bench.sr)]);
    differed
}
