//! Pure Storage FlashArray, REST 2.x (as of 2.26, or of 2.2 where it is set to be older).
//!
//! Settings of this vendor: `version` (`2.26`, the highest it has), `api_token`, `iqn`, `page` (1000),
//! `eradication_delay` (milliseconds, 24 hours), `manual_eradication` (false is SafeMode).

mod failure;
mod filter;
mod groups;
mod hosts;
mod objects;
mod request;
mod schema;
mod snapshots;
mod volumes;

use serde_json::{Value, json};

use self::failure::Refused;
use self::request::Request;
use self::snapshots::Tagged;
use crate::core::{Array, Effect, Export, Vendor, View};
use crate::http::{Ask, Say, Web};

/// The API token, where the settings say nothing else.
pub const API_TOKEN: &str = "5eed5eed-aaaa-bbbb-cccc-simulatedkey";
/// The user that the token is of.
pub const USER: &str = "pureuser";

/// The vendor.
#[derive(Clone, Copy, Debug, Default)]
pub struct PureStorage;

impl Vendor for PureStorage {
    fn name(&self) -> &'static str {
        "purestorage"
    }

    fn exports(&self, view: &View) -> Vec<Export> {
        hosts::exports(view)
    }
}

/// A setting of this vendor that is a text, or its default.
fn setting(array: &Array, name: &str, default: &str) -> String {
    let settings = array.settings();
    settings.vendor.get(name).and_then(Value::as_str).unwrap_or(default).to_owned()
}

/// The second number of the highest version that it has.
fn newest(array: &Array) -> u32 {
    let version = setting(array, "version", "2.26");
    version.strip_prefix("2.").and_then(|minor| minor.parse().ok()).unwrap_or(26)
}

/// The version in a path, and what follows it.
fn route(path: &str) -> Option<(u32, &str)> {
    let (version, rest) = path.strip_prefix("/api/2.")?.split_once('/')?;
    Some((version.parse().ok()?, rest))
}

impl Web for PureStorage {
    fn call(&self, ask: &Ask) -> String {
        let path = route(&ask.path).map_or(ask.path.trim_start_matches("/api/"), |(_, rest)| rest);
        format!("{} {path}", ask.method)
    }

    fn answer(&self, array: &Array, ask: &Ask, effect: Option<&Effect>) -> Say {
        answer(array, ask, effect).unwrap_or_else(|refused| refused.say())
    }

    fn refusal(&self, status: u16) -> Say {
        let text = match status {
            401 => "Invalid session token.",
            403 => "Permission denied.",
            429 => "Too many requests.",
            503 => "Service unavailable.",
            _ => "Internal error.",
        };
        Refused::of(text, "").status(status).say()
    }
}

fn answer(array: &Array, ask: &Ask, effect: Option<&Effect>) -> Result<Say, Refused> {
    let newest = newest(array);
    if ask.path == "/api/api_version" && ask.method == "GET" {
        let first = ["1.16", "1.17"].into_iter().map(str::to_owned);
        let versions: Vec<String> = first.chain((0..=newest).map(|n| format!("2.{n}"))).collect();
        return Ok(Say::json(200, &json!({ "version": versions })));
    }
    let nowhere = || Refused::of("Not found.", &ask.path).status(404);
    let (version, path) = route(&ask.path).ok_or_else(nowhere)?;
    if version > newest {
        return Err(Refused::of("Unsupported API version.", &format!("2.{version}")).status(404));
    }
    let endpoint = schema::endpoint(&ask.method, path, version).ok_or_else(nowhere)?;
    let header = |name: &str| ask.headers.get(name).and_then(|value| value.to_str().ok());
    if path == "login" {
        if header("api-token") != Some(setting(array, "api_token", API_TOKEN).as_str()) {
            return Err(Refused::of("Invalid credentials supplied.", "").status(401));
        }
        let token =
            array.sessions().open(USER).map_err(|many| Refused::of(&many.to_string(), ""))?;
        let mut say = Say::json(200, &json!({ "items": [{ "username": USER }] }));
        say.headers.push(("x-auth-token".to_owned(), token));
        return Ok(say);
    }
    let token = header("x-auth-token").unwrap_or("");
    if matches!(effect, Some(Effect::EndSession)) {
        array.sessions().close(token);
    }
    if array.sessions().touch(token).is_none() {
        return Err(Refused::of("Invalid session token.", "").status(401));
    }
    if path == "logout" {
        array.sessions().close(token);
        return Ok(Say::json(200, &json!({})));
    }
    let json = header("content-type").is_some_and(|kind| kind.starts_with("application/json"));
    if !ask.body.is_empty() && !json {
        return Err(Refused::of("The body must be JSON.", "content-type").status(415));
    }
    let request = Request::new(array, ask, endpoint, version)?;
    volumes::expire(array)?;
    carry_out(&request, &ask.method, path).unwrap_or_else(|| Err(nowhere()))
}

fn carry_out(request: &Request<'_>, method: &str, path: &str) -> Option<Result<Say, Refused>> {
    let say = match (method, path) {
        ("GET", "arrays") => hosts::arrays(request),
        ("GET", "ports") => hosts::ports(request),
        ("GET", "pods" | "volume-groups") => request.page(Vec::new()),
        ("GET", "volumes") => volumes::list(request),
        ("POST", "volumes") => volumes::create(request),
        ("PATCH", "volumes") => volumes::update(request),
        ("DELETE", "volumes") => volumes::eradicate(request),
        ("GET", "volumes/tags") => snapshots::tags(request, Tagged::Volumes),
        ("PUT", "volumes/tags/batch") => snapshots::set_tags(request, Tagged::Volumes),
        ("DELETE", "volumes/tags") => snapshots::remove_tags(request, Tagged::Volumes),
        ("GET", "volume-snapshots") => snapshots::list(request),
        ("POST", "volume-snapshots") => snapshots::create(request),
        ("PATCH", "volume-snapshots") => snapshots::update(request),
        ("DELETE", "volume-snapshots") => snapshots::eradicate(request),
        ("GET", "volume-snapshots/tags") => snapshots::tags(request, Tagged::Snapshots),
        ("PUT", "volume-snapshots/tags/batch") => snapshots::set_tags(request, Tagged::Snapshots),
        ("DELETE", "volume-snapshots/tags") => snapshots::remove_tags(request, Tagged::Snapshots),
        ("GET", "hosts") => hosts::list(request),
        ("POST", "hosts") => hosts::create(request),
        ("PATCH", "hosts") => hosts::update(request),
        ("DELETE", "hosts") => hosts::delete(request),
        ("GET", "connections") => hosts::connections(request),
        ("POST", "connections") => hosts::connect(request),
        ("DELETE", "connections") => hosts::disconnect(request),
        ("GET", "protection-groups") => groups::list(request),
        ("POST", "protection-groups") => groups::create(request),
        ("PATCH", "protection-groups") => groups::update(request),
        ("DELETE", "protection-groups") => groups::eradicate(request),
        ("GET", "protection-groups/volumes" | "volumes/protection-groups") => {
            groups::list_members(request)
        }
        ("POST", "protection-groups/volumes" | "volumes/protection-groups") => {
            groups::change_members(request, true)
        }
        ("DELETE", "protection-groups/volumes" | "volumes/protection-groups") => {
            groups::change_members(request, false)
        }
        ("GET", "protection-group-snapshots") => groups::list_snapshots(request),
        ("POST", "protection-group-snapshots") => groups::snapshot(request),
        ("PATCH", "protection-group-snapshots") => groups::update_snapshot(request),
        ("DELETE", "protection-group-snapshots") => groups::eradicate_snapshot(request),
        _ => return None,
    };
    Some(say)
}
