//! Snapshots, and merging a leaf into its parent, while a guest writes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::images::{GIB, Kind};
use crate::live::{Requests, Span, Writer};
use crate::ours::Installation;
use crate::process::{Raised, succeed};
use crate::qmp::Daemon;
use crate::table::{Bar, Row, Table};
use crate::told::Told;
use crate::{Result, Setting};

/// Rounds of each.
const ROUNDS: usize = 5;

/// Time for a small operation.
const SHORT: Duration = Duration::from_secs(10);

/// Time for a merge; what takes longer does not converge.
const MERGE: Duration = Duration::from_secs(10);

const QSD: &str = "qemu-storage-daemon qcow2";

fn size(setting: &Setting) -> u64 {
    if setting.quick { GIB / 4 } else { GIB }
}

/// What a guest saw of a snapshot, in milliseconds.
struct Stall {
    longest: f64,
    before: f64,
    all: f64,
}

impl Stall {
    fn new(requests: &Requests, span: Span) -> Self {
        Self {
            longest: requests.longest(span),
            before: requests.longest_before(span),
            all: span.seconds() * 1e3,
        }
    }
}

/// A snapshot of a chain, and how long the writes of a guest waited for it.
pub(crate) fn snapshot(setting: &Setting, table: &mut Table) -> Result<()> {
    let _raised = Raised::new(setting.scheduling)?;
    for (depth, place, at) in
        [(1, &setting.memory, ""), (8, &setting.memory, ""), (1, &setting.disk, ", on the disk")]
    {
        let folder = tempfile::tempdir_in(place)?;
        let kind = Kind::Qcow2Chain(depth);
        for kind in [Kind::Raw, kind] {
            kind.fill(folder.path(), size(setting))?;
        }
        let installation = Installation::new(setting, folder.path())?;
        let (mut ours, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..setting.rounds(ROUNDS) {
            ours.push(our_snapshot(setting, &installation, folder.path(), depth)?);
            peers.push(daemon_snapshot(setting, folder.path(), kind)?);
        }
        let figures =
            |all: &[Stall], of: fn(&Stall) -> f64| all.iter().map(of).collect::<Vec<f64>>();
        let mut row = |what: &str, of: fn(&[f64]) -> Vec<f64>, figure: fn(&Stall) -> f64, bar| {
            table.push(Row {
                name: format!("live snapshot of a chain of {depth}{at}, writes at depth 4: {what}"),
                unit: "ms",
                ours: of(&figures(&ours, figure)),
                peer: Some((of(&figures(&peers, figure)), QSD)),
                bar,
                note: String::new(),
            });
        };
        let all = <[f64]>::to_vec;
        let worst = |figures: &[f64]| vec![figures.iter().copied().fold(0.0, f64::max)];
        row("longest write meanwhile", all, |one| one.longest, Some(Bar::Most(10.0)));
        row("longest write meanwhile, worst", worst, |one| one.longest, Some(Bar::Most(50.0)));
        row("longest write before", all, |one| one.before, None);
        row("the whole operation", all, |one| one.all, None);
    }
    Ok(())
}

fn our_snapshot(
    setting: &Setting,
    installation: &Installation,
    folder: &Path,
    depth: u32,
) -> Result<Stall> {
    let attached = installation.full(folder, size(setting), depth)?;
    let cpu = || attached.cpu();
    let writer = Writer::start(setting, (&cpu, &attached.uri), size(setting), 4)?;
    let (span, ()) = Span::of(|| attached.snapshot())?;
    let requests = writer.stop()?;
    Ok(Stall::new(&requests, span))
}

fn daemon_snapshot(setting: &Setting, folder: &Path, kind: Kind) -> Result<Stall> {
    let mut daemon = Daemon::start(setting, &kind.path(folder), kind)?;
    let writer = write(setting, &daemon, 4)?;
    let (span, ()) = Span::of(|| overlay(&mut daemon, folder, kind))?;
    let requests = writer.stop()?;
    daemon.served.server.stop()?;
    std::fs::remove_file(overlay_path(folder))?;
    Ok(Stall::new(&requests, span))
}

fn write(setting: &Setting, daemon: &Daemon, depth: u32) -> Result<Writer> {
    let cpu = || daemon.served.server.cpu();
    Writer::start(setting, (&cpu, &daemon.served.uri), size(setting), depth)
}

fn overlay_path(folder: &Path) -> PathBuf {
    folder.join("overlay.qcow2")
}

/// Makes an overlay and has the daemon write to it.
fn overlay(daemon: &mut Daemon, folder: &Path, kind: Kind) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", kind.qemu(), "-b"]);
    succeed(command.arg(kind.path(folder)).arg(overlay_path(folder)), SHORT)?;
    daemon.add("overlay", &overlay_path(folder))?;
    daemon.tell("blockdev-snapshot", &json!({ "node": "disk", "overlay": "overlay" })).map(drop)
}

/// What a guest saw of a merge.
struct Merge {
    /// Whether it came to an end.
    done: bool,
    seconds: f64,
    /// The longest write at the switch, milliseconds.
    stall: f64,
    /// Of its requests, per cent.
    kept: f64,
}

impl Merge {
    fn new(requests: &Requests, all: Span, switch: Span, done: bool) -> Self {
        let kept = 100.0 * requests.rate(all) / requests.rate_before(all);
        Self { done, seconds: all.seconds(), stall: requests.longest(switch), kept }
    }
}

/// Merging the leaf into its parent, under writes as fast as they go.
pub(crate) fn coalesce(setting: &Setting, table: &mut Table) -> Result<()> {
    let _raised = Raised::new(setting.scheduling)?;
    let folder = tempfile::tempdir_in(&setting.memory)?;
    for kind in [Kind::Vhd, Kind::Qcow2] {
        kind.fill(folder.path(), size(setting))?;
    }
    std::fs::remove_file(Kind::Raw.path(folder.path()))?;
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for round in 0..setting.rounds(ROUNDS) {
        ours.push(our_merge(setting, folder.path())?);
        // What does not converge is seen to do so once.
        if round == 0 || peers.iter().all(|one: &Merge| one.done) {
            peers.push(daemon_merge(setting, folder.path(), Kind::Qcow2)?);
        }
    }
    let figures = |all: &[Merge], of: fn(&Merge) -> f64| all.iter().map(of).collect::<Vec<f64>>();
    let mut row = |what: &str, unit, figure: fn(&Merge) -> f64, bar, note: String| {
        table.push(Row {
            name: format!("live merge of a leaf, writes at depth 16: {what}"),
            unit,
            ours: figures(&ours, figure),
            peer: Some((figures(&peers, figure), QSD)),
            bar,
            note,
        });
    };
    let never = peers.iter().filter(|merge| !merge.done).count();
    let note = format!("the peer was given up {never} times of {}, after {MERGE:?}", peers.len());
    row("until it is done", "s", |one| one.seconds, Some(Bar::Most(MERGE.as_secs_f64())), note);
    let none = String::new;
    row("longest write at the switch", "ms", |one| one.stall, Some(Bar::Most(50.0)), none());
    row("the guest keeps", "%", |one| one.kept, None, none());
    Ok(())
}

fn our_merge(setting: &Setting, folder: &Path) -> Result<Merge> {
    let leaf = folder.join("leaf.vhd");
    let mut told = Told::start(setting, &Kind::Vhd.path(folder), "vhd")?;
    told.tell(&format!("snapshot {}", leaf.display()))?;
    let cpu = || told.cpu();
    let writer = Writer::start(setting, (&cpu, &told.uri), size(setting), 16)?;
    let (all, (switch, ())) = Span::of(|| {
        told.tell("merge")?;
        Span::of(|| told.tell("converge"))
    })?;
    let requests = writer.stop()?;
    told.stop()?;
    // The parent has taken the leaf's place, and its name.
    std::fs::rename(&leaf, Kind::Vhd.path(folder))?;
    Ok(Merge::new(&requests, all, switch, true))
}

fn daemon_merge(setting: &Setting, folder: &Path, kind: Kind) -> Result<Merge> {
    let mut daemon = Daemon::start(setting, &kind.path(folder), kind)?;
    overlay(&mut daemon, folder, kind)?;
    let writer = write(setting, &daemon, 16)?;
    let job = json!({ "job-id": "job", "device": "overlay", "base-node": "disk" });
    let (all, (switch, done)) = Span::of(|| {
        daemon.tell("block-commit", &job)?;
        let ready = daemon.event("BLOCK_JOB_READY", MERGE)?;
        Span::of(|| Ok(ready && daemon.complete(MERGE)?))
    })?;
    if !done {
        daemon.cancel()?;
    }
    let requests = writer.stop()?;
    daemon.served.server.stop()?;
    std::fs::remove_file(overlay_path(folder))?;
    Ok(Merge::new(&requests, all, switch, done))
}
