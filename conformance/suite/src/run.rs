//! A run: which checks, in which order, and what came of each.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::bench::Bench;
use crate::catalog::{self, Level, Row};
use crate::certificate::{self, Certificate, Entry, Timing};
use crate::checks::{self, Check, sequences::Step};
use crate::config::Config;
use crate::part::Part;
use crate::verdict::{State, Stop, Verdict};
use crate::world::World;
use crate::{Error, logbook, report};

/// The file of [`Progress`], among the reports.
const PROGRESS: &str = "progress.log";

/// What a run is asked to do.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The driver's file.
    pub driver: PathBuf,
    /// How to reach its backend.
    pub config: Config,
    /// Where that was read.
    pub config_path: Option<PathBuf>,
    /// Checks of this level and those below.
    pub level: Level,
    /// Only these ids or names, whatever their level; a `*` at the end matches the rest.
    pub only: Vec<String>,
    /// Where chance begins; drawn if absent.
    pub seed: Option<u64>,
    /// After this time no further check is begun.
    pub budget: Option<Duration>,
    /// Where reports and the journal go.
    pub out: Option<PathBuf>,
    /// Of the checks that are wanted, only those of a part.
    pub part: Option<Part>,
    /// Where the run's own folder is made.
    pub scratch: PathBuf,
    /// What is typed to see a failure again, with `{id}` for the check, where that is not `replay`.
    pub again: Option<String>,
    /// End at the first check that fails.
    pub fail_fast: bool,
    /// Operations to repeat, in the place of drawn ones.
    pub ops: Option<PathBuf>,
}

impl RunOptions {
    /// The usual ones: up to L2, no reports.
    pub fn new(driver: PathBuf, config: Config) -> Self {
        Self {
            driver,
            config,
            config_path: None,
            level: Level::L2,
            only: Vec::new(),
            seed: None,
            budget: None,
            part: None,
            out: None,
            scratch: std::env::temp_dir(),
            again: None,
            fail_fast: false,
            ops: None,
        }
    }
}

/// What is needed to see a failure again; lies beside the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// The check.
    pub id: String,
    /// The driver's file.
    pub driver: PathBuf,
    /// The configuration.
    pub config: PathBuf,
    /// The seed.
    pub seed: u64,
    /// The shortest sequence of operations that fails, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ops: Option<Vec<Step>>,
}

/// Runs the checks. `each` is told of every result as it comes.
///
/// # Errors
/// If there is nothing to run, or nothing to run it on; not if a check fails.
pub fn run(options: &RunOptions, each: &mut dyn FnMut(&Entry)) -> Result<Certificate, Error> {
    // What the driver starts and leaves becomes ours, so that it is seen.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    logbook::install();
    let seed = options.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 16);
    let mut bench = Bench::new(options, seed)?;
    if let Some(path) = &options.ops {
        let text = std::fs::read_to_string(path).map_err(|error| Error::file(path, &error))?;
        let replay: Replay = serde_json::from_str(&text).map_err(|e| Error::json(path, &e))?;
        bench.ops = replay.ops;
    }
    let selected: Vec<(&Row, &Check)> = checks::ALL
        .iter()
        .filter_map(|check| Some((catalog::find(check.id)?, *check)))
        .filter(|(row, _)| wanted(options, row))
        .enumerate()
        .filter(|(place, _)| options.part.is_none_or(|part| part.has(*place)))
        .map(|(_, check)| check)
        .collect();
    if selected.is_empty() {
        let what = options.part.map(|part| format!("part {part}"));
        let what: Vec<String> = options.only.iter().cloned().chain(what).collect();
        let why = format!("nothing matches {}", what.join(", "));
        return Err(Error::Nothing(why));
    }
    let progress = Progress::begin(options)?;
    let began = Instant::now();
    let mut absent = BTreeMap::new();
    let mut entries: Vec<Entry> = Vec::new();
    for (row, check) in selected {
        progress.note(&format!("{} begins", row.id));
        let entry = if options.budget.is_some_and(|budget| began.elapsed() >= budget) {
            let why = "the time of --budget was over before it began".to_owned();
            entry(row, check, Err(Stop::NotTestable(why)), &options.config)
        } else {
            let start = Instant::now();
            let mut outcome = one(&bench, check, &mut absent);
            let mut entry = entry(row, check, outcome.verdict, &options.config);
            entry.milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            entry.calls = timings(std::mem::take(&mut outcome.times));
            if entry.state == State::Fail {
                keep(options, &bench, &mut entry, &outcome.log, outcome.ops)?;
            }
            entry
        };
        progress.note(&report::line(&entry, false));
        each(&entry);
        let failed = entry.state == State::Fail;
        entries.push(entry);
        if failed && options.fail_fast {
            break;
        }
    }
    // What it would say, the checks of SRs say.
    let _ = World::without_kept(&bench);
    if let Some(out) = &options.out {
        let path = out.join("driver.log");
        let text = bench.hide(&logbook::text());
        std::fs::write(&path, text).map_err(|error| Error::file(&path, &error))?;
    }
    if entries.iter().all(|entry| entry.state == State::NotApplicable) {
        return Err(Error::Nothing("none of the checks applies to this driver".into()));
    }
    certificate::issue(&bench, options, entries)
}

/// Where a run stands, a line when a check begins and one when it has ended: what there is of a run that
/// was ended from outside.
struct Progress(Option<File>);

impl Progress {
    fn begin(options: &RunOptions) -> Result<Self, Error> {
        let Some(out) = &options.out else { return Ok(Self(None)) };
        let path = out.join(PROGRESS);
        let file = File::create(&path).map_err(|error| Error::file(&path, &error))?;
        Ok(Self(Some(file)))
    }

    /// Nothing depends on it.
    fn note(&self, line: &str) {
        if let Some(mut file) = self.0.as_ref() {
            let _ = file.write_all(format!("{line}\n").as_bytes());
        }
    }
}

fn wanted(options: &RunOptions, row: &Row) -> bool {
    if options.only.is_empty() {
        return row.level.is_some_and(|level| level <= options.level);
    }
    options.only.iter().any(|pattern| catalog::matches(pattern, row))
}

struct Outcome {
    verdict: Verdict,
    log: String,
    times: BTreeMap<&'static str, Vec<u64>>,
    ops: Option<Vec<Step>>,
}

/// Runs one check, and cleans up after it.
fn one(bench: &Bench, check: &Check, absent: &mut BTreeMap<&'static str, Verdict>) -> Outcome {
    let nothing =
        |verdict| Outcome { verdict, log: String::new(), times: BTreeMap::new(), ops: None };
    let manifest = &bench.inspection.manifest;
    if let Some(need) = check.needs.iter().find(|need| !manifest.can(need)) {
        let probed = absent.entry(need).or_insert_with(|| {
            let mut world = World::bare(bench, "honesty")?;
            let verdict = checks::honestly_absent(&mut world, need);
            world.wipe();
            verdict
        });
        let verdict = probed.clone().and_then(|()| {
            let refused = need.parse::<sm_model::Operation>().is_ok();
            let refused = if refused { ", and refuses it" } else { "" };
            Err(Stop::NotApplicable(format!("the driver does not declare {need}{refused}")))
        });
        return nothing(verdict);
    }
    if let Some(why) = &bench.config.backend.cannot_attach
        && check.needs.iter().any(|need| need == "vdi_attach")
    {
        return nothing(Err(Stop::NotTestable(why.clone())));
    }
    if let Some(why) = check.setup.lacks(bench) {
        return nothing(Err(Stop::NotApplicable(why.to_owned())));
    }
    let world = if check.setup.has_sr() {
        World::with_sr(bench, check.id)
    } else {
        World::without_kept(bench).and_then(|()| World::bare(bench, check.id))
    };
    let mut world = match world {
        Ok(world) => world,
        Err(stop) => return nothing(Err(stop)),
    };
    let run = || (check.run)(&mut world);
    // A check that panics is a defect of the suite; the others go on.
    let verdict =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|_| {
            Err(Stop::NotTestable("the check itself panicked: a defect of the suite".into()))
        });
    let verdict = match verdict {
        Ok(()) if check.setup.has_sr() => world.finish(),
        verdict => verdict,
    };
    world.wipe();
    Outcome {
        verdict,
        log: std::mem::take(&mut world.log),
        times: std::mem::take(&mut world.times),
        ops: world.ops.take(),
    }
}

fn entry(row: &Row, check: &Check, verdict: Verdict, config: &Config) -> Entry {
    let (mut state, mut reason) = match verdict {
        Ok(()) => (State::Pass, None),
        Err(Stop::Fail(why)) => (State::Fail, Some(why)),
        Err(Stop::NotApplicable(why)) => (State::NotApplicable, Some(why)),
        Err(Stop::NotTestable(why)) => (State::NotTestable, Some(why)),
    };
    if state == State::Fail
        && let Some(waiver) = config.waivers.get(row.id)
        && let Some(why) = &mut reason
    {
        if waiver.holds() {
            state = State::Waived;
            *why = format!("{} until {}: {why}", waiver.issue, waiver.until);
        } else {
            *why = format!("the waiver ended on {}: {why}", waiver.until);
        }
    }
    Entry {
        id: row.id.to_owned(),
        name: row.name.to_owned(),
        level: row.level,
        state,
        reason,
        milliseconds: 0,
        sentences: check.sentences.iter().map(|&id| id.to_owned()).collect(),
        calls: BTreeMap::new(),
        replay: None,
    }
}

fn timings(times: BTreeMap<&'static str, Vec<u64>>) -> BTreeMap<String, Timing> {
    let mut found = BTreeMap::new();
    for (operation, mut times) in times {
        times.sort_unstable();
        let at = |share: usize| times.get((times.len() - 1) * share / 100).copied().unwrap_or(0);
        let timing = Timing { calls: times.len(), p50_ms: at(50), p95_ms: at(95) };
        found.insert(operation.to_owned(), timing);
    }
    found
}

/// Writes what is needed to see a failure again, and the line that does it.
fn keep(
    options: &RunOptions,
    bench: &Bench,
    entry: &mut Entry,
    log: &str,
    ops: Option<Vec<Step>>,
) -> Result<(), Error> {
    let Some(out) = &options.out else { return Ok(()) };
    let folder = out.join("failures");
    let absolute = |path: &std::path::Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    std::fs::create_dir_all(&folder).map_err(|error| Error::file(&folder, &error))?;
    let path = folder.join(format!("{}.json", entry.id));
    let replay = Replay {
        id: entry.id.clone(),
        driver: absolute(&options.driver),
        config: options.config_path.as_deref().map(absolute).unwrap_or_default(),
        seed: bench.seed,
        ops,
    };
    let text = serde_json::to_string_pretty(&replay).map_err(|e| Error::json(&path, &e))?;
    std::fs::write(&path, text).map_err(|error| Error::file(&path, &error))?;
    let log_path = folder.join(format!("{}.log", entry.id));
    let log = bench.hide(log);
    std::fs::write(&log_path, log).map_err(|error| Error::file(&log_path, &error))?;
    entry.replay = Some(match &options.again {
        Some(command) => command.replace("{id}", &entry.id),
        None => format!("sm-conformance replay {}", absolute(&path).display()),
    });
    Ok(())
}
