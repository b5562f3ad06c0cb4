//! A mirror of a disk to another server, with and without a guest that writes.
//!
//! The other server is one of ours, as it is when a disk moves from host to host; for the peer, too.
//! With `qemu-nbd` in its place the same is measured and told, without a bar: it alone takes half of
//! two processors then.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::images::{GIB, Kind};
use crate::live::{Span, Writer};
use crate::peers::{Cache, ours, uri};
use crate::process::{Raised, Server};
use crate::qmp::Daemon;
use crate::table::{Bar, Row, Table, median};
use crate::told::Told;
use crate::{Result, Setting};

/// Rounds of each.
const ROUNDS: usize = 3;

/// Time for a mirror to be ready; what takes longer does not converge.
const READY: Duration = Duration::from_secs(15);

/// Time for the switch of a mirror that is ready.
const SWITCH: Duration = Duration::from_secs(10);

const QSD: &str = "qemu-storage-daemon raw";

/// What came of a mirror.
#[derive(Clone, Copy)]
struct Mirror {
    /// Whether it was ready in time, and switched in time.
    done: bool,
    /// Seconds until it was ready.
    ready: f64,
    /// Milliseconds that the switch took.
    switch: f64,
    /// Of the guest's requests, per cent.
    kept: f64,
}

fn size(setting: &Setting) -> u64 {
    if setting.quick { GIB / 4 } else { 2 * GIB }
}

/// Who serves the disk that is mirrored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    Ours,
    QemuNbd,
}

impl There {
    const ALL: [Self; 2] = [Self::Ours, Self::QemuNbd];

    fn name(self) -> &'static str {
        match self {
            Self::Ours => "sm-datapath",
            Self::QemuNbd => "qemu-nbd",
        }
    }
}

/// The modes of the peer, and whether a guest writes meanwhile.
const MODES: [(&str, bool); 3] =
    [("background", false), ("background", true), ("write-blocking", true)];

/// What came of all mirrors to one target: ours without a guest and with one, the peer's by mode.
#[derive(Default)]
struct Mirrors {
    ours: [Vec<Mirror>; 2],
    peers: [Vec<Mirror>; MODES.len()],
}

pub(crate) fn measure(setting: &Setting, table: &mut Table) -> Result<()> {
    let _raised = Raised::new(setting.scheduling)?;
    let folder = tempfile::tempdir_in(&setting.memory)?;
    Kind::Raw.fill(folder.path(), size(setting))?;
    let mut all = There::ALL.map(|there| (there, Mirrors::default()));
    for round in 0..setting.rounds(ROUNDS) {
        for (there, mirrors) in &mut all {
            for (figures, busy) in mirrors.ours.iter_mut().zip([false, true]) {
                figures.push(our_mirror(setting, folder.path(), *there, busy)?);
            }
            for (figures, mode) in mirrors.peers.iter_mut().zip(MODES) {
                // What does not converge is seen to do so once.
                if round == 0 || figures.iter().all(|one: &Mirror| one.done) {
                    figures.push(daemon_mirror(setting, folder.path(), *there, mode)?);
                }
            }
        }
    }
    for (there, mirrors) in &all {
        push(setting, table, *there, mirrors);
    }
    Ok(())
}

type Figure = fn(&Mirror) -> f64;

fn push(setting: &Setting, table: &mut Table, there: There, mirrors: &Mirrors) {
    let name = format!("mirror of {} MiB, raw, to {}", size(setting) >> 20, there.name());
    let all = |figures: &[Mirror], of: Figure| figures.iter().map(of).collect::<Vec<f64>>();
    let [our_idle, our_busy] = &mirrors.ours;
    let [idle, background, blocking] = &mirrors.peers;
    let mut row = |name: String, unit, ours: Vec<f64>, peer: Vec<f64>, bar, note: String| {
        let bar = Some(bar).filter(|_| there == There::Ours).flatten();
        table.push(Row { name, unit, ours, peer: Some((peer, QSD)), bar, note });
    };
    let none = String::new;
    let idle_name = format!("{name}, idle");
    let times = (all(our_idle, |one| one.ready), all(idle, |one| one.ready));
    let least = Some(Bar::Ratio(1.0));
    row(format!("{idle_name}: until it is ready"), "s", times.0.clone(), times.1, least, none());
    let switches = (all(our_idle, |one| one.switch), all(idle, |one| one.switch));
    row(format!("{idle_name}: switch"), "ms", switches.0, switches.1, None, none());
    let usual = median(&times.0);
    for (mode, figures) in [("background", background), ("write-blocking", blocking)] {
        let name = format!("{name}, writes at depth 16, the peer {mode}");
        let never = figures.iter().filter(|one| !one.done).count();
        let note = format!("the peer was given up {never} times of {}", figures.len());
        let most = |bar| Some(Bar::Most(bar));
        let busy: [(&str, &'static str, Figure, Option<Bar>, String); 3] = [
            (
                "until it is ready",
                "s",
                |one| one.ready,
                most((200.0 * usual).round() / 100.0),
                note,
            ),
            ("the guest keeps", "%", |one| one.kept, Some(Bar::Least(40.0)), none()),
            ("switch", "ms", |one| one.switch, most(20.0), none()),
        ];
        for (what, unit, of, bar, note) in busy {
            row(format!("{name}: {what}"), unit, all(our_busy, of), all(figures, of), bar, note);
        }
    }
}

/// An empty disk that is served by somebody else.
fn target(setting: &Setting, folder: &Path, there: There) -> Result<(Server, PathBuf, PathBuf)> {
    let path = folder.join("target");
    std::fs::File::create(&path)?.set_len(size(setting))?;
    let socket = setting.memory.join("target-socket");
    let _ = std::fs::remove_file(&socket);
    let mut command = match there {
        There::Ours => ours(setting, &path, Kind::Raw, Cache::Page),
        There::QemuNbd => {
            let mut command = setting.scheduling.command("qemu-nbd");
            command.args(["--persistent", "--shared=8", "--format=raw"]).arg(&path);
            command
        }
    };
    let server = Server::start(command.arg("--socket").arg(&socket), &socket)?;
    Ok((server, socket, path))
}

fn our_mirror(setting: &Setting, folder: &Path, there: There, busy: bool) -> Result<Mirror> {
    let (target, target_socket, target_path) = target(setting, folder, there)?;
    let mut told = Told::start(setting, &Kind::Raw.path(folder), "raw")?;
    let cpu = || told.cpu();
    let writer = if busy {
        Some(Writer::start(setting, (&cpu, &told.uri), size(setting), 16)?)
    } else {
        None
    };
    let (copy, ()) = Span::of(|| told.tell(&format!("mirror {}", uri("", &target_socket))))?;
    let (switch, ()) = Span::of(|| told.tell("switch"))?;
    let kept = kept(writer, copy)?;
    told.stop()?;
    target.stop()?;
    std::fs::remove_file(&target_path)?;
    Ok(Mirror { done: true, ready: copy.seconds(), switch: switch.seconds() * 1e3, kept })
}

/// What a guest keeps of its requests during a copy, per cent.
fn kept(writer: Option<Writer>, copy: Span) -> Result<f64> {
    let Some(writer) = writer else { return Ok(100.0) };
    let requests = writer.stop()?;
    Ok(100.0 * requests.rate(copy) / requests.rate_before(copy))
}

fn daemon_mirror(
    setting: &Setting,
    folder: &Path,
    there: There,
    (mode, busy): (&str, bool),
) -> Result<Mirror> {
    let (target, socket, target_path) = target(setting, folder, there)?;
    let mut daemon = Daemon::start(setting, &Kind::Raw.path(folder), Kind::Raw)?;
    let server = json!({ "type": "unix", "path": socket });
    let node = json!({ "driver": "nbd", "node-name": "target", "server": server });
    daemon.tell("blockdev-add", &node)?;
    let writer = if busy {
        let cpu = || daemon.served.server.cpu();
        Some(Writer::start(setting, (&cpu, &daemon.served.uri), size(setting), 16)?)
    } else {
        None
    };
    let job = json!({
        "job-id": "job", "device": "disk", "target": "target", "sync": "full", "copy-mode": mode,
    });
    let (copy, ready) = Span::of(|| {
        daemon.tell("blockdev-mirror", &job)?;
        daemon.event("BLOCK_JOB_READY", READY)
    })?;
    let (switch, done) = Span::of(|| Ok(ready && daemon.complete(SWITCH)?))?;
    if !done {
        daemon.cancel()?;
    }
    let kept = kept(writer, copy)?;
    daemon.served.server.stop()?;
    target.stop()?;
    std::fs::remove_file(&target_path)?;
    Ok(Mirror { done, ready: copy.seconds(), switch: switch.seconds() * 1e3, kept })
}
