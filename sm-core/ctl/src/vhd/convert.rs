//! `smctl vhd convert`

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use serde_json::json;
use sm_model::{Bytes, Error, Kind};
use uuid::Uuid;
use vhd::folder::{Link, chain, dir_of, is_image_name, layers};
use vhd::{Chain, Disk, Extent, ExtentKind, Mode, Raw, SECTOR};

use super::create::{already, sync_dir};
use super::errors::{damage, failure};
use super::{places, shown};
use crate::cli::Global;
use crate::cli::vhd::{ConvertArgs, Source, Target};
use crate::errors::{Failure, Result, file_error};
use crate::output::Report;
use crate::progress::{Progress, summary};

pub(super) fn convert(args: &ConvertArgs, global: &Global) -> Result<Report> {
    let links = match source_format(args)? {
        Source::Raw => vec![Link { path: args.input.clone(), raw: true }],
        Source::Vhd => {
            let (links, findings) = chain(&args.input, places(&args.parents)).map_err(failure)?;
            match damage(&findings) {
                Some(damage) => return Err(damage),
                None => links,
            }
        }
    };
    refuse_target(args, &links)?;
    let source = Chain::open(&layers(&links), Mode::Read).map_err(failure)?;
    let whole = source.size().next_multiple_of(SECTOR);
    let padding = if args.to == Target::Raw { 0 } else { whole - source.size() };
    let source = Padded { size: source.size() + padding, disk: source };

    let stop = Stop::start(global.timeout);
    let progress = Progress::start(global.json);
    let sink = progress.sink();
    let total = source.size;
    let mut report = |done: u64| {
        sink(permille(done, total), "converting");
        if stop.is_over() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let part = Part::beside(&args.output);
    let written = write(&source, args.to, &part.0, &mut report);
    let time = progress.finish();
    written.map_err(|error| stop.blame(error, global.timeout))?;
    publish(&part.0, &args.output, args.force)?;
    sync_dir(&args.output)?;
    let meta =
        args.output.symlink_metadata().map_err(|error| file_error(shown(&args.output), error))?;
    let format = match args.to {
        Target::Raw => "raw",
        Target::Fixed => "fixed",
        Target::Dynamic => "dynamic",
    };
    let document = json!({
        "input": args.input.to_string_lossy(),
        "output": args.output.to_string_lossy(),
        "format": format,
        "images": links.len(),
        "virtual_size": source.size,
        "file_size": meta.len(),
        "allocated": meta.blocks() * 512,
    });
    let mut note = summary(Bytes(source.size), time);
    if padding > 0 {
        let _ = write!(note, "\n{padding} zero bytes were added: a VHD has whole sectors");
    }
    let text = format!("{} is written to {}\n", shown(&args.input), shown(&args.output));
    Ok(Report::new(global.json, &document, || text).note(global.json, note))
}

/// What somebody said, or what the name says; never what the content looks like.
fn source_format(args: &ConvertArgs) -> Result<Source> {
    if let Some(format) = args.from {
        return Ok(format);
    }
    let raw = |name: &std::ffi::OsStr| {
        name.eq_ignore_ascii_case("raw") || name.eq_ignore_ascii_case("img")
    };
    if is_image_name(&args.input) {
        Ok(Source::Vhd)
    } else if args.input.extension().is_some_and(raw) {
        Ok(Source::Raw)
    } else {
        Err(Failure::usage(format!("the format of {} is not known", shown(&args.input))).hint(
            "say --from vhd or --from raw; it is not looked for in the file, where a guest may \
             have written anything",
        ))
    }
}

/// How far the bar is.
pub(super) fn permille(done: u64, total: u64) -> u32 {
    u32::try_from(u128::from(done) * 1000 / u128::from(total.max(1))).unwrap_or(1000)
}

fn refuse_target(args: &ConvertArgs, links: &[Link]) -> Result<()> {
    let output = match args.output.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(file_error(shown(&args.output), error)),
    };
    if !output.is_file() {
        let message = format!("{} exists and is not a regular file", args.output.display());
        return Err(Error::new(Kind::Exists, message).hint("choose another name").into());
    }
    for link in links {
        let same = link
            .path
            .symlink_metadata()
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == (output.dev(), output.ino()));
        if same {
            let message = format!("{} is part of what is to be read", args.output.display());
            return Err(Error::new(Kind::InUse, message).hint("choose another name").into());
        }
    }
    if args.force {
        return Ok(());
    }
    Err(already(&args.output).hint("say --force to replace it"))
}

fn write(
    source: &Padded,
    to: Target,
    path: &Path,
    report: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> vhd::Result<()> {
    match to {
        Target::Dynamic => vhd::copy::flatten(source, path, Uuid::new_v4(), report).map(drop),
        Target::Fixed => vhd::copy::write_fixed(source, path, Uuid::new_v4(), report),
        Target::Raw => Raw::create(path, source.size)
            .and_then(|target| vhd::copy::copy(source, &target, report)),
    }
}

/// Gives the finished file its name.
fn publish(part: &Path, output: &Path, force: bool) -> Result<()> {
    if force {
        return std::fs::rename(part, output).map_err(|error| file_error(shown(output), error));
    }
    match rustix::fs::renameat_with(CWD, part, CWD, output, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(already(output).hint("say --force to replace it")),
        // A file system without it: a second name fails just so if the first is taken.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => std::fs::hard_link(part, output)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::AlreadyExists => {
                    already(output).hint("say --force to replace it")
                }
                _ => file_error(shown(output), error),
            }),
        Err(errno) => Err(file_error(shown(output), errno.into())),
    }
}

/// The file that is being written; whatever goes wrong, it does not stay.
struct Part(PathBuf);

impl Part {
    fn beside(output: &Path) -> Self {
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        // Kept short, for names that are as long as they can be.
        let start: String = name.chars().take(40).collect();
        let id = Uuid::new_v4().simple().to_string();
        Self(dir_of(output).join(format!(".{start}.{}.part", &id[..8])))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Not there any more when all went well.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Ctrl-C, SIGTERM and `--timeout`.
pub(super) struct Stop {
    asked: Arc<AtomicBool>,
    until: Option<Instant>,
}

impl Stop {
    /// From now on a first signal asks for the end, and a second one ends this process.
    pub(super) fn start(timeout: Option<Duration>) -> Self {
        let asked = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&asked);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Ok(runtime) = runtime {
            let (ready, is_ready) = std::sync::mpsc::channel();
            // Without the thread the signals end the process, as they do by default.
            let _ = std::thread::Builder::new()
                .name("signals".into())
                .spawn(move || runtime.block_on(listen(&flag, ready)));
            // An error means that there is none.
            let _ = is_ready.recv();
        }
        Self { asked, until: timeout.and_then(|time| Instant::now().checked_add(time)) }
    }

    pub(super) fn is_over(&self) -> bool {
        self.asked.load(Ordering::SeqCst) || self.until.is_some_and(|until| Instant::now() > until)
    }

    pub(super) fn blame(&self, error: vhd::Error, timeout: Option<Duration>) -> Failure {
        match (&error, timeout) {
            (vhd::Error::Stopped { .. }, Some(time)) if !self.asked.load(Ordering::SeqCst) => {
                Error::new(Kind::DeadlineExceeded, format!("it did not end within {time:?}"))
                    .hint("allow more time with --timeout")
                    .into()
            }
            (vhd::Error::Stopped { done }, _) => {
                Error::new(Kind::Cancelled, format!("cancelled after {}", Bytes(*done))).into()
            }
            _ => failure(error),
        }
    }
}

async fn listen(asked: &AtomicBool, ready: std::sync::mpsc::Sender<()>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    drop(ready);
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if asked.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(crate::errors::Status::INTERRUPTED.0));
        }
    }
}

/// A disk with zeros behind it, up to a whole sector.
struct Padded {
    disk: Chain,
    size: u64,
}

impl Disk for Padded {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> vhd::Result<()> {
        let inside = self.disk.size().saturating_sub(offset).min(buf.len() as u64) as usize;
        let (data, padding) = buf.split_at_mut(inside);
        padding.fill(0);
        self.disk.read_at(offset.min(self.disk.size()), data)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> vhd::Result<()> {
        self.disk.write_at(offset, buf)
    }

    fn flush(&self) -> vhd::Result<()> {
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64) -> vhd::Result<Vec<Extent>> {
        let inside = self.disk.size().saturating_sub(offset).min(length);
        let mut extents = match inside {
            0 => Vec::new(),
            inside => self.disk.extents(offset, inside)?,
        };
        if inside < length {
            let (offset, length) = (offset + inside, length - inside);
            match extents.last_mut() {
                Some(last) if last.kind == ExtentKind::Zero => last.length += length,
                _ => extents.push(Extent { offset, length, kind: ExtentKind::Zero }),
            }
        }
        Ok(extents)
    }
}

#[cfg(test)]
mod tests {
    use super::permille;

    #[test]
    fn the_bar_ends_at_the_end() {
        assert_eq!(permille(0, 0), 0);
        assert_eq!(permille(u64::MAX, u64::MAX), 1000);
    }
}
