//! What the program promises beside the verdicts.

use std::process::Stdio;
use std::time::{Duration, Instant};

use sm_conformance::{Certificate, State};

use crate::{config, faulty_driver, folder, program, run, said};

/// Long enough that only a hang gets there.
const AMPLE: Duration = Duration::from_secs(60);

#[test]
fn the_same_seed_gives_the_same_verdicts_and_the_same_reasons() {
    let folder = folder();
    let of = |name: &str| {
        let sr = config("defect = \"clone-partial\"");
        let more = ["--seed", "99", "--only", "T01", "--only", "E0*", "--quiet"];
        let (output, certificate) = run(&folder.path().join(name), &faulty_driver(), &sr, &more);
        let results = certificate.unwrap_or_else(|| panic!("{}", said(&output))).results;
        let results = results.into_iter();
        results.map(|entry| (entry.id, entry.state, entry.reason)).collect::<Vec<_>>()
    };
    let one = of("one");
    assert_eq!(one, of("two"));
    assert!(one.iter().any(|(_, state, _)| *state == State::Fail), "{one:?}");
}

#[test]
fn a_failure_can_be_repeated_and_a_sequence_is_as_short_as_can_be() {
    let folder = folder();
    let sr = config("defect = \"clone-empty\"");
    let more = ["--seed", "3", "--only", "T01", "--quiet"];
    let (output, certificate) = run(folder.path(), &faulty_driver(), &sr, &more);
    let certificate = certificate.unwrap_or_else(|| panic!("{}", said(&output)));
    let entry = &certificate.results[0];
    assert_eq!(entry.state, State::Fail, "{}", said(&output));
    let line = entry.replay.clone().unwrap();
    let file = line.strip_prefix("sm-conformance replay ").unwrap();
    let replay: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let steps = replay["ops"].as_array().unwrap();
    // Make, write, clone.
    assert!(steps.len() <= 4, "{steps:?}");
    let again = program().args(["replay", file]).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "{}", said(&again));
    assert!(said(&again).contains("T01 FAIL"), "{}", said(&again));
}

#[test]
fn a_certificate_is_verified_and_a_changed_one_is_not() {
    let folder = folder();
    let more = ["--only", "C10", "--quiet"];
    let (output, certificate) = run(folder.path(), &faulty_driver(), &config(""), &more);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).ends_with("1 passed, 0 failed, 0 skipped\n"), "{}", said(&output));
    // Of checks that were chosen by hand no level follows.
    assert_eq!(certificate.unwrap().level, None);
    let file = folder.path().join("out/certificate.json");
    let verify = || program().arg("verify").arg(&file).output().unwrap();
    assert_eq!(verify().status.code(), Some(0));
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("\"pass\":1", "\"pass\":3", 1)).unwrap();
    let changed = verify();
    assert_eq!(changed.status.code(), Some(1));
    assert!(said(&changed).starts_with("bad: "), "{}", said(&changed));
    for name in ["junit.xml", "report.tap", "report.md", "report.html", "badge.svg", "driver.log"] {
        assert!(folder.path().join("out").join(name).exists(), "{name}");
    }
    // Also what there would be of a run that is ended in the middle.
    let progress = std::fs::read_to_string(folder.path().join("out/progress.log")).unwrap();
    let [begins, ends] = progress.lines().collect::<Vec<_>>()[..] else { panic!("{progress}") };
    assert!(begins.ends_with(" begins") && ends.contains(" PASS "), "{progress}");
}

#[test]
fn no_check_is_no_success() {
    let folder = folder();
    for only in ["Z*", "I01"] {
        let (output, _) = run(folder.path(), &faulty_driver(), &config(""), &["--only", only]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("no check was run"), "{}", said(&output));
        // Nor is an older result left that could be taken for one.
        let old = folder.path().join("out/certificate.json");
        assert!(!old.exists());
        std::fs::write(old, "of an older run").unwrap();
    }
}

#[test]
fn what_somebody_else_has_is_left_alone() {
    let folder = folder();
    let place = folder.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let kept = place.join("of-somebody");
    std::fs::write(&kept, "data").unwrap();
    let sr = config("").replace("{scratch}", place.to_str().unwrap());
    let (output, _) = run(folder.path(), &faulty_driver(), &sr, &["--only", "C10"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(
        said(&output).contains("of-somebody, which this run has not made"),
        "{}",
        said(&output)
    );
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "data");
}

#[test]
fn a_waiver_holds_until_its_day() {
    let folder = folder();
    for (until, state, code) in [("2999-01-31", State::Waived, 0), ("2020-01-31", State::Fail, 1)] {
        let sr = config("defect = \"destroy-twice\"")
            + &format!("[waivers]\nC11 = {{ issue = \"#7\", until = \"{until}\" }}\n");
        let at = folder.path().join(until);
        let (output, certificate) = run(&at, &faulty_driver(), &sr, &["--only", "C11"]);
        let certificate = certificate.unwrap_or_else(|| panic!("{}", said(&output)));
        assert_eq!(certificate.results[0].state, state, "{}", said(&output));
        assert_eq!(output.status.code(), Some(code));
    }
}

#[test]
fn what_a_killed_run_has_left_is_cleaned_up() {
    let folder = folder();
    let sr = folder.path().join("sr.toml");
    std::fs::write(&sr, config("defect = \"slow-create\"")).unwrap();
    let out = folder.path().join("out");
    let mut child = program();
    child.arg("run").arg("--driver").arg(faulty_driver()).arg("--config").arg(&sr);
    child.arg("--out").arg(&out).arg("--scratch").arg(folder.path()).args(["--only", "C15"]);
    let mut child = child.stdout(Stdio::null()).spawn().unwrap();
    let until = Instant::now() + AMPLE;
    // Each create takes its time, so the run is in the middle of them.
    let journal = || std::fs::read_to_string(out.join("owned.jsonl")).unwrap_or_default();
    while journal().matches("\"own\":\"vdi\"").count() < 2 {
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let left = || {
        let entries = std::fs::read_dir(folder.path()).unwrap();
        entries
            .filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().starts_with("smc-"))
            .count()
    };
    assert_eq!(left(), 1);
    let cleaned = program().arg("cleanup").arg("--out").arg(&out).output().unwrap();
    assert_eq!(cleaned.status.code(), Some(0), "{}", said(&cleaned));
    assert!(said(&cleaned).contains("removed SR "), "{}", said(&cleaned));
    assert_eq!(left(), 0);
}

#[test]
fn what_has_no_time_left_is_not_testable_and_blocks_the_level() {
    let folder = folder();
    let more = ["--budget", "0s", "--level", "L0", "--quiet"];
    let (output, certificate) = run(folder.path(), &faulty_driver(), &config(""), &more);
    let certificate: Certificate = certificate.unwrap_or_else(|| panic!("{}", said(&output)));
    assert_eq!((certificate.counts.pass, certificate.level), (0, None));
    assert!(certificate.counts.not_testable > 0);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_parts_of_the_checks_are_all_of_them_and_none_twice() {
    let folder = folder();
    let of = |part: &str| {
        let mut more = vec!["--level", "L0", "--quiet"];
        if !part.is_empty() {
            more.extend(["--part", part]);
        }
        let name = format!("of-{}", part.replace('/', "-"));
        let (output, certificate) =
            run(&folder.path().join(name), &faulty_driver(), &config(""), &more);
        let certificate = certificate.unwrap_or_else(|| panic!("{}", said(&output)));
        assert_eq!(certificate.level.is_some(), part.is_empty(), "{}", said(&output));
        certificate.results.into_iter().map(|entry| entry.id).collect::<Vec<_>>()
    };
    let mut parts = [of("1/2"), of("2/2")].concat();
    parts.sort();
    let mut all = of("");
    all.sort();
    assert_eq!(parts, all);
    let wrong = program().args(["run", "--part", "3/2"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    let why = "\"3/2\" is no part such as 2/3, the second of three";
    assert!(said(&wrong).contains(why), "{}", said(&wrong));
}

#[test]
fn each_check_is_explained() {
    let list = said(&program().arg("list").output().unwrap());
    assert_eq!(list.lines().count(), sm_conformance::catalog::rows().len());
    let one = said(&program().args(["explain", "tree.invariants"]).output().unwrap());
    assert!(one.starts_with("E19 tree.invariants (L2)"), "{one}");
    assert!(one.contains("DRV-LIST-4: Base copies"), "{one}");
    let missing = said(&program().args(["list", "--missing"]).output().unwrap());
    assert!(missing.lines().all(|line| line.contains("NOT BUILT: ")), "{missing}");
    assert_eq!(program().args(["explain", "Z99"]).output().unwrap().status.code(), Some(2));
}
