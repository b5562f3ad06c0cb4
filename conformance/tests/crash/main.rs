//! Kill -9 at every step of every operation of the file driver and of the core, in process and
//! through a child process; then the same command with the same operation id.
//!
//! The law: after the retry everything is as if there had been no crash; without a retry, after
//! a scan, everything is as before or as after, and nothing is left over. No disk is lost.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::format_push_string,
    clippy::format_collect,
    reason = "a test fails by panicking"
)]

mod place;
mod scenario;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use conformance::built;
use place::{End, Place};
use scenario::{SCENARIOS, Scenario};

/// How many crashes inside a recovery are tried for each of its steps.
const RECOVERIES: usize = 3;

/// Names the scenarios to try, by a part of their names; then steps that none reaches are no
/// failure.
const CHOICE: &str = "CRASH_SCENARIO";

/// What only a snapshot with its guest at rest comes by. Its command has a new operation in each
/// attempt, so that it is not repeated as the scenarios are: `vhd/tests/crash.rs` cuts it here, and
/// `sm-core/ctl/tests/smctl/quiesce.rs` cuts the command around it.
const ELSEWHERE: &[&str] = &["vdi_snapshot.group_prepared"];

fn is_chosen(name: &str) -> bool {
    std::env::var(CHOICE).map_or(true, |choice| name.contains(&choice))
}

#[test]
fn every_step_in_process() {
    crash_everywhere("in-process");
}

#[test]
fn every_step_in_a_child() {
    crash_everywhere("child");
}

fn crash_everywhere(isolation: &'static str) {
    let mut steps = place::steps(&built::artefact("libsm_driver_file.so"));
    steps.retain(|step| !ELSEWHERE.contains(&step.as_str()));
    let core = place::steps(&built::artefact("smctl"));
    // smctl also links the image library, whose steps only run inside the driver.
    steps.extend(core.into_iter().filter(|step| {
        ["core.", "job.", "sr_"].iter().any(|start| step.starts_with(start))
            || step.ends_with("driver_answered")
    }));
    let (recovery, steps): (Vec<String>, Vec<String>) =
        steps.into_iter().partition(|step| step.starts_with("recover."));

    let visited = Mutex::new(BTreeSet::new());
    let recovered = Mutex::new(BTreeMap::<String, usize>::new());
    let crashes = Mutex::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (steps, recovery) = (&steps, &recovery);
            let (visited, recovered) = (&visited, &recovered);
            let (crashes, failures) = (&crashes, &failures);
            scope.spawn(move || {
                // In memory: a killed process does not lose what it has written, so that the
                // disk would only add its time to each of thousands of syncs.
                let folder = tempfile::tempdir_in("/dev/shm").unwrap();
                let place = Place::new(folder.path(), isolation);
                let chosen = SCENARIOS.iter().filter(|scenario| is_chosen(scenario.name));
                for scenario in chosen.skip(worker).step_by(2) {
                    let work =
                        || run(&place, scenario, steps, recovery, visited, recovered, crashes);
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                        let text =
                            panic.downcast::<String>().map_or_else(|_| "?".into(), |text| *text);
                        failures.lock().unwrap().push(text);
                    }
                }
            });
        }
    });

    // All scenarios are run: one report instead of one failure at a time.
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n\n"));
    let visited = visited.into_inner().unwrap();
    let recovered = recovered.into_inner().unwrap();
    println!("{isolation}: {} crashes at {} steps", crashes.into_inner().unwrap(), visited.len());
    for (step, count) in &recovered {
        println!("{isolation}: {count} crashes inside recovery at {step}");
    }
    if std::env::var_os(CHOICE).is_some() {
        return;
    }
    let never: Vec<&String> = steps.iter().filter(|step| !visited.contains(*step)).collect();
    assert!(never.is_empty(), "no scenario reaches these steps: {never:?}");
    let never: Vec<&String> =
        recovery.iter().filter(|step| !recovered.contains_key(*step)).collect();
    assert!(never.is_empty(), "no recovery reaches these steps: {never:?}");
}

fn run(
    place: &Place,
    scenario: &Scenario,
    steps: &[String],
    recovery: &[String],
    visited: &Mutex<BTreeSet<String>>,
    recovered: &Mutex<BTreeMap<String, usize>>,
    crashes: &Mutex<usize>,
) {
    // What it looks like before, and after a run without a crash.
    place.reset();
    let arguments = (scenario.arguments)(place);
    (scenario.before)(place);
    place.keep();
    let before = place.state();
    let visits = place.run_logged(&arguments);
    let after = place.state();
    place.scan();
    place.must_be(&after, || format!("{}: a scan changes nothing", scenario.name));
    assert_eq!(place.run(&arguments, None), End::Ok, "{}: replay", scenario.name);
    place.must_be(&after, || format!("{}: a replay changes nothing", scenario.name));

    for step in steps {
        for visit in 1..=visits.get(step).copied().unwrap_or(0).min(2) {
            let armed = format!("{step}:{visit}");
            let context = || format!("{} killed at {armed}", scenario.name);
            place.back();
            if place.run(&arguments, Some(&armed)) == End::Ok {
                // Threads took another turn this time.
                break;
            }
            visited.lock().unwrap().insert(step.clone());
            *crashes.lock().unwrap() += 1;

            // First way: the caller repeats the command.
            assert_eq!(place.run(&arguments, None), End::Ok, "{}: retry", context());
            place.must_be(&after, || format!("{}: after the retry", context()));

            // Second way: nobody repeats it; somebody scans.
            place.back();
            place.run(&arguments, Some(&armed));
            let recovers = place.scan();
            let now = place.state();
            assert!(
                now == before || now == after || (scenario.unfinished)(&now, &before),
                "{}: after a scan it differs from before by{}\nand from after by{}",
                context(),
                now.difference(&before),
                now.difference(&after)
            );
            assert_eq!(place.scan_recovers(), "", "{}: a second scan finds nothing", context());
            assert_eq!(place.run(&arguments, None), End::Ok, "{}: late retry", context());
            place.must_be(&after, || format!("{}: after the late retry", context()));

            // Third way: the recovery is killed too.
            for inner in recovery.iter().filter(|inner| recovers.contains_key(*inner)) {
                if recovered.lock().unwrap().get(inner).copied().unwrap_or(0) >= RECOVERIES {
                    continue;
                }
                place.back();
                place.run(&arguments, Some(&armed));
                if place.scan_killed_at(inner) == End::Ok {
                    continue;
                }
                *recovered.lock().unwrap().entry(inner.clone()).or_default() += 1;
                assert_eq!(place.run(&arguments, None), End::Ok, "{}, {inner}: retry", context());
                place.must_be(&after, || format!("{}, then at {inner}", context()));
            }
        }
    }
}
