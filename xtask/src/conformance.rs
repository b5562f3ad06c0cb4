//! `cargo xtask conformance`: the drivers of this repository, held to the contract.
//!
//! Certificates and pages lie in `target/conformance/`. What all drivers come to is written to
//! `docs/drivers/conformance.md`, in which only verdicts are, so that it changes when one does.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::failure::{Doing, Failure, Result};
use crate::lab;
use crate::project::{cargo, root, target};
use crate::tool::Tool;

/// The document, from the root.
const PAGE: &str = "docs/drivers/conformance.md";

/// Verdicts of what is drawn by chance are those of this seed.
const SEED: &str = "20261";

/// Time for all checks of one driver, with the guests that it needs.
const RUN: Duration = Duration::from_secs(65 * 60);

/// Time for all drivers.
const ALL: Duration = Duration::from_secs(110 * 60);

/// All tests run a part of the checks on all drivers, each day another one: so many days come to all.
const DAYS: u64 = 4;

/// Drivers that are run at the same time: those in guests wait for each other's processor.
const TOGETHER: usize = 2;

/// A driver that is run here.
struct Here {
    driver: &'static str,
    /// What is built, and where it then lies in cargo's folder.
    build: &'static [&'static str],
    library: &'static str,
}

/// Drivers whose backend is a folder.
const HERE: &[Here] = &[
    Here {
        driver: "file",
        build: &["--package", "sm-driver-file"],
        library: "debug/libsm_driver_file.so",
    },
    Here {
        driver: "scratch",
        build: &["--package", "plugin-sdk", "--example", "scratch"],
        library: "debug/examples/libscratch.so",
    },
];

/// Drivers whose backend is in guests of the lab (`conformance/guests/`), those that take longest first.
const IN_GUESTS: &[&str] =
    &["lvmoiscsi", "lvm", "truenas", "equallogic", "ontap", "powerstore", "purestorage", "nfs"];

/// How to reach a folder.
const CONFIG: &str = "[device-config]\nlocation = \"{scratch}\"\n\n\
                      [backend]\ndirectory = \"{scratch}\"\n";

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    check: bool,
    driver: Option<String>,
    only: Vec<String>,
    /// `2/3`: only these checks.
    part: Option<String>,
}

impl Asked {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut asked = Self::default();
        let mut rest = words;
        loop {
            rest = match rest {
                [] => break,
                ["--check", rest @ ..] => {
                    asked.check = true;
                    rest
                }
                ["--driver", name, rest @ ..] => {
                    asked.driver = Some((*name).to_owned());
                    rest
                }
                ["--only", id, rest @ ..] => {
                    asked.only.push((*id).to_owned());
                    rest
                }
                ["--part", part, rest @ ..] => {
                    asked.part = Some((*part).to_owned());
                    rest
                }
                other => return Err(crate::unknown(&other.join(" "))),
            };
        }
        if asked.check && asked.part.is_some() {
            return Err(Failure::new("--check is about all checks, and --part about some"));
        }
        if asked.check && asked.driver.is_some() {
            return Err(Failure::new("--check is about all drivers, and --driver about one"));
        }
        if asked.driver.is_none() && !asked.only.is_empty() {
            return Err(Failure::new("--only needs a --driver"));
        }
        Ok(asked)
    }

    fn wants(&self, driver: &str) -> bool {
        self.driver.as_ref().is_none_or(|asked| asked == driver)
    }
}

/// A run that is to be done, or was.
struct Run {
    driver: &'static str,
    here: Option<&'static Here>,
}

impl Run {
    /// What runs the checks.
    fn program(&self, out: &Path) -> Result<Tool> {
        let Some(here) = self.here else {
            return Ok(Tool::new(target().join("debug/conformance-guests")).arg(self.driver));
        };
        let config = out.join("sr.toml");
        std::fs::write(&config, CONFIG).doing(|| format!("write {}", config.display()))?;
        let tool = Tool::new(target().join("debug/sm-conformance"))
            .args(["run", "--level", "L5", "--driver"])
            .arg(target().join(here.library))
            .arg("--config")
            .arg(&config)
            .arg("--scratch")
            .arg(scratch());
        Ok(tool)
    }
}

/// The part of the checks that a day has, by its number.
fn part_of(day: u64) -> String {
    format!("{}/{DAYS}", day % DAYS + 1)
}

/// What came of a run: whether nothing blocks, and its certificate.
type Outcome = Result<(bool, PathBuf)>;

/// Runs that are to be done. Whoever has time takes the next.
pub(crate) struct Queue {
    runs: Vec<Run>,
    only: Vec<String>,
    part: Option<String>,
    /// When all must have ended.
    end: Instant,
    next: AtomicUsize,
    /// With the place of the run.
    done: Mutex<Vec<(usize, Outcome)>>,
}

impl Queue {
    fn new(asked: &Asked, end: Instant) -> Self {
        let here = HERE.iter().map(|here| Run { driver: here.driver, here: Some(here) });
        let guests = IN_GUESTS.iter().map(|driver| Run { driver, here: None });
        let runs = here.chain(guests).filter(|run| asked.wants(run.driver)).collect();
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let (only, part) = (asked.only.clone(), asked.part.clone());
        Self { runs, only, part, end, next, done }
    }

    /// The part of the checks that is today's, on all drivers, whose programs have been built.
    pub(crate) fn of_today(end: Instant) -> Self {
        let today = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let part = part_of(today.as_secs() / (24 * 60 * 60));
        Self::new(&Asked { part: Some(part), ..Asked::default() }, end)
    }

    /// Does runs until none is left that nobody does. What is said of one is said at its end, at once:
    /// lines of two do not mix.
    pub(crate) fn work(&self, say: &(impl Fn(&[String]) + ?Sized)) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(run) = self.runs.get(number) else { break };
            let left = self.end.saturating_duration_since(Instant::now());
            println!("started: conformance of {}", run.driver);
            let mut lines = Vec::new();
            let outcome = self.one(run, left.min(RUN), &mut lines);
            if let Err(failure) = &outcome {
                lines.push(format!("conformance: {}: {failure}", run.driver));
            }
            say(&lines);
            self.done.lock().unwrap_or_else(PoisonError::into_inner).push((number, outcome));
        }
    }

    /// What was run on each driver, and whether it holds.
    pub(crate) fn verdicts(self) -> Vec<(String, bool)> {
        let part = self.part.clone().map(|part| format!(" (part {part} of the checks)"));
        let part = part.unwrap_or_default();
        let verdict = |(driver, outcome): (&str, Outcome)| {
            (format!("conformance of {driver}{part}"), outcome.is_ok_and(|(good, _)| good))
        };
        self.outcomes().into_iter().map(verdict).collect()
    }

    /// Runs the checks on a driver.
    fn one(&self, run: &Run, deadline: Duration, lines: &mut Vec<String>) -> Outcome {
        // What is whole is not replaced by a part.
        let kind = if self.part.is_some() { "conformance/part" } else { "conformance" };
        let out = target().join(kind).join(run.driver);
        if out.exists() {
            std::fs::remove_dir_all(&out).doing(|| format!("remove {}", out.display()))?;
        }
        std::fs::create_dir_all(&out).doing(|| format!("make {}", out.display()))?;
        let mut tool = run.program(&out)?;
        tool = tool.args(["--quiet", "--seed", SEED, "--out"]).arg(&out).deadline(deadline);
        for id in &self.only {
            tool = tool.args(["--only", id]);
        }
        if let Some(part) = &self.part {
            tool = tool.args(["--part", part]);
        }
        let began = Instant::now();
        lines.push(format!("conformance: {}", run.driver));
        let status = tool.lines(|line| lines.push(line.to_owned()))?;
        let (took, page) = (began.elapsed().as_secs_f64(), out.join("report.html"));
        lines.push(format!("in {took:.0} s, see {}", page.display()));
        let certificate = out.join("certificate.json");
        if !certificate.exists() {
            return Err(Failure::new(format!("the suite came to no result on {}", run.driver)));
        }
        Ok((status.success(), certificate))
    }

    /// Names of drivers, and what came of each, in the order in which they were to be done.
    fn outcomes(self) -> Vec<(&'static str, Outcome)> {
        let mut done = self.done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(number, _)| *number);
        let named = |(number, outcome): (usize, _)| Some((self.runs.get(number)?.driver, outcome));
        done.into_iter().filter_map(named).collect()
    }
}

pub(crate) fn run(words: &[&str]) -> Result<ExitCode> {
    let asked = Asked::parse(words)?;
    let began = Instant::now();
    let queue = Queue::new(&asked, began + ALL);
    let runs = &queue.runs;
    let absent = absent(&folders()?);
    if runs.is_empty() {
        let name = asked.driver.unwrap_or_default();
        let why = absent.iter().find(|(driver, _)| *driver == name).map(|(_, why)| why.clone());
        let why = why.unwrap_or_else(|| "there is no such driver".to_owned());
        return Err(Failure::new(format!("driver {name} cannot be run here: {why}")));
    }
    if runs.iter().any(|run| run.here.is_none()) {
        lab::packages::ensure()?;
    }
    build(runs)?;
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..TOGETHER {
            scope.spawn(|| queue.work(&|lines: &[String]| println!("{}", lines.join("\n"))));
        }
    });
    println!("all in {:.0} s", began.elapsed().as_secs_f64());
    let mut good = true;
    let mut certificates = Vec::new();
    for (_, outcome) in queue.outcomes() {
        let (held, certificate) = outcome?;
        good &= held;
        certificates.push(certificate);
    }
    for (driver, why) in &absent {
        println!("conformance: {driver} is not run: {why}");
    }
    if asked.driver.is_none() && asked.part.is_none() {
        good &= pages(&certificates, &absent, asked.check)?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The suite, the program that drivers run in, and the drivers.
fn build(runs: &[Run]) -> Result<()> {
    let suite = ["--package", "sm-conformance", "--package", "sm-driver-host", "--lib", "--bins"];
    let mut cargo = cargo().args(["build", "--quiet"]).args(suite);
    if runs.iter().any(|run| run.here.is_none()) {
        cargo = cargo.args(["--package", "conformance-guests", "--package", "array-sim"]);
    }
    for run in runs {
        cargo = match run.here {
            Some(here) => cargo.args(here.build),
            None => cargo.arg("--package").arg(format!("sm-driver-{}", run.driver)),
        };
    }
    if cargo.show()?.success() {
        return Ok(());
    }
    Err(Failure::new("the suite or a driver does not build; cargo has said why"))
}

/// In memory where there is a place: the checks wait for the disk more than for anything else.
fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// Writes the page of all drivers, or says whether it is as it was written.
fn pages(certificates: &[PathBuf], absent: &[(String, String)], check: bool) -> Result<bool> {
    let suite = target().join("debug/sm-conformance");
    let matrix = |more: &[&str]| {
        let mut tool = Tool::new(&suite).arg("matrix").args(certificates).args(more);
        for (driver, why) in absent {
            tool = tool.arg("--not-run").arg(format!("{driver}={why}"));
        }
        tool.run()
    };
    let html = target().join("conformance/matrix.html");
    std::fs::write(&html, matrix(&[])?.stdout).doing(|| format!("write {}", html.display()))?;
    let text = document(&matrix(&["--markdown"])?.stdout);
    let path = root().join(PAGE);
    if !check {
        std::fs::write(&path, text).doing(|| format!("write {}", path.display()))?;
        println!("{PAGE} is written");
        return Ok(true);
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    if written == text {
        println!("{PAGE} is current");
        return Ok(true);
    }
    let line = written.lines().zip(text.lines()).take_while(|(a, b)| a == b).count() + 1;
    let failure = Failure::new(format!(
        "{PAGE} is not what the drivers come to (first difference in line {line})"
    ));
    eprintln!("xtask: {}", failure.hint("cargo xtask conformance writes it anew"));
    Ok(false)
}

fn document(table: &str) -> String {
    format!(
        "# What the drivers keep to\n\n\
         Written by `cargo xtask conformance`, which runs the conformance suite (`docs/conformance.md`) up\n\
         to level L5 with seed {SEED}; `--check` says whether it is current. Not to be edited.\n\n\
         Arrays are the simulated ones (`docs/simulators.md`). All but `file` and `scratch` run in guests with a\n\
         kernel of their own (`docs/lab.md`): volume groups, NFS, and LUNs by the kernel's initiator.\n\n{table}"
    )
}

/// The folders of drivers.
fn folders() -> Result<Vec<String>> {
    let folder = root().join("drivers");
    let entries = std::fs::read_dir(&folder).doing(|| format!("list {}", folder.display()))?;
    let mut found: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("Cargo.toml").exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    Ok(found)
}

/// Those that are not run here, each with the reason: a driver is never left out silently.
fn absent(folders: &[String]) -> Vec<(String, String)> {
    let runs =
        |driver: &str| IN_GUESTS.contains(&driver) || HERE.iter().any(|here| here.driver == driver);
    let why = "nothing says yet how it could be run here";
    let left = folders.iter().filter(|driver| !runs(driver));
    left.map(|driver| (driver.clone(), why.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_run_or_listed_with_a_reason() {
        let folders: Vec<String> = ["file", "lvm", "new"].map(str::to_owned).into();
        let reason = "nothing says yet how it could be run here";
        assert_eq!(absent(&folders), [("new".to_owned(), reason.to_owned())]);
        assert_eq!(absent(&super::folders().unwrap()), []);
    }

    #[test]
    fn the_page_in_the_repository_has_a_part_for_each_driver() {
        let page = std::fs::read_to_string(root().join(PAGE)).unwrap();
        for driver in HERE.iter().map(|here| &here.driver).chain(IN_GUESTS) {
            let forms = [format!("## {driver} "), format!("| {driver} |")];
            let named = forms.iter().any(|form| page.contains(form));
            assert!(named, "{driver} is not in {PAGE}");
        }
    }

    #[test]
    fn checks_are_chosen_of_one_driver() {
        let asked = Asked::parse(&["--driver", "lvm", "--only", "E*", "--only", "D01"]).unwrap();
        let only = ["E*", "D01"].map(str::to_owned).into();
        assert_eq!(asked, Asked { driver: Some("lvm".into()), only, ..Asked::default() });
        let asked = Asked::parse(&["--part", "2/3"]).unwrap();
        assert_eq!(asked, Asked { part: Some("2/3".into()), ..Asked::default() });
        let failure = Asked::parse(&["--only", "E*"]).unwrap_err().to_string();
        assert_eq!(failure, "--only needs a --driver");
    }

    #[test]
    fn so_many_days_come_to_all_checks() {
        let mut parts: Vec<String> = (20_000..20_000 + DAYS).map(part_of).collect();
        parts.sort();
        let all: Vec<String> = (1..=DAYS).map(|number| format!("{number}/{DAYS}")).collect();
        assert_eq!(parts, all);
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let failure = Asked::parse(&["--drivers"]).err().unwrap().to_string();
        assert!(failure.starts_with("\"--drivers\" is not understood"), "{failure}");
    }
}
