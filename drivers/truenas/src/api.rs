//! The array's API: one table of calls, over REST v2.0 or JSON-RPC.
//!
//! TrueNAS makes its REST paths out of its methods, so each call here is both a request and a
//! method with parameters; the API that the array has decides which of the two is sent.

use array_kit::classify::{Fault, Row, Table};
use array_kit::http::{Client, Limits, Reply, Request, Trust};
use array_kit::outcome::{Class, Failure, Outcome};
use array_kit::recorder::{Recorder, Redactor};
use array_kit::rest::{Door, Rest, Vendor};
use array_kit::rpc::{self, Line, Peer, Rpc};
use plugin_sdk::config::ConfigValue;
use plugin_sdk::model::manifest::FieldKind;
use plugin_sdk::{Cx, Result, Secret};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Objects in one page of a listing.
pub(crate) const PAGE: usize = 1000;

/// What its refusals mean. Most are of status 422 and differ in words alone.
pub(crate) const TABLE: Table = Table::new(&[
    // "in use" lasts some seconds after the last initiator has logged out.
    Row::text("is in use").on("target_delete").is(Class::Busy),
    Row::text("is in use").is(Class::InUse),
    Row::text("not a cloned").on("promote").done(),
    Row::text("dependent clones").is(Class::InUse),
    Row::text("is busy").is(Class::InUse),
    Row::text("has children").is(Class::InUse),
    Row::text("has snapshots").is(Class::InUse),
    Row::text("more recent snapshots").is(Class::InUse),
    Row::text("already exists").is(Class::AlreadyExists),
    Row::text("must be unique").is(Class::AlreadyExists),
    Row::text("currently in use by extent").is(Class::AlreadyExists),
    Row::text("already in this target").is(Class::AlreadyExists),
    // Two associations at the same moment: the next try gets another number.
    Row::text("lun id is already being used").is(Class::Busy),
    Row::text("out of space").is(Class::NoSpace),
    Row::text("no space left").is(Class::NoSpace),
    Row::text("insufficient space").is(Class::NoSpace),
    Row::text("quota exceeded").is(Class::NoSpace),
    // Of a volume that is larger than that, thin or not; it is not forced upon the array.
    Row::text("more than 80% of your available space").is(Class::NoSpace),
    Row::text("shrink").on("resize").is(Class::LimitReached),
    Row::text("too many concurrent calls").is(Class::Busy),
    Row::text("enotauthenticated").is(Class::Expired),
    Row::text("not authenticated").is(Class::Expired),
    Row::text("not authorized").is(Class::Denied),
    Row::text("does not exist").is(Class::NotFound),
    Row::text("not found").is(Class::NotFound),
    Row::text("instancenotfound").is(Class::NotFound),
    Row::text("no such").is(Class::NotFound),
    Row::text("enoent").is(Class::NotFound),
    // What stopped somewhere in the middle; validation, which comes first, has other numbers.
    Row::text("efault").is(Class::Unknown),
    // A proxy that did not wait: the work goes on.
    Row::of_status(504).is(Class::Unknown),
]);

/// A call in both forms.
#[derive(Clone)]
pub(crate) struct Call {
    rest: Request,
    rpc: rpc::Call,
}

fn path(namespace: &str) -> String {
    format!("/api/v2.0/{}", namespace.replace('.', "/"))
}

impl Call {
    fn new(rest: Request, operation: &'static str, method: String, params: Vec<Value>) -> Self {
        Self { rest, rpc: rpc::Call { operation, method, params, mutating: true } }
    }

    fn reading(mut self) -> Self {
        self.rpc.mutating = false;
        self
    }

    /// What a namespace has one of, such as `iscsi.global` and `config`.
    pub(crate) fn config(operation: &'static str, namespace: &str, method: &str) -> Self {
        let rest = Request::get(operation, &path(namespace));
        Self::new(rest, operation, format!("{namespace}.{method}"), Vec::new()).reading()
    }

    /// The objects of a namespace that match all filters: `=`, or `^` for a prefix.
    pub(crate) fn query(
        operation: &'static str,
        namespace: &str,
        filters: &[(&str, &str, Value)],
    ) -> Self {
        let mut rest = Request::get(operation, &path(namespace));
        for (field, operator, value) in filters {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let key =
                if *operator == "^" { format!("{field}__startswith") } else { (*field).into() };
            rest = rest.query(&key, &text);
        }
        let params = vec![json!(filters), json!({})];
        Self::new(rest, operation, format!("{namespace}.query"), params).reading()
    }

    /// The page of a query at an offset, sorted by id.
    pub(crate) fn page(mut self, offset: usize) -> Self {
        self.rest = self.rest.query("limit", &PAGE.to_string());
        self.rest = self.rest.query("offset", &offset.to_string()).query("sort", "id");
        self.option("limit", json!(PAGE));
        self.option("offset", json!(offset));
        self.option("order_by", json!(["id"]));
        self
    }

    /// A query of datasets without what lies below each.
    pub(crate) fn flat(mut self) -> Self {
        self.rest = self.rest.query("extra.retrieve_children", "false");
        self.option("extra", json!({ "retrieve_children": false }));
        self
    }

    fn option(&mut self, key: &str, value: Value) {
        if let Some(Value::Object(options)) = self.rpc.params.get_mut(1) {
            options.insert(key.to_owned(), value);
        }
    }

    pub(crate) fn create(operation: &'static str, namespace: &str, body: Value) -> Self {
        let rest = Request::post(operation, &path(namespace)).json(&body);
        Self::new(rest, operation, format!("{namespace}.create"), vec![body])
    }

    pub(crate) fn update(
        operation: &'static str,
        namespace: &str,
        id: &Value,
        body: Value,
    ) -> Self {
        let text = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
        let rest = Request::put(operation, &format!("{}/id", path(namespace)));
        let rest = rest.segment(&text).json(&body);
        Self::new(rest, operation, format!("{namespace}.update"), vec![id.clone(), body])
    }

    /// `body` is what REST takes, `more` are the parameters after the id.
    pub(crate) fn delete(
        operation: &'static str,
        namespace: &str,
        id: &Value,
        body: &Value,
        more: Vec<Value>,
    ) -> Self {
        let text = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
        let rest = Request::delete(operation, &format!("{}/id", path(namespace)));
        let params = std::iter::once(id.clone()).chain(more).collect();
        let method = format!("{namespace}.delete");
        Self::new(rest.segment(&text).json(body), operation, method, params)
    }

    /// Another method of a namespace: what REST takes as a body, and the parameters.
    pub(crate) fn method(
        operation: &'static str,
        namespace: &str,
        method: &str,
        body: &Value,
        params: Vec<Value>,
    ) -> Self {
        let rest = Request::post(operation, &format!("{}/{method}", path(namespace))).json(body);
        Self::new(rest, operation, format!("{namespace}.{method}"), params)
    }

    /// A method of one object, whose path ends with its name.
    pub(crate) fn of_object(
        operation: &'static str,
        namespace: &str,
        id: &str,
        verb: &str,
    ) -> Self {
        let rest = Request::post(operation, &format!("{}/id", path(namespace)));
        let rest = rest.segment(id).then(&format!("/{verb}")).json(&json!({}));
        Self::new(rest, operation, format!("{namespace}.{verb}"), vec![json!(id)])
    }
}

/// Who we are at the array.
#[derive(Clone, Debug)]
pub(crate) enum Credentials {
    /// A key of the API, and whose it is, if that is known.
    Key(Option<String>, Secret),
    /// A user's password.
    Password(String, Secret),
}

impl Credentials {
    fn secret(&self) -> &Secret {
        match self {
            Self::Key(_, secret) | Self::Password(_, secret) => secret,
        }
    }

    fn header(&self) -> Secret {
        match self {
            Self::Key(_, key) => Secret::from(format!("Bearer {}", key.reveal())),
            Self::Password(user, password) => array_kit::http::basic(user, password),
        }
    }
}

/// REST v2.0. Each request has the credentials; the login is a look whether they are right.
pub(crate) struct Web(Credentials);

impl Vendor for Web {
    type Token = Secret;

    const TABLE: Table = TABLE;

    fn fault(&self, reply: &Reply) -> Option<Fault> {
        if reply.is_success() {
            return None;
        }
        let body: Value = reply.json().unwrap_or_default();
        let mut message = Vec::new();
        words(&body, &mut message);
        let code = body.get("errno").and_then(Value::as_i64).map(|errno| errno.to_string());
        Some(Fault { code, message: message.join("; "), ..Fault::default() })
    }

    async fn login(&self, door: &Door<'_, Self>) -> Outcome<Secret> {
        let token = self.0.header();
        let request = Request::get("login", "/api/v2.0/system/version");
        let reply = door.send(self.sign(&token, request)).await?;
        let version: String = reply.json()?;
        // Paths of volumes have 63 characters at most where the system is FreeBSD.
        if version.starts_with("FreeNAS") || version.starts_with("TrueNAS-1") {
            return Err(Failure::new(Class::Unsupported)
                .fact(format!("the array has {version}, whose names are too short"))
                .hint("this driver is for TrueNAS SCALE 22.02 and later"));
        }
        Ok(token)
    }

    fn sign(&self, token: &Secret, request: Request) -> Request {
        request.header("authorization", token.clone())
    }

    fn secrets(&self, token: &Secret) -> Vec<Secret> {
        vec![token.clone()]
    }
}

/// JSON-RPC. A session is a connection that has logged in.
pub(crate) struct Socket(Credentials);

impl Peer for Socket {
    const TABLE: Table = TABLE;

    fn fault(&self, error: &Value) -> Fault {
        let number = error.get("code").and_then(Value::as_i64);
        let mut message = Vec::new();
        words(error, &mut message);
        // Where no words decide, the same is meant as by REST's status.
        let status = match number {
            Some(-32_000) => 503,
            Some(-32_601) => 501,
            Some(-32_603) | None => 500,
            Some(-6) => 404,
            Some(_) => 422,
        };
        let code = number.map(|number| number.to_string());
        Fault { status: Some(status), code, message: message.join("; "), retry_after: None }
    }

    async fn login(&self, line: &Line<'_, Self>) -> Outcome<()> {
        let (method, params) = match &self.0 {
            Credentials::Key(None, key) => ("auth.login_with_api_key", json!([key.reveal()])),
            Credentials::Key(Some(user), key) => (
                "auth.login_ex",
                json!([{ "mechanism": "API_KEY_PLAIN", "username": user, "api_key": key.reveal() }]),
            ),
            Credentials::Password(user, password) => (
                "auth.login_ex",
                json!([{
                    "mechanism": "PASSWORD_PLAIN", "username": user, "password": password.reveal()
                }]),
            ),
        };
        let params = params.as_array().cloned().unwrap_or_default();
        let (operation, method) = ("login", method.to_owned());
        let call = rpc::Call { operation, method, params, mutating: false };
        let answer = line.call(call).await?;
        let kind = answer.get("response_type").and_then(Value::as_str);
        match (answer.as_bool(), kind) {
            (Some(true), _) | (_, Some("SUCCESS")) => Ok(()),
            (Some(false), _) | (_, Some("AUTH_ERR" | "EXPIRED" | "DENIED")) => {
                Err(Failure::new(Class::Denied))
            }
            (_, Some("OTP_REQUIRED")) => Err(Failure::new(Class::Unsupported)
                .fact("the user needs a one-time password to log in")
                .hint("use an API key of that user")),
            _ => Err(Failure::new(Class::Garbled).fact("the answer to the login is not known")),
        }
    }
}

/// The number of an error that has no better one.
const EFAULT: i64 = 14;

/// Collects what an error says: `message`, `reason`, and messages keyed by field, at any depth that
/// the two APIs use.
fn words(error: &Value, into: &mut Vec<String>) {
    match error {
        Value::String(text) => into.push(text.clone()),
        Value::Array(all) => {
            // `[field, message, errno]`, or a list of those.
            let tuple = matches!(all.as_slice(), [Value::String(_), Value::String(_), ..]);
            all.iter().skip(usize::from(tuple)).for_each(|one| words(one, into));
        }
        Value::Object(object) => {
            for (key, value) in object {
                if key == "errno" && value.as_i64() == Some(EFAULT) {
                    // JSON-RPC says it by name.
                    into.push("EFAULT".to_owned());
                }
                if !matches!(key.as_str(), "trace" | "traceback" | "errno" | "code" | "type") {
                    words(value, into);
                }
            }
        }
        _ => {}
    }
}

/// Which API is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// JSON-RPC if the array has it, else REST.
    Auto,
    /// REST v2.0.
    Rest,
    /// JSON-RPC over a WebSocket.
    Websocket,
}

impl ConfigValue for Choice {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "rest" => Ok(Self::Rest),
            "websocket" => Ok(Self::Websocket),
            _ => Err("auto, rest or websocket".to_owned()),
        }
    }
}

/// The API that the array has.
pub(crate) enum Api {
    Rest(Rest<Web>),
    Rpc {
        rpc: Rpc<Socket>,
        /// What `zfs.snapshot` is called.
        snapshots: &'static str,
    },
}

impl Api {
    /// Finds out which API the array has, and logs in.
    pub(crate) async fn open(
        cx: &Cx,
        base: &str,
        trust: &Trust,
        credentials: Credentials,
        choice: Choice,
    ) -> Result<Self> {
        let redactor = Redactor::default();
        redactor.learn(credentials.secret());
        let recorder = Recorder::new(redactor);
        let limits = Limits::default();
        if choice != Choice::Rest {
            let peer = Socket(credentials.clone());
            let rpc = Rpc::new(peer, base, "/api/current", trust, limits, recorder.clone())?;
            match rpc.connect(cx).await {
                Ok(()) => {
                    let mut api = Self::Rpc { rpc, snapshots: "zfs.snapshot" };
                    let call = Call::config("version", "system", "version");
                    let version: String = api.run(cx, &call).await?;
                    if let Self::Rpc { snapshots, .. } = &mut api
                        && is_since(&version, (25, 10))
                    {
                        *snapshots = "pool.snapshot";
                    }
                    return Ok(api);
                }
                // What answers there has no JSON-RPC.
                Err(failure)
                    if choice == Choice::Auto
                        && failure.class == Class::Unsupported
                        && failure.status.is_some() => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        let rest = Rest::new(Web(credentials), Client::new(base, trust, limits, recorder)?);
        rest.connect(cx).await?;
        Ok(Self::Rest(rest))
    }

    /// Makes a call and reads its answer.
    pub(crate) async fn run<T: DeserializeOwned>(&self, cx: &Cx, call: &Call) -> Outcome<T> {
        let answer = match self {
            Self::Rest(rest) => {
                let reply = rest.send(cx, call.rest.clone()).await?;
                // What the table calls done has no answer of success.
                if !reply.is_success() || reply.body().is_empty() {
                    Value::Null
                } else {
                    reply.json().map_err(|failure| {
                        if call.rpc.mutating { failure.reclassed(Class::Unknown) } else { failure }
                    })?
                }
            }
            Self::Rpc { rpc, snapshots } => {
                let mut call = call.rpc.clone();
                if let Some(method) = call.method.strip_prefix("zfs.snapshot") {
                    call.method = format!("{snapshots}{method}");
                }
                rpc.call(cx, &call).await?
            }
        };
        serde_json::from_value(answer).map_err(|error| {
            let class = if call.rpc.mutating { Class::Unknown } else { Class::Garbled };
            let fact = format!("the answer to {} is not understood: {error}", call.rpc.method);
            Failure::new(class).fact(fact)
        })
    }

    /// Makes a call whose answer says nothing.
    pub(crate) async fn just(&self, cx: &Cx, call: &Call) -> Outcome<()> {
        self.run::<Value>(cx, call).await.map(drop)
    }

    pub(crate) fn is_denied(&self) -> bool {
        match self {
            Self::Rest(rest) => rest.is_denied(),
            Self::Rpc { rpc, .. } => rpc.is_denied(),
        }
    }

    pub(crate) async fn close(&self, cx: &Cx) {
        match self {
            Self::Rest(rest) => rest.close(cx).await,
            Self::Rpc { rpc, .. } => rpc.close(cx).await,
        }
    }
}

/// Whether a version such as `TrueNAS-25.04.0` is that one or later.
fn is_since(version: &str, least: (u32, u32)) -> bool {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    let mut number = || numbers.next().and_then(|part| part.parse().ok()).unwrap_or(0);
    (number(), number()) >= least
}
