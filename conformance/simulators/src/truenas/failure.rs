//! How TrueNAS refuses, in both of its protocols.

use serde_json::{Map, Value, json};

use crate::core::Trouble;
use crate::http::Say;

/// Error numbers of its system, with their names.
pub(super) const EFAULT: i64 = 14;
pub(super) const ENOENT: i64 = 2;
pub(super) const EEXIST: i64 = 17;
pub(super) const EINVAL: i64 = 22;
pub(super) const ENOTAUTHENTICATED: i64 = 207;

/// Why a call is refused.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Failure {
    /// Fields with what is wrong: attribute, message, number.
    Validation(Vec<(String, String, i64)>),
    /// The call cannot be done.
    Call(String, i64),
    /// There is no object of that id.
    NoInstance(String),
    /// There is no such method, or path.
    NoMethod(String),
    /// Nobody has logged in.
    NotAuthenticated,
}

impl Failure {
    pub(super) fn field(attribute: &str, message: impl Into<String>, errno: i64) -> Self {
        Self::Validation(vec![(attribute.to_owned(), message.into(), errno)])
    }

    pub(super) fn call(message: impl Into<String>) -> Self {
        Self::Call(message.into(), EFAULT)
    }

    /// As REST says it.
    pub(super) fn say(&self) -> Say {
        match self {
            Self::Validation(fields) => {
                let mut body = Map::new();
                for (attribute, message, errno) in fields {
                    let list = body.entry(attribute.clone()).or_insert_with(|| json!([]));
                    if let Some(list) = list.as_array_mut() {
                        list.push(json!({"message": message, "errno": errno}));
                    }
                }
                Say::json(422, &Value::Object(body))
            }
            Self::Call(message, errno) => {
                Say::json(422, &json!({"message": message, "errno": errno}))
            }
            Self::NoInstance(what) => Say::json(
                404,
                &json!({"message": format!("{what} does not exist"), "errno": ENOENT}),
            ),
            Self::NoMethod(_) => Say::text(404, "404: Not Found"),
            Self::NotAuthenticated => Say::text(401, ""),
        }
    }

    /// As JSON-RPC says it: an error object.
    pub(super) fn error(&self) -> Value {
        let call = |code: i64, message: &str, errno: i64, reason: String, extra: Value| {
            json!({"code": code, "message": message, "data": {
                "error": errno, "errname": errname(errno), "reason": reason, "trace": null,
                "extra": extra,
            }})
        };
        match self {
            Self::Validation(fields) => {
                let lines = fields.iter().map(|(attribute, message, errno)| {
                    format!("[{}] {attribute}: {message}\n", errname(*errno))
                });
                call(-32602, "Invalid params", EINVAL, lines.collect(), json!(fields))
            }
            Self::Call(message, errno) => {
                let reason = format!("[{}] {message}", errname(*errno));
                call(-32001, "Method call error", *errno, reason, Value::Null)
            }
            Self::NoInstance(what) => {
                let reason = format!("[ENOENT] None: {what} does not exist");
                call(-32001, "Method call error", ENOENT, reason, Value::Null)
            }
            Self::NoMethod(method) => {
                json!({"code": -32601, "message": "Method does not exist", "data": method})
            }
            Self::NotAuthenticated => {
                let reason = "[ENOTAUTHENTICATED] Not authenticated".to_owned();
                call(-32001, "Method call error", ENOTAUTHENTICATED, reason, Value::Null)
            }
        }
    }
}

fn errname(errno: i64) -> &'static str {
    match errno {
        ENOENT => "ENOENT",
        EEXIST => "EEXIST",
        EINVAL => "EINVAL",
        ENOTAUTHENTICATED => "ENOTAUTHENTICATED",
        16 => "EBUSY",
        28 => "ENOSPC",
        _ => "EFAULT",
    }
}

/// What ZFS says. The vendor's calls add their own words where they have any.
impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Missing("snapshot", key) => {
                Self::Call(format!("Snapshot {key} not found"), ENOENT)
            }
            Trouble::Missing(_, key) => {
                Self::Call(format!("PoolDataset {key} does not exist"), ENOENT)
            }
            Trouble::Exists(_, key) => {
                Self::call(format!("cannot create '{key}': dataset already exists"))
            }
            Trouble::InUse(key, _) => {
                Self::call(format!("cannot destroy '{key}': snapshot has dependent clones"))
            }
            Trouble::NoSpace(pool) => {
                Self::call(format!("cannot create in '{pool}': out of space"))
            }
            Trouble::Limit(what, most) => Self::call(format!("limit of {most} {what} is reached")),
            Trouble::Invalid(text) => Self::Call(text, EINVAL),
            Trouble::Offline(key) => Self::call(format!("{key} is offline")),
            Trouble::Broken(error) => Self::call(error.to_string()),
        }
    }
}
