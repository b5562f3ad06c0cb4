//! The command line of the conformance suite.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use sm_conformance::matrix::{self, NotRun};
use sm_conformance::part::Part;
use sm_conformance::run::Replay;
use sm_conformance::sign::{PrivateKey, PublicKey};
use sm_conformance::{Certificate, Config, Error, Level, RunOptions, State, page, report};

/// Everything held.
const GOOD: u8 = 0;
/// A check does not hold, or the level is not reached.
const BAD: u8 = 1;
/// There is no result.
const UNUSABLE: u8 = 2;

/// Runs the checks of the contract against a driver, and certifies what held.
#[derive(Parser)]
#[command(name = "sm-conformance", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the checks.
    Run(Run),
    /// Lists all checks.
    List {
        /// Only those that are not built, each with the reason.
        #[arg(long)]
        missing: bool,
    },
    /// Says what a check does, and which sentences of the contract it covers.
    Explain {
        /// `E19`, or `tree.invariants`.
        id: String,
    },
    /// Repeats a check that failed.
    Replay {
        /// `OUT/failures/E19.json`.
        file: PathBuf,
    },
    /// Says whether a certificate is as it was written.
    Verify {
        /// `OUT/certificate.json`.
        certificate: PathBuf,
        /// It must be signed by this public key, PEM.
        #[arg(long)]
        key: Option<PathBuf>,
    },
    /// Writes a page of drivers by groups of checks to standard output, HTML unless said otherwise.
    Matrix {
        /// `OUT/certificate.json` of each driver.
        #[arg(required = true)]
        certificates: Vec<PathBuf>,
        /// A document in which only verdicts are, for a repository.
        #[arg(long)]
        markdown: bool,
        /// A driver that was not run, and why: `--not-run lvm="needs a disk"`.
        #[arg(long, value_name = "DRIVER=WHY")]
        not_run: Vec<NotRun>,
    },
    /// Removes what a run has made that was killed.
    Cleanup {
        /// The folder that was given to it as --out.
        #[arg(long)]
        out: PathBuf,
    },
    /// Writes a small picture of the level, SVG, to standard output.
    Badge {
        /// `OUT/certificate.json`.
        certificate: PathBuf,
    },
}

#[derive(clap::Args)]
struct Run {
    /// The driver's file.
    #[arg(long)]
    driver: PathBuf,
    /// How to reach its backend.
    #[arg(long)]
    config: PathBuf,
    /// Where reports go.
    #[arg(long)]
    out: PathBuf,
    /// Checks of this level and those below.
    #[arg(long, default_value = "L2")]
    level: Level,
    /// Only these checks: `E19`, `E*`, `snap.*`; can be given several times.
    #[arg(long)]
    only: Vec<String>,
    /// Where chance begins; drawn if absent, and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// After this time no further check is begun: `60s`, `5m`.
    #[arg(long, value_parser = duration)]
    budget: Option<Duration>,
    /// A part of these: `2/3` is the second of three, which have no check in common.
    #[arg(long)]
    part: Option<Part>,
    /// Where the run's own folder is made.
    #[arg(long, default_value = "/tmp")]
    scratch: PathBuf,
    /// Signs the certificate with this key of ed25519, PEM.
    #[arg(long, value_name = "KEYFILE")]
    sign: Option<PathBuf>,
    /// What is typed to see a failure again, if not `sm-conformance replay`; `{id}` is the check.
    #[arg(long, value_name = "COMMAND")]
    again: Option<String>,
    /// Ends at the first check that fails.
    #[arg(long)]
    fail_fast: bool,
    /// Prints only what blocks, and the end.
    #[arg(long)]
    quiet: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a number with s or m, such as 60s".to_owned();
    let (number, factor) = match (text.strip_suffix('s'), text.strip_suffix('m')) {
        (Some(number), _) => (number, 1),
        (_, Some(number)) => (number, 60),
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

fn main() -> ExitCode {
    let status = match perform(Cli::parse().command) {
        Ok(status) => status,
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "sm-conformance: {error}");
            UNUSABLE
        }
    };
    ExitCode::from(status)
}

/// A reader that has gone is no failure.
fn say(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

fn perform(command: Command) -> Result<u8, Box<dyn std::error::Error>> {
    match command {
        Command::Run(asked) => {
            let config = Config::read(&asked.config)?;
            // Before an hour of checks.
            let key = asked.sign.as_deref().map(PrivateKey::read).transpose()?;
            let options = RunOptions {
                config_path: Some(asked.config),
                level: asked.level,
                only: asked.only,
                seed: asked.seed,
                budget: asked.budget,
                part: asked.part,
                out: Some(asked.out),
                scratch: asked.scratch,
                again: asked.again,
                fail_fast: asked.fail_fast,
                ..RunOptions::new(asked.driver, config)
            };
            go(&options, asked.quiet, key.as_ref())
        }
        Command::Replay { file } => {
            let text = read(&file)?;
            let replay: Replay = serde_json::from_str(&text)?;
            let config = Config::read(&replay.config)?;
            let options = RunOptions {
                config_path: Some(replay.config),
                only: vec![replay.id],
                seed: Some(replay.seed),
                ops: Some(file),
                ..RunOptions::new(replay.driver, config)
            };
            go(&options, false, None)
        }
        Command::List { missing } => {
            say(&report::list(missing));
            Ok(GOOD)
        }
        Command::Explain { id } => {
            say(&sm_conformance::explain(&id)?);
            Ok(GOOD)
        }
        Command::Verify { certificate, key } => {
            let key = key.as_deref().map(PublicKey::read).transpose()?;
            let text = read(&certificate)?;
            let verified = match &key {
                Some(key) => Certificate::verify_by(&text, key),
                None => Certificate::verify(&text),
            };
            match verified {
                Ok(good) => {
                    let level =
                        good.level.map_or_else(|| "none".to_owned(), |level| level.to_string());
                    let by = match (&good.signature, &key) {
                        (None, _) => ", not signed".to_owned(),
                        (Some(_), Some(_)) => ", signed by the key given".to_owned(),
                        (Some(signature), None) => {
                            format!(", signed by {}, which nobody has vouched for", signature.key)
                        }
                    };
                    let driver = &good.driver;
                    say(&format!("good: {} {}, level {level}{by}\n", driver.name, driver.version));
                    Ok(GOOD)
                }
                Err(why) => {
                    say(&format!("bad: {why}\n"));
                    Ok(BAD)
                }
            }
        }
        Command::Matrix { certificates, markdown, not_run } => {
            let mut good = Vec::new();
            for path in &certificates {
                let read = Certificate::verify(&read(path)?);
                good.push(read.map_err(|why| format!("{}: {why}", path.display()))?);
            }
            let write = if markdown { matrix::markdown } else { matrix::html };
            say(&write(&good, &not_run));
            Ok(GOOD)
        }
        Command::Cleanup { out } => {
            let (said, whole) = sm_conformance::cleanup(&out)?;
            for line in said {
                say(&format!("{line}\n"));
            }
            Ok(if whole { GOOD } else { BAD })
        }
        Command::Badge { certificate } => {
            let good = Certificate::verify(&read(&certificate)?)?;
            say(&report::badge(&good));
            Ok(GOOD)
        }
    }
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

/// The reports of a run.
const REPORTS: [&str; 6] =
    ["certificate.json", "junit.xml", "report.tap", "report.md", "report.html", "badge.svg"];

fn go(
    options: &RunOptions,
    quiet: bool,
    key: Option<&PrivateKey>,
) -> Result<u8, Box<dyn std::error::Error>> {
    if let Some(out) = &options.out {
        // If this run comes to no result, nobody shall take an older one for it.
        for name in REPORTS {
            match std::fs::remove_file(out.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::File { path: out.join(name), source: error }.into());
                }
                _ => {}
            }
        }
    }
    let colour = std::io::stdout().is_terminal();
    let mut each = |entry: &sm_conformance::certificate::Entry| {
        if !quiet {
            say(&format!("{}\n", report::line(entry, colour)));
        }
    };
    let mut certificate = sm_conformance::run(options, &mut each)?;
    if let Some(key) = key {
        certificate.sign(key)?;
    }
    if let Some(out) = &options.out {
        let texts = [
            certificate.text()?,
            report::junit(&certificate),
            report::tap(&certificate),
            report::markdown(&certificate),
            page::run(&certificate, &logs(out, &certificate)),
            report::badge(&certificate),
        ];
        for (name, text) in REPORTS.iter().zip(texts) {
            let path = out.join(name);
            std::fs::write(&path, text).map_err(|source| Error::File { path, source })?;
        }
    }
    say(&report::text(&certificate, colour));
    let clean = certificate.counts.fail == 0 && certificate.counts.not_testable == 0;
    Ok(if clean { GOOD } else { BAD })
}

/// The logs of what failed in this run.
fn logs(out: &Path, certificate: &Certificate) -> BTreeMap<String, String> {
    let failed = certificate.results.iter().filter(|entry| entry.state == State::Fail);
    let log = |id: &str| std::fs::read(out.join("failures").join(format!("{id}.log")));
    failed
        .filter_map(|entry| {
            let text = log(&entry.id).ok()?;
            Some((entry.id.clone(), String::from_utf8_lossy(&text).into_owned()))
        })
        .collect()
}
