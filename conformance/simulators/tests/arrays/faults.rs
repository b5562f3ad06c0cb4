//! Each fault, one by one: what the client sees, and what the array has afterwards.

use crate::common::{Nas, SIZE};
use array_sim::core::Effect;
use serde_json::{Value, json};

const CALL: &str = "pool.dataset.create";

fn body() -> Value {
    json!({"name": "tank/v", "type": "VOLUME", "volsize": SIZE, "sparse": true})
}

/// What a request came to: its status, and whether there was a whole answer.
async fn hit(nas: &Nas, effect: Effect) -> (Result<(u16, Value), reqwest::Error>, bool) {
    nas.fault(CALL, effect);
    let line = "POST /pool/dataset";
    let answer = crate::common::ask(&nas.http, &nas.sim.url(), line, Some(body())).await;
    let there = nas.sim.array.current().get::<array_sim::core::Volume>("tank/v").is_some();
    assert!(nas.sim.array.faults().left().is_empty());
    (answer, there)
}

#[tokio::test]
async fn a_dropped_request_is_not_carried_out() {
    let nas = Nas::start().await;
    let (answer, there) = hit(&nas, Effect::DropRequest).await;
    assert!(answer.is_err() && !there, "{answer:?}");
    nas.zvol("tank/v").await;
}

#[tokio::test]
async fn a_reply_is_lost_in_several_ways_and_the_volume_is_there() {
    let effects =
        [Effect::DropReply, Effect::Reset, Effect::HalfBody, Effect::Silence { milliseconds: 10 }];
    for effect in effects {
        let nas = Nas::start().await;
        let (answer, there) = hit(&nas, effect.clone()).await;
        assert!(answer.is_err() && there, "{effect:?}: {answer:?}");
        let (status, _) = nas.ask("POST /pool/dataset", Some(body())).await;
        assert_eq!(status, 422, "{effect:?}");
    }
}

#[tokio::test]
async fn wrong_answers_are_not_json() {
    for (effect, done) in [(Effect::Garbage, true), (Effect::LoginPage, false)] {
        let nas = Nas::start().await;
        let (answer, there) = hit(&nas, effect).await;
        let (status, text) = answer.unwrap();
        assert_eq!((status, there), (200, done));
        assert!(text.is_string(), "{text}");
    }
}

#[tokio::test]
async fn a_refusal_says_when_to_come_back() {
    let nas = Nas::start().await;
    let retry_after = Some("7".to_owned());
    nas.fault(CALL, Effect::Refuse { status: 503, retry_after, body: None });
    let url = format!("{}/api/v2.0/pool/dataset", nas.sim.url());
    let request = nas.http.post(url).bearer_auth(array_sim::truenas::API_KEY);
    let reply = request.body(body().to_string()).send().await.unwrap();
    assert_eq!(reply.status().as_u16(), 503);
    assert_eq!(reply.headers()["retry-after"], "7");
    assert!(reply.text().await.unwrap().contains("503 Service Temporarily Unavailable"));
    nas.zvol("tank/v").await;
}

#[tokio::test]
async fn a_failure_after_the_work_leaves_the_work() {
    let nas = Nas::start().await;
    let (answer, there) = hit(&nas, Effect::FailAfter { status: 500 }).await;
    assert_eq!((answer.unwrap().0, there), (500, true));
}

#[tokio::test]
async fn slow_answers_are_whole_in_the_end() {
    let nas = Nas::start().await;
    nas.fault("system.version", Effect::SlowDrip { milliseconds: 1 });
    assert_eq!(nas.must("GET /system/version", Value::Null).await, "TrueNAS-25.04.2");
    let (answer, there) = hit(&nas, Effect::Delay { milliseconds: 5 }).await;
    assert_eq!((answer.unwrap().0, there), (200, true));
}

#[tokio::test]
async fn reads_may_be_stale_for_a_while() {
    let nas = Nas::start().await;
    let (answer, _) = hit(&nas, Effect::Stale { milliseconds: 600_000 }).await;
    assert_eq!(answer.unwrap().0, 200);
    let list = "GET /pool/dataset?type=VOLUME";
    assert_eq!(nas.must(list, Value::Null).await, json!([]));
    // A change sees what is.
    assert_eq!(nas.ask("POST /pool/dataset", Some(body())).await.0, 422);
    nas.sim.array.restart().unwrap();
    assert_eq!(nas.must(list, Value::Null).await.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_session_ends_in_the_middle() {
    let nas = Nas::start().await;
    let (answer, there) = hit(&nas, Effect::EndSession).await;
    assert_eq!((answer.unwrap().0, there), (401, false));
}

#[tokio::test]
async fn a_job_is_never_heard_of_again() {
    let nas = Nas::start().await;
    nas.zvol("tank/v").await;
    nas.must("POST /zfs/snapshot", json!({"dataset": "tank/v", "name": "s"})).await;
    nas.fault("pool.dataset.destroy_snapshots", Effect::JobLost);
    let all = json!({"name": "tank/v", "snapshots": {"all": true}});
    let id = nas.must("POST /pool/dataset/destroy_snapshots", all).await;
    assert_eq!(nas.must(&format!("GET /core/get_jobs?id={id}"), Value::Null).await, json!([]));
    assert_eq!(nas.must("GET /zfs/snapshot", Value::Null).await, json!([]));
}

#[tokio::test]
async fn a_script_counts_calls_and_knows_paths() {
    let nas = Nas::start().await;
    let admin = format!("{}/faults", nas.sim.admin());
    let script = json!([{
        "call": "GET /api/v2.0/pool/*", "after": 1, "times": 2,
        "effect": {"kind": "refuse", "status": 429},
    }]);
    let reply = nas.http.post(&admin).body(script.to_string()).send().await.unwrap();
    assert_eq!(reply.status().as_u16(), 200);
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(nas.ask("GET /pool/dataset", None).await.0);
        assert_eq!(nas.ask("GET /pool", None).await.0, 200);
    }
    assert_eq!(statuses, [200, 429, 429, 200]);
    let wrong = json!([{"call": "*", "effect": {"kind": "explode"}}]);
    let reply = nas.http.post(&admin).body(wrong.to_string()).send().await.unwrap();
    assert_eq!(reply.status().as_u16(), 400);
}

#[tokio::test]
async fn rate_and_failover_refuse_what_they_should() {
    let nas = Nas::start().await;
    nas.sim.array.set(|settings| settings.rate = Some(2)).unwrap();
    let mut statuses = Vec::new();
    for _ in 0..50 {
        statuses.push(nas.ask("GET /system/version", None).await.0);
    }
    assert!(statuses.contains(&429) && statuses[0] == 200, "{statuses:?}");
    nas.sim.array.set(|settings| settings.rate = None).unwrap();
    nas.sim.array.fail_over(600_000);
    assert_eq!(nas.ask("GET /system/version", None).await.0, 200);
    assert_eq!(nas.ask("POST /pool/dataset", Some(body())).await.0, 503);
    nas.sim.array.fail_over(0);
    nas.zvol("tank/v").await;
}

#[tokio::test]
async fn requests_are_counted_by_call_and_limited_at_once() {
    let nas = Nas::start().await;
    nas.sim.array.set(|s| (s.parallel, s.latency) = (Some(2), 20)).unwrap();
    nas.sim.array.requests().clear();
    let asks = (0..8).map(|_| nas.ask("GET /system/version", None));
    futures_util::future::join_all(asks).await;
    let counts = nas.sim.array.requests().counts();
    assert_eq!(counts.get("system.version"), Some(&8));
    let url = format!("{}/counts", nas.sim.admin());
    let told: Value =
        serde_json::from_str(&nas.http.get(url).send().await.unwrap().text().await.unwrap())
            .unwrap();
    assert_eq!(told, json!({"system.version": 8}));
    let all = nas.sim.array.requests().all();
    // All eight came before the first was done, so the array had a queue.
    assert!(all.iter().any(|asked| asked.others > 2), "{all:?}");
    assert!(all.iter().all(|asked| asked.status == 200));
}
