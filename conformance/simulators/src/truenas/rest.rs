//! REST v2.0: paths and bodies, made into methods and parameters.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::failure::Failure;
use super::query::Query;
use super::{answers, block, dataset, methods, snapshot, system};
use crate::core::{Array, Effect};
use crate::http::{Ask, Say};

const BASE: &str = "/api/v2.0/";

/// What has objects with ids, the longest first.
const SERVICES: &[(&str, &str)] = &[
    ("pool/dataset", "pool.dataset"),
    ("zfs/snapshot", "zfs.snapshot"),
    ("iscsi/portal", "iscsi.portal"),
    ("iscsi/initiator", "iscsi.initiator"),
    ("iscsi/targetextent", "iscsi.targetextent"),
    ("iscsi/target", "iscsi.target"),
    ("iscsi/extent", "iscsi.extent"),
    ("iscsi/auth", "iscsi.auth"),
    ("iscsi/global", "iscsi.global"),
    ("pool", "pool"),
    ("service", "service"),
    ("system", "system"),
    ("core", "core"),
];

/// A path, taken apart.
struct Route {
    method: String,
    id: Option<Value>,
}

fn route(method: &str, path: &str) -> Option<Route> {
    let path = path.strip_prefix(BASE)?.trim_end_matches('/');
    let (service, rest) = SERVICES.iter().find_map(|(prefix, name)| {
        let rest = path.strip_prefix(prefix)?;
        let rest = if rest.is_empty() { Some("") } else { rest.strip_prefix('/') };
        Some((*name, rest?))
    })?;
    // An id has its slashes encoded: a decoded one makes other pieces, and another path.
    let mut pieces = rest.split('/').filter(|piece| !piece.is_empty());
    let pieces = [pieces.next(), pieces.next(), pieces.next(), pieces.next()];
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let of = |verb: &str| format!("{service}.{verb}");
    let id = |text: &str| {
        let text = decode(text);
        let words = matches!(service, "pool.dataset" | "zfs.snapshot");
        let number = text.parse::<i64>().ok().filter(|_| !words);
        number.map_or_else(|| json!(text), |number| json!(number))
    };
    let route = |method: String, id| Some(Route { method, id });
    match (method, pieces) {
        ("GET", [None, ..]) if service == "iscsi.global" => route(of("config"), None),
        ("PUT", [None, ..]) if service == "iscsi.global" => route(of("update"), None),
        ("GET", [None, ..]) => route(of("query"), None),
        ("POST", [None, ..]) => route(of("create"), None),
        ("GET", [Some("id"), Some(own), None, _]) => route(of("get_instance"), Some(id(own))),
        ("PUT", [Some("id"), Some(own), None, _]) => route(of("update"), Some(id(own))),
        ("DELETE", [Some("id"), Some(own), None, _]) => route(of("delete"), Some(id(own))),
        ("POST", [Some("id"), Some(own), Some(verb), None]) => route(of(verb), Some(id(own))),
        ("GET" | "POST", [Some(verb), None, ..]) if verb != "id" => route(of(verb), None),
        _ => None,
    }
}

/// The name of the method that a request calls.
pub(super) fn call_of(ask: &Ask) -> String {
    let unknown = || format!("{} {}", ask.method, ask.path);
    route(&ask.method, &ask.path).map_or_else(unknown, |route| route.method)
}

fn authenticated(array: &Array, ask: &Ask) -> bool {
    let header = ask.headers.get("authorization").and_then(|value| value.to_str().ok());
    let Some((scheme, value)) = header.and_then(|header| header.split_once(' ')) else {
        return false;
    };
    if scheme.eq_ignore_ascii_case("bearer") {
        return value == system::setting(array, "api_key", super::API_KEY);
    }
    let decoded = STANDARD.decode(value).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let user = system::setting(array, "user", super::USER);
    let password = system::setting(array, "password", super::PASSWORD);
    decoded.is_some_and(|text| text == format!("{user}:{password}"))
}

pub(super) fn answer(array: &Array, ask: &Ask, effect: Option<&Effect>) -> Say {
    if !authenticated(array, ask) || matches!(effect, Some(Effect::EndSession)) {
        return Failure::NotAuthenticated.say();
    }
    let Some(route) = route(&ask.method, &ask.path) else {
        return Failure::NoMethod(ask.path.clone()).say();
    };
    let body = if ask.body.is_empty() {
        None
    } else {
        match serde_json::from_slice::<Value>(&ask.body) {
            Ok(body) => Some(body),
            Err(error) => {
                let body = json!({"message": format!("Invalid JSON: {error}"), "errno": 22});
                return Say::json(400, &body);
            }
        }
    };
    let answer = carry_out(array, ask, &route, body, effect);
    match answer.and_then(|value| answers::check(&route.method, &value).map(|()| value)) {
        Ok(value) => Say::json(200, &value),
        Err(failure) => failure.say(),
    }
}

fn carry_out(
    array: &Array,
    ask: &Ask,
    route: &Route,
    body: Option<Value>,
    effect: Option<&Effect>,
) -> Result<Value, Failure> {
    let decode =
        |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    if ask.method == "GET" {
        let pairs: Vec<(String, String)> = ask
            .query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (decode(name), decode(value)))
            .collect();
        let query = Query::of_url(&pairs);
        system::end_jobs(array)?;
        match route.method.as_str() {
            "pool.dataset.query" => return dataset::query(array, &query),
            "zfs.snapshot.query" => return snapshot::query(array, &query),
            "pool.query" => return system::pools(array, &query),
            "core.get_jobs" => return system::jobs(array, &query),
            "iscsi.global.sessions" => return block::sessions(array, &query),
            "iscsi.portal.query" => return block::portals(array, &query),
            method => {
                if let Some(service) = method.strip_suffix(".query") {
                    return rows(array, service, &query);
                }
            }
        }
    }
    let mut params = Vec::new();
    params.extend(route.id.clone());
    match (route.method.as_str(), body) {
        // Two parameters, named in the body.
        ("zfs.snapshot.rollback" | "zfs.snapshot.hold" | "zfs.snapshot.release", Some(body)) => {
            params.extend(named(&body, &["id", "options"])?);
        }
        ("service.start" | "service.stop" | "service.restart" | "service.reload", Some(body)) => {
            params.extend(named(&body, &["service", "service-control"])?);
        }
        ("pool.dataset.destroy_snapshots", Some(body)) => {
            params.extend(named(&body, &["name", "snapshots"])?);
        }
        ("iscsi.extent.delete", Some(body)) => {
            let options = named(&body, &["remove", "force"])?;
            params.extend(options);
        }
        ("pool.dataset.promote", _) | (_, None) => {}
        (_, Some(body)) => params.push(body),
    }
    methods::call(array, &route.method, &params, effect)
}

/// The members of an object, in the order of a method's parameters.
fn named(body: &Value, names: &[&str]) -> Result<Vec<Value>, Failure> {
    let object = body.as_object();
    let object = object.ok_or_else(|| Failure::field("body", "A dict was expected", 22))?;
    if let Some(name) = object.keys().find(|name| !names.contains(&name.as_str())) {
        return Err(Failure::field(name, "Field was not expected", 22));
    }
    let mut params: Vec<Value> =
        names.iter().map(|name| object.get(*name).cloned().unwrap_or(Value::Null)).collect();
    while params.last() == Some(&Value::Null) {
        params.pop();
    }
    Ok(params)
}

fn rows(array: &Array, service: &str, query: &Query) -> Result<Value, Failure> {
    use super::objects::{Auth, Extent, Initiator, Service, Target, TargetExtent};
    match service {
        "iscsi.initiator" => block::rows::<Initiator>(array, query),
        "iscsi.target" => block::rows::<Target>(array, query),
        "iscsi.extent" => block::rows::<Extent>(array, query),
        "iscsi.targetextent" => block::rows::<TargetExtent>(array, query),
        "iscsi.auth" => block::rows::<Auth>(array, query),
        "service" => block::rows::<Service>(array, query),
        _ => Err(Failure::NoMethod(service.to_owned())),
    }
}
