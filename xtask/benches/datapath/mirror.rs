//! A mirror of a disk to another server, with and without a guest that writes.

use std::time::Duration;

use serde_json::json;

use crate::images::{GIB, Kind};
use crate::live::{Span, Writer};
use crate::process::{Raised, Server};
use crate::qmp::Daemon;
use crate::table::{Bar, Row, Table};
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

pub(crate) fn measure(setting: &Setting, table: &mut Table) -> Result<()> {
    let _raised = Raised::new(setting.scheduling)?;
    let folder = tempfile::tempdir_in(&setting.memory)?;
    Kind::Raw.fill(folder.path(), size(setting))?;
    let modes = [("background", false), ("background", true), ("write-blocking", true)];
    let mut peers = modes.map(|_| Vec::new());
    for round in 0..setting.rounds(ROUNDS) {
        for (figures, (mode, busy)) in peers.iter_mut().zip(modes) {
            // What does not converge is seen to do so once.
            if round == 0 || figures.iter().all(|one: &Mirror| one.done) {
                figures.push(daemon_mirror(setting, folder.path(), mode, busy)?);
            }
        }
    }
    push(setting, table, &peers);
    Ok(())
}

fn push(setting: &Setting, table: &mut Table, peers: &[Vec<Mirror>; 3]) {
    let [idle, background, blocking] = peers;
    let all =
        |figures: &[Mirror], of: fn(&Mirror) -> f64| figures.iter().map(of).collect::<Vec<f64>>();
    let name = format!("mirror of {} MiB", size(setting) >> 20);
    let given_up = |figures: &[Mirror]| {
        let never = figures.iter().filter(|one| !one.done).count();
        format!("the peer was given up {never} times of {}", figures.len())
    };
    let mut row = |name: String, unit, peer: Vec<f64>, bar, note: String| {
        table.push(Row { name, unit, ours: Vec::new(), peer: Some((peer, QSD)), bar, note });
    };
    let none = String::new;
    row(
        format!("{name}, idle: until it is ready"),
        "s",
        all(idle, |one| one.ready),
        Some(Bar::Ratio(1.0)),
        none(),
    );
    row(format!("{name}, idle: switch"), "ms", all(idle, |one| one.switch), None, none());
    for (mode, figures) in [("background", background), ("write-blocking", blocking)] {
        let name = format!("{name}, writes at depth 16, the peer {mode}");
        let times = all(figures, |one| one.ready);
        row(format!("{name}: until it is ready"), "s", times, None, given_up(figures));
        row(
            format!("{name}: the guest keeps"),
            "%",
            all(figures, |one| one.kept),
            Some(Bar::Least(40.0)),
            none(),
        );
        row(
            format!("{name}: switch"),
            "ms",
            all(figures, |one| one.switch),
            Some(Bar::Most(20.0)),
            none(),
        );
    }
}

fn daemon_mirror(
    setting: &Setting,
    folder: &std::path::Path,
    mode: &str,
    busy: bool,
) -> Result<Mirror> {
    let target_path = folder.join("target");
    std::fs::File::create(&target_path)?.set_len(size(setting))?;
    let socket = setting.memory.join("target-socket");
    let _ = std::fs::remove_file(&socket);
    let mut command = setting.scheduling.command("qemu-nbd");
    command.args(["--persistent", "--shared=8", "--format=raw", "--socket"]);
    let target = Server::start(command.arg(&socket).arg(&target_path), &socket)?;
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
    let mut kept = 100.0;
    if let Some(writer) = writer {
        let requests = writer.stop()?;
        kept = 100.0 * requests.rate(copy) / requests.rate_before(copy);
    }
    daemon.served.server.stop()?;
    target.stop()?;
    std::fs::remove_file(&target_path)?;
    Ok(Mirror { done, ready: copy.seconds(), switch: switch.seconds() * 1e3, kept })
}
