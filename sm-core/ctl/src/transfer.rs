//! The commands that move bytes: import, export, copy. Each is a job.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use sm_core::{Checks, ExportTarget, Filled, ImportSource, NewVdi, Op, Sr};
use sm_model::{Bytes, Error, ImageFormat, Kind, VdiUuid};

use crate::errors::{Failure, Result};
use crate::output::Report;
use crate::progress::{Progress, summary};
use crate::session::Session;

pub(crate) async fn import(
    session: &Session,
    sr: &Sr,
    file: &Utf8Path,
    (format, size): (Option<ImageFormat>, Option<Bytes>),
    mut new: NewVdi,
    checks: Checks,
) -> Result<Report> {
    let source = if file == "-" {
        if format == Some(ImageFormat::Vhd) {
            return Err(Failure::usage(
                "a VHD cannot be read from stdin: its index lies at its end",
            )
            .hint("write it to a file first"));
        }
        if size.is_none() {
            return Err(Failure::usage("the size of what comes from stdin is not known")
                .hint("say --size with the exact number of bytes"));
        }
        ImportSource::Stdin { size }
    } else {
        new.virtual_size = size.unwrap_or_default();
        ImportSource::File { path: absolute(file)?, format }
    };
    let work = async |op| sr.import_checked(&op, source, new, checks).await;
    let (made, time) = job(session, work).await?;
    Ok(report(session, &made, time))
}

pub(crate) async fn export(
    session: &Session,
    sr: &Sr,
    vdi: VdiUuid,
    file: &Utf8Path,
    (format, force): (Option<ImageFormat>, bool),
    checks: Checks,
) -> Result<Report> {
    let format = format.unwrap_or_else(|| format_of_name(file));
    let path = absolute(file)?;
    let target = ExportTarget { path: path.clone(), format, overwrite: force };
    let work = async |op| sr.export_checked(&op, vdi, target, checks).await;
    let (done, time) = job(session, work).await?;
    let document = json!({
        "vdi": vdi,
        "path": path,
        "format": format,
        "bytes": done.bytes,
        "allocated": done.allocated,
        "checksum": done.checksum,
    });
    let mut text = format!("VDI {vdi} is written to {}\n", crate::output::escape(file.as_str()));
    if let Some(checksum) = done.checksum {
        text += &checksum.to_string();
        text.push('\n');
    }
    Ok(Report::new(session.json, &document, || text).note(session.json, summary(done.bytes, time)))
}

pub(crate) async fn copy(
    session: &Session,
    sr: &Sr,
    vdi: VdiUuid,
    target: &Sr,
    new: NewVdi,
    checks: Checks,
) -> Result<Report> {
    let work = async |op| sr.copy_checked(&op, vdi, target, new, checks).await;
    let (made, time) = job(session, work).await?;
    Ok(report(session, &made, time))
}

/// The UUID for the next command, the figures for people.
fn report(session: &Session, made: &Filled, time: Duration) -> Report {
    let Filled { vdi, checksum } = made;
    let document = json!({"vdi": vdi, "checksum": checksum});
    let mut figures = summary(vdi.virtual_size, time);
    if let Some(checksum) = checksum {
        figures.push('\n');
        figures += &checksum.to_string();
    }
    Report::new(session.json, &document, || format!("{}\n", vdi.uuid)).note(session.json, figures)
}

/// Runs a job with a bar; answers what it answers, and how long it took.
pub(crate) async fn job<T>(
    session: &Session,
    work: impl AsyncFnOnce(Op) -> sm_model::Result<T>,
) -> Result<(T, Duration)> {
    let progress = Progress::start(session.json);
    let op = session.op.clone().with_progress(progress.sink());
    let clock = Clock::start(session);
    let result = work(op).await;
    let time = progress.finish();
    match result {
        Ok(answer) => Ok((answer, time)),
        Err(error) => Err(clock.blame(session, error).into()),
    }
}

/// `--timeout` for a job as a whole. The engine gives each step of a job its own time; a person
/// means all of it.
struct Clock {
    rang: Arc<AtomicBool>,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Clock {
    fn start(session: &Session) -> Self {
        let rang = Arc::new(AtomicBool::new(false));
        let task = session.timeout.map(|time| {
            let (rang, cancel) = (Arc::clone(&rang), session.op.cancel.clone());
            tokio::spawn(async move {
                tokio::time::sleep(time).await;
                rang.store(true, Ordering::SeqCst);
                cancel.cancel();
            })
        });
        Self { rang, task }
    }

    /// What was cancelled because the time was over did not fail because somebody cancelled.
    fn blame(&self, session: &Session, error: Error) -> Error {
        match session.timeout {
            Some(time) if self.rang.load(Ordering::SeqCst) && error.kind == Kind::Cancelled => {
                Error::new(
                    Kind::DeadlineExceeded,
                    format!("the job did not end within {time:?} and was cancelled"),
                )
                .hint("allow more time with --timeout, or none to let it run to its end")
            }
            _ => error,
        }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// A job may go on in another process, which has another working directory.
fn absolute(file: &Utf8Path) -> Result<Utf8PathBuf> {
    let path =
        camino::absolute_utf8(file).map_err(|error| crate::errors::file_error(file, error))?;
    Ok(path)
}

fn format_of_name(file: &Utf8Path) -> ImageFormat {
    match file.extension() {
        Some(name) if name.eq_ignore_ascii_case("raw") || name.eq_ignore_ascii_case("img") => {
            ImageFormat::Raw
        }
        _ => ImageFormat::Vhd,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_tells_the_format_of_an_export() {
        for (name, format) in [
            ("a.raw", ImageFormat::Raw),
            ("a.IMG", ImageFormat::Raw),
            ("a.vhd", ImageFormat::Vhd),
            ("a", ImageFormat::Vhd),
        ] {
            assert_eq!(format_of_name(Utf8Path::new(name)), format, "{name}");
        }
    }

    #[test]
    fn a_path_does_not_depend_on_the_working_directory() {
        assert_eq!(absolute(Utf8Path::new("/a/b")).unwrap(), "/a/b");
        assert!(absolute(Utf8Path::new("b")).unwrap().is_absolute());
    }
}
