//! Good drivers, and those of the corpus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use conformance::built;
use faulty::DEFECTS;
use sm_conformance::{Level, State};

use crate::{Ran, arrays, config, faulty_driver, folder, run, said};

/// Share of the faulty drivers that must be found, in percent.
const SCORE: usize = 95;

/// Runs at the same time: each waits for processes more than it computes.
const WORKERS: usize = 4;

/// A good driver raises no alarm, at any level.
fn is_good(level: Level, least: usize, run: impl FnOnce(&Path, &[&str]) -> Ran) {
    let folder = folder();
    let seed = "20261";
    let arguments = ["--level", "L5", "--quiet", "--seed", seed];
    let (output, certificate) = run(&folder.path().join("one"), &arguments);
    let certificate = certificate.unwrap_or_else(|| panic!("{}", said(&output)));
    let wrong: Vec<_> = certificate
        .results
        .iter()
        .filter(|entry| entry.state == State::Fail)
        .map(|entry| format!("{}: {:?}", entry.id, entry.reason))
        .collect();
    assert!(wrong.is_empty(), "false alarms: {wrong:#?}");
    assert!(certificate.counts.pass >= least, "{:?}", certificate.counts);
    assert!(certificate.level >= Some(level), "{}", said(&output));
    assert_eq!(certificate.seed.to_string(), seed);
    let time: u64 = certificate.results.iter().map(|entry| entry.milliseconds).sum();
    println!("{}: {:?} in {time} ms", certificate.driver.name, certificate.counts);
    let left: Vec<_> = std::fs::read_dir(folder.path().join("one"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().starts_with("smc-"))
        .collect();
    assert!(left.is_empty(), "a run leaves {left:?}");
}

/// What keeps files in a folder.
fn in_a_folder(driver: &Path, more: &str, at: &Path, arguments: &[&str]) -> Ran {
    let sr = config(more).replace("[suite]", "[suite]\nsequences = 6");
    run(at, driver, &sr, arguments)
}

#[test]
fn the_file_driver_passes() {
    let driver = built::artefact("libsm_driver_file.so");
    is_good(Level::L2, 90, |at, arguments| in_a_folder(&driver, "", at, arguments));
}

#[test]
fn the_faulty_driver_without_a_defect_passes() {
    let secret = "[secrets]\npassword = \"{canary}\"";
    is_good(Level::L2, 80, |at, arguments| in_a_folder(&faulty_driver(), secret, at, arguments));
}

#[test]
fn the_faulty_driver_of_an_array_without_a_defect_passes() {
    is_good(Level::L2, 40, |at, arguments| arrays::run_on_array(at, "", arguments));
}

/// One defect, of a driver of files or of an array.
struct Case {
    name: &'static str,
    class: &'static str,
    /// The checks of which one must find it.
    killers: Vec<&'static str>,
    run: fn(&Path, &'static str, &[&str]) -> Ran,
}

fn cases() -> Vec<Case> {
    let of_files = DEFECTS.iter().map(|defect| Case {
        name: defect.name,
        class: defect.class,
        killers: defect.killers.to_vec(),
        run: |at, name, arguments| {
            let more = format!("defect = \"{name}\"\n[secrets]\npassword = \"{{canary}}\"");
            let mut sr = config(&more);
            if name.starts_with("hang") {
                sr = sr.replace("call-seconds = 60", "call-seconds = 3");
            }
            run(at, &faulty_driver(), &sr, arguments)
        },
    });
    let of_arrays = arrays::defects().map(|[name, class, killers, _]| Case {
        name,
        class,
        killers: killers.split(' ').collect(),
        run: |at, name, arguments| {
            arrays::run_on_array(at, &format!("defect = \"{name}\""), arguments)
        },
    });
    of_files.chain(of_arrays).collect()
}

/// Which check finds a defect; none if it gets by.
fn killer(folder: &Path, case: &Case) -> Result<String, String> {
    let mut arguments = vec!["--quiet", "--seed", "7"];
    for id in &case.killers {
        arguments.extend(["--only", id]);
    }
    let (output, certificate) = (case.run)(&folder.join(case.name), case.name, &arguments);
    let certificate = certificate.ok_or_else(|| said(&output))?;
    let found = certificate.results.iter().find(|entry| entry.state == State::Fail);
    let found = found.ok_or_else(|| said(&output))?;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    Ok(format!("{} {}", found.id, found.reason.clone().unwrap_or_default()))
}

#[test]
fn a_faulty_driver_is_found_by_a_check_that_names_what_is_wrong() {
    let folder = folder();
    let cases = cases();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    // Built before the first of them needs it.
    built::artefact("sm-driver-host");
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let killer = killer(folder.path(), case);
                    found.lock().unwrap().insert(case.name, killer);
                }
            });
        }
    });
    let found = found.into_inner().unwrap();
    assert_eq!(found.len(), cases.len(), "two defects have the same name");
    let killed = found.values().filter(|killer| killer.is_ok()).count();
    let mut text = String::new();
    for Case { name, class, .. } in &cases {
        let _ = match &found[name] {
            Ok(by) => writeln!(text, "{name} ({class}): {by:.160}"),
            Err(why) => writeln!(text, "{name} ({class}) GETS BY:\n{why}"),
        };
    }
    println!("{text}");
    let score = format!("{killed} of {} drivers that are wrong on purpose are found", cases.len());
    // Not by println!, which a test that passes is not heard with.
    writeln!(std::io::stdout(), "mutation score: {score}").unwrap();
    assert!(killed * 100 >= cases.len() * SCORE, "{text}");
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let words: Vec<_> = readme.split_whitespace().collect();
    assert!(words.join(" ").contains(&score), "README.md does not say: {score}");
}
