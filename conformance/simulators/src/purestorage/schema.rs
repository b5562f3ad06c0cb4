//! What each request may hold, after the vendor's published document of FlashArray REST 2.26 and, for
//! what an older array lacks, that of 2.2. What is not in it is refused.

use serde_json::Value;

use super::failure::Refused;

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

/// What a member of a body is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Bool,
    Int(i64, i64),
    /// The same, or an empty text, which takes the limit away.
    IntOrEmpty(i64, i64),
    Text(usize),
    Texts,
    OneOf(&'static [&'static str]),
    Object(&'static [Field]),
}

/// A member, and since which version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field(pub(super) &'static str, pub(super) Kind);

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

use Kind::{Bool, Int, IntOrEmpty, Object, OneOf, Text, Texts};

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

const REFERENCE: &[Field] = &[Field("id", Text(0)), Field("name", Text(0))];
const QOS: &[Field] = &[
    Field("bandwidth_limit", Int(1 << 20, 512 << 30)),
    Field("iops_limit", Int(100, 100_000_000)),
];
const QOS_PATCH: &[Field] = &[
    Field("bandwidth_limit", IntOrEmpty(1 << 20, 512 << 30)),
    Field("iops_limit", IntOrEmpty(100, 100_000_000)),
];
const PRIORITY: &[Field] = &[
    Field("priority_adjustment_operator", Text(0)),
    Field("priority_adjustment_value", Int(i32::MIN as i64, i32::MAX as i64)),
];
const SIZE: Kind = Int(0, 4_503_599_627_370_496);
const VOLUME_POST: &[Field] = &[
    Field("destroyed", Bool),
    Field("priority_adjustment", Object(PRIORITY)),
    Field("provisioned", SIZE),
    Field("qos", Object(QOS)),
    Field("source", Object(REFERENCE)),
    Field("subtype", OneOf(&["regular", "protocol_endpoint"])),
];
const VOLUME_PATCH: &[Field] = &[
    Field("destroyed", Bool),
    Field("name", Text(0)),
    Field("pod", Object(REFERENCE)),
    Field("priority_adjustment", Object(PRIORITY)),
    Field("provisioned", SIZE),
    Field("qos", Object(QOS_PATCH)),
    Field("requested_promotion_state", OneOf(&["promoted", "demoted"])),
    Field("volume_group", Object(REFERENCE)),
];
const SNAPSHOT_POST: &[Field] = &[Field("destroyed", Bool), Field("suffix", Text(63))];
const DESTROY: &[Field] = &[Field("destroyed", Bool), Field("name", Text(0))];
const CHAP: &[Field] = &[
    Field("host_password", Text(255)),
    Field("host_user", Text(0)),
    Field("target_password", Text(255)),
    Field("target_user", Text(0)),
];
const PERSONALITY: Kind =
    OneOf(&["aix", "esxi", "hitachi-vsp", "hpux", "oracle-vm-server", "solaris", "vms"]);
const HOST_POST: &[Field] = &[
    Field("chap", Object(CHAP)),
    Field("iqns", Texts),
    Field("nqns", Texts),
    Field("personality", PERSONALITY),
    Field("vlan", Text(0)),
    Field("wwns", Texts),
];
const HOST_PATCH: &[Field] = &[
    Field("name", Text(0)),
    Field("add_iqns", Texts),
    Field("add_nqns", Texts),
    Field("add_wwns", Texts),
    Field("chap", Object(CHAP)),
    Field("host_group", Object(REFERENCE)),
    Field("iqns", Texts),
    Field("nqns", Texts),
    Field("personality", PERSONALITY),
    Field("remove_iqns", Texts),
    Field("remove_nqns", Texts),
    Field("remove_wwns", Texts),
    Field("vlan", Text(0)),
    Field("wwns", Texts),
];
const CONNECTION: &[Field] =
    &[Field("lun", Int(1, 4095)), Field("protocol_endpoint", Object(REFERENCE))];
const GROUP_SNAPSHOT: &[Field] = &[Field("name", Text(0)), Field("suffix", Text(63))];
/// A tag: keys of 64 characters, values of 256.
const TAG: &[Field] = &[
    Field("copyable", Bool),
    Field("key", Text(64)),
    Field("namespace", Text(0)),
    Field("value", Text(256)),
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
    let object = object.as_object().ok_or_else(|| Refused::of("An object is expected.", at))?;
    for (name, value) in object {
        let Some(Field(_, kind)) = fields.iter().find(|field| field.0 == name) else {
            return Err(Refused::of("Unrecognized or read-only field.", name));
        };
        let sound = match kind {
            Bool => value.is_boolean(),
            Int(least, most) => value.as_i64().is_some_and(|n| (*least..=*most).contains(&n)),
            IntOrEmpty(least, most) => {
                value == "" || value.as_i64().is_some_and(|n| (*least..=*most).contains(&n))
            }
            Text(0) => value.is_string(),
            Text(most) => value.as_str().is_some_and(|text| text.chars().count() <= *most),
            Texts => value.as_array().is_some_and(|list| list.iter().all(Value::is_string)),
            OneOf(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            Object(fields) => {
                members(fields, value, name)?;
                true
            }
        };
        if !sound {
            return Err(Refused::of("Invalid value of a field.", name));
        }
    }
    Ok(())
}
