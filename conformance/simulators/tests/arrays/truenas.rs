//! What TrueNAS answers, and what it refuses, over REST and JSON-RPC.

use crate::common::{Nas, SIZE, ask, client, plan};
use array_sim::core::{Effect, Fault};
use array_sim::truenas::{API_KEY, PASSWORD, USER};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn a_volume_is_made_shown_grown_and_removed() {
    let nas = Nas::start().await;
    nas.must("POST /pool/dataset", json!({"name": "tank/sr", "comments": "an SR"})).await;
    let body = json!({
        "name": "tank/sr/v", "type": "VOLUME", "volsize": SIZE, "volblocksize": "16K",
        "sparse": true, "comments": "a disk", "user_properties": [{"key": "our:id", "value": "7"}],
    });
    let made = nas.must("POST /pool/dataset", body).await;
    assert_eq!(made["id"], "tank/sr/v");
    assert_eq!(made["volsize"]["parsed"], SIZE);
    assert_eq!(made["comments"]["value"], "a disk");
    assert_eq!(made["user_properties"]["our:id"]["rawvalue"], "7");
    let path = "/pool/dataset/id/tank%2Fsr%2Fv";
    assert_eq!(nas.must(&format!("GET {path}"), Value::Null).await["id"], "tank/sr/v");
    let grown = nas.must(&format!("PUT {path}"), json!({"volsize": 2 * SIZE})).await;
    assert_eq!(grown["volsize"]["rawvalue"], (2 * SIZE).to_string());
    let small = nas.ask(&format!("PUT {path}"), Some(json!({"volsize": SIZE}))).await;
    let text = "You cannot shrink a zvol from GUI, this may lead to data loss.";
    assert_eq!(small, refusal("pool_dataset_update.volsize", text, 22));
    let again = nas.ask("POST /pool/dataset", Some(json!({"name": "tank/sr/v"}))).await;
    assert_eq!(again, refusal("pool_dataset_create.name", "tank/sr/v already exists", 17));
    nas.must(&format!("DELETE {path}"), json!({"recursive": true, "force": true})).await;
    let gone = nas.ask(&format!("DELETE {path}"), None).await;
    let text = "PoolDataset tank/sr/v does not exist";
    assert_eq!(gone, (422, json!({"message": text, "errno": 2})));
    assert_eq!(nas.ask(&format!("GET {path}"), None).await.0, 404);
}

fn refusal(field: &str, text: &str, errno: i64) -> (u16, Value) {
    (422, json!({field: [{"message": text, "errno": errno}]}))
}

#[tokio::test]
async fn what_the_schema_does_not_have_is_refused() {
    let nas = Nas::start().await;
    let cases = [
        (json!({"name": "tank/v", "size": 1}), "size", "Field was not expected"),
        (json!({"type": "FILESYSTEM"}), "name", "attribute required"),
        (json!({"name": "tank/v", "volsize": "1G"}), "volsize", "Not an integer"),
        (json!({"name": "tank/v", "sparse": 1}), "sparse", "Not a boolean"),
        (json!({"name": "tank/v", "type": "LUN"}), "type", "Invalid choice: LUN"),
        (
            json!({"name": "tank/v", "type": "VOLUME"}),
            "volsize",
            "This field is required for VOLUME",
        ),
        (
            json!({"name": "tank/v", "type": "VOLUME", "volsize": 16385, "sparse": true}),
            "volsize",
            "Volume size should be a multiple of volume block size",
        ),
        // Thin volumes, too.
        (
            json!({"name": "tank/v", "type": "VOLUME", "volsize": 60 << 20, "sparse": true}),
            "volsize",
            "It is not recommended to use more than 80% of your available space for VOLUME",
        ),
    ];
    for (body, field, text) in cases {
        let field = format!("pool_dataset_create.{field}");
        let answer = nas.ask("POST /pool/dataset", Some(body)).await;
        assert_eq!(answer, refusal(&field, text, 22));
    }
    let long = json!({"name": "x".repeat(65), "disk": "zvol/tank/v"});
    let text = "The value may not be longer than 64 characters";
    assert_eq!(
        nas.ask("POST /iscsi/extent", Some(long)).await,
        refusal("iscsi_extent_create.name", text, 22)
    );
    let empty = json!({"name": "t", "alias": ""});
    assert_eq!(
        nas.ask("POST /iscsi/target", Some(empty)).await,
        refusal("iscsi_target_create.alias", "Empty value not allowed", 22)
    );
    assert_eq!(nas.used(), 0);
    let left = nas.must("GET /pool/dataset?type=VOLUME", Value::Null).await;
    assert_eq!(left, json!([]));
}

#[tokio::test]
async fn a_decoded_slash_is_another_path() {
    let nas = Nas::start().await;
    nas.zvol("tank/v").await;
    assert_eq!(nas.ask("GET /pool/dataset/id/tank%2Fv", None).await.0, 200);
    assert_eq!(nas.ask("GET /pool/dataset/id/tank/v", None).await.0, 404);
}

#[tokio::test]
async fn lists_are_filtered_sorted_and_paged() {
    let nas = Nas::start().await;
    for name in ["a1", "a2", "a3", "b1"] {
        nas.zvol(&format!("tank/{name}")).await;
    }
    let ids = |list: Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|v| v["id"].as_str().unwrap().to_owned()).collect()
    };
    let all = ids(nas.must("GET /pool/dataset?id__startswith=tank%2Fa", Value::Null).await);
    assert_eq!(all, ["tank/a1", "tank/a2", "tank/a3"]);
    let page = "GET /pool/dataset?type=VOLUME&sort=-id&limit=2&offset=1";
    assert_eq!(ids(nas.must(page, Value::Null).await), ["tank/a3", "tank/a2"]);
    let past = "GET /pool/dataset?type=VOLUME&limit=2&offset=9";
    assert_eq!(nas.must(past, Value::Null).await, json!([]));
    let flat = "GET /pool/dataset?id=tank&extra.retrieve_children=false";
    assert_eq!(nas.must(flat, Value::Null).await[0]["children"], json!([]));
    let nested = nas.must("GET /pool/dataset?id=tank", Value::Null).await;
    assert_eq!(nested[0]["children"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn nobody_gets_in_without_the_right_words() {
    let nas = Nas::start().await;
    let url = format!("{}/api/v2.0/system/info", nas.sim.url());
    let status = |request: reqwest::RequestBuilder| async move {
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(status(nas.http.get(&url)).await, 401);
    assert_eq!(status(nas.http.get(&url).bearer_auth("wrong")).await, 401);
    assert_eq!(status(nas.http.get(&url).basic_auth(USER, Some("wrong"))).await, 401);
    assert_eq!(status(nas.http.get(&url).basic_auth(USER, Some(PASSWORD))).await, 200);
    assert_eq!(status(nas.http.get(&url).bearer_auth(API_KEY)).await, 200);
}

#[tokio::test]
async fn its_certificate_is_one_of_its_own_and_stays() {
    let mut plan = plan();
    plan.tls = true;
    let nas = Nas::with(&plan).await;
    let own = nas.sim.certificate().unwrap().clone();
    let error = ask(&client(), &nas.sim.url(), "GET /system/info", None).await.unwrap_err();
    assert!(error.is_connect(), "{error:?}");
    let trusted = reqwest::Certificate::from_pem(own.pem().as_bytes()).unwrap();
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([trusted]).build().unwrap();
    assert_eq!(ask(&http, &nas.sim.url(), "GET /system/info", None).await.unwrap().0, 200);
    let Nas { sim, folder, .. } = nas;
    drop(sim);
    let again = crate::common::start(folder.path(), &plan).await;
    assert_eq!(again.certificate().unwrap().fingerprint().unwrap(), own.fingerprint().unwrap());
}

#[tokio::test]
async fn a_clone_hangs_on_its_snapshot_until_it_is_promoted() {
    let nas = Nas::start().await;
    nas.zvol("tank/v").await;
    nas.fill("tank/v", 1, 0, 1 << 20);
    let snapshot = json!({"dataset": "tank/v", "name": "s", "properties": {"our:name": "first"}});
    let made = nas.must("POST /zfs/snapshot", snapshot.clone()).await;
    assert_eq!(made["properties"]["our:name"]["value"], "first");
    let again = nas.ask("POST /zfs/snapshot", Some(snapshot)).await;
    let text = "Failed to snapshot tank/v@s: dataset already exists";
    assert_eq!(again, (422, json!({"message": text, "errno": 14})));
    nas.fill("tank/v", 2, 0, 1 << 20);
    let clone = json!({"snapshot": "tank/v@s", "dataset_dst": "tank/c"});
    nas.must("POST /zfs/snapshot/clone", clone).await;
    assert_eq!((nas.byte("tank/v", 0), nas.byte("tank/c", 0)), (2, 1));
    let (status, held) = nas.ask("DELETE /zfs/snapshot/id/tank%2Fv%40s", None).await;
    assert_eq!(status, 422);
    assert!(held["message"].as_str().unwrap().contains("snapshot has dependent clones"), "{held}");
    let (status, held) =
        nas.ask("DELETE /pool/dataset/id/tank%2Fv", Some(json!({"recursive": true}))).await;
    assert_eq!(status, 422);
    assert!(held["message"].as_str().unwrap().contains("volume has dependent clones"), "{held}");
    nas.must("POST /pool/dataset/id/tank%2Fc/promote", Value::Null).await;
    let ids = nas.must("GET /zfs/snapshot", Value::Null).await;
    assert_eq!(ids[0]["id"], "tank/c@s");
    nas.must("DELETE /pool/dataset/id/tank%2Fv", Value::Null).await;
    assert_eq!(nas.byte("tank/c", 0), 1);
    nas.must("DELETE /zfs/snapshot/id/tank%2Fc%40s", Value::Null).await;
    assert_eq!(nas.byte("tank/c", 0), 1);
    assert_eq!(nas.used(), 1 << 20);
    let (_, missing) = nas.ask("DELETE /zfs/snapshot/id/tank%2Fc%40s", None).await;
    assert_eq!(missing, json!({"message": "Snapshot tank/c@s not found", "errno": 2}));
}

#[tokio::test]
async fn a_rollback_wants_to_be_told_that_newer_snapshots_go() {
    let nas = Nas::start().await;
    nas.zvol("tank/v").await;
    for (name, byte) in [("a", 1), ("b", 2)] {
        nas.fill("tank/v", byte, 0, 4096);
        nas.must("POST /zfs/snapshot", json!({"dataset": "tank/v", "name": name})).await;
    }
    nas.fill("tank/v", 3, 0, 4096);
    let (status, held) =
        nas.ask("POST /zfs/snapshot/rollback", Some(json!({"id": "tank/v@a"}))).await;
    assert_eq!(status, 422);
    let text = held["message"].as_str().unwrap();
    assert!(text.contains("more recent snapshots or bookmarks exist"), "{text}");
    assert_eq!(nas.byte("tank/v", 0), 3);
    nas.must("POST /zfs/snapshot/rollback", json!({"id": "tank/v@b"})).await;
    assert_eq!(nas.byte("tank/v", 0), 2);
    let body = json!({"id": "tank/v@a", "options": {"recursive": true}});
    nas.must("POST /zfs/snapshot/rollback", body).await;
    assert_eq!(nas.byte("tank/v", 0), 1);
    assert_eq!(nas.must("GET /zfs/snapshot", Value::Null).await.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_recursive_snapshot_is_all_or_nothing() {
    let nas = Nas::start().await;
    nas.must("POST /pool/dataset", json!({"name": "tank/sr"})).await;
    nas.zvol("tank/sr/a").await;
    nas.zvol("tank/sr/b").await;
    nas.must("POST /zfs/snapshot", json!({"dataset": "tank/sr/b", "name": "g"})).await;
    let group = json!({"dataset": "tank/sr", "name": "g", "recursive": true});
    assert_eq!(nas.ask("POST /zfs/snapshot", Some(group.clone())).await.0, 422);
    let count = |list: Value| list.as_array().unwrap().len();
    assert_eq!(count(nas.must("GET /zfs/snapshot", Value::Null).await), 1);
    nas.must("DELETE /zfs/snapshot/id/tank%2Fsr%2Fb%40g", Value::Null).await;
    nas.must("POST /zfs/snapshot", group).await;
    // The parent has one, too.
    assert_eq!(count(nas.must("GET /zfs/snapshot", Value::Null).await), 3);
    nas.must("DELETE /zfs/snapshot/id/tank%2Fsr%40g", json!({"recursive": true})).await;
    assert_eq!(count(nas.must("GET /zfs/snapshot", Value::Null).await), 0);
}

#[tokio::test]
async fn a_mapping_is_four_objects_and_each_clash_has_its_words() {
    let nas = Nas::start().await;
    nas.zvol("tank/v").await;
    nas.zvol("tank/w").await;
    nas.map("tank/v", "one", &["iqn.2024-01.test:host"]).await;
    let extent = nas.must("GET /iscsi/extent?name=one", Value::Null).await;
    let naa = extent[0]["naa"].as_str().unwrap();
    assert!(naa.starts_with("0x6589cfc000000") && naa.len() == 34, "{naa}");
    let cases = [
        (
            "/iscsi/extent",
            json!({"name": "one", "disk": "zvol/tank/w"}),
            "iscsi_extent_create.name",
            "Extent name must be unique",
        ),
        (
            "/iscsi/extent",
            json!({"name": "two", "disk": "zvol/tank/v"}),
            "iscsi_extent_create.disk",
            "Disk currently in use by extent one",
        ),
        (
            "/iscsi/extent",
            json!({"name": "two", "disk": "zvol/tank/x"}),
            "iscsi_extent_create.disk",
            "Device '/dev/zvol/tank/x' for volume 'tank/x' does not exist",
        ),
        (
            "/iscsi/targetextent",
            json!({"target": 1, "extent": 1, "lunid": 5}),
            "iscsi_targetextent_create.target",
            "Extent is already in this target.",
        ),
        (
            "/iscsi/target",
            json!({"name": "one"}),
            "iscsi_target_create.name",
            "Target with this name already exists",
        ),
    ];
    for (path, body, field, text) in cases {
        assert_eq!(nas.ask(&format!("POST {path}"), Some(body)).await, refusal(field, text, 22));
    }
    let two = nas.must("POST /iscsi/extent", json!({"name": "two", "disk": "zvol/tank/w"})).await;
    let taken = json!({"target": 1, "extent": two["id"], "lunid": 0});
    assert_eq!(
        nas.ask("POST /iscsi/targetextent", Some(taken)).await,
        refusal(
            "iscsi_targetextent_create.lunid",
            "LUN ID is already being used for this target.",
            22
        )
    );
    let next = json!({"target": 1, "extent": two["id"], "lunid": null});
    assert_eq!(nas.must("POST /iscsi/targetextent", next).await["lunid"], 1);
}

#[tokio::test]
async fn a_target_in_use_stays_until_it_has_settled() {
    let nas = Nas::start().await;
    nas.zvol("tank/v").await;
    let target = nas.map("tank/v", "one", &["iqn.2024-01.test:host"]).await;
    nas.sim.array.set(|settings| settings.settle = 5000).unwrap();
    nas.sim.array.login(&target, "iqn.2024-01.test:host");
    let sessions = nas.must("GET /iscsi/global/sessions", Value::Null).await;
    assert_eq!(sessions[0]["initiator"], "iqn.2024-01.test:host");
    let busy = (422, json!({"message": "Target one is in use.", "errno": 14}));
    assert_eq!(nas.ask("DELETE /iscsi/target/id/1", None).await, busy);
    let mapped = (422, json!({"message": "Associated target one is in use.", "errno": 14}));
    assert_eq!(nas.ask("DELETE /iscsi/targetextent/id/1", None).await, mapped);
    nas.sim.array.logout(&target, "iqn.2024-01.test:host");
    assert_eq!(nas.ask("DELETE /iscsi/target/id/1", None).await, busy);
    nas.sim.array.clock().advance(5000);
    nas.must("DELETE /iscsi/target/id/1", Value::Null).await;
    assert_eq!(nas.must("GET /iscsi/targetextent", Value::Null).await, json!([]));
}

#[tokio::test]
async fn a_job_ends_by_the_arrays_clock_and_may_fail_after_its_work() {
    let nas = Nas::start().await;
    nas.zvol("tank/v").await;
    for name in ["a", "b"] {
        nas.must("POST /zfs/snapshot", json!({"dataset": "tank/v", "name": name})).await;
    }
    nas.sim.array.set(|settings| settings.job = 1000).unwrap();
    let body = json!({"name": "tank/v", "snapshots": {"snapshots": ["a"]}});
    let id = nas.must("POST /pool/dataset/destroy_snapshots", body).await;
    let path = format!("GET /core/get_jobs?id={id}");
    assert_eq!(nas.must(&path, Value::Null).await[0]["state"], "RUNNING");
    assert_eq!(nas.must("GET /zfs/snapshot", Value::Null).await.as_array().unwrap().len(), 2);
    nas.sim.array.clock().advance(1000);
    let job = nas.must(&path, Value::Null).await;
    assert_eq!((&job[0]["state"], &job[0]["result"]), (&json!("SUCCESS"), &json!(["tank/v@a"])));
    let error = "the disk shelf is gone".to_owned();
    let effect = Effect::JobFails { error: error.clone() };
    nas.fault("pool.dataset.destroy_snapshots", effect);
    let body = json!({"name": "tank/v", "snapshots": {"all": true}});
    let id = nas.must("POST /pool/dataset/destroy_snapshots", body).await;
    nas.sim.array.clock().advance(1000);
    let job = nas.must(&format!("GET /core/get_jobs?id={id}"), Value::Null).await;
    assert_eq!((&job[0]["state"], &job[0]["error"]), (&json!("FAILED"), &json!(error)));
    assert_eq!(nas.must("GET /zfs/snapshot", Value::Null).await, json!([]));
}

struct Line(WebSocketStream<TcpStream>);

impl Line {
    async fn open(nas: &Nas) -> Self {
        let address = nas.sim.url().replace("http://", "");
        let stream = TcpStream::connect(&address).await.unwrap();
        let url = format!("ws://{address}/api/current");
        Self(tokio_tungstenite::client_async(url, stream).await.unwrap().0)
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.send(1, method, params).await;
        self.next().await
    }

    async fn send(&mut self, id: u64, method: &str, params: Value) {
        let call = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.0.send(Message::text(call.to_string())).await.unwrap();
    }

    async fn next(&mut self) -> Value {
        let Some(Ok(Message::Text(text))) = self.0.next().await else { panic!("it ended") };
        serde_json::from_str(text.as_str()).unwrap()
    }
}

#[tokio::test]
async fn both_protocols_show_the_same_objects() {
    let nas = Nas::start().await;
    let mut line = Line::open(&nas).await;
    let refused = line.call("pool.dataset.query", json!([])).await;
    assert_eq!(refused["error"]["data"]["errname"], "ENOTAUTHENTICATED");
    assert_eq!(line.call("auth.login_with_api_key", json!(["wrong"])).await["result"], false);
    assert_eq!(line.call("auth.login_with_api_key", json!([API_KEY])).await["result"], true);
    let new = json!([{"name": "tank/v", "type": "VOLUME", "volsize": SIZE, "sparse": true}]);
    let made = line.call("pool.dataset.create", new.clone()).await["result"].clone();
    assert_eq!(made, nas.must("GET /pool/dataset/id/tank%2Fv", Value::Null).await);
    let error = line.call("pool.dataset.create", new).await["error"].clone();
    assert_eq!(error["code"], -32602);
    let extra = json!([["pool_dataset_create.name", "tank/v already exists", 17]]);
    assert_eq!(error["data"]["extra"], extra);
    let filters =
        json!([[["id", "^", "tank/"]], {"select": ["id"], "extra": {"retrieve_children": false}}]);
    let found = line.call("pool.dataset.query", filters).await;
    assert_eq!(found["result"], json!([{"id": "tank/v"}]));
    let error = line.call("pool.dataset.delete", json!(["tank/x"])).await["error"].clone();
    assert_eq!(error["data"]["reason"], "[ENOENT] PoolDataset tank/x does not exist");
    assert_eq!(line.call("no.such", json!([])).await["error"]["code"], -32601);
    line.call("core.subscribe", json!(["core.get_jobs"])).await;
    let job = line.call("pool.dataset.destroy_snapshots", json!(["tank/v", {"all": true}])).await;
    let news = line.next().await;
    assert_eq!(news["method"], "collection_update");
    assert_eq!(news["params"]["id"], job["result"]);
    assert_eq!(news["params"]["fields"]["state"], "SUCCESS");
}

/// Longer than anybody waits for a test.
const FOREVER: Effect = Effect::Delay { milliseconds: 3_600_000 };

#[tokio::test]
async fn calls_of_one_connection_are_carried_out_beside_each_other() {
    let nas = Nas::start().await;
    let mut line = Line::open(&nas).await;
    line.call("auth.login_with_api_key", json!([API_KEY])).await;
    nas.fault("pool.query", FOREVER);
    line.send(7, "pool.query", json!([])).await;
    line.send(8, "system.version", json!([])).await;
    assert_eq!(line.next().await["id"], 8);
    let asked = nas.sim.array.requests().all();
    let slow = asked.iter().find(|one| one.call == "pool.query").unwrap();
    assert_eq!((slow.status, slow.microseconds), (0, 0), "it is still under way");
    // What is asked for goes on without the connection, and ends with the array.
    nas.fault("pool.dataset.create", Effect::Delay { milliseconds: 50 });
    let new = json!([{"name": "tank/v", "type": "VOLUME", "volsize": SIZE, "sparse": true}]);
    line.send(9, "pool.dataset.create", new).await;
    line.call("system.version", json!([])).await;
    drop(line);
    while nas.ask("GET /pool/dataset/id/tank%2Fv", None).await.0 != 200 {}
}

#[tokio::test]
async fn a_connection_has_twenty_open_calls_at_most() {
    let nas = Nas::start().await;
    let mut line = Line::open(&nas).await;
    line.call("auth.login_with_api_key", json!([API_KEY])).await;
    let (call, after, times, effect) = ("pool.query".to_owned(), 0, 0, FOREVER);
    nas.sim.array.faults().add(Fault { call, after, times, effect });
    for id in 0..21 {
        line.send(id, "pool.query", json!([])).await;
    }
    let refused = line.next().await;
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!(20), &json!(-32000)));
    let text = "Maximum number of concurrent calls (20) has exceeded";
    assert_eq!(refused["error"]["message"], text);
    // Others have connections of their own.
    let mut other = Line::open(&nas).await;
    assert_eq!(other.call("core.ping", json!([])).await["result"], "pong");
}

/// Each call fails whose answer is not in the vendor's document, so it is enough to make them.
#[tokio::test]
async fn answers_are_those_of_the_document() {
    let nas = Nas::start().await;
    let mut line = Line::open(&nas).await;
    let user = json!({"mechanism": "PASSWORD_PLAIN", "username": USER, "password": PASSWORD});
    let calls = [
        (
            "auth.login_ex",
            json!([{"mechanism": "PASSWORD_PLAIN", "username": USER, "password": "no"}]),
        ),
        ("auth.login_ex", json!([user])),
        ("auth.login", json!([USER, PASSWORD])),
        ("auth.me", json!([])),
        ("core.subscribe", json!(["core.get_jobs"])),
        ("core.ping", json!([])),
        ("system.info", json!([])),
        ("system.version", json!([])),
        ("system.ready", json!([])),
        ("pool.query", json!([])),
        ("pool.dataset.create", json!([{"name": "tank/sr"}])),
        (
            "pool.dataset.create",
            json!([{"name": "tank/sr/v", "type": "VOLUME", "volsize": SIZE, "sparse": true,
            "comments": "a disk", "user_properties": [{"key": "our:id", "value": "7"}]}]),
        ),
        ("pool.dataset.update", json!(["tank/sr/v", {"volsize": 2 * SIZE}])),
        ("pool.dataset.query", json!([])),
        ("pool.dataset.query", json!([[], {"count": true}])),
        ("pool.dataset.query", json!([[["id", "=", "tank/sr/v"]], {"select": ["id", "volsize"]}])),
        ("pool.dataset.get_instance", json!(["tank/sr"])),
        ("zfs.snapshot.create", json!([{"dataset": "tank/sr", "name": "s", "recursive": true}])),
        (
            "zfs.snapshot.update",
            json!(["tank/sr/v@s",
            {"user_properties_update": [{"key": "our:id", "value": "8"}]}]),
        ),
        ("zfs.snapshot.query", json!([])),
        ("zfs.snapshot.get_instance", json!(["tank/sr/v@s"])),
        ("zfs.snapshot.hold", json!(["tank/sr/v@s"])),
        ("zfs.snapshot.release", json!(["tank/sr/v@s"])),
        ("zfs.snapshot.rollback", json!(["tank/sr/v@s"])),
        ("zfs.snapshot.clone", json!([{"snapshot": "tank/sr/v@s", "dataset_dst": "tank/sr/c"}])),
        ("pool.dataset.promote", json!(["tank/sr/c"])),
        ("pool.dataset.promote", json!(["tank/sr/v"])),
        ("pool.dataset.delete", json!(["tank/sr/c"])),
        ("iscsi.global.config", json!([])),
        ("iscsi.global.update", json!([{"pool_avail_threshold": 80}])),
        ("iscsi.portal.create", json!([{"listen": [{"ip": "127.0.0.2"}]}])),
        ("iscsi.portal.update", json!([2, {"comment": "second"}])),
        ("iscsi.portal.query", json!([])),
        ("iscsi.portal.get_instance", json!([2])),
        ("iscsi.portal.delete", json!([2])),
        ("iscsi.initiator.create", json!([{"initiators": ["iqn.2000-01.com.example:we"]}])),
        ("iscsi.initiator.update", json!([1, {"comment": "we"}])),
        ("iscsi.initiator.query", json!([])),
        ("iscsi.auth.create", json!([{"tag": 1, "user": "u", "secret": "twelveletters"}])),
        ("iscsi.auth.query", json!([])),
        ("iscsi.target.create", json!([{"name": "t", "groups": [{"portal": 1, "initiator": 1}]}])),
        ("iscsi.target.update", json!([1, {"alias": "a"}])),
        ("iscsi.target.query", json!([])),
        ("iscsi.extent.create", json!([{"name": "e", "disk": "zvol/tank/sr/v"}])),
        ("iscsi.extent.update", json!([1, {"comment": "c"}])),
        ("iscsi.extent.query", json!([])),
        ("iscsi.targetextent.create", json!([{"target": 1, "extent": 1}])),
        ("iscsi.targetextent.query", json!([])),
        ("iscsi.global.sessions", json!([])),
        ("iscsi.targetextent.delete", json!([1])),
        ("iscsi.extent.delete", json!([1])),
        ("iscsi.target.delete", json!([1])),
        ("iscsi.auth.delete", json!([1])),
        ("iscsi.initiator.delete", json!([1])),
        ("service.query", json!([])),
        ("service.restart", json!(["iscsitarget"])),
        ("service.stop", json!(["iscsitarget"])),
        ("zfs.snapshot.delete", json!(["tank/sr@s"])),
        ("pool.dataset.destroy_snapshots", json!(["tank/sr/v", {"all": true}])),
        ("core.get_jobs", json!([])),
        ("pool.dataset.delete", json!(["tank/sr", {"recursive": true}])),
        ("auth.logout", json!([])),
    ];
    for (method, params) in calls {
        let mut answer = line.call(method, params).await;
        while answer["method"] == "collection_update" {
            answer = line.next().await;
        }
        assert!(answer.get("result").is_some(), "{method}: {answer}");
    }
}

#[tokio::test]
async fn sessions_are_capped_and_expire() {
    let nas = Nas::start().await;
    nas.sim.array.set(|s| (s.sessions, s.session_idle) = (Some(1), 1000)).unwrap();
    let (mut one, mut two) = (Line::open(&nas).await, Line::open(&nas).await);
    one.call("auth.login_with_api_key", json!([API_KEY])).await;
    let refused = two.call("auth.login_with_api_key", json!([API_KEY])).await;
    let reason = &refused["error"]["data"]["reason"];
    assert_eq!(reason, "[EFAULT] the maximum of 1 sessions is reached");
    nas.sim.array.clock().advance(1001);
    let expired = one.call("pool.query", json!([])).await;
    assert_eq!(expired["error"]["data"]["errname"], "ENOTAUTHENTICATED");
    assert_eq!(two.call("auth.login_with_api_key", json!([API_KEY])).await["result"], true);
}

#[tokio::test]
async fn versions_have_their_methods() {
    let mut plan = plan();
    plan.options.settings.vendor.insert("version".to_owned(), json!("22.12.4"));
    let old = Nas::with(&plan).await;
    assert_eq!(old.must("GET /system/version", Value::Null).await, "TrueNAS-SCALE-22.12.4");
    let address = old.sim.url().replace("http://", "");
    let stream = TcpStream::connect(&address).await.unwrap();
    let refused =
        tokio_tungstenite::client_async(format!("ws://{address}/api/current"), stream).await;
    assert!(refused.is_err());
    plan.options.settings.vendor.insert("version".to_owned(), json!("25.10.0"));
    let new = Nas::with(&plan).await;
    let mut line = Line::open(&new).await;
    line.call("auth.login_with_api_key", json!([API_KEY])).await;
    assert_eq!(line.call("pool.snapshot.query", json!([])).await["result"], json!([]));
    assert_eq!(line.call("zfs.snapshot.query", json!([])).await["error"]["code"], -32601);
}
