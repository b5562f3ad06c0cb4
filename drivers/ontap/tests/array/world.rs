//! A simulated array with somebody else's LUN.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use array_kit::http::{Client, Limits, Request, Trust, basic};
use array_kit::outcome::Outcome;
use array_kit::recorder::Recorder;
use array_matrix::{Facts, Simulated, Vendor};
use array_sim::core::{Options, View};
use array_sim::ontap::{self, PASSWORD, SVM, USER};
use array_sim::{Plan, Simulator};
use plugin_sdk::prelude::*;
use plugin_sdk::testing::TestHost;
use serde_json::{Value, json};
use sm_driver_ontap::{NAMES, OntapProduct};

pub(crate) const POOL: &str = "vol1";

pub(crate) struct Ontap;

impl Vendor for Ontap {
    type Product = OntapProduct;
    const LIBRARY: &'static str = "libsm_driver_ontap.so";
    const DOCUMENT: &'static str = include_str!("../../../../docs/drivers/ontap.md");
    const FACTS: Facts = Facts {
        logins: &["cluster.get"],
        // Each request has the password.
        sessions: 0,
        snapshots_attach: true,
        group_snapshots: true,
        // A LUN clone, and its attribute, which the array does not take with a clone.
        of_a_part: 2,
        ..Facts::new(NAMES, "3600a0980", 4096)
    };

    async fn start(folder: &Path) -> Simulated {
        start(folder, &[]).await
    }

    fn volume(_: &View, sr: SrUuid, vdi: VdiUuid) -> String {
        format!("/vol/{POOL}/{}", Self::name(sr, vdi))
    }
}

/// An array with settings of its own.
pub(crate) async fn start(folder: &Path, settings: &[(&str, Value)]) -> Simulated {
    let mut options = Options { pools: vec![(POOL.to_owned(), 1 << 40)], ..Options::default() };
    for (name, value) in settings {
        options.settings.vendor.insert((*name).to_owned(), value.clone());
    }
    let plan = Plan { options, tls: true, ..Plan::default() };
    let simulator = Simulator::start(Arc::new(ontap::Ontap), folder, &plan).await.unwrap();
    let pin = simulator.certificate().unwrap().fingerprint().unwrap();
    let config = vec![
        ("target", simulator.url()),
        ("username", USER.to_owned()),
        ("password", PASSWORD.to_owned()),
        ("svm", SVM.to_owned()),
        ("volume", POOL.to_owned()),
        ("fingerprint", pin),
    ];
    let array = simulator.array.clone();
    let simulated = Simulated::new(&array, ontap::Ontap, config, &[PASSWORD], simulator);
    foreign(&simulated).await;
    simulated
}

/// Asks the array as another client of it would.
pub(crate) async fn ask(simulated: &Simulated, line: &str, body: &Value) -> (u16, Value) {
    let key = |name: &str| simulated.config.iter().find(|(key, _)| *key == name).unwrap().1.clone();
    let (limits, recorder) = (Limits::default(), Recorder::default());
    let trust = Trust::Fingerprint(key("fingerprint"));
    let client = Client::new(&key("target"), &trust, limits, recorder).unwrap();
    let (method, path) = line.split_once(' ').unwrap();
    let path = format!("/api{path}");
    let request = match method {
        "GET" => Request::get("theirs", &path),
        "POST" => Request::post("theirs", &path).json(body),
        "PATCH" => Request::patch("theirs", &path).json(body),
        _ => Request::delete("theirs", &path),
    };
    let request = request.header("authorization", basic(USER, &Secret::from(PASSWORD)));
    let work = |cx: Cx| async move {
        let reply: Outcome<_> = client.send(&cx, &request).await;
        let reply = reply?;
        Ok((reply.status(), reply.json().unwrap_or(Value::Null)))
    };
    TestHost::new().with_cx(Duration::from_secs(30), work).await.unwrap()
}

/// What somebody else has on the array: members with dotted names, as some clients send them.
async fn foreign(simulated: &Simulated) {
    let lun = format!("/vol/{POOL}/theirs");
    for (line, body) in [
        (
            "POST /storage/luns",
            json!({ "name": lun, "os_type": "linux", "space.size": 1 << 20, "svm.name": SVM,
                "space.guarantee.requested": false, "comment": "payroll" }),
        ),
        (
            "POST /protocols/san/igroups",
            json!({ "name": "theirs", "protocol": "iscsi", "os_type": "linux", "svm": {"name": SVM},
                "initiators": [{ "name": "iqn.2000-01.com.example:them" }] }),
        ),
        (
            "POST /protocols/san/lun-maps",
            json!({ "lun.name": lun, "igroup.name": "theirs", "svm.name": SVM }),
        ),
    ] {
        let (status, answer) = ask(simulated, line, &body).await;
        assert_eq!(status, 201, "{line}: {answer}");
    }
}
