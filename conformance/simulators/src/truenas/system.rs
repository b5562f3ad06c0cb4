//! `system`, `pool`, `service`, `core`, `auth`.

use serde_json::{Value, json};

use super::failure::{EINVAL, Failure};
use super::objects::{Filesystem, Portal, Row as _, Service, key};
use super::query::Query;
use super::snapshot;
use crate::core::{Array, Effect, Job, JobState, Pool, Trouble};

/// What a new array has: its pools' root datasets, one portal on all addresses, the iSCSI service.
pub(super) fn prepare(array: &Array) -> Result<(), Trouble> {
    if array.current().count::<Service>() > 0 {
        return Ok(());
    }
    array.change(|change| {
        let created = change.now();
        for (name, _) in change.all::<Pool>() {
            change.put::<_, Trouble>(&name, &Filesystem { created, ..Filesystem::default() })?;
        }
        let ip = array.portal().map_or_else(|| "127.0.0.1".to_owned(), |at| at.ip().to_string());
        let id = i64::try_from(change.number("truenas.portal")?).unwrap_or(1);
        let portal = json!({"id": id, "tag": id, "comment": "", "listen": [{"ip": ip}]});
        if let Value::Object(portal) = portal {
            change.put::<_, Trouble>(&key(id), &Portal(portal))?;
        }
        for (id, name) in [(1, "iscsitarget"), (2, "ssh")] {
            let service = json!({"id": id, "service": name, "enable": true, "state": "RUNNING",
                                 "pids": [1000 + id]});
            if let Value::Object(service) = service {
                change.put::<_, Trouble>(name, &Service(service))?;
            }
        }
        Ok(())
    })
}

/// A setting of this vendor, or its default.
pub(super) fn setting(array: &Array, name: &str, default: &str) -> String {
    let settings = array.settings();
    settings.vendor.get(name).and_then(Value::as_str).unwrap_or(default).to_owned()
}

pub(super) fn version(array: &Array) -> String {
    setting(array, "version", "25.04.2")
}

/// How the product calls that version.
pub(super) fn full_version(array: &Array) -> String {
    let version = version(array);
    let prefix = if version.as_str() < "25" { "TrueNAS-SCALE-" } else { "TrueNAS-" };
    format!("{prefix}{version}")
}

pub(super) fn info(array: &Array) -> Value {
    json!({
        "version": full_version(array), "buildtime": {"$date": 1_700_000_000_000_u64},
        "hostname": "truenas", "physmem": 17_179_869_184_u64, "model": "Simulator", "cores": 4,
        "physical_cores": 4, "loadavg": [0.1, 0.1, 0.1], "uptime": "1 day, 0:00:00",
        "uptime_seconds": 86400.0, "system_serial": "SIM0001", "system_product": "TRUENAS-SIM",
        "system_product_version": null, "license": null,
        "boottime": {"$date": array.clock().now() - 86_400_000},
        "datetime": {"$date": array.clock().now()}, "timezone": "UTC",
        "system_manufacturer": "iXsystems", "ecc_memory": true,
    })
}

pub(super) fn pools(array: &Array, query: &Query) -> Result<Value, Failure> {
    let view = array.view();
    let all = view.all::<Pool>().into_iter().zip(1..).filter_map(|((name, _), id)| {
        let space = array.space(&name).ok()?;
        let allocated = space.used;
        Some(json!({
            "id": id, "name": name, "guid": format!("{:020}", 7_000_000_000_000_000_000_u64 + id),
            "path": format!("/mnt/{name}"), "status": "ONLINE", "healthy": true, "warning": false,
            "status_code": "OK", "status_detail": null, "is_upgraded": true,
            "size": space.capacity, "allocated": allocated, "free": space.capacity - allocated,
            "freeing": 0, "fragmentation": "0", "scan": {"function": null, "state": null}, "expand": {},
            "autotrim": {"value": "off", "rawvalue": "off", "parsed": "off", "source": "DEFAULT"},
            "topology": {"data": [], "log": [], "cache": [], "spare": [], "special": [], "dedup": []},
        }))
    });
    query.run(all.collect())
}

pub(super) fn service(array: &Array, name: &str, state: &str) -> Result<Value, Failure> {
    array.change(|change| {
        let missing = || Failure::field("service", "Invalid choice", EINVAL);
        let service = change.get::<Service>(name).ok_or_else(missing)?;
        let mut fields = service.fields().clone();
        fields.insert("state".to_owned(), json!(state));
        change.put::<_, Failure>(name, &Service(fields))?;
        Ok(Value::Bool(state == "RUNNING"))
    })
}

/// Starts a job, as the fault script has it.
pub(super) fn start(
    array: &Array,
    method: &str,
    params: &[Value],
    effect: Option<&Effect>,
) -> Result<Value, Failure> {
    let error = match effect {
        Some(Effect::JobFails { error }) => Some(error.clone()),
        _ => None,
    };
    let id = array.change(|change| {
        if error.is_some() {
            // It fails after the work: what it did stays done.
            snapshot::destroy_all(change, &json!(params)).map_err(Failure::call)?;
        }
        Ok::<_, Failure>(change.start_job(method, json!(params), error)?)
    })?;
    if matches!(effect, Some(Effect::JobLost)) {
        array.change(|change| {
            snapshot::destroy_all(change, &json!(params)).map_err(Failure::call)?;
            change.remove::<Job>(&id.to_string());
            Ok::<_, Failure>(())
        })?;
    } else {
        end_jobs(array)?;
    }
    Ok(json!(id))
}

/// Does what is due of jobs under way.
pub(super) fn end_jobs(array: &Array) -> Result<(), Failure> {
    array.end_jobs(|change, job| snapshot::destroy_all(change, &job.arguments))
}

pub(super) fn job(id: &str, job: &Job, now: u64) -> Value {
    let (state, percent, result, error) = match job.state(now) {
        JobState::Running(percent) => ("RUNNING", percent, Value::Null, Value::Null),
        JobState::Done(result) => ("SUCCESS", 100, result, Value::Null),
        JobState::Failed(error) => ("FAILED", 100, Value::Null, json!(error)),
    };
    let ended = state != "RUNNING";
    json!({
        "id": id.parse::<u64>().unwrap_or(0), "method": job.method, "arguments": job.arguments,
        "transient": false, "description": null, "abortable": false, "logs_path": null,
        "logs_excerpt": null, "progress": {"percent": percent, "description": "", "extra": null},
        "result": result, "error": error, "exception": error, "exc_info": null, "state": state,
        "time_started": {"$date": job.created},
        "time_finished": if ended { json!({"$date": job.ends}) } else { Value::Null },
        "credentials": null,
    })
}

pub(super) fn jobs(array: &Array, query: &Query) -> Result<Value, Failure> {
    let now = array.clock().now();
    let all = array.view().all::<Job>();
    query.run(all.iter().map(|(id, own)| job(id, own, now)).collect())
}
