//! The array's API: its session, its refusals, its pages.

use array_kit::classify::{Fault, Row, Table};
use array_kit::http::{Client, Limits, Reply, Request, Trust, basic};
use array_kit::outcome::{Class, Failure, Outcome};
use array_kit::pages::by_offset;
use array_kit::recorder::{Recorder, Redactor};
use array_kit::rest::{Door, Rest, Vendor};
use plugin_sdk::{Cx, Result, Secret};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Objects in one page of a listing, which is the array's default.
const PAGE: usize = 1000;

/// No host of that id.
pub(crate) const NO_HOST: &str = "0xE0A010010003";
/// A page past the end.
const BAD_RANGE: &str = "0xE04040010005";

/// What its refusals mean. One status stands for many things, so the codes count, where one is known;
/// the same code may come with several statuses.
const TABLE: Table = Table::new(&[
    Row::code("0xE0A08001000E").is(Class::NotFound),
    Row::code("0xE04040020002").is(Class::NotFound),
    Row::code("0xE04040020009").is(Class::NotFound),
    // Names of volumes, snapshots, limits and policies.
    Row::code("0xE0A080010014").is(Class::AlreadyExists),
    Row::code("0xE0A060010012").is(Class::AlreadyExists),
    Row::code("0xE0A0E0010009").is(Class::AlreadyExists),
    Row::code("0xE02020010004").is(Class::AlreadyExists),
    Row::code("0xE0A040010003").is(Class::LimitReached),
    Row::code("0xE0A080020001").is(Class::InUse),
    // Not attached, by the volume and by the host.
    Row::code("0xE0A08001000F").on("unmap").done(),
    Row::code("0xE0A01001001E").on("unmap").done(),
    Row::code(NO_HOST).on("unmap").done(),
    Row::code(NO_HOST).is(Class::NotFound),
    Row::code(BAD_RANGE).done(),
    Row::text("already in use").is(Class::AlreadyExists),
    Row::text("already exists").is(Class::AlreadyExists),
    Row::text("insufficient space").is(Class::NoSpace),
    Row::text("out of space").is(Class::NoSpace),
    Row::text("system limit").is(Class::LimitReached),
    // Of which no code is known: what the array refuses because somebody uses it.
    Row::of_status(422).on("host_delete").is(Class::InUse),
    Row::of_status(422).on("policy_delete").is(Class::InUse),
    Row::of_status(422).on("map").is(Class::InUse),
    // The session has ended, or its token is not the newest one.
    Row::of_status(403).is(Class::Expired),
    Row::of_status(416).done(),
]);

/// A session: a cookie, and the token that goes with each change.
#[derive(Clone)]
pub(crate) struct Token {
    cookie: Secret,
    csrf: Secret,
}

/// What is peculiar to PowerStore, for [`Rest`].
pub(crate) struct Web {
    user: String,
    password: Secret,
}

impl Vendor for Web {
    type Token = Token;

    const TABLE: Table = TABLE;

    fn fault(&self, reply: &Reply) -> Option<Fault> {
        if reply.is_success() {
            return None;
        }
        let body: Value = reply.json().unwrap_or_default();
        let messages = body.get("messages").and_then(Value::as_array);
        let all = messages.map(Vec::as_slice).unwrap_or_default();
        let text = |one: &Value, key| one.get(key).and_then(Value::as_str).map(str::to_owned);
        let words: Vec<String> = all.iter().filter_map(|one| text(one, "message_l10n")).collect();
        let code = all.iter().find_map(|one| text(one, "code"));
        Some(Fault { code, message: words.join("; "), ..Fault::default() })
    }

    async fn login(&self, door: &Door<'_, Self>) -> Outcome<Token> {
        let request = Request::get("login", "/api/rest/login_session");
        let reply =
            door.send(request.header("authorization", basic(&self.user, &self.password))).await?;
        let (cookie, csrf) = (reply.cookie("auth_cookie"), reply.header("dell-emc-token"));
        match (cookie, csrf) {
            (Some(cookie), Some(csrf)) => {
                let cookie = Secret::from(format!("auth_cookie={cookie}"));
                Ok(Token { cookie, csrf: Secret::from(csrf) })
            }
            _ => Err(Failure::new(Class::Garbled)
                .fact("the answer to the login brought no session")
                .hint("look whether the address is that of a PowerStore's management")),
        }
    }

    fn sign(&self, token: &Token, request: Request) -> Request {
        request.header("cookie", token.cookie.clone()).header("dell-emc-token", token.csrf.clone())
    }

    fn secrets(&self, token: &Token) -> Vec<Secret> {
        vec![token.cookie.clone(), token.csrf.clone()]
    }

    fn learn(&self, token: &Token, reply: &Reply) -> Option<Token> {
        let csrf = reply.header("dell-emc-token").filter(|new| *new != token.csrf.reveal())?;
        Some(Token { cookie: token.cookie.clone(), csrf: Secret::from(csrf) })
    }

    fn logout(&self, _: &Token) -> Option<Request> {
        Some(Request::post("logout", "/api/rest/logout").json(&serde_json::json!({})))
    }
}

/// The path of a collection, or of what is below it.
pub(crate) fn path(rest: &str) -> String {
    format!("/api/rest/{rest}")
}

/// The API, logged in.
pub(crate) struct Api {
    pub(crate) rest: Rest<Web>,
}

impl Api {
    /// Logs in.
    pub(crate) async fn open(
        cx: &Cx,
        base: &str,
        trust: &Trust,
        user: String,
        password: Secret,
    ) -> Result<Self> {
        let redactor = Redactor::default();
        redactor.learn(&password);
        let client = Client::new(base, trust, Limits::default(), Recorder::new(redactor))?;
        let rest = Rest::new(Web { user, password }, client);
        rest.connect(cx).await?;
        Ok(Self { rest })
    }

    /// The objects of a collection that match, of which there is one page at most. Without `select`
    /// the array answers ids alone.
    pub(crate) async fn few<T: DeserializeOwned>(
        &self,
        cx: &Cx,
        operation: &'static str,
        resource: &str,
        query: &[(&str, &str)],
    ) -> Outcome<Vec<T>> {
        self.rest.json(cx, asked(operation, resource, query)).await
    }

    /// All objects of a collection that match, by their ids.
    pub(crate) async fn all<T: DeserializeOwned + Send>(
        &self,
        cx: &Cx,
        operation: &'static str,
        resource: &str,
        query: &[(&str, &str)],
        id: fn(&T) -> &str,
    ) -> Outcome<Vec<T>> {
        let fetch = |offset: usize| async move {
            let page = asked(operation, resource, query).query("order", "id");
            let page = page.query("limit", &PAGE.to_string()).query("offset", &offset.to_string());
            let reply = self.rest.send(cx, page).await?;
            // Objects went away meanwhile: an empty page begins the listing anew.
            if reply.status() == 416 { Ok(Vec::new()) } else { reply.json() }
        };
        by_offset(resource, PAGE, id, fetch).await
    }

    /// Changes something that answers with no more than that it is done. A page for people, which a
    /// proxy answers with the same status, is no answer.
    pub(crate) async fn just(&self, cx: &Cx, request: Request) -> Outcome<()> {
        let reply = self.rest.send(cx, request).await?;
        if reply.status() == 204 {
            return Ok(());
        }
        let read: Outcome<Value> = reply.json();
        read.map(drop).map_err(|failure| failure.reclassed(Class::Unknown))
    }

    /// Makes something, and answers its id.
    pub(crate) async fn made(&self, cx: &Cx, request: Request) -> Outcome<String> {
        let answer: Value = self.rest.json(cx, request).await?;
        // It may have been made: whoever asked looks.
        let none = || Failure::new(Class::Unknown).fact("the array does not say what it has made");
        Ok(answer.get("id").and_then(Value::as_str).ok_or_else(none)?.to_owned())
    }
}

fn asked(operation: &'static str, resource: &str, query: &[(&str, &str)]) -> Request {
    let request = Request::get(operation, &path(resource));
    query.iter().fold(request, |request, (name, value)| request.query(name, value))
}
