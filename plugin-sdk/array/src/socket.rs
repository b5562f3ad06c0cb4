//! A WebSocket with many calls on it at once.
//!
//! The same policy as over HTTP ([`crate::http`]): TLS that is verified, deadlines at every level,
//! and for each end of a call whether it can have been done. A call that was given to the connection
//! and has no answer when that ends is `Unknown`, never an error that invites a blind repetition.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use plugin_sdk::tokio::io::{AsyncRead, AsyncWrite};
use plugin_sdk::tokio::net::TcpStream;
use plugin_sdk::tokio::sync::{mpsc, oneshot};
use plugin_sdk::tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use plugin_sdk::{Cx, Error, Result, tokio};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::http::{Limits, Trust, problem};
use crate::outcome::{Class, Failure, Outcome};

/// Where a WebSocket is opened, and whom it trusts.
#[derive(Clone)]
pub(crate) struct Endpoint {
    host: String,
    port: u16,
    /// None without TLS.
    tls: Option<TlsConnector>,
    url: String,
    pub(crate) limits: Limits,
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

type Wire = WebSocketStream<Box<dyn Duplex>>;

impl Endpoint {
    /// `base` is what [`crate::http::Client`] takes, such as `https://10.0.0.1`; `path` begins with
    /// a slash.
    pub(crate) fn new(base: &str, path: &str, trust: &Trust, limits: Limits) -> Result<Self> {
        let wrong = || {
            Error::config("the address of the array's API is no URL such as https://10.0.0.1:443")
        };
        let url = reqwest::Url::parse(base).map_err(|error| wrong().source(&error))?;
        let tls = match url.scheme() {
            "https" => Some(TlsConnector::from(Arc::new(trust.config()?))),
            "http" => None,
            _ => return Err(wrong()),
        };
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(wrong());
        };
        let scheme = if tls.is_some() { "wss" } else { "ws" };
        let url = format!("{scheme}://{host}:{port}{path}");
        // An IPv6 address stands in brackets in a URL, and without them elsewhere.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port, tls, url, limits })
    }

    /// Connects. [`Class::Unsupported`] with the status if what answers there speaks HTTP and no
    /// WebSocket.
    async fn dial(&self) -> Outcome<Wire> {
        let unreachable = |why: String| {
            Failure::new(Class::Unreachable)
                .fact(format!("the array at {} cannot be reached: {why}", self.url))
                .hint("look at the address, the network, and whether the array is up")
        };
        let untrusted = |error: &std::io::Error| match problem(error) {
            Some((fact, hint)) => Failure::new(Class::Unreachable)
                .fact(format!("the array at {} is not trusted: {fact}", self.url))
                .hint(hint),
            None => unreachable(error.to_string()),
        };
        let tcp = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        // Calls are small and waited for.
        tcp.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
        let stream: Box<dyn Duplex> = match &self.tls {
            None => Box::new(tcp),
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone())
                    .map_err(|_| unreachable("its name is no host name".to_owned()))?;
                let tls = tls.connect(name, tcp).await;
                Box::new(tls.map_err(|error| untrusted(&error))?)
            }
        };
        let request = self.url.as_str().into_client_request();
        let request = request.map_err(|error| unreachable(error.to_string()))?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(self.limits.answer))
            .max_frame_size(Some(self.limits.answer));
        match client_async_with_config(request, stream, Some(config)).await {
            Ok((wire, _)) => Ok(wire),
            Err(tungstenite::Error::Http(reply)) => {
                let status = reply.status().as_u16();
                let class = match status {
                    429 | 500..=599 => Class::Unreachable,
                    _ => Class::Unsupported,
                };
                let mut failure = Failure::new(class)
                    .fact(format!("there is no WebSocket at {}: status {status}", self.url));
                failure.status = Some(status);
                Err(failure)
            }
            Err(tungstenite::Error::Io(error)) => Err(untrusted(&error)),
            Err(error) => Err(unreachable(error.to_string())),
        }
    }
}

/// A message that goes out, and who waits for the answer with its id.
struct Outgoing {
    id: u64,
    text: String,
    answer: oneshot::Sender<Answer>,
}

/// An answer, and how many bytes it had.
type Answer = (Value, usize);

/// An open connection. It ends when the last of its clones is dropped.
#[derive(Clone)]
pub(crate) struct Connection {
    outgoing: mpsc::Sender<Outgoing>,
    next: Arc<AtomicU64>,
    /// Why it ended, once it has.
    ended: Arc<Mutex<Option<String>>>,
    total: Duration,
}

impl Connection {
    pub(crate) async fn open(cx: &Cx, endpoint: &Endpoint) -> Outcome<Self> {
        let limit = endpoint.limits.connect.min(cx.remaining());
        let wire = tokio::select! {
            biased;
            () = cx.cancelled() => {
                return Err(cx.check().err().map_or_else(|| Failure::new(Class::Own), Failure::from));
            }
            wire = timeout(limit, endpoint.dial()) => wire.map_err(|_| {
                let why = format!("no connection to {} within {} s", endpoint.url, limit.as_secs_f32());
                Failure::new(Class::Unreachable).fact(why)
            })??,
        };
        let (outgoing, queue) = mpsc::channel(64);
        let ended = Arc::new(Mutex::new(None));
        let (reason, limits) = (Arc::clone(&ended), endpoint.limits);
        tokio::spawn(async move {
            let why = carry(wire, queue, limits).await;
            *reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        });
        Ok(Self { outgoing, next: Arc::default(), ended, total: endpoint.limits.total })
    }

    fn reason(&self) -> String {
        let reason = self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        reason.unwrap_or_else(|| "the connection ended".to_owned())
    }

    /// Sends a JSON-RPC request and waits for its answer. [`Class::Expired`] if the connection had
    /// ended before: certainly not sent.
    pub(crate) async fn call(
        &self,
        cx: &Cx,
        method: &str,
        params: &[Value],
        mutating: bool,
    ) -> (usize, Outcome<Answer>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let message =
            serde_json::json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let text = message.to_string();
        let (sent, (answer, waiting)) = (text.len(), oneshot::channel());
        let Ok(place) = self.outgoing.reserve().await else {
            return (0, Err(Failure::new(Class::Expired).fact(self.reason())));
        };
        place.send(Outgoing { id, text, answer });
        let limit = self.total.min(cx.remaining());
        let cancelled = async {
            // What changes something is not dropped: its answer would be lost.
            if mutating { std::future::pending().await } else { cx.cancelled().await }
        };
        let outcome = tokio::select! {
            biased;
            answer = timeout(limit, waiting) => match answer {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) => Err(lost(mutating, format!(
                    "the connection ended before the answer to {method}: {}", self.reason()
                ))),
                Err(_) => Err(lost(mutating, format!("no answer to {method} in time"))),
            },
            () = cancelled => {
                Err(cx.check().err().map_or_else(|| Failure::new(Class::Own), Failure::from))
            }
        };
        (sent, outcome)
    }
}

/// The failure of a call whose answer did not come.
fn lost(mutating: bool, fact: String) -> Failure {
    Failure::new(if mutating { Class::Unknown } else { Class::Unreachable }).fact(fact)
}

/// Carries messages both ways until one end goes away; answers why. Whoever still waits then is told
/// by the end of his channel.
async fn carry(mut wire: Wire, mut queue: mpsc::Receiver<Outgoing>, limits: Limits) -> String {
    let mut waiting: HashMap<u64, oneshot::Sender<Answer>> = HashMap::new();
    let mut heard = Instant::now();
    // A peer that is gone without a word answers no ping either; one that works for long does.
    let period = (limits.read / 3).max(Duration::from_millis(10));
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            outgoing = queue.recv() => {
                let Some(Outgoing { id, text, answer }) = outgoing else {
                    // Nobody has the connection any more. A peer that does not read is not waited
                    // for.
                    let _ = timeout(Duration::from_secs(1), wire.close(None)).await;
                    return "closed".to_owned();
                };
                if waiting.is_empty() {
                    heard = Instant::now();
                }
                waiting.retain(|_, one| !one.is_closed());
                waiting.insert(id, answer);
                match timeout(limits.read, wire.send(Message::text(text))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return error.to_string(),
                    Err(_) => return "the array takes no more data".to_owned(),
                }
            }
            message = wire.next() => {
                heard = Instant::now();
                match message {
                    Some(Ok(Message::Text(text))) => {
                        // What is no answer to a call is an event, or rubbish: nobody waits for it.
                        let Ok(value) = serde_json::from_str::<Value>(&text) else {
                            return "the array sent what is no JSON".to_owned();
                        };
                        let id = value.get("id").and_then(Value::as_u64);
                        if let Some(waits) = id.and_then(|id| waiting.remove(&id)) {
                            let _ = waits.send((value, text.len()));
                        }
                    }
                    Some(Ok(Message::Close(frame))) => {
                        let why = frame.map(|frame| frame.reason.to_string()).unwrap_or_default();
                        return format!("the array closed it {why}").trim_end().to_owned();
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return error.to_string(),
                    None => return "the array closed it".to_owned(),
                }
            }
            _ = ticks.tick(), if !waiting.is_empty() => {
                if heard.elapsed() > limits.read {
                    return format!("nothing was heard for {} s", limits.read.as_secs_f32());
                }
                let ping = timeout(limits.read, wire.send(Message::Ping(Vec::new().into()))).await;
                if !matches!(ping, Ok(Ok(()))) {
                    return "a ping could not be sent".to_owned();
                }
            }
        }
    }
}
