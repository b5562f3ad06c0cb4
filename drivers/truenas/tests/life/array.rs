//! A simulated array, over each of its APIs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use array_kit::http::{Client, Limits, Request, Trust, basic};
use array_kit::names::{Codec, NameRule, Role};
use array_kit::recorder::Recorder;
use array_matrix::{Facts, Simulated, Vendor};
use array_sim::core::{Options, View};
use array_sim::truenas::{PASSWORD, TrueNas, USER};
use array_sim::{Plan, Simulator};
use plugin_sdk::prelude::*;
use plugin_sdk::testing::TestHost;
use serde_json::json;
use sm_driver_truenas::TrueNasProduct;

pub(crate) const POOL: &str = "tank/vms";

const NAMES: NameRule = NameRule::new(63);

const FACTS: Facts = Facts {
    reads: &["*.query", "*.get_instance", "*.config", "core.*", "system.*"],
    logins: &["auth.*"],
    steps: &["array.hidden_snapshot_made", "array.promoted", "array.origin_removed"],
    group_snapshots: true,
    ..Facts::new(NAMES, "36589cfc000000", 16 << 10)
};

/// REST v2.0, of an array that has nothing else. There are no sessions: each request has the password.
pub(crate) struct Rest;

/// JSON-RPC over a WebSocket.
pub(crate) struct WebSocket;

impl Vendor for Rest {
    type Product = TrueNasProduct;
    const LIBRARY: &'static str = "libsm_driver_truenas.so";
    const DOCUMENT: &'static str = include_str!("../../../../docs/drivers/truenas.md");
    const FACTS: Facts = Facts { sessions: 0, ..FACTS };

    async fn start(folder: &Path) -> Simulated {
        start(folder, Some("22.12.3")).await
    }

    fn volume(_: &View, sr: SrUuid, vdi: VdiUuid) -> String {
        path(sr, vdi)
    }
}

impl Vendor for WebSocket {
    type Product = TrueNasProduct;
    const LIBRARY: &'static str = Rest::LIBRARY;
    const DOCUMENT: &'static str = Rest::DOCUMENT;
    // Its errors have no headers.
    const FACTS: Facts = Facts { retry_after: false, ..FACTS };

    async fn start(folder: &Path) -> Simulated {
        start(folder, None).await
    }

    fn volume(_: &View, sr: SrUuid, vdi: VdiUuid) -> String {
        path(sr, vdi)
    }
}

/// Where a VDI's volume lies.
fn path(sr: SrUuid, vdi: VdiUuid) -> String {
    let codec = Codec::new(NAMES, sr).unwrap();
    format!("{POOL}/{}/{}", codec.name(Role::Record, sr.0), codec.name(Role::Disk, vdi.0))
}

async fn start(folder: &Path, version: Option<&str>) -> Simulated {
    let mut options = Options { pools: vec![("tank".to_owned(), 1 << 40)], ..Options::default() };
    if let Some(version) = version {
        options.settings.vendor.insert("version".to_owned(), version.into());
    }
    let plan = Plan { options, tls: true, ..Plan::default() };
    let simulator = Simulator::start(Arc::new(TrueNas), folder, &plan).await.unwrap();
    let pin = simulator.certificate().unwrap().fingerprint().unwrap();
    foreign(&simulator, &pin).await;
    let config = vec![
        ("target", simulator.url()),
        ("pool", POOL.to_owned()),
        ("username", USER.to_owned()),
        ("password", PASSWORD.to_owned()),
        ("fingerprint", pin),
    ];
    let array = simulator.array.clone();
    Simulated::new(&array, TrueNas, config, &[PASSWORD], simulator)
}

/// What somebody else has on the array, and the dataset for SRs.
async fn foreign(simulator: &Simulator, pin: &str) {
    let (limits, recorder) = (Limits::default(), Recorder::default());
    let trust = Trust::Fingerprint(pin.to_owned());
    let client = Client::new(&simulator.url(), &trust, limits, recorder).unwrap();
    let authorization = basic(USER, &Secret::from(PASSWORD));
    let volume = format!("{POOL}/theirs");
    let objects = [
        ("pool/dataset", json!({ "name": POOL, "type": "FILESYSTEM" })),
        (
            "pool/dataset",
            json!({ "name": volume, "type": "VOLUME", "volsize": 1 << 20, "sparse": true,
                "volblocksize": "16K" }),
        ),
        ("zfs/snapshot", json!({ "dataset": volume, "name": "theirs" })),
        ("iscsi/initiator", json!({ "initiators": ["iqn.2000-01.com.example:them"] })),
        (
            "iscsi/target",
            json!({ "name": "theirs", "alias": null, "mode": "ISCSI", "groups": [
                { "portal": 1, "initiator": 1, "authmethod": "NONE", "auth": null }] }),
        ),
        (
            "iscsi/extent",
            json!({ "name": "theirs", "type": "DISK", "disk": format!("zvol/{volume}") }),
        ),
        ("iscsi/targetextent", json!({ "target": 1, "extent": 1, "lunid": 0 })),
    ];
    let work = |cx: Cx| async move {
        for (path, body) in objects {
            let request = Request::post("foreign", &format!("/api/v2.0/{path}")).json(&body);
            let reply =
                client.send(&cx, &request.header("authorization", authorization.clone())).await?;
            let said = String::from_utf8_lossy(reply.body()).into_owned();
            assert!(reply.is_success(), "{path}: {said}");
        }
        Ok(())
    };
    TestHost::new().with_cx(Duration::from_secs(30), work).await.unwrap();
}
