//! A scripted array that speaks both APIs: it gives the next answer, whatever it is asked, and keeps
//! what it was asked.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use array_kit::array::{Array as _, Initiator, Volume};
use array_kit::outcome::Outcome;
use futures_util::{SinkExt as _, StreamExt as _};
use plugin_sdk::config::DeviceConfig as _;
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::model::{Bytes, SrUuid};
use plugin_sdk::testing::{TestHost, run};
use plugin_sdk::tokio::net::TcpListener;
use plugin_sdk::{Cx, tokio};
use serde_json::{Value, json};
use sm_driver_truenas::{Config, TrueNas, TrueNasProduct};
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

/// What must never be seen in an error.
pub(crate) const KEY: &str = "1-canary-of-the-mine";

pub(crate) const SR: &str = "0b0b0b0b-1111-2222-3333-444455556666";
/// The dataset of that SR.
pub(crate) const FOLDER: &str =
    "tank/vms/smr-bmfqwcyrcercemztircfkvlgmy-0b0b0b0b111122223333444455556666";

/// One request in both forms, and its answer.
pub(crate) struct Step {
    /// Verb and target, without what all have in common.
    pub(crate) rest: String,
    /// `null` for a request without a body.
    pub(crate) body: Value,
    pub(crate) method: &'static str,
    pub(crate) params: Value,
    pub(crate) reply: Reply,
}

#[derive(Clone)]
pub(crate) enum Reply {
    Ok(Value),
    /// REST's status and body, and the member `error`.
    Err(u16, Value, Value),
}

/// A step with an answer of success.
pub(crate) fn step(
    rest: impl Into<String>,
    body: Value,
    method: &'static str,
    params: Value,
    reply: Value,
) -> Step {
    Step { rest: rest.into(), body, method, params, reply: Reply::Ok(reply) }
}

/// A refusal as both APIs word it.
pub(crate) fn refusal(field: &str, message: &str, errno: i64) -> Reply {
    let rest = if field.is_empty() {
        json!({ "message": message, "errno": errno })
    } else {
        json!({ field: [{ "message": message, "errno": errno }] })
    };
    let data = if field.is_empty() {
        json!({ "error": errno, "reason": format!("[E] {message}"), "trace": { "repr": "not found" } })
    } else {
        json!({ "error": 22, "reason": format!("[EINVAL] {field}: {message}"),
            "extra": [[field, message, errno]] })
    };
    let code = if field.is_empty() { -32001 } else { -32602 };
    Reply::Err(422, rest, json!({ "code": code, "message": "Method call error", "data": data }))
}

type Work<R> =
    for<'a> fn(&'a Cx, &'a TrueNas) -> Pin<Box<dyn Future<Output = Outcome<R>> + Send + 'a>>;

/// Does the work over both APIs, checks what was asked, and that both have the same result.
pub(crate) fn both<R: Debug + Send + 'static>(steps: Vec<Step>, work: Work<R>) -> Outcome<R> {
    let steps = Arc::new(steps);
    let rest = over_rest(Arc::clone(&steps), work);
    let rpc = over_rpc(steps, work);
    let text = |outcome: &Outcome<R>| match outcome {
        Ok(result) => format!("{result:?}"),
        Err(failure) => format!("{:?} {:?} {:?}", failure.class, failure.object, failure.fact),
    };
    assert_eq!(text(&rest), text(&rpc), "REST and JSON-RPC differ");
    for outcome in [&rest, &rpc] {
        assert!(!format!("{outcome:?}").contains("canary"), "{outcome:?}");
    }
    rest
}

fn config(target: &str, api: &str) -> Config {
    let keys = [
        ("target", target),
        ("pool", "tank/vms"),
        ("api-key", KEY),
        ("api", api),
        ("fingerprint", &"00".repeat(32)),
    ];
    Config::parse(&keys.into_iter().collect()).unwrap()
}

async fn opened(target: &str, api: &str, cx: &Cx) -> TrueNas {
    let mut array = TrueNasProduct::array(config(target, api), cx).await.unwrap();
    array.assign(SR.parse().unwrap());
    array
}

pub(crate) fn with_cx<R: Send + 'static, F>(work: impl FnOnce(Cx) -> F + Send) -> R
where
    F: Future<Output = R> + Send + 'static,
{
    let work = |cx| {
        let work = work(cx);
        async move { Ok(work.await) }
    };
    run(TestHost::new().with_cx(Duration::from_secs(30), work)).unwrap()
}

/// Answers the login, then the script.
struct Scripted(Mutex<VecDeque<Reply>>);

impl Respond for Scripted {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        if request.url.path() == "/api/v2.0/system/version" {
            return ResponseTemplate::new(200).set_body_json("TrueNAS-SCALE-22.12.3");
        }
        match self.0.lock().unwrap().pop_front() {
            Some(Reply::Ok(body)) => ResponseTemplate::new(200).set_body_json(body),
            Some(Reply::Err(status, body, _)) => ResponseTemplate::new(status).set_body_json(body),
            None => ResponseTemplate::new(500),
        }
    }
}

fn over_rest<R: Send + 'static>(steps: Arc<Vec<Step>>, work: Work<R>) -> Outcome<R> {
    with_cx(move |cx| async move {
        let server = MockServer::start().await;
        let replies = steps.iter().map(|step| step.reply.clone()).collect();
        Mock::given(any()).respond_with(Scripted(Mutex::new(replies))).mount(&server).await;
        let array = opened(&server.uri(), "rest", &cx).await;
        let outcome = work(&cx, &array).await;
        let mut asked = server.received_requests().await.unwrap().into_iter();
        let login = asked.next().unwrap();
        assert_eq!(login.url.path(), "/api/v2.0/system/version");
        for step in steps.iter() {
            let request = asked.next().unwrap_or_else(|| panic!("not asked: {}", step.rest));
            let query = request.url.query().map(|query| format!("?{query}")).unwrap_or_default();
            let path = request.url.path().strip_prefix("/api/v2.0").unwrap();
            assert_eq!(format!("{} {path}{query}", request.method), step.rest);
            let body = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
            assert_eq!(body, step.body, "{}", step.rest);
            let header = request.headers.get("authorization").unwrap();
            assert_eq!(header.to_str().unwrap(), format!("Bearer {KEY}"));
        }
        let more: Vec<_> = asked.map(|request| request.url.to_string()).collect();
        assert_eq!(more, Vec::<String>::new(), "more was asked");
        outcome
    })
}

fn over_rpc<R: Send + 'static>(steps: Arc<Vec<Step>>, work: Work<R>) -> Outcome<R> {
    with_cx(move |cx| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = format!("http://{}", listener.local_addr().unwrap());
        let replies: VecDeque<Reply> = steps.iter().map(|step| step.reply.clone()).collect();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, mut replies) = (Arc::clone(&asked), replies);
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut socket = accept_async(stream).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                let Message::Text(text) = message else { continue };
                let call: Value = serde_json::from_str(&text).unwrap();
                let method = call["method"].as_str().unwrap().to_owned();
                let answer = match method.as_str() {
                    "auth.login_with_api_key" => {
                        assert_eq!(call["params"], json!([KEY]));
                        Reply::Ok(json!(true))
                    }
                    "system.version" => Reply::Ok(json!("TrueNAS-25.04.1")),
                    _ => {
                        seen.lock().unwrap().push((method, call["params"].clone()));
                        replies.pop_front().unwrap_or(Reply::Err(500, Value::Null, json!({})))
                    }
                };
                let (id, version) = (&call["id"], "2.0");
                let message = match answer {
                    Reply::Ok(result) => json!({ "jsonrpc": version, "id": id, "result": result }),
                    Reply::Err(_, _, error) => {
                        json!({ "jsonrpc": version, "id": id, "error": error })
                    }
                };
                // An event between the answers is nobody's.
                let event =
                    json!({ "jsonrpc": version, "method": "collection_update", "params": {} });
                socket.send(Message::text(event.to_string())).await.unwrap();
                socket.send(Message::text(message.to_string())).await.unwrap();
            }
        });
        let array = opened(&target, "auto", &cx).await;
        let outcome = work(&cx, &array).await;
        let asked = asked.lock().unwrap().clone();
        let expected: Vec<(String, Value)> =
            steps.iter().map(|step| (step.method.to_owned(), step.params.clone())).collect();
        assert_eq!(asked, expected);
        outcome
    })
}

pub(crate) fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// The name of a VDI's volume in the SR.
pub(crate) fn name(n: u128) -> String {
    use array_kit::names::{Codec, NameRule, Role};
    let sr: SrUuid = SR.parse().unwrap();
    Codec::new(NameRule::new(63), sr).unwrap().name(Role::Disk, uuid(n))
}

pub(crate) fn volume(n: u128) -> Volume {
    let (name, size) = (name(n), Bytes(1 << 30));
    Volume { id: format!("{FOLDER}/{name}"), name, size, ..Volume::default() }
}

/// A path as one segment of a URL.
pub(crate) fn encoded(path: &str) -> String {
    path.replace('/', "%2F").replace('@', "%40")
}

pub(crate) fn initiator() -> Initiator {
    let iqn = "iqn.1993-08.org.debian:01:222".to_owned();
    Initiator { host: "host1".to_owned(), iqn, chap: None }
}

/// What TrueNAS calls the target of [`initiator`] in the SR.
pub(crate) const DOOR: &str = "sm-0b0b0b0b111122223333444455556666-980a96cd";
