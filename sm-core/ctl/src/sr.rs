//! `smctl sr`

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::json;
use sm_core::{NewSr, SrRecord};
use sm_model::host::SECRET_PREFIX;
use sm_model::sr::{ProbeItem, SrInfo, SrProbed, SrRecovered, SrUpdate, SrUsage};
use sm_model::{Changed, DeviceConfig, SrUuid};

use crate::cli::sr::SrCommand;
use crate::config;
use crate::errors::Result;
use crate::legacy_xml;
use crate::output::{Align, Block, Report, Table, escape, timestamp, yes};
use crate::session::Session;
use crate::shell;
use crate::tree::{health_text, share};
use crate::vdi::{by_name, vdi_table};

/// Does one command.
pub(crate) async fn run(session: &Session, command: &SrCommand) -> Result<Report> {
    let op = &session.op;
    let json = session.json;
    match command {
        SrCommand::Probe { config, legacy_xml } => probe(session, config, *legacy_xml).await,
        SrCommand::Create { name, new, uuid } => {
            let new = NewSr {
                driver: session.driver_name()?,
                uuid: *uuid,
                name: name.clone(),
                description: new.description.clone(),
                device_config: config::device_config(&new.config)?,
            };
            add(session, new, true).await
        }
        SrCommand::Introduce { uuid, config } => {
            let new = NewSr {
                driver: session.driver_name()?,
                uuid: Some(*uuid),
                device_config: config::device_config(config)?,
                ..NewSr::default()
            };
            add(session, new, false).await
        }
        SrCommand::List => list(session),
        SrCommand::Show(selector) => show(session, &selector.sr).await,
        SrCommand::Attach(selector) => {
            let recovered = session.sr(&selector.sr)?.attach(op).await?;
            Ok(Report::new(json, &recovered, || recovered_text(&recovered)))
        }
        SrCommand::Detach(selector) => {
            let sr = session.sr(&selector.sr)?;
            sr.detach(op).await?;
            Ok(done(json, sr.uuid(), "detached"))
        }
        SrCommand::Scan(selector) => {
            let mut scan = session.sr(&selector.sr)?.scan(op).await?;
            by_name(&mut scan.vdis);
            let document = json!({"vdis": scan.vdis, "recovered": scan.recovered});
            let report = Report::new(json, &document, || vdi_table(&scan.vdis, session.style));
            let recovered = recovered_text(&scan.recovered);
            Ok(if recovered.is_empty() { report } else { report.note(json, recovered.trim_end()) })
        }
        SrCommand::Maintain { sr, dry_run, budget } => {
            let sr = session.sr(&sr.sr)?;
            crate::maintain::maintain(session, &sr, budget, *dry_run).await
        }
        SrCommand::Stat(selector) => {
            let info = session.sr(&selector.sr)?.stat(op).await?;
            Ok(Report::new(json, &info, || {
                let mut block = Block::default();
                block.line("uuid", info.uuid.to_string()).text("name", &info.name);
                info_lines(&mut block, &info);
                block.render()
            }))
        }
        SrCommand::Update { sr, change } => {
            let sr = session.sr(&sr.sr)?;
            let update =
                SrUpdate { name: change.name.clone(), description: change.description.clone() };
            let answer = sr.update(op, update).await?;
            Ok(Report::new(json, &answer, || {
                changed_text(answer.changed, &format!("SR {} is updated", sr.uuid()))
            }))
        }
        SrCommand::Forget(selector) => {
            let sr = session.sr(&selector.sr)?;
            let paste = introduce_command(session, sr.record());
            sr.forget(op).await?;
            Ok(done(json, sr.uuid(), "forgotten").note(json, format!("to have it back: {paste}")))
        }
        SrCommand::Destroy(selector) => {
            let uuid = session.manager.sr_destroy(op, &selector.sr).await?;
            Ok(done(json, uuid, "destroyed"))
        }
    }
}

/// For commands that answer nothing: which SR, and what became of it.
fn done(json: bool, uuid: SrUuid, what: &str) -> Report {
    let document = json!({"changed": Changed::Modified, "sr": uuid});
    Report::new(json, &document, || format!("SR {uuid} is {what}\n"))
}

/// What a mutation did, in a sentence.
pub(crate) fn changed_text(changed: Changed, sentence: &str) -> String {
    match changed {
        Changed::Already => format!("{sentence} (it was so already)\n"),
        Changed::Created | Changed::Modified => format!("{sentence}\n"),
    }
}

async fn add(session: &Session, mut new: NewSr, create: bool) -> Result<Report> {
    let manifest = session.manager.driver(&new.driver)?.manifest;
    config::fetch_secrets(session, &manifest, &mut new.device_config).await?;
    let record = if create {
        session.manager.sr_create(&session.op, new).await?
    } else {
        session.manager.sr_introduce(&session.op, new).await?
    };
    Ok(Report::new(session.json, &document(&record), || format!("{}\n", record.uuid)))
}

/// The fields of a record that are the interface; the engine keeps more for itself.
fn document(record: &SrRecord) -> serde_json::Value {
    json!({
        "uuid": record.uuid,
        "driver": record.driver,
        "name": record.name,
        "description": record.description,
        "device_config": record.device_config,
        "attached": record.attached,
        "created": record.created,
    })
}

fn list(session: &Session) -> Result<Report> {
    let mut records = session.manager.srs()?;
    records.sort_by(|a, b| (&a.name, a.uuid).cmp(&(&b.name, b.uuid)));
    let document = json!({"srs": records.iter().map(document).collect::<Vec<_>>()});
    let report = Report::new(session.json, &document, || {
        let mut table = Table::new(&[
            ("UUID", Align::Left),
            ("NAME", Align::Left),
            ("DRIVER", Align::Left),
            ("ATTACHED", Align::Left),
            ("DEVICE-CONFIG", Align::Left),
        ]);
        for record in &records {
            table.row([
                record.uuid.to_string(),
                escape(&record.name),
                escape(&record.driver),
                yes(record.attached).to_owned(),
                config_text(&record.device_config),
            ]);
        }
        table.render(session.style)
    });
    Ok(if records.is_empty() {
        report.note(session.json, "smctl: no SR yet; make one with `smctl sr create`")
    } else {
        report
    })
}

async fn show(session: &Session, selector: &str) -> Result<Report> {
    let sr = session.sr(selector)?;
    let record = sr.record();
    // A detached SR is shown from the catalog; the backend is not asked.
    let info = if record.attached { Some(sr.stat(&session.op).await?) } else { None };
    let document = json!({"sr": document(record), "info": info});
    Ok(Report::new(session.json, &document, || {
        let mut block = Block::default();
        block
            .line("uuid", record.uuid.to_string())
            .text("name", &record.name)
            .text("description", &record.description)
            .text("driver", &record.driver)
            .line("attached", yes(record.attached))
            .line("known since", timestamp(record.created));
        for (key, value) in &record.device_config {
            block.line(format!("device-config:{}", escape(key)), config_value(value));
        }
        if let Some(info) = &info {
            info_lines(&mut block, info);
        }
        block.render()
    }))
}

fn info_lines(block: &mut Block, info: &SrInfo) {
    block
        .line("used", share(info.physical_utilisation, info.physical_size))
        .line("allocated", info.virtual_allocation.to_string())
        .line("VDIs", info.vdis.to_string())
        .line("health", health_text(&info.health));
    if let Some(usage) = &info.usage {
        let SrUsage { vdis, base_copies, overhead } = usage;
        let parts = format!("VDIs {vdis}, base copies {base_copies}, other {overhead}");
        block.line("takes", format!("{} ({parts})", usage.total()));
    }
    if let Some(paths) = &info.paths {
        block.line("paths", format!("{} of {} up", paths.up, paths.max));
        for down in &paths.down {
            block.text("down", down);
        }
    }
    for vdi in &info.quarantined {
        block.line("quarantined", vdi.to_string());
    }
    for warning in &info.warnings {
        block.text("warning", warning);
    }
}

fn config_value(value: &str) -> String {
    if value.starts_with(SECRET_PREFIX) { "***".to_owned() } else { escape(value) }
}

fn config_text(config: &DeviceConfig) -> String {
    let words: Vec<String> = config
        .iter()
        .map(|(key, value)| format!("{}={}", escape(key), config_value(value)))
        .collect();
    words.join(" ")
}

/// What a recovery did, a line each; empty if there was nothing to do.
fn recovered_text(recovered: &SrRecovered) -> String {
    let mut text = String::new();
    for (word, sentences) in [
        ("completed", &recovered.completed),
        ("undone", &recovered.undone),
        ("removed", &recovered.removed),
    ] {
        for sentence in sentences {
            text.push_str(word);
            text.push_str(": ");
            text.push_str(&escape(sentence));
            text.push('\n');
        }
    }
    text
}

async fn probe(session: &Session, words: &[String], legacy_xml: bool) -> Result<Report> {
    let driver = session.driver_name()?;
    let manifest = session.manager.driver(&driver)?.manifest;
    let typed = config::device_config(words)?;
    let mut wanted = typed.clone();
    config::fetch_secrets(session, &manifest, &mut wanted).await?;
    let probed = session.manager.probe(&session.op, &driver, wanted).await?;
    if legacy_xml {
        return Ok(Report::new(false, &probed, || legacy_xml::render(&probed)));
    }
    // What is printed must not repeat a secret that was typed in clear.
    let shown: DeviceConfig = typed
        .into_iter()
        .map(|(key, value)| {
            let secret = manifest.field(&key).is_some_and(|field| field.secret);
            let reference = value.starts_with('@') || value == "-";
            if secret && !reference { (key, "-".to_owned()) } else { (key, value) }
        })
        .collect();
    let report =
        Report::new(session.json, &probed, || probe_text(session, &driver, &shown, &probed));
    Ok(if probed.items.is_empty() {
        report.note(session.json, "smctl: the probe found nothing with these keys")
    } else {
        report
    })
}

fn probe_text(session: &Session, driver: &str, given: &DeviceConfig, probed: &SrProbed) -> String {
    let mut text = String::new();
    for item in &probed.items {
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = writeln!(text, "# {}", item_heading(item));
        let mut config = given.clone();
        config.extend(item.configuration.clone());
        let begin = match (&item.sr, item.complete) {
            (Some(sr), _) => vec!["introduce".to_owned(), format!("--uuid={}", sr.uuid)],
            (None, true) => vec!["create".to_owned(), "--name=NAME".to_owned()],
            (None, false) => vec!["probe".to_owned()],
        };
        text.push_str(&session.sr_command(driver, &begin, &config));
        text.push('\n');
    }
    text
}

/// What an item is, as a comment of the shell.
fn item_heading(item: &ProbeItem) -> String {
    let mut heading = match (&item.sr, item.complete) {
        (Some(sr), _) => format!("an SR: {} \"{}\"", sr.uuid, escape(&sr.name)),
        (None, true) => "room for a new SR".to_owned(),
        (None, false) => "more to find with these keys".to_owned(),
    };
    let info: BTreeMap<_, _> = item.extra_info.iter().collect();
    for (key, value) in info {
        let _ = write!(heading, "; {}: {}", escape(key), escape(value));
    }
    heading
}

fn introduce_command(session: &Session, record: &SrRecord) -> String {
    let config = record
        .device_config
        .iter()
        .map(|(key, value)| {
            let value = if value.starts_with(SECRET_PREFIX) { "-" } else { value };
            (key.clone(), value.to_owned())
        })
        .collect();
    let begin = ["introduce".to_owned(), format!("--uuid={}", record.uuid)];
    session.sr_command(&record.driver, &begin, &config)
}

impl Session {
    /// A command of `sr` that is ready to paste.
    fn sr_command(&self, driver: &str, words: &[String], config: &DeviceConfig) -> String {
        let mut all = vec![self.program(), "sr".to_owned()];
        all.extend_from_slice(words);
        all.push(format!("--driver={}", self.driver_word(driver)));
        all.extend(config.iter().map(|(key, value)| format!("{key}={value}")));
        shell::join(all.iter().map(String::as_str))
    }
}
