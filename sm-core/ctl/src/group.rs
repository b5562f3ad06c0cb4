//! `smctl group`.

use serde_json::json;
use sm_core::{Group, GroupDone, Sr};
use sm_model::{Changed, VdiUuid};

use crate::cli::group::{GroupArgs, GroupCommand};
use crate::errors::Result;
use crate::output::{Align, Report, Table, escape};
use crate::session::Session;
use crate::sr::changed_text;
use crate::vdi::lines;

/// Does one command.
pub(crate) async fn run(session: &Session, args: &GroupArgs) -> Result<Report> {
    let sr = session.sr_or_only(args.sr.as_deref())?;
    let (op, json) = (&session.op, session.json);
    match &args.command {
        GroupCommand::Create(members) => {
            let vdis = vdis(session, &sr, &members.vdis).await?;
            Ok(done(json, &sr.group_create(op, &members.group, &vdis).await?))
        }
        GroupCommand::Add(members) => {
            let vdis = vdis(session, &sr, &members.vdis).await?;
            Ok(done(json, &sr.group_add(op, &members.group, &vdis).await?))
        }
        GroupCommand::Remove(members) => {
            let vdis = vdis(session, &sr, &members.vdis).await?;
            Ok(done(json, &sr.group_remove(op, &members.group, &vdis).await?))
        }
        GroupCommand::List => {
            let groups = sr.groups(op).await?;
            Ok(Report::new(json, &json!({"groups": groups}), || {
                let mut table = Table::new(&[
                    ("GROUP", Align::Left),
                    ("VDI", Align::Left),
                    ("NAME", Align::Left),
                    ("SIZE", Align::Right),
                ]);
                for Group { name, vdis } in &groups {
                    for vdi in vdis {
                        table.row([
                            escape(name),
                            vdi.uuid.to_string(),
                            escape(&vdi.name),
                            vdi.virtual_size.to_string(),
                        ]);
                    }
                }
                table.render(session.style)
            }))
        }
        GroupCommand::Snapshot { group, name, description } => {
            let done = sr.group_snapshot(op, group, name.as_deref(), description).await?;
            let report = Report::new(json, &done, || {
                lines(done.vdis.iter().map(|vdi| vdi.uuid.to_string()))
            });
            Ok(match done.changed {
                Changed::Already => report.note(json, "smctl: it was there already"),
                Changed::Created | Changed::Modified => report,
            })
        }
        GroupCommand::Destroy { group } => Ok(done(json, &sr.group_destroy(op, group).await?)),
    }
}

async fn vdis(session: &Session, sr: &Sr, selectors: &[String]) -> Result<Vec<VdiUuid>> {
    let mut vdis = Vec::with_capacity(selectors.len());
    for selector in selectors {
        vdis.push(session.vdi(sr, selector).await?);
    }
    Ok(vdis)
}

fn done(json: bool, done: &GroupDone) -> Report {
    Report::new(json, done, || {
        let name = escape(&done.group.name);
        let text = match done.group.vdis.len() {
            0 => format!("group \"{name}\" has no VDIs, and is none any more"),
            1 => format!("group \"{name}\" has 1 VDI"),
            count => format!("group \"{name}\" has {count} VDIs"),
        };
        changed_text(done.changed, &text)
    })
}
