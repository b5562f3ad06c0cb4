//! An array with two portals, and a host with open-iscsi and multipath.

use std::net::Ipv4Addr;
use std::time::Duration;

use conformance::built::artefact;
use lab::kit::iscsi::{Initiator, Lun, Target};
use lab::kit::smctl::Smctl;
use lab::kit::{lvm, multipath, udev};
use lab::{Guest, Lab, Network, Result};
use serde_json::Value;

pub(crate) const IQN: &str = "iqn.2026-01.org.example.lab:array";
pub(crate) const MIB: u64 = 1 << 20;

/// Both guests, up.
pub(crate) struct Place {
    pub(crate) nas: Guest,
    pub(crate) host: Guest,
    pub(crate) networks: [Network; 2],
    pub(crate) portals: [Ipv4Addr; 2],
    pub(crate) target: Target,
    pub(crate) initiator: String,
}

impl Place {
    /// With these LUNs: number, and size in MiB.
    pub(crate) fn new(lab: &Lab, luns: &[(u32, u64)]) -> Result<Self> {
        // Built before any guest runs, which could read it half written.
        assert!(artefact("libsm_driver_lvmoiscsi.so").is_file());
        let networks = [lab.network()?, lab.network()?];
        let guest = |name| lab.guest(name).network(&networks[0]).network(&networks[1]);
        let [nas, host] = lab.boot([guest("nas"), guest("host")])?;
        let portals = [nas.address(&networks[0])?, nas.address(&networks[1])?];
        let mut target = Target::start(&nas, IQN, &portals)?;
        for (number, size) in luns {
            target.add(&lun(*number, *size))?;
        }
        let initiator = ready(&target, &host)?;
        Ok(Self { nas, host, networks, portals, target, initiator })
    }

    /// The host after a loss of power: nothing of `smctl`'s is left of before.
    pub(crate) fn boot_again(&self) -> Result<()> {
        self.host.boot()?;
        prepare(&self.host)
    }

    /// Another host, whose initiator sees the same LUNs.
    pub(crate) fn another(&self, lab: &Lab, name: &str) -> Result<Guest> {
        let [one, two] = &self.networks;
        let host = lab.guest(name).network(one).network(two).boot()?;
        ready(&self.target, &host)?;
        Ok(host)
    }

    /// What [`Place::create`] made, made known on another host.
    pub(crate) fn introduce(&self, host: &Guest, name: &str, sr: &str, lun: &Lun) -> Result<()> {
        let (target, iqn) = (self.target_key(), format!("targetIQN={IQN}"));
        let id = format!("SCSIid={}", lun.scsi_id());
        let words = ["sr", "introduce", "--driver", "lvmoiscsi", "--uuid", sr, &target, &iqn, &id];
        smctl(host).check(&words)?;
        smctl(host).check(&["sr", "attach", name]).map(drop)
    }

    pub(crate) fn smctl(&self) -> Smctl<'_> {
        smctl(&self.host)
    }

    /// `target=...` for both portals.
    pub(crate) fn target_key(&self) -> String {
        format!("target={},{}", self.portals[0], self.portals[1])
    }

    /// Makes an SR on a LUN; its UUID.
    pub(crate) fn create(&self, name: &str, lun: &Lun) -> Result<String> {
        let (target, iqn) = (self.target_key(), format!("targetIQN={IQN}"));
        let id = format!("SCSIid={}", lun.scsi_id());
        self.smctl().check(&[
            "sr",
            "create",
            "--driver",
            "lvmoiscsi",
            "--name",
            name,
            &target,
            &iqn,
            &id,
        ])
    }

    /// How many sessions the host has.
    pub(crate) fn sessions(&self) -> usize {
        let shown = self.host.check(["ls", "/sys/class/iscsi_session"]);
        shown.map_or(0, |text| text.split_whitespace().count())
    }
}

/// Lets a host in, and starts what it needs; the name of its initiator.
fn ready(target: &Target, host: &Guest) -> Result<String> {
    let initiator = Initiator::name_of(host);
    target.allow(&initiator)?;
    prepare(host)?;
    Ok(initiator)
}

fn prepare(host: &Guest) -> Result<()> {
    udev::start(host)?;
    Initiator::start(host)?;
    lvm::prepare_with_udev(host)?;
    multipath::start(host)
}

/// Where programs are that have `lvm` stop before one of its commands, until [`go_on`].
pub(crate) const STOPPING: &str = "/run/cut:/usr/sbin:/usr/bin:/sbin:/bin";

/// Has `lvm` stop before this command, for whoever looks for programs in [`STOPPING`].
pub(crate) fn stop_before(host: &Guest, command: &str) -> Result<()> {
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = {command} ] && touch /run/cut/waits && \
         while [ ! -e /run/cut/go ]; do sleep 0.1; done\nexec /sbin/lvm \"$@\"\n"
    );
    host.check(["mkdir", "-p", "/run/cut"])?;
    host.write("/run/cut/lvm", script)?;
    host.check(["chmod", "755", "/run/cut/lvm"]).map(drop)
}

/// Waits until it has stopped.
pub(crate) fn stopped(host: &Guest) -> Result<()> {
    host.wait_for("a command of LVM", Duration::from_secs(60), |host| {
        let waits = host.run(["test", "-e", "/run/cut/waits"])?.status == 0;
        Ok(if waits { Ok(()) } else { Err("it has not come".to_owned()) })
    })
}

/// Has it run after all.
pub(crate) fn go_on(host: &Guest) -> Result<()> {
    host.write("/run/cut/go", "")
}

/// `smctl` of a guest.
pub(crate) fn smctl(guest: &Guest) -> Smctl<'_> {
    Smctl::new(guest, artefact("smctl").display().to_string())
}

/// A LUN in a file of the array.
pub(crate) fn lun(number: u32, mebibytes: u64) -> Lun {
    let on = format!("/srv/lun{number}");
    Lun { number, on, bytes: mebibytes * MIB, serial: 0xa000 + number }
}

/// Kind, SMAPI's number and message of an error.
pub(crate) fn told(error: &Value) -> (String, u64, String) {
    let error = error.get("error").unwrap_or(error);
    (
        error["kind"].as_str().unwrap_or_else(|| panic!("{error}")).to_owned(),
        error["legacy"]["code"].as_u64().unwrap_or_default(),
        error["message"].as_str().unwrap_or_default().to_owned(),
    )
}
