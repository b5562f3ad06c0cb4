//! Sends one request, once.

use std::time::{Duration, Instant, SystemTime};

use plugin_sdk::{Cx, Error, Result};
use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{Client as Inner, redirect};

use super::reply::Reply;
use super::request::{Method, Request};
use super::tls::{self, Trust};
use crate::outcome::{Class, Failure, Outcome};
use crate::recorder::{Entry, Recorder};

/// How long things may take, and how large an answer may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// To connect, with TLS.
    pub connect: Duration,
    /// Between two pieces of an answer.
    pub read: Duration,
    /// From the first byte of a request to the last of its answer.
    pub total: Duration,
    /// The largest answer, in bytes.
    pub answer: usize,
    /// How long an idle connection is kept.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            read: Duration::from_secs(30),
            total: Duration::from_secs(120),
            answer: 64 << 20,
            idle: Duration::from_secs(50),
        }
    }
}

/// Redirects within the same address that a GET follows.
const REDIRECTS: u32 = 3;

/// The connections to one array. Clones share them.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Inner,
    base: String,
    limits: Limits,
    recorder: Recorder,
}

impl Client {
    /// A client for the API at `base`: scheme, host, port, such as `https://10.0.0.1`. Error kind
    /// `config` if that is no address, or if whom to trust cannot be read.
    pub fn new(base: &str, trust: &Trust, limits: Limits, recorder: Recorder) -> Result<Self> {
        let base = base.trim_end_matches('/').to_owned();
        let wrong = || {
            Error::config("the address of the array's API is no URL such as https://10.0.0.1:443")
        };
        let url = reqwest::Url::parse(&base).map_err(|error| wrong().source(&error))?;
        let plain = url.path() == "/" && url.query().is_none() && url.username().is_empty();
        if !matches!(url.scheme(), "https" | "http") || !plain || url.host().is_none() {
            return Err(wrong());
        }
        let inner = Inner::builder()
            .tls_backend_preconfigured(trust.config()?)
            .http1_only()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(limits.connect)
            .read_timeout(limits.read)
            .pool_idle_timeout(limits.idle)
            .user_agent(concat!("storage-manager/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::internal("no HTTP client can be made").source(&error))?;
        Ok(Self { inner, base, limits, recorder })
    }

    /// What has been sent.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Sends a request once and waits for the whole answer, whatever its status.
    pub async fn send(&self, cx: &Cx, request: &Request) -> Outcome<Reply> {
        request.check()?;
        cx.check()?;
        let mut target = request.target();
        let mut followed = 0;
        loop {
            let reply = self.once(cx, request, &target).await?;
            if !matches!(reply.status, 301 | 302 | 303 | 307 | 308) {
                return Ok(reply);
            }
            target = self.redirected(request, &reply, &target)?;
            followed += 1;
            if followed > REDIRECTS {
                let fact = format!("{} is redirected in a circle", reply.asked);
                return Err(answered(request, fact));
            }
        }
    }

    async fn once(&self, cx: &Cx, request: &Request, target: &str) -> Outcome<Reply> {
        let (started, clock) = (SystemTime::now(), Instant::now());
        let outcome = self.exchange(cx, request, target).await;
        let (status, received) = match &outcome {
            Ok(reply) => (Some(reply.status), reply.body.len()),
            Err(failure) => (failure.status, 0),
        };
        self.recorder.record(Entry {
            operation: request.operation,
            method: request.method.name(),
            path: request.path.clone(),
            status,
            outcome: outcome.as_ref().err().map(|failure| format!("{:?}", failure.class)),
            started,
            took: clock.elapsed(),
            sent: request.body.as_ref().map_or(0, Vec::len),
            received,
        });
        outcome
    }

    async fn exchange(&self, cx: &Cx, request: &Request, target: &str) -> Outcome<Reply> {
        let url = format!("{}{target}", self.base);
        let invalid = |fact: &str| Failure::new(Class::Invalid).fact(fact);
        let url = reqwest::Url::parse(&url)
            .map_err(|_| invalid("the path of the request makes no URL"))?;
        let path = target.split('?').next().unwrap_or_default();
        if url.path() != path {
            return Err(invalid("the path of the request would be changed on its way"));
        }
        let asked = format!("{} {}", request.method.name(), request.path);
        let limit = self.limits.total.min(cx.remaining());
        let mut builder = self.inner.request(verb(request.method), url).timeout(limit);
        let mut named = false;
        for (name, value) in &request.headers {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| invalid("a header of the request has no valid name"))?;
            let mut value = HeaderValue::from_str(value.reveal())
                .map_err(|_| invalid("a header of the request holds a control character"))?;
            value.set_sensitive(true);
            named |= name == reqwest::header::CONTENT_TYPE;
            builder = builder.header(name, value);
        }
        if let Some(traceparent) = cx.traceparent() {
            builder = builder.header("traceparent", traceparent);
        }
        if let Some(body) = &request.body {
            if !named {
                builder = builder.header(reqwest::header::CONTENT_TYPE, "application/json");
            }
            builder = builder.body(body.clone());
        }
        let sent = builder.send();
        let mut response = match ended(cx, request, sent).await? {
            Ok(response) => response,
            Err(error) => return Err(self.not_answered(request, &asked, &error)),
        };
        let status = response.status().as_u16();
        let headers = response.headers().iter().map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        });
        let headers: Vec<_> = headers.collect();
        let mut body = Vec::new();
        loop {
            match ended(cx, request, response.chunk()).await? {
                Ok(None) => break,
                Ok(Some(piece)) if body.len() + piece.len() <= self.limits.answer => {
                    body.extend_from_slice(&piece);
                }
                Ok(Some(_)) => {
                    let limit = self.limits.answer;
                    let fact = format!("the answer to {asked} is longer than {limit} bytes");
                    return Err(answered(request, fact));
                }
                Err(_) => {
                    let fact = format!(
                        "the connection ended in the middle of the answer to {asked}, after {} \
                         bytes with status {status}",
                        body.len()
                    );
                    let mut failure = Failure::new(lost(request)).fact(fact);
                    failure.status = Some(status);
                    return Err(failure);
                }
            }
        }
        Ok(Reply { status, headers, body, asked })
    }

    fn not_answered(&self, request: &Request, asked: &str, error: &reqwest::Error) -> Failure {
        let base = &self.base;
        if let Some((fact, hint)) = tls::problem(error) {
            return Failure::new(Class::Unreachable)
                .fact(format!("the array at {base} is not trusted: {fact}"))
                .hint(hint);
        }
        let why = innermost(error);
        if error.is_connect() {
            let why = if error.is_timeout() {
                format!("no connection within {} s", self.limits.connect.as_secs_f32())
            } else {
                why
            };
            return Failure::new(Class::Unreachable)
                .fact(format!("the array at {base} cannot be reached: {why}"))
                .hint("look at the address, the network, and whether the array is up");
        }
        let fact = if error.is_timeout() {
            format!("no whole answer to {asked} in time")
        } else {
            format!("the connection ended before the answer to {asked}: {why}")
        };
        Failure::new(lost(request)).fact(fact)
    }

    /// Where a redirect leads, if it may be followed: a GET, and the same address. Elsewhere our
    /// credentials would go to whoever the answer named.
    fn redirected(&self, request: &Request, reply: &Reply, from: &str) -> Outcome<String> {
        let location = reply.header("location").unwrap_or_default();
        let base = reqwest::Url::parse(&format!("{}{from}", self.base)).ok();
        let url = base.as_ref().and_then(|base| base.join(location).ok());
        let same = match (&base, &url) {
            (Some(base), Some(url)) => base.origin() == url.origin(),
            _ => false,
        };
        match url {
            Some(url) if same && !request.mutating && request.method == Method::Get => {
                Ok(match url.query() {
                    Some(query) => format!("{}?{query}", url.path()),
                    None => url.path().to_owned(),
                })
            }
            url => {
                let host = url.and_then(|url| Some(url.host_str()?.to_owned()));
                let host = host.unwrap_or_else(|| "nowhere".to_owned());
                Err(answered(request, format!("{} is redirected to {host}", reply.asked))
                    .hint("use the address it is redirected to, if that is the array's"))
            }
        }
    }
}

/// Waits for a part of the exchange. A reading request ends with its call; one that changes
/// something has its own limit of time and is never dropped, because its answer would be lost.
async fn ended<T>(cx: &Cx, request: &Request, part: impl Future<Output = T> + Send) -> Outcome<T> {
    if request.mutating {
        return Ok(part.await);
    }
    plugin_sdk::tokio::select! {
        biased;
        done = part => Ok(done),
        () = cx.cancelled() => Err(cx.check().err().map_or_else(
            || Failure::new(Class::Own), Failure::from)),
    }
}

/// The class of an answer that did not arrive as a whole.
fn lost(request: &Request) -> Class {
    // For a request that reads, this is as good as no answer at all.
    if request.mutating { Class::Unknown } else { Class::Unreachable }
}

/// The failure of an answer that is not one of the API.
fn answered(request: &Request, fact: String) -> Failure {
    let class = if request.mutating { Class::Unknown } else { Class::Garbled };
    Failure::new(class).fact(fact)
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn verb(method: Method) -> reqwest::Method {
    match method {
        Method::Get => reqwest::Method::GET,
        Method::Post => reqwest::Method::POST,
        Method::Put => reqwest::Method::PUT,
        Method::Patch => reqwest::Method::PATCH,
        Method::Delete => reqwest::Method::DELETE,
    }
}
