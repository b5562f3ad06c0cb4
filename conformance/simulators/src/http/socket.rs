//! WebSockets, with the same faults.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::Talk;
use super::server::{Answer, Ends, Reset, Shared, die, sleep_some};
use crate::core::{Effect, Settings};

type Socket = WebSocketStream<TokioIo<Upgraded>>;

pub(super) fn upgrade(
    mut request: Request<Incoming>,
    talk: Box<dyn Talk>,
    shared: Arc<Shared>,
    reset: Reset,
) -> Result<Response<Answer>, Ends> {
    let key =
        request.headers().get("sec-websocket-key").map(|key| derive_accept_key(key.as_bytes()));
    let Some(key) = key else {
        let mut response = Response::new(Answer::empty());
        *response.status_mut() = hyper::StatusCode::BAD_REQUEST;
        return Ok(response);
    };
    // The connection's task owns this one: it ends when the connection does.
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(&mut request).await else { return };
        let io = TokioIo::new(upgraded);
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        converse(socket, talk, shared, reset).await;
    });
    Response::builder()
        .status(101)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", key)
        .body(Answer::empty())
        .map_err(|_| Ends)
}

/// A conversation and what its calls share.
struct Line {
    talk: Mutex<Box<dyn Talk>>,
    shared: Arc<Shared>,
    reset: Reset,
    /// Calls that may be carried out at the same time.
    turns: Semaphore,
    /// Calls that have come and are not answered.
    open: AtomicUsize,
}

/// A call that has come: counted, and its fault drawn, in the order of arrival.
struct Call {
    text: String,
    name: String,
    number: u64,
    effect: Option<Effect>,
    /// More are open on this connection than the array allows.
    too_many: bool,
}

/// How a call ends.
enum End {
    Answers(Vec<String>),
    /// The connection ends, after so long in which nothing is said on it.
    Connection(Duration),
}

/// Calls are carried out beside each other, and each is answered when it is done. When the
/// connection ends, what was asked for on it goes on; when the array is gone, nothing does.
async fn converse(mut socket: Socket, talk: Box<dyn Talk>, shared: Arc<Shared>, reset: Reset) {
    let mut array_is_there = shared.open.clone();
    let turns = Semaphore::new(talk.at_once().0);
    let (talk, open) = (Mutex::new(talk), AtomicUsize::new(0));
    let line = Arc::new(Line { talk, shared, reset, turns, open });
    let mut calls = JoinSet::new();
    let pause = loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let call = line.arrived(text.as_str());
                    calls.spawn(Arc::clone(&line).carry_out(call));
                }
                Some(Ok(_)) => {}
                None | Some(Err(_)) => break Duration::ZERO,
            },
            Some(end) = calls.join_next() => match end {
                Ok(End::Answers(answers)) => {
                    for answer in answers {
                        if socket.send(Message::text(answer)).await.is_err() {
                            break;
                        }
                    }
                }
                Ok(End::Connection(pause)) => break pause,
                Err(_) => break Duration::ZERO,
            },
            _ = array_is_there.changed() => return,
        }
    };
    calls.detach_all();
    tokio::select! {
        () = sleep(pause) => {}
        _ = array_is_there.changed() => {}
    }
}

impl Line {
    fn talk(&self) -> MutexGuard<'_, Box<dyn Talk>> {
        self.talk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrived(&self, text: &str) -> Call {
        let array = &self.shared.array;
        let name = self.talk().call(text);
        let line = format!("WS {name}");
        let number = array.requests().begin(array.clock().now(), &name, &line);
        let effect = array.faults().hit(&[&name, &line]);
        let too_many = self.open.fetch_add(1, Ordering::SeqCst) >= self.talk().at_once().1;
        Call { text: text.to_owned(), name, number, effect, too_many }
    }

    async fn carry_out(self: Arc<Self>, call: Call) -> End {
        let mut array_is_there = self.shared.open.clone();
        let end = tokio::select! {
            end = self.under(&call) => end,
            _ = array_is_there.changed() => End::Connection(Duration::ZERO),
        };
        self.open.fetch_sub(1, Ordering::SeqCst);
        end
    }

    /// Carries a call out under what the script says of it.
    async fn under(&self, call: &Call) -> End {
        let array = &self.shared.array;
        if call.too_many {
            array.requests().end(call.number, 200, None);
            return End::Answers(vec![self.talk().refusal(&call.text, 429)]);
        }
        let turn = self.turns.acquire().await.ok();
        let settings = array.settings();
        let place = self.shared.limit.enter(&settings).await;
        if let Some(Effect::Delay { milliseconds }) = call.effect {
            sleep(Duration::from_millis(milliseconds)).await;
        }
        sleep_some(settings.latency).await;
        let answers = self.answers(call, &settings);
        drop(place);
        let status = if answers.is_empty() { 0 } else { 200 };
        let told = call.effect.as_ref().map(|effect| format!("{effect:?}"));
        array.requests().end(call.number, status, told);
        match call.effect {
            Some(Effect::DropRequest | Effect::DropReply) => End::Connection(Duration::ZERO),
            Some(Effect::Silence { milliseconds }) => {
                End::Connection(Duration::from_millis(milliseconds))
            }
            Some(Effect::Reset | Effect::HalfBody) => {
                self.reset.arm();
                End::Connection(Duration::ZERO)
            }
            Some(Effect::DieAfter) => die(),
            Some(Effect::SlowDrip { milliseconds }) => {
                drop(turn);
                sleep(Duration::from_millis(milliseconds.saturating_mul(10))).await;
                End::Answers(answers)
            }
            _ => End::Answers(answers),
        }
    }

    fn answers(&self, call: &Call, settings: &Settings) -> Vec<String> {
        let (array, text, effect) = (&self.shared.array, call.text.as_str(), call.effect.as_ref());
        let mut talk = self.talk();
        if self.shared.limit.is_over(settings) {
            return vec![talk.refusal(text, 429)];
        }
        if !talk.reads(&call.name) && array.is_failing_over() {
            return vec![talk.refusal(text, 503)];
        }
        match effect {
            Some(Effect::DropRequest) => Vec::new(),
            Some(Effect::DieBefore) => die(),
            Some(Effect::LoginPage) => vec!["<html>Sign in</html>".to_owned()],
            Some(Effect::Refuse { status, body, .. }) => {
                vec![body.clone().unwrap_or_else(|| talk.refusal(text, *status))]
            }
            Some(Effect::Garbage) => {
                talk.answer(array, text, effect);
                vec!["{\"jsonrpc\": \"2.0\", \"id".to_owned()]
            }
            Some(Effect::FailAfter { status }) => {
                talk.answer(array, text, effect);
                vec![talk.refusal(text, *status)]
            }
            Some(Effect::Stale { milliseconds }) => {
                array.freeze_reads(*milliseconds);
                talk.answer(array, text, effect)
            }
            _ => talk.answer(array, text, effect),
        }
    }
}
