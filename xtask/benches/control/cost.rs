//! What a process costs, and medians.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use rustix::io::Errno;
use rustix::process::WaitOptions;

use crate::Result;

/// Of one whole command, in milliseconds.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    /// User and system time of the process and of all its descendants.
    pub(crate) cpu: f64,
    /// From start to end.
    pub(crate) wall: f64,
}

/// Runs a command to its end and answers its cost and what it printed. Nothing else may be a child
/// of this process meanwhile: it would be waited for.
pub(crate) fn run(
    program: &Path,
    words: &[impl AsRef<OsStr>],
    environment: &[(&str, &OsStr)],
) -> Result<(Cost, String)> {
    let before = children_cpu()?;
    let start = Instant::now();
    let output = Command::new(program)
        .args(words)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{} cannot be run: {error}", program.display()))?;
    let wall = start.elapsed();
    reap_orphans()?;
    let cpu = children_cpu()?.saturating_sub(before);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{} ended with {}: {said}", program.display(), output.status).into());
    }
    let cost = Cost { cpu: milliseconds(cpu), wall: milliseconds(wall) };
    Ok((cost, String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Waits for children that a child has left to us: only then is their time counted.
fn reap_orphans() -> Result<()> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Processor time of all children that have ended, theirs included.
fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let of = |time: nix::sys::time::TimeVal| {
        let (seconds, micros) = (time.tv_sec().max(0), time.tv_usec().max(0));
        Duration::from_micros(seconds.unsigned_abs() * 1_000_000 + micros.unsigned_abs())
    };
    Ok(of(usage.user_time()) + of(usage.system_time()))
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A count as a number to reckon with; counts here are far below where that loses anything.
pub(crate) fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
