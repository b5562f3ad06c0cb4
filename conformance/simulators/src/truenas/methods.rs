//! The methods, by name: what both protocols call.

use serde_json::{Value, json};

use super::failure::{EINVAL, Failure};
use super::objects::{Auth, Extent, Initiator, Portal, Row, Service, Target, TargetExtent};
use super::query::Query;
use super::schema::{self, DESTROY_SNAPSHOTS, SERVICE_CONTROL};
use super::{block, dataset, snapshot, system};
use crate::core::{Array, Effect};

/// Whether a method only reads.
pub(super) fn reads(method: &str) -> bool {
    let last = method.rsplit('.').next().unwrap_or(method);
    let words = [
        "query",
        "get_instance",
        "config",
        "sessions",
        "get_jobs",
        "ping",
        "info",
        "version",
        "ready",
        "me",
        "subscribe",
    ];
    words.contains(&last) || method.starts_with("auth.")
}

/// Parameters by position; too many are refused.
struct Params<'a>(&'a [Value]);

impl Params<'_> {
    fn most(&self, most: usize) -> Result<(), Failure> {
        if self.0.len() > most {
            let text = format!("Too many arguments (expected {most}, found {})", self.0.len());
            return Err(Failure::field("params", text, EINVAL));
        }
        Ok(())
    }

    fn get(&self, at: usize) -> &Value {
        self.0.get(at).unwrap_or(&Value::Null)
    }

    /// An object that may be left out.
    fn options(&self, at: usize) -> Value {
        match self.0.get(at) {
            None => json!({}),
            Some(value) => value.clone(),
        }
    }

    fn text(&self, at: usize) -> Result<&str, Failure> {
        self.get(at).as_str().ok_or_else(|| Failure::field("id", "Not a string", EINVAL))
    }

    fn id(&self) -> Result<i64, Failure> {
        self.get(0).as_i64().ok_or_else(|| Failure::field("id", "Not an integer", EINVAL))
    }
}

/// Answers the only object of an answer.
fn instance(found: &Value, what: &str) -> Result<Value, Failure> {
    let first = found.as_array().and_then(|list| list.first().cloned());
    first.ok_or_else(|| Failure::NoInstance(what.to_owned()))
}

/// Calls a method.
pub(super) fn call(
    array: &Array,
    method: &str,
    params: &[Value],
    effect: Option<&Effect>,
) -> Result<Value, Failure> {
    system::end_jobs(array)?;
    let method = known(array, method)?;
    let own = Params(params);
    let (service, verb) = method.rsplit_once('.').unwrap_or((method.as_str(), ""));
    let queries = |query: &Query| match service {
        "pool.dataset" => Some(dataset::query(array, query)),
        "zfs.snapshot" => Some(snapshot::query(array, query)),
        "pool" => Some(system::pools(array, query)),
        "service" => Some(block::rows::<Service>(array, query)),
        "iscsi.portal" => Some(block::portals(array, query)),
        "iscsi.initiator" => Some(block::rows::<Initiator>(array, query)),
        "iscsi.target" => Some(block::rows::<Target>(array, query)),
        "iscsi.extent" => Some(block::rows::<Extent>(array, query)),
        "iscsi.targetextent" => Some(block::rows::<TargetExtent>(array, query)),
        "iscsi.auth" => Some(block::rows::<Auth>(array, query)),
        _ => None,
    };
    match verb {
        "query" => {
            if let Some(answer) = queries(&Query::of_params(params)?) {
                return answer;
            }
        }
        "get_instance" => {
            own.most(2)?;
            if let Some(answer) = queries(&Query::of_id(own.get(0))) {
                return instance(&answer?, &format!("{service} {}", own.get(0)));
            }
        }
        _ => {}
    }
    match method.as_str() {
        "pool.dataset.create" => {
            own.most(1)?;
            dataset::create(array, own.get(0))
        }
        "pool.dataset.update" => {
            own.most(2)?;
            dataset::update(array, own.text(0)?, &own.options(1))
        }
        "pool.dataset.delete" => {
            own.most(2)?;
            dataset::delete(array, own.text(0)?, &own.options(1))
        }
        "pool.dataset.promote" => {
            own.most(1)?;
            dataset::promote(array, own.text(0)?)
        }
        "pool.dataset.destroy_snapshots" => {
            own.most(2)?;
            own.text(0)?;
            schema::check("snapshots", DESTROY_SNAPSHOTS, &own.options(1), false)?;
            system::start(array, &method, params, effect)
        }
        "zfs.snapshot.create" => {
            own.most(1)?;
            snapshot::create(array, own.get(0))
        }
        "zfs.snapshot.update" => {
            own.most(2)?;
            snapshot::update(array, own.text(0)?, &own.options(1))
        }
        "zfs.snapshot.delete" => {
            own.most(2)?;
            snapshot::delete(array, own.text(0)?, &own.options(1))
        }
        "zfs.snapshot.clone" => {
            own.most(1)?;
            snapshot::clone(array, own.get(0))
        }
        "zfs.snapshot.rollback" => {
            own.most(2)?;
            snapshot::rollback(array, own.text(0)?, &own.options(1))
        }
        "zfs.snapshot.hold" => snapshot::hold(array, own.text(0)?, true),
        "zfs.snapshot.release" => snapshot::hold(array, own.text(0)?, false),
        "iscsi.global.config" => Ok(Value::Object(block::global(&array.view()))),
        "iscsi.global.update" => block::update_global(array, own.get(0)),
        "iscsi.global.sessions" => block::sessions(array, &Query::of_params(params)?),
        "iscsi.target.delete" => {
            own.most(3)?;
            block::delete_target(array, own.id()?, own.get(1))
        }
        "iscsi.extent.delete" => {
            own.most(3)?;
            let options = json!({"remove": own.get(1), "force": own.get(2)});
            block::delete_extent(array, own.id()?, &options)
        }
        "iscsi.targetextent.delete" => {
            own.most(2)?;
            block::delete_targetextent(array, own.id()?, own.get(1))
        }
        "iscsi.portal.delete" => block::delete_row::<Portal>(array, own.id()?),
        "iscsi.initiator.delete" => block::delete_row::<Initiator>(array, own.id()?),
        "iscsi.auth.delete" => block::delete_row::<Auth>(array, own.id()?),
        "system.info" => Ok(system::info(array)),
        "system.version" => Ok(json!(system::full_version(array))),
        "system.ready" => Ok(json!(true)),
        "core.ping" => Ok(json!("pong")),
        "core.get_jobs" => system::jobs(array, &Query::of_params(params)?),
        "service.start" | "service.restart" | "service.reload" | "service.stop" => {
            own.most(2)?;
            schema::check("service-control", SERVICE_CONTROL, &own.options(1), false)?;
            let state = if verb == "stop" { "STOPPED" } else { "RUNNING" };
            system::service(array, own.text(0)?, state)
        }
        _ => keep(array, service, verb, &own),
    }
}

/// Rows that are made and changed alike.
fn keep(array: &Array, service: &str, verb: &str, own: &Params<'_>) -> Result<Value, Failure> {
    let unknown = || Failure::NoMethod(format!("{service}.{verb}"));
    let (id, body) = match verb {
        "create" => {
            own.most(1)?;
            (None, own.get(0))
        }
        "update" => {
            own.most(2)?;
            (Some(own.id()?), own.get(1))
        }
        _ => return Err(unknown()),
    };
    match service {
        Portal::NAME => block::keep_portal(array, id, body),
        Initiator::NAME => block::keep_initiator(array, id, body),
        Target::NAME => block::keep_target(array, id, body),
        Extent::NAME => block::keep_extent(array, id, body),
        TargetExtent::NAME => block::keep_targetextent(array, id, body),
        Auth::NAME => block::keep_auth(array, id, body),
        _ => Err(unknown()),
    }
}

/// The name of a method as it is here: from 25.10 on those of snapshots are under `pool`.
fn known(array: &Array, method: &str) -> Result<String, Failure> {
    let newer = system::version(array).as_str() >= "25.10";
    match (method.strip_prefix("pool.snapshot."), method.starts_with("zfs.snapshot.")) {
        (Some(rest), _) if newer => Ok(format!("zfs.snapshot.{rest}")),
        (Some(_), _) => Err(Failure::NoMethod(method.to_owned())),
        (None, true) if newer => Err(Failure::NoMethod(method.to_owned())),
        _ => Ok(method.to_owned()),
    }
}
