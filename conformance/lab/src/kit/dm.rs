//! Devices that fail on demand, and devices that remember every write.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::wire::Step;

/// `dmsetup` without a udev daemon, which would never tell it that a node is there.
fn dmsetup(guest: &Guest, words: &[&str]) -> Result<String> {
    guest.command(["dmsetup"].iter().chain(words).copied()).env("DM_DISABLE_UDEV", "1").check()
}

fn sectors(guest: &Guest, device: &str) -> Result<u64> {
    let text = guest.check(["blockdev", "--getsz", device])?;
    text.parse().map_err(|_| Error::Wrong(format!("{device} has a size of {text:?}")))
}

/// A device over another one, which works until it is told otherwise. Each change holds from one
/// I/O to the next; what is open stays open.
pub struct Faulty {
    guest: Guest,
    name: String,
    below: String,
    sectors: u64,
}

impl Faulty {
    /// Makes `/dev/mapper/<name>` over a device.
    pub fn over(guest: &Guest, name: &str, device: &str) -> Result<Self> {
        guest.load(&["dm-mod", "dm-flakey", "dm-delay"])?;
        let sectors = sectors(guest, device)?;
        let faulty =
            Self { guest: guest.clone(), name: name.into(), below: device.into(), sectors };
        dmsetup(guest, &["create", name, "--table", &faulty.healthy_table()])?;
        Ok(faulty)
    }

    /// The device.
    pub fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    fn healthy_table(&self) -> String {
        format!("0 {} linear {} 0", self.sectors, self.below)
    }

    /// Everything works again.
    pub fn healthy(&self) -> Result<()> {
        self.table(&self.healthy_table())
    }

    /// Every read and write fails.
    pub fn fail(&self) -> Result<()> {
        self.table(&format!("0 {} error", self.sectors))
    }

    /// Writes fail, reads work.
    pub fn fail_writes(&self) -> Result<()> {
        self.table(&format!("0 {} flakey {} 0 0 3600 1 error_writes", self.sectors, self.below))
    }

    /// Writes are lost though they are said to have worked.
    pub fn drop_writes(&self) -> Result<()> {
        self.table(&format!("0 {} flakey {} 0 0 3600 1 drop_writes", self.sectors, self.below))
    }

    /// Every read and write takes that much longer.
    pub fn slow(&self, delay: Duration) -> Result<()> {
        let milliseconds = delay.as_millis();
        self.table(&format!("0 {} delay {} 0 {milliseconds}", self.sectors, self.below))
    }

    /// Nothing is answered any more, until another state is chosen. Who reads or writes then
    /// cannot be killed.
    pub fn hang(&self) -> Result<()> {
        dmsetup(&self.guest, &["suspend", "--nolockfs", "--noflush", &self.name]).map(drop)
    }

    fn table(&self, table: &str) -> Result<()> {
        dmsetup(&self.guest, &["suspend", "--nolockfs", "--noflush", &self.name])?;
        dmsetup(&self.guest, &["reload", &self.name, "--table", table])?;
        dmsetup(&self.guest, &["resume", &self.name]).map(drop)
    }

    /// Takes it away.
    pub fn remove(self) -> Result<()> {
        dmsetup(&self.guest, &["remove", "--retry", &self.name]).map(drop)
    }
}

/// A device over another one that writes down, on a second one, everything that is written, in
/// order. [`crate::log_writes::Log`] reads that on the machine, while the guest is off or on.
pub struct Recorder {
    guest: Guest,
    name: String,
}

impl Recorder {
    /// Makes `/dev/mapper/<name>` over a device, with its log on another.
    pub fn over(guest: &Guest, name: &str, device: &str, log: &str) -> Result<Self> {
        guest.steps(vec![Step::Module("dm-log-writes".into())])?;
        let table = format!("0 {} log-writes {device} {log}", sectors(guest, device)?);
        dmsetup(guest, &["create", name, "--table", &table])?;
        Ok(Self { guest: guest.clone(), name: name.into() })
    }

    /// The device.
    pub fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    /// Writes a name into the log, at this place.
    pub fn mark(&self, name: &str) -> Result<()> {
        dmsetup(&self.guest, &["message", &self.name, "0", "mark", name]).map(drop)
    }

    /// Takes it away, which completes the log.
    pub fn remove(self) -> Result<()> {
        dmsetup(&self.guest, &["remove", "--retry", &self.name])?;
        self.guest.check(["sync"]).map(drop)
    }
}
