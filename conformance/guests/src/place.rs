//! The backend of each driver, in guests, and how the suite is told of it.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use array_matrix::lab::Station;
use array_matrix::lab::stations::{EqualLogic, FlashArray, Ontap, PowerStore, TrueNas};
use lab::{Guest, Lab};

use crate::{Asked, Failure, MEMORY, Programs, host};

/// Guests that are ready for a run.
pub(crate) struct Place {
    /// Where the driver is.
    pub(crate) host: Guest,
    /// What the suite is told.
    pub(crate) config: String,
    /// What must be there until the end.
    pub(crate) _rest: Box<dyn Any>,
}

impl Place {
    /// Boots what a driver needs.
    pub(crate) fn boot(lab: &Lab, programs: &Programs, asked: &Asked) -> Result<Self, Failure> {
        match asked.driver.as_str() {
            "lvm" => host::lvm(lab),
            "nfs" => host::nfs(lab),
            "lvmoiscsi" => host::lvmoiscsi(lab),
            "equallogic" => {
                // A page of the group is 15 MiB.
                let mut settings = Settings::default();
                settings.suite.insert("disk-size", "\"15MiB\"".into());
                array::<EqualLogic>(lab, programs, settings)
            }
            "ontap" => {
                // The array rounds what is small to the same size.
                let mut settings = Settings::default();
                settings.suite.insert("disk-size", "\"16MiB\"".into());
                array::<Ontap>(lab, programs, settings)
            }
            "powerstore" => array::<PowerStore>(lab, programs, Settings::default()),
            "purestorage" => array::<FlashArray>(lab, programs, Settings::default()),
            "truenas" => array::<TrueNas>(lab, programs, Settings::default()),
            other => Err(format!("nothing says how the driver {other} is run in guests").into()),
        }
    }
}

/// Why nobody judges how long a call takes.
const SLOW: &str = "in a guest of user-mode Linux a process takes many times as long as on a host";

/// The contents of `sr.toml`; values are as TOML has them.
#[derive(Default)]
pub(crate) struct Settings {
    pub(crate) device: BTreeMap<String, String>,
    pub(crate) second: BTreeMap<String, String>,
    pub(crate) secrets: BTreeMap<String, String>,
    pub(crate) backend: BTreeMap<&'static str, String>,
    pub(crate) suite: BTreeMap<&'static str, String>,
}

impl Settings {
    /// As text.
    pub(crate) fn text(mut self) -> String {
        self.suite.insert("slow", format!("{SLOW:?}"));
        self.suite.insert("call-seconds", "60".to_owned());
        let mut text = String::new();
        let strings = [
            ("device-config", &self.device),
            ("second-sr", &self.second),
            ("secrets", &self.secrets),
        ];
        for (title, keys) in strings {
            let _ = writeln!(text, "[{title}]");
            for (key, value) in keys {
                let _ = writeln!(text, "{key} = {value:?}");
            }
        }
        for (title, keys) in [("backend", &self.backend), ("suite", &self.suite)] {
            let _ = writeln!(text, "[{title}]");
            for (key, value) in keys {
                let _ = writeln!(text, "{key} = {value}");
            }
        }
        text
    }
}

/// Keys of device configurations that the suite keeps as secrets.
const SECRET: [&str; 3] = ["password", "api-token", "chappassword"];

/// An array in one guest, the driver in another.
fn array<S: Station>(
    lab: &Lab,
    programs: &Programs,
    mut settings: Settings,
) -> Result<Place, Failure> {
    let place = array_matrix::lab::Place::of::<S>(lab, &programs.path("array-sim"), MEMORY)?;
    for pair in S::config(&place) {
        let (key, value) = pair.split_once('=').ok_or("a key without a value")?;
        let keys = if SECRET.contains(&key) { &mut settings.secrets } else { &mut settings.device };
        keys.insert(key.to_owned(), value.to_owned());
    }
    // Each attach of a disk is some commands of the initiator.
    settings.suite.extend([("keep-sr", "true".to_owned()), ("sequences", "4".to_owned())]);
    let (address, port) = place.admin();
    // Somebody else's volume is there.
    settings.backend.extend([
        ("simulator", format!("\"{address}:{port}\"")),
        ("foreign", "true".to_owned()),
        ("host", "true".to_owned()),
    ]);
    let (host, config) = (place.host.clone(), settings.text());
    Ok(Place { host, config, _rest: Box::new(place) })
}
