//! Requests and answers: who asks, what for, and on which page.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::failure::{Failure, UNPUBLISHED};
use super::query::{Query, pairs};
use super::resource::{self, Show, appliances, object, text, timestamp};
use super::schema::{METRICS, NOTHING, check};
use super::{group, host, policy, volume};
use crate::core::{Array, Effect, Job, Volume};
use crate::http::{Ask, Say};

const BASE: &str = "/api/rest/";
const COOKIE: &str = "auth_cookie";
const CSRF: &str = "dell-emc-token";

/// A path, taken apart.
struct Route {
    resource: String,
    id: Option<String>,
    verb: Option<String>,
}

fn route(path: &str) -> Option<Route> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let mut parts = path.strip_prefix(BASE)?.split('/').map(decode);
    let (resource, id, verb) = (parts.next()?, parts.next(), parts.next());
    parts.next().is_none().then_some(())?;
    match (resource.as_str(), id.as_deref()) {
        // Not an object, but what is done.
        ("metrics", Some("generate")) => {
            Some(Route { resource: "metrics".to_owned(), id: None, verb: id })
        }
        _ => Some(Route { resource, id, verb }),
    }
}

/// `volume.create`, `volume.snapshot`, `host_volume_mapping.query`, `volume.get`.
pub(super) fn call_of(ask: &Ask) -> String {
    let Some(Route { resource, id, verb }) = route(&ask.path) else {
        return format!("{} {}", ask.method, ask.path);
    };
    let verb = match (ask.method.as_str(), &id, verb) {
        (_, _, Some(verb)) => verb,
        ("GET", None, None) => "query".to_owned(),
        ("GET", Some(_), None) => "get".to_owned(),
        ("POST", None, None) if resource == "logout" => return resource,
        ("POST", None, None) => "create".to_owned(),
        ("PATCH", ..) => "modify".to_owned(),
        ("DELETE", ..) => "delete".to_owned(),
        (method, ..) => method.to_lowercase(),
    };
    match resource.as_str() {
        "login_session" => "login".to_owned(),
        _ => format!("{resource}.{verb}"),
    }
}

pub(super) fn refusal(status: u16) -> Say {
    let text = match status {
        401 => "Invalid login credentials were provided",
        403 => "The session has expired, or its token is not valid",
        404 => "Not found",
        429 => "Too many requests",
        500 => "Internal error",
        503 => "The service is not available",
        _ => "The request cannot be served",
    };
    Failure::new(status, UNPUBLISHED, text).say()
}

/// Who asks.
enum Who {
    /// With user and password in each request: no token is asked for.
    Basic,
    /// With a session.
    Session(String),
}

fn header<'a>(ask: &'a Ask, name: &str) -> Option<&'a str> {
    ask.headers.get(name).and_then(|value| value.to_str().ok())
}

fn cookie(ask: &Ask) -> Option<String> {
    let all = header(ask, "cookie")?.split(';');
    let mut pairs = all.filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value.to_owned())
}

fn setting(array: &Array, name: &str, default: &str) -> String {
    let settings = array.settings();
    settings.vendor.get(name).and_then(Value::as_str).unwrap_or(default).to_owned()
}

/// 403 for a session that has ended, or a change without its token; 401 for a wrong password.
fn authenticate(array: &Array, ask: &Ask) -> Result<Who, u16> {
    if let Some(basic) = header(ask, "authorization") {
        let encoded = basic.strip_prefix("Basic ").unwrap_or("");
        let pair = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let user = setting(array, "user", super::USER);
        let password = setting(array, "password", super::PASSWORD);
        return if pair == Some(format!("{user}:{password}")) { Ok(Who::Basic) } else { Err(401) };
    }
    let token = cookie(ask).ok_or(401_u16)?;
    let session = array.sessions().touch(&token).ok_or(403_u16)?;
    if ask.method != "GET" && header(ask, CSRF) != Some(&session.csrf) {
        return Err(403);
    }
    Ok(Who::Session(token))
}

pub(super) fn answer(array: &Array, ask: &Ask, effect: Option<&Effect>) -> Say {
    if matches!(effect, Some(Effect::EndSession))
        && let Some(token) = cookie(ask)
    {
        array.sessions().close(&token);
    }
    let who = match authenticate(array, ask) {
        Ok(who) => who,
        Err(status) => return refusal(status),
    };
    let Some(route) = route(&ask.path) else { return refusal(404) };
    match (route.resource.as_str(), &who) {
        ("login_session", _) if ask.method == "GET" => return login(array, who),
        ("logout", Who::Session(token)) if ask.method == "POST" => {
            array.sessions().close(token);
            return no_content();
        }
        ("logout", Who::Basic) => return no_content(),
        _ => {}
    }
    let mut say = match ended(array).and_then(|()| carry_out(array, ask, &route, effect)) {
        Ok(say) => say,
        Err(failure) => failure.say(),
    };
    let rotates = array.settings().vendor.get("rotate") == Some(&Value::Bool(true));
    if let (Who::Session(token), true, true) = (&who, rotates, ask.method != "GET")
        && let Some(csrf) = array.sessions().renew_csrf(token)
    {
        say.headers.push((CSRF.to_owned(), csrf));
    }
    say
}

fn no_content() -> Say {
    Say { status: 204, headers: Vec::new(), body: Vec::new() }
}

fn login(array: &Array, who: Who) -> Say {
    let token = match who {
        Who::Session(token) => token,
        Who::Basic => match array.sessions().open(super::USER) {
            Ok(token) => token,
            Err(error) => {
                return Failure::failed(format!("No session can be opened: {error}")).say();
            }
        },
    };
    let csrf = array.sessions().touch(&token).map(|session| session.csrf).unwrap_or_default();
    let session = json!({
        "id": public(&token), "user": setting(array, "user", super::USER), "role_ids": ["1"],
        "idle_timeout": 3600, "is_password_change_required": false, "is_built_in_user": true,
    });
    let mut say = Say::json(200, &json!([session]));
    say.headers.push((CSRF.to_owned(), csrf));
    let set = format!("{COOKIE}={token}; Path=/; Secure; HttpOnly");
    say.headers.push(("set-cookie".to_owned(), set));
    say
}

/// The public id of a session is not its token.
fn public(token: &str) -> String {
    token.chars().rev().take(8).collect()
}

/// Ends jobs; what they do was done when they began.
fn ended(array: &Array) -> Result<(), Failure> {
    array.end_jobs(|_, job| Ok(job.arguments.clone()))
}

fn body_of(ask: &Ask) -> Result<Value, Failure> {
    if ask.body.is_empty() {
        return Ok(json!({}));
    }
    // Whatever the content type says: deployed clients send none.
    serde_json::from_slice(&ask.body)
        .map_err(|error| Failure::invalid(format!("The body is not valid JSON: {error}")))
}

fn carry_out(
    array: &Array,
    ask: &Ask,
    route: &Route,
    effect: Option<&Effect>,
) -> Result<Say, Failure> {
    let pairs = pairs(&ask.query);
    if ask.method == "GET" {
        return read(array, route, &pairs);
    }
    let mut is_async = false;
    for (name, value) in &pairs {
        match (name.as_str(), value.as_str()) {
            ("is_async", "true") => is_async = true,
            ("is_async", "false") => {}
            _ => return Err(Failure::invalid(format!("The parameter {name} is not known"))),
        }
    }
    let body = body_of(ask)?;
    let done = change(array, ask, route, &body);
    if is_async {
        return started(array, ask, done, effect);
    }
    Ok(said(&ask.method, route, &done?))
}

fn said(method: &str, route: &Route, answer: &Value) -> Say {
    match answer {
        Value::Null => no_content(),
        body => Say::json(if method == "POST" && route.verb.is_none() { 201 } else { 200 }, body),
    }
}

/// A job that was asked for. What it makes is visible before it ends, also where it fails.
fn started(
    array: &Array,
    ask: &Ask,
    done: Result<Value, Failure>,
    effect: Option<&Effect>,
) -> Result<Say, Failure> {
    let error = match (&done, effect) {
        (Err(failure), _) => Some(failure.text.clone()),
        (_, Some(Effect::JobFails { .. })) => Some("The job was stopped".to_owned()),
        _ => None,
    };
    let result = json!({ "body": done.unwrap_or(Value::Null), "status": "200" });
    let id = array.change(|change| {
        let number = change.start_job(&call_of(ask), result, error)?;
        if matches!(effect, Some(Effect::JobLost)) {
            change.remove::<Job>(&number.to_string());
        }
        Ok::<_, Failure>(number.to_string())
    })?;
    Ok(Say::json(202, &json!({ "id": id })))
}

fn read(array: &Array, route: &Route, pairs: &[(String, String)]) -> Result<Say, Failure> {
    let Route { resource: name, id, verb } = route;
    if name == "recycle_bin" && id.is_none() {
        return Ok(Say::json(200, &bin(array)));
    }
    let resource = resource::find(name).filter(|_| verb.is_none());
    let resource = resource.ok_or_else(|| {
        Failure::new(404, UNPUBLISHED, format!("The resource {name} does not exist"))
    })?;
    let show = Show::new(array, array.view());
    let Some(id) = id else {
        let query = Query::of(resource, pairs)?;
        let all = show.all(resource, query.exactly("name"));
        let page = query.run(&show, resource, all)?;
        let last = page.first + page.items.len();
        let whole = page.first == 0 && last == page.total;
        let range = if page.items.is_empty() {
            format!("*/{}", page.total)
        } else {
            format!("{}-{}/{}", page.first, last - 1, page.total)
        };
        let mut say = Say::json(if whole { 200 } else { 206 }, &Value::Array(page.items));
        say.headers.push(("content-range".to_owned(), range));
        return Ok(say);
    };
    let query = Query::of_one(resource, pairs)?;
    let one = show.one(resource, id).ok_or_else(|| match name.as_str() {
        "volume" => Failure::no_volume(id),
        _ => Failure::no_instance(name, id),
    })?;
    Ok(Say::json(200, &query.pick(&show, resource, &one)))
}

fn change(array: &Array, ask: &Ask, route: &Route, body: &Value) -> Result<Value, Failure> {
    let (id, verb) = (route.id.as_deref(), route.verb.as_deref());
    match (ask.method.as_str(), route.resource.as_str(), id, verb) {
        ("POST", "volume", None, None) => volume::create(array, body),
        ("PATCH", "volume", Some(id), None) => volume::modify(array, id, body),
        ("DELETE", "volume", Some(id), None) => volume::delete(array, id, body),
        ("POST", "volume", Some(id), Some("snapshot")) => volume::snapshot(array, id, body),
        ("POST", "volume", Some(id), Some("clone")) => volume::clone(array, id, body),
        ("POST", "volume", Some(id), Some("restore")) => volume::restore(array, id, body),
        ("POST", "volume", Some(id), Some("refresh")) => volume::refresh(array, id, body),
        ("POST", "volume", Some(id), Some("attach")) => host::attach_volume(array, id, body),
        ("POST", "volume", Some(id), Some("detach")) => host::detach_volume(array, id, body),
        ("POST", "host", None, None) => host::create(array, body),
        ("PATCH", "host", Some(id), None) => host::modify(array, id, body),
        ("DELETE", "host", Some(id), None) => {
            check(NOTHING, body)?;
            host::delete(array, id)
        }
        ("POST", "host", Some(id), Some("attach")) => host::attach_host(array, id, body),
        ("POST", "host", Some(id), Some("detach")) => host::detach_host(array, id, body),
        ("POST", "volume_group", None, None) => group::create(array, body),
        ("PATCH", "volume_group", Some(id), None) => group::modify(array, id, body),
        ("DELETE", "volume_group", Some(id), None) => group::delete(array, id, body),
        ("POST", "volume_group", Some(id), Some("add_members")) => {
            group::members(array, id, body, true)
        }
        ("POST", "volume_group", Some(id), Some("remove_members")) => {
            group::members(array, id, body, false)
        }
        ("POST", "volume_group", Some(id), Some("snapshot")) => group::snapshot(array, id, body),
        ("POST", "volume_group", Some(id), Some("clone")) => group::clone(array, id, body),
        ("POST", "policy", None, None) => policy::create(array, body),
        ("PATCH", "policy", Some(id), None) => policy::modify(array, id, body),
        ("DELETE", "policy", Some(id), None) => policy::delete(array, id),
        ("POST", "io_limit_rule", None, None) => policy::create_rule(array, body),
        ("PATCH", "io_limit_rule", Some(id), None) => policy::modify_rule(array, id, body),
        ("DELETE", "io_limit_rule", Some(id), None) => policy::delete_rule(array, id),
        ("DELETE", "recycle_bin", Some(id), None) => unbin(array, id, false),
        ("POST", "recycle_bin", Some(id), Some("recover")) => unbin(array, id, true),
        ("POST", "metrics", None, Some("generate")) => metrics(array, body),
        (method, resource, ..) => {
            let text = format!("{method} is not supported for {resource}");
            Err(Failure::new(405, UNPUBLISHED, text))
        }
    }
}

/// The volumes in the recycle bin.
fn bin(array: &Array) -> Value {
    let all = array.view().all::<Volume>().into_iter();
    let all = all.filter(|(_, volume)| volume.attributes.contains_key("binned"));
    let all = all.map(|(id, volume)| {
        json!({ "id": id, "name": text(&volume.attributes, "name"), "resource_type": "volume",
            "size": volume.size })
    });
    Value::Array(all.collect())
}

fn unbin(array: &Array, id: &str, back: bool) -> Result<Value, Failure> {
    array.change(|change| {
        let binned = |volume: &Volume| volume.attributes.contains_key("binned");
        let Some(mut volume) = change.volume(id).ok().filter(binned) else {
            return Err(Failure::no_instance("recycle_bin", id));
        };
        volume.attributes.remove("binned");
        change.put::<_, Failure>(id, &volume)?;
        if back { Ok(()) } else { volume::remove(change, id, false) }
    })?;
    Ok(Value::Null)
}

/// Figures of space: what the last five minutes ended with.
fn metrics(array: &Array, body: &Value) -> Result<Value, Failure> {
    check(METRICS, body)?;
    let member = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or("");
    let (entity, id) = (member("entity"), member("entity_id"));
    let view = array.view();
    let mut figures: Map<String, Value> = if entity == "space_metrics_by_volume" {
        let volume = view.get::<Volume>(id).ok_or_else(|| Failure::no_volume(id))?;
        object(json!({
            "volume_id": id, "logical_provisioned": volume.size,
            "logical_used": array.referenced(volume.layer),
        }))
    } else {
        let by_appliance = entity == "space_metrics_by_appliance";
        let all = appliances(&view);
        let own: Vec<_> = all.iter().filter(|(own, _)| !by_appliance || own == id).collect();
        if own.is_empty() || (!by_appliance && id != "0") {
            return Err(Failure::no_instance("metrics", id));
        }
        let (mut total, mut used) = (0, 0);
        for (_, pool) in own {
            let space = array.space(pool)?;
            total += space.capacity;
            used += space.used + space.reserved;
        }
        let key = if by_appliance { "appliance_id" } else { "cluster_id" };
        let mut figures = object(json!({ "physical_total": total, "physical_used": used }));
        figures.insert(key.to_owned(), json!(id));
        figures
    };
    figures.insert("timestamp".to_owned(), json!(timestamp(array.clock().now())));
    figures.insert("entity".to_owned(), json!(entity));
    figures.insert("response_definition".to_owned(), json!(entity));
    let mut before = figures.clone();
    before.insert("physical_used".to_owned(), json!(0));
    // Samples in the order of their time: the last one counts.
    Ok(json!([before, figures]))
}
