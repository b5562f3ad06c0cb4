//! The API: who we are, what its refusals mean, listings in pages, jobs.

use array_kit::job::{State, ended};
use array_kit::pages::{self, Page};
use array_kit::prelude::*;

use crate::array::Ontap;

/// Objects in one page of a listing.
const PAGE: &str = "1000";

/// How long the array may take before it answers with a job instead, in seconds.
const PATIENCE: &str = "15";

/// Codes are those of the tables in the ONTAP REST API reference, of `/storage/luns`,
/// `/protocols/san/lun-maps`, `/protocols/san/igroups` and `/storage/volumes/{uuid}/snapshots`.
const TABLE: Table = Table::new(&[
    Row::code("5374922").on("unmap").done(),
    // The size that it has.
    Row::code("1254226").on("resize").is(Class::AlreadyExists),
    Row::codes(&["5374242", "1260136", "5374023", "5374930", "525059", "1254207", "1"])
        .is(Class::AlreadyExists),
    Row::codes(&["1254197", "1254213"]).is(Class::InUse),
    Row::codes(&["5374875", "5374876", "5374852", "5374931", "917927", "2621462", "4"])
        .is(Class::NotFound),
    Row::codes(&["5374892", "5374125", "525062"]).is(Class::LimitReached),
    // Two maps at the same moment: the next try gets another number.
    Row::codes(&["1254193", "1254324"]).is(Class::Busy),
    // A snapshot that something else is just using.
    Row::codes(&["1638543", "1638555"]).is(Class::Busy),
    // It is made, or overwritten, and not all of its properties are set: somebody has to look.
    Row::codes(&["5374863", "5374864", "5374885", "5374886"]).is(Class::Unknown),
    Row::code("6").is(Class::Denied),
    Row::code("3").is(Class::Unsupported),
    Row::text("already exists").is(Class::AlreadyExists),
    Row::texts(&["no space left", "not enough space", "insufficient space"]).is(Class::NoSpace),
    Row::of_status(504).is(Class::Unknown),
]);

/// The array's words and code, from an answer or from a job that failed.
fn fault_in(error: &Value) -> Fault {
    // A text by the reference; a number does no harm.
    let code = error.get("code");
    let code = code.map(|code| code.as_str().map_or_else(|| code.to_string(), str::to_owned));
    Fault { code, message: error.text("message").to_owned(), ..Fault::default() }
}

/// Generation, major and minor number of the array's release.
pub(crate) fn version(cluster: &Value) -> [u64; 3] {
    let part = |name: &str| cluster.number(&format!("version.{name}")).unwrap_or(0);
    [part("generation"), part("major"), part("minor")]
}

pub(crate) fn cluster(operation: &'static str) -> Request {
    Request::get(operation, "cluster").query("fields", "version")
}

/// Each request has the credentials; the login is a look whether they are right.
pub(crate) struct Web {
    pub(crate) credentials: Secret,
    pub(crate) svm: String,
}

impl Vendor for Web {
    type Token = Secret;

    const TABLE: Table = TABLE;

    fn root(&self) -> String {
        "/api/".to_owned()
    }

    fn fault(&self, reply: &Reply) -> Option<Fault> {
        if reply.is_success() {
            return None;
        }
        let body: Value = reply.json().unwrap_or_default();
        Some(fault_in(body.at("error")))
    }

    async fn login(&self, door: &Door<'_, Self>) -> Outcome<Secret> {
        let request = self.sign(&self.credentials, cluster("login"));
        let cluster: Value = door.send(request).await?.json()?;
        let [generation, major, minor] = version(&cluster);
        if generation == 0 {
            return Err(Failure::new(Class::Garbled).fact("the array does not tell its release"));
        }
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

impl Ontap {
    /// The record that a request makes, if the array answers with it.
    pub(crate) async fn made(&self, cx: &Cx, request: Request) -> Outcome<Option<Value>> {
        let made: Value = self.api.json(cx, request.query("return_records", "true")).await?;
        Ok(made.list("records").first().cloned())
    }

    /// All records of a collection with these fields. A page may have none, and a next one all the same.
    pub(crate) async fn all(&self, cx: &Cx, from: Request, fields: &str) -> Outcome<Vec<Value>> {
        let first = &from.query("fields", fields).query("max_records", PAGE);
        let fetch = |next: String| async move {
            let request = if next.is_empty() { first.clone() } else { Request::get("page", &next) };
            let page: Value = self.api.json(cx, request).await?;
            let next = Some(page.text("_links.next.href").to_owned());
            let next = next.filter(|href| !href.is_empty());
            // Wherever else it leads, our credentials would go along.
            if next.as_ref().is_some_and(|href| !href.starts_with("/api/")) {
                let fact = "the next page of a listing is not one of the API";
                return Err(Failure::new(Class::Garbled).fact(fact));
            }
            let Some(records) = page.at("records").as_array() else {
                return Err(Failure::new(Class::Garbled).fact("the listing has no records"));
            };
            Ok(Page { items: records.clone(), next, total: None })
        };
        pages::all("records", String::new(), fetch).await
    }

    /// Sends what the array may do by a job, and waits for its end. A record of a job that is gone says
    /// nothing: whoever needs the object looks for it.
    pub(crate) async fn finish(
        &self,
        cx: &Cx,
        stage: &'static str,
        request: Request,
    ) -> Outcome<()> {
        let reply = self.api.send(cx, request.query("return_timeout", PATIENCE)).await?;
        let open = |failure: Failure| failure.reclassed(Class::Unknown);
        let answer: Value =
            if reply.body().is_empty() { Value::Null } else { reply.json().map_err(open)? };
        if reply.status() != 202 {
            return Ok(());
        }
        let uuid = answer.need("job.uuid").map_err(open)?;
        let ask = || async move {
            let request = Request::get("job", "cluster/jobs").segment(uuid);
            let request = request.query("fields", "state,message,code,error");
            let job: Value = self.api.json(cx, request).await?;
            Ok(match job.text("state") {
                "success" => State::Done,
                "failure" => {
                    let error = if job.at("error").is_null() { &job } else { job.at("error") };
                    let failure = TABLE.failure(stage, &fault_in(error));
                    failure.map_or(State::Done, State::Failed)
                }
                _ => State::Running { permille: None },
            })
        };
        ended(cx, stage, ask).await
    }
}
