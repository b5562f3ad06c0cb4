//! An array with two portals, and a host with open-iscsi and multipath.

use std::net::Ipv4Addr;

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
        let initiator = Initiator::name_of(&host);
        target.allow(&initiator)?;
        udev::start(&host)?;
        Initiator::start(&host)?;
        lvm::prepare_with_udev(&host)?;
        // The time it takes to queue is what a guest of a host waits for a path.
        multipath::start(&host, "queue")?;
        Ok(Self { nas, host, networks, portals, target, initiator })
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
