//! The array's API: session, refusals, pages.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use array_kit::pages::by_offset;
use array_kit::prelude::*;
use array_kit::retry::RetryPolicy;

use crate::array::Shelf;

/// Objects in one page of a listing: few, so that a listing has several.
const PAGE: usize = 10;

/// What the vendor's codes mean, and those that a defect has made up.
const TABLE: Table = Table::new(&[
    Row::codes(&["0xE0A08001000E", "0xE04040020002", "0xE04040020009"]).is(Class::NotFound),
    Row::text("already in use").is(Class::AlreadyExists),
    Row::code("0xE0A040010003").is(Class::LimitReached),
    Row::code("0xE04040010005").done(),
    Row::code("busy-is-no").is(Class::Invalid),
    Row::of_status(403).is(Class::Expired),
    Row::of_status(416).done(),
]);

/// A session: a cookie, and the token that goes with each change.
#[derive(Clone)]
pub(crate) struct Token {
    cookie: Secret,
    csrf: Secret,
}

/// What is peculiar to the vendor, and what is wrong.
pub(crate) struct Web {
    user: String,
    password: Secret,
    defect: String,
    first: Mutex<Option<Token>>,
}

impl Web {
    pub(crate) fn new(user: String, password: Secret, defect: String) -> Self {
        Self { user, password, defect, first: Mutex::new(None) }
    }

    /// Whether the driver has this defect.
    pub(crate) fn is(&self, defect: &str) -> bool {
        self.defect == defect
    }

    /// What begins a session.
    pub(crate) fn begin(&self) -> Request {
        let request = Request::get("login", "login_session");
        request.header("authorization", basic(&self.user, &self.password))
    }

    fn first(&self) -> std::sync::MutexGuard<'_, Option<Token>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vendor for Web {
    type Token = Token;

    const TABLE: Table = TABLE;

    fn root(&self) -> String {
        "/api/rest/".to_owned()
    }

    fn retry(&self) -> RetryPolicy {
        if self.is("no-pause") {
            return RetryPolicy { tries: u32::MAX, first: Duration::ZERO, longest: Duration::ZERO };
        }
        RetryPolicy { tries: 6, first: Duration::from_millis(50), ..RetryPolicy::default() }
    }

    fn fault(&self, reply: &Reply) -> Option<Fault> {
        if reply.is_success() {
            return None;
        }
        let body: Value = reply.json().unwrap_or_default();
        let mut code = body.texts("messages", "code").into_iter().next();
        if self.is("busy-is-no") && reply.status() == 503 {
            code = Some("busy-is-no".to_owned());
        }
        let message = body.texts("messages", "message_l10n").join("; ");
        let retry_after = self.is("no-time-told").then_some(Duration::ZERO);
        Some(Fault { code, message, retry_after, ..Fault::default() })
    }

    async fn login(&self, door: &Door<'_, Self>) -> Outcome<Token> {
        let kept = self.first().clone();
        if let Some(token) = kept.filter(|_| self.is("first-session")) {
            return Ok(token);
        }
        let reply = door.send(self.begin()).await?;
        match (reply.cookie("auth_cookie"), reply.header("dell-emc-token")) {
            (Some(cookie), Some(csrf)) => {
                let cookie = Secret::from(format!("auth_cookie={cookie}"));
                let token = Token { cookie, csrf: Secret::from(csrf) };
                *self.first() = Some(token.clone());
                Ok(token)
            }
            _ => Err(Failure::new(Class::Garbled).fact("the login brought no session")),
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
        Some(Request::post("logout", "logout").json(&json!({})))
    }
}

impl Shelf {
    /// Sends a request, with the time that the call has.
    async fn ask(&self, cx: &Cx, request: Request) -> Outcome<Reply> {
        let deaf = cx.shielded();
        let cx = if self.is("deaf-to-time") { &deaf } else { cx };
        self.api.send(cx, request).await
    }

    /// The objects of a listing, one page of it.
    pub(crate) async fn page(&self, cx: &Cx, request: Request) -> Outcome<Vec<Value>> {
        let reply = self.ask(cx, request).await?;
        // Objects went away meanwhile: an empty page begins the listing anew.
        let found = if reply.status() == 416 { Ok(Vec::new()) } else { reply.json() };
        if self.is("garbage-is-empty") { Ok(found.unwrap_or_default()) } else { found }
    }

    /// All objects of a listing, by their ids.
    pub(crate) async fn all(&self, cx: &Cx, listing: &Request) -> Outcome<Vec<Value>> {
        let fetch = |offset: usize| async move {
            let page = listing.clone().query("order", "id").query("limit", &PAGE.to_string());
            match self.page(cx, page.query("offset", &offset.to_string())).await {
                Err(lost) if lost.class == Class::Unreachable && self.is("half-a-listing") => {
                    Ok(Vec::new())
                }
                other => other,
            }
        };
        if self.is("page-two") {
            return fetch(0).await;
        }
        by_offset("volumes", PAGE, |one: &Value| one.text("id"), fetch).await
    }

    /// A change.
    async fn change(&self, cx: &Cx, request: Request) -> Outcome<Reply> {
        if self.is("session-each") {
            self.ask(cx, self.api.vendor().begin()).await?;
        }
        let done = self.ask(cx, request).await;
        done.map_err(|failure| match failure.class {
            Class::Unknown if self.is("lost-is-refused") => failure.reclassed(Class::Invalid),
            _ => failure,
        })
    }

    /// Makes something, and answers its id.
    pub(crate) async fn made(&self, cx: &Cx, request: Request) -> Outcome<String> {
        let reply = self.change(cx, request).await?;
        let id = reply.json().and_then(|answer: Value| Ok(answer.need("id")?.to_owned()));
        // It may have been made: whoever asked looks.
        id.map_err(|failure| failure.reclassed(Class::Unknown))
    }

    /// A change whose answer says no more than that it is done.
    pub(crate) async fn just(&self, cx: &Cx, request: Request) -> Outcome<()> {
        let reply = self.change(cx, request).await?;
        if !reply.body().is_empty() && !self.is("page-is-success") {
            reply.json::<Value>().map_err(|failure| failure.reclassed(Class::Unknown))?;
        }
        Ok(())
    }
}
