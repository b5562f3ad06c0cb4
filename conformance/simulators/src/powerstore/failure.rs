//! How PowerStore refuses: a list of messages, each with a code.

use serde_json::json;

use crate::core::Trouble;
use crate::http::Say;

/// No volume of that id. From `gopowerstore`, as those below that say nothing else.
pub(super) const NO_VOLUME: &str = "0xE0A08001000E";
/// The volume is not mapped to that host. From Cinder.
pub(super) const NOT_MAPPED: &str = "0xE0A08001000F";
/// The same, asked of the host.
pub(super) const NOT_ATTACHED: &str = "0xE0A01001001E";
/// The name of a volume is taken.
pub(super) const VOLUME_NAME: &str = "0xE0A080010014";
/// The name of a snapshot is taken.
pub(super) const SNAPSHOT_NAME: &str = "0xE0A060010012";
/// Too many snapshots in the family. From Cinder.
pub(super) const SNAPSHOTS: &str = "0xE0A040010003";
/// No host of that id.
pub(super) const NO_HOST: &str = "0xE0A010010003";
/// The volume is attached to a host.
pub(super) const ATTACHED: &str = "0xE0A080020001";
/// No instance of that id.
pub(super) const NO_INSTANCE: &str = "0xE04040020009";
/// A range past the end.
pub(super) const BAD_RANGE: &str = "0xE04040010005";
/// A host and a group of hosts in one request. Seen by a client at an array.
pub(super) const INTERNAL: &str = "0xE0A080010052";
/// A QoS rule of that name is there. From Cinder.
pub(super) const RULE_NAME: &str = "0xE0A0E0010009";
/// A policy of that name is there. From Cinder.
pub(super) const POLICY_NAME: &str = "0xE02020010004";
/// The array has a code for it, and no source says which: nobody can go by it.
pub(super) const UNPUBLISHED: &str = "0xE0F0F0F0F0F0";

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) text: String,
    pub(super) arguments: Vec<String>,
}

impl Failure {
    pub(super) fn new(status: u16, code: &'static str, text: impl Into<String>) -> Self {
        Self { status, code, text: text.into(), arguments: Vec::new() }
    }

    /// The request is not one that the document allows.
    pub(super) fn invalid(text: impl Into<String>) -> Self {
        Self::new(400, UNPUBLISHED, text)
    }

    /// It cannot be done.
    pub(super) fn failed(text: impl Into<String>) -> Self {
        Self::new(422, UNPUBLISHED, text)
    }

    pub(super) fn about(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    pub(super) fn no_volume(id: &str) -> Self {
        Self::new(404, NO_VOLUME, format!("Could not find the volume with ID: {id}")).about(id)
    }

    pub(super) fn no_instance(resource: &str, id: &str) -> Self {
        let text = format!("Instance with id {id} of resource {resource} was not found");
        Self::new(404, NO_INSTANCE, text).about(id)
    }

    pub(super) fn say(&self) -> Say {
        let message = json!({
            "code": self.code, "severity": "Error", "message_l10n": self.text,
            "arguments": self.arguments,
        });
        Say::json(self.status, &json!({ "messages": [message] }))
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Missing("volume" | "snapshot", id) => Self::no_volume(&id),
            Trouble::Missing(what, id) => Self::no_instance(what, &id),
            Trouble::Limit("snapshots_per_volume", most) => {
                Self::new(422, SNAPSHOTS, format!("The family has {most} snapshots already"))
            }
            Trouble::Limit(what, most) => {
                Self::failed(format!("The system limit of {most} {what} is reached"))
            }
            Trouble::NoSpace(pool) => {
                Self::failed(format!("Insufficient space on appliance {pool}"))
            }
            Trouble::Broken(error) => Self::new(500, INTERNAL, error.to_string()),
            other => Self::failed(other.to_string()),
        }
    }
}
