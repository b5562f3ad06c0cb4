//! Cluster, SVM, aggregates, QoS policies, jobs.

use serde_json::{Value, json};

use super::failure::Failure;
use super::lun::made;
use super::objects::{Policy, dashed, new_uuid, text};
use super::query::Query;
use super::schema::{Body, QOS_CREATE, QOS_MODIFY};
use crate::core::{Array, Change, Effect, Job, JobState, Pool, View, Volume};

/// Status and body of an answer.
pub(super) type Said = (u16, Value);
/// The same, or why not.
pub(super) type Answer = Result<Said, Failure>;

pub(super) const SVM_UUID: &str = "03157e81-24c5-11e9-9ec1-005056bba643";
const AGGREGATE_UUID: &str = "19425837-f2fa-4a9f-8f01-712f626c983c";

pub(super) const SVM_FIELDS: &[&str] = &["uuid", "name", "state", "subtype", "iscsi.enabled"];
pub(super) const AGGREGATE_FIELDS: &[&str] = &[
    "uuid",
    "name",
    "state",
    "space.block_storage.size",
    "space.block_storage.available",
    "space.block_storage.used",
    "node.name",
];
pub(super) const QOS_FIELDS: &[&str] = &[
    "uuid",
    "name",
    "fixed.max_throughput_iops",
    "fixed.max_throughput_mbps",
    "fixed.capacity_shared",
    "svm.name",
    "svm.uuid",
    "object_count",
    "policy_class",
];
pub(super) const JOB_FIELDS: &[&str] =
    &["uuid", "state", "message", "code", "description", "error", "start_time", "end_time"];

/// A setting of this vendor, or its default.
pub(super) fn setting(array: &Array, name: &str, default: &Value) -> Value {
    array.settings().vendor.get(name).unwrap_or(default).clone()
}

pub(super) fn word(array: &Array, name: &str, default: &str) -> String {
    setting(array, name, &json!(default)).as_str().unwrap_or(default).to_owned()
}

pub(super) fn svm_name(array: &Array) -> String {
    word(array, "svm", super::SVM)
}

pub(super) fn svm(array: &Array) -> Value {
    json!({ "name": svm_name(array), "uuid": SVM_UUID })
}

/// Checks the SVM that a request is about: named in the body, or by the header.
pub(super) fn svm_of(array: &Array, body: &Body, tunnel: bool) -> Result<(), Failure> {
    let (name, uuid) = (body.text("svm.name"), body.text("svm.uuid"));
    if name.is_some_and(|name| name != svm_name(array)) || uuid.is_some_and(|id| id != SVM_UUID) {
        return Err(Failure::new(400, "2621462", "The specified SVM does not exist.").at("svm"));
    }
    if name.is_none() && uuid.is_none() && !tunnel {
        let text = "No SVM was specified. Either svm.name or svm.uuid must be supplied.";
        return Err(Failure::new(400, "2621707", text).at("svm"));
    }
    Ok(())
}

pub(super) fn pool_uuid(view: &View, name: &str) -> String {
    let pool = view.get::<Pool>(name);
    let uuid = pool.and_then(|pool| pool.attributes.get("uuid")?.as_str().map(str::to_owned));
    uuid.unwrap_or_default()
}

pub(super) fn cluster(array: &Array) -> Said {
    let version = word(array, "version", "9.14.1");
    let mut numbers = version.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let (generation, major, minor) = (next(), next(), next());
    let full = format!("NetApp Release {version}: Thu Jan 01 00:00:00 UTC 2026");
    (
        200,
        json!({
            "name": "cluster1", "uuid": "1cd8a442-86d1-11e0-ae1c-123478563434",
            "version": {
                "full": full, "generation": generation, "major": major, "minor": minor,
            },
        }),
    )
}

pub(super) fn svms(array: &Array, query: &Query) -> Said {
    let name = svm_name(array);
    let record = json!({
        "uuid": SVM_UUID, "name": name, "state": "running", "subtype": "default",
        "iscsi": { "enabled": true },
    });
    (200, query.page("/api/svm/svms", false, vec![(name, record)]))
}

pub(super) const AGGREGATE: &str = "aggr1";

pub(super) fn aggregates(array: &Array, query: &Query) -> Said {
    let size = setting(array, "aggregate", &json!(1_u64 << 44)).as_u64().unwrap_or(1 << 44);
    let view = array.view();
    let used: u64 = view
        .all::<Pool>()
        .iter()
        .filter_map(|(name, _)| array.space(name).ok())
        .map(|space| space.used + space.reserved)
        .sum();
    let available = size.saturating_sub(used);
    let record = json!({
        "uuid": AGGREGATE_UUID, "name": AGGREGATE, "state": "online", "node": { "name": "node1" },
        "space": { "block_storage": { "size": size, "available": available, "used": used } },
    });
    let record = vec![(AGGREGATE.to_owned(), record)];
    (200, query.page("/api/storage/aggregates", false, record))
}

/// Does what the array does by a job: its work is seen at once, the job ends when the clock says so.
/// Whoever waits long enough is told as if there had been none.
pub(super) fn by_job(
    array: &Array,
    method: &str,
    query: &Query,
    effect: Option<&Effect>,
    status: u16,
    work: impl FnOnce(&mut Change<'_>) -> Result<Option<Value>, Failure>,
) -> Answer {
    let error = match effect {
        Some(Effect::JobFails { error }) => Some(error.clone()),
        _ => None,
    };
    let fails = error.is_some();
    let lost = matches!(effect, Some(Effect::JobLost));
    let (id, record) = array.change(|change| {
        let record = work(change)?;
        let id = change.start_job(method, json!({}), error)?;
        if lost {
            change.remove::<Job>(&id.to_string());
        }
        Ok::<_, Failure>((id, record))
    })?;
    end_jobs(array)?;
    if !fails && !lost && query.wait > 0 && query.wait * 1000 >= array.settings().job {
        let said = record.map_or_else(|| json!({}), |record| made(query, || record).1);
        return Ok((status, said));
    }
    let uuid = job_uuid(id);
    let href = format!("/api/cluster/jobs/{uuid}");
    Ok((202, json!({ "job": { "uuid": uuid, "_links": { "self": { "href": href } } } })))
}

pub(super) fn end_jobs(array: &Array) -> Result<(), Failure> {
    array.end_jobs(|_, _| Ok(Value::Null))
}

fn job_uuid(id: u64) -> String {
    dashed(&format!("{:032x}", 0x1cd8_a442_86d1_11e0_0000_0000_0000_0000_u128 + u128::from(id)))
}

pub(super) fn job(array: &Array, uuid: &str) -> Answer {
    let view = array.view();
    let mut all = view.all::<Job>().into_iter();
    let is = |(id, _): &(String, _)| id.parse().is_ok_and(|id| job_uuid(id) == uuid);
    let (_, own) = all.find(is).ok_or_else(|| Failure::missing("uuid"))?;
    let (state, message, code) = match own.state(array.clock().now()) {
        JobState::Running(_) => ("running", String::new(), 0),
        JobState::Done(_) => ("success", "success".to_owned(), 0),
        JobState::Failed(error) => {
            let code = error.split(':').next().and_then(|code| code.parse().ok());
            ("failure", error.clone(), code.unwrap_or(1_i64))
        }
    };
    let mut answer = json!({
        "uuid": uuid, "description": own.method, "state": state, "message": message, "code": code,
        "start_time": super::objects::time(own.created),
    });
    if state == "failure"
        && let Some(answer) = answer.as_object_mut()
    {
        let error = json!({ "message": message, "code": code.to_string() });
        answer.insert("error".to_owned(), error);
    }
    Ok((200, answer))
}

fn policy(svm: &Value, view: &View, name: &str, own: &Policy) -> Value {
    let users =
        view.all::<Volume>().iter().filter(|(_, lun)| text(lun, "qos_policy") == name).count();
    json!({
        "uuid": own.uuid, "name": name, "svm": svm, "policy_class": "user_defined",
        "object_count": users,
        "fixed": {
            "max_throughput_iops": own.iops, "max_throughput_mbps": own.mbps,
            "capacity_shared": own.shared,
        },
    })
}

pub(super) fn policies(array: &Array, query: &Query) -> Said {
    let (view, svm) = (array.view(), svm(array));
    let all = view.all::<Policy>().into_iter();
    let records = all.map(|(name, own)| (name.clone(), policy(&svm, &view, &name, &own)));
    (200, query.page("/api/storage/qos/policies", false, records.collect()))
}

pub(super) fn create_policy(
    array: &Array,
    body: &[u8],
    query: &Query,
    tunnel: bool,
    effect: Option<&Effect>,
) -> Answer {
    let body = &Body::read(body, QOS_CREATE)?;
    svm_of(array, body, tunnel)?;
    let name = body.text("name").unwrap_or_default();
    let svm = svm(array);
    let number = |field: &str| body.number(field).unwrap_or(0);
    let own = Policy {
        uuid: new_uuid(),
        iops: number("fixed.max_throughput_iops"),
        mbps: number("fixed.max_throughput_mbps"),
        shared: body.flag("fixed.capacity_shared").unwrap_or(false),
    };
    by_job(array, "POST /api/storage/qos/policies", query, effect, 201, |change| {
        if change.get::<Policy>(name).is_some() {
            let text = format!("QoS policy group \"{name}\" already exists.");
            return Err(Failure::new(409, "8454177", text).at("name"));
        }
        change.put::<_, Failure>(name, &own)?;
        Ok(Some(policy(&svm, &change.view(), name, &own)))
    })
}

pub(super) fn set_policy(
    array: &Array,
    method: &str,
    uuid: &str,
    body: &[u8],
    query: &Query,
    effect: Option<&Effect>,
) -> Answer {
    let body = &if method == "PATCH" { Body::read(body, QOS_MODIFY)? } else { Body::default() };
    by_job(array, method, query, effect, 200, |change| {
        let all = change.all::<Policy>();
        let found = all.into_iter().find(|(_, own)| own.uuid == uuid);
        let (name, own) = found.ok_or_else(|| Failure::missing("uuid"))?;
        if method == "DELETE" {
            let users = change.all::<Volume>();
            if users.iter().any(|(_, lun)| text(lun, "qos_policy") == name) {
                let text = format!("QoS policy group \"{name}\" is in use.");
                return Err(Failure::new(409, "8454162", text));
            }
            change.remove::<Policy>(&name);
            return Ok(None);
        }
        let mut own = (*own).clone();
        own.iops = body.number("fixed.max_throughput_iops").unwrap_or(own.iops);
        own.mbps = body.number("fixed.max_throughput_mbps").unwrap_or(own.mbps);
        change.put::<_, Failure>(&name, &own)?;
        Ok(None)
    })
}
