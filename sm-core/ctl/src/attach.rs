//! `smctl vdi attach`, `detach`, `limit`, and what is attached.

use std::fmt::Write as _;

use serde_json::{Value, json};
use sm_core::datapath_protocol::{Counter, State, Status};
use sm_core::{AttachmentRecord, CancelFlag, Limits, Op, Rate, Sr};
use sm_model::access::Access;
use sm_model::{AttachMode, Bytes, Changed, Kind, VdiUuid};

use crate::cli::vdi::{Datapath, How, LimitArgs};
use crate::errors::Result;
use crate::output::{Align, Block, Report, Table, escape};
use crate::session::Session;
use crate::shell;
use crate::vdi::lines;

/// Makes a VDI reachable, and allows I/O unless told otherwise.
pub(crate) async fn attach(
    session: &Session,
    sr: &Sr,
    vdi: VdiUuid,
    how: &How,
    datapath: &Datapath,
) -> Result<Report> {
    let mode = if how.read_only { AttachMode::ReadOnly } else { AttachMode::ReadWrite };
    let activate = !how.no_activate;
    let name = &datapath.datapath;
    let held = holders(sr, vdi)?.contains(name);
    let (access, since) = match &how.changed_since {
        None => (sr.vdi_attach(&session.op, vdi, name, mode).await?, None),
        Some(selector) => {
            let from = session.vdi(sr, selector).await?;
            let (access, changes) = sr.vdi_attach_since(&session.op, vdi, name, from).await?;
            (access, Some(crate::cbt::Since::of(from, &changes)?))
        }
    };
    if activate && let Err(error) = sr.vdi_activate(&session.op, vdi, name).await {
        // One command, one effect: without I/O there shall be no attachment either, unless it was
        // there before or nobody knows what is.
        if !held && error.kind != Kind::Unknown {
            let undo = session.op.clone().with_cancel(CancelFlag::default());
            if let Err(also) = sr.vdi_detach(&undo, vdi, name).await {
                tracing::warn!(%vdi, error = %also, "what was attached could not be detached");
            }
        }
        return Err(error.into());
    }
    let document = json!({
        "vdi": vdi,
        "datapath": name,
        "mode": mode,
        "activated": activate,
        "access": access,
        "changed_since": since,
    });
    let mut report = Report::new(session.json, &document, || lines(access.iter().map(access_text)));
    if let Some(since) = &since {
        report = report.note(session.json, since.text());
    }
    if !how.wait {
        return Ok(report);
    }
    crate::output::print(report.text.as_bytes())
        .map_err(|error| crate::errors::file_error("standard output", error))?;
    session.op.cancel.cancelled().await;
    // Not a failure of anything: it is how this command ends.
    let end = Op::new();
    sr.vdi_deactivate(&end, vdi, name).await?;
    sr.vdi_detach(&end, vdi, name).await?;
    Ok(Report { text: String::new(), ..report })
}

/// Ends I/O and the reachability.
pub(crate) async fn detach(
    session: &Session,
    sr: &Sr,
    vdi: VdiUuid,
    datapath: &Datapath,
) -> Result<Report> {
    let name = &datapath.datapath;
    let held = holders(sr, vdi)?.contains(name);
    // Asked of the engine in any case: an earlier detach may have failed half-way.
    sr.vdi_deactivate(&session.op, vdi, name).await?;
    sr.vdi_detach(&session.op, vdi, name).await?;
    let changed = if held { Changed::Modified } else { Changed::Already };
    let document = json!({"changed": changed, "vdi": vdi, "datapath": name});
    let report = Report::new(session.json, &document, || {
        let who = escape(name);
        if held {
            format!("VDI {vdi} is not attached by \"{who}\" any more\n")
        } else {
            format!("VDI {vdi} was not attached by \"{who}\"\n")
        }
    });
    let others: Vec<String> = holders(sr, vdi)?
        .iter()
        .map(|other| format!("--datapath={}", shell::quote(other)))
        .collect();
    Ok(if others.is_empty() {
        report
    } else {
        report.note(session.json, format!("smctl: it is still attached: {}", others.join(", ")))
    })
}

/// Stops VDIs until Ctrl-C.
pub(crate) async fn pause(session: &Session, sr: &Sr, vdis: &[VdiUuid]) -> Result<Report> {
    let paused = sr.vdi_pause(&session.op, vdis).await?;
    let report = Report::new(session.json, &json!({"paused": vdis}), || {
        lines(vdis.iter().map(|vdi| format!("VDI {vdi} is paused until Ctrl-C")))
    });
    crate::output::print(report.text.as_bytes())
        .map_err(|error| crate::errors::file_error("standard output", error))?;
    // Not a failure of anything: it is how this command ends.
    session.op.cancel.cancelled().await;
    paused.resume().await?;
    Ok(Report { text: String::new(), ..report })
}

/// The data paths of this host that hold a VDI.
fn holders(sr: &Sr, vdi: VdiUuid) -> Result<Vec<String>> {
    let held = sr.attachments()?.into_iter().find(|record| record.vdi == vdi);
    Ok(held.map(|record| record.datapaths.into_keys().collect()).unwrap_or_default())
}

/// How to reach a disk, in a line.
pub(crate) fn access_text(access: &Access) -> String {
    match access {
        Access::BlockDevice { path } => format!("block device {}", escape(path.as_str())),
        Access::File { path, format, backing, .. } => {
            let mut text = format!("file {} (format {format}", escape(path.as_str()));
            if !backing.is_empty() {
                let _ = write!(text, ", based on {} more", backing.len());
            }
            text.push(')');
            text
        }
        // As it is: it is what other programs are given.
        Access::Nbd { uri } => escape(uri),
    }
}

/// The fields of a record that are the interface.
pub(crate) fn document(record: &AttachmentRecord) -> Value {
    json!({"datapaths": record.datapaths, "access": record.access, "remote": record.remote})
}

/// What the data path of a VDI does. One that does not answer is no reason to say nothing else.
pub(crate) async fn look(sr: &Sr, vdi: VdiUuid) -> Option<Status> {
    match sr.datapath(vdi).await {
        Ok(status) => status,
        Err(error) => {
            tracing::warn!(%vdi, %error, "the data path does not say how it is");
            None
        }
    }
}

/// Limits what an attached VDI may do in a second.
pub(crate) async fn limit(
    session: &Session,
    sr: &Sr,
    vdi: VdiUuid,
    args: &LimitArgs,
) -> Result<Report> {
    let rate =
        |per_second: u64| Rate { per_second, burst: per_second.saturating_mul(args.burst_seconds) };
    let limits = Limits {
        operations: args.operations.map(rate),
        bytes: args.bytes.map(|bytes| rate(bytes.0)),
    };
    sr.vdi_limit(&session.op, vdi, limits).await?;
    Ok(Report::new(session.json, &json!({"vdi": vdi, "limits": limits}), || {
        let text = limits_text(&limits);
        format!("VDI {vdi}: {text}, until it is detached\n")
    }))
}

fn limits_text(limits: &Limits) -> String {
    let mut parts = Vec::new();
    if let Some(rate) = limits.operations {
        parts.push(format!("{} requests/s", rate.per_second));
    }
    if let Some(rate) = limits.bytes {
        parts.push(format!("{}/s", Bytes(rate.per_second)));
    }
    if parts.is_empty() { "no limits".to_owned() } else { format!("at most {}", parts.join(", ")) }
}

/// What is attached on this host, and what it does.
pub(crate) async fn list(session: &Session, sr: &Sr) -> Result<Report> {
    let attached = sr.attachments()?;
    let mut vdis = sr.vdis(&session.op).await?;
    vdis.retain(|vdi| attached.iter().any(|record| record.vdi == vdi.uuid));
    crate::vdi::by_name(&mut vdis);
    let mut documents = Vec::new();
    let mut table = Table::new(&[
        ("UUID", Align::Left),
        ("NAME", Align::Left),
        ("MODE", Align::Left),
        ("STATE", Align::Left),
        ("CLIENTS", Align::Right),
        ("READS", Align::Right),
        ("READ", Align::Right),
        ("WRITES", Align::Right),
        ("WRITTEN", Align::Right),
        ("P99", Align::Right),
        ("BY", Align::Left),
    ]);
    for vdi in &vdis {
        let Some(record) = attached.iter().find(|record| record.vdi == vdi.uuid) else { continue };
        let status = look(sr, vdi.uuid).await;
        let mut row = vec![vdi.uuid.to_string(), escape(&vdi.name)];
        let mode = record.driver_state.mode();
        row.push(mode.map_or_else(|| "-".to_owned(), |mode| mode.to_string()));
        let gone = record.served && status.is_none();
        let moved = gone && sr.vdi_mirror(vdi.uuid).await?.moved.is_some();
        row.push(if moved { "moved".to_owned() } else { state_text(record, status.as_ref()) });
        row.extend(counters(status.as_ref()));
        let names: Vec<String> = record.datapaths.keys().map(|name| escape(name)).collect();
        row.push(names.join(", "));
        table.row(row);
        let mut document = serde_json::to_value(vdi).unwrap_or_default();
        if let Value::Object(fields) = &mut document {
            fields.insert("attachment".to_owned(), self::document(record));
            fields.insert("datapath".to_owned(), json!(status));
        }
        documents.push(document);
    }
    let document = json!({"vdis": documents});
    Ok(Report::new(session.json, &document, || table.render(session.style)))
}

/// What it does, and who else reaches it.
fn state_text(record: &AttachmentRecord, status: Option<&Status>) -> String {
    let mut text = state_name(record, status).to_owned();
    if status.is_some_and(|status| status.mirror.is_some()) {
        text.push_str(", mirrored");
    }
    if status.is_some_and(|status| status.remote.is_some()) {
        text.push_str(", remote");
    }
    text
}

fn state_name(record: &AttachmentRecord, status: Option<&Status>) -> &'static str {
    match status.map(|status| status.state) {
        Some(State::Active) => "active",
        Some(State::Paused) => "paused",
        Some(State::Waiting) => "waiting",
        Some(State::Moved) => "moved",
        Some(State::Other) => "other",
        None if record.served => "gone",
        None if record.datapaths.values().any(|held| held.activated) => "active",
        Some(State::Attached) | None => "attached",
    }
}

/// Clients, reads, bytes read, writes, bytes written, 99th percentile of both.
fn counters(status: Option<&Status>) -> [String; 6] {
    let Some(status) = status else { return std::array::from_fn(|_| "-".to_owned()) };
    let (read, write) = (&status.statistics.read, &status.statistics.write);
    [
        status.connections.to_string(),
        read.operations.to_string(),
        Bytes(read.bytes).to_string(),
        write.operations.to_string(),
        Bytes(write.bytes).to_string(),
        p99(&[read, write]),
    ]
}

fn p99(counters: &[&Counter]) -> String {
    let mut all = Counter::default();
    for counter in counters {
        all.latency.extend(&counter.latency);
    }
    all.latency.sort_unstable();
    all.percentile(0.99).map_or_else(|| "-".to_owned(), time)
}

fn time(nanoseconds: u64) -> String {
    match nanoseconds {
        0..1_000_000 => format!("{} us", nanoseconds / 1000),
        1_000_000..1_000_000_000 => {
            format!("{}.{} ms", nanoseconds / 1_000_000, nanoseconds / 100_000 % 10)
        }
        _ => format!("{}.{} s", nanoseconds / 1_000_000_000, nanoseconds / 100_000_000 % 10),
    }
}

/// What a data path does, for people.
pub(crate) fn status_text(status: &Status) -> String {
    let mut block = Block::default();
    block
        .line("data path", format!("process {}, release {}", status.pid, escape(&status.release)))
        .line("clients", status.connections.to_string());
    let all = &status.statistics;
    for (name, counter) in [
        ("reads", &all.read),
        ("writes", &all.write),
        ("zeroes", &all.zeroes),
        ("trims", &all.trim),
    ] {
        if counter.operations > 0 {
            let mut text = format!(
                "{}, {}, 99 % below {}",
                counter.operations,
                Bytes(counter.bytes),
                p99(&[counter])
            );
            if counter.errors > 0 {
                let _ = write!(text, ", {} failed", counter.errors);
            }
            block.line(name, text);
        }
    }
    if all.flush.operations > 0 {
        let text = format!("{}, 99 % below {}", all.flush.operations, p99(&[&all.flush]));
        block.line("flushes", text);
    }
    block.line("limits", limits_text(&status.limits));
    if let Some(remote) = &status.remote {
        crate::mirror::remote_line(&mut block, remote);
    }
    if let Some(mirror) = &status.mirror {
        crate::mirror::mirror_lines(&mut block, mirror);
    }
    block.render()
}
