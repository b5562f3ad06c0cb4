//! The device configuration, and what single VDIs may have otherwise.

use std::collections::BTreeMap;
use std::path::PathBuf;

use plugin_sdk::config::ConfigValue;
use plugin_sdk::model::manifest::FieldKind;
use plugin_sdk::model::{Error, Result};
use plugin_sdk::{Secret, Utf8PathBuf};

/// How volumes take their space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// When they are written.
    Thin,
    /// All at once.
    Thick,
}

impl ConfigValue for Allocation {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> std::result::Result<Self, String> {
        match text {
            "thin" => Ok(Self::Thin),
            "thick" => Ok(Self::Thick),
            _ => Err("thin or thick".to_owned()),
        }
    }
}

/// What happens when the space for snapshots is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depletion {
    /// The oldest snapshots go.
    DeleteOldest,
    /// The volume goes offline, and no snapshot is lost.
    VolumeOffline,
}

impl Depletion {
    /// The word of the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::DeleteOldest => "delete-oldest",
            Self::VolumeOffline => "volume-offline",
        }
    }
}

impl ConfigValue for Depletion {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> std::result::Result<Self, String> {
        match text {
            "delete-oldest" => Ok(Self::DeleteOldest),
            "volume-offline" => Ok(Self::VolumeOffline),
            _ => Err("delete-oldest or volume-offline".to_owned()),
        }
    }
}

/// What is done with a host key that the configuration does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPolicy {
    /// It is refused.
    Pinned,
    /// The first one is kept in the state of this host and SR, and no other is accepted from then on.
    FirstUse,
}

impl ConfigValue for KeyPolicy {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> std::result::Result<Self, String> {
        match text {
            "pinned" => Ok(Self::Pinned),
            "first-use" => Ok(Self::FirstUse),
            _ => Err("pinned or first-use".to_owned()),
        }
    }
}

plugin_sdk::device_config! {
    /// How to reach the group.
    pub struct Config {
        /// Address of the group: its command line, and its iSCSI portal.
        pub target: String,
        /// Account of the group; its rights are in the driver's documentation.
        pub username: String,
        /// Its password.
        pub password: Secret,
        /// Storage pool for the volumes.
        pub storagepool: String,
        /// Name of the group's local CHAP account that hosts log in with; without it there is no CHAP.
        pub chapuser: Option<String>,
        /// Its password.
        pub chappassword: Option<Secret>,
        /// thin or thick, for volumes that do not say otherwise.
        pub allocation: Allocation = "thin",
        /// Space kept for snapshots, in percent of a volume's size.
        #[key = "snap-reserve-percentage"]
        pub snap_reserve: u16 = "100",
        /// What happens when that space is used up: delete-oldest, or volume-offline.
        #[key = "snap-depletion"]
        pub snap_depletion: Depletion = "volume-offline",
        /// Fingerprint of the group's SSH host key, as ssh-keygen -l prints it: SHA256:...
        #[key = "host-key-fingerprint"]
        pub host_key_fingerprint: Option<String>,
        /// Without a fingerprint: pinned refuses every key, first-use keeps the first one.
        #[key = "host-key-policy"]
        pub host_key_policy: KeyPolicy = "pinned",
        /// Port of SSH.
        pub port: u16 = "22",
        /// Whether SSH algorithms of the time before 2013 may be used, for old firmware.
        #[key = "old-ssh"]
        pub old_ssh: bool = "false",
        /// Command-line sessions that all processes of this host may have together.
        #[key = "max-sessions"]
        pub max_sessions: u16 = "7",
        /// How many seconds the group may be silent within a reply.
        #[key = "reply-timeout"]
        pub reply_timeout: u16 = "60",
        /// Directory of the locks that count sessions; every process of the host must have the same.
        #[key = "session-directory"]
        pub session_directory: Option<Utf8PathBuf>,
        /// Qualified name of this host's initiator, if it is not that of /etc/iscsi/initiatorname.iscsi.
        pub initiator: Option<String>,
    }
}

impl Config {
    /// The directory of the session locks.
    pub fn locks(&self) -> PathBuf {
        if let Some(directory) = &self.session_directory {
            return directory.clone().into_std_path_buf();
        }
        let base =
            std::env::var_os("SM_RUN_DIR").filter(|base| !base.is_empty()).map(PathBuf::from);
        let user = rustix::process::getuid();
        let base = base.unwrap_or_else(|| {
            if user.is_root() {
                PathBuf::from("/run/sm")
            } else {
                std::env::temp_dir().join(format!("sm-{}", user.as_raw()))
            }
        });
        base.join("equallogic")
    }

    /// What volumes have that do not say otherwise. Error kind `config` for a reserve that the array
    /// does not take.
    pub fn habits(&self) -> Result<Habits> {
        Ok(Habits {
            allocation: self.allocation,
            snap_reserve: reserve(&self.snap_reserve.to_string())?,
            snap_depletion: self.snap_depletion,
        })
    }
}

/// What a new volume is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Habits {
    /// Thin or thick.
    pub allocation: Allocation,
    /// Space for snapshots, in percent of the size.
    pub snap_reserve: u16,
    /// What happens when that is used up.
    pub snap_depletion: Depletion,
}

impl Habits {
    /// The same with what the keys of a VDI say: `allocation`, `snap-reserve-percentage`,
    /// `snap-depletion`, as XenServer has them. Error kind `config` with SMAPI's 165 or 166 for a
    /// value that is none.
    pub fn with(mut self, keys: &BTreeMap<String, String>) -> Result<Self> {
        let wrong = |key: &str, expected: &str| {
            Error::config(format!("the value of the VDI's key {key} must be {expected}"))
        };
        if let Some(text) = keys.get("allocation") {
            self.allocation =
                Allocation::parse(text).map_err(|expected| wrong("allocation", &expected))?;
        }
        if let Some(text) = keys.get("snap-reserve-percentage") {
            self.snap_reserve = reserve(text)?;
        }
        if let Some(text) = keys.get("snap-depletion") {
            self.snap_depletion = Depletion::parse(text)
                .map_err(|expected| wrong("snap-depletion", &expected).legacy(166))?;
        }
        Ok(self)
    }
}

/// A reserve for snapshots. The command line's own limit is 10,000 percent.
fn reserve(text: &str) -> Result<u16> {
    match text.parse::<u16>() {
        Ok(percent) if percent <= 10_000 => Ok(percent),
        _ => Err(Error::config(
            "the value of snap-reserve-percentage must be a number from 0 to 10000",
        )
        .legacy(165)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vdi_may_be_otherwise() {
        let habits = Habits {
            allocation: Allocation::Thin,
            snap_reserve: 100,
            snap_depletion: Depletion::VolumeOffline,
        };
        let keys = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let own = habits
            .with(&keys(&[
                ("allocation", "thick"),
                ("snap-reserve-percentage", "25"),
                ("snap-depletion", "delete-oldest"),
                ("owner", "me"),
            ]))
            .unwrap();
        let expected = Habits {
            allocation: Allocation::Thick,
            snap_reserve: 25,
            snap_depletion: Depletion::DeleteOldest,
        };
        assert_eq!(own, expected);
        for (key, value, number) in [
            ("snap-reserve-percentage", "-1", 165),
            ("snap-reserve-percentage", "much", 165),
            ("snap-reserve-percentage", "10001", 165),
            ("snap-depletion", "panic", 166),
        ] {
            let error = habits.with(&keys(&[(key, value)])).unwrap_err();
            assert_eq!(error.legacy_code(), number, "{key}={value}");
            assert!(!error.to_string().contains(value), "{error}");
        }
        let error = habits.with(&keys(&[("allocation", "fat")])).unwrap_err();
        assert_eq!(error.message, "the value of the VDI's key allocation must be thin or thick");
    }
}
