//! FlashArray: names and their reservation, pages and tokens, refusals by their words, and what is not
//! in the published document.

use std::sync::Arc;

use array_sim::core::Vendor as _;
use array_sim::purestorage::{API_TOKEN, PureStorage};
use array_sim::{Plan, Simulator};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::client;

const MIB: u64 = 1 << 20;

struct Array {
    sim: Simulator,
    _folder: TempDir,
    http: reqwest::Client,
    version: &'static str,
    token: String,
}

impl Array {
    async fn start(version: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut plan = Plan::default();
        plan.options.pools = vec![("flash1".to_owned(), 64 * MIB)];
        plan.options.settings.vendor.insert("version".to_owned(), version.into());
        let sim = Simulator::start(Arc::new(PureStorage), folder.path(), &plan).await.unwrap();
        let mut array =
            Self { sim, _folder: folder, http: client(), version, token: String::new() };
        let reply =
            array.request("POST login").header("api-token", API_TOKEN).send().await.unwrap();
        reply.headers()["x-auth-token"].to_str().unwrap().clone_into(&mut array.token);
        array
    }

    fn request(&self, line: &str) -> reqwest::RequestBuilder {
        let (method, path) = line.split_once(' ').unwrap();
        let url = format!("{}/api/{}/{path}", self.sim.url(), self.version);
        self.http.request(method.parse().unwrap(), url).header("x-auth-token", &self.token)
    }

    async fn ask(&self, line: &str, body: Value) -> (u16, Value) {
        let mut request = self.request(line);
        if !body.is_null() {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let reply = request.send().await.unwrap();
        let status = reply.status().as_u16();
        (status, serde_json::from_slice(&reply.bytes().await.unwrap()).unwrap())
    }

    /// The objects that a request answers.
    async fn items(&self, line: &str, body: Value) -> Vec<Value> {
        let (status, body) = self.ask(line, body).await;
        assert_eq!(status, 200, "{line}: {body}");
        body["items"].as_array().unwrap().clone()
    }

    async fn names(&self, path: &str) -> Vec<String> {
        let items = self.items(&format!("GET {path}"), Value::Null).await;
        items.iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Status and words of a refusal.
    async fn refused(&self, line: &str, body: Value) -> (u16, String) {
        let (status, body) = self.ask(line, body).await;
        let words = body["errors"][0]["message"].as_str();
        (status, words.unwrap_or_else(|| panic!("{line} is done: {body}")).to_owned())
    }

    async fn volume(&self, name: &str) -> Value {
        let line = format!("POST volumes?names={name}");
        self.items(&line, json!({ "provisioned": MIB })).await.remove(0)
    }
}

/// Each is refused by status 400 but where a status is given.
#[tokio::test]
async fn what_the_document_does_not_have_is_refused() {
    let array = Array::start("2.26").await;
    array.volume("web").await;
    let unrecognized = "Unrecognized or read-only field.";
    for (line, body, words) in [
        ("POST volumes?names=x", json!({ "size": MIB }), unrecognized),
        ("POST volumes?names=x", json!({ "serial": "ABC" }), unrecognized),
        ("POST volumes?names=x", json!({ "provisioned": "1M" }), "Invalid value of a field."),
        (
            "POST volumes?names=x",
            json!({ "provisioned": (1_u64 << 52) + 512 }),
            "Invalid value of a field.",
        ),
        ("POST volumes?names=x", json!({ "provisioned": MIB + 1 }), "Invalid volume size."),
        ("POST volumes", json!({ "provisioned": MIB }), "Missing required query parameter."),
        ("POST volumes?names=x", Value::Null, "Invalid JSON body."),
        ("POST volumes?names=-x", json!({ "provisioned": MIB }), "Invalid volume name."),
        ("POST volumes?names=WEB", json!({ "provisioned": MIB }), "Volume already exists."),
        ("GET volumes?name=web", Value::Null, "Unrecognized query parameter."),
        ("GET volumes?destroyed=yes", Value::Null, "Invalid value of a query parameter."),
        ("GET volumes?names=web&ids=1", Value::Null, "Names and ids cannot be set together."),
        ("GET volumes?names=nobody", Value::Null, "Volume does not exist."),
        ("PATCH volumes?names=web", json!({ "provisioned": MIB, "overwrite": true }), unrecognized),
        (
            "PATCH volumes?names=web",
            json!({ "qos": { "iops_limit": 99 } }),
            "Invalid value of a field.",
        ),
        ("DELETE volumes?names=web", Value::Null, "Volume is not destroyed."),
        (
            "POST connections?host_names=h&volume_names=web",
            json!({ "lun": 0 }),
            "Invalid value of a field.",
        ),
        ("POST hosts?names=h", json!({ "personality": "linux" }), "Invalid value of a field."),
        (
            "PUT volumes/tags/batch?resource_names=web",
            json!([]),
            "Between 1 and 30 tags can be set at once.",
        ),
    ] {
        assert_eq!(array.refused(line, body).await, (400, words.to_owned()), "{line}");
    }
    let long = json!([{ "key": "a", "value": "x".repeat(257) }]);
    let line = "PUT volumes/tags/batch?resource_names=web";
    assert_eq!(array.refused(line, long).await.1, "Invalid value of a field.");
    assert_eq!(array.refused("GET quotas", Value::Null).await.0, 404);
    // A body that does not say what it is.
    let reply = array.request("PATCH volumes?names=web").body("{}").send().await.unwrap();
    assert_eq!(reply.status(), 415);
}

#[tokio::test]
async fn only_a_token_opens_a_session_and_only_a_session_opens_anything() {
    let array = Array::start("2.26").await;
    let wrong = array.request("POST login").header("api-token", "x").send().await.unwrap();
    assert_eq!(wrong.status(), 401);
    array.sim.array.sessions().drop_all();
    let invalid = (401, "Invalid session token.".to_owned());
    assert_eq!(array.refused("GET volumes", Value::Null).await, invalid);
    let url = format!("{}/api/api_version", array.sim.url());
    let known: Value =
        serde_json::from_slice(&array.http.get(url).send().await.unwrap().bytes().await.unwrap())
            .unwrap();
    let known = known["version"].as_array().unwrap();
    assert!(known.contains(&json!("2.2")) && known.last() == Some(&json!("2.26")));
}

/// What 2.2 does not have yet.
#[tokio::test]
async fn an_older_array_refuses_what_came_later() {
    let array = Array::start("2.2").await;
    array.volume("web").await;
    array.items("POST volume-snapshots?source_names=web", json!({ "suffix": "one" })).await;
    assert_eq!(array.refused("GET volume-snapshots/tags", Value::Null).await.0, 404);
    for line in [
        "GET volumes/tags?namespaces=default",
        "GET volumes/tags?continuation_token=YQ",
        "POST volumes?names=x&with_default_protection=false",
    ] {
        let body =
            if line.starts_with("POST") { json!({ "provisioned": MIB }) } else { Value::Null };
        assert_eq!(array.refused(line, body).await.1, "Unrecognized query parameter.", "{line}");
    }
}

#[tokio::test]
async fn a_destroyed_volume_keeps_its_name_until_it_is_eradicated() {
    let array = Array::start("2.26").await;
    let made = array.volume("web").await;
    array.items("POST volume-snapshots?source_names=web", json!({ "suffix": "one" })).await;
    array.items("PATCH volumes?names=web", json!({ "destroyed": true })).await;
    let exists = "Volume already exists.".to_owned();
    let again = || array.refused("POST volumes?names=web", json!({ "provisioned": MIB }));
    assert_eq!(again().await, (400, exists));
    assert_eq!(array.names("volumes?destroyed=false").await, [""; 0]);
    assert_eq!(array.names("volumes").await, ["web"], "listed, unless somebody asks otherwise");
    assert_eq!(array.names("volume-snapshots?destroyed=true").await, ["web.one"]);
    array.items("PATCH volumes?names=web", json!({ "destroyed": false })).await;
    assert_eq!(array.names("volume-snapshots?destroyed=false").await, ["web.one"]);
    // By its id it is the same under any name.
    let id = made["id"].as_str().unwrap();
    array.items(&format!("PATCH volumes?ids={id}"), json!({ "name": "gone" })).await;
    assert_eq!(array.names("volume-snapshots").await, ["gone.one"]);
    array.items(&format!("PATCH volumes?ids={id}"), json!({ "destroyed": true })).await;
    assert_ne!(array.volume("web").await["serial"], made["serial"]);
    let vendor = |settings: &mut array_sim::core::Settings| {
        settings.vendor.insert("manual_eradication".to_owned(), false.into());
        // The session lives on when the clock jumps.
        settings.session_idle = 1 << 40;
    };
    array.sim.array.set(vendor).unwrap();
    let line = format!("DELETE volumes?ids={id}");
    assert_eq!(array.refused(&line, Value::Null).await.1, "Manual eradication is disabled.");
    array.sim.array.clock().advance(86_400_001);
    assert_eq!(array.names("volumes").await, ["web"], "after a day it goes by itself");
}

#[tokio::test]
async fn copies_overwrites_and_truncations_do_what_they_say() {
    let array = Array::start("2.26").await;
    array.volume("web").await;
    let tags =
        json!([{ "key": "own", "value": "1", "copyable": false }, { "key": "all", "value": "2" }]);
    array.items("PUT volumes/tags/batch?resource_names=web", tags).await;
    let data = |name: &str| array.sim.array.read(name, 0, 4).unwrap();
    array.sim.array.write("web", 0, b"once").unwrap();
    array.items("POST volume-snapshots?source_names=web", json!({ "suffix": "one" })).await;
    array.sim.array.write("web", 0, b"more").unwrap();
    let copy = json!({ "source": { "name": "web" } });
    let made = array.items("POST volumes?names=copy", copy).await.remove(0);
    assert_eq!(made["source"]["name"], "web");
    let source = json!({ "source": { "name": "web.one" } });
    // A PATCH has no such member at all.
    let line = "PATCH volumes?names=web";
    assert_eq!(array.refused(line, source.clone()).await.1, "Unrecognized or read-only field.");
    array.items("POST volumes?names=web&overwrite=true", source.clone()).await;
    assert_eq!((data("web"), data("copy")), (b"once".to_vec(), b"more".to_vec()));
    let nobody = array.refused("POST volumes?names=nobody&overwrite=true", source).await;
    assert_eq!(nobody.1, "Volume does not exist.");
    let copied = array.items("GET volumes/tags?resource_names=copy", Value::Null).await;
    let keys: Vec<&str> = copied.iter().map(|tag| tag["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["all"], "what is copyable goes along");
    array.items("PATCH volumes?names=web", json!({ "provisioned": 3 * MIB })).await;
    let smaller = json!({ "provisioned": 2 * MIB });
    let refused = array.refused("PATCH volumes?names=web", smaller.clone()).await;
    assert_eq!(refused.1, "Implicit truncation not permitted.");
    array.items("PATCH volumes?names=web&truncate=true", smaller).await;
    let undone = array.names("volume-snapshots?destroyed=true").await;
    assert_eq!(undone.len(), 2, "what was there before: {undone:?}");
}

#[tokio::test]
async fn pages_go_on_by_a_token_and_filters_choose() {
    let array = Array::start("2.26").await;
    for n in 0..7 {
        array.volume(&format!("web{n}")).await;
    }
    let mut seen = Vec::new();
    let mut path = "GET volumes?limit=3".to_owned();
    let mut pages = 0;
    loop {
        let (_, page) = array.ask(&path, Value::Null).await;
        let names = page["items"].as_array().unwrap().iter();
        seen.extend(names.map(|item| item["name"].as_str().unwrap().to_owned()));
        pages += 1;
        if pages == 1 {
            // One that was seen goes, and one comes before it: nothing is left out or shown twice.
            array.items("PATCH volumes?names=web1", json!({ "name": "a" })).await;
        }
        let Some(token) = page["continuation_token"].as_str() else { break };
        assert_eq!(page["more_items_remaining"], true);
        path = format!("GET volumes?limit=3&continuation_token={token}");
    }
    assert_eq!((pages, seen.len()), (3, 7), "{seen:?}");
    let filtered = array.names("volumes?filter=name%3D%27WEB*%27%20and%20not%20destroyed").await;
    assert_eq!(filtered.len(), 6, "{filtered:?}");
    let (_, none) = array.ask("GET volumes?limit=0", Value::Null).await;
    assert_eq!((none["total_item_count"].clone(), none["items"].clone()), (json!(7), json!([])));
    let down = array.names("volumes?sort=name-&limit=2&offset=1").await;
    assert_eq!(down, ["web5", "web4"]);
}

/// With several names some are done and some refused.
#[tokio::test]
async fn several_names_are_done_one_by_one() {
    let array = Array::start("2.26").await;
    array.volume("b").await;
    let refused = array.refused("POST volumes?names=a,b,c", json!({ "provisioned": MIB })).await;
    assert_eq!(refused.1, "Volume already exists.");
    assert_eq!(array.names("volumes").await, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_connection_has_a_private_number_and_protects_its_volume() {
    let array = Array::start("2.26").await;
    let made = array.volume("web").await;
    array.volume("db").await;
    let iqn = "iqn.1993-08.org.debian:01:abc";
    array.items("POST hosts?names=host1", json!({ "iqns": [iqn] })).await;
    let taken = array
        .refused(
            "POST hosts?names=host2",
            json!({ "iqns": [iqn.to_uppercase().replace("IQN", "iqn")] }),
        )
        .await;
    assert!(taken.1.contains("already in use"), "{}", taken.1);
    for (name, lun) in [("web", 1), ("db", 2)] {
        let line = format!("POST connections?host_names=host1&volume_names={name}");
        assert_eq!(array.items(&line, json!({})).await[0]["lun"], lun);
        assert_eq!(array.refused(&line, json!({})).await.1, "Connection already exists.");
    }
    let in_use = "Volume cannot be deleted due to existing connections.";
    let destroy = json!({ "destroyed": true });
    assert_eq!(array.refused("PATCH volumes?names=web", destroy).await.1, in_use);
    let exports = PureStorage.exports(&array.sim.array.current());
    let serial = made["serial"].as_str().unwrap().to_lowercase();
    let export = exports.iter().find(|export| export.volume == "web").unwrap();
    assert_eq!(export.identity.naa, format!("624a9370{serial}"));
    assert!(export.who.lets(iqn) && !export.who.lets("iqn.1993-08.org.debian:01:other"));
    assert!(
        array
            .refused("DELETE hosts?names=host1", Value::Null)
            .await
            .1
            .contains("existing connections")
    );
    array.items("DELETE connections?host_names=host1&volume_names=web", Value::Null).await;
    let gone =
        array.refused("DELETE connections?host_names=host1&volume_names=web", Value::Null).await;
    assert_eq!(gone.1, "Connection does not exist.");
}

#[tokio::test]
async fn a_protection_group_catches_its_volumes_together_and_lets_them_go_together() {
    let array = Array::start("2.26").await;
    array.volume("web").await;
    array.volume("db").await;
    array.items("POST protection-groups?names=pg", Value::Null).await;
    for name in ["web", "db"] {
        let line = format!("POST protection-groups/volumes?group_names=pg&member_names={name}");
        array.items(&line, Value::Null).await;
        assert!(array.refused(&line, Value::Null).await.1.contains("already belongs to"));
    }
    let line = "POST protection-group-snapshots?source_names=pg";
    array.items(line, json!({ "suffix": "now" })).await;
    assert_eq!(array.names("volume-snapshots").await, ["pg.now.db", "pg.now.web"]);
    let part =
        array.refused("PATCH volume-snapshots?names=pg.now.db", json!({ "destroyed": true })).await;
    assert_eq!(part.1, "Snapshot is part of a protection group snapshot.");
    let source = json!({ "source": { "name": "pg.now.db" } });
    let copy = array.items("POST volumes?names=kept", source).await.remove(0);
    assert_eq!(copy["source"]["name"], "db");
    array.items("PATCH protection-groups?names=pg", json!({ "destroyed": true })).await;
    assert_eq!(array.names("volume-snapshots?destroyed=false").await, [""; 0]);
    array.items("DELETE protection-groups?names=pg", Value::Null).await;
    assert_eq!(array.names("volume-snapshots").await, [""; 0]);
    assert_eq!(array.names("volumes").await, ["db", "kept", "web"]);
}
