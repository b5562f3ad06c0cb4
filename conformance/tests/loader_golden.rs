//! Nobody above a port can tell which kind it is: the answers are the same to the byte.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod loader_support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use loader_support::{AMPLE, bench, call, driver, fixture, open_request, wait};
use sm_loader::{DriverPort, InProcessPort, NoServices, Placement};
use sm_model::vdi::{VdiCreate, VdiType};
use sm_model::{Bytes, Operation, Result, VdiUuid};

/// The answers of a port, as text; errors as their JSON.
fn answers(port: &dyn DriverPort, calls: &[(Operation, Vec<u8>)]) -> Vec<String> {
    let text = |answer: Result<Vec<u8>>| match answer {
        Ok(reply) => format!("reply {}", String::from_utf8(reply).unwrap()),
        Err(error) => format!("error {}", serde_json::to_string(&error).unwrap()),
    };
    calls
        .iter()
        .map(|(operation, request)| text(wait(port.call(call(*operation), request.clone()))))
        .collect()
}

#[test]
fn a_driver_without_an_sdk_answers_alike_in_process_and_in_a_child() {
    let bench = bench();
    let calls: Vec<(Operation, Vec<u8>)> =
        ["echo {\"a\":  1}", "echo", "error", "garbage", "panic", "what is that", ""]
            .iter()
            .flat_map(|command| {
                [Operation::VdiCreate, Operation::SrScan]
                    .map(|operation| (operation, command.as_bytes().to_vec()))
            })
            .collect();
    let in_process = bench.open(fixture("panicky"), Placement::InProcess).unwrap();
    let child = bench.open(fixture("panicky"), Placement::Child).unwrap();
    let expected = answers(in_process.as_ref(), &calls);
    assert_eq!(answers(child.as_ref(), &calls), expected);
    assert_eq!(expected[0], "reply {\"a\":  1}");
    assert!(expected[4].starts_with("error {\"kind\":\"no_space\""));
    assert!(expected[6].starts_with("error {\"kind\":\"internal\""));
    assert!(expected[8].starts_with("error {\"kind\":\"internal\""));
    assert!(expected[10].starts_with("error {\"kind\":\"unsupported\""));
}

fn create(name: &str) -> (Operation, Vec<u8>) {
    let request = VdiCreate {
        uuid: VdiUuid("11111111-2222-4333-8444-555555555555".parse().unwrap()),
        name: name.into(),
        description: "a \"quoted\" über-description\n".into(),
        virtual_size: Bytes(1 << 30),
        format: None,
        vdi_type: VdiType::default(),
        sharable: false,
        keys: BTreeMap::from([("key".to_owned(), "value".to_owned())]),
        incomplete: false,
    };
    (Operation::VdiCreate, serde_json::to_vec(&request).unwrap())
}

/// The panic's place in the source is in the error, and the static build has its own.
fn without_places(answers: Vec<String>) -> Vec<String> {
    answers
        .into_iter()
        .map(|answer| {
            let mut value: serde_json::Value = match answer.strip_prefix("error ") {
                Some(json) => serde_json::from_str(json).unwrap(),
                None => return answer,
            };
            if let Some(context) = value.get_mut("context").and_then(|c| c.as_object_mut()) {
                context.remove("location");
            }
            format!("error {value}")
        })
        .collect()
}

#[test]
fn a_driver_on_the_sdk_answers_alike_on_all_three_ports() {
    let bench = bench();
    let request = open_request(); // One SR: it is named in errors.
    let calls = [
        create("a disk"),
        create("no-space"),
        create("panic"),
        create("panic-blocking"),
        create("sleep"),
        (Operation::VdiCreate, b"{".to_vec()),
        (Operation::VdiClone, b"{}".to_vec()),
        (Operation::SrScan, b"{}".to_vec()),
    ];
    let open = |placement| {
        let (path, request) = (driver("hostile"), request.clone());
        wait(bench.loader.open(path, placement, request, Arc::new(NoServices), AMPLE)).unwrap()
    };
    let linked = wait(InProcessPort::from_module(
        plugin_sdk::export::root_module::<hostile::Hostile>(),
        request.clone(),
        Arc::new(NoServices),
        AMPLE,
        Duration::from_secs(60),
    ))
    .unwrap();
    let expected = answers(open(Placement::InProcess).as_ref(), &calls);
    assert_eq!(answers(open(Placement::Child).as_ref(), &calls), expected);
    assert_eq!(without_places(answers(&linked, &calls)), without_places(expected.clone()));

    let kinds: Vec<String> = expected
        .iter()
        .map(|answer| match answer.strip_prefix("error ") {
            Some(json) => {
                let value: serde_json::Value = serde_json::from_str(json).unwrap();
                value["kind"].as_str().unwrap().to_owned()
            }
            None => "reply".to_owned(),
        })
        .collect();
    assert_eq!(
        kinds,
        ["reply", "no_space", "internal", "internal", "reply", "internal", "unsupported", "reply"]
    );
    assert!(expected[2].contains("the hostile driver panics"), "{}", expected[2]);
}

#[test]
fn every_way_to_die_costs_an_sdk_driver_one_call_too() {
    let bench = bench();
    for (name, words) in [
        ("abort", "SIGABRT"),
        ("segfault", "SIGSEGV"),
        // On a thread of the library's own std, which sets up no handler for it.
        ("overflow", "SIGSEGV"),
        ("exit", "exit status 3"),
    ] {
        let port = bench.open(driver("hostile"), Placement::Child).unwrap();
        let dead = answers(port.as_ref(), &[create(name)]);
        assert!(dead[0].contains("\"kind\":\"unknown\"") && dead[0].contains(words), "{}", dead[0]);
        let next = answers(port.as_ref(), &[create("a disk")]);
        assert!(next[0].starts_with("reply {\"changed\":\"created\""), "{}", next[0]);
    }
}
