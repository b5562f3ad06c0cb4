//! What a run is told: how to reach the backend, and what the suite may do there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sm_model::Bytes;

use crate::Error;

/// Stands for a folder of the run's own, made for it and removed with it.
pub const SCRATCH: &str = "{scratch}";

/// Stands for a secret that the run makes up, and then looks for where it must not be.
pub const CANARY: &str = "{canary}";

/// The contents of `sr.toml`. Unknown keys are an error: a typing mistake must not leave out checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The device configuration of the driver. `{scratch}` in a value is the run's own folder.
    #[serde(default)]
    pub device_config: BTreeMap<String, String>,
    /// Keys whose values the host keeps, so that the driver sees a reference. `{canary}` is made up.
    /// They are in no report.
    #[serde(default, skip_serializing)]
    pub secrets: BTreeMap<String, String>,
    /// Keys that are others for a second SR beside the first, where an SR takes a whole disk.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub second_sr: BTreeMap<String, String>,
    /// The place that the driver uses.
    #[serde(default)]
    pub backend: Backend,
    /// Sizes and times.
    #[serde(default)]
    pub suite: Knobs,
    /// Checks that are known to fail, by id.
    #[serde(default)]
    pub waivers: BTreeMap<String, Waiver>,
}

/// The place that the driver uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Backend {
    /// The folder in which everything lies that the driver keeps: what is left over there is a leak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// The admin port of a simulated array (`127.0.0.1:PORT`, see `docs/simulators.md`), in the place
    /// of a folder: its objects are looked at as files are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simulator: Option<String>,
    /// Where the driver mounts that folder: the files that it names lie there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounted: Option<String>,
    /// In the place of a folder, the volume groups of this host: all of them are the run's.
    #[serde(default, skip_serializing_if = "is_false")]
    pub volume_groups: bool,
    /// This host is the run's alone, such as a guest: its mounts, SCSI disks, sessions of iSCSI and
    /// nodes of device-mapper are looked at, too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub host: bool,
    /// Go on although the place holds something that this run has not made.
    #[serde(default)]
    pub foreign: bool,
    /// Why disks cannot be attached here, such as a host without an initiator. What needs that then
    /// counts as not testable, and blocks its level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cannot_attach: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Sizes and times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Knobs {
    /// Size of an ordinary disk.
    pub disk_size: String,
    /// How long a call may take, in seconds.
    pub call_seconds: u64,
    /// How many random sequences are tried.
    pub sequences: u32,
    /// Why times say nothing about the driver here, such as a guest that is slower than any host: they
    /// are in the certificate, and not judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow: Option<String>,
    /// One SR for all checks that begin with an empty one, where to make one takes long.
    pub keep_sr: bool,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            disk_size: "4MiB".into(),
            call_seconds: 20,
            sequences: 16,
            slow: None,
            keep_sr: false,
        }
    }
}

/// Why a check may fail, and until when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiver {
    /// Where it is discussed.
    pub issue: String,
    /// The last day, `2027-01-31`; after it the check fails again.
    pub until: String,
}

impl Waiver {
    /// Whether it still holds.
    pub fn holds(&self) -> bool {
        today() <= self.until
    }
}

impl Config {
    /// Reads and checks a configuration.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::file(path, &error))?;
        Self::parse(&text).map_err(|why| Error::Config { path: path.to_owned(), why })
    }

    /// As [`Config::read`], of text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        let size = config.disk_size()?;
        let backend = &config.backend;
        let places = [
            ("backend.directory", backend.directory.is_some()),
            ("backend.simulator", backend.simulator.is_some()),
            ("backend.volume-groups", backend.volume_groups),
        ];
        let given: Vec<&str> = places.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
        if given.len() > 1 {
            return Err(format!("{} are given, and only one can be", given.join(" and ")));
        }
        if backend.mounted.is_some() && backend.directory.is_none() {
            return Err("backend.mounted is given without backend.directory".into());
        }
        if size < (1 << 20) || !size.is_multiple_of(4096) {
            return Err("suite.disk-size must be at least 1MiB and a multiple of 4KiB".into());
        }
        for (id, waiver) in &config.waivers {
            if crate::catalog::find(id).is_none() {
                return Err(format!("waivers names {id}, which is no check: see `list`"));
            }
            let shape: String =
                waiver.until.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
            if shape != "0000-00-00" {
                return Err(format!("waivers.{id}.until must be a date such as 2027-01-31"));
            }
        }
        Ok(config)
    }

    /// Bytes of an ordinary disk.
    pub(crate) fn disk_size(&self) -> Result<u64, String> {
        let bad = |_| "suite.disk-size must be a size such as 4MiB".to_owned();
        self.suite.disk_size.parse::<Bytes>().map(|bytes| bytes.0).map_err(bad)
    }

    /// How long a call may take.
    pub(crate) fn call_budget(&self) -> Duration {
        Duration::from_secs(self.suite.call_seconds.max(1))
    }

    /// Whether the backend's folder is one that the run makes for itself.
    pub(crate) fn owns_backend(&self) -> bool {
        self.backend.directory.as_ref().is_some_and(|text| text.starts_with(SCRATCH))
    }

    /// The backend's folder.
    pub(crate) fn directory(&self, scratch: &Path) -> Option<PathBuf> {
        self.backend.directory.as_ref().map(|text| fill(text, scratch).into())
    }

    /// The folder in which the files must lie that a driver names.
    pub(crate) fn images(&self, scratch: &Path) -> Option<PathBuf> {
        let mounted = self.backend.mounted.as_ref().map(|text| fill(text, scratch).into());
        mounted.or_else(|| self.directory(scratch))
    }

    /// The device configuration of a run, or of a second SR of it.
    pub(crate) fn device_config(&self, scratch: &Path, second: bool) -> BTreeMap<String, String> {
        let mut keys = self.device_config.clone();
        if second {
            keys.extend(self.second_sr.clone());
        }
        keys.into_iter().map(|(key, value)| (key, fill(&value, scratch))).collect()
    }
}

fn fill(text: &str, scratch: &Path) -> String {
    text.replace(SCRATCH, &scratch.to_string_lossy())
}

/// The day, in UTC.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    date_of(seconds)
}

/// The day of so many seconds since 1970-01-01. The calendar repeats each 400 years of 146097
/// days; years begin in March here, so that the leap day is the last one.
pub(crate) fn date_of(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_798_761_599, "2026-12-31"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(date_of(seconds), date);
        }
    }

    #[test]
    fn a_waiver_ends_with_its_day() {
        let waiver = |until: &str| Waiver { issue: "#1".into(), until: until.into() };
        assert!(waiver("2999-01-01").holds());
        assert!(!waiver("2020-01-01").holds());
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| Config::parse(text).unwrap_err();
        assert!(error("[device-confg]").contains("device-confg"));
        assert_eq!(
            error("[suite]\ndisk-size = \"10\""),
            "suite.disk-size must be at least 1MiB and a multiple of 4KiB"
        );
        assert_eq!(
            error("[backend]\ndirectory = \"/a\"\nvolume-groups = true"),
            "backend.directory and backend.volume-groups are given, and only one can be"
        );
        assert_eq!(
            error("[backend]\nmounted = \"/a\""),
            "backend.mounted is given without backend.directory"
        );
        assert_eq!(
            error("[waivers]\nZ99 = { issue = \"x\", until = \"2027-01-31\" }"),
            "waivers names Z99, which is no check: see `list`"
        );
        assert_eq!(
            error("[waivers]\nE19 = { issue = \"x\", until = \"soon\" }"),
            "waivers.E19.until must be a date such as 2027-01-31"
        );
    }

    #[test]
    fn secrets_are_never_written() {
        let config = Config::parse("[secrets]\npassword = \"hunter2\"").unwrap();
        assert!(!serde_json::to_string(&config).unwrap().contains("hunter2"));
    }
}
