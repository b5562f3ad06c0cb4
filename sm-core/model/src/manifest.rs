//! What a driver says of itself, readable without running any of its code.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::{DeviceConfig, host};

/// Name of the ELF section that holds the manifest as JSON.
pub const SECTION: &str = ".sm_driver";

/// A driver's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// The SR type it serves: `file`, `lvmoiscsi`, ...
    pub name: String,
    /// One line for people.
    pub title: String,
    /// Version of the driver.
    pub version: String,
    /// Who made it.
    #[serde(default)]
    pub vendor: String,
    /// Version of the binary interface it was built for, `1.0`.
    pub abi: String,
    /// Version of the SDK it was built with.
    pub sdk: String,
    /// `unwind`, or `abort`: then it may only run in a child process.
    pub panic: PanicStrategy,
    /// Where it may run.
    #[serde(default)]
    pub isolation: Isolation,
    /// Whether it must run as root.
    #[serde(default)]
    pub needs_root: bool,
    /// Services it cannot do without (`kv`, `secret`, ...).
    #[serde(default)]
    pub services: Vec<String>,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// Keys of its device configuration.
    #[serde(default)]
    pub config: Vec<ConfigField>,
}

/// What happens when the driver panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PanicStrategy {
    /// The SDK turns the panic into an error.
    Unwind,
    /// The process dies.
    Abort,
}

/// Where a driver may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// In process or in a child, as the host wishes.
    #[default]
    Any,
    /// Only in a child process.
    Process,
}

/// Something a driver can do, with its limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Capability {
    /// The name: that of an operation, or one of [`feature`].
    pub name: String,
    /// The limit, where there is one: bytes, a count, a depth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Where the limit comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Capabilities that are not operations.
pub mod feature {
    /// Snapshots of several VDIs at one point in time.
    pub const GROUP_SNAPSHOT: &str = "group_snapshot";
    /// Snapshot, clone and revert work while the VDI is attached for writing.
    pub const LIVE_SNAPSHOT: &str = "live_snapshot";
    /// Resize works while the VDI is attached.
    pub const LIVE_RESIZE: &str = "live_resize";
    /// Snapshot and clone work while a data path of the host has the VDI's images open for writing:
    /// the driver asks the host to pause it ([`crate::host::DatapathPause`]).
    pub const DATAPATH: &str = "datapath";
    /// Blocks that change are tracked, through snapshots ([`crate::vdi::VdiCbt`]).
    pub const CHANGED_BLOCKS: &str = "changed_blocks";
    /// Snapshot, clone and revert are done by the storage: no data crosses the host.
    pub const OFFLOAD: &str = "offload";
    /// Space is taken only when written.
    pub const THIN: &str = "thin";
    /// VDIs of format `raw`.
    pub const RAW: &str = "raw";
    /// VDIs of format `vhd`.
    pub const VHD: &str = "vhd";
    /// Requests of a VDI can be limited ([`crate::vdi::VdiQos`]); the limit is the most in a second.
    pub const QOS_OPERATIONS: &str = "qos_operations";
    /// Bytes of a VDI can be limited; the limit is the most in a second.
    pub const QOS_BYTES: &str = "qos_bytes";
    /// Such limits can have a burst.
    pub const QOS_BURST: &str = "qos_burst";
    /// Largest VDI; the limit is in bytes.
    pub const MAX_VDI_SIZE: &str = "max_vdi_size";
    /// Most images between a disk and its root; the limit is a count.
    pub const MAX_CHAIN: &str = "max_chain";
}

/// One key of a driver's device configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigField {
    /// The key.
    pub name: String,
    /// What its text must be.
    #[serde(rename = "type")]
    pub kind: FieldKind,
    /// Whether it must be given.
    #[serde(default)]
    pub required: bool,
    /// Whether it must never be printed.
    #[serde(default)]
    pub secret: bool,
    /// The value if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// One line for people.
    #[serde(default)]
    pub help: String,
}

/// What the text of a configuration key must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", from = "String")]
pub enum FieldKind {
    /// Any text. Also what a kind of a later release is read as.
    Text,
    /// An absolute path.
    Path,
    /// A number without sign.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A size such as `10GiB`.
    Size,
}

impl Manifest {
    /// Whether the driver has the capability.
    pub fn can(&self, capability: &str) -> bool {
        self.capability(capability).is_some()
    }

    /// The capability of that name.
    pub fn capability(&self, name: &str) -> Option<&Capability> {
        self.capabilities.iter().find(|capability| capability.name == name)
    }

    /// The configuration field of that name.
    pub fn field(&self, name: &str) -> Option<&ConfigField> {
        self.config.iter().find(|field| field.name == name)
    }

    /// Checks a device configuration: all missing keys are named at once, then unknown keys, then
    /// values of the wrong form. For a probe required keys may be absent.
    pub fn check_config(&self, config: &DeviceConfig, probe: bool) -> Result<()> {
        let known = || {
            let names: Vec<&str> = self.config.iter().map(|field| field.name.as_str()).collect();
            format!("keys of {}: {}", self.name, names.join(", "))
        };
        let missing: Vec<String> = self
            .config
            .iter()
            .filter(|field| field.required && !probe && !config.contains_key(&field.name))
            .map(|field| field.name.clone())
            .collect();
        if !missing.is_empty() {
            let code = match missing.as_slice() {
                [one] => missing_code(one),
                _ => 115,
            };
            return Err(Error::new(
                Kind::Config { missing: missing.clone(), candidates: Vec::new() },
                format!("the device configuration lacks {}", missing.join(", ")),
            )
            .legacy(code)
            .hint(known()));
        }
        let unknown: Vec<&str> =
            config.keys().map(String::as_str).filter(|key| self.field(key).is_none()).collect();
        if !unknown.is_empty() {
            return Err(Error::config(format!(
                "the driver {} does not know {}",
                self.name,
                unknown.join(", ")
            ))
            .hint(known()));
        }
        for (key, value) in config {
            let kind = self.field(key).map_or(FieldKind::Text, |field| field.kind);
            if value.starts_with(host::SECRET_PREFIX) {
                continue;
            }
            if let Err(expected) = kind.check(value) {
                // The value itself is not repeated: the key may hold a secret.
                return Err(Error::config(format!("the value of {key} must be {expected}")));
            }
        }
        Ok(())
    }
}

impl From<String> for FieldKind {
    fn from(name: String) -> Self {
        match name.as_str() {
            "path" => Self::Path,
            "integer" => Self::Integer,
            "boolean" => Self::Boolean,
            "size" => Self::Size,
            _ => Self::Text,
        }
    }
}

impl FieldKind {
    fn check(self, value: &str) -> std::result::Result<(), &'static str> {
        let (fits, expected) = match self {
            Self::Text => (true, ""),
            Self::Path => (
                value.starts_with('/') && !value.contains('\0'),
                "an absolute path, such as /srv/images",
            ),
            Self::Integer => (value.parse::<u64>().is_ok(), "a number without sign"),
            Self::Boolean => (matches!(value, "true" | "false"), "true or false"),
            Self::Size => (value.parse::<crate::Bytes>().is_ok(), "a size, such as 10GiB"),
        };
        if fits { Ok(()) } else { Err(expected) }
    }
}

/// SMAPI's number for a missing key.
fn missing_code(key: &str) -> u16 {
    match key {
        "device" => 90,
        "location" => 94,
        "target" => 95,
        "targetIQN" => 96,
        "serverpath" => 101,
        "server" => 102,
        "SCSIid" => 107,
        _ => 115,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let field = |name: &str, kind, required| ConfigField {
            name: name.into(),
            kind,
            required,
            secret: false,
            default: None,
            help: String::new(),
        };
        Manifest {
            name: "demo".into(),
            title: String::new(),
            version: "1.0.0".into(),
            vendor: String::new(),
            abi: "1.0".into(),
            sdk: "0.1.0".into(),
            panic: PanicStrategy::Unwind,
            isolation: Isolation::Any,
            needs_root: false,
            services: vec![],
            capabilities: vec![],
            config: vec![
                field("server", FieldKind::Text, true),
                field("serverpath", FieldKind::Path, true),
                field("port", FieldKind::Integer, false),
            ],
        }
    }

    fn config(pairs: &[(&str, &str)]) -> DeviceConfig {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn all_missing_keys_are_named_at_once() {
        let error = manifest().check_config(&config(&[]), false).unwrap_err();
        assert_eq!(error.message, "the device configuration lacks server, serverpath");
        assert_eq!(error.legacy_code(), 115);
        assert_eq!(error.hint.as_deref(), Some("keys of demo: server, serverpath, port"));
        assert_eq!(manifest().check_config(&config(&[]), true), Ok(()));
    }

    #[test]
    fn one_missing_key_has_the_code_of_smapi() {
        let error = manifest().check_config(&config(&[("server", "a")]), false).unwrap_err();
        assert_eq!(error.legacy.as_ref().unwrap().code, 101);
        assert_eq!(
            error.legacy.as_ref().unwrap().text,
            "The request is missing the serverpath parameter"
        );
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused() {
        let good = [("server", "a"), ("serverpath", "/x")];
        let with = |more: (&str, &str)| {
            let pairs: Vec<_> = good.iter().copied().chain([more]).collect();
            manifest().check_config(&config(&pairs), false).map_err(|e| e.message.clone())
        };
        assert_eq!(with(("colour", "red")), Err("the driver demo does not know colour".into()));
        assert_eq!(
            with(("port", "-1")),
            Err("the value of port must be a number without sign".into())
        );
        assert_eq!(with(("port", "3260")), Ok(()));
    }
}
