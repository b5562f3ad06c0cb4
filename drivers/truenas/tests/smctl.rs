//! The driver as people use it: the real program, the real library, a simulated array.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use array_sim::core::Options;
use array_sim::truenas::{PASSWORD, TrueNas, USER};
use array_sim::{Plan, Simulator};
use conformance::built::artefact;
use plugin_sdk::tokio::runtime::Builder;

/// What a command says on stdout and stderr.
fn smctl(folder: &Path, words: &[&str]) -> (String, String) {
    let output = Command::new(artefact("smctl"))
        .env("SMCTL_STATE_DIR", folder.join("state"))
        .env("SM_RUN_DIR", folder.join("run"))
        .args(words)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{words:?}: {out}{err}");
    assert!(!err.contains(PASSWORD) && !out.contains(PASSWORD), "{words:?} tells the password");
    (out.trim().to_owned(), err)
}

#[test]
fn a_clone_moves_no_data_and_requests_are_shown_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let options = Options { pools: vec![("tank".to_owned(), 1 << 40)], ..Options::default() };
    let plan = Plan { options, tls: true, ..Plan::default() };
    let place = folder.path().join("array");
    let start = Simulator::start(Arc::new(TrueNas), &place, &plan);
    let simulator = runtime.block_on(start).unwrap();
    let library = artefact("libsm_driver_truenas.so").display().to_string();
    let pin = simulator.certificate().unwrap().fingerprint().unwrap();
    let keys = [
        format!("target={}", simulator.url()),
        format!("username={USER}"),
        format!("password={PASSWORD}"),
        format!("fingerprint={pin}"),
    ];
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let with_keys = |words: &[&str], more: &[&str]| {
        let words: Vec<&str> = words.iter().chain(&keys).chain(more).copied().collect();
        smctl(folder.path(), &words)
    };
    let (found, _) = with_keys(&["sr", "probe", "--driver", &library], &[]);
    assert!(found.contains("tank"), "{found}");
    let more = ["pool=tank", "initiator=iqn.1993-08.org.debian:01:222"];
    with_keys(&["sr", "create", "--driver", &library, "--name", "vms"], &more);

    let create = ["vdi", "create", "--name", "disk", "--size", "40GiB", "--trace-requests"];
    let (_, log) = smctl(folder.path(), &create);
    let requests: Vec<&str> = log.lines().filter(|line| line.starts_with("request: ")).collect();
    assert!(requests.iter().any(|line| line.contains("RPC pool.dataset.create done")), "{log}");
    assert!(requests.iter().any(|line| line.contains("RPC auth.login_ex done")), "{log}");

    let (clone, said) = smctl(folder.path(), &["vdi", "clone", "disk", "--name", "second"]);
    assert_eq!(clone.len(), 36, "{clone} is a UUID");
    assert_eq!(said, "smctl: cloned by the storage; bytes copied by this host: 0\n");
    assert_eq!(simulator.array.space("tank").unwrap().used, 0);
    for vdi in ["second", "disk"] {
        smctl(folder.path(), &["vdi", "destroy", vdi]);
    }
    let (_, quiet) = smctl(folder.path(), &["vdi", "list"]);
    assert_eq!(quiet, "", "the log is shown only if asked for");
}
