//! `smctl vm-snapshot`, `smctl snapshot-group`, and what a dead process has left of them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use camino::Utf8Path;
use serde_json::json;
use sm_core::quiesce::{Limits, Method};
use sm_core::{DiskOf, Presented, SnapshotSet, SnapshotSets, Sr, VmSnapshot};
use sm_model::{Error, Kind, VdiUuid};

use crate::attach::access_text;
use crate::cli::quiesce::{SetSelector, SnapshotGroupCommand, VmSnapshotArgs};
use crate::errors::{Failure, Result, file_error};
use crate::output::{Align, Block, Report, Table, escape, timestamp, yes};
use crate::session::Session;

/// How long each step of what is left over may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lets guests go on and destroys snapshots that a process which died has left. What goes wrong is
/// told, and does not keep the command from its work.
pub(crate) async fn recover(session: &Session) {
    let say = |text: String| {
        let _ = writeln!(std::io::stderr().lock(), "smctl: {}", escape(&text));
    };
    // Storage that does not answer must not hold up a command that has nothing to do with it.
    let op = session.op.clone().with_budget(session.op.budget.min(PATIENCE));
    match session.manager.recover_sets(&op).await {
        Ok(recovered) => {
            for found in recovered.iter().filter(|_| !session.json) {
                let set = found.set;
                match &found.error {
                    Some(error) => say(format!("the unfinished snapshot set {set} stays: {error}")),
                    None if found.kept => say(format!("snapshot set {set} is finished now")),
                    None if found.pending => {}
                    None => say(format!("the unfinished snapshot set {set} is destroyed")),
                }
            }
        }
        Err(error) => say(format!("unfinished snapshot sets cannot be settled: {error}")),
    }
}

/// `smctl vm-snapshot`.
pub(crate) async fn take(session: &Session, args: &VmSnapshotArgs) -> Result<Report> {
    let method = method(args)?;
    if method == Method::None && !args.allow_crash_consistent {
        return Err(Failure::usage("how is the guest brought to rest?").hint(
            "say --agent PATH, --xenstore DOMID, --exec PRE,POST, or allow snapshots \
                   without it: --allow-crash-consistent",
        ));
    }
    let document = args.metadata.as_deref().map(document).transpose()?;
    let mut disks = Vec::with_capacity(args.disks.len());
    for word in &args.disks {
        disks.push(disk(session, word).await?);
    }
    let request = VmSnapshot {
        disks,
        name: args.name.clone(),
        description: args.description.clone(),
        method,
        limits: Limits { window: args.window, freeze: args.freeze_timeout, ..Limits::default() },
        allow_crash_consistent: args.allow_crash_consistent,
        document,
    };
    let set = session.manager.vm_snapshot(&session.op, &request).await?;
    let mut note = format!("smctl: {}", set.consistency);
    if let Some(microseconds) = set.frozen_microseconds {
        let _ = write!(note, "; the guest was at rest for {} ms", microseconds.div_ceil(1000));
    }
    for text in &set.notes {
        let _ = write!(note, "\nsmctl: {}", escape(text));
    }
    let report = Report::new(session.json, &set, || format!("{}\n", set.id));
    Ok(report.note(session.json, note))
}

/// A text to keep with a set.
pub(crate) fn document(file: &Utf8Path) -> Result<String> {
    std::fs::read_to_string(file).map_err(|error| file_error(file, error))
}

fn method(args: &VmSnapshotArgs) -> Result<Method> {
    if let Some(socket) = &args.agent {
        let mounts = args.mounts.clone();
        return Ok(Method::Agent { socket: absolute(socket)?, mounts });
    }
    if let Some(domain) = args.xenstore {
        return Ok(Method::XenStore { socket: absolute(&args.xenstore_socket)?, domain });
    }
    let Some(hooks) = &args.exec else { return Ok(Method::None) };
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let Some((before, after)) = hooks.split_once(',') else {
        return Err(Failure::usage(
            "--exec needs two programs, PRE,POST: one before the snapshot \
                                   and one after it",
        ));
    };
    let (before, after) = (words(before), words(after));
    if before.is_empty() || after.is_empty() {
        return Err(Failure::usage("--exec PRE,POST: a program is missing")
            .hint("the one that lets the guest go on is as needed as the other"));
    }
    Ok(Method::Exec { before, after })
}

/// The process that holds the guest works elsewhere.
fn absolute(path: &Utf8Path) -> Result<std::path::PathBuf> {
    std::path::absolute(path).map_err(|error| file_error(path, error))
}

/// A disk by UUID or name in any SR, or as SR/VDI.
async fn disk(session: &Session, word: &str) -> Result<DiskOf> {
    if let Some((sr, vdi)) = word.split_once('/')
        && let Ok(sr) = session.sr(sr)
    {
        let vdi = disk_in(session, &sr, vdi).await?;
        return Ok(DiskOf { sr: sr.uuid(), vdi });
    }
    let mut found = Vec::new();
    for record in session.manager.srs()?.into_iter().filter(|record| record.attached) {
        let sr = session.manager.sr(&record.uuid.to_string())?;
        match disk_in(session, &sr, word).await {
            Ok(vdi) => found.push(DiskOf { sr: record.uuid, vdi }),
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    match found.as_slice() {
        [only] => Ok(*only),
        [] => Err(Error::not_found(format!("there is no VDI {word:?} in any SR")).into()),
        several => {
            Err(Error::new(Kind::Exists, format!("{} SRs have a VDI {word:?}", several.len()))
                .hint("say which: --disk SR/VDI")
                .into())
        }
    }
}

/// Snapshots have the names of their disks unless they were given others: the disk is meant.
async fn disk_in(session: &Session, sr: &Sr, word: &str) -> sm_model::Result<VdiUuid> {
    let error = match sr.vdi(&session.op, word).await {
        Err(error) if error.kind == Kind::Exists => error,
        other => return other.map(|vdi| vdi.uuid),
    };
    let all = sr.vdis(&session.op).await?;
    let mut disks = all.iter().filter(|vdi| !vdi.is_a_snapshot && vdi.name == word);
    match (disks.next(), disks.next()) {
        (Some(disk), None) => Ok(disk.uuid),
        _ => Err(error),
    }
}

/// `smctl snapshot-group`.
pub(crate) async fn run(session: &Session, command: &SnapshotGroupCommand) -> Result<Report> {
    let (manager, op, json) = (&session.manager, &session.op, session.json);
    match command {
        SnapshotGroupCommand::List => {
            let found = manager.snapshot_sets(op).await?;
            let report = Report::new(json, &found, || table(session, &found));
            let unread = found.unread.iter().map(|(sr, error)| {
                format!("smctl: SR {sr} cannot be read: {}", escape(&error.to_string()))
            });
            let unread: Vec<String> = unread.collect();
            Ok(if unread.is_empty() { report } else { report.note(json, unread.join("\n")) })
        }
        SnapshotGroupCommand::Show { set, metadata } => {
            let set = find(session, set).await?;
            if let Some(file) = metadata {
                let text = manager.set_document(op, &set).await?.ok_or_else(|| {
                    Error::not_found(format!("no document is kept with the set {}", set.id))
                })?;
                let created = std::fs::File::create_new(file);
                created
                    .and_then(|mut created| created.write_all(text.as_bytes()))
                    .map_err(|error| file_error(file, error))?;
            }
            Ok(Report::new(json, &set, || block(&set)))
        }
        SnapshotGroupCommand::Revert(set) => {
            let set = find(session, set).await?;
            manager.set_revert(op, &set).await?;
            let document = json!({"changed": "modified", "set": set});
            Ok(Report::new(json, &document, || {
                format!("{} disks are put back to the set {}\n", set.members.len(), set.id)
            }))
        }
        SnapshotGroupCommand::Destroy(set) => {
            let set = find(session, set).await?;
            manager.set_destroy(op, &set).await?;
            let document = json!({"changed": "modified", "set": set});
            Ok(Report::new(json, &document, || {
                format!("{} snapshots of the set {} are destroyed\n", set.members.len(), set.id)
            }))
        }
        SnapshotGroupCommand::Present { set, writable, datapath } => {
            let set = find(session, set).await?;
            let shown = manager.set_present(op, &set, &datapath.datapath, *writable).await?;
            Ok(Report::new(json, &json!({"set": set.id, "presented": shown}), || lines(&shown)))
        }
        SnapshotGroupCommand::Withdraw { set, datapath } => {
            let set = find(session, set).await?;
            manager.set_withdraw(op, &set, &datapath.datapath).await?;
            Ok(Report::new(json, &json!({"set": set.id}), || {
                format!("the set {} is not shown to this host any more\n", set.id)
            }))
        }
    }
}

async fn find(session: &Session, selector: &SetSelector) -> Result<SnapshotSet> {
    Ok(session.manager.snapshot_set(&session.op, &selector.set).await?)
}

fn lines(shown: &[Presented]) -> String {
    shown.iter().fold(String::new(), |mut all, one| {
        for access in &one.access {
            let _ = writeln!(all, "{}  {}", one.vdi, access_text(access));
        }
        all
    })
}

fn table(session: &Session, found: &SnapshotSets) -> String {
    let mut table = Table::new(&[
        ("SET", Align::Left),
        ("TIME", Align::Left),
        ("CONSISTENCY", Align::Left),
        ("SNAPSHOTS", Align::Right),
        ("NAMES", Align::Left),
    ]);
    for set in &found.sets {
        let names: Vec<String> = set.members.iter().map(|member| escape(&member.name)).collect();
        table.row([
            set.id.to_string(),
            timestamp(set.time),
            set.consistency.to_string(),
            format!("{} of {}", set.members.len(), set.size),
            names.join(", "),
        ]);
    }
    table.render(session.style)
}

fn block(set: &SnapshotSet) -> String {
    let mut block = Block::default();
    block
        .line("set", set.id.to_string())
        .line("time", timestamp(set.time))
        .line("consistency", set.consistency.to_string())
        .line("one point in time", yes(set.one_point_in_time))
        .line("snapshots", format!("{} of {}", set.members.len(), set.size))
        .text("guest", &set.system)
        .line("document", format!("{} bytes", set.document));
    for member in &set.members {
        let of = member.vdi.map_or_else(|| "gone".to_owned(), |vdi| vdi.to_string());
        block.line(
            "snapshot",
            format!("{} of {of} in SR {} \"{}\"", member.snapshot, member.sr, escape(&member.name)),
        );
    }
    block.render()
}
