//! `cargo xtask fuzz`: inputs that nobody thought of, for a bounded time.
//!
//! Why without a sanitizer: what is under test has no unsafe code (`vhd` forbids it, `datapath` is
//! built without its ring), so there is nothing for one to find; and without one the fuzzer's flags
//! are those of the stable compiler.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::failure::{Failure, Result};
use crate::project::{self, BUILD, cargo};
use crate::setup;

/// A folder of targets.
struct Group {
    /// From the root; the targets are in its `fuzz_targets`.
    folder: &'static str,
    /// Tells the targets where their seeds go.
    seeds: &'static str,
    /// Targets, and the longest input that is worth its time, bytes.
    targets: &'static [(&'static str, u32)],
}

const GROUPS: &[Group] = &[
    Group {
        folder: "vhd/fuzz",
        seeds: "VHD_FUZZ_SEEDS",
        targets: &[("parse", 8 << 10), ("open_chain", 64 << 10), ("check_repair", 64 << 10)],
    },
    Group {
        folder: "datapath/fuzz",
        seeds: "DATAPATH_FUZZ_SEEDS",
        targets: &[("nbd_server", 4 << 10), ("nbd_client", 8 << 10)],
    },
];

/// Seconds of a run that nobody has asked to be longer, over all targets of a folder.
pub(crate) const SECONDS: u64 = 60;

/// Seconds that one input may take.
const HANG: u32 = 10;

/// MiB that the process may take. What one input may hold is limited by the targets.
const MEMORY: u32 = 1024;

/// How the run of one target went.
pub(crate) struct Outcome {
    pub(crate) target: &'static str,
    pub(crate) good: bool,
}

/// What the fuzzer has said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    seed: Option<String>,
    executions: Option<u64>,
    per_second: Option<u64>,
    coverage: Option<u64>,
    input: Option<String>,
    /// The last lines, which tell why it ended.
    tail: std::collections::VecDeque<String>,
}

pub(crate) fn run(arguments: &[&str]) -> Result<ExitCode> {
    let (target, seconds) = match *arguments {
        [] => (None, SECONDS),
        ["--seconds", seconds] => (None, number(seconds)?),
        [target] => (Some(target), SECONDS),
        [target, "--seconds", seconds] => (Some(target), number(seconds)?),
        _ => return Err(usage()),
    };
    let outcomes = all(target, seconds)?;
    let good = outcomes.iter().all(|outcome| outcome.good);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds and runs one target, or each of a folder for its part of the time, folder by folder.
pub(crate) fn all(only: Option<&str>, seconds: u64) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for group in GROUPS {
        let chosen: Vec<_> = group
            .targets
            .iter()
            .filter(|(name, _)| only.is_none_or(|only| only == *name))
            .copied()
            .collect();
        if !chosen.is_empty() {
            outcomes.extend(group.run(&chosen, seconds)?);
        }
    }
    if outcomes.is_empty() { Err(usage()) } else { Ok(outcomes) }
}

impl Group {
    fn run(&self, chosen: &[(&'static str, u32)], seconds: u64) -> Result<Vec<Outcome>> {
        setup::ensure_fuzzer()?;
        // Of its own: the flags differ, and cargo would build everything anew at each change of
        // them.
        let target_dir = project::target().join("fuzz");
        let place = |words: &[&str]| {
            cargo()
                .args(["fuzz"])
                .args(words)
                .args(["--fuzz-dir", self.folder, "--sanitizer", "none", "--target-dir"])
                .arg(&target_dir)
        };
        let mut tail = std::collections::VecDeque::new();
        let build = place(&["build"]).env("RUST_BACKTRACE", "0").deadline(BUILD);
        if !build.lines(|line| keep(&mut tail, line))?.success() {
            let said = Vec::from(tail).join("\n");
            return Err(
                Failure::new(format!("the targets in {} do not build", self.folder)).cause(said)
            );
        }
        let each = (seconds / chosen.len() as u64).max(1);
        let mut outcomes = Vec::new();
        for (target, longest) in chosen {
            let folder = |name: &str| -> PathBuf { target_dir.join(name).join(target) };
            let (seeds, corpus) = (folder("seeds"), folder("corpus"));
            for folder in [&seeds, &corpus] {
                std::fs::create_dir_all(folder)
                    .map_err(|error| Failure::new("cannot make a folder").cause(error))?;
            }
            let mut report = Report::default();
            let status = place(&["run", target])
                .arg(&corpus)
                .arg(&seeds)
                .arg("--")
                .arg(format!("-max_total_time={each}"))
                .arg(format!("-max_len={longest}"))
                .arg(format!("-timeout={HANG}"))
                .arg(format!("-rss_limit_mb={MEMORY}"))
                .arg("-print_final_stats=1")
                .env(self.seeds, &seeds)
                .env("RUST_BACKTRACE", "1")
                .deadline(BUILD + Duration::from_secs(each + 2 * u64::from(HANG)))
                .lines(|line| report.line(line))?;
            let good = status.success() && report.executions.is_some_and(|count| count > 0);
            println!("{}", report.text(target, good));
            if !good {
                println!("{}", report.explain(self.folder, target));
            }
            outcomes.push(Outcome { target, good });
        }
        Ok(outcomes)
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse().map_err(|_| usage())
}

fn usage() -> Failure {
    let targets = GROUPS.iter().flat_map(|group| group.targets);
    let names: Vec<&str> = targets.map(|(name, _)| *name).collect();
    Failure::new("cargo xtask fuzz [TARGET] [--seconds N]")
        .hint(format!("targets: {}", names.join(", ")))
}

fn keep(tail: &mut std::collections::VecDeque<String>, line: &str) {
    if tail.len() == 40 {
        tail.pop_front();
    }
    tail.push_back(line.to_owned());
}

impl Report {
    fn line(&mut self, line: &str) {
        let after = |word: &str| line.split_once(word).map(|(_, rest)| rest.trim());
        let count = |word: &str| after(word)?.split(' ').next()?.parse::<u64>().ok();
        if let Some(seed) = after("INFO: Seed:") {
            self.seed = Some(seed.to_owned());
        }
        self.executions = count("stat::number_of_executed_units:").or(self.executions);
        self.per_second = count("stat::average_exec_per_sec:").or(self.per_second);
        self.coverage = count(" cov: ").or(self.coverage);
        if let Some(input) = after("Test unit written to ") {
            self.input = Some(input.to_owned());
        }
        // Progress is of no use in a log.
        if !line.starts_with('#') && !line.contains("NEW_FUNC") {
            keep(&mut self.tail, line);
        }
    }

    fn text(&self, target: &str, good: bool) -> String {
        let number = |value: Option<u64>| value.map_or("?".to_owned(), |value| value.to_string());
        format!(
            "fuzz {target} ... {}: {} executions, {} per second, coverage {}, seed {}",
            if good { "ok" } else { "FAILED" },
            number(self.executions),
            number(self.per_second),
            number(self.coverage),
            self.seed.as_deref().unwrap_or("?"),
        )
    }

    fn explain(&self, folder: &str, target: &str) -> String {
        let mut text = Vec::from(self.tail.clone()).join("\n");
        if let Some(input) = &self.input {
            let _ = write!(
                text,
                "\ninput: {input}\nreplay: cargo fuzz run --fuzz-dir {folder} --sanitizer none \
                 --target-dir target/fuzz {target} {input}"
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Report;

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        text.lines().for_each(|line| report.line(line));
        report
    }

    #[test]
    fn figures_are_taken_from_what_the_fuzzer_says() {
        let report = report(
            "INFO: Seed: 1187546433\n\
             #65536\tpulse  cov: 637 ft: 1609 corp: 381/526Kb exec/s: 16384 rss: 29Mb\n\
             #202102\tDONE   cov: 676 ft: 1725 corp: 446/576Kb exec/s: 12631 rss: 29Mb\n\
             stat::number_of_executed_units: 202102\n\
             stat::average_exec_per_sec:     12631\n",
        );
        assert_eq!(
            report.text("parse", true),
            "fuzz parse ... ok: 202102 executions, 12631 per second, coverage 676, seed 1187546433"
        );
    }

    #[test]
    fn a_crash_names_its_input_and_how_to_see_it_again() {
        let report = report(
            "thread '<unnamed>' panicked at fuzz_targets/parse.rs:9:5:\n\
             artifact_prefix='/a/'; Test unit written to /a/crash-1f\n",
        );
        let text = report.explain("vhd/fuzz", "parse");
        assert!(text.contains("panicked at"), "{text}");
        assert!(text.ends_with("--target-dir target/fuzz parse /a/crash-1f"), "{text}");
    }
}
