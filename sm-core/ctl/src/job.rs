//! `smctl job`

use std::time::Duration;

use serde_json::{Value, json};
use sm_core::{JobRecord, JobState};
use sm_model::{Error, Kind};

use crate::cli::job::JobCommand;
use crate::errors::Result;
use crate::output::{Align, Block, Report, Table, escape, timestamp};
use crate::progress::{Progress, summary};
use crate::session::Session;

/// Waiting without a limit, for a clock that cannot count to infinity.
const FOR_EVER: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// Does one command.
pub(crate) async fn run(session: &Session, command: &JobCommand) -> Result<Report> {
    match command {
        JobCommand::List => list(session),
        JobCommand::Show(selector) => {
            let job = session.manager.job(&selector.job)?;
            Ok(Report::new(session.json, &document(&job), || show_text(&job)))
        }
        JobCommand::Cancel(selector) => {
            let job = session.manager.job(&selector.job)?;
            let job = session.manager.job_cancel(job.id)?;
            Ok(Report::new(session.json, &document(&job), || match job.state {
                JobState::Running => format!("job {} is asked to stop\n", job.id),
                _ => format!("job {} is {}\n", job.id, state_name(job.state)),
            }))
        }
        JobCommand::Wait(selector) => {
            let job = session.manager.job(&selector.job)?;
            let progress = Progress::start(session.json);
            let limit = session.timeout.unwrap_or(FOR_EVER);
            let end = tokio::select! {
                end = session.manager.job_wait(job.id, limit, Some(progress.sink())) => end,
                // Ctrl-C ends the waiting, not the job.
                () = session.op.cancel.cancelled() => Err(Error::new(
                    Kind::Cancelled,
                    format!("job {} goes on; only the waiting has ended", job.id),
                ).hint(format!("to end the job: smctl job cancel {}", job.id))),
            };
            progress.finish();
            ended(session, end?)
        }
        JobCommand::Resume(selector) => {
            let job = session.manager.job(&selector.job)?;
            let progress = Progress::start(session.json);
            let op = session.op.clone().with_progress(progress.sink());
            let end = session.manager.job_resume(&op, job.id).await;
            progress.finish();
            ended(session, end?)
        }
    }
}

/// A job that has ended: its error is the error of the command.
fn ended(session: &Session, job: JobRecord) -> Result<Report> {
    match job.state {
        JobState::Done | JobState::Running => {
            if let Some(done) = &job.maintained {
                return Ok(Report::new(session.json, &document(&job), || {
                    crate::maintain::text(job.sr, done, false)
                }));
            }
            let took = job.finished.unwrap_or(job.started).saturating_sub(job.started);
            let figures = summary(job.bytes_total, Duration::from_secs(took));
            Ok(Report::new(session.json, &document(&job), || match job.vdi {
                Some(vdi) if job.kind() != "export" => format!("{vdi}\n"),
                _ => format!("job {} is done\n", job.id),
            })
            .note(session.json, figures))
        }
        JobState::Failed => Err(job
            .error
            .unwrap_or_else(|| Error::internal(format!("job {} failed and left no reason", job.id)))
            .into()),
        JobState::Cancelled => {
            Err(Error::new(Kind::Cancelled, format!("job {} was cancelled", job.id)).into())
        }
        JobState::Interrupted => Err(Error::new(
            Kind::Unknown,
            format!("job {} was interrupted: the process that ran it died", job.id),
        )
        .hint(if job.resumable {
            format!("smctl job resume {}", job.id)
        } else {
            format!("it cannot be resumed; smctl job cancel {}, and begin anew", job.id)
        })
        .into()),
    }
}

fn list(session: &Session) -> Result<Report> {
    let jobs = session.manager.jobs()?;
    let document = json!({"jobs": jobs.iter().map(document).collect::<Vec<_>>()});
    let report = Report::new(session.json, &document, || {
        let mut table = Table::new(&[
            ("ID", Align::Left),
            ("KIND", Align::Left),
            ("STATE", Align::Left),
            ("DONE", Align::Right),
            ("SIZE", Align::Right),
            ("STARTED", Align::Left),
            ("DESCRIPTION", Align::Left),
        ]);
        for job in &jobs {
            table.row([
                job.id.to_string(),
                job.kind().to_owned(),
                state_name(job.state).to_owned(),
                percent(job),
                job.bytes_total.to_string(),
                timestamp(job.started),
                escape(&job.description),
            ]);
        }
        table.render(session.style)
    });
    Ok(if jobs.is_empty() { report.note(session.json, "smctl: no job yet") } else { report })
}

fn percent(job: &JobRecord) -> String {
    format!("{}%", job.permille / 10)
}

fn state_name(state: JobState) -> &'static str {
    match state {
        JobState::Running => "running",
        JobState::Interrupted => "interrupted",
        JobState::Done => "done",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

/// The fields of a record that are the interface; the engine keeps more for itself.
fn document(job: &JobRecord) -> Value {
    json!({
        "id": job.id,
        "kind": job.kind(),
        "description": job.description,
        "state": job.state,
        "permille": job.permille,
        "stage": job.stage,
        "bytes_done": job.bytes_done,
        "bytes_total": job.bytes_total,
        "started": job.started,
        "finished": job.finished,
        "error": job.error,
        "sr": job.sr,
        "vdi": job.vdi,
        "resumable": job.resumable,
        "checksum": job.checksum,
        "maintained": job.maintained,
    })
}

fn show_text(job: &JobRecord) -> String {
    let mut block = Block::default();
    block
        .line("id", job.id.to_string())
        .line("kind", job.kind())
        .text("description", &job.description)
        .line("state", state_name(job.state))
        .line("done", format!("{} ({} of {})", percent(job), job.bytes_done, job.bytes_total))
        .text("stage", &job.stage)
        .line("started", timestamp(job.started));
    if let Some(finished) = job.finished {
        block.line("finished", timestamp(finished));
    }
    block.line("SR", job.sr.to_string());
    if let Some(vdi) = job.vdi {
        block.line("VDI", vdi.to_string());
    }
    if let Some(checksum) = job.checksum {
        block.line("checksum", checksum.to_string());
    }
    block.line("resumable", crate::output::yes(job.resumable));
    if let Some(error) = &job.error {
        block.text("error", &error.to_string());
        if let Some(hint) = &error.hint {
            block.text("hint", hint);
        }
    }
    let mut text = block.render();
    if let Some(done) = &job.maintained {
        text.push_str(&crate::maintain::text(job.sr, done, false));
    }
    text
}
