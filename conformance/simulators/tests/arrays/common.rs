//! A TrueNAS of its own for each test, and a client that knows nothing of our drivers.

use std::path::Path;
use std::sync::Arc;

use array_sim::core::{Effect, Fault};
use array_sim::truenas::{API_KEY, TrueNas};
use array_sim::{Plan, Simulator};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Bytes of the pool.
pub(crate) const POOL: u64 = 64 << 20;
/// Bytes of a volume.
pub(crate) const SIZE: u64 = 16 << 20;

/// An array and a client of it.
pub(crate) struct Nas {
    pub(crate) sim: Simulator,
    pub(crate) folder: TempDir,
    pub(crate) http: reqwest::Client,
}

pub(crate) fn plan() -> Plan {
    let mut plan = Plan::default();
    plan.options.pools = vec![("tank".to_owned(), POOL)];
    plan
}

pub(crate) fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

impl Nas {
    pub(crate) async fn start() -> Self {
        Self::with(&plan()).await
    }

    pub(crate) async fn with(plan: &Plan) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sim = start(folder.path(), plan).await;
        Self { sim, folder, http: client() }
    }

    /// Sends a request, and answers status and body.
    pub(crate) async fn ask(&self, line: &str, body: Option<Value>) -> (u16, Value) {
        ask(&self.http, &self.sim.url(), line, body).await.unwrap()
    }

    /// Sends one that must succeed.
    pub(crate) async fn must(&self, line: &str, body: Value) -> Value {
        let body = (!body.is_null()).then_some(body);
        let (status, answer) = self.ask(line, body).await;
        assert_eq!(status, 200, "{line}: {answer}");
        answer
    }

    pub(crate) async fn zvol(&self, name: &str) -> Value {
        let body = json!({"name": name, "type": "VOLUME", "volsize": SIZE, "sparse": true});
        self.must("POST /pool/dataset", body).await
    }

    /// Maps a zvol to initiators; answers the target's name.
    pub(crate) async fn map(&self, zvol: &str, name: &str, initiators: &[&str]) -> String {
        let group = self.must("POST /iscsi/initiator", json!({"initiators": initiators})).await;
        let groups = json!([{"portal": 1, "initiator": group["id"]}]);
        let target = self.must("POST /iscsi/target", json!({"name": name, "groups": groups})).await;
        let extent = json!({"name": name, "disk": format!("zvol/{zvol}")});
        let extent = self.must("POST /iscsi/extent", extent).await;
        let both = json!({"target": target["id"], "extent": extent["id"], "lunid": null});
        self.must("POST /iscsi/targetextent", both).await;
        format!("iqn.2005-10.org.freenas.ctl:{name}")
    }

    pub(crate) fn fault(&self, call: &str, effect: Effect) {
        let call = call.to_owned();
        self.sim.array.faults().add(Fault { call, after: 0, times: 1, effect });
    }

    pub(crate) fn used(&self) -> u64 {
        self.sim.array.space("tank").unwrap().used
    }

    pub(crate) fn fill(&self, volume: &str, byte: u8, offset: u64, length: usize) {
        self.sim.array.write(volume, offset, &vec![byte; length]).unwrap();
    }

    pub(crate) fn byte(&self, volume: &str, offset: u64) -> u8 {
        self.sim.array.read(volume, offset, 1).unwrap()[0]
    }
}

pub(crate) async fn start(folder: &Path, plan: &Plan) -> Simulator {
    Simulator::start(Arc::new(TrueNas), folder, plan).await.unwrap()
}

pub(crate) async fn ask(
    http: &reqwest::Client,
    base: &str,
    line: &str,
    body: Option<Value>,
) -> Result<(u16, Value), reqwest::Error> {
    let (method, path) = line.split_once(' ').unwrap();
    let url = format!("{base}/api/v2.0{path}");
    let mut request = http.request(method.parse().unwrap(), url).bearer_auth(API_KEY);
    if let Some(body) = body {
        request = request.body(body.to_string());
    }
    let reply = request.send().await?;
    let status = reply.status().as_u16();
    let text = reply.text().await?;
    Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
}
