//! `cargo xtask demo --array equallogic`: a storage array does the work. A disk of 40 GiB is made
//! thin, written, cloned, snapshotted, put back.
//!
//! The array is simulated (`docs/simulators.md`), in a process of its own, and managed by the real driver over
//! SSH. No root is needed: what a guest would write goes through the simulator's admin port, not
//! through iSCSI, because attaching a LUN is the kernel's work.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::simulated::{Admin, Simulated};
use super::steps::{Smctl, Steps};
use crate::failure::{Doing, Failure, Result};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What the guest writes: so many pieces of 1 MiB, all over the disk.
const PIECES: u64 = 32;
const PIECE: usize = 1 << 20;

/// Milliseconds: what the array adds to each command, and how long a copy takes it.
const SETTINGS: &str = r#"{"latency":5,"job":1500,"sessions":7}"#;

/// The simulator's own account.
const PASSWORD: &str = "grpadmin";

pub(super) fn run(product: &Path) -> Result<ExitCode> {
    let work = tempfile::Builder::new()
        .prefix("sm-demo-")
        .tempdir()
        .doing(|| "make a temporary directory".to_owned())?;
    let mut steps = Steps::default();
    let outcome = story(product, work.path(), &mut steps);
    let path = work.path().to_owned();
    work.close().doing(|| format!("remove {}", path.display()))?;
    steps.end(outcome)
}

fn story(product: &Path, work: &Path, steps: &mut Steps) -> Result<()> {
    println!("This is a simulated array; no physical one has been used. What a guest would write");
    println!("goes through the simulator's admin port: attaching a LUN needs root and a kernel.");
    let array = Simulated::start(
        &product.join("array-sim"),
        "equallogic",
        &work.join("array"),
        &["--pool", "default=107374182400", "--page", "65536", "--settings", SETTINGS],
    )?;
    let (ssh, fingerprint) = (array.said("ssh")?, array.said("fingerprint")?);
    let (host, port) = ssh.rsplit_once(':').unwrap_or((&ssh, "22"));
    println!("EqualLogic group at {ssh} by SSH, 100 GiB, 5 ms more for each command");
    let admin = array.admin();
    let locks = work.join("locks");
    let made = std::fs::create_dir(&locks).and_then(|()| {
        // Of root's commands the driver's process is another user's.
        std::fs::set_permissions(work, Permissions::from_mode(0o755))?;
        std::fs::set_permissions(&locks, Permissions::from_mode(0o777))
    });
    made.doing(|| format!("make the directory {}", locks.display()))?;
    let smctl = Smctl::new(product, &work.join("state"), work);
    // A password on a command line is for a demo; others write password=secret://... instead.
    let keys = [
        format!("target={host}"),
        format!("port={port}"),
        "username=grpadmin".to_owned(),
        format!("password={PASSWORD}"),
        format!("host-key-fingerprint={fingerprint}"),
        format!("session-directory={}", locks.display()),
        "initiator=iqn.2004-01.example:demo".to_owned(),
    ];
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();

    steps.title("The array, and an SR on it");
    let words = ["sr", "probe", "--driver", "equallogic"];
    steps.type_in(&smctl, &[&words[..], &keys].concat())?;
    let words = ["sr", "create", "--driver", "equallogic", "--name", "vms", "storagepool=default"];
    steps.type_in(&smctl, &[&words[..], &keys].concat())?;
    let foreign = admin.volumes()?;

    steps.title("A disk of 40 GiB, thin");
    steps.type_in(&smctl, &["vdi", "create", "--name", "server", "--size", "40GiB"])?;
    let server = new_volume(&admin, &foreign)?;
    let used = admin.used("default")?;
    steps.step("check: the array has given no space for it yet", || same(used, 0))?;
    let what = format!("the guest writes {} MiB, all over it", PIECES * PIECE as u64 / MIB);
    steps.step(&what, || write(&admin, &server, 1))?;
    let used = admin.used("default")?;
    steps.step("check: the array has given as much as was written", || {
        same(used, PIECES * PIECE as u64)
    })?;

    steps.title("A clone: the array copies the used pages, this host nothing");
    let known = admin.volumes()?;
    let timeout = ["vdi", "clone", "server", "--name", "second", "--timeout", "5m"];
    watched(&admin, used, || steps.type_in(&smctl, &timeout).map(drop))?;
    let second = new_volume(&admin, &known)?;
    let now = admin.used("default")?;
    steps.step("check: it took the used pages once more, not 40 GiB", || same(now, 2 * used))?;
    steps.step("check: it has what was written", || holds(&admin, &second, 1))?;

    steps.title("A snapshot, and a guest that spoils its disk");
    steps.type_in(&smctl, &["vdi", "snapshot", "server", "--name", "before upgrade"])?;
    let after = admin.used("default")?;
    steps.step("check: the snapshot took no space", || same(after, now))?;
    steps.step("the guest writes over all of it", || write(&admin, &server, 2))?;
    steps.step("check: it is spoiled", || holds(&admin, &server, 2))?;

    steps.title("Back to the snapshot");
    steps.type_in(&smctl, &["vdi", "revert", "server", "before upgrade"])?;
    steps.step("check: the disk is as it was", || holds(&admin, &server, 1))?;
    steps.step("check: the clone is not touched", || holds(&admin, &second, 1))?;
    steps.type_in(&smctl, &["vdi", "list"])?;

    steps.title("And everything away");
    for vdi in ["second", "before upgrade", "server"] {
        steps.type_in(&smctl, &["vdi", "destroy", vdi])?;
    }
    steps.type_in(&smctl, &["sr", "destroy", "vms"])?;
    let (left, used) = (admin.volumes()?, admin.used("default")?);
    steps.step("check: the array has no volume any more, and all its space", || {
        if !left.is_empty() {
            return Err(Failure::new(format!("left on the array: {}", left.join(", "))));
        }
        same(used, 0)
    })?;
    let (commands, logins) = admin.asked()?;
    steps.step("check: no data went through this host (no session to a LUN)", || {
        same(logins as u64, 0)
    })?;
    println!("\n{commands} commands to the array in all, beside those that set a session up");
    Ok(())
}

/// Says every now and then how far the array's copy is, while `work` goes on.
fn watched(admin: &Admin, used: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut last = 0;
            while !done.load(Ordering::Acquire) {
                // The demo goes on without, if the array does not answer.
                let copied = admin.used("default").unwrap_or_default().saturating_sub(used);
                let percent = (copied * 100).checked_div(used).unwrap_or_default();
                if percent >= last + 20 {
                    last = percent;
                    println!("                     the array has copied {percent} %");
                }
                std::thread::park_timeout(Duration::from_millis(100));
            }
        });
        let outcome = work();
        done.store(true, Ordering::Release);
        watcher.thread().unpark();
        outcome
    })
}

/// The volume that was not there before.
fn new_volume(admin: &Admin, before: &[String]) -> Result<String> {
    let now = admin.volumes()?.into_iter();
    let new: Vec<String> = now.filter(|name| !before.contains(name)).collect();
    match <[String; 1]>::try_from(new) {
        Ok([one]) => Ok(one),
        Err(other) => Err(Failure::new(format!("the array has {} new volumes", other.len()))),
    }
}

fn same(found: u64, expected: u64) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Failure::new(format!("there should be {expected}, there is {found}")))
}

/// Where a piece of the guest's data lies.
fn offset(piece: u64) -> u64 {
    piece * (40 * GIB / PIECES)
}

/// What a piece holds in a version of the guest's data.
fn content(piece: u64, version: u8) -> Vec<u8> {
    let first = u8::try_from(piece % 100).unwrap_or_default();
    vec![first + 100 * (version - 1) + 1; PIECE]
}

fn write(admin: &Admin, volume: &str, version: u8) -> Result<()> {
    (0..PIECES).try_for_each(|n| admin.write(volume, offset(n), &content(n, version)))
}

fn holds(admin: &Admin, volume: &str, version: u8) -> Result<()> {
    for n in 0..PIECES {
        if admin.read(volume, offset(n), PIECE)? != content(n, version) {
            return Err(Failure::new(format!("{volume} has other data at {}", offset(n))));
        }
    }
    Ok(())
}
