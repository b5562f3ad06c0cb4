//! dm-multipath in a guest.

use std::time::Duration;

use crate::error::Result;
use crate::guest::Guest;
use crate::wire::Step;

/// A path to a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The disk, `sda` for instance.
    pub device: String,
    /// What device-mapper says: `active`, `failed`, `undef`.
    pub dm: String,
    /// What the checker says: `ready`, `faulty`, `shaky`.
    pub checker: String,
}

impl Path {
    /// Whether it takes I/O.
    pub fn is_up(&self) -> bool {
        self.dm == "active" && self.checker == "ready"
    }
}

/// Starts multipathd with a checker that looks each second. Needs [`super::udev::start`]. When no path
/// is left, requests wait for twelve looks, unless [`when_no_path_is_left`] says otherwise.
pub fn start(guest: &Guest) -> Result<()> {
    let modules = ["dm-mod", "dm-multipath", "dm-service-time", "dm-round-robin"];
    let mut steps: Vec<Step> = modules.map(|name| Step::Module(name.into())).into();
    steps.push(configuration("12"));
    guest.steps(steps)?;
    guest.check(["multipathd"]).map(drop)
}

/// Has multipathd, which runs, let requests wait when no path is left (`queue`) or fail (`fail`), and
/// waits until the only map does. Source: `no_path_retry` in multipath.conf(5).
pub fn when_no_path_is_left(guest: &Guest, no_path_retry: &str) -> Result<()> {
    guest.steps(vec![configuration(no_path_retry)])?;
    guest.check(["multipathd", "reconfigure"])?;
    guest.wait_for("the map's new table", Duration::from_secs(30), |guest| {
        let table = guest.run(["dmsetup", "table", "--target", "multipath"])?.text();
        let queues = table.contains("queue_if_no_path");
        let told = table.contains(" multipath ") && queues == (no_path_retry == "queue");
        Ok(if told { Ok(()) } else { Err(table) })
    })
}

/// The table of arrays that multipath-tools comes with goes before `defaults`: of the kernel's own target
/// it says `no_path_retry 12` (0.9.4, `multipath -t`). Only `overrides` goes before that.
fn configuration(no_path_retry: &str) -> Step {
    let text = format!(
        "defaults {{\n user_friendly_names no\n find_multipaths no\n polling_interval 1\n \
         max_polling_interval 2\n path_checker tur\n fast_io_fail_tmo 3\n dev_loss_tmo 30\n \
         path_grouping_policy multibus\n}}\noverrides {{\n no_path_retry {no_path_retry}\n}}\n"
    );
    Step::Write("/etc/multipath.conf".into(), text)
}

/// Ends multipathd, and waits for its end: it answers before, and takes up paths until then. Maps whose
/// paths have gone must be gone before, or they stay for ever.
pub fn stop(guest: &Guest) -> Result<()> {
    guest.wait_for("no map", Duration::from_secs(30), |guest| {
        let found = guest.run(["ls", "/sys/class/block"])?.text();
        let maps: Vec<&str> =
            found.split_whitespace().filter(|name| name.starts_with("dm-")).collect();
        Ok(if maps.is_empty() { Ok(()) } else { Err(maps.join(" ")) })
    })?;
    guest.check(["multipathd", "shutdown"])?;
    guest.wait_for("the end of multipathd", Duration::from_secs(30), |guest| {
        let found = guest.run(["pidof", "multipathd"])?;
        Ok(if found.status == 1 { Ok(()) } else { Err(format!("pidof says {:?}", found.text())) })
    })
}

/// The paths that multipathd knows.
pub fn paths(guest: &Guest) -> Result<Vec<Path>> {
    let words = ["multipathd", "show", "paths", "raw", "format", "%d %t %T"];
    let output = guest.run(words)?;
    let text = output.text();
    let lines = text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().map(str::to_owned);
        Some(Path { device: fields.next()?, dm: fields.next()?, checker: fields.next()? })
    });
    Ok(lines.collect())
}

/// Waits until so many paths are up and so many are not.
pub fn wait_for(guest: &Guest, up: usize, down: usize, deadline: Duration) -> Result<()> {
    guest.wait_for(&format!("{up} paths up and {down} down"), deadline, |guest| {
        let paths = paths(guest)?;
        let are_up = paths.iter().filter(|path| path.is_up()).count();
        let as_wanted = are_up == up && paths.len() == up + down;
        Ok(if as_wanted { Ok(()) } else { Err(format!("{paths:?}")) })
    })
}
