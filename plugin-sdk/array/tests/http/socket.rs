//! JSON-RPC over a WebSocket, against servers that misbehave.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use array_kit::classify::{Fault, Row, Table};
use array_kit::http::{Limits, Trust};
use array_kit::outcome::{Class, Failure, Outcome};
use array_kit::recorder::{Recorder, Redactor};
use array_kit::retry::RetryPolicy;
use array_kit::rpc::{Call, Line, Peer, Rpc};
use futures_util::{SinkExt as _, StreamExt as _};
use plugin_sdk::tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use plugin_sdk::tokio::net::{TcpListener, TcpStream};
use plugin_sdk::{Secret, tokio};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};

use crate::{CANARY, with_cx};

const LIMIT: Duration = Duration::from_secs(30);

struct Plain;

impl Peer for Plain {
    const TABLE: Table = Table::new(&[
        Row::text("not authenticated").is(Class::Expired),
        Row::text("busy").is(Class::Busy),
        Row::text("no such").is(Class::NotFound),
    ]);

    fn retry(&self) -> RetryPolicy {
        let (first, longest) = (Duration::from_millis(4), Duration::from_millis(20));
        RetryPolicy { tries: 4, first, longest }
    }

    fn fault(&self, error: &Value) -> Fault {
        let message = error["message"].as_str().unwrap_or_default().to_owned();
        Fault { status: Some(422), message, ..Fault::default() }
    }

    async fn login(&self, line: &Line<'_, Self>) -> Outcome<()> {
        match line.call(call("login", &json!([CANARY]), false)).await? {
            Value::Bool(true) => Ok(()),
            _ => Err(Failure::new(Class::Denied)),
        }
    }
}

fn call(method: &'static str, params: &Value, mutating: bool) -> Call {
    let params = params.as_array().cloned().unwrap_or_default();
    Call { operation: method, method: method.to_owned(), params, mutating }
}

fn recorder() -> Recorder {
    let redactor = Redactor::default();
    redactor.learn(&Secret::from(CANARY));
    Recorder::new(redactor)
}

fn rpc(base: &str, read: Duration) -> Rpc<Plain> {
    let limits = Limits { connect: Duration::from_secs(5), read, ..Limits::default() };
    let nobody = Trust::Fingerprint("00".repeat(32));
    Rpc::new(Plain, base, "/api", &nobody, limits, recorder()).unwrap()
}

/// How a server answers a call; `None` ends the connection.
type Answers = fn(u32, &str) -> Option<Value>;

/// A server, and how many have logged in. The first number of [`Answers`] is that of the connection.
async fn server(answers: Answers) -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let logins = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&logins);
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            let logins = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut socket: WebSocketStream<TcpStream> = accept_async(stream).await.unwrap();
                while let Some(Ok(message)) = socket.next().await {
                    let Message::Text(text) = message else { continue };
                    let asked: Value = serde_json::from_str(&text).unwrap();
                    let method = asked["method"].as_str().unwrap();
                    let mut answer = match method {
                        "login" => {
                            logins.fetch_add(1, Ordering::SeqCst);
                            json!({ "result": asked["params"] == json!([CANARY]) })
                        }
                        _ => match answers(number, method) {
                            Some(answer) => answer,
                            None => return,
                        },
                    };
                    answer["id"] = asked["id"].clone();
                    let _ = socket.send(Message::text(answer.to_string())).await;
                }
            });
        }
    });
    (base, logins)
}

/// What was under way when the connection ended may have been done; what reads is asked again.
#[test]
fn a_connection_that_ends_leaves_a_change_open_and_a_read_repeated() {
    with_cx(LIMIT, |cx| async move {
        let answers: Answers = |number, method| match (number, method) {
            (0, _) | (_, "create") => None,
            _ => Some(json!({ "result": "read" })),
        };
        let (base, logins) = server(answers).await;
        let rpc = rpc(&base, Duration::from_secs(5));
        let failure = rpc.call(&cx, &call("create", &json!([]), true)).await.unwrap_err();
        assert_eq!(failure.class, Class::Unknown);
        assert!(
            failure.to_string().starts_with("the connection ended before the answer to create")
        );
        let read = rpc.call(&cx, &call("get", &json!([]), false)).await.unwrap();
        assert_eq!((read, logins.load(Ordering::SeqCst)), (json!("read"), 2));
        Ok(())
    });
}

#[test]
fn eight_that_find_the_session_ended_make_one_login() {
    with_cx(LIMIT, |cx| async move {
        let answers: Answers = |number, _| match number {
            0 => Some(json!({ "error": { "message": "Not authenticated" } })),
            _ => Some(json!({ "result": 1 })),
        };
        let (base, logins) = server(answers).await;
        let rpc = Arc::new(rpc(&base, Duration::from_secs(5)));
        rpc.connect(&cx).await.unwrap();
        let all = (0..8).map(|_| {
            let (rpc, cx) = (Arc::clone(&rpc), cx.clone());
            tokio::spawn(async move { rpc.call(&cx, &call("create", &json!([]), true)).await })
        });
        for one in all.collect::<Vec<_>>() {
            assert_eq!(one.await.unwrap().unwrap(), json!(1));
        }
        assert_eq!(logins.load(Ordering::SeqCst), 2);
        Ok(())
    });
}

/// A peer that is gone without a word answers no ping: the call does not wait for its whole limit.
#[test]
fn a_peer_that_says_nothing_at_all_is_given_up() {
    with_cx(LIMIT, |cx| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut socket = accept_async(stream).await.unwrap();
            let _login = socket.next().await;
            socket.send(Message::text(r#"{"id":1,"result":true}"#)).await.unwrap();
            // Reads nothing more, so that its WebSocket answers no ping.
            std::future::pending::<()>().await;
        });
        let rpc = rpc(&base, Duration::from_millis(300));
        let failure = rpc.call(&cx, &call("create", &json!([]), true)).await.unwrap_err();
        assert_eq!(
            (failure.class, failure.to_string().as_str()),
            (
                Class::Unknown,
                "the connection ended before the answer to create: nothing was heard for 0.3 s"
            )
        );
        Ok(())
    });
}

#[test]
fn a_server_without_websockets_is_told_apart_from_one_that_is_down() {
    with_cx(LIMIT, |cx| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        });
        let rpc = rpc(&base, Duration::from_secs(5));
        let failure = rpc.connect(&cx).await.unwrap_err();
        assert_eq!((failure.class, failure.status), (Class::Unsupported, Some(404)));
        let failure = rpc.connect(&cx).await.unwrap_err();
        assert_eq!(failure.class, Class::Unreachable);
        Ok(())
    });
}

#[test]
fn a_refused_login_is_final_and_no_secret_is_told() {
    with_cx(LIMIT, |cx| async move {
        struct Wrong;
        impl Peer for Wrong {
            const TABLE: Table = Plain::TABLE;

            fn fault(&self, error: &Value) -> Fault {
                Plain.fault(error)
            }

            async fn login(&self, line: &Line<'_, Self>) -> Outcome<()> {
                line.call(call("auth", &json!([CANARY]), false)).await.map(drop)
            }
        }
        let answers: Answers =
            |_, _| Some(json!({ "error": { "message": format!("Not authenticated: {CANARY}") } }));
        let (base, _) = server(answers).await;
        let (limits, record) = (Limits::default(), recorder());
        let nobody = Trust::Fingerprint("00".repeat(32));
        let rpc = Rpc::new(Wrong, &base, "/api", &nobody, limits, record.clone()).unwrap();
        for _ in 0..3 {
            let failure = rpc.call(&cx, &call("get", &json!([]), false)).await.unwrap_err();
            assert_eq!(failure.class, Class::Denied);
            assert!(!format!("{failure:?}").contains(CANARY));
        }
        assert!(rpc.is_denied());
        let lines: Vec<String> = record.entries().iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 1, "asked once: {lines:?}");
        assert!(lines[0].contains("RPC auth Denied") || lines[0].contains("RPC auth Expired"));
        assert!(!lines[0].contains(CANARY));
        Ok(())
    });
}
