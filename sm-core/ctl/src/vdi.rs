//! `smctl vdi`, all but the commands that move bytes.

use std::collections::BTreeMap;

use camino::Utf8Path;
use serde_json::{Value, json};
use sm_core::{AttachmentRecord, Checks, Mirrored, NewSnapshot, NewVdi, Sr, group_of};
use sm_model::manifest::feature;
use sm_model::vdi::{
    Qos, Rate, Severity, VdiChecked, VdiDone, VdiInfo, VdiIntroduce, VdiType, VdiUpdate,
};
use sm_model::{Bytes, Changed, VdiUuid};

use crate::attach;
use crate::cli::vdi::{Change, New, QosArgs, VdiArgs, VdiCommand};
use crate::config::pairs;
use crate::errors::{Failure, Result, Status};
use crate::output::{Align, Block, Report, Style, Table, escape, timestamp, yes};
use crate::session::Session;
use crate::sr::changed_text;
use crate::tree::{self, health_text};

/// Does one command.
pub(crate) async fn run(session: &Session, args: &VdiArgs) -> Result<Report> {
    let sr = session.sr_or_only(args.sr.as_deref())?;
    let op = &session.op;
    let json = session.json;
    match &args.command {
        VdiCommand::Create { name, size, new, format } => {
            let new = NewVdi { virtual_size: *size, format: *format, ..new_vdi(name, new)? };
            let done = sr.vdi_create(op, new).await?;
            Ok(made(json, &done))
        }
        VdiCommand::List { attached: true } => attach::list(session, &sr).await,
        VdiCommand::List { attached: false } => list(session, &sr).await,
        VdiCommand::Show(selector) => show(session, &sr, &selector.vdi).await,
        VdiCommand::Introduce { uuid, name, description, vdi_type, keys } => {
            let request = VdiIntroduce {
                uuid: *uuid,
                name: name.clone(),
                description: description.clone(),
                vdi_type: *vdi_type,
                keys: pairs(keys)?,
            };
            let done = sr.vdi_introduce(op, request).await?;
            Ok(made(json, &done))
        }
        VdiCommand::Snapshot { vdis, name, description, metadata } => {
            let metadata = metadata.as_deref();
            snapshot(session, &sr, vdis, name.as_deref(), description, metadata).await
        }
        VdiCommand::Clone { vdi, name, description } => {
            let vdi = session.vdi(&sr, &vdi.vdi).await?;
            let done = sr.vdi_clone(op, vdi, name, description).await?;
            let report = made(json, &done);
            let by_storage = done.changed == Changed::Created && offloads(session, &sr);
            Ok(if by_storage {
                report.note(json, "smctl: cloned by the storage; bytes copied by this host: 0")
            } else {
                report
            })
        }
        VdiCommand::Revert { vdi, snapshot } => {
            let vdi = session.vdi(&sr, &vdi.vdi).await?;
            let snapshot = session.vdi(&sr, snapshot).await?;
            let done = sr.vdi_revert(op, vdi, snapshot).await?;
            Ok(changed(json, &done, &format!("is put back to snapshot {snapshot}")))
        }
        VdiCommand::Resize { vdi, size } => {
            let vdi = session.vdi(&sr, &vdi.vdi).await?;
            let done = sr.vdi_resize(op, vdi, *size).await?;
            let mut what = format!("has {}", done.vdi.virtual_size);
            if matches!(sr.datapath(vdi).await, Ok(Some(status)) if status.connections > 0) {
                what.push_str("; a client that is connected sees that when it connects again");
            }
            Ok(changed(json, &done, &what))
        }
        VdiCommand::Rename { vdi, name } => {
            let vdi = session.vdi(&sr, &vdi.vdi).await?;
            let request = VdiUpdate { name: Some(name.clone()), ..no_update(vdi) };
            let done = sr.vdi_update(op, request).await?;
            Ok(changed(json, &done, &format!("is named \"{}\"", escape(name))))
        }
        VdiCommand::Set { vdi, change } => {
            let request = update(session.vdi(&sr, &vdi.vdi).await?, change)?;
            let done = sr.vdi_update(op, request).await?;
            Ok(changed(json, &done, "is updated"))
        }
        VdiCommand::Destroy(selector) => {
            let vdi = session.vdi(&sr, &selector.vdi).await?;
            let done = sr.vdi_destroy(op, vdi).await?;
            Ok(Report::new(json, &done, || {
                changed_text(done.changed, &format!("VDI {vdi} is destroyed"))
            }))
        }
        VdiCommand::Attach { vdi, how, datapath } => {
            let vdi = session.vdi(&sr, &vdi.vdi).await?;
            attach::attach(session, &sr, vdi, how, datapath).await
        }
        VdiCommand::Detach { vdi, datapath } => {
            let vdi = session.vdi(&sr, &vdi.vdi).await?;
            attach::detach(session, &sr, vdi, datapath).await
        }
        VdiCommand::Pause { vdis } => {
            let mut named = Vec::with_capacity(vdis.len());
            for vdi in vdis {
                named.push(session.vdi(&sr, vdi).await?);
            }
            attach::pause(session, &sr, &named).await
        }
        VdiCommand::Qos { vdi, limits } => {
            let vdi = session.vdi(&sr, &vdi.vdi).await?;
            qos(session, &sr, vdi, limits).await
        }
        VdiCommand::Limit { vdi, limits } => {
            let vdi = session.vdi(&sr, &vdi.vdi).await?;
            attach::limit(session, &sr, vdi, limits).await
        }
        VdiCommand::Import { file, name, format, size, new, checksum, verify } => {
            let new = new_vdi(name, new)?;
            let checks = Checks { checksum: false, expected: *checksum, verify: *verify };
            crate::transfer::import(session, &sr, file, (*format, *size), new, checks).await
        }
        VdiCommand::Export { vdi, file, format, force, checksum, verify } => {
            let vdi = session.vdi(&sr, &vdi.vdi).await?;
            let checks = Checks { checksum: *checksum, expected: None, verify: *verify };
            crate::transfer::export(session, &sr, vdi, file, (*format, *force), checks).await
        }
        VdiCommand::Copy { vdi, to, name, new, format, checksum, verify } => {
            let target = match to {
                Some(selector) => session.sr(selector)?,
                None => sr.clone(),
            };
            let source = sr.vdi(op, &vdi.vdi).await?;
            let name = name.as_deref().unwrap_or(&source.name);
            let new = NewVdi { format: *format, ..new_vdi(name, new)? };
            let checks = Checks { checksum: *checksum, expected: None, verify: *verify };
            crate::transfer::copy(session, &sr, source.uuid, &target, new, checks).await
        }
        VdiCommand::Reclaim(selector) => {
            let vdi = session.vdi(&sr, &selector.vdi).await?;
            crate::maintain::reclaim(session, &sr, vdi).await
        }
        VdiCommand::Mirror { command } => crate::mirror::run(session, &sr, command).await,
        VdiCommand::Serve(args) => crate::mirror::serve(session, &sr, args).await,
        VdiCommand::Cbt { command } => crate::cbt::run(session, &sr, command).await,
        VdiCommand::Tree { ascii } => {
            let forest = sr.tree(op).await?;
            let strokes = if *ascii { tree::ASCII } else { tree::strokes_of_locale() };
            Ok(Report::new(json, &forest, || tree::draw(&forest.nodes, strokes, session.style)))
        }
        VdiCommand::Check(selector) => {
            let vdi = session.vdi(&sr, &selector.vdi).await?;
            let checked = sr.vdi_check(op, vdi).await?;
            Ok(check_report(session, vdi, &checked))
        }
    }
}

fn new_vdi(name: &str, new: &New) -> Result<NewVdi> {
    Ok(NewVdi {
        uuid: new.uuid,
        name: name.to_owned(),
        description: new.description.clone(),
        vdi_type: new.vdi_type,
        sharable: new.sharable,
        keys: pairs(&new.keys)?,
        ..NewVdi::default()
    })
}

fn no_update(vdi: VdiUuid) -> VdiUpdate {
    VdiUpdate {
        vdi,
        name: None,
        description: None,
        vdi_type: None,
        read_only: None,
        keys: BTreeMap::new(),
        incomplete: None,
    }
}

fn update(vdi: VdiUuid, change: &Change) -> Result<VdiUpdate> {
    let mut keys: BTreeMap<String, Option<String>> =
        pairs(&change.keys)?.into_iter().map(|(key, value)| (key, Some(value))).collect();
    for key in &change.remove_key {
        if keys.insert(key.clone(), None).is_some() {
            return Err(Failure::usage(format!("the key {key} is given twice")));
        }
    }
    Ok(VdiUpdate {
        description: change.description.clone(),
        vdi_type: change.vdi_type,
        read_only: change.read_only,
        keys,
        ..no_update(vdi)
    })
}

/// Whether the storage clones by itself.
fn offloads(session: &Session, sr: &Sr) -> bool {
    let found = session.manager.driver(&sr.record().driver);
    found.is_ok_and(|found| found.manifest.can(feature::OFFLOAD))
}

/// A VDI was made: its UUID, for the next command.
fn made(json: bool, done: &VdiDone) -> Report {
    let report = Report::new(json, done, || format!("{}\n", done.vdi.uuid));
    match done.changed {
        Changed::Already => report.note(json, "smctl: it was there already"),
        Changed::Created | Changed::Modified => report,
    }
}

fn changed(json: bool, done: &VdiDone, what: &str) -> Report {
    Report::new(json, done, || changed_text(done.changed, &format!("VDI {} {what}", done.vdi.uuid)))
}

async fn qos(session: &Session, sr: &Sr, vdi: VdiUuid, args: &QosArgs) -> Result<Report> {
    let limited = args.operations.is_some() || args.bytes.is_some();
    if args.burst_seconds.is_some() && !limited {
        return Err(Failure::usage("--burst-seconds needs --operations or --bytes"));
    }
    if !limited && !args.none {
        let vdi = sr.vdi_stat(&session.op, vdi, false).await?;
        let document = json!({"vdi": vdi.uuid, "qos": vdi.qos});
        return Ok(Report::new(session.json, &document, || format!("{}\n", qos_text(&vdi.qos))));
    }
    let rate = |per_second: u64| Rate {
        per_second,
        burst: args.burst_seconds.map(|seconds| per_second.saturating_mul(seconds)),
    };
    let qos =
        Qos { operations: args.operations.map(rate), bytes: args.bytes.map(|bytes| rate(bytes.0)) };
    let done = sr.vdi_qos(&session.op, vdi, qos).await?;
    let document = json!({"changed": done.changed, "vdi": vdi, "qos": done.vdi.qos});
    Ok(Report::new(session.json, &document, || {
        changed_text(done.changed, &format!("VDI {vdi}: {}", qos_text(&done.vdi.qos)))
    }))
}

fn qos_text(qos: &Qos) -> String {
    let mut parts = Vec::new();
    if let Some(rate) = qos.operations {
        parts.push(format!("{} requests/s", rate.per_second));
    }
    if let Some(rate) = qos.bytes {
        parts.push(format!("{}/s", Bytes(rate.per_second)));
    }
    if parts.is_empty() { "no limits".to_owned() } else { format!("at most {}", parts.join(", ")) }
}

async fn snapshot(
    session: &Session,
    sr: &Sr,
    selectors: &[String],
    name: Option<&str>,
    description: &str,
    metadata: Option<&Utf8Path>,
) -> Result<Report> {
    let document = metadata.map(crate::quiesce::document).transpose()?;
    let mut snapshots = Vec::with_capacity(selectors.len());
    for selector in selectors {
        let vdi = session.vdi(sr, selector).await?;
        let name = match name {
            Some(name) => name.to_owned(),
            None => sr.vdi(&session.op, &vdi.to_string()).await?.name,
        };
        snapshots.push(NewSnapshot { vdi, name, description: description.to_owned() });
    }
    let done = match &document {
        None => sr.vdi_snapshot(&session.op, &snapshots).await?,
        Some(text) => sr.vdi_snapshot_set(&session.op, &snapshots, Some(text)).await?,
    };
    let report = Report::new(session.json, &done, || {
        lines(done.vdis.iter().map(|vdi| vdi.uuid.to_string()))
    });
    Ok(match done.changed {
        Changed::Already => report.note(session.json, "smctl: it was there already"),
        Changed::Created | Changed::Modified => report,
    })
}

/// Each text on a line.
pub(crate) fn lines(texts: impl Iterator<Item = String>) -> String {
    texts.fold(String::new(), |all, text| all + &text + "\n")
}

async fn list(session: &Session, sr: &Sr) -> Result<Report> {
    let mut vdis = sr.vdis(&session.op).await?;
    by_name(&mut vdis);
    Ok(Report::new(session.json, &json!({"vdis": vdis}), || vdi_table(&vdis, session.style)))
}

/// The order of listings: that of the driver means nothing to people.
pub(crate) fn by_name(vdis: &mut [VdiInfo]) {
    vdis.sort_by(|a, b| (&a.name, a.uuid).cmp(&(&b.name, b.uuid)));
}

/// The listing of VDIs.
pub(crate) fn vdi_table(vdis: &[VdiInfo], style: Style) -> String {
    // Not every driver can tell what comes back when a disk goes.
    let exclusive = vdis.iter().any(|vdi| vdi.exclusive.is_some());
    let mut columns = vec![
        ("UUID", Align::Left),
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("USED", Align::Right),
    ];
    if exclusive {
        columns.push(("EXCLUSIVE", Align::Right));
    }
    columns.extend([("FORMAT", Align::Left), ("KIND", Align::Left), ("HEALTH", Align::Left)]);
    let mut table = Table::new(&columns);
    for vdi in vdis {
        let mut row = vec![
            vdi.uuid.to_string(),
            escape(&vdi.name),
            vdi.virtual_size.to_string(),
            vdi.physical_utilisation.to_string(),
        ];
        if exclusive {
            row.push(vdi.exclusive.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string()));
        }
        row.extend([vdi.format.to_string(), kind_text(vdi), health_text(&vdi.health)]);
        table.row(row);
    }
    table.render(style)
}

fn kind_text(vdi: &VdiInfo) -> String {
    let mut text = match vdi.vdi_type {
        VdiType::User if vdi.is_a_snapshot => "snapshot".to_owned(),
        VdiType::User => "disk".to_owned(),
        other if vdi.is_a_snapshot => format!("snapshot, {}", type_name(other)),
        other => type_name(other),
    };
    if vdi.incomplete {
        text.push_str(", incomplete");
    }
    text
}

/// A type by its name in JSON.
fn type_name(vdi_type: VdiType) -> String {
    match serde_json::to_value(vdi_type) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

async fn show(session: &Session, sr: &Sr, selector: &str) -> Result<Report> {
    let vdi = session.vdi(sr, selector).await?;
    let vdi = sr.vdi_stat(&session.op, vdi, true).await?;
    let attachment = sr.attachments()?.into_iter().find(|record| record.vdi == vdi.uuid);
    let datapath = match &attachment {
        Some(_) => attach::look(sr, vdi.uuid).await,
        None => None,
    };
    let Mirrored { moved, .. } = sr.vdi_mirror(vdi.uuid).await?;
    let document = json!({
        "vdi": vdi,
        "sr": sr.uuid(),
        "attachment": attachment.as_ref().map(attach::document),
        "datapath": datapath,
        "moved": moved,
    });
    Ok(Report::new(session.json, &document, || {
        let mut text = show_text(&vdi, attachment.as_ref());
        if let Some(status) = &datapath {
            text.push_str(&attach::status_text(status));
        }
        if let Some(moved) = &moved {
            let mut block = Block::default();
            crate::mirror::moved_line(&mut block, moved);
            text.push_str(&block.render());
        }
        text
    }))
}

fn show_text(vdi: &VdiInfo, attachment: Option<&AttachmentRecord>) -> String {
    let mut block = Block::default();
    block
        .line("uuid", vdi.uuid.to_string())
        .text("name", &vdi.name)
        .text("description", &vdi.description)
        .line("kind", kind_text(vdi))
        .line("size", vdi.virtual_size.to_string())
        .line("used", vdi.physical_utilisation.to_string());
    if let Some(bytes) = vdi.exclusive {
        block.line("exclusive", format!("{bytes} (comes back when it is destroyed)"));
    }
    if let Some(bytes) = vdi.reclaimable {
        block.line("reclaimable", bytes.to_string());
    }
    block
        .line("format", vdi.format.to_string())
        .line("read-only", yes(vdi.read_only))
        .line("sharable", yes(vdi.sharable));
    block.line("changes", if vdi.cbt_enabled { "tracked" } else { "not tracked" });
    if let Some(of) = vdi.snapshot_of {
        block.line("snapshot of", of.to_string());
    }
    if let Some(time) = vdi.snapshot_time {
        block.line("taken", timestamp(time));
    }
    if let Some(group) = group_of(vdi) {
        block.text("group", group);
    }
    if !vdi.qos.is_unlimited() {
        block.line("limits", qos_text(&vdi.qos));
    }
    let own = |key: &str| key.starts_with(sm_core::marks::OWN);
    for (key, value) in vdi.keys.iter().filter(|(key, _)| !own(key)) {
        block.text(format!("key:{}", escape(key)), value);
    }
    block.line("health", health_text(&vdi.health));
    match attachment {
        None => {
            block.line("attached", "no");
        }
        Some(record) => {
            for (name, held) in &record.datapaths {
                let active = if held.activated { "I/O allowed" } else { "no I/O yet" };
                block.line("attached", format!("{}: {}, {active}", escape(name), held.mode));
            }
            for way in &record.access {
                block.line("access", attach::access_text(way));
            }
        }
    }
    block.render()
}

fn check_report(session: &Session, vdi: VdiUuid, checked: &VdiChecked) -> Report {
    let report = Report::new(session.json, checked, || {
        if checked.findings.is_empty() {
            return format!("VDI {vdi} is sound\n");
        }
        let mut table = Table::new(&[
            ("SEVERITY", Align::Left),
            ("OBJECT", Align::Left),
            ("FINDING", Align::Left),
        ]);
        for finding in &checked.findings {
            let severity = match finding.severity {
                Severity::Note => "note",
                Severity::Warning => "warning",
                Severity::Error => "error",
            };
            table.row([severity.to_owned(), escape(&finding.object), escape(&finding.text)]);
        }
        table.render(session.style)
    });
    let damaged = checked.findings.iter().any(|finding| finding.severity == Severity::Error);
    if damaged { report.status(Status::CORRUPT) } else { report }
}
