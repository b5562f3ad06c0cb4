//! What each request may hold, after the vendor's published document of FlashArray REST 2.26 and, for
//! what an older array lacks, that of 2.2. What is not in it is refused.

use serde_json::Value;

use super::failure::Refused;
use crate::schema::Kind::{self, Bool, Chars, Either, List, Of, OneOf, Text, Within};
use crate::schema::{Field, STRICT, Wrong, may};

/// What a parameter of the query is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Query {
    Bool,
    Count,
    Text,
    /// Values with commas between.
    List,
    /// The same, and it must be there.
    Must,
}

/// The body of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    None,
    May(&'static [Field]),
    Must(&'static [Field]),
    /// A list of 1 to 30 different objects.
    Tags,
}

/// A parameter, and since which version it is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parameter(&'static str, Query, u32);

/// A request that there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Endpoint {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) since: u32,
    pub(super) query: &'static [Parameter],
    pub(super) body: Body,
    /// Whether it lists objects.
    pub(super) lists: bool,
    /// Since when its pages go on by a token.
    pub(super) token: u32,
}

const fn list(name: &'static str) -> Parameter {
    Parameter(name, Query::List, 0)
}
const fn must(name: &'static str) -> Parameter {
    Parameter(name, Query::Must, 0)
}
const fn flag(name: &'static str) -> Parameter {
    Parameter(name, Query::Bool, 0)
}
const fn since(version: u32, parameter: Parameter) -> Parameter {
    Parameter(parameter.0, parameter.1, version)
}

const TEXTS: Kind = List(&Text);
/// It takes a limit away.
const EMPTY: Kind = OneOf(&[""]);
const REFERENCE: &[Field] = &[may("id", Text), may("name", Text)];
const QOS: &[Field] = &[
    may("bandwidth_limit", Within(1 << 20, 512 << 30)),
    may("iops_limit", Within(100, 100_000_000)),
];
const QOS_PATCH: &[Field] = &[
    may("bandwidth_limit", Either(&Within(1 << 20, 512 << 30), &EMPTY)),
    may("iops_limit", Either(&Within(100, 100_000_000), &EMPTY)),
];
const PRIORITY: &[Field] = &[
    may("priority_adjustment_operator", Text),
    may("priority_adjustment_value", Within(i32::MIN as i64, i32::MAX as i64)),
];
const SIZE: Kind = Within(0, 4_503_599_627_370_496);
const VOLUME_POST: &[Field] = &[
    may("destroyed", Bool),
    may("priority_adjustment", Of(PRIORITY)),
    may("provisioned", SIZE),
    may("qos", Of(QOS)),
    may("source", Of(REFERENCE)),
    may("subtype", OneOf(&["regular", "protocol_endpoint"])),
];
const VOLUME_PATCH: &[Field] = &[
    may("destroyed", Bool),
    may("name", Text),
    may("pod", Of(REFERENCE)),
    may("priority_adjustment", Of(PRIORITY)),
    may("provisioned", SIZE),
    may("qos", Of(QOS_PATCH)),
    may("requested_promotion_state", OneOf(&["promoted", "demoted"])),
    may("volume_group", Of(REFERENCE)),
];
const SNAPSHOT_POST: &[Field] = &[may("destroyed", Bool), may("suffix", Chars(0, 63))];
const DESTROY: &[Field] = &[may("destroyed", Bool), may("name", Text)];
const CHAP: &[Field] = &[
    may("host_password", Chars(0, 255)),
    may("host_user", Text),
    may("target_password", Chars(0, 255)),
    may("target_user", Text),
];
const PERSONALITY: Kind =
    OneOf(&["aix", "esxi", "hitachi-vsp", "hpux", "oracle-vm-server", "solaris", "vms"]);
const HOST_POST: &[Field] = &[
    may("chap", Of(CHAP)),
    may("iqns", TEXTS),
    may("nqns", TEXTS),
    may("personality", PERSONALITY),
    may("vlan", Text),
    may("wwns", TEXTS),
];
const HOST_PATCH: &[Field] = &[
    may("name", Text),
    may("add_iqns", TEXTS),
    may("add_nqns", TEXTS),
    may("add_wwns", TEXTS),
    may("chap", Of(CHAP)),
    may("host_group", Of(REFERENCE)),
    may("iqns", TEXTS),
    may("nqns", TEXTS),
    may("personality", PERSONALITY),
    may("remove_iqns", TEXTS),
    may("remove_nqns", TEXTS),
    may("remove_wwns", TEXTS),
    may("vlan", Text),
    may("wwns", TEXTS),
];
const CONNECTION: &[Field] =
    &[may("lun", Within(1, 4095)), may("protocol_endpoint", Of(REFERENCE))];
const GROUP_SNAPSHOT: &[Field] = &[may("name", Text), may("suffix", Chars(0, 63))];
/// A tag: keys of 64 characters, values of 256.
const TAG: &[Field] = &[
    may("copyable", Bool),
    may("key", Chars(0, 64)),
    may("namespace", Text),
    may("value", Chars(0, 256)),
];

const PAGES: &[Parameter] = &[
    Parameter("filter", Query::Text, 0),
    Parameter("limit", Query::Count, 0),
    Parameter("offset", Query::Count, 0),
    Parameter("sort", Query::List, 0),
    Parameter("total_item_count", Query::Bool, 0),
];

const fn get(path: &'static str, query: &'static [Parameter]) -> Endpoint {
    Endpoint { method: "GET", path, since: 0, query, body: Body::None, lists: true, token: 0 }
}

const fn act(
    method: &'static str,
    path: &'static str,
    query: &'static [Parameter],
    body: Body,
) -> Endpoint {
    Endpoint { method, path, since: 0, query, body, lists: false, token: 0 }
}

/// Never in the versions that are spoken here.
const NEVER: u32 = u32::MAX;
/// The version whose document has the tags of snapshots, and what else 2.2 lacks.
const NEWER: u32 = 26;

const NAMED: &[Parameter] = &[list("ids"), list("names")];
const LISTED: &[Parameter] = &[flag("destroyed"), list("ids"), list("names"), flag("total_only")];
const TAGGED: &[Parameter] = &[
    since(NEWER, list("namespaces")),
    flag("resource_destroyed"),
    list("resource_ids"),
    list("resource_names"),
];
const RESOURCE: &[Parameter] = &[list("resource_ids"), list("resource_names")];
const UNTAG: &[Parameter] =
    &[list("keys"), list("namespaces"), list("resource_ids"), list("resource_names")];
const PAIR: &[Parameter] = &[
    list("host_group_names"),
    list("host_names"),
    since(NEWER, list("volume_ids")),
    list("volume_names"),
];
const MEMBERS: &[Parameter] = &[
    since(NEWER, list("group_ids")),
    list("group_names"),
    since(NEWER, list("member_ids")),
    list("member_names"),
];

/// All requests that are answered.
const ENDPOINTS: &[Endpoint] = &[
    act("POST", "login", &[], Body::None),
    act("POST", "logout", &[], Body::None),
    Endpoint { token: NEVER, ..get("arrays", &[]) },
    Endpoint { token: NEVER, ..get("ports", &[list("names")]) },
    get("pods", LISTED),
    get("volume-groups", LISTED),
    get("volumes", LISTED),
    act(
        "POST",
        "volumes",
        &[
            since(NEWER, list("add_to_protection_group_ids")),
            since(NEWER, list("add_to_protection_group_names")),
            must("names"),
            flag("overwrite"),
            since(NEWER, flag("with_default_protection")),
        ],
        Body::Must(VOLUME_POST),
    ),
    act(
        "PATCH",
        "volumes",
        &[list("ids"), list("names"), flag("truncate")],
        Body::Must(VOLUME_PATCH),
    ),
    act("DELETE", "volumes", NAMED, Body::None),
    Endpoint { token: NEWER, ..get("volumes/tags", TAGGED) },
    act("DELETE", "volumes/tags", UNTAG, Body::None),
    act("PUT", "volumes/tags/batch", RESOURCE, Body::Tags),
    get(
        "volume-snapshots",
        &[
            flag("destroyed"),
            list("ids"),
            list("names"),
            list("source_ids"),
            list("source_names"),
            flag("total_only"),
        ],
    ),
    act(
        "POST",
        "volume-snapshots",
        &[
            since(NEWER, flag("allow_throttle")),
            Parameter("on", Query::Text, 0),
            list("source_ids"),
            list("source_names"),
        ],
        Body::Must(SNAPSHOT_POST),
    ),
    act("PATCH", "volume-snapshots", NAMED, Body::Must(DESTROY)),
    act("DELETE", "volume-snapshots", NAMED, Body::None),
    Endpoint { since: NEWER, ..get("volume-snapshots/tags", TAGGED) },
    Endpoint { since: NEWER, ..act("DELETE", "volume-snapshots/tags", UNTAG, Body::None) },
    Endpoint { since: NEWER, ..act("PUT", "volume-snapshots/tags/batch", RESOURCE, Body::Tags) },
    get("hosts", &[list("names")]),
    act("POST", "hosts", &[must("names")], Body::Must(HOST_POST)),
    act("PATCH", "hosts", &[must("names")], Body::Must(HOST_PATCH)),
    act("DELETE", "hosts", &[must("names")], Body::None),
    get(
        "connections",
        &[
            list("host_group_names"),
            list("host_names"),
            list("protocol_endpoint_ids"),
            list("protocol_endpoint_names"),
            list("volume_ids"),
            list("volume_names"),
        ],
    ),
    act("POST", "connections", PAIR, Body::May(CONNECTION)),
    act("DELETE", "connections", PAIR, Body::None),
    get("protection-groups", LISTED),
    act(
        "POST",
        "protection-groups",
        &[must("names"), flag("overwrite"), list("source_ids"), list("source_names")],
        Body::None,
    ),
    act("PATCH", "protection-groups", NAMED, Body::Must(DESTROY)),
    act("DELETE", "protection-groups", NAMED, Body::None),
    get("protection-groups/volumes", MEMBERS),
    act("POST", "protection-groups/volumes", MEMBERS, Body::None),
    act("DELETE", "protection-groups/volumes", MEMBERS, Body::None),
    get("volumes/protection-groups", MEMBERS),
    act("POST", "volumes/protection-groups", MEMBERS, Body::None),
    act("DELETE", "volumes/protection-groups", MEMBERS, Body::None),
    get(
        "protection-group-snapshots",
        &[
            flag("destroyed"),
            list("ids"),
            list("names"),
            list("source_ids"),
            list("source_names"),
            flag("total_only"),
        ],
    ),
    act(
        "POST",
        "protection-group-snapshots",
        &[
            flag("apply_retention"),
            flag("for_replication"),
            flag("replicate"),
            flag("replicate_now"),
            list("source_ids"),
            list("source_names"),
        ],
        Body::May(GROUP_SNAPSHOT),
    ),
    act("PATCH", "protection-group-snapshots", NAMED, Body::Must(DESTROY)),
    act("DELETE", "protection-group-snapshots", NAMED, Body::None),
];

/// The request of that method and path, in a version.
pub(super) fn endpoint(method: &str, path: &str, version: u32) -> Option<&'static Endpoint> {
    ENDPOINTS.iter().find(|one| one.method == method && one.path == path && one.since <= version)
}

impl Endpoint {
    /// Checks the parameters of the query.
    pub(super) fn check_query(
        &self,
        query: &[(String, String)],
        version: u32,
    ) -> Result<(), Refused> {
        let token = &[Parameter("continuation_token", Query::Text, self.token)];
        let (pages, token): (&[Parameter], &[Parameter]) =
            if self.lists { (PAGES, token) } else { (&[], &[]) };
        let known = || self.query.iter().chain(pages).chain(token).filter(|one| one.2 <= version);
        let mut seen: Vec<&str> = Vec::new();
        for (name, value) in query {
            let Some(Parameter(_, kind, _)) = known().find(|one| one.0 == name) else {
                return Err(Refused::of("Unrecognized query parameter.", name));
            };
            if seen.contains(&name.as_str()) {
                return Err(Refused::of("Duplicate query parameter.", name));
            }
            seen.push(name);
            let sound = match kind {
                Query::Bool => matches!(value.as_str(), "true" | "false"),
                Query::Count => value.parse::<i32>().is_ok_and(|count| count >= 0),
                Query::Text => !value.is_empty(),
                Query::List | Query::Must => value.split(',').all(|part| !part.is_empty()),
            };
            if !sound {
                return Err(Refused::of("Invalid value of a query parameter.", name));
            }
        }
        for one in known().filter(|one| one.1 == Query::Must) {
            if !seen.contains(&one.0) {
                return Err(Refused::of("Missing required query parameter.", one.0));
            }
        }
        for kind in ["", "source_", "resource_", "group_", "member_", "volume_"] {
            let both = [format!("{kind}ids"), format!("{kind}names")];
            if both.iter().all(|name| seen.contains(&name.as_str())) {
                return Err(Refused::of("Names and ids cannot be set together.", &both[0]));
            }
        }
        Ok(())
    }

    /// Checks the body, and answers it; nothing is an empty object.
    pub(super) fn check_body(&self, body: &[u8]) -> Result<Value, Refused> {
        let fields = match self.body {
            // An empty object is what some clients send for nothing.
            Body::None if body.is_empty() || body == b"{}" || body == b"null" => {
                return Ok(Value::Null);
            }
            Body::None => return Err(Refused::of("Unexpected body.", "")),
            Body::May(_) if body.is_empty() => return Ok(Value::Null),
            Body::May(fields) | Body::Must(fields) => Some(fields),
            Body::Tags => None,
        };
        let value: Value =
            serde_json::from_slice(body).map_err(|_| Refused::of("Invalid JSON body.", ""))?;
        if let Some(fields) = fields {
            members(fields, &value, "body")?;
            return Ok(value);
        }
        let tags = value.as_array().ok_or_else(|| Refused::of("A list is expected.", "body"))?;
        if tags.is_empty() || tags.len() > 30 {
            return Err(Refused::of("Between 1 and 30 tags can be set at once.", ""));
        }
        for (number, tag) in tags.iter().enumerate() {
            members(TAG, tag, "tag")?;
            if tag.get("key").is_none() || tag.get("value").is_none() {
                return Err(Refused::of("A tag needs a key and a value.", ""));
            }
            if tags.iter().take(number).any(|other| other == tag) {
                return Err(Refused::of("Tags must be unique.", ""));
            }
        }
        Ok(value)
    }
}

fn members(fields: &'static [Field], object: &Value, at: &str) -> Result<(), Refused> {
    let faults = STRICT.faults(Of(fields), object);
    let Some(fault) = faults.first() else { return Ok(()) };
    let name = if fault.path.is_empty() { at } else { fault.name() };
    Err(Refused::of(
        match fault.wrong {
            Wrong::Unknown => "Unrecognized or read-only field.",
            Wrong::Not(Of(_)) => "An object is expected.",
            _ => "Invalid value of a field.",
        },
        name,
    ))
}
