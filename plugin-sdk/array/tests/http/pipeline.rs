//! Session, retries and classes together, against scripted replies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use array_kit::classify::{Fault, Row, Table};
use array_kit::http::{Reply, Request};
use array_kit::outcome::{Class, Failure, Outcome};
use array_kit::rest::{Door, Rest, Vendor};
use array_kit::retry::RetryPolicy;
use plugin_sdk::{Error, Secret, tokio};
use serde::Deserialize;
use serde_json::json;
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, Request as Received, Respond, ResponseTemplate};

use crate::{CANARY, plain, with_cx};

const LIMIT: Duration = Duration::from_secs(30);

/// The shape of a vendor's crate: a table, a login, a fault.
struct Acme;

#[derive(Deserialize)]
struct Body {
    errors: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    message: String,
}

impl Vendor for Acme {
    type Token = Secret;

    const TABLE: Table = Table::new(&[
        Row::exactly("Server is busy").status(500).is(Class::Busy),
        Row::text("already exists").is(Class::AlreadyExists),
        Row::text("does not exist").is(Class::NotFound),
    ]);

    fn retry(&self) -> RetryPolicy {
        RetryPolicy {
            tries: 4,
            first: Duration::from_millis(4),
            longest: Duration::from_millis(20),
        }
    }

    fn fault(&self, reply: &Reply) -> Option<Fault> {
        if reply.is_success() {
            return None;
        }
        let body: Option<Body> = reply.json().ok();
        let message = body.and_then(|body| body.errors.into_iter().next()).map(|text| text.message);
        Some(Fault { message: message.unwrap_or_default(), ..Fault::default() })
    }

    async fn login(&self, door: &Door<'_, Self>) -> Outcome<Secret> {
        let reply = door.send(Request::post("login", "/login").header("api-token", CANARY)).await?;
        let token = reply.header("x-auth-token");
        token.map(Secret::from).ok_or_else(|| Failure::new(Class::Garbled))
    }

    fn sign(&self, token: &Secret, request: Request) -> Request {
        request.header("x-auth-token", token.clone())
    }

    fn secrets(&self, token: &Secret) -> Vec<Secret> {
        vec![token.clone()]
    }

    fn learn(&self, _: &Secret, reply: &Reply) -> Option<Secret> {
        reply.header("x-next-auth").map(Secret::from)
    }

    fn logout(&self, _: &Secret) -> Option<Request> {
        Some(Request::post("logout", "/logout"))
    }
}

fn rest(server: &MockServer) -> Rest<Acme> {
    Rest::new(Acme, plain(&server.uri()))
}

/// Gives each login another token.
#[derive(Clone, Default)]
struct Logins(Arc<AtomicU32>);

impl Respond for Logins {
    fn respond(&self, _: &Received) -> ResponseTemplate {
        let n = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        ResponseTemplate::new(200)
            .insert_header("x-auth-token", format!("token-{n}"))
            .set_delay(Duration::from_millis(50))
    }
}

async fn with_logins(server: &MockServer) -> Logins {
    let logins = Logins::default();
    Mock::given(method("POST"))
        .and(path("/login"))
        .respond_with(logins.clone())
        .mount(server)
        .await;
    logins
}

/// Answers one after the other; the last for good.
struct Script(Vec<ResponseTemplate>, AtomicU32);

impl Script {
    fn new(replies: Vec<ResponseTemplate>) -> Self {
        Self(replies, AtomicU32::new(0))
    }
}

impl Respond for Script {
    fn respond(&self, _: &Received) -> ResponseTemplate {
        let n = self.1.fetch_add(1, Ordering::SeqCst) as usize;
        self.0[n.min(self.0.len() - 1)].clone()
    }
}

fn errors(status: u16, message: &str) -> ResponseTemplate {
    ResponseTemplate::new(status).set_body_json(json!({ "errors": [{ "message": message }] }))
}

async fn asked(server: &MockServer, at: &str) -> usize {
    let all = server.received_requests().await.unwrap();
    all.iter().filter(|request| request.url.path() == at).count()
}

/// Eight tasks whose session ended make one new login, and all succeed.
#[test]
fn eight_tasks_with_an_ended_session_log_in_once() {
    with_cx(LIMIT, |cx| async move {
        let server = MockServer::start().await;
        let logins = with_logins(&server).await;
        // The first token ends at once, the second works.
        Mock::given(path("/v"))
            .and(header("x-auth-token", "token-1"))
            .respond_with(ResponseTemplate::new(401).set_delay(Duration::from_millis(30)))
            .mount(&server)
            .await;
        Mock::given(path("/v"))
            .and(header("x-auth-token", "token-2"))
            .respond_with(ResponseTemplate::new(200).set_body_json(7))
            .mount(&server)
            .await;
        let rest = Arc::new(rest(&server));
        let barrier = Arc::new(tokio::sync::Barrier::new(8));
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (rest, cx, barrier) = (Arc::clone(&rest), cx.clone(), Arc::clone(&barrier));
                tokio::spawn(async move {
                    barrier.wait().await;
                    rest.json::<u32>(&cx, Request::post("create", "/v")).await
                })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap().map_err(Error::from)?, 7);
        }
        assert_eq!(logins.0.load(Ordering::SeqCst), 2, "one login, and one after the end");
        rest.close(&cx).await;
        assert_eq!(asked(&server, "/logout").await, 1);
        Ok(())
    });
}

/// A token that comes with an answer is used from then on; no login is needed for it.
#[test]
fn a_token_that_changes_with_an_answer_is_used() {
    with_cx(LIMIT, |cx| async move {
        let server = MockServer::start().await;
        let logins = with_logins(&server).await;
        for (token, next) in [("token-1", "csrf-2"), ("csrf-2", "csrf-3")] {
            let reply = ResponseTemplate::new(200).insert_header("x-next-auth", next);
            Mock::given(path("/v"))
                .and(header("x-auth-token", token))
                .respond_with(reply)
                .mount(&server)
                .await;
        }
        let rest = rest(&server);
        for _ in 0..2 {
            rest.send(&cx, Request::post("create", "/v")).await.map_err(Error::from)?;
        }
        assert_eq!(logins.0.load(Ordering::SeqCst), 1);
        Ok(())
    });
}

/// A wrong password is asked once, whoever needs a session afterwards: arrays lock accounts.
#[test]
fn a_wrong_password_is_never_tried_again() {
    with_cx(LIMIT, |cx| async move {
        let server = MockServer::start().await;
        let reply = errors(401, &format!("Invalid credentials {CANARY}"));
        Mock::given(path("/login")).respond_with(reply).mount(&server).await;
        let rest = rest(&server);
        for _ in 0..3 {
            let failure = rest.send(&cx, Request::get("get", "/v")).await.map(|_| ()).unwrap_err();
            assert_eq!(failure.class, Class::Denied);
            let error = Error::from(failure);
            assert_eq!(error.message, "the array does not accept user and password");
            assert_eq!(error.backend.as_deref(), Some("Invalid credentials ***"));
        }
        assert!(rest.is_denied());
        assert_eq!(asked(&server, "/login").await, 1);
        assert_eq!(asked(&server, "/v").await, 0);
        Ok(())
    });
}

/// Busy also at login; and what the array says it needs is the least that is waited.
#[test]
fn retry_after_is_waited_for_at_least() {
    with_cx(LIMIT, |cx| async move {
        let server = MockServer::start().await;
        let login = vec![
            errors(500, "Server is busy"),
            ResponseTemplate::new(200).insert_header("x-auth-token", "t-1234"),
        ];
        Mock::given(path("/login")).respond_with(Script::new(login)).mount(&server).await;
        let replies = vec![
            ResponseTemplate::new(429).insert_header("Retry-After", "1"),
            ResponseTemplate::new(200),
        ];
        Mock::given(path("/v")).respond_with(Script::new(replies)).mount(&server).await;
        let started = Instant::now();
        rest(&server).send(&cx, Request::post("create", "/v")).await.map_err(Error::from)?;
        // No upper bound: this is a promise to the array, not of speed.
        assert!(started.elapsed() >= Duration::from_secs(1));
        assert_eq!(asked(&server, "/v").await, 2);
        Ok(())
    });
}

/// Later than the call may last: the caller is told when, and nobody waits.
#[test]
fn a_retry_after_beyond_the_calls_time_ends_the_call() {
    with_cx(Duration::from_secs(10), |cx| async move {
        let server = MockServer::start().await;
        with_logins(&server).await;
        let reply = ResponseTemplate::new(503).insert_header("Retry-After", "3600");
        Mock::given(path("/v")).respond_with(reply).mount(&server).await;
        let failure =
            rest(&server).send(&cx, Request::get("get", "/v")).await.map(|_| ()).unwrap_err();
        assert_eq!(failure.class, Class::Busy);
        assert_eq!(failure.retry_after, Some(Duration::from_secs(3600)));
        assert_eq!(asked(&server, "/v").await, 1);
        Ok(())
    });
}

/// Whether something was done decides who may ask again.
#[test]
fn a_change_is_repeated_only_if_it_was_certainly_not_done() {
    with_cx(LIMIT, |cx| async move {
        // Status, text, requests of a read, requests of a change, class of the change.
        let cases = [
            (503, "", 4, 4, Class::Busy),
            (429, "", 4, 4, Class::Busy),
            (500, "Server is busy", 4, 4, Class::Busy),
            (500, "Internal error", 4, 1, Class::Unknown),
            (502, "", 4, 1, Class::Unknown),
            (504, "", 4, 1, Class::Unknown),
            (400, "Volume does not exist.", 1, 1, Class::NotFound),
            (400, "Volume already exists.", 1, 1, Class::AlreadyExists),
            (400, "no such parameter", 1, 1, Class::Invalid),
        ];
        for (status, text, reads, changes, class) in cases {
            let server = MockServer::start().await;
            with_logins(&server).await;
            Mock::given(path("/v")).respond_with(errors(status, text)).mount(&server).await;
            let rest = rest(&server);
            rest.send(&cx, Request::get("get", "/v")).await.map(|_| ()).unwrap_err();
            assert_eq!(asked(&server, "/v").await, reads, "{status} {text}");
            let failure =
                rest.send(&cx, Request::post("create", "/v")).await.map(|_| ()).unwrap_err();
            assert_eq!(failure.class, class, "{status} {text}");
            assert_eq!(asked(&server, "/v").await, reads + changes, "{status} {text}");
        }
        Ok(())
    });
}

/// 200 with a login page: a read that says so, a change that may have been done.
#[test]
fn a_login_page_is_not_an_answer() {
    with_cx(LIMIT, |cx| async move {
        let server = MockServer::start().await;
        with_logins(&server).await;
        let page = "<html><head><title>Please log in</title></head></html>";
        let reply = ResponseTemplate::new(200).set_body_raw(page, "text/html");
        Mock::given(path("/v")).respond_with(reply).mount(&server).await;
        let rest = rest(&server);
        let failure = rest.json::<u32>(&cx, Request::get("get", "/v")).await.unwrap_err();
        assert_eq!(failure.class, Class::Garbled);
        let error = Error::from(failure);
        assert_eq!(
            error.message,
            "GET /v was answered with an HTML page, titled \"Please log in\" and status 200, not \
             with JSON"
        );
        let failure = rest.json::<u32>(&cx, Request::post("create", "/v")).await.unwrap_err();
        assert_eq!(failure.class, Class::Unknown);
        Ok(())
    });
}

/// A secret in a header, a body, a query, a cookie, an array's words: it is in no log, record or
/// error.
#[test]
fn no_secret_is_recorded() {
    let host = with_cx(LIMIT, |cx| async move {
        let server = MockServer::start().await;
        let reply = ResponseTemplate::new(200)
            .insert_header("x-auth-token", CANARY)
            .insert_header("set-cookie", format!("auth_cookie={CANARY}"));
        Mock::given(path("/login")).respond_with(reply).mount(&server).await;
        let words = errors(400, &format!("host exists with secret {CANARY}"));
        Mock::given(path(format!("/host/{CANARY}"))).respond_with(words).mount(&server).await;
        let rest = rest(&server);
        let request = Request::post("host_create", "/host")
            .segment(CANARY)
            .query("chap", CANARY)
            .json(&json!({ "chap_password": CANARY }));
        let failure = rest.send(&cx, request).await.map(|_| ()).unwrap_err();
        let error = Error::from(failure.clone());
        let recorder = rest.client().recorder();
        let lines: Vec<String> =
            recorder.entries().iter().map(|entry| format!("{entry} {entry:?}")).collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[1].contains("POST /host/*** 400"), "{lines:?}");
        for text in [format!("{failure} {failure:?}"), format!("{error:?}"), lines.join("\n")] {
            assert!(!text.contains(CANARY), "{text}");
            assert!(!text.contains("chap"), "{text}");
        }
        Ok(())
    });
    let logs = format!("{:?}", host.logs());
    assert!(!logs.contains(CANARY), "{logs}");
}
