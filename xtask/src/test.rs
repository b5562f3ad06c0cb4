//! `cargo xtask test`: all tests, a short run of the fuzz targets, and one line at the end that says how it went.
//!
//! Why plain test programs and no other runner: they are there wherever cargo is, and what people
//! read in a log is the same everywhere.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::conformance;
use crate::failure::Result;
use crate::fuzz;
use crate::lab;
use crate::lanes;
use crate::project::{build_all, cargo};
use crate::setup;
use crate::tool::Tool;

/// Time for building and running all tests.
const ALL: Duration = Duration::from_secs(60 * 60);

pub(crate) fn run(arguments: &[&str]) -> Result<ExitCode> {
    let start = Instant::now();
    if let Err(failure) = setup::ensure() {
        // Most tests do not need the tools, and those that do say so by failing.
        eprintln!("xtask: {failure}\n  the tests that need them will fail");
    }
    if let Err(failure) = lab::packages::ensure() {
        eprintln!("xtask: {failure}\n  the tests that need guests will fail");
    }
    let chosen = arguments
        .iter()
        .take_while(|word| **word != "--")
        .any(|word| ["-p", "--package", "--workspace"].contains(word) || word.starts_with("-p"));
    if !chosen && let Err(failure) = build_all() {
        println!("0 passed, 0 failed, 0 skipped");
        return Err(failure);
    }
    let mut tally = Tally::default();
    let good = if arguments.is_empty() {
        everything(start + ALL, &mut tally)?
    } else {
        let mut command = cargo().args(["test", "--no-fail-fast"]).deadline(ALL);
        if !chosen {
            command = command.arg("--workspace");
        }
        tally.all_of(command.args(arguments))?
    };
    if arguments.is_empty() {
        match fuzz::all(None, fuzz::SECONDS) {
            Ok(outcomes) => {
                for outcome in outcomes {
                    tally.one(&format!("fuzz: {}", outcome.target), outcome.good);
                }
            }
            Err(failure) => {
                println!("fuzz ... FAILED: {failure}");
                tally.one("fuzz: all targets", false);
            }
        }
    }
    print!("{}", tally.report(good));
    println!("in {:.0} s", start.elapsed().as_secs_f64());
    println!("{}", tally.totals());
    Ok(if good && tally.good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All test programs, in lanes, and then the examples in the documentation. Whether all is well.
fn everything(end: Instant, tally: &mut Tally) -> Result<bool> {
    let drivers = conformance::Queue::of_today(end);
    let told = |line: &str| {
        println!("{line}");
        tally.line(line);
    };
    let ran = lanes::run(end, told, |say| drivers.work(say))?;
    tally.end_of_suite();
    println!("the lab: all programs that boot guests in {:.0} s", ran.lab.as_secs_f64());
    for (name, good) in drivers.verdicts() {
        tally.one(&name, good);
    }
    let left = end.saturating_duration_since(Instant::now());
    let documentation = cargo().args(["test", "--workspace", "--doc", "--no-fail-fast"]);
    Ok(tally.all_of(documentation.deadline(left))? && ran.good)
}

/// What libtest has said so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    suite: String,
    /// Tests of a suite that has begun and not yet said how it ended.
    running: Option<u64>,
    failures: Vec<String>,
    skips: Vec<String>,
}

impl Tally {
    fn line(&mut self, line: &str) {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("Running ") {
            self.begin(suite_name(rest));
        } else if let Some(rest) = line.strip_prefix("Doc-tests ") {
            self.begin(format!("{rest} (documentation)"));
        } else if let Some(rest) = line.strip_prefix("running ") {
            // A test may run its own program again, whose lines stand among those of the suite.
            if self.running.is_none() && (rest.ends_with(" tests") || rest.ends_with(" test")) {
                self.running = Some(number_before(rest, " test"));
            }
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            let of = |word| number_before(rest, word);
            let (passed, failed, ignored) = (of(" passed"), of(" failed"), of(" ignored"));
            if self.running == Some(passed + failed + ignored + of(" measured")) {
                self.running = None;
                self.passed += passed;
                self.failed += failed;
                self.skipped += ignored;
            }
        } else if let Some((name, state)) =
            line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
        {
            let name = format!("{}: {name}", self.suite);
            if state == "FAILED" {
                self.failures.push(name);
            } else if let Some(reason) = state.strip_prefix("ignored") {
                self.skips.push(format!("{name}{reason}"));
            }
        }
    }

    /// Runs a command and counts what it says. Whether it ended well.
    fn all_of(&mut self, command: Tool) -> Result<bool> {
        let status = command.lines(|line| {
            println!("{line}");
            self.line(line);
        })?;
        self.end_of_suite();
        Ok(status.success())
    }

    /// What is no test program's, and counts as one test: a fuzz target, the checks on a driver.
    fn one(&mut self, name: &str, good: bool) {
        if good {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.failures.push(name.to_owned());
        }
    }

    fn begin(&mut self, suite: String) {
        self.end_of_suite();
        self.suite = suite;
    }

    /// A suite that never said how it ended has died, with all its tests.
    fn end_of_suite(&mut self) {
        if self.running.take().is_some() {
            self.failed += 1;
            self.failures.push(format!("{}: the test program died", self.suite));
        }
    }

    fn good(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    fn report(&self, cargo_is_content: bool) -> String {
        let mut text = String::new();
        for (title, names) in [("skipped", &self.skips), ("failed", &self.failures)] {
            for name in names {
                let _ = writeln!(text, "{title}: {name}");
            }
        }
        if !cargo_is_content && self.failed == 0 {
            text += "cargo test failed though no test did; see above\n";
        }
        if self.passed + self.failed == 0 {
            text += "no test was run\n";
        }
        text
    }

    fn totals(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// `unittests src/lib.rs (target/debug/deps/vhd-0a1b2c3d)` is `vhd src/lib.rs`.
fn suite_name(text: &str) -> String {
    let (source, program) = text.split_once(" (").unwrap_or((text, ""));
    let source = source.trim_start_matches("unittests ");
    let program = program.trim_end_matches(')').rsplit('/').next().unwrap_or_default();
    let program = program.rsplit_once('-').map_or(program, |(name, _)| name);
    format!("{program} {source}").trim().to_owned()
}

fn number_before(text: &str, word: &str) -> u64 {
    let before = text.split(word).next().unwrap_or_default();
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str) -> Tally {
        let mut tally = Tally::default();
        text.lines().for_each(|line| tally.line(line));
        tally.end_of_suite();
        tally
    }

    #[test]
    fn results_of_all_suites_are_added_up() {
        let tally = tally(
            "     Running unittests src/lib.rs (target/debug/deps/vhd-0123456789abcdef)\n\
             running 3 tests\n\
             test bits::runs ... ok\n\
             test slow ... ignored, takes an hour\n\
             test chain::reads ... FAILED\n\
             test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; \
             finished in 0.00s\n\
             \x20  Doc-tests sm_model\n\
             running 12 tests\n\
             test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n",
        );
        assert_eq!(tally.totals(), "13 passed, 1 failed, 1 skipped");
        assert_eq!(
            tally.report(false),
            "skipped: vhd src/lib.rs: slow, takes an hour\nfailed: vhd src/lib.rs: chain::reads\n"
        );
        assert!(!tally.good());
    }

    #[test]
    fn a_test_program_that_dies_is_a_failure() {
        let tally = tally(
            "     Running tests/crash.rs (target/debug/deps/crash-0123456789abcdef)\n\
             running 9 tests\n\
             error: test failed, to rerun pass `-p vhd --test crash`\n\
             \x20    Running tests/corpus.rs (target/debug/deps/corpus-0123456789abcdef)\n\
             running 1 test\n\
             test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n",
        );
        assert_eq!(tally.totals(), "1 passed, 1 failed, 0 skipped");
        assert_eq!(tally.failures, ["crash tests/crash.rs: the test program died"]);
    }

    #[test]
    fn a_program_that_a_test_runs_again_does_not_count() {
        let inner = "running 1 test\n\
             test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out\n";
        let begin = "     Running tests/crash.rs (target/debug/deps/crash-0123456789abcdef)\n\
             running 2 tests\n";
        let end = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(
            tally(&format!("{begin}{inner}{end}")).totals(),
            "2 passed, 0 failed, 0 skipped"
        );
        assert_eq!(tally(&format!("{begin}{inner}")).totals(), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn a_fuzz_target_counts_as_a_test() {
        let mut tally = Tally { passed: 1, ..Tally::default() };
        tally.one("fuzz: parse", true);
        assert!(tally.good());
        tally.one("fuzz: open_chain", false);
        assert_eq!(tally.totals(), "2 passed, 1 failed, 0 skipped");
        assert!(!tally.good() && tally.report(true).contains("failed: fuzz: open_chain"));
    }

    #[test]
    fn nothing_run_is_not_good() {
        let tally = tally("error: could not compile `vhd`\n");
        assert!(!tally.good());
        assert!(tally.report(false).contains("no test was run"));
    }
}
