//! The array's API: its session, its refusals, its pages.

use array_kit::pages::by_offset;
use array_kit::prelude::*;

use crate::array::PowerStore;

/// Objects in one page of a listing, which is the array's default.
const PAGE: usize = 1000;

/// What its refusals mean. One status stands for many things, so the codes count, where one is known;
/// the same code may come with several statuses.
const TABLE: Table = Table::new(&[
    // Not attached, by the volume and by the host; no such host.
    Row::codes(&["0xE0A08001000F", "0xE0A01001001E", "0xE0A010010003"]).on("unmap").done(),
    Row::codes(&["0xE0A08001000E", "0xE04040020002", "0xE04040020009", "0xE0A010010003"])
        .is(Class::NotFound),
    // Names of volumes, snapshots, limits and policies.
    Row::codes(&["0xE0A080010014", "0xE0A060010012", "0xE0A0E0010009", "0xE02020010004"])
        .is(Class::AlreadyExists),
    Row::code("0xE0A040010003").is(Class::LimitReached),
    Row::code("0xE0A080020001").is(Class::InUse),
    // A page past the end.
    Row::code("0xE04040010005").done(),
    Row::texts(&["already in use", "already exists"]).is(Class::AlreadyExists),
    Row::texts(&["insufficient space", "out of space"]).is(Class::NoSpace),
    Row::text("system limit").is(Class::LimitReached),
    // Of which no code is known: what the array refuses because somebody uses it.
    Row::of_status(422).on("host_delete").is(Class::InUse),
    Row::of_status(422).on("policy_delete").is(Class::InUse),
    Row::of_status(422).on("map").is(Class::InUse),
    // An initiator that another entry has.
    Row::of_status(400).on("host_create").is(Class::AlreadyExists),
    Row::of_status(422).on("host_create").is(Class::AlreadyExists),
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
    pub(crate) user: String,
    pub(crate) password: Secret,
}

impl Vendor for Web {
    type Token = Token;

    const TABLE: Table = TABLE;

    fn root(&self) -> String {
        "/api/rest/".to_owned()
    }

    fn fault(&self, reply: &Reply) -> Option<Fault> {
        if reply.is_success() {
            return None;
        }
        let body: Value = reply.json().unwrap_or_default();
        let code = body.texts("messages", "code").into_iter().next();
        let message = body.texts("messages", "message_l10n").join("; ");
        Some(Fault { code, message, ..Fault::default() })
    }

    async fn login(&self, door: &Door<'_, Self>) -> Outcome<Token> {
        let request = Request::get("login", "login_session");
        let request = request.header("authorization", basic(&self.user, &self.password));
        let reply = door.send(request).await?;
        match (reply.cookie("auth_cookie"), reply.header("dell-emc-token")) {
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
        Some(Request::post("logout", "logout").json(&json!({})))
    }
}

impl PowerStore {
    /// The object that a listing finds, if there is one. Without `select` the array answers its id alone.
    pub(crate) async fn first(&self, cx: &Cx, request: Request) -> Outcome<Option<Value>> {
        let found: Vec<Value> = self.api.json(cx, request).await?;
        Ok(found.into_iter().next())
    }

    /// All objects of a listing, by their ids.
    pub(crate) async fn all(&self, cx: &Cx, listing: &Request) -> Outcome<Vec<Value>> {
        let fetch = |offset: usize| async move {
            let page = listing.clone().query("order", "id").query("limit", &PAGE.to_string());
            let reply = self.api.send(cx, page.query("offset", &offset.to_string())).await?;
            // Objects went away meanwhile: an empty page begins the listing anew.
            if reply.status() == 416 { Ok(Vec::new()) } else { reply.json() }
        };
        by_offset("volumes", PAGE, |one: &Value| one.text("id"), fetch).await
    }

    /// Makes something, and answers its id.
    pub(crate) async fn made(&self, cx: &Cx, request: Request) -> Outcome<String> {
        let answer: Value = self.api.json(cx, request).await?;
        // It may have been made: whoever asked looks.
        let id = answer.need("id").map_err(|failure| failure.reclassed(Class::Unknown))?;
        Ok(id.to_owned())
    }
}
