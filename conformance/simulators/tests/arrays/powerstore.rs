//! PowerStore: queries and pages, sessions, refusals by their codes, and the requests that the vendor's own
//! clients send.

use std::sync::Arc;

use array_sim::core::{Effect, Fault, Vendor as _};
use array_sim::powerstore::{PASSWORD, PowerStore, USER};
use array_sim::{Plan, Simulator};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::client;

const MIB: u64 = 1 << 20;

struct Array {
    sim: Simulator,
    _folder: TempDir,
    http: reqwest::Client,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Array {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut plan = Plan::default();
        plan.options.pools = vec![("one".to_owned(), 64 * MIB), ("two".to_owned(), 64 * MIB)];
        let sim = Simulator::start(Arc::new(PowerStore), folder.path(), &plan).await.unwrap();
        Self { sim, _folder: folder, http: client() }
    }

    fn request(&self, line: &str) -> reqwest::RequestBuilder {
        let (method, path) = line.split_once(' ').unwrap();
        let url = format!("{}/api/rest/{path}", self.sim.url());
        self.http.request(method.parse().unwrap(), url)
    }

    /// As Cinder asks: a password in each request, a body without a content type.
    async fn ask(&self, line: &str, body: Value) -> Answer {
        let mut request = self.request(line).basic_auth(USER, Some(PASSWORD));
        if !body.is_null() {
            request = request.body(body.to_string());
        }
        answer(request).await
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.ask(&format!("GET {path}"), Value::Null).await;
        assert!(matches!(answer.status, 200 | 206), "{path}: {} {}", answer.status, answer.body);
        answer.body
    }

    /// Makes something, and answers its id.
    async fn made(&self, line: &str, body: Value) -> String {
        let answer = self.ask(line, body).await;
        assert!(matches!(answer.status, 200 | 201), "{line}: {} {}", answer.status, answer.body);
        answer.body["id"].as_str().unwrap().to_owned()
    }

    async fn done(&self, line: &str, body: Value) {
        let answer = self.ask(line, body).await;
        assert_eq!((answer.status, &answer.body), (204, &Value::Null), "{line}");
    }

    /// Status and code of a refusal.
    async fn refused(&self, line: &str, body: Value) -> (u16, String) {
        let answer = self.ask(line, body).await;
        let code = answer.body["messages"][0]["code"].as_str();
        (answer.status, code.unwrap_or_else(|| panic!("{line} is done")).to_owned())
    }

    async fn volume(&self, name: &str) -> String {
        self.made("POST volume", json!({ "name": name, "size": MIB })).await
    }

    async fn host(&self, name: &str, iqn: &str) -> String {
        let port = json!({ "port_name": iqn, "port_type": "iSCSI" });
        let body = json!({ "name": name, "os_type": "Linux", "initiators": [port] });
        self.made("POST host", body).await
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let reply = request.send().await.unwrap();
    let (status, headers) = (reply.status().as_u16(), reply.headers().clone());
    let text = reply.text().await.unwrap();
    Answer { status, headers, body: serde_json::from_str(&text).unwrap_or_default() }
}

const OWN: &str = "iqn.1993-08.org.debian:01:222";
const OTHER: &str = "iqn.1993-08.org.debian:01:333";

#[tokio::test]
async fn a_query_selects_filters_and_sorts() {
    let array = Array::start().await;
    for name in ["b", "a", "smv-1"] {
        array.volume(name).await;
    }
    let id = array.made("POST volume/name:a/snapshot", json!({ "name": "a.1" })).await;
    let all = array.get("volume?order=name.desc&select=name&type=not.eq.Snapshot").await;
    assert_eq!(all, json!([{ "name": "smv-1" }, { "name": "b" }, { "name": "a" }]));
    let of = array.get("volume?name=eq.a&select=id").await[0]["id"].as_str().unwrap().to_owned();
    let own = format!("volume?protection_data-%3E%3Esource_id=eq.{of}&type=eq.Snapshot");
    assert_eq!(array.get(&own).await, json!([{ "id": id }]), "without select only ids");
    let like = array.get("volume?name=like.smv-*&select=name,size").await;
    assert_eq!(like, json!([{ "name": "smv-1", "size": MIB }]));
    let one = array.get(&format!("volume/{id}?select=type,protection_data-%3E%3Eparent_id")).await;
    assert_eq!(one, json!({ "type": "Snapshot", "parent_id": of }));
    let whole = array.get("volume/name:b?select=*,appliance(name)").await;
    assert_eq!(
        (&whole["state"], &whole["appliance"]),
        (&json!("Ready"), &json!({ "name": "one" }))
    );
    let wwn = whole["wwn"].as_str().unwrap();
    assert!(wwn.starts_with("naa.68ccf098") && wwn.len() == 36, "{wwn}");
    for wrong in [
        "volume?select=colour",
        "volume?colour=eq.red",
        "volume?name=red",
        "volume?select=host(name)",
        "volume/name:b?limit=1",
        "volume?select=a(b",
    ] {
        assert_eq!(array.refused(&format!("GET {wrong}"), Value::Null).await.0, 400, "{wrong}");
    }
    assert_eq!(array.refused("GET colour", Value::Null).await.0, 404);
    let missing = array.refused("GET volume/nothing", Value::Null).await;
    assert_eq!(missing, (404, "0xE0A08001000E".to_owned()));
}

#[tokio::test]
async fn pages_say_where_they_are_and_what_is_past_the_end() {
    let array = Array::start().await;
    for n in 0..5 {
        array.volume(&format!("v{n}")).await;
    }
    for (offset, status, range, count) in [(0, 206, "0-1/5", 2), (4, 206, "4-4/5", 1)] {
        let line = format!("GET volume?select=name&order=name&limit=2&offset={offset}");
        let page = array.ask(&line, Value::Null).await;
        assert_eq!((page.status, page.headers["content-range"].to_str().unwrap()), (status, range));
        assert_eq!(page.body.as_array().unwrap().len(), count);
    }
    assert_eq!(array.ask("GET volume?limit=5", Value::Null).await.status, 200);
    let past = array.refused("GET volume?limit=2&offset=5", Value::Null).await;
    assert_eq!(past, (416, "0xE04040010005".to_owned()));
}

#[tokio::test]
async fn a_session_needs_its_token_for_changes_and_ends() {
    let array = Array::start().await;
    let login = array.ask("GET login_session", Value::Null).await;
    let csrf = login.headers["dell-emc-token"].to_str().unwrap().to_owned();
    let cookie = login.headers["set-cookie"].to_str().unwrap();
    let cookie = cookie.split(';').next().unwrap().to_owned();
    assert!(cookie.starts_with("auth_cookie="), "{cookie}");
    let body = json!({ "name": "v", "size": MIB }).to_string();
    let with = |line: &str, token: Option<&str>| {
        let request = array.request(line).header("cookie", &cookie);
        match token {
            Some(token) => request.header("DELL-EMC-TOKEN", token),
            None => request,
        }
    };
    assert_eq!(answer(with("GET volume", None)).await.status, 200);
    assert_eq!(answer(with("POST volume", None).body(body.clone())).await.status, 403);
    assert_eq!(answer(with("POST volume", Some("old")).body(body.clone())).await.status, 403);
    assert_eq!(answer(with("POST volume", Some(&csrf)).body(body)).await.status, 201);
    assert_eq!(answer(with("POST logout", Some(&csrf))).await.status, 204);
    assert_eq!(answer(with("GET volume", None)).await.status, 403);
    let wrong = array.request("GET login_session").basic_auth(USER, Some("wrong"));
    assert_eq!(answer(wrong).await.status, 401);
    assert_eq!(answer(array.request("GET volume")).await.status, 401);
}

#[tokio::test]
async fn what_the_document_does_not_allow_is_refused() {
    let array = Array::start().await;
    for (line, body) in [
        ("POST volume", json!({ "name": "v" })),
        ("POST volume", json!({ "name": "v", "size": "1048576" })),
        ("POST volume", json!({ "name": "v", "size": MIB - 8192 })),
        ("POST volume", json!({ "name": "v", "size": 1_u64 << 49 })),
        ("POST volume", json!({ "name": "", "size": MIB })),
        ("POST volume", json!({ "name": "x".repeat(129), "size": MIB })),
        ("POST volume", json!({ "name": "v", "size": MIB, "colour": "red" })),
        ("POST volume", json!({ "name": "v", "size": MIB, "description": "x".repeat(129) })),
        ("POST volume", json!({ "name": "v\n", "size": MIB })),
        ("POST volume?colour=red", json!({ "name": "v", "size": MIB })),
        ("POST host", json!({ "name": "h", "os_type": "BeOS", "initiators": [] })),
        (
            "POST host",
            json!({ "name": "h", "os_type": "Linux", "initiators": [{ "port_name": "x" }] }),
        ),
        ("POST io_limit_rule", json!({ "name": "r", "type": "Absolute", "max_bw": 1999 })),
        ("POST metrics/generate", json!({ "entity": "weather", "entity_id": "0" })),
    ] {
        assert_eq!(array.refused(line, body.clone()).await.0, 400, "{line} {body}");
    }
    let odd = json!({ "name": "v", "size": MIB + 512 });
    assert_eq!(array.refused("POST volume", odd).await.0, 422, "8 KiB");
    array.volume("v").await;
    let taken = array.refused("POST volume", json!({ "name": "v", "size": MIB })).await;
    assert_eq!(taken, (422, "0xE0A080010014".to_owned()));
    array.made("POST volume/name:v/snapshot", json!({ "name": "s" })).await;
    let taken = array.refused("POST volume/name:v/snapshot", json!({ "name": "s" })).await;
    assert_eq!(taken, (400, "0xE0A060010012".to_owned()));
    assert_eq!(
        array.refused("PATCH volume/name:v", json!({ "size": MIB })).await.0,
        422,
        "grows only"
    );
    array.done("PATCH volume/name:v", json!({ "size": 2 * MIB })).await;
}

/// As Cinder's driver maps and unmaps, and as `gopowerstore` does by way of the host.
#[tokio::test]
async fn a_mapping_has_a_number_that_is_read_and_lets_one_host_in() {
    let array = Array::start().await;
    let id = array
        .made(
            "POST volume",
            json!({ "name": "v", "size": MIB,
        "protection_policy_id": null, "volume_group_id": null }),
        )
        .await;
    let (own, other) = (array.host("own", OWN).await, array.host("other", OTHER).await);
    let second = json!({ "name": "third", "os_type": "Linux", "initiators": [
        { "port_name": OWN, "port_type": "iSCSI" }] });
    assert_eq!(array.refused("POST host", second).await.0, 422, "an initiator has one host");
    array.done(&format!("POST volume/{id}/attach"), json!({ "host_id": own })).await;
    let path = format!(
        "host_volume_mapping?host_id=eq.{own}&volume_id=eq.{id}&select=logical_unit_number"
    );
    assert_eq!(array.get(&path).await, json!([{ "logical_unit_number": 1 }]));
    let hosts = array
        .get("host?select=id,name,host_initiators&host_initiators-%3E0-%3E%3Eport_type=eq.iSCSI")
        .await;
    assert_eq!(hosts.as_array().unwrap().len(), 2);
    let ports = array
        .get(
            "ip_pool_address?purposes=cs.{Storage_Iscsi_Target}&select=address,ip_port(target_iqn)",
        )
        .await;
    assert_eq!(ports.as_array().unwrap().len(), 4, "two of each appliance");
    let exports = PowerStore.exports(&array.sim.array.current());
    assert_eq!(exports.len(), 2, "at the ports of its own appliance");
    for export in &exports {
        assert!(export.who.lets(OWN) && !export.who.lets(OTHER));
        assert!(ports.to_string().contains(&export.target), "{export:?}");
        assert!(export.identity.naa.starts_with("68ccf098"));
    }
    let busy = array.refused(&format!("DELETE volume/{id}"), json!({})).await;
    assert_eq!(busy, (422, "0xE0A080020001".to_owned()));
    assert_eq!(array.refused(&format!("DELETE host/{own}"), json!({})).await.0, 422);
    let both = json!({ "host_id": own, "host_group_id": "x" });
    let both = array.refused(&format!("POST volume/{id}/attach"), both).await;
    assert_eq!(both, (500, "0xE0A080010052".to_owned()));
    let detach = format!("POST volume/{id}/detach");
    let not = array.refused(&detach, json!({ "host_id": other })).await;
    assert_eq!(not, (422, "0xE0A08001000F".to_owned()));
    let not = array.refused(&format!("POST host/{other}/detach"), json!({ "volume_id": id })).await;
    assert_eq!(not, (400, "0xE0A01001001E".to_owned()));
    let gone = array.refused(&detach, json!({ "host_id": "nobody" })).await;
    assert_eq!(gone, (404, "0xE0A010010003".to_owned()));
    array.done(&format!("POST host/{own}/detach"), json!({ "volume_id": id })).await;
    array.done(&format!("DELETE volume/{id}"), json!({})).await;
    array.done("DELETE host/name:own", Value::Null).await;
}

#[tokio::test]
async fn snapshots_and_clones_share_what_is_written() {
    let array = Array::start().await;
    let used = || array.sim.array.space("one").unwrap().used;
    let id = array.volume("v").await;
    array.sim.array.write(&id, 0, &vec![7; 65536]).unwrap();
    let written = used();
    let snapshot = array.made(&format!("POST volume/{id}/snapshot"), json!({ "name": "s" })).await;
    let clone = array.made(&format!("POST volume/{snapshot}/clone"), json!({ "name": "c" })).await;
    assert_eq!(used(), written, "neither takes space");
    array.sim.array.write(&id, 0, &vec![8; 65536]).unwrap();
    assert_eq!(array.sim.array.read(&clone, 0, 1).unwrap(), [7]);
    assert!(used() > written);
    let restore = format!("POST volume/{id}/restore");
    let quiet = json!({ "from_snap_id": snapshot, "create_backup_snap": false });
    array.done(&restore, quiet).await;
    assert_eq!(array.sim.array.read(&id, 0, 1).unwrap(), [7]);
    let backup = array.ask(&restore, json!({ "from_snap_id": "name:s" })).await;
    let backup = backup.body["backup_snapshot_id"].as_str().unwrap().to_owned();
    let own = array.get("volume?type=eq.Snapshot&select=id").await;
    assert!(own.to_string().contains(&backup), "the default leaves a snapshot behind");
    let foreign = json!({ "from_snap_id": snapshot });
    assert_eq!(array.refused(&format!("POST volume/{clone}/restore"), foreign).await.0, 422);
    let refresh = json!({ "from_object_id": id, "create_backup_snap": false });
    array.done(&format!("POST volume/{clone}/refresh"), refresh).await;
    // The snapshots go with the volume; the clone stays.
    array.done(&format!("DELETE volume/{id}"), json!({ "immediate": true })).await;
    let left = array.get("volume?select=name").await;
    assert_eq!(left, json!([{ "name": "c" }]));
    array.done(&format!("DELETE volume/{clone}"), json!({ "immediate": false })).await;
    assert_eq!(array.get("volume").await, json!([]));
    assert_eq!(array.get("recycle_bin").await[0]["name"], "c");
    array.done(&format!("POST recycle_bin/{clone}/recover"), json!({})).await;
    array.done(&format!("DELETE volume/{clone}"), Value::Null).await;
    assert_eq!((used(), array.get("recycle_bin").await), (0, json!([])));
}

#[tokio::test]
async fn a_snapshot_set_is_of_one_instant_and_goes_as_a_whole() {
    let array = Array::start().await;
    let ids = [array.volume("a").await, array.volume("b").await];
    let group = json!({ "name": "Group", "volume_ids": ids, "is_write_order_consistent": true });
    let group = array.made("POST volume_group", group).await;
    let taken = array.refused("POST volume_group", json!({ "name": "gROUP" })).await;
    assert_eq!(taken.0, 422, "names have no case");
    assert_eq!(array.refused(&format!("DELETE volume/{}", ids[0]), json!({})).await.0, 422);
    let elsewhere = json!({ "name": "c", "size": MIB, "appliance_id": "name:two" });
    let elsewhere = array.made("POST volume", elsewhere).await;
    let add = format!("POST volume_group/{group}/add_members");
    assert_eq!(array.refused(&add, json!({ "volume_ids": [elsewhere] })).await.0, 422);
    let set = array.made("POST volume_group/name:group/snapshot", json!({ "name": "set" })).await;
    let members = array.get(&format!("volume_group/{set}?select=type,volumes(id,name)")).await;
    assert_eq!(
        (&members["type"], members["volumes"].as_array().unwrap().len()),
        (&json!("Snapshot"), 2)
    );
    let one = members["volumes"][0]["id"].as_str().unwrap();
    assert_eq!(array.refused(&format!("DELETE volume/{one}"), json!({})).await.0, 422);
    array.done(&format!("DELETE volume_group/{group}"), json!({ "delete_members": true })).await;
    assert_eq!(array.get("volume?select=name").await, json!([{ "name": "c" }]));
    assert_eq!(array.get("volume_group").await, json!([]));
}

#[tokio::test]
async fn limits_are_policies_that_stay_while_they_are_used() {
    let array = Array::start().await;
    let id = array.volume("v").await;
    let rule = json!({ "name": "r", "type": "Absolute", "max_iops": 500, "max_bw": 4000 });
    array.made("POST io_limit_rule", rule.clone()).await;
    let taken = array.refused("POST io_limit_rule", rule).await;
    assert_eq!(taken, (422, "0xE0A0E0010009".to_owned()));
    let policy = json!({ "name": "p", "io_limit_rule_id": "name:r" });
    array.made("POST policy", policy.clone()).await;
    assert_eq!(array.refused("POST policy", policy).await, (422, "0xE02020010004".to_owned()));
    let patch = format!("PATCH volume/{id}");
    array.done(&patch, json!({ "qos_performance_policy_id": "name:p" })).await;
    let path = format!("volume/{id}?select=qos_performance_policy(name,io_limit_rule(max_iops))");
    let shown = json!({ "name": "p", "io_limit_rule": { "max_iops": 500 } });
    assert_eq!(array.get(&path).await["qos_performance_policy"], shown);
    assert_eq!(array.refused("DELETE policy/name:p", Value::Null).await.0, 422);
    assert_eq!(array.refused("DELETE io_limit_rule/name:r", Value::Null).await.0, 422);
    array.done(&patch, json!({ "qos_performance_policy_id": "" })).await;
    array.done("DELETE policy/name:p", Value::Null).await;
    array.done("DELETE io_limit_rule/name:r", Value::Null).await;
}

#[tokio::test]
async fn limits_of_the_array_and_a_full_appliance_refuse() {
    let array = Array::start().await;
    let limits = [("volumes", 3), ("snapshots_per_volume", 1)];
    let limits = limits.map(|(name, most)| (name.to_owned(), most));
    array.sim.array.set(|settings| settings.limits.extend(limits)).unwrap();
    let id = array.made("POST volume", json!({ "name": "a", "size": 128 * MIB })).await;
    array.made(&format!("POST volume/{id}/snapshot"), json!({ "name": "s" })).await;
    let many = array.refused(&format!("POST volume/{id}/snapshot"), json!({})).await;
    assert_eq!(many, (422, "0xE0A040010003".to_owned()));
    for part in 0..64 {
        array.sim.array.write(&id, part * MIB, &vec![1; 1 << 20]).unwrap();
    }
    let full = array.ask("POST volume", json!({ "name": "b", "size": MIB })).await;
    assert_eq!(full.status, 422);
    let said = full.body["messages"][0]["message_l10n"].as_str().unwrap();
    assert_eq!(said, "Insufficient space on appliance one");
    let space = json!({ "entity": "space_metrics_by_appliance", "entity_id": "A1" });
    let samples = array.ask("POST metrics/generate", space).await.body;
    let last = samples.as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["physical_total"], &last["physical_used"]),
        (&json!(64 * MIB), &json!(64 * MIB))
    );
    let elsewhere = json!({ "name": "b", "size": MIB, "appliance_id": "A2" });
    array.made("POST volume", elsewhere).await;
    array.made("POST volume", json!({ "name": "c", "size": MIB, "appliance_id": "A2" })).await;
    let many =
        array.refused("POST volume", json!({ "name": "d", "size": MIB, "appliance_id": "A2" }));
    assert_eq!(many.await.0, 422);
}

/// The object is there before its job ends, and also where the job fails.
#[tokio::test]
async fn a_job_ends_when_the_clock_says_so() {
    let array = Array::start().await;
    array.sim.array.set(|settings| settings.job = 1000).unwrap();
    let body = |name: &str| json!({ "name": name, "size": MIB });
    let asked = array.ask("POST volume?is_async=true", body("a")).await;
    assert_eq!(asked.status, 202);
    let job = format!("job/{}?select=phase,response_body", asked.body["id"].as_str().unwrap());
    assert_eq!(array.get(&job).await["phase"], "In_Progress");
    assert_eq!(array.get("volume?select=name").await, json!([{ "name": "a" }]));
    array.sim.array.clock().advance(1001);
    let ended = array.get(&job).await;
    assert_eq!(ended["phase"], "Completed");
    assert!(ended["response_body"]["id"].is_string(), "{ended}");
    let effect = Effect::JobFails { error: "stopped".to_owned() };
    let call = "volume.create".to_owned();
    array.sim.array.faults().add(Fault { call, after: 0, times: 1, effect });
    let asked = array.ask("POST volume?is_async=true", body("b")).await;
    array.sim.array.clock().advance(1001);
    let job = format!("job/{}?select=phase", asked.body["id"].as_str().unwrap());
    assert_eq!(array.get(&job).await["phase"], "Failed");
    assert_eq!(array.get("volume?select=name&order=name").await.as_array().unwrap().len(), 2);
}
