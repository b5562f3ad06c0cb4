//! WebSockets, with the same faults.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::time::sleep;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::Talk;
use super::server::{Answer, Ends, Reset, Shared, die, sleep_some};
use crate::core::Effect;

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
        converse(socket, talk, &shared, &reset).await;
    });
    Response::builder()
        .status(101)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", key)
        .body(Answer::empty())
        .map_err(|_| Ends)
}

async fn converse(mut socket: Socket, mut talk: Box<dyn Talk>, shared: &Shared, reset: &Reset) {
    let mut open = shared.open.clone();
    loop {
        let message = tokio::select! {
            message = socket.next() => message,
            _ = open.changed() => return,
        };
        let Some(Ok(message)) = message else { return };
        let Message::Text(text) = message else { continue };
        if one(&mut socket, &mut talk, text.as_str(), shared, reset).await.is_err() {
            return;
        }
    }
}

async fn one(
    socket: &mut Socket,
    talk: &mut Box<dyn Talk>,
    text: &str,
    shared: &Shared,
    reset: &Reset,
) -> Result<(), Ends> {
    let array = &shared.array;
    let name = talk.call(text);
    let line = format!("WS {name}");
    let number = array.requests().begin(array.clock().now(), &name, &line);
    let effect = array.faults().hit(&[&name, &line]);
    let told = effect.as_ref().map(|effect| format!("{effect:?}"));
    let settings = array.settings();
    let place = shared.limit.enter(&settings).await;
    if let Some(Effect::Delay { milliseconds }) = effect {
        sleep(Duration::from_millis(milliseconds)).await;
    }
    sleep_some(settings.latency).await;
    let changes = !talk.reads(&name);
    let answers = if shared.limit.is_over(&settings) {
        vec![talk.refusal(text, 429)]
    } else if changes && array.is_failing_over() {
        vec![talk.refusal(text, 503)]
    } else {
        match &effect {
            Some(Effect::DropRequest) => Vec::new(),
            Some(Effect::DieBefore) => die(),
            Some(Effect::LoginPage) => vec!["<html>Sign in</html>".to_owned()],
            Some(Effect::Refuse { status, body, .. }) => {
                vec![body.clone().unwrap_or_else(|| talk.refusal(text, *status))]
            }
            Some(Effect::Garbage) => {
                talk.answer(array, text, effect.as_ref());
                vec!["{\"jsonrpc\": \"2.0\", \"id".to_owned()]
            }
            Some(Effect::FailAfter { status }) => {
                talk.answer(array, text, effect.as_ref());
                vec![talk.refusal(text, *status)]
            }
            Some(Effect::Stale { milliseconds }) => {
                array.freeze_reads(*milliseconds);
                talk.answer(array, text, effect.as_ref())
            }
            _ => talk.answer(array, text, effect.as_ref()),
        }
    };
    drop(place);
    let status = if answers.is_empty() { 0 } else { 200 };
    array.requests().end(number, status, told);
    match effect {
        Some(Effect::DropRequest | Effect::DropReply) => return Err(Ends),
        Some(Effect::Silence { milliseconds }) => {
            sleep(Duration::from_millis(milliseconds)).await;
            return Err(Ends);
        }
        Some(Effect::Reset | Effect::HalfBody) => {
            reset.arm();
            return Err(Ends);
        }
        Some(Effect::SlowDrip { milliseconds }) => {
            sleep(Duration::from_millis(milliseconds.saturating_mul(10))).await;
        }
        Some(Effect::DieAfter) => die(),
        _ => {}
    }
    for answer in answers {
        socket.send(Message::text(answer)).await.map_err(|_| Ends)?;
    }
    Ok(())
}
