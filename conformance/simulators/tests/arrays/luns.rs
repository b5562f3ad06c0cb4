//! The data path, by an initiator of somebody else (`libiscsi-bin`).

use std::process::Command;

use crate::common::{Nas, SIZE};
use serde_json::{Value, json};

const HOST: &str = "iqn.2024-01.test:host";
const OTHER: &str = "iqn.2024-01.test:other";

/// Runs a program of `libiscsi-bin`; answers whether it succeeded, and what it said.
async fn run(program: &str, arguments: Vec<String>) -> (bool, String) {
    let name = program.to_owned();
    tokio::task::spawn_blocking(move || {
        let output = Command::new("timeout").arg("60").arg(&name).args(arguments).output();
        let output = output.unwrap_or_else(|error| panic!("{name} of libiscsi-bin: {error}"));
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    })
    .await
    .unwrap()
}

async fn as_host(
    nas: &Nas,
    program: &str,
    host: &str,
    more: &[&str],
    path: &str,
) -> (bool, String) {
    let mut arguments = vec!["-i".to_owned(), host.to_owned()];
    arguments.extend(more.iter().map(|&word| word.to_owned()));
    arguments.push(format!("iscsi://{}{path}", nas.sim.portal()));
    run(program, arguments).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_says_what_the_vendors_units_say() {
    let nas = Nas::start().await;
    nas.zvol("tank/v").await;
    let target = nas.map("tank/v", "one", &[HOST]).await;
    let unit = format!("/{target}/0");
    let (ok, text) = as_host(&nas, "iscsi-inq", HOST, &[], &unit).await;
    assert!(ok && text.contains("Vendor:TrueNAS") && text.contains("Product:iSCSI Disk"), "{text}");
    let (ok, text) = as_host(&nas, "iscsi-inq", HOST, &["-e", "1", "-c", "128"], &unit).await;
    let extent = nas.must("GET /iscsi/extent", Value::Null).await;
    let serial = extent[0]["serial"].as_str().unwrap();
    assert!(ok && text.contains(serial), "{serial} is not in {text}");
    let (ok, text) = as_host(&nas, "iscsi-inq", HOST, &["-e", "1", "-c", "131"], &unit).await;
    assert!(ok && text.contains("Designator Type:(3) NAA"), "{text}");
    let (ok, text) = as_host(&nas, "iscsi-readcapacity16", HOST, &[], &unit).await;
    assert!(ok && text.contains(&format!("Total size:{SIZE}")), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_let_to_a_target_does_not_find_it() {
    let nas = Nas::start().await;
    nas.zvol("tank/v").await;
    let target = nas.map("tank/v", "one", &[HOST]).await;
    let unit = format!("/{target}/0");
    let (_, text) = as_host(&nas, "iscsi-ls", HOST, &["-s"], "").await;
    assert!(text.contains(&target) && text.contains("Lun:0"), "{text}");
    let (_, text) = as_host(&nas, "iscsi-ls", OTHER, &["-s"], "").await;
    assert!(!text.contains(&target), "{text}");
    let (ok, text) = as_host(&nas, "iscsi-inq", OTHER, &[], &unit).await;
    assert!(!ok && text.contains("Target not found"), "{text}");
    // Added to the group, it is let in at once; removed, it is out.
    nas.must("PUT /iscsi/initiator/id/1", json!({"initiators": [HOST, OTHER]})).await;
    assert!(as_host(&nas, "iscsi-inq", OTHER, &[], &unit).await.0);
    nas.must("PUT /iscsi/initiator/id/1", json!({"initiators": [HOST]})).await;
    assert!(!as_host(&nas, "iscsi-inq", OTHER, &[], &unit).await.0);
    // A list without names lets everybody in: the trap of this vendor.
    nas.must("PUT /iscsi/initiator/id/1", json!({"initiators": []})).await;
    assert!(as_host(&nas, "iscsi-inq", OTHER, &[], &unit).await.0);
    nas.must("POST /service/stop", json!({"service": "iscsitarget"})).await;
    assert!(!as_host(&nas, "iscsi-inq", HOST, &[], &unit).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_asked_for_and_must_be_right() {
    let nas = Nas::start().await;
    nas.zvol("tank/v").await;
    let target = nas.map("tank/v", "one", &[HOST]).await;
    let auth = json!({"tag": 5, "user": "us", "secret": "twelve-chars"});
    nas.must("POST /iscsi/auth", auth).await;
    let groups = json!([{"portal": 1, "initiator": 1, "authmethod": "CHAP", "auth": 5}]);
    nas.must("PUT /iscsi/target/id/1", json!({"groups": groups})).await;
    let portal = nas.sim.portal();
    let with = |who: &str| {
        let url = format!("iscsi://{who}{portal}/{target}/0");
        vec!["-i".to_owned(), HOST.to_owned(), url]
    };
    assert!(!run("iscsi-inq", with("")).await.0);
    assert!(!run("iscsi-inq", with("us%twelve-wrong@")).await.0);
    let (ok, text) = run("iscsi-inq", with("us%twelve-chars@")).await;
    assert!(ok, "{text}");
}

/// What an initiator writes is in the volume, and nowhere else: the suite writes and reads back.
#[tokio::test(flavor = "multi_thread")]
async fn the_test_suite_of_an_initiator_passes() {
    let nas = Nas::start().await;
    nas.zvol("tank/v").await;
    nas.must("POST /zfs/snapshot", json!({"dataset": "tank/v", "name": "before"})).await;
    let target = nas.map("tank/v", "one", &[]).await;
    let unit = format!("/{target}/0");
    assert_eq!(nas.used(), 0);
    for family in SUITE {
        let test = format!("ALL.{family}");
        let (ok, text) =
            as_host(&nas, "iscsi-test-cu", HOST, &["-d", "-f", "-t", &test], &unit).await;
        assert!(ok && !text.contains("FAILED"), "{family}: {text}");
    }
    assert!(nas.used() > 0);
    let bytes = nas.sim.array.read("tank/v@before", 0, SIZE as usize).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    // What the initiator moved is counted, and what the array itself reads is not.
    let [read, written, copied] = nas.sim.array.moved().all();
    assert!(read > 0 && written > 0 && copied == 0);
    let url = format!("{}/moved", nas.sim.admin());
    let told = nas.http.get(url).send().await.unwrap().text().await.unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told, json!({"read": read, "written": written, "copied": 0}));
}

const SUITE: &[&str] = &[
    "Inquiry",
    "Mandatory",
    "Read6",
    "Read10",
    "Read12",
    "Read16",
    "ReadCapacity10",
    "ReadCapacity16.Simple",
    "TestUnitReady",
    "Unmap",
    "Write10",
    "Write12",
    "Write16",
    "WriteSame10",
    "WriteSame16",
    "ModeSense6",
    "Verify10",
    "Verify16",
    "iSCSIcmdsn",
];
