//! Writers that go on while something happens to their disk.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;

use crate::fio::{Load, requests};
use crate::process::{Running, until};
use crate::{Result, Setting};

/// Longest that a writer runs when nobody stops it.
const LONGEST: Duration = Duration::from_secs(60);

/// Time of the server's processor after which the load is there.
const WARM: Duration = Duration::from_millis(100);

/// How long it writes before and after.
const AROUND: Duration = Duration::from_millis(500);

/// What a request that waited for something may take to be done, after it.
const AFTER_MS: f64 = 50.0;

/// A load that runs until it is told to stop, and writes down every request.
pub(crate) struct Writer {
    running: Running,
    log: PathBuf,
}

/// All requests of a writer.
pub(crate) struct Requests(Vec<(f64, f64)>);

/// Between two points in time, milliseconds since the epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) from: f64,
    pub(crate) to: f64,
}

impl Span {
    /// Does something, and says when.
    pub(crate) fn of<T>(what: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        let from = now()?;
        let done = what()?;
        Ok((Self { from, to: now()? }, done))
    }

    pub(crate) fn seconds(self) -> f64 {
        (self.to - self.from) / 1e3
    }
}

fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() * 1e3)
}

impl Writer {
    /// Starts it, waits until it writes, and lets it write for a while.
    pub(crate) fn start(
        setting: &Setting,
        (cpu, uri): (&dyn Fn() -> Result<Duration>, &str),
        size: u64,
        depth: u32,
    ) -> Result<Self> {
        let prefix = setting.memory.join("requests");
        let log = setting.memory.join("requests_lat.1.log");
        let _ = std::fs::remove_file(&log);
        let mut command = Load::new("randwrite", 4096, depth).command(setting, uri, size, LONGEST);
        command.arg(format!("--write_lat_log={}", prefix.display()));
        command.args(["--log_unix_epoch=1", "--disable_clat=1", "--disable_slat=1"]);
        let before = cpu()?;
        let running = Running::start(&mut command)?;
        until("a load that writes", LONGEST, || {
            Ok((cpu()?.saturating_sub(before) > WARM).then_some(()))
        })?;
        std::thread::sleep(AROUND);
        Ok(Self { running, log })
    }

    /// Lets it write for a while, stops it and reads what it has written down.
    pub(crate) fn stop(self) -> Result<Requests> {
        std::thread::sleep(AROUND);
        self.running.signal(Signal::INT)?;
        let ended = self.running.end(LONGEST)?;
        if !self.log.exists() {
            return Err(format!("fio wrote no log: {} {}", ended.status, ended.stderr).into());
        }
        let all = requests(&self.log)?;
        std::fs::remove_file(&self.log)?;
        if all.is_empty() {
            return Err(format!("fio has written nothing: {}", ended.stderr).into());
        }
        Ok(Requests(all))
    }
}

impl Requests {
    /// The longest that ended within a time, or had to wait for its end, in milliseconds.
    pub(crate) fn longest(&self, span: Span) -> f64 {
        let within = |(at, _): &&(f64, f64)| *at >= span.from && *at <= span.to + AFTER_MS;
        self.0.iter().filter(within).map(|(_, took)| *took).fold(0.0, f64::max)
    }

    /// The longest that ended before.
    pub(crate) fn longest_before(&self, span: Span) -> f64 {
        let before = |(at, _): &&(f64, f64)| *at < span.from;
        self.0.iter().filter(before).map(|(_, took)| *took).fold(0.0, f64::max)
    }

    /// Requests a second within a time.
    pub(crate) fn rate(&self, span: Span) -> f64 {
        let within = self.0.iter().filter(|(at, _)| *at >= span.from && *at <= span.to).count();
        f64::from(u32::try_from(within).unwrap_or(u32::MAX)) / span.seconds()
    }

    /// Requests a second before a time.
    pub(crate) fn rate_before(&self, span: Span) -> f64 {
        let first = self.0.iter().map(|(at, _)| *at).fold(f64::INFINITY, f64::min);
        self.rate(Span { from: first, to: span.from })
    }
}
