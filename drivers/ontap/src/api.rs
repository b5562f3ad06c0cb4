//! The API: who we are, what its refusals mean, listings in pages, jobs.

use array_kit::classify::{Fault, Row, Table};
use array_kit::http::{Client, Limits, Reply, Request, Trust, basic};
use array_kit::job::{Poll, State, wait_for};
use array_kit::outcome::{Class, Failure, Outcome};
use array_kit::pages::{Page, all};
use array_kit::recorder::{Recorder, Redactor};
use array_kit::rest::{Door, Rest, Vendor};
use plugin_sdk::{Cx, Result, Secret};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Objects in one page of a listing.
const PAGE: &str = "1000";

/// How long the array may take before it answers with a job instead, in seconds.
pub(crate) const PATIENCE: &str = "15";

/// Codes are those of the tables in the ONTAP REST API reference, of `/storage/luns`,
/// `/protocols/san/lun-maps`, `/protocols/san/igroups` and `/storage/volumes/{uuid}/snapshots`.
pub(crate) const TABLE: Table = Table::new(&[
    Row::code("5374242").is(Class::AlreadyExists),
    Row::code("1260136").is(Class::AlreadyExists),
    Row::code("5374023").is(Class::AlreadyExists),
    Row::code("5374930").is(Class::AlreadyExists),
    Row::code("525059").is(Class::AlreadyExists),
    Row::code("1254207").is(Class::AlreadyExists),
    Row::code("1").is(Class::AlreadyExists),
    Row::code("5374922").on("unmap").done(),
    Row::code("1254226").on("resize").done(),
    Row::code("1254197").is(Class::InUse),
    Row::code("1254213").is(Class::InUse),
    Row::code("5374875").is(Class::NotFound),
    Row::code("5374876").is(Class::NotFound),
    Row::code("5374852").is(Class::NotFound),
    Row::code("5374931").is(Class::NotFound),
    Row::code("917927").is(Class::NotFound),
    Row::code("2621462").is(Class::NotFound),
    Row::code("4").is(Class::NotFound),
    Row::code("5374892").is(Class::LimitReached),
    Row::code("5374125").is(Class::LimitReached),
    Row::code("525062").is(Class::LimitReached),
    // Two maps at the same moment: the next try gets another number.
    Row::code("1254193").is(Class::Busy),
    Row::code("1254324").is(Class::Busy),
    // A snapshot that something else is just using.
    Row::code("1638543").is(Class::Busy),
    Row::code("1638555").is(Class::Busy),
    // It is made, or overwritten, and not all of its properties are set: somebody has to look.
    Row::code("5374863").is(Class::Unknown),
    Row::code("5374864").is(Class::Unknown),
    Row::code("5374885").is(Class::Unknown),
    Row::code("5374886").is(Class::Unknown),
    Row::code("6").is(Class::Denied),
    Row::code("3").is(Class::Unsupported),
    Row::text("already exists").is(Class::AlreadyExists),
    Row::text("no space left").is(Class::NoSpace),
    Row::text("not enough space").is(Class::NoSpace),
    Row::text("insufficient space").is(Class::NoSpace),
    Row::of_status(504).is(Class::Unknown),
]);

/// The array's words and code, from an answer or from a job that failed.
fn fault_in(error: &Value) -> Fault {
    // A text by the reference; a number does no harm.
    let code =
        error.get("code").map(|code| code.as_str().map_or_else(|| code.to_string(), str::to_owned));
    let message = error.get("message").and_then(Value::as_str).unwrap_or_default().to_owned();
    Fault { code, message, ..Fault::default() }
}

/// Each request has the credentials; the login is a look whether they are right.
pub(crate) struct Web {
    credentials: Secret,
    svm: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Cluster {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) uuid: String,
    pub(crate) version: Version,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Version {
    pub(crate) generation: u32,
    pub(crate) major: u32,
    #[serde(default)]
    pub(crate) minor: u32,
}

pub(crate) fn cluster(operation: &'static str) -> Request {
    Request::get(operation, "/api/cluster").query("fields", "version")
}

impl Vendor for Web {
    type Token = Secret;

    const TABLE: Table = TABLE;

    fn fault(&self, reply: &Reply) -> Option<Fault> {
        if reply.is_success() {
            return None;
        }
        let body: Value = reply.json().unwrap_or_default();
        Some(fault_in(body.get("error").unwrap_or(&Value::Null)))
    }

    async fn login(&self, door: &Door<'_, Self>) -> Outcome<Secret> {
        let request = self.sign(&self.credentials, cluster("login"));
        let Version { generation, major, minor } =
            door.send(request).await?.json::<Cluster>()?.version;
        // Attributes of LUNs are of 9.10.1.
        if (generation, major) < (9, 10) {
            return Err(Failure::new(Class::Unsupported)
                .fact(format!("the array has ONTAP {generation}.{major}.{minor}"))
                .hint("this driver is for ONTAP 9.10.1 and later"));
        }
        Ok(self.credentials.clone())
    }

    fn sign(&self, token: &Secret, request: Request) -> Request {
        // Of a user of the cluster it makes an administrator of that SVM.
        let request = request.header("x-dot-svm-name", self.svm.clone());
        request.header("authorization", token.clone())
    }

    fn secrets(&self, token: &Secret) -> Vec<Secret> {
        vec![token.clone()]
    }
}

/// A page of a collection, and what is answered to a request for the records that it made.
#[derive(Debug, Deserialize)]
struct Records<T> {
    #[serde(default = "Vec::new")]
    records: Vec<T>,
    #[serde(default, rename = "_links")]
    links: Links,
}

#[derive(Debug, Default, Deserialize)]
struct Links {
    #[serde(default)]
    next: Option<Link>,
}

#[derive(Debug, Deserialize)]
struct Link {
    href: String,
}

/// The API of an SVM.
pub(crate) struct Api {
    rest: Rest<Web>,
}

impl Api {
    /// Logs in.
    pub(crate) async fn open(
        cx: &Cx,
        base: &str,
        trust: &Trust,
        user: &str,
        password: &Secret,
        svm: &str,
    ) -> Result<Self> {
        let redactor = Redactor::default();
        redactor.learn(password);
        let client = Client::new(base, trust, Limits::default(), Recorder::new(redactor))?;
        let web = Web { credentials: basic(user, password), svm: svm.to_owned() };
        let rest = Rest::new(web, client);
        rest.connect(cx).await.map_err(|failure| match failure.class {
            Class::NotFound => failure.object(format!("SVM {svm}")),
            _ => failure,
        })?;
        Ok(Self { rest })
    }

    pub(crate) fn svm(&self) -> &str {
        &self.rest.vendor().svm
    }

    /// Sends a change whose answer says nothing. A page for people says less: the change is open.
    pub(crate) async fn send(&self, cx: &Cx, request: Request) -> Outcome<Reply> {
        let reply = self.rest.send(cx, request).await?;
        if !reply.body().is_empty() {
            reply.json::<Value>().map_err(|failure| failure.reclassed(Class::Unknown))?;
        }
        Ok(reply)
    }

    pub(crate) async fn json<T: DeserializeOwned>(&self, cx: &Cx, request: Request) -> Outcome<T> {
        self.rest.json(cx, request).await
    }

    /// The record that a request makes, if the array answers with it.
    pub(crate) async fn made<T: DeserializeOwned>(
        &self,
        cx: &Cx,
        request: Request,
    ) -> Outcome<Option<T>> {
        let request = request.query("return_records", "true");
        let made: Records<T> = self.rest.json(cx, request).await?;
        Ok(made.records.into_iter().next())
    }

    /// All records of a collection. A page may have none, and a next one all the same.
    pub(crate) async fn records<T: DeserializeOwned + Send>(
        &self,
        cx: &Cx,
        what: &'static str,
        request: Request,
    ) -> Outcome<Vec<T>> {
        let first = &request.query("max_records", PAGE);
        let fetch = |next: String| async move {
            let request = if next.is_empty() { first.clone() } else { Request::get(what, &next) };
            let page: Records<T> = self.rest.json(cx, request).await?;
            let next = page.links.next.map(|link| link.href);
            // Wherever else it leads, our credentials would go along.
            if next.as_ref().is_some_and(|href| !href.starts_with("/api/")) {
                return Err(Failure::new(Class::Garbled)
                    .fact(format!("the next page of {what} is not one of the API")));
            }
            Ok(Page { items: page.records, next, total: None })
        };
        all(what, String::new(), fetch).await
    }

    /// Sends what the array may do by a job, and waits for its end. A record of a job that is gone says
    /// nothing: whoever needs the object looks for it.
    pub(crate) async fn finish(
        &self,
        cx: &Cx,
        stage: &'static str,
        request: Request,
    ) -> Outcome<()> {
        #[derive(Deserialize)]
        struct Accepted {
            job: Job,
        }
        #[derive(Deserialize)]
        struct Job {
            #[serde(default)]
            uuid: String,
            #[serde(default)]
            state: String,
            #[serde(default)]
            message: String,
            #[serde(default)]
            code: Value,
            #[serde(default)]
            error: Option<Value>,
        }
        let reply = self.send(cx, request.query("return_timeout", PATIENCE)).await?;
        if reply.status() != 202 {
            return Ok(());
        }
        let accepted: Outcome<Accepted> = reply.json();
        let uuid = &accepted.map_err(|failure| failure.reclassed(Class::Unknown))?.job.uuid;
        let ask = || async move {
            let request = Request::get("job", "/api/cluster/jobs").segment(uuid);
            let job: Job =
                self.json(cx, request.query("fields", "state,message,code,error")).await?;
            Ok(match job.state.as_str() {
                "success" => State::Done,
                "failure" => {
                    let own = serde_json::json!({ "code": job.code, "message": job.message });
                    let fault = fault_in(job.error.as_ref().unwrap_or(&own));
                    let failure = TABLE.failure(stage, &fault);
                    failure.map_or(State::Done, State::Failed)
                }
                _ => State::Running { permille: None },
            })
        };
        wait_for(cx, stage, Poll::default(), ask, || async { Ok(Some(())) }, |()| async { Ok(()) })
            .await
    }

    pub(crate) fn is_denied(&self) -> bool {
        self.rest.is_denied()
    }
}
