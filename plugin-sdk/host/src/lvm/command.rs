//! Running `lvm`: one question, and changes, always on the SR's own devices alone.

use std::fmt::Debug;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use plugin_sdk::model::Kind;
use plugin_sdk::{Cx, Error, Result};

use crate::lvm::devices::Devices;
use crate::lvm::report::{COLUMNS, Report};
use crate::lvm::rounds::Rounds;

/// Time for a report. It reads a few blocks of each device, so a device does not answer if it takes
/// longer; `lvm` itself would wait for ever.
const REPORT: Duration = Duration::from_secs(30);

/// A report within less says nothing about the devices.
const FAIR: Duration = Duration::from_secs(2);

/// Says whether the devices may still be changed: other hosts may have gone on with them.
pub trait Gate: Debug + Send + Sync {
    /// An error if not.
    fn check(&self) -> Result<()>;
}

/// Runs `lvm` on some devices. Clones share reports.
#[derive(Clone, Debug)]
pub struct Lvm {
    devices: Devices,
    gate: Option<Arc<dyn Gate>>,
    reports: Arc<Rounds<Report>>,
}

impl Lvm {
    /// On these devices.
    pub fn new(devices: Devices) -> Self {
        Self { devices, gate: None, reports: Arc::default() }
    }

    /// The same, asking before each change whether it may be made.
    #[must_use]
    pub fn behind(self, gate: Arc<dyn Gate>) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// Its devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// The configuration that holds for our commands, over that of the host.
    ///
    /// The filter lets LVM see the SR's devices and nothing else: what guests write into their disks
    /// is never scanned, no other group of the host is touched, and a host whose own LVM is
    /// forbidden these devices, as it should be, needs no change. The pool is watched by this
    /// driver, not by `dmeventd`; when it is full, writers get ENOSPC at once, at which QEMU
    /// pauses the guest, rather than waiting. A device that once was a path of a multipath map
    /// (`/etc/multipath/wwids`) may be an SR's only one now; one that is a path is known by the
    /// map that holds it (lvm.conf(5), `multipath_wwids_file`).
    fn configuration(&self) -> Result<String> {
        let accepted = self
            .devices
            .resolved()?
            .iter()
            .map(|path| pattern(path))
            .collect::<Result<Vec<_>>>()?;
        let filter = format!("[{},\"r|.*|\"]", accepted.join(","));
        Ok(format!(
            "devices {{ filter={filter} global_filter={filter} scan_lvs=0 use_devicesfile=0 \
             multipath_wwids_file=\"\" hints=\"none\" }} activation {{ monitoring=0 error_when_full=1 \
             thin_pool_autoextend_threshold=100 }} backup {{ archive=0 }}"
        ))
    }

    /// All that lies on the devices, as it is at some instant of this call: callers that wait at the
    /// same time share a command that begins after each of them has come.
    pub async fn report(&self, cx: &Cx) -> Result<Report> {
        let mut words: Vec<&str> = vec!["--reportformat", "json", "--units", "b", "--nosuffix"];
        for (part, columns) in COLUMNS {
            words.extend(["--configreport", part, "-o", columns]);
        }
        // Half of the time: one that hangs on a device takes seconds to be given up.
        let limit = REPORT.min(cx.remaining() / 2);
        let cx = &cx.within(limit);
        let question = async { Report::parse(&self.run(cx, "fullreport", &words).await?) };
        let report = self.reports.ask(question, cx.ended()).await;
        let report = report.map_err(|error| match error.kind {
            // Less is no time to judge them by: something else has taken it.
            Kind::DeadlineExceeded if limit >= FAIR => {
                let seconds = limit.as_secs_f64();
                let message = format!("{} do not answer within {seconds:.0} s", self.devices);
                let mut late = Error::new(Kind::Unreachable, message);
                late.context.clone_from(&error.context);
                late.hint("look at the host's log for errors of these devices")
            }
            _ => error,
        })?;
        Ok(Report::clone(&report))
    }

    /// Changes something. Looks for a cancel before, never stops in between: a command that is
    /// killed can leave a volume suspended, with a guest on it.
    pub async fn change(&self, cx: &Cx, command: &str, words: &[&str]) -> Result<()> {
        cx.check()?;
        if let Some(gate) = &self.gate {
            gate.check()?;
        }
        let mut all = vec!["--yes", "--quiet"];
        all.extend(words);
        self.run(&cx.shielded(), command, &all).await?;
        self.flush(&cx.shielded()).await
    }

    /// Has the devices empty their caches. LVM 2.03.16 writes its texts past the page cache and asks
    /// no device for that, so the power could take back what a caller was told; where a thin pool
    /// changes with it, the pool asks.
    async fn flush(&self, cx: &Cx) -> Result<()> {
        let devices = self.devices.resolved()?;
        cx.blocking(move |_| {
            for device in &devices {
                File::open(device).and_then(|file| file.sync_all()).map_err(|error| {
                    Error::new(Kind::Unreachable, format!("{device} does not keep what is written"))
                        .source(&error)
                        .hint("look at the host's log for errors of this device, then repeat it")
                })?;
            }
            Ok(())
        })
        .await
    }

    async fn run(&self, cx: &Cx, command: &str, words: &[&str]) -> Result<Vec<u8>> {
        let configuration = self.configuration()?;
        let output = cx
            .command("lvm")
            .args([command, "--config", &configuration])
            .args(words)
            .env("LVM_SUPPRESS_FD_WARNINGS", "1")
            .output()
            .await?;
        if output.status == 0 && output.lost == 0 {
            return Ok(output.stdout);
        }
        let target = words.last().copied().unwrap_or_default();
        Err(failed(command, target, output.status, &String::from_utf8_lossy(&output.stderr)))
    }
}

/// A pattern of LVM's filter for exactly this path.
fn pattern(path: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.+:@,=~%".contains(c);
    if !path.chars().all(plain) {
        return Err(Error::config(format!("{path:?} is no name that a filter of LVM can hold")));
    }
    let mut text = String::new();
    for c in path.chars() {
        match c {
            '.' | '+' => text.extend(['[', c, ']']),
            _ => text.push(c),
        }
    }
    Ok(format!("\"a|^{text}$|\""))
}

/// The kind of a failure, by LVM's words: its exit status is 5 for all of them.
fn failed(command: &str, target: &str, status: i32, words: &str) -> Error {
    // Warnings say what is always so, for instance that more is promised than there is.
    let lines: Vec<&str> = words.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let errors = lines.iter().filter(|line| !line.starts_with("WARNING:"));
    let said = errors.copied().collect::<Vec<_>>().join("; ");
    let has = |any: &[&str]| any.iter().any(|phrase| said.contains(phrase));
    let object = if target.is_empty() { String::new() } else { format!(" of {target}") };
    let error =
        if has(&["nsufficient free space", "nsufficient suitable allocatable", "free extents"]) {
            Error::new(Kind::NoSpace, format!("there is no room for {command}{object}")).legacy(44)
        } else if has(&["reached threshold", "out of data space", "out of metadata space"]) {
            Error::new(Kind::NoSpace, format!("the thin pool{object} is full")).legacy(44)
        } else if has(&[" in use", "Can't open", "used by another device", "is used by"]) {
            Error::new(Kind::InUse, format!("{command}{object}: a device is in use")).legacy(24)
        } else if has(&["Check of pool", "anual repair required", "transaction id"]) {
            Error::new(Kind::Corrupt, format!("{command}{object}: the thin pool is damaged"))
                .legacy(65)
                .hint("lvmthin(7), \"Metadata check and repair\", says what to do")
        } else if has(&["already exists"]) {
            Error::new(Kind::Exists, format!("{command}{object}: it exists already")).legacy(43)
        } else {
            Error::internal(format!("lvm {command}{object} failed with status {status}"))
        };
    if said.is_empty() { error } else { error.backend(said) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_for_one_device() {
        assert_eq!(pattern("/dev/sda").unwrap(), r#""a|^/dev/sda$|""#);
        assert_eq!(pattern("/dev/mapper/a.b+c").unwrap(), r#""a|^/dev/mapper/a[.]b[+]c$|""#);
        for odd in ["/dev/a|b", "/dev/a\"b", "/dev/a[b", "/dev/a b", "/dev/a\\b", "/dev/a*"] {
            assert!(pattern(odd).is_err(), "{odd}");
        }
    }

    /// LVM 2.03.16, in its own words.
    #[test]
    fn failures_have_the_kind_that_fits() {
        for (words, kind) in [
            (
                "  Volume group \"sm-a\" has insufficient free space (182 extents): 1193 required.",
                Kind::NoSpace,
            ),
            ("  Insufficient free space: 1 extents needed, but only 0 available", Kind::NoSpace),
            (
                "  WARNING: Thin pool sm-a/pool is out of data space.\n  Cannot create new thin \
                 volume, free space in thin pool sm-a/pool reached threshold.",
                Kind::NoSpace,
            ),
            ("  Logical volume sm-a/vdi contains a filesystem in use.", Kind::InUse),
            ("  Logical volume sm-a/vdi in use.", Kind::InUse),
            ("  Can't open /dev/ubda exclusively.  Mounted filesystem?", Kind::InUse),
            ("  Logical Volume \"vdi\" already exists in volume group \"sm-a\"", Kind::Exists),
            ("  Check of pool sm-a/pool failed (status:1). Manual repair required!", Kind::Corrupt),
            ("  Failed to find logical volume \"sm-a/vdi\"", Kind::Internal),
            ("  WARNING: something in use is full of free extents", Kind::Internal),
        ] {
            let error = failed("lvcreate", "sm-a/vdi", 5, words);
            assert_eq!(error.kind, kind, "{words}");
            assert!(!error.backend.clone().unwrap_or_default().contains("WARNING"), "{error:?}");
        }
    }
}
