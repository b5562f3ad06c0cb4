//! Good drivers, and those of the corpus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use conformance::built;
use faulty::{DEFECTS, Defect};
use sm_conformance::{Level, State};

use crate::{config, faulty_driver, folder, run, said};

/// Share of the faulty drivers that must be found, in percent.
const SCORE: usize = 95;

/// Runs at the same time: each waits for processes more than it computes.
const WORKERS: usize = 4;

/// A good driver raises no alarm, at any level.
fn is_good(driver: &Path, more: &str, level: Level, least: usize) {
    let folder = folder();
    let seed = "20261";
    let arguments = ["--level", "L5", "--quiet", "--seed", seed];
    let sr = config(more).replace("[suite]", "[suite]\nsequences = 6");
    let (output, certificate) = run(&folder.path().join("one"), driver, &sr, &arguments);
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

#[test]
fn the_file_driver_passes() {
    is_good(&built::artefact("libsm_driver_file.so"), "", Level::L2, 90);
}

#[test]
fn the_faulty_driver_without_a_defect_passes() {
    let secret = "[secrets]\npassword = \"{canary}\"";
    is_good(&faulty_driver(), secret, Level::L2, 80);
}

/// Which check finds a defect; none if it gets by.
fn killer(folder: &Path, defect: &Defect) -> Result<String, String> {
    let more = format!("defect = \"{}\"\n[secrets]\npassword = \"{{canary}}\"", defect.name);
    let mut arguments = vec!["--quiet", "--seed", "7"];
    for id in defect.killers {
        arguments.extend(["--only", id]);
    }
    let mut sr = config(&more);
    if defect.name.starts_with("hang") {
        sr = sr.replace("call-seconds = 60", "call-seconds = 3");
    }
    let (output, certificate) = run(&folder.join(defect.name), &faulty_driver(), &sr, &arguments);
    let certificate = certificate.ok_or_else(|| said(&output))?;
    let found = certificate.results.iter().find(|entry| entry.state == State::Fail);
    let found = found.ok_or_else(|| said(&output))?;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    Ok(format!("{} {}", found.id, found.reason.clone().unwrap_or_default()))
}

#[test]
fn a_faulty_driver_is_found_by_a_check_that_names_what_is_wrong() {
    let folder = folder();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    // Built before the first of them needs it.
    built::artefact("sm-driver-host");
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(defect) = DEFECTS.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let killer = killer(folder.path(), defect);
                    found.lock().unwrap().insert(defect.name, killer);
                }
            });
        }
    });
    let found = found.into_inner().unwrap();
    let killed = found.values().filter(|killer| killer.is_ok()).count();
    let mut text = String::new();
    for defect in DEFECTS {
        let _ = match &found[defect.name] {
            Ok(by) => writeln!(text, "{} ({}): {by:.160}", defect.name, defect.class),
            Err(why) => writeln!(text, "{} ({}) GETS BY:\n{why}", defect.name, defect.class),
        };
    }
    println!("{text}");
    println!("mutation score: {killed} of {} faulty drivers are found", DEFECTS.len());
    assert!(killed * 100 >= DEFECTS.len() * SCORE, "{text}");
}
