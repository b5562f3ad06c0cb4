//! Connections and what goes wrong on them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};

use super::limit::Limit;
use super::socket;
use super::tls::Certificate;
use super::{Ask, Say, Web};
use crate::core::{Array, Effect};

/// Most bytes of a request's body.
const MOST: usize = 16 << 20;

/// What a connection needs to know.
pub(crate) struct Shared {
    pub(crate) array: Array,
    pub(crate) web: Arc<dyn Web>,
    pub(crate) limit: Arc<Limit>,
    /// Ends when the server does.
    pub(crate) open: watch::Receiver<()>,
}

/// A listener. It ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    _tasks: JoinSet<()>,
    _open: watch::Sender<()>,
}

/// Serves an array's management, with TLS if there is a certificate.
pub async fn serve(
    listen: SocketAddr,
    array: Array,
    web: Arc<dyn Web>,
    certificate: Option<&Certificate>,
) -> io::Result<Server> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let acceptor = certificate.map(Certificate::acceptor).transpose()?;
    let (closes, open) = watch::channel(());
    let shared = Arc::new(Shared { array, web, limit: Arc::default(), open });
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            let (shared, acceptor) = (shared.clone(), acceptor.clone());
            connections.spawn(async move {
                let Ok(fd) = stream.as_fd().try_clone_to_owned() else { return };
                let reset = Reset(Arc::new(fd));
                match acceptor {
                    None => connection(stream, shared, reset).await,
                    Some(acceptor) => {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            connection(stream, shared, reset).await;
                        }
                    }
                }
            });
        }
    });
    Ok(Server { address, _tasks: tasks, _open: closes })
}

/// Lets a connection end by a reset, whoever holds it.
#[derive(Clone)]
pub(crate) struct Reset(Arc<OwnedFd>);

impl Reset {
    pub(crate) fn arm(&self) {
        // A socket that is closed already cannot be reset, and need not be.
        let _ = rustix::net::sockopt::set_socket_linger(&*self.0, Some(Duration::ZERO));
    }
}

async fn connection<S>(stream: S, shared: Arc<Shared>, reset: Reset)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (shared, reset) = (shared.clone(), reset.clone());
        async move { request_of(request, shared, reset).await }
    });
    // Ends with an error where a fault says so.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

/// The connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection ends here")]
pub(crate) struct Ends;

async fn request_of(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    reset: Reset,
) -> Result<Response<Answer>, Ends> {
    if let Some(talk) = shared.web.talk(&shared.array, request.uri().path()) {
        return socket::upgrade(request, talk, shared, reset);
    }
    let (parts, body) = request.into_parts();
    let body = http_body_util::Limited::new(body, MOST).collect().await.map_err(|_| Ends)?;
    let ask = Ask {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or("").to_owned(),
        headers: parts.headers,
        body: body.to_bytes().to_vec(),
    };
    let name = shared.web.call(&ask);
    let line = format!("{} {}", ask.method, ask.path);
    let full = if ask.query.is_empty() { line.clone() } else { format!("{line}?{}", ask.query) };
    let (array, web) = (&shared.array, &shared.web);
    let number = array.requests().begin(array.clock().now(), &name, &full);
    let effect = array.faults().hit(&[&name, &line]);
    let told = effect.as_ref().map(|effect| format!("{effect:?}"));
    let settings = array.settings();
    let place = shared.limit.enter(&settings).await;
    if let Some(Effect::Delay { milliseconds }) = effect {
        sleep(Duration::from_millis(milliseconds)).await;
    }
    sleep_some(settings.latency).await;
    let changes = !matches!(ask.method.as_str(), "GET" | "HEAD");
    let say = if shared.limit.is_over(&settings) {
        let mut say = web.refusal(429);
        say.headers.push(("retry-after".to_owned(), "1".to_owned()));
        say
    } else if changes && array.is_failing_over() {
        web.refusal(503)
    } else {
        carry_out(&shared, &ask, effect.as_ref())
    };
    drop(place);
    let end = |status: u16| array.requests().end(number, status, told.clone());
    match effect {
        Some(Effect::DropRequest | Effect::DropReply) => {
            end(0);
            Err(Ends)
        }
        Some(Effect::Silence { milliseconds }) => {
            end(0);
            sleep(Duration::from_millis(milliseconds)).await;
            Err(Ends)
        }
        Some(Effect::Reset) => {
            end(0);
            reset.arm();
            Err(Ends)
        }
        Some(Effect::HalfBody) => {
            end(say.status);
            Ok(respond(say, &Manner::Half))
        }
        Some(Effect::SlowDrip { milliseconds }) => {
            end(say.status);
            Ok(respond(say, &Manner::Slow(Duration::from_millis(milliseconds))))
        }
        Some(Effect::DieAfter) => die(),
        _ => {
            end(say.status);
            Ok(respond(say, &Manner::Whole))
        }
    }
}

pub(crate) async fn sleep_some(milliseconds: u64) {
    if milliseconds > 0 {
        sleep(Duration::from_millis(milliseconds)).await;
    }
}

/// The simulator ends as by `kill -9`.
pub(crate) fn die() -> ! {
    let own = rustix::process::getpid();
    let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
    std::process::abort()
}

fn carry_out(shared: &Shared, ask: &Ask, effect: Option<&Effect>) -> Say {
    let (array, web) = (&shared.array, &shared.web);
    match effect {
        Some(Effect::DropRequest) => Say::text(0, ""),
        Some(Effect::LoginPage) => Say::login_page(),
        Some(Effect::DieBefore) => die(),
        Some(Effect::Refuse { status, retry_after, body }) => {
            let mut say = match body {
                Some(body) => Say::text(*status, body),
                None => web.refusal(*status),
            };
            if let Some(when) = retry_after {
                say.headers.push(("retry-after".to_owned(), when.clone()));
            }
            say
        }
        Some(Effect::Garbage) => {
            web.answer(array, ask, effect);
            Say::text(200, "\u{1}\u{2}{\"unfinished\": [tru")
        }
        Some(Effect::FailAfter { status }) => {
            web.answer(array, ask, effect);
            web.refusal(*status)
        }
        Some(Effect::Stale { milliseconds }) => {
            array.freeze_reads(*milliseconds);
            web.answer(array, ask, effect)
        }
        _ => web.answer(array, ask, effect),
    }
}

enum Manner {
    Whole,
    Half,
    Slow(Duration),
}

fn respond(say: Say, manner: &Manner) -> Response<Answer> {
    let mut response = Response::builder().status(say.status);
    for (name, value) in &say.headers {
        response = response.header(name, value);
    }
    let length = say.body.len();
    if say.status != 204 {
        response = response.header("content-length", length);
    }
    let mut rest = say.body;
    let (pause, fails) = match *manner {
        Manner::Whole => (None, false),
        Manner::Half => {
            rest.truncate(length / 2);
            (None, true)
        }
        Manner::Slow(pause) => (Some(pause), false),
    };
    let answer = Answer { rest: Bytes::from(rest), pause, fails, sleep: None };
    response.body(answer).unwrap_or_else(|_| Response::new(Answer::empty()))
}

/// The body of an answer: whole, cut off, or byte by byte.
pub(crate) struct Answer {
    rest: Bytes,
    pause: Option<Duration>,
    fails: bool,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Answer {
    pub(crate) fn empty() -> Self {
        Self { rest: Bytes::new(), pause: None, fails: false, sleep: None }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Ends;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Ends>>> {
        if let Some(sleep) = &mut self.sleep {
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.sleep = None;
        }
        if self.rest.is_empty() {
            return Poll::Ready(self.fails.then_some(Err(Ends)));
        }
        let part = if let Some(pause) = self.pause {
            self.sleep = Some(Box::pin(sleep(pause)));
            self.rest.split_to(1)
        } else {
            std::mem::take(&mut self.rest)
        };
        Poll::Ready(Some(Ok(Frame::data(part))))
    }
}
