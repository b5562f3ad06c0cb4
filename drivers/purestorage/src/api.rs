//! The array's API: how it is entered, what its refusals mean, listings in pages.

use std::sync::OnceLock;

use array_kit::pages::{self, Cursor, Page};
use array_kit::prelude::*;
use serde::Deserialize;

use crate::array::PureStorage;

/// The second numbers of the versions that are spoken: those whose documents were read.
const VERSIONS: [u32; 2] = [26, 2];
/// From this one on snapshots have tags.
const SNAPSHOT_TAGS: u32 = 26;

/// Limits of requests and of bytes in a second (`_qos_iops_limit_type`, `_qos_bw_limit_type`).
pub(crate) const OPERATIONS: (u64, u64) = (100, 100_000_000);
pub(crate) const BYTES: (u64, u64) = (1 << 20, 512 << 30);

/// Objects in one page: what the array gives at most.
const PAGE: &str = "1000";

/// What is peculiar to the session.
pub(crate) struct Purity {
    token: Secret,
    version: OnceLock<u32>,
}

impl Purity {
    pub(crate) fn new(token: Secret) -> Self {
        Self { token, version: OnceLock::new() }
    }

    /// The second number of the version that is spoken.
    pub(crate) fn version(&self) -> u32 {
        self.version.get().copied().unwrap_or(VERSIONS[1])
    }
}

impl Vendor for Purity {
    type Token = Secret;

    /// Almost all refusals have status 400, and differ in words alone.
    const TABLE: Table = Table::new(&[
        // Status 500, and nothing was done.
        Row::exactly("Server is busy").is(Class::Busy),
        Row::texts(&["does not exist", "is not connected"]).on("unmap").done(),
        // SafeMode: what is destroyed goes after the array's delay.
        Row::text("eradication is disabled").on("eradicate").done(),
        Row::texts(&["already exists", "already belongs to", "already includes", "already in use"])
            .is(Class::AlreadyExists),
        Row::texts(&["has been destroyed", "does not exist", "could not be found"])
            .is(Class::NotFound),
        Row::text("no such volume or snapshot").is(Class::NotFound),
        Row::text("existing connections").is(Class::InUse),
        Row::texts(&["limit reached", "truncation"]).is(Class::LimitReached),
        Row::texts(&["insufficient capacity", "no space"]).is(Class::NoSpace),
        Row::of_status(400).on("login").is(Class::Denied),
    ]);

    fn root(&self) -> String {
        format!("/api/2.{}/", self.version())
    }

    /// The management collapses under many connections; ten are kept.
    fn pace(&self) -> Pace {
        Pace { at_once: 10, per_second: None }
    }

    fn fault(&self, reply: &Reply) -> Option<Fault> {
        if reply.is_success() {
            return None;
        }
        let body: Value = reply.json().unwrap_or_default();
        let message = body.texts("errors", "message").into_iter().next().unwrap_or_default();
        Some(Fault { message, ..Fault::default() })
    }

    async fn login(&self, door: &Door<'_, Self>) -> Outcome<Secret> {
        if self.version.get().is_none() {
            let reply = door.send(Request::get("versions", "/api/api_version")).await?;
            let best = best(&reply.json::<Value>()?.texts("version", ""))?;
            self.version.get_or_init(|| best);
        }
        // A second login ends nothing.
        let request = Request::post("login", "login").reading();
        let reply = door.send(request.header("api-token", self.token.clone())).await?;
        let token = reply.header("x-auth-token").map(Secret::from);
        token.ok_or_else(|| {
            let failure = Failure::new(Class::Garbled).fact("the login brought no session token");
            failure.hint("look at address and port: a proxy may answer, not the array")
        })
    }

    fn sign(&self, token: &Secret, request: Request) -> Request {
        request.header("x-auth-token", token.clone())
    }

    fn secrets(&self, token: &Secret) -> Vec<Secret> {
        vec![token.clone()]
    }

    fn logout(&self, _: &Secret) -> Option<Request> {
        Some(Request::post("logout", "logout"))
    }
}

/// The highest version that both have.
fn best(known: &[String]) -> Outcome<u32> {
    let has = |minor: &u32| known.iter().any(|one| *one == format!("2.{minor}"));
    VERSIONS.into_iter().find(has).ok_or_else(|| {
        let newest = known.last().map_or("none", String::as_str);
        Failure::new(Class::Unsupported)
            .fact(format!(
                "the array has neither REST 2.26 nor 2.2; its newest version is {newest}"
            ))
            .hint("FlashArrays have REST 2.2 from Purity 6.0 on")
    })
}

/// What an answer holds. A listing that has no list is none.
#[derive(Deserialize)]
struct Listing {
    items: Vec<Value>,
    continuation_token: Option<String>,
    more_items_remaining: Option<bool>,
    total_item_count: Option<u64>,
}

impl PureStorage {
    /// Whether the array keeps tags with snapshots.
    pub(crate) fn tags_snapshots(&self) -> bool {
        self.api.vendor().version() >= SNAPSHOT_TAGS
    }

    /// Sends what answers one object.
    pub(crate) async fn one(&self, cx: &Cx, request: Request) -> Outcome<Value> {
        let reply: Listing = self.api.json(cx, request).await?;
        reply.items.into_iter().next().ok_or_else(|| Failure::not_found("the object"))
    }

    /// All objects of a listing.
    pub(crate) async fn all(&self, cx: &Cx, request: Request) -> Outcome<Vec<Value>> {
        let request = &request.query("limit", PAGE);
        let fetch = |at: Cursor| async move {
            let request = match &at {
                Cursor::Begin => request.clone(),
                Cursor::Token(token) => request.clone().query("continuation_token", token),
                // The tags of 2.2 have no tokens.
                Cursor::Offset(from) => request.clone().query("offset", &from.to_string()),
            };
            let page: Listing = self.api.json(cx, request).await?;
            let (count, more) = (page.items.len(), page.more_items_remaining);
            let next = at.after(count, more, page.continuation_token);
            Ok(Page { items: page.items, next, total: page.total_item_count })
        };
        pages::all("objects", Cursor::Begin, fetch).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_that_both_have_is_spoken() {
        let list = |minors: &[u32]| minors.iter().map(|n| format!("2.{n}")).collect::<Vec<_>>();
        assert_eq!(best(&list(&(0..=56).collect::<Vec<_>>())).unwrap(), 26);
        assert_eq!(best(&list(&(0..=26).collect::<Vec<_>>())).unwrap(), 26);
        assert_eq!(best(&list(&(0..=25).collect::<Vec<_>>())).unwrap(), 2);
        assert_eq!(best(&list(&[2])).unwrap(), 2);
        let refused = best(&["1.16".to_owned(), "1.17".to_owned()]).unwrap_err();
        assert_eq!(refused.class, Class::Unsupported);
        let fact = "the array has neither REST 2.26 nor 2.2; its newest version is 1.17";
        assert_eq!(refused.fact.as_deref(), Some(fact));
    }
}
