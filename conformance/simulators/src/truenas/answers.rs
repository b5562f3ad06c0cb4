//! What calls answer, after the vendor's published method schemas of TrueNAS 25.04, `returns` of each
//! method, written off them by hand. The document of REST v2.0 (SCALE 22.12) says nothing of answers;
//! what they hold is the methods'. A call whose answer does not fit fails, so that no driver is tested
//! with an answer that no array gives.

use serde_json::Value;

use super::failure::Failure;
use crate::schema::Kind::{
    self, Any, Bool, Bytes, Either, Float, Int, IntOf, List, Names, Null, Of, OneOf, Open, Text,
    Time, True,
};
use crate::schema::{Fault, Field, Reading, STRICT, Wrong, may, must};

const TEXT_OR_NONE: Kind = Either(&Text, &Null);
const INT_OR_NONE: Kind = Either(&Int, &Null);
const BOOL_OR_NONE: Kind = Either(&Bool, &Null);

/// A property of ZFS.
const PROPERTY: Kind = Of(&[
    may("parsed", Any),
    may("rawvalue", TEXT_OR_NONE),
    may("value", TEXT_OR_NONE),
    may("source", TEXT_OR_NONE),
    may("source_info", Any),
]);

static DATASET: Kind = Of(&[
    may("id", Text),
    may("type", Text),
    may("name", Text),
    may("pool", Text),
    may("encrypted", Bool),
    may("encryption_root", TEXT_OR_NONE),
    may("key_loaded", BOOL_OR_NONE),
    may("children", List(&DATASET)),
    may("user_properties", Names(&PROPERTY)),
    may("locked", Bool),
    may("comments", PROPERTY),
    may("quota_warning", PROPERTY),
    may("quota_critical", PROPERTY),
    may("refquota_warning", PROPERTY),
    may("refquota_critical", PROPERTY),
    may("managedby", PROPERTY),
    may("deduplication", PROPERTY),
    may("aclmode", PROPERTY),
    may("acltype", PROPERTY),
    may("xattr", PROPERTY),
    may("atime", PROPERTY),
    may("casesensitivity", PROPERTY),
    may("checksum", PROPERTY),
    may("exec", PROPERTY),
    may("sync", PROPERTY),
    may("compression", PROPERTY),
    may("compressratio", PROPERTY),
    may("origin", PROPERTY),
    may("quota", PROPERTY),
    may("refquota", PROPERTY),
    may("reservation", PROPERTY),
    may("refreservation", PROPERTY),
    may("copies", PROPERTY),
    may("snapdir", PROPERTY),
    may("readonly", PROPERTY),
    may("recordsize", PROPERTY),
    may("sparse", PROPERTY),
    may("volsize", PROPERTY),
    may("volblocksize", PROPERTY),
    may("key_format", PROPERTY),
    may("encryption_algorithm", PROPERTY),
    may("used", PROPERTY),
    may("usedbychildren", PROPERTY),
    may("usedbydataset", PROPERTY),
    may("usedbyrefreservation", PROPERTY),
    may("usedbysnapshots", PROPERTY),
    may("available", PROPERTY),
    may("special_small_block_size", PROPERTY),
    may("pbkdf2iters", PROPERTY),
    may("creation", PROPERTY),
    may("snapdev", PROPERTY),
    may("mountpoint", TEXT_OR_NONE),
]);

const POOL: Kind = Of(&[
    may("id", Int),
    may("name", Text),
    may("guid", Text),
    may("status", Text),
    may("path", Text),
    may("scan", Open),
    may("expand", Open),
    may("is_upgraded", Bool),
    may("healthy", Bool),
    may("warning", Bool),
    may("status_code", TEXT_OR_NONE),
    may("status_detail", TEXT_OR_NONE),
    may("size", INT_OR_NONE),
    may("allocated", INT_OR_NONE),
    may("free", INT_OR_NONE),
    may("freeing", INT_OR_NONE),
    may("dedup_table_size", INT_OR_NONE),
    may("dedup_table_quota", TEXT_OR_NONE),
    may("fragmentation", TEXT_OR_NONE),
    may("size_str", TEXT_OR_NONE),
    may("allocated_str", TEXT_OR_NONE),
    may("free_str", TEXT_OR_NONE),
    may("freeing_str", TEXT_OR_NONE),
    may("autotrim", Open),
    may("topology", Of(TOPOLOGY)),
]);
const TOPOLOGY: &[Field] = &[
    must("data", List(&Any)),
    must("log", List(&Any)),
    must("cache", List(&Any)),
    must("spare", List(&Any)),
    must("special", List(&Any)),
    must("dedup", List(&Any)),
];

const SERVICE: Kind = Of(&[
    may("id", Int),
    may("service", Text),
    may("enable", Bool),
    may("state", Text),
    may("pids", List(&Int)),
]);

/// Of what a call made or changed: all that must be there. A listing may be of chosen members.
const PORTAL: &[Field] = &[
    must("id", Int),
    must("listen", List(&Of(&[must("ip", Text), must("port", Int)]))),
    must("tag", Int),
    may("comment", Text),
];
const INITIATOR: &[Field] =
    &[must("id", Int), may("initiators", List(&Text)), may("comment", Text)];
const CHAP: Kind = OneOf(&["NONE", "CHAP", "CHAP_MUTUAL"]);
const GROUP: Kind = Of(&[
    must("portal", Int),
    may("initiator", INT_OR_NONE),
    may("authmethod", CHAP),
    may("auth", INT_OR_NONE),
]);
const QUEUE: Kind = Of(&[may("QueuedCommands", Either(&IntOf(&[32, 128]), &Null))]);
const TARGET: &[Field] = &[
    must("id", Int),
    must("name", Text),
    may("alias", TEXT_OR_NONE),
    may("mode", OneOf(&["ISCSI", "FC", "BOTH"])),
    may("groups", List(&GROUP)),
    may("auth_networks", List(&Text)),
    must("rel_tgt_id", Int),
    may("iscsi_parameters", Either(&QUEUE, &Null)),
];
const EXTENT: &[Field] = &[
    must("id", Int),
    must("name", Bytes(1, 64)),
    may("type", OneOf(&["DISK", "FILE"])),
    may("disk", TEXT_OR_NONE),
    may("serial", TEXT_OR_NONE),
    may("path", TEXT_OR_NONE),
    may("filesize", Either(&Text, &Int)),
    may("blocksize", IntOf(&[512, 1024, 2048, 4096])),
    may("pblocksize", Bool),
    may("avail_threshold", INT_OR_NONE),
    may("comment", Text),
    must("naa", Bytes(1, 34)),
    may("insecure_tpc", Bool),
    may("xen", Bool),
    may("rpm", OneOf(&["UNKNOWN", "SSD", "5400", "7200", "10000", "15000"])),
    may("ro", Bool),
    may("enabled", Bool),
    must("vendor", Text),
    must("locked", BOOL_OR_NONE),
];
const ASSOCIATION: &[Field] =
    &[must("id", Int), must("target", Int), must("lunid", Int), must("extent", Int)];
const AUTH: &[Field] = &[
    must("id", Int),
    must("tag", Int),
    must("user", Text),
    must("secret", Text),
    may("peeruser", Text),
    may("peersecret", Text),
    may("discovery_auth", CHAP),
];
const GLOBAL: Kind = Of(&[
    must("id", Int),
    must("basename", Text),
    must("isns_servers", List(&Text)),
    may("listen_port", Int),
    may("pool_avail_threshold", INT_OR_NONE),
    must("alua", Bool),
    must("iser", Bool),
]);
const SESSION: Kind = Of(&[
    may("initiator", Text),
    may("initiator_addr", Text),
    may("initiator_alias", TEXT_OR_NONE),
    may("target", Text),
    may("target_alias", Text),
    may("header_digest", TEXT_OR_NONE),
    may("data_digest", TEXT_OR_NONE),
    may("max_data_segment_length", INT_OR_NONE),
    may("max_receive_data_segment_length", INT_OR_NONE),
    may("max_xmit_data_segment_length", INT_OR_NONE),
    may("max_burst_length", INT_OR_NONE),
    may("first_burst_length", INT_OR_NONE),
    may("immediate_data", Bool),
    may("iser", Bool),
    may("offload", Bool),
]);

const INFO: Kind = Of(&[
    may("version", Text),
    may("buildtime", Time),
    may("hostname", Text),
    may("physmem", Int),
    may("model", Text),
    may("cores", Int),
    may("physical_cores", Int),
    may("loadavg", List(&Any)),
    may("uptime", Text),
    may("uptime_seconds", Float),
    may("system_serial", TEXT_OR_NONE),
    may("system_product", TEXT_OR_NONE),
    may("system_product_version", TEXT_OR_NONE),
    may("license", Either(&Open, &Null)),
    may("boottime", Time),
    may("datetime", Time),
    may("timezone", Text),
    may("system_manufacturer", TEXT_OR_NONE),
    may("ecc_memory", Bool),
]);

/// A job. An array answers null, too, for credentials of its own and for an error that is none.
const JOB: Kind = Of(&[
    may("id", Int),
    may("method", Text),
    may("arguments", List(&Any)),
    may("transient", Bool),
    may("description", TEXT_OR_NONE),
    may("abortable", Bool),
    may("logs_path", TEXT_OR_NONE),
    may("logs_excerpt", TEXT_OR_NONE),
    may(
        "progress",
        Of(&[may("percent", INT_OR_NONE), may("description", TEXT_OR_NONE), may("extra", Any)]),
    ),
    may("result", Any),
    may("result_encoding_error", Any),
    may("error", TEXT_OR_NONE),
    may("exception", TEXT_OR_NONE),
    may("exc_info", Either(&Of(EXCEPTION), &Null)),
    may("state", Text),
    may("time_started", Either(&Time, &Null)),
    may("time_finished", Either(&Time, &Null)),
    may("credentials", Either(&Of(&[may("type", Text), may("data", Open)]), &Null)),
]);
const EXCEPTION: &[Field] = &[
    may("repr", TEXT_OR_NONE),
    may("type", TEXT_OR_NONE),
    may("errno", INT_OR_NONE),
    may("extra", Any),
];

const USER: Kind = Of(&[
    must("pw_name", Text),
    must("pw_gecos", Text),
    must("pw_dir", Text),
    must("pw_shell", Text),
    must("pw_uid", Int),
    must("pw_gid", Int),
    must("grouplist", Either(&List(&Int), &Null)),
    must("sid", TEXT_OR_NONE),
    must("source", OneOf(&["LOCAL", "ACTIVEDIRECTORY", "LDAP"])),
    must("local", Bool),
    must("attributes", Open),
    must("two_factor_config", Open),
    must("privilege", Open),
    must("account_attributes", List(&Text)),
]);
const SUCCESS: Kind = Of(&[
    must("response_type", OneOf(&["SUCCESS"])),
    must("user_info", Either(&USER, &Null)),
    must("authenticator", OneOf(&["LEVEL_1", "LEVEL_2"])),
]);
const REFUSED: Kind = Of(&[must("response_type", OneOf(&["AUTH_ERR", "EXPIRED"]))]);
const LOGIN: Kind = Either(&SUCCESS, &REFUSED);

/// Objects of a namespace: what a query lists, and what a call that made or changed one answers.
fn entry(namespace: &str) -> Option<Kind> {
    Some(match namespace {
        "pool" => POOL,
        "pool.dataset" => DATASET,
        "zfs.snapshot" => Open,
        "service" => SERVICE,
        "iscsi.portal" => Of(PORTAL),
        "iscsi.initiator" => Of(INITIATOR),
        "iscsi.target" => Of(TARGET),
        "iscsi.extent" => Of(EXTENT),
        "iscsi.targetextent" => Of(ASSOCIATION),
        "iscsi.auth" => Of(AUTH),
        "iscsi.global.sessions" => SESSION,
        "core.get_jobs" => JOB,
        _ => return None,
    })
}

/// What a method answers.
enum Form {
    /// This, with all that must be there.
    One(Kind),
    /// A list of these, one of them, or their number. Each may be of chosen members.
    Found(Kind),
}

fn form(method: &str) -> Option<Form> {
    let (namespace, verb) = method.rsplit_once('.')?;
    Some(match method {
        "core.get_jobs" | "iscsi.global.sessions" => Form::Found(entry(method)?),
        "iscsi.global.config" | "iscsi.global.update" => Form::One(GLOBAL),
        "system.info" => Form::One(INFO),
        "core.ping" => Form::One(OneOf(&["pong"])),
        "system.version" | "core.subscribe" => Form::One(Text),
        "system.ready"
        | "pool.dataset.delete"
        | "zfs.snapshot.delete"
        | "service.start"
        | "service.restart"
        | "service.reload"
        | "service.stop"
        | "auth.login"
        | "auth.login_with_api_key" => Form::One(Bool),
        "auth.login_ex" => Form::One(LOGIN),
        "auth.logout" => Form::One(True),
        "auth.me" => Form::One(USER),
        // A job: what the document says is its result.
        "pool.dataset.destroy_snapshots" => Form::One(Int),
        "pool.dataset.promote" | "zfs.snapshot.hold" | "zfs.snapshot.release" => Form::One(Null),
        // Of these the document does not say what they answer.
        "zfs.snapshot.clone" | "zfs.snapshot.rollback" => Form::One(Any),
        _ => match verb {
            "query" => Form::Found(entry(namespace)?),
            "create" | "update" | "get_instance" => Form::One(entry(namespace)?),
            "delete" => Form::One(True),
            _ => return None,
        },
    })
}

/// Checks what a method is about to answer.
pub(super) fn check(method: &str, answer: &Value) -> Result<(), Failure> {
    // From 25.10 on those of snapshots are under `pool`.
    let of_snapshot =
        method.strip_prefix("pool.snapshot.").map(|verb| format!("zfs.snapshot.{verb}"));
    let part = Reading { whole: false, ..STRICT };
    let wrong = match form(of_snapshot.as_deref().unwrap_or(method)) {
        None => Some("its form is in no table".to_owned()),
        Some(Form::One(kind)) => differs(STRICT, kind, answer),
        Some(Form::Found(kind)) => match answer {
            Value::Array(all) => all.iter().find_map(|one| differs(part, kind, one)),
            Value::Object(_) => differs(part, kind, answer),
            _ => differs(STRICT, Int, answer),
        },
    };
    match wrong {
        None => Ok(()),
        Some(wrong) => Err(Failure::call(format!("the simulator's answer to {method}: {wrong}"))),
    }
}

/// Where and how a value is not of a kind.
fn differs(reading: Reading, kind: Kind, value: &Value) -> Option<String> {
    let faults = reading.faults(kind, value);
    let Fault { path, wrong, value } = faults.first()?;
    Some(match wrong {
        Wrong::Unknown => format!("{path} is not in the document"),
        Wrong::Missing => format!("{path} is missing"),
        Wrong::Not(kind) => format!("{path} is {value}, not {kind:?}"),
    })
}
