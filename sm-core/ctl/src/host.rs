//! `smctl host`.

use std::fmt::Write as _;

use serde_json::json;
use sm_core::Sr;
use sm_model::sr::SrFenced;
use sm_model::{Error, HostId, Kind, Operation};

use crate::cli::host::HostCommand;
use crate::errors::{Failure, Result, Status};
use crate::output::{Report, escape};
use crate::session::Session;
use crate::sr::changed_text;

/// Does one command.
pub(crate) async fn run(session: &Session, command: &HostCommand) -> Result<Report> {
    let HostCommand::Fence { host, sr, yes } = command;
    let srs = meant(session, sr)?;
    if !yes {
        return Err(ask(host, &srs));
    }
    fence(session, host, &srs).await
}

/// The SRs of `--sr`, or all that hosts can be shut out of.
fn meant(session: &Session, selectors: &[String]) -> Result<Vec<Sr>> {
    let mut srs = Vec::new();
    for selector in selectors {
        srs.push(session.sr(selector)?);
    }
    if selectors.is_empty() {
        for record in session.manager.srs()?.iter().filter(|record| record.attached) {
            let manifest = session.manager.driver(&record.driver)?.manifest;
            if manifest.can(Operation::SrFence.name()) {
                srs.push(session.manager.sr(&record.uuid.to_string())?);
            }
        }
    }
    if srs.is_empty() {
        return Err(Error::unsupported("no SR that is attached here can shut a host out")
            .hint("smctl driver list says which drivers have sr_fence")
            .into());
    }
    Ok(srs)
}

/// What it means, for whoever has not said `--yes`.
fn ask(host: &str, srs: &[Sr]) -> Failure {
    let names: Vec<String> = srs.iter().map(|sr| escape(&sr.record().name)).collect();
    let host = escape(host);
    Failure::usage(format!(
        "host {host} would lose all that it has of {}: others can attach its VDIs at once, and what \
         it has not written is lost. Where the storage cannot refuse its writes (sr stat says so), it \
         must be off now",
        names.join(", ")
    ))
    .hint(format!("smctl host fence {host} --yes"))
}

/// Each SR by itself: one that fails keeps the host in no other.
async fn fence(session: &Session, host: &str, srs: &[Sr]) -> Result<Report> {
    let id = HostId(host.to_owned());
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for sr in srs {
        // Each is a wish of its own.
        let op = session.op.part(&sr.uuid().to_string());
        match sr.fence(&op, &id).await {
            Ok(fenced) => done.push((sr, fenced)),
            Err(error) => failed.push((sr, error)),
        }
    }
    // An SR that the host has never used has nothing to shut it out of.
    let matters = |(_, error): &&(&Sr, Error)| error.kind != Kind::NotFound;
    let first = failed.iter().find(matters).or_else(|| failed.first().filter(|_| done.is_empty()));
    let status = first.map_or(Status::OK, |(_, error)| Status::of(&error.kind));
    if let (true, Some((_, error))) = (done.is_empty(), first) {
        return Err(error.clone().into());
    }
    failed.retain(|failed| matters(&failed));
    let rows = done.iter().map(|(sr, fenced)| json!({"sr": sr.uuid(), "fenced": fenced}));
    let mut document = json!({"host": host, "srs": rows.collect::<Vec<_>>()});
    if !failed.is_empty() {
        let rows = failed.iter().map(|(sr, error)| json!({"sr": sr.uuid(), "error": error}));
        document["failed"] = rows.collect();
    }
    let report = Report::new(session.json, &document, || text(host, &done)).status(status);
    let said: Vec<String> = failed.iter().map(|(sr, error)| not_out(host, sr, error)).collect();
    Ok(if said.is_empty() { report } else { report.note(session.json, said.join("\n")) })
}

fn not_out(host: &str, sr: &Sr, error: &Error) -> String {
    let (host, name) = (escape(host), escape(&sr.record().name));
    format!("smctl: host {host} is NOT shut out of {name}: {}", escape(&error.message))
}

fn text(host: &str, done: &[(&Sr, SrFenced)]) -> String {
    let mut text = String::new();
    for (sr, fenced) in done {
        let (name, epoch) = (escape(&sr.record().name), fenced.epoch);
        let sentence = format!("host {} is shut out of {name}, epoch {epoch}", escape(host));
        text.push_str(&changed_text(fenced.changed, &sentence));
        for vdi in &fenced.vdis {
            let _ = writeln!(text, "  VDI {vdi} is free");
        }
        let enforced = match &fenced.reason {
            _ if fenced.enforced => "the storage refuses what it writes".to_owned(),
            Some(reason) => {
                format!("keep it off; nothing stops what it writes: {}", escape(reason))
            }
            None => "keep it off; nothing stops what it writes".to_owned(),
        };
        let _ = writeln!(text, "  {enforced}");
    }
    text
}
