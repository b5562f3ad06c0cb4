//! `cargo xtask lab`: guests with kernels of their own, see `docs/lab.md`.

mod check;
mod demo;
pub(crate) mod packages;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use lab::{Disk, Lab};

use crate::failure::{Doing, Failure, Result};
use crate::unknown;

/// Time for a command that was given none.
const DEADLINE: Duration = Duration::from_secs(60 * 60);

pub(crate) fn run(words: &[&str]) -> Result<ExitCode> {
    packages::ensure()?;
    match words {
        ["run", rest @ ..] => command(rest),
        ["demo"] => demo::run(),
        ["check", options @ ..] => check::run(crate::flag(options, "--keep-logs")?),
        other => Err(unknown(&format!("lab {}", other.join(" ")))),
    }
}

/// One guest, one command, its outputs and its exit status.
fn command(words: &[&str]) -> Result<ExitCode> {
    let mut parts = words.splitn(2, |word| *word == "--");
    let (options, argv) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if argv.is_empty() {
        return Err(unknown("lab run without -- COMMAND"));
    }
    let lab = Lab::new().map_err(failed)?;
    let mut guest = lab.guest("guest");
    let mut deadline = DEADLINE;
    let mut options = options.iter();
    while let Some(option) = options.next() {
        if *option == "--keep-logs" {
            lab.keep_logs();
            continue;
        }
        let value = options.next().ok_or_else(|| unknown(option))?;
        let number = || value.parse::<u64>().map_err(|_| unknown(&format!("{option} {value}")));
        match *option {
            "--memory" => guest = guest.memory(number()?),
            "--seconds" => deadline = Duration::from_secs(number()?),
            "--disk" => guest = guest.disk(&Disk::open(value).map_err(failed)?),
            "--share" => {
                let folder = std::fs::canonicalize(value).doing(|| format!("find {value}"))?;
                guest = guest.share(folder);
            }
            "--module" => guest = guest.modules(&[value]),
            _ => return Err(unknown(option)),
        }
    }
    let guest = guest.boot().map_err(failed)?;
    let here = std::env::current_dir().doing(|| "find the current directory".to_owned())?;
    let call = guest.command(argv.iter().copied()).directory(here).deadline(deadline);
    let output = call.run().map_err(failed)?;
    let doing = || "print".to_owned();
    std::io::stdout().write_all(&output.stdout).doing(doing)?;
    std::io::stderr().write_all(&output.stderr).doing(doing)?;
    Ok(ExitCode::from(u8::try_from(output.status).unwrap_or(u8::MAX)))
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(error.to_string())
}
