//! Paths, and who may ask.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use serde_json::json;

use super::failure::Failure;
use super::query::Query;
use super::system::{self, Answer};
use super::{lun, san, volume};
use crate::core::{Array, Effect};
use crate::http::{Ask, Say};

/// The pieces of a path, decoded each by itself.
fn pieces(path: &str) -> Option<Vec<String>> {
    let rest = path.strip_prefix("/api/")?;
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    Some(rest.trim_end_matches('/').split('/').map(decode).collect())
}

/// What is asked: a name by which faults are addressed, the parts of the path that name objects, and
/// the fields that its query may have.
struct Route {
    object: &'static str,
    verb: &'static str,
    ids: Vec<String>,
    fields: &'static [&'static str],
}

/// Collections: path, name, fields.
const COLLECTIONS: &[(&str, &str, &[&str])] = &[
    ("storage/luns", "lun", lun::FIELDS),
    ("storage/volumes", "volume", volume::FIELDS),
    ("storage/aggregates", "aggregate", system::AGGREGATE_FIELDS),
    ("storage/qos/policies", "qos", system::QOS_FIELDS),
    ("protocols/san/igroups", "igroup", san::IGROUP_FIELDS),
    ("protocols/san/lun-maps", "map", san::MAP_FIELDS),
    ("protocols/san/iscsi/services", "service", san::SERVICE_FIELDS),
    ("network/ip/interfaces", "interface", san::INTERFACE_FIELDS),
    ("svm/svms", "svm", system::SVM_FIELDS),
    ("cluster/jobs", "job", system::JOB_FIELDS),
];

fn verb(method: &str, single: bool) -> Option<&'static str> {
    Some(match (method, single) {
        ("GET", false) => "query",
        ("GET", true) => "get",
        ("POST", false) => "create",
        ("PATCH", true) => "modify",
        ("DELETE", true) => "delete",
        _ => return None,
    })
}

fn route(method: &str, path: &str) -> Option<Route> {
    let all = pieces(path)?;
    let joined = all.join("/");
    if joined == "cluster" && method == "GET" {
        return Some(Route {
            object: "cluster",
            verb: "get",
            ids: vec![],
            fields: &["version", "name"],
        });
    }
    let (object, fields, ids) = COLLECTIONS.iter().find_map(|(prefix, object, fields)| {
        let depth = prefix.split('/').count();
        let own = all.get(..depth)?.join("/") == *prefix;
        own.then(|| (*object, *fields, all.get(depth..).unwrap_or_default().to_vec()))
    })?;
    let texts: Vec<&str> = ids.iter().map(String::as_str).collect();
    // Objects within others.
    let (object, fields, ids, single): (_, _, Vec<&str>, bool) = match (object, texts.as_slice()) {
        ("lun", [id, "attributes"]) => ("attribute", &[][..], vec![*id], false),
        ("lun", [id, "attributes", name]) => ("attribute", &[][..], vec![*id, *name], true),
        ("igroup", [id, "initiators"]) => ("initiator", &[][..], vec![*id], false),
        ("igroup", [id, "initiators", name]) => ("initiator", &[][..], vec![*id, *name], true),
        ("volume", [id, "snapshots"]) => ("snapshot", volume::SNAPSHOT_FIELDS, vec![*id], false),
        ("volume", [id, "snapshots", own]) => {
            ("snapshot", volume::SNAPSHOT_FIELDS, vec![*id, *own], true)
        }
        ("map", [lun, igroup]) => ("map", fields, vec![*lun, *igroup], true),
        ("map", [_]) => return None,
        (_, []) => (object, fields, vec![], false),
        (_, [id]) => (object, fields, vec![*id], true),
        _ => return None,
    };
    let ids = ids.into_iter().map(str::to_owned).collect();
    Some(Route { object, verb: verb(method, single)?, ids, fields })
}

/// `lun.create`, `map.delete`...
pub(super) fn call_of(ask: &Ask) -> String {
    match route(&ask.method, &ask.path) {
        Some(route) => format!("{}.{}", route.object, route.verb),
        None => format!("{} {}", ask.method, ask.path),
    }
}

fn authenticated(array: &Array, ask: &Ask) -> bool {
    let header = ask.headers.get("authorization").and_then(|value| value.to_str().ok());
    let encoded = header.and_then(|header| header.strip_prefix("Basic "));
    let decoded = encoded.and_then(|text| STANDARD.decode(text).ok());
    let user = system::word(array, "user", super::USER);
    let password = system::word(array, "password", super::PASSWORD);
    decoded.is_some_and(|text| text == format!("{user}:{password}").into_bytes())
}

pub(super) fn answer(array: &Array, ask: &Ask, effect: Option<&Effect>) -> Say {
    match carry_out(array, ask, effect) {
        Ok((status, body)) => Say::json(status, &body),
        Err(failure) => failure.say(),
    }
}

fn carry_out(array: &Array, ask: &Ask, effect: Option<&Effect>) -> Answer {
    if !authenticated(array, ask) || matches!(effect, Some(Effect::EndSession)) {
        return Err(Failure::unauthorized());
    }
    let unknown = || Failure::new(404, "3", "API not found");
    let route = route(&ask.method, &ask.path).ok_or_else(unknown)?;
    // The header makes the request one of that SVM.
    let header = ask.headers.get("x-dot-svm-name").map(|name| name.to_str().unwrap_or(""));
    if header.is_some_and(|name| name != system::svm_name(array)) {
        let text = "The specified SVM in the X-Dot-SVM-Name header does not exist.";
        return Err(Failure::new(400, "2621462", text));
    }
    let tunnel = header.is_some();
    let query = &Query::read(&ask.query, route.fields)?;
    system::end_jobs(array)?;
    let body = ask.body.as_slice();
    let id = |n: usize| route.ids.get(n).map_or("", String::as_str);
    let name = route.ids.get(1).map(String::as_str);
    match (route.object, route.verb) {
        ("cluster", _) => Ok(system::cluster(array)),
        ("svm", "query") => Ok(system::svms(array, query)),
        ("aggregate", "query") => Ok(system::aggregates(array, query)),
        ("job", "get") => system::job(array, id(0)),
        ("lun", "query") => Ok(lun::query(array, query)),
        ("lun", "get") => lun::get(array, id(0), query),
        ("lun", "create") => lun::create(array, body, query, tunnel),
        ("lun", "modify") => lun::modify(array, id(0), body),
        ("lun", "delete") => lun::delete(array, id(0), query),
        ("attribute", "query" | "get") => lun::attributes(array, id(0), name),
        ("attribute", _) => lun::set_attribute(array, &ask.method, id(0), name, body),
        ("igroup", "query") => Ok(san::igroups(array, query)),
        ("igroup", "get") => san::get_igroup(array, id(0), query),
        ("igroup", "create") => san::create_igroup(array, body, query, tunnel),
        ("igroup", "modify") => san::modify_igroup(array, id(0), body),
        ("igroup", "delete") => san::delete_igroup(array, id(0), query),
        ("initiator", "create") => san::add_initiators(array, id(0), body),
        ("initiator", "delete") => san::remove_initiator(array, id(0), id(1)),
        ("map", "query") => Ok(san::maps(array, query)),
        ("map", "get") => san::get_map(array, id(0), id(1)),
        ("map", "create") => san::create_map(array, body, query, tunnel),
        ("map", "delete") => san::delete_map(array, id(0), id(1)),
        ("service", "query") => Ok(san::services(array, query)),
        ("interface", "query") => Ok(san::interfaces(array, query)),
        ("volume", "query") => Ok(volume::query(array, query)),
        ("volume", "get") => volume::get(array, id(0), query),
        ("volume", "create") => volume::create(array, body, query, tunnel, effect),
        ("volume", "modify") => volume::modify(array, id(0), body, query, effect),
        ("volume", "delete") => volume::delete(array, id(0), query, effect),
        ("snapshot", "query") => volume::snapshots(array, id(0), query),
        ("snapshot", "get") => volume::get_snapshot(array, id(0), id(1), query),
        ("snapshot", "create") => volume::create_snapshot(array, id(0), body, query, effect),
        ("snapshot", _) => {
            volume::set_snapshot(array, &ask.method, id(0), id(1), body, query, effect)
        }
        ("qos", "query") => Ok(system::policies(array, query)),
        ("qos", "create") => system::create_policy(array, body, query, tunnel, effect),
        ("qos", "modify" | "delete") => {
            system::set_policy(array, &ask.method, id(0), body, query, effect)
        }
        _ => Err(unknown()),
    }
}

/// How the array refuses with a status, whatever was asked.
pub(super) fn refusal(status: u16) -> Say {
    let (code, message) = match status {
        401 => return Failure::unauthorized().say(),
        403 => ("6", "not authorized for that command"),
        404 => ("4", "entry doesn't exist"),
        409 => ("1", "duplicate entry"),
        429 => ("65537034", "The server is busy. Try again later."),
        503 => ("458753", "The service is temporarily unavailable. Try again."),
        _ => ("2", "An internal error occurred."),
    };
    Say::json(status, &json!({ "error": { "message": message, "code": code } }))
}
