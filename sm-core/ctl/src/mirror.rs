//! `smctl vdi mirror` and `smctl vdi serve`.

use camino::Utf8PathBuf;
use serde_json::json;
use sm_core::datapath_protocol::{
    Credentials, Listen, MirrorPhase, MirrorStatus, Moved, RemoteStatus,
};
use sm_core::{MirrorTarget, Mirrored, Sr};
use sm_model::{Bytes, Changed, Error, Kind, VdiUuid};

use crate::cli::mirror::{Files, MirrorCommand, ServeArgs};
use crate::errors::{Failure, Result};
use crate::output::{Block, Report, escape, timestamp};
use crate::progress::Progress;
use crate::session::Session;
use crate::sr::changed_text;

/// Does one command.
pub(crate) async fn run(session: &Session, sr: &Sr, command: &MirrorCommand) -> Result<Report> {
    let op = &session.op;
    match command {
        MirrorCommand::Start { vdi, uri, rate, wait, server_name, files } => {
            let vdi = session.vdi(sr, &vdi.vdi).await?;
            let target = MirrorTarget {
                uri: uri.clone(),
                credentials: credentials(files)?,
                server_name: server_name.clone(),
                rate: *rate,
            };
            let begun = sr.vdi_mirror_start(op, vdi, target).await?;
            let status = if *wait { ready(session, sr, vdi).await? } else { begun };
            let next = if status.phase == MirrorPhase::Ready {
                format!("it can be switched to: smctl vdi mirror switch {vdi}")
            } else {
                format!("it goes on by itself; smctl vdi mirror status {vdi} tells how far it is")
            };
            Ok(mirror(session, vdi, &of(status)).note(session.json, format!("smctl: {next}")))
        }
        MirrorCommand::Status { vdi, wait } => {
            let vdi = session.vdi(sr, &vdi.vdi).await?;
            let mut told = sr.vdi_mirror(vdi).await?;
            if *wait && told.mirror.is_some() {
                told = of(ready(session, sr, vdi).await?);
            }
            Ok(mirror(session, vdi, &told))
        }
        MirrorCommand::Rate { vdi, rate } => {
            let vdi = session.vdi(sr, &vdi.vdi).await?;
            let status = sr.vdi_mirror_rate(op, vdi, *rate).await?;
            Ok(mirror(session, vdi, &of(status)))
        }
        MirrorCommand::Switch { vdi, verify } => {
            let vdi = session.vdi(sr, &vdi.vdi).await?;
            let moved = sr.vdi_mirror_switch(op, vdi, *verify).await?;
            let document = json!({"vdi": vdi, "moved": moved});
            let text = format!(
                "VDI {vdi} is at {}; requests waited for {} ms at most\n",
                escape(&moved.target),
                moved.milliseconds
            );
            Ok(Report::new(session.json, &document, || text))
        }
        MirrorCommand::Cancel(selector) => {
            let vdi = session.vdi(sr, &selector.vdi).await?;
            let there = sr.vdi_mirror_cancel(op, vdi).await?;
            Ok(changed(session, vdi, there, "is not mirrored any more"))
        }
        MirrorCommand::Forget(selector) => {
            let vdi = session.vdi(sr, &selector.vdi).await?;
            let there = sr.vdi_mirror_forget(op, vdi).await?;
            Ok(changed(session, vdi, there, "counts as not moved"))
        }
    }
}

/// Serves a VDI to other hosts, or does so no more.
pub(crate) async fn serve(session: &Session, sr: &Sr, args: &ServeArgs) -> Result<Report> {
    let vdi = session.vdi(sr, &args.vdi.vdi).await?;
    let Some(address) = args.listen else {
        let there = sr.vdi_serve_end(&session.op, vdi).await?;
        return Ok(changed(session, vdi, there, "is not served to other hosts any more"));
    };
    let credentials = credentials(&args.files)?;
    if credentials.is_none() && !args.plain {
        return Err(Failure::usage(
            "other hosts are served with TLS: the certificates are missing",
        )
        .hint("say --certificate, --key and --authority; or --plain, on a loopback address"));
    }
    let remote = sr.vdi_serve(&session.op, vdi, Listen { address, credentials }).await?;
    let document = json!({"vdi": vdi, "remote": remote});
    Ok(Report::new(session.json, &document, || format!("{}\n", escape(&remote.uri))))
}

/// Another process reads them, which has another working directory.
fn credentials(files: &Files) -> Result<Option<Credentials>> {
    let Files { certificate: Some(certificate), key: Some(key), authority: Some(authority) } =
        files
    else {
        return Ok(None);
    };
    let absolute = |file: &Utf8PathBuf| {
        camino::absolute_utf8(file)
            .map(Utf8PathBuf::into_std_path_buf)
            .map_err(|error| crate::errors::file_error(file, error))
    };
    Ok(Some(Credentials {
        certificate: absolute(certificate)?,
        key: absolute(key)?,
        authority: absolute(authority)?,
    }))
}

/// Waits with a bar.
async fn ready(session: &Session, sr: &Sr, vdi: VdiUuid) -> Result<MirrorStatus> {
    let progress = Progress::start(session.json);
    let op = session.op.clone().with_progress(progress.sink());
    let wait = sr.vdi_mirror_wait(&op, vdi);
    let waited = match session.timeout {
        None => wait.await,
        Some(time) => tokio::time::timeout(time, wait).await.unwrap_or_else(|_| {
            let text = format!("the mirror of VDI {vdi} was not ready within {time:?}");
            Err(Error::new(Kind::DeadlineExceeded, text))
        }),
    };
    progress.finish();
    waited.map_err(|error| match error.kind {
        Kind::Cancelled | Kind::DeadlineExceeded => error
            .hint(format!("only the waiting has ended; to end it: smctl vdi mirror cancel {vdi}"))
            .into(),
        _ => error.into(),
    })
}

fn changed(session: &Session, vdi: VdiUuid, there: bool, what: &str) -> Report {
    let changed = if there { Changed::Modified } else { Changed::Already };
    let document = json!({"changed": changed, "vdi": vdi});
    Report::new(session.json, &document, || changed_text(changed, &format!("VDI {vdi} {what}")))
}

/// A mirror that is there.
fn of(status: MirrorStatus) -> Mirrored {
    Mirrored { mirror: Some(status), ..Mirrored::default() }
}

fn mirror(session: &Session, vdi: VdiUuid, told: &Mirrored) -> Report {
    let Mirrored { mirror: status, moved, in_doubt } = told;
    let document = json!({"vdi": vdi, "mirror": status, "moved": moved, "in_doubt": in_doubt});
    Report::new(session.json, &document, || match (status, moved) {
        (Some(status), _) => {
            let mut block = Block::default();
            mirror_lines(&mut block, status);
            block.render()
        }
        (None, Some(moved)) if *in_doubt => format!(
            "VDI {vdi} was being moved to {} when the host went down\n",
            escape(&moved.target)
        ),
        (None, Some(moved)) => {
            let mut block = Block::default();
            moved_line(&mut block, moved);
            block.render()
        }
        (None, None) => format!("VDI {vdi} is not mirrored\n"),
    })
}

/// What a mirror does, for people.
pub(crate) fn mirror_lines(block: &mut Block, status: &MirrorStatus) {
    let phase = match status.phase {
        MirrorPhase::Copying => "copying",
        MirrorPhase::Ready => "ready: it can be switched to",
        MirrorPhase::Retrying => "the target fails and is tried again",
        MirrorPhase::Switching => "switching",
        MirrorPhase::Failed => "failed; the VDI is as if there were none",
        MirrorPhase::Other => "other",
    };
    block.text("mirror to", &status.target).line("mirror", phase);
    if let Some(reason) = &status.reason {
        block.text("mirror error", reason);
    }
    let mut copied = format!(
        "{} of {}, {} left",
        Bytes(status.copied),
        Bytes(status.total),
        Bytes(status.dirty)
    );
    if let Some(rate) = status.rate {
        copied += ", at most ";
        copied += &Bytes(rate).to_string();
        copied += "/s";
    }
    block.line("mirror copied", copied).line("mirror writes", status.forwarded.to_string());
    if status.retries > 0 {
        block.line("mirror retries", status.retries.to_string());
    }
}

/// Where a VDI went, for people.
pub(crate) fn moved_line(block: &mut Block, moved: &Moved) {
    let compared = if moved.verified { ", every byte compared" } else { "" };
    block.line(
        "moved to",
        format!("{} at {}{compared}", escape(&moved.target), timestamp(moved.time)),
    );
}

/// How other hosts reach a VDI, for people.
pub(crate) fn remote_line(block: &mut Block, remote: &RemoteStatus) {
    let how = if remote.tls { "with TLS" } else { "without TLS" };
    let text = format!("{} ({how}, {} clients)", escape(&remote.uri), remote.connections);
    block.line("served at", text);
}
