//! An array's API as JSON-RPC 2.0 over a WebSocket: what [`crate::rest`] is over HTTP.
//!
//! A session is a connection that has logged in. When it ends, calls under way have an unknown
//! outcome; the next call opens another one, however many tasks find it ended.

use std::time::{Instant, SystemTime};

use plugin_sdk::{Cx, Result};
use serde_json::Value;

use crate::classify::{Fault, Table};
use crate::http::{Limits, Trust};
use crate::outcome::{Class, Failure, Outcome};
use crate::recorder::{Entry, Recorder};
use crate::retry::{Chance, Effect, Gate, Pace, RetryPolicy};
use crate::session::{Login, Session, refused};
use crate::socket::{Connection, Endpoint};

/// A call, before anybody has sent it.
#[derive(Clone, Debug)]
pub struct Call {
    /// The vendor's operation, which is how its [`Table`] calls it.
    pub operation: &'static str,
    /// The method's name.
    pub method: String,
    /// Its parameters. They are never recorded.
    pub params: Vec<Value>,
    /// Whether it changes something.
    pub mutating: bool,
}

/// What is peculiar to a vendor's API.
pub trait Peer: Send + Sync + 'static {
    /// What its refusals mean.
    const TABLE: Table;

    /// How fast it may be asked.
    fn pace(&self) -> Pace {
        Pace::default()
    }

    /// How often to try again.
    fn retry(&self) -> RetryPolicy {
        RetryPolicy::default()
    }

    /// What the member `error` of an answer says.
    fn fault(&self, error: &Value) -> Fault;

    /// Logs in on a connection that is new.
    fn login(&self, line: &Line<'_, Self>) -> impl Future<Output = Outcome<()>> + Send
    where
        Self: Sized;
}

/// An API and the connection to it.
pub struct Rpc<P: Peer> {
    session: Session<Keeper<P>>,
}

struct Keeper<P> {
    peer: P,
    endpoint: Endpoint,
    recorder: Recorder,
    gate: Gate,
    chance: Chance,
}

/// A connection that has not logged in: for the login.
pub struct Line<'a, P> {
    keeper: &'a Keeper<P>,
    connection: &'a Connection,
    cx: &'a Cx,
}

impl<P: Peer> Line<'_, P> {
    /// Makes a call, once.
    pub async fn call(&self, call: Call) -> Outcome<Value> {
        self.keeper.once(self.cx, self.connection, &call).await
    }
}

impl<P: Peer> Keeper<P> {
    async fn once(&self, cx: &Cx, connection: &Connection, call: &Call) -> Outcome<Value> {
        cx.check()?;
        let turn = self.gate.pass(cx).await?;
        let (started, clock) = (SystemTime::now(), Instant::now());
        let (sent, answer) = connection.call(cx, &call.method, &call.params, call.mutating).await;
        drop(turn);
        let received = answer.as_ref().map_or(0, |(_, received)| *received);
        let outcome = answer.and_then(|(answer, _)| self.read(call, answer));
        self.recorder.record(Entry {
            operation: call.operation,
            method: "RPC",
            path: call.method.clone(),
            status: None,
            outcome: outcome.as_ref().err().map(|failure| format!("{:?}", failure.class)),
            started,
            took: clock.elapsed(),
            sent,
            received,
        });
        outcome
    }

    fn read(&self, call: &Call, mut answer: Value) -> Outcome<Value> {
        let Some(error) = answer.get("error").filter(|error| !error.is_null()) else {
            return answer.get_mut("result").map(Value::take).ok_or_else(|| {
                let class = if call.mutating { Class::Unknown } else { Class::Garbled };
                let fact = format!("the answer to {} has neither result nor error", call.method);
                Failure::new(class).fact(fact)
            });
        };
        let fault = self.peer.fault(error);
        let Some(mut failure) = P::TABLE.failure(call.operation, &fault) else {
            return Ok(Value::Null);
        };
        if failure.class == Class::Busy
            && let Some(after) = failure.retry_after
        {
            self.gate.close_for(after);
        }
        if failure.class == Class::Unknown && !call.mutating {
            failure = failure.reclassed(Class::Unreachable);
        }
        failure.scrub(self.recorder.redactor());
        Err(failure)
    }
}

impl<P: Peer> Login for Keeper<P> {
    type Ticket = Connection;

    async fn login(&self, cx: &Cx) -> Outcome<Connection> {
        let connection = Connection::open(cx, &self.endpoint).await?;
        let line = Line { keeper: self, connection: &connection, cx };
        self.peer.login(&line).await.map_err(refused)?;
        Ok(connection)
    }
}

impl<P: Peer> Rpc<P> {
    /// An API at `base`, such as `https://10.0.0.1`, and `path`. Nothing is sent before the first
    /// call. Error kind `config` as for [`crate::http::Client::new`].
    pub fn new(
        peer: P,
        base: &str,
        path: &str,
        trust: &Trust,
        limits: Limits,
        recorder: Recorder,
    ) -> Result<Self> {
        let endpoint = Endpoint::new(base, path, trust, limits)?;
        let gate = Gate::new(peer.pace());
        let keeper = Keeper { peer, endpoint, recorder, gate, chance: Chance::default() };
        Ok(Self { session: Session::new(keeper) })
    }

    /// The vendor.
    pub fn peer(&self) -> &P {
        &self.session.login().peer
    }

    /// Connects and logs in, unless that is done. [`Class::Unsupported`] if there is no WebSocket at
    /// that address.
    pub async fn connect(&self, cx: &Cx) -> Outcome<()> {
        let keeper = self.session.login();
        let work = || async { self.session.ticket(cx).await.map(drop) };
        keeper.peer.retry().run(cx, &keeper.chance, Effect::Changes, work).await
    }

    /// Makes a call within the session, and answers its result; `null` where the vendor's table
    /// says that what was asked for holds already.
    pub async fn call(&self, cx: &Cx, call: &Call) -> Outcome<Value> {
        let keeper = self.session.login();
        let effect = if call.mutating { Effect::Changes } else { Effect::Reads };
        let work = || async {
            let mut ticket = self.session.ticket(cx).await?;
            let mut renewals = 0;
            loop {
                match keeper.once(cx, &ticket.ticket, call).await {
                    Err(failure) if failure.class == Class::Expired && renewals < 2 => {
                        ticket = self.session.renew(cx, &ticket).await?;
                        renewals += 1;
                    }
                    outcome => return outcome,
                }
            }
        };
        keeper.peer.retry().run(cx, &keeper.chance, effect, work).await
    }

    /// Whether the array has refused our credentials.
    pub fn is_denied(&self) -> bool {
        self.session.is_denied()
    }

    /// Closes the connection.
    pub async fn close(&self, cx: &Cx) {
        self.session.close(cx).await;
    }
}
