//! How ONTAP refuses: a code that is a text of digits, and words.

use serde_json::json;

use crate::core::Trouble;
use crate::http::Say;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: u16,
    pub(super) code: &'static str,
    message: String,
    target: String,
}

impl Failure {
    pub(super) fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), target: String::new() }
    }

    /// About a member of the request.
    pub(super) fn at(self, target: &str) -> Self {
        Self { target: target.to_owned(), ..self }
    }

    /// What is not there.
    pub(super) fn missing(target: &str) -> Self {
        Self::new(404, "4", "entry doesn't exist").at(target)
    }

    /// A member or parameter that the request cannot have.
    pub(super) fn unexpected(name: &str) -> Self {
        Self::new(400, "262179", format!("Unexpected argument \"{name}\".")).at(name)
    }

    /// A member that must be there.
    pub(super) fn required(name: &str) -> Self {
        Self::new(400, "262188", format!("Field \"{name}\" is required.")).at(name)
    }

    /// A value that is none of its field.
    pub(super) fn value(name: &str, what: &str) -> Self {
        let text = format!("The value is invalid for field \"{name}\" ({what}).");
        Self::new(400, "262197", text).at(name)
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(401, "6691623", "User is not authorized.")
    }

    pub(super) fn say(&self) -> Say {
        let mut error = json!({ "message": self.message, "code": self.code });
        if !self.target.is_empty()
            && let Some(error) = error.as_object_mut()
        {
            error.insert("target".to_owned(), json!(self.target));
        }
        Say::json(self.status, &json!({ "error": error }))
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Missing("pool", _) => {
                Self::new(404, "917927", "The specified volume was not found.").at("name")
            }
            Trouble::Missing("snapshot", _) => Self::missing("name"),
            Trouble::Missing(..) => {
                Self::new(404, "5374875", "The specified LUN was not found.").at("uuid")
            }
            Trouble::Exists(_, key) => Self::new(
                409,
                "5374242",
                format!("A LUN or NVMe namespace already exists at path \"{key}\"."),
            )
            .at("name"),
            Trouble::InUse(key, _) => Self::new(409, "1638555", format!("{key} is busy.")),
            Trouble::NoSpace(pool) => {
                let text = format!("No space left in volume \"{pool}\".");
                Self::new(400, "917874", text)
            }
            Trouble::Limit("snapshots_per_volume", most) => {
                let text = format!("Snapshot count of {most} is reached.");
                Self::new(400, "525062", text)
            }
            Trouble::Limit(what, most) => {
                Self::new(400, "5374127", format!("The limit of {most} {what} is reached."))
            }
            Trouble::Invalid(text) | Trouble::Offline(text) => Self::new(400, "262197", text),
            Trouble::Broken(error) => Self::new(500, "2", error.to_string()),
        }
    }
}
