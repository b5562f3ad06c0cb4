//! A simulated array, with REST 2.26 or with nothing newer than 2.2.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use array_kit::http::{Client, Limits, Reply, Request, Trust};
use array_kit::recorder::Recorder;
use array_matrix::{Facts, Simulated, Vendor};
use array_sim::core::Options;
use array_sim::purestorage::{API_TOKEN, PureStorage};
use array_sim::{Plan, Simulator};
use plugin_sdk::prelude::*;
use plugin_sdk::testing::TestHost;
use serde_json::{Value, json};
use sm_driver_purestorage::{NAMES, PureStorageProduct};

/// Disks, frozen copies, snapshots, and the tags of disks and snapshots: a page of each at least, and
/// one more of disks and of their tags for each further thousand.
const FACTS: Facts = Facts {
    reads: &["POST login", "POST logout"],
    group_snapshots: true,
    first_scan: |volumes| 3 + 2 * volumes.div_ceil(1000),
    scan: |volumes| 3 + 2 * volumes.div_ceil(1000),
    ..Facts::new(NAMES, "3624a9370", 512)
};

/// REST 2.26.
pub(crate) struct Newer;

/// REST 2.2: snapshots have no tags, and listings of tags no token.
pub(crate) struct Older;

impl Vendor for Newer {
    type Product = PureStorageProduct;
    const LIBRARY: &'static str = "libsm_driver_purestorage.so";
    const DOCUMENT: &'static str = include_str!("../../../../docs/drivers/purestorage.md");
    const FACTS: Facts = FACTS;

    async fn start(folder: &Path) -> Simulated {
        start(folder, "2.26").await
    }
}

impl Vendor for Older {
    type Product = PureStorageProduct;
    const LIBRARY: &'static str = Newer::LIBRARY;
    const DOCUMENT: &'static str = Newer::DOCUMENT;
    const FACTS: Facts = FACTS;

    async fn start(folder: &Path) -> Simulated {
        start(folder, "2.2").await
    }
}

async fn start(folder: &Path, version: &str) -> Simulated {
    let mut options = Options { pools: vec![("flash1".to_owned(), 1 << 40)], ..Options::default() };
    options.settings.vendor.insert("version".to_owned(), version.into());
    // Each has a volume, and no more tags than old arrays allow.
    options.settings.limits.insert("tags".to_owned(), 5);
    let plan = Plan { options, tls: true, ..Plan::default() };
    let simulator = Simulator::start(Arc::new(PureStorage), folder, &plan).await.unwrap();
    let pin = simulator.certificate().unwrap().fingerprint().unwrap();
    let config = vec![
        ("target", simulator.url()),
        ("api-token", API_TOKEN.to_owned()),
        ("fingerprint", pin),
    ];
    let array = simulator.array.clone();
    let simulated = Simulated::new(&array, PureStorage, config, &[API_TOKEN], simulator);
    let console = Console::new(&simulated).await;
    for (path, body) in [
        ("volumes?names=payroll", json!({ "provisioned": 1 << 20 })),
        ("volumes?names=smv-by-hand", json!({ "provisioned": 1 << 20 })),
        ("volume-snapshots?source_names=payroll", json!({ "suffix": "nightly" })),
        ("hosts?names=theirs", json!({ "iqns": ["iqn.2000-01.com.example:them"] })),
        ("connections?host_names=theirs&volume_names=payroll", json!({})),
    ] {
        console.ask("POST", path, &body).await;
    }
    console.ask("POST", "logout", &Value::Null).await;
    simulated
}

/// Somebody else at the array, with a client of his own.
pub(crate) struct Console {
    client: Client,
    token: Secret,
    version: String,
}

impl Console {
    pub(crate) async fn new(simulated: &Simulated) -> Self {
        let config = |key: &str| {
            let mut all = simulated.config.iter();
            all.find(|(name, _)| *name == key).unwrap().1.clone()
        };
        let trust = Trust::Fingerprint(config("fingerprint"));
        let client =
            Client::new(&config("target"), &trust, Limits::default(), Recorder::default()).unwrap();
        let version = simulated.array.settings().vendor["version"].as_str().unwrap().to_owned();
        let mut console = Self { client, token: Secret::from(""), version };
        let login = Request::post("login", &format!("/api/{}/login", console.version));
        let reply = console.send(login.header("api-token", config("api-token"))).await;
        console.token = Secret::from(reply.header("x-auth-token").unwrap());
        console
    }

    async fn send(&self, request: Request) -> Reply {
        let client = self.client.clone();
        let work = |cx: Cx| async move { Ok(client.send(&cx, &request).await?) };
        TestHost::new().with_cx(Duration::from_secs(30), work).await.unwrap()
    }

    /// Asks, which succeeds.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let path = format!("/api/{}/{path}", self.version);
        let request = match method {
            "GET" => Request::get("console", &path),
            "POST" => Request::post("console", &path),
            "PATCH" => Request::patch("console", &path),
            _ => Request::delete("console", &path),
        };
        let request = if body.is_null() { request } else { request.json(body) };
        let reply = self.send(request.header("x-auth-token", self.token.clone())).await;
        let said = String::from_utf8_lossy(reply.body()).into_owned();
        assert!(reply.is_success(), "{method} {path}: {said}");
        serde_json::from_str(&said).unwrap()
    }
}
