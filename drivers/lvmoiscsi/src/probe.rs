//! What there is to find, in three steps: targets, their LUNs, the SRs on one.

use std::collections::BTreeSet;

use host_kit::block::{Disk, ScsiId};
use host_kit::iscsi::{self, Portal, Target};
use host_kit::lvm::{Devices, Found, Lvm, Names, Repository};
use plugin_sdk::config::RawConfig;
use plugin_sdk::model::Bytes;
use plugin_sdk::model::candidate::Candidate;
use plugin_sdk::model::sr::{ProbeItem, SrProbed};
use plugin_sdk::{Cx, Result};

use crate::config::{Place, Wanted};
use crate::reach::{self, Lun};

/// Goes one step on from a configuration. What it logs in to for that it logs out of.
pub(crate) async fn probe(config: &RawConfig, cx: &Cx) -> Result<SrProbed> {
    let place = Place::of(config)?;
    let Some(wanted) = config.get::<Wanted>("targetIQN")? else {
        let found = place.find(cx, &Wanted::All).await?;
        return Ok(SrProbed { items: targets(&place.portals, &found) });
    };
    iscsi::initiator_name()?;
    let user = format!("probe-{}", cx.operation_id());
    let items = match config.get::<ScsiId>("SCSIid")? {
        None => {
            let shown = async {
                let targets = place.find(cx, &wanted).await?;
                place.login(cx, &targets, &user).await?;
                reach::disks_of(cx, &user).await
            };
            let shown = shown.await;
            reach::release(&cx.shielded(), &user).await?;
            luns(&shown?)
        }
        Some(id) => {
            let lun = Lun { place, wanted, id, user };
            let was_there = lun.device().is_ok();
            let found = async {
                let device = lun.connect(cx).await?;
                let lvm = Lvm::new(Devices::one(device.clone()));
                Ok((Repository::probe(&lvm, Names::XenServer, cx).await?, device))
            };
            let found: Result<(Vec<Found>, String)> = found.await;
            let cx = &cx.shielded();
            if was_there {
                // Somebody else has it: its device stays.
                reach::release(cx, &lun.user).await?;
            } else {
                lun.disconnect(cx).await?;
            }
            let (found, device) = found?;
            found.into_iter().map(|found| repository(found, &device)).collect()
        }
    };
    Ok(SrProbed { items })
}

fn fact(key: &str, value: &(impl ToString + ?Sized)) -> (String, String) {
    (key.to_owned(), value.to_string())
}

/// The targets, each at its first portal, and all of them together.
pub(crate) fn targets(asked: &[Portal], found: &[Target]) -> Vec<ProbeItem> {
    let mut seen = BTreeSet::new();
    let mut items: Vec<ProbeItem> = Vec::new();
    for target in found.iter().filter(|target| seen.insert(&target.iqn)) {
        let portals: Vec<String> = found
            .iter()
            .filter(|other| other.iqn == target.iqn)
            .map(|other| other.portal.to_string())
            .collect();
        items.push(ProbeItem {
            configuration: [fact("targetIQN", &target.iqn)].into(),
            extra_info: [fact("portals", &portals.join(", "))].into(),
            candidate: Some(Candidate::IscsiTarget {
                address: target.portal.address.clone(),
                port: target.portal.port,
                iqn: target.iqn.to_string(),
            }),
            ..ProbeItem::default()
        });
    }
    if let (Some(first), false) = (asked.first(), items.is_empty()) {
        let addresses: Vec<&str> = asked.iter().map(|portal| portal.address.as_str()).collect();
        items.push(ProbeItem {
            configuration: [fact("targetIQN", "*")].into(),
            extra_info: [fact("portals", "all")].into(),
            candidate: Some(Candidate::IscsiTarget {
                address: addresses.join(","),
                port: first.port,
                iqn: "*".to_owned(),
            }),
            ..ProbeItem::default()
        });
    }
    items
}

/// The LUNs, each once however many paths lead to it.
pub(crate) fn luns(shown: &[Disk]) -> Vec<ProbeItem> {
    let mut seen = BTreeSet::new();
    let mut ordered: Vec<&Disk> = shown.iter().collect();
    ordered.sort_by_key(|disk| disk.lun);
    let mut items = Vec::new();
    for disk in ordered {
        let Some(id) = disk.id.as_ref().filter(|id| seen.insert(*id)) else { continue };
        let paths = shown.iter().filter(|other| other.id.as_ref() == Some(id)).count();
        items.push(ProbeItem {
            configuration: [fact("SCSIid", id)].into(),
            extra_info: [
                fact("vendor", &disk.vendor),
                fact("serial", &disk.serial),
                fact("LUNid", &disk.lun),
                fact("size", &Bytes(disk.size)),
                fact("paths", &paths),
            ]
            .into(),
            candidate: Some(Candidate::Lun {
                vendor: disk.vendor.clone(),
                serial: disk.serial.clone(),
                lun: disk.lun,
                size: Bytes(disk.size),
                scsi_id: id.to_string(),
            }),
            ..ProbeItem::default()
        });
    }
    items
}

fn repository(found: Found, device: &str) -> ProbeItem {
    match found {
        Found::Sr { sr, size, missing, .. } => ProbeItem {
            complete: missing == 0,
            sr: Some(sr),
            extra_info: [fact("size", &size)].into(),
            candidate: Some(Candidate::VolumeGroup { devices: vec![device.to_owned()], size }),
            ..ProbeItem::default()
        },
        Found::Occupied(by) => ProbeItem {
            complete: true,
            extra_info: [fact("occupied", &by)].into(),
            ..ProbeItem::default()
        },
        Found::Nothing => ProbeItem { complete: true, ..ProbeItem::default() },
    }
}
