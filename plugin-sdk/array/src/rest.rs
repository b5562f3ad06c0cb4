//! An array's API over HTTP: signs, sends, tries again, logs in again, classifies.
//!
//! A vendor says in [`Vendor`] what is peculiar; [`Rest::send`] does the rest.

use plugin_sdk::{Cx, Secret};
use serde_json::Value;

use crate::classify::{Fault, Table};
use crate::http::{Client, Limits, Reply, Request, Trust};
use crate::outcome::{Class, Failure, Outcome};
use crate::recorder::{Recorder, Redactor};
use crate::retry::{Chance, Effect, Gate, Pace, RetryPolicy};
use crate::session::{Login, Session, refused};

/// What is peculiar to a vendor's API.
pub trait Vendor: Send + Sync + 'static {
    /// What a session is known by: a token, a cookie and a token, nothing.
    type Token: Clone + Send + Sync + 'static;

    /// What its refusals mean.
    const TABLE: Table;

    /// What the paths of its requests begin with, such as `/api/`: of all but those that begin with `/`
    /// themselves. Asked for anew for each request, since a login may find out a version.
    fn root(&self) -> String {
        String::new()
    }

    /// How fast it may be asked.
    fn pace(&self) -> Pace {
        Pace::default()
    }

    /// How often to try again.
    fn retry(&self) -> RetryPolicy {
        RetryPolicy::default()
    }

    /// The refusal in an answer, if it is one. For most vendors: any status that is not of success,
    /// with code and message out of the body. A body that is none of the vendor's is no reason to
    /// fail here: leave code and message empty.
    fn fault(&self, reply: &Reply) -> Option<Fault>;

    /// Logs in. Requests go through `door`, which classifies and tries again like
    /// [`Rest::send`], but asks for no session.
    fn login(&self, door: &Door<'_, Self>) -> impl Future<Output = Outcome<Self::Token>> + Send
    where
        Self: Sized;

    /// Adds what shows the session to a request.
    fn sign(&self, token: &Self::Token, request: Request) -> Request;

    /// The secrets in a token, to keep them out of logs.
    fn secrets(&self, token: &Self::Token) -> Vec<Secret>;

    /// The token after this answer, if it brought another one.
    fn learn(&self, token: &Self::Token, reply: &Reply) -> Option<Self::Token> {
        let _ = (token, reply);
        None
    }

    /// The request that logs out, if there is one.
    fn logout(&self, token: &Self::Token) -> Option<Request> {
        let _ = token;
        None
    }
}

/// An API and the session with it.
pub struct Rest<V: Vendor> {
    session: Session<Gatekeeper<V>>,
}

/// What sends requests; it is the session's login, too.
struct Gatekeeper<V> {
    vendor: V,
    client: Client,
    gate: Gate,
    chance: Chance,
}

/// The API without a session: for the login.
pub struct Door<'a, V> {
    keeper: &'a Gatekeeper<V>,
    cx: &'a Cx,
}

impl<V: Vendor> Door<'_, V> {
    /// Sends a request as it is. Repeated when busy or unreachable, by the vendor's policy.
    pub async fn send(&self, request: Request) -> Outcome<Reply> {
        let effect = if request.mutating { Effect::Changes } else { Effect::Reads };
        let policy = self.keeper.vendor.retry();
        policy
            .run(self.cx, &self.keeper.chance, effect, || self.keeper.once(self.cx, &request))
            .await
    }
}

impl<V: Vendor> Gatekeeper<V> {
    /// One request and what its answer means.
    async fn once(&self, cx: &Cx, request: &Request) -> Outcome<Reply> {
        let request = &request.clone().below(&self.vendor.root());
        let turn = self.gate.pass(cx).await?;
        let reply = self.client.send(cx, request).await;
        drop(turn);
        let reply = match reply {
            Ok(reply) => reply,
            Err(failure) => return Err(self.scrubbed(failure)),
        };
        let Some(mut fault) = self.vendor.fault(&reply) else { return Ok(reply) };
        fault.status = fault.status.or(Some(reply.status()));
        fault.retry_after = fault.retry_after.or_else(|| reply.retry_after());
        match V::TABLE.failure(request.operation, &fault) {
            None => Ok(reply),
            Some(mut failure) => {
                if failure.class == Class::Busy
                    && let Some(after) = failure.retry_after
                {
                    self.gate.close_for(after);
                }
                if failure.class == Class::Unknown && !request.mutating {
                    failure = failure.reclassed(Class::Unreachable);
                }
                Err(self.scrubbed(failure))
            }
        }
    }

    fn scrubbed(&self, mut failure: Failure) -> Failure {
        failure.scrub(self.client.recorder().redactor());
        failure
    }
}

impl<V: Vendor> Login for Gatekeeper<V> {
    type Ticket = V::Token;

    async fn login(&self, cx: &Cx) -> Outcome<V::Token> {
        let door = Door { keeper: self, cx };
        let token = self.vendor.login(&door).await.map_err(refused)?;
        for secret in self.vendor.secrets(&token) {
            self.client.recorder().redactor().learn(&secret);
        }
        Ok(token)
    }

    async fn logout(&self, cx: &Cx, token: V::Token) -> Outcome<()> {
        match self.vendor.logout(&token) {
            Some(request) => {
                let request = self.vendor.sign(&token, request);
                self.once(cx, &request).await.map(drop)
            }
            None => Ok(()),
        }
    }
}

impl<V: Vendor> Rest<V> {
    /// An API. Nothing is sent before the first request.
    pub fn new(vendor: V, client: Client) -> Self {
        let gate = Gate::new(vendor.pace());
        let keeper = Gatekeeper { vendor, client, gate, chance: Chance::default() };
        Self { session: Session::new(keeper) }
    }

    /// Connects and logs in, so that a wrong password shows when a driver is opened. `secret` is kept
    /// out of all that is recorded.
    pub async fn open(
        cx: &Cx,
        base: &str,
        trust: &Trust,
        secret: &Secret,
        vendor: V,
    ) -> Outcome<Self> {
        let redactor = Redactor::default();
        redactor.learn(secret);
        let client = Client::new(base, trust, Limits::default(), Recorder::new(redactor))?;
        let rest = Self::new(vendor, client);
        rest.connect(cx).await?;
        Ok(rest)
    }

    /// The vendor.
    pub fn vendor(&self) -> &V {
        &self.session.login().vendor
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.session.login().client
    }

    /// Logs in, unless that is done: so that a wrong password shows when a driver is opened.
    pub async fn connect(&self, cx: &Cx) -> Outcome<()> {
        let keeper = self.session.login();
        let work = || async { self.session.ticket(cx).await.map(drop) };
        keeper.vendor.retry().run(cx, &keeper.chance, Effect::Changes, work).await
    }

    /// Sends a request within the session, and answers a reply that is one of success, or that the
    /// vendor's table calls done.
    ///
    /// A session that has ended is begun anew, and the request sent again: without a session the
    /// array did nothing.
    pub async fn send(&self, cx: &Cx, request: Request) -> Outcome<Reply> {
        let keeper = self.session.login();
        let effect = if request.mutating { Effect::Changes } else { Effect::Reads };
        let work = || async {
            let mut ticket = self.session.ticket(cx).await?;
            let mut renewals = 0;
            let reply = loop {
                let signed = keeper.vendor.sign(&ticket.ticket, request.clone());
                match keeper.once(cx, &signed).await {
                    // The second time it may be that only the newer token of the same session was
                    // tried, which came with another task's answer.
                    Err(failure) if failure.class == Class::Expired && renewals < 2 => {
                        ticket = self.session.renew(cx, &ticket).await?;
                        renewals += 1;
                    }
                    outcome => break outcome?,
                }
            };
            if let Some(token) = keeper.vendor.learn(&ticket.ticket, &reply) {
                for secret in keeper.vendor.secrets(&token) {
                    keeper.client.recorder().redactor().learn(&secret);
                }
                self.session.learn(&ticket, token).await;
            }
            Ok(reply)
        };
        keeper.vendor.retry().run(cx, &keeper.chance, effect, work).await
    }

    /// As [`Self::send`], with the answer as JSON. That of a changing request that cannot be
    /// understood is [`Class::Unknown`].
    pub async fn json<T: serde::de::DeserializeOwned>(
        &self,
        cx: &Cx,
        request: Request,
    ) -> Outcome<T> {
        let mutating = request.mutating;
        let reply = self.send(cx, request).await?;
        reply.json().map_err(|failure| {
            let failure = self.session.login().scrubbed(failure);
            if mutating { failure.reclassed(Class::Unknown) } else { failure }
        })
    }

    /// As [`Self::send`], of a change whose answer says no more than that it is done. A page for people,
    /// which a proxy answers with the same status, is no answer.
    pub async fn just(&self, cx: &Cx, request: Request) -> Outcome<()> {
        let reply = self.send(cx, request).await?;
        if !reply.body().is_empty() {
            reply.json::<Value>().map_err(|failure| failure.reclassed(Class::Unknown))?;
        }
        Ok(())
    }

    /// Whether the array has refused our credentials.
    pub fn is_denied(&self) -> bool {
        self.session.is_denied()
    }

    /// Logs out.
    pub async fn close(&self, cx: &Cx) {
        self.session.close(cx).await;
    }
}
