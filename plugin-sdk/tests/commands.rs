//! External programs.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::time::{Duration, Instant};

use plugin_sdk::Secret;
use plugin_sdk::command::{Command, Output};
use plugin_sdk::model::{Error, Kind, Result};
use plugin_sdk::prelude::Cx;
use plugin_sdk::testing::{self, TestHost};

/// Runs one command on a host of its own.
fn run(budget_ms: u64, build: impl FnOnce(&Cx) -> Command + Send) -> (Result<Output>, TestHost) {
    let host = TestHost::new();
    let budget = Duration::from_millis(budget_ms);
    let result = testing::run(host.with_cx(budget, |cx| build(&cx).run()));
    (result, host)
}

fn sh(cx: &Cx, script: &str) -> Command {
    cx.command("sh").args(["-c", script])
}

fn error(budget_ms: u64, build: impl FnOnce(&Cx) -> Command + Send) -> Error {
    run(budget_ms, build).0.unwrap_err()
}

/// Whether a process is there, zombies included.
fn exists(pid: &str) -> bool {
    Path::new("/proc").join(pid.trim()).exists()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "still not: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_program_gets_arguments_as_they_are_and_both_outputs_are_kept() {
    let (output, _) = run(10_000, |cx| {
        cx.command("sh").args(["-c", "printf %s \"$1\"; printf oops >&2", "x", "a b;'$(id)\n*"])
    });
    let output = output.unwrap();
    assert_eq!(output.text(), "a b;'$(id)\n*");
    assert_eq!(output.stderr, b"oops");
    assert_eq!((output.status, output.lost), (0, 0));
}

#[test]
fn the_environment_is_empty_but_for_locale_and_path() {
    let (output, _) = run(10_000, |cx| cx.command("env").env("VENDOR_RC", "/etc/v"));
    let output = output.unwrap();
    let mut names: Vec<String> =
        output.text().lines().map(|line| line.split('=').next().unwrap().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["LC_ALL", "PATH", "VENDOR_RC"]);
    assert!(output.text().contains("LC_ALL=C\n"));
    assert!(output.text().contains("/usr/sbin"));
}

#[test]
fn input_is_fed_while_output_is_read() {
    // More than two pipes hold: writing first and reading later would never end.
    let input = vec![b'x'; 3 << 20];
    let (output, _) = run(20_000, |cx| cx.command("cat").stdin(input.clone()));
    assert_eq!(output.unwrap().stdout.len(), 3 << 20);
    // Without an input there is none, not the host's; one that is not read is no error.
    assert_eq!(run(10_000, |cx| cx.command("cat")).0.unwrap().stdout, b"");
    run(10_000, |cx| cx.command("true").stdin(vec![b'x'; 1 << 20])).0.unwrap();
}

#[test]
fn another_status_than_zero_is_an_error_with_the_programs_own_words() {
    let error = error(10_000, |cx| sh(cx, "echo fine; echo 'VG \"x\" not found' >&2; exit 5"));
    assert_eq!(error.kind, Kind::Internal);
    assert_eq!(error.message, "sh exited with status 5");
    assert_eq!(error.backend.as_deref(), Some("VG \"x\" not found"));
    assert_eq!(error.context["status"], "5");
    assert!(error.context["command"].starts_with("sh -c "), "{error:?}");

    let host = TestHost::new();
    let script = "echo out; exit 5";
    let output =
        testing::run(host.with_cx(Duration::from_secs(9), move |cx| sh(&cx, script).output()));
    assert_eq!((output.as_ref().unwrap().status, output.unwrap().stdout), (5, b"out\n".to_vec()));
}

#[test]
fn a_signal_is_named() {
    let error = error(10_000, |cx| sh(cx, "kill -9 $$"));
    assert_eq!(error.message, "sh was ended by signal 9");
    assert_eq!(error.context["signal"], "9");
}

#[test]
fn a_program_that_is_not_installed_is_told_apart() {
    let error = error(10_000, |cx| cx.command("no-such-program").arg("x"));
    assert_eq!(error.kind, Kind::Unsupported);
    assert_eq!(error.message, "the program no-such-program is not installed");
    assert!(error.hint.as_ref().unwrap().contains("/usr/sbin"), "{error:?}");
    let error = self::error(10_000, |cx| cx.command("/etc/passwd"));
    assert_eq!(error.kind, Kind::Unsupported);
}

#[test]
fn an_output_that_is_too_long_is_counted_and_never_taken_for_the_whole() {
    let script = "head -c 300000 /dev/zero";
    let error = error(10_000, |cx| sh(cx, script).capture(1000));
    assert_eq!(error.kind, Kind::Limit);
    assert_eq!(error.context["lost"], "299000");
    let host = TestHost::new();
    let output = testing::run(
        host.with_cx(Duration::from_secs(9), move |cx| sh(&cx, script).capture(1000).output()),
    )
    .unwrap();
    assert_eq!((output.stdout.len(), output.lost), (1000, 299_000));
}

/// Law: at the deadline the whole family ends, also members that ignore SIGTERM, and nothing is
/// left, not even a zombie.
#[test]
fn the_deadline_ends_grandchildren_too() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let script = format!(
        "(trap '' TERM; sh -c 'trap \"\" TERM; echo $$; sleep 600' & echo $$; wait) > {}; sleep 600",
        pids.display()
    );
    let start = Instant::now();
    let error = error(400, |cx| sh(cx, &script));
    assert_eq!(error.kind, Kind::DeadlineExceeded);
    assert!(error.message.starts_with("sh was killed after "), "{error}");
    assert!(start.elapsed() < Duration::from_secs(60));
    let pids = std::fs::read_to_string(pids).unwrap();
    assert_eq!(pids.lines().count(), 2);
    wait_until("all gone", || !pids.lines().any(exists));
}

#[test]
fn a_shorter_time_can_be_given_and_what_was_said_until_then_is_kept() {
    let error = error(60_000, |cx| {
        sh(cx, "echo waiting for sdb >&2; sleep 600").timeout(Duration::from_millis(300))
    });
    assert_eq!(error.kind, Kind::DeadlineExceeded);
    assert_eq!(error.backend.as_deref(), Some("waiting for sdb"));
}

#[test]
fn a_program_that_obeys_sigterm_can_tidy_up() {
    let error = error(300, |cx| sh(cx, "trap 'echo tidied >&2; exit 0' TERM; sleep 600 & wait"));
    assert_eq!(error.backend.as_deref(), Some("tidied"));
}

#[test]
fn a_daemon_that_keeps_the_outputs_open_does_not_hold_the_call() {
    let start = Instant::now();
    let (output, _) = run(300_000, |cx| sh(cx, "sleep 300 & echo $!"));
    assert!(start.elapsed() < Duration::from_secs(60));
    let pid = output.unwrap().text().trim().to_owned();
    assert!(exists(&pid), "it was started on purpose, and lives");
    std::process::Command::new("kill").arg(&pid).status().unwrap();
}

/// Law: a call that is dropped leaves no process behind.
#[test]
fn a_dropped_command_is_ended_and_reaped() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let script = format!("echo $$ > {}; exec sleep 600", file.display());
    let (host, budget) = (TestHost::new(), Duration::from_secs(60));
    let started = file.clone();
    testing::run(host.with_cx(budget, move |cx| async move {
        let mut command = Box::pin(sh(&cx, &script).run());
        let written = async {
            while !std::fs::read_to_string(&started).is_ok_and(|pid| pid.ends_with('\n')) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = &mut command => {}
            () = written => {}
        }
        drop(command);
        Ok(())
    }))
    .unwrap();
    let pid = std::fs::read_to_string(file).unwrap();
    wait_until("reaped", || !exists(&pid));
}

#[test]
fn many_at_once_do_not_mix() {
    let (host, budget) = (TestHost::new(), Duration::from_secs(60));
    let outputs = testing::run(host.with_cx(budget, |cx| async move {
        let mut tasks = Vec::new();
        for i in 0..40 {
            let command = sh(&cx, &format!("cat; printf {i}")).stdin(format!("{i}:"));
            tasks.push(tokio::spawn(command.run()));
        }
        let mut outputs = Vec::new();
        for task in tasks {
            outputs.push(task.await.map_err(|e| Error::internal(e.to_string()))??.stdout);
        }
        Ok(outputs)
    }))
    .unwrap();
    for (i, output) in outputs.iter().enumerate() {
        assert_eq!(*output, format!("{i}:{i}").into_bytes());
    }
}

/// Law: a secret is in no record, log or error, even when the program repeats it.
#[test]
fn secrets_are_shown_as_stars_everywhere() {
    let secret = Secret::from("rosebud");
    let (result, host) = run(10_000, |cx| {
        sh(cx, "echo \"bad password $0 and $TOKEN\" >&2; exit 1")
            .secret_arg(&secret)
            .secret_env("TOKEN", &Secret::from("t0ken"))
            .arg("user=joe,pass=rosebud")
    });
    let error = result.unwrap_err();
    assert_eq!(error.backend.as_deref(), Some("bad password *** and ***"));
    wait_until("recorded", || !host.commands().is_empty());
    let record = &host.commands()[0];
    assert_eq!(record.argv[3..], ["***", "user=joe,pass=***"]);
    assert_eq!(record.status, Some(1));
    let all = format!("{error:?} {:?} {record:?}", host.logs());
    assert!(!all.contains("rosebud") && !all.contains("t0ken"), "{all}");
}
