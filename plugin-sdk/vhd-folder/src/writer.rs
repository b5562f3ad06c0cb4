//! Who has a disk open, and the one who writes it.
//!
//! A claim is an empty file in `.sm/open/` whose name says all: the disk, the host, its boot, and for
//! the one who may write, since when. So it can be made on a full file system, and it says more
//! than a process could: it is there as long as the host runs, whatever dies on it. It names the
//! installation too: two state directories of one host do not know of each other's processes. Which
//! process writes is the installation's affair, and a lock of the kernel on the image itself.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use plugin_sdk::model::host::{DatapathPause, DatapathPaused, DatapathRefresh};
use plugin_sdk::model::vdi::{VdiActivate, VdiDatapathDone};
use plugin_sdk::model::{AttachMode, Kind, VdiUuid};
use plugin_sdk::{Cx, Error, Result, step};
use vhd::tree::{Guard, Tree, Writer};

use crate::error::from_vhd;
use crate::metadata::Metadata;
use crate::place::Place;
use crate::vdis::{access, usable};

/// Names the boot of a host.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Between host and boot in the name of a holder, which people read too.
const BOOT_ID: &str = ", boot ";

/// Between that and the installation: one host may have several, and what one has open, another one
/// must not give back. A claim of an earlier release has none, and is any installation's.
const INSTALLATION: &str = ", of ";

/// Before the epoch of one who writes.
const WRITING: &str = ", writing since ";

/// Who has a disk open, as claims name it: valid for one boot of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    host: String,
    boot: String,
    /// Empty in a claim of an earlier release.
    installation: String,
    /// The epoch of its lock, if it may write: a later writer has a larger one. Seconds since
    /// 1970-01-01 UTC where that is larger than what was before.
    writing: Option<u64>,
}

impl Holder {
    /// This host.
    pub(crate) fn here(cx: &Cx) -> Result<Self> {
        let boot = std::fs::read_to_string(BOOT)
            .map_err(|error| Error::internal(format!("{BOOT} cannot be read")).source(&error))?;
        Ok(Self {
            host: cx.host().0.clone(),
            boot: boot.trim().to_owned(),
            installation: cx.installation().to_owned(),
            writing: None,
        })
    }

    /// The holder that a claim names; none if it is not one of ours.
    pub(crate) fn of(claim: &str) -> Option<Self> {
        let (host, boot) = claim.rsplit_once(BOOT_ID)?;
        let (boot, writing) = match boot.split_once(WRITING) {
            Some((boot, epoch)) => (boot, Some(epoch.parse().ok()?)),
            None => (boot, None),
        };
        let (boot, installation) = boot.split_once(INSTALLATION).unwrap_or((boot, ""));
        let [host, boot, installation] = [host, boot, installation].map(str::to_owned);
        Some(Self { host, boot, installation, writing })
    }

    /// As claims name it.
    pub(crate) fn name(&self) -> String {
        let Self { host, boot, installation, writing } = self;
        let writing = writing.map(|epoch| format!("{WRITING}{epoch}")).unwrap_or_default();
        let of = if installation.is_empty() { "" } else { INSTALLATION };
        format!("{host}{BOOT_ID}{boot}{of}{installation}{writing}")
    }

    /// The epoch of its lock, if it may write.
    pub(crate) fn writing(&self) -> Option<u64> {
        self.writing
    }

    /// Whether it is of that host, boot and installation.
    pub(crate) fn is_at(&self, here: &Self) -> bool {
        let known = !self.installation.is_empty() && !here.installation.is_empty();
        self.is_on_host(here) && (!known || self.installation == here.installation)
    }

    /// Whether it is of that host and boot, whatever the installation.
    fn is_on_host(&self, here: &Self) -> bool {
        (&self.host, &self.boot) == (&here.host, &here.boot)
    }

    /// Whether it uses the devices of that host: of one boot of it, whatever calls itself what.
    pub(crate) fn shares_devices(&self, here: &Self) -> bool {
        self.boot == here.boot
    }

    /// Whether it is of that host, and of another boot of it.
    pub(crate) fn is_gone(&self, here: &Self) -> bool {
        self.host == here.host && self.boot != here.boot
    }
}

/// What claims of this host are called.
pub fn claim_here(cx: &Cx) -> Result<String> {
    Holder::here(cx).map(|here| here.name())
}

/// Whether two claims are of one boot of one host, whatever it calls itself.
pub fn same_boot(one: &str, other: &str) -> bool {
    let boots = [one, other].map(|claim| Holder::of(claim).map(|by| by.boot));
    one == other || (boots[0].is_some() && boots[0] == boots[1])
}

/// Those who may write a disk and are not gone.
fn writers(tree: &Tree, vdi: VdiUuid, here: &Holder) -> Result<Vec<Holder>> {
    let claims = tree.claims(vdi.0).map_err(from_vhd)?;
    let holders = claims.iter().filter_map(|claim| Holder::of(claim));
    Ok(holders.filter(|by| by.writing.is_some() && !by.is_gone(here)).collect())
}

/// Allows I/O. For writing the disk is claimed: one host at a time.
pub(crate) fn activate(
    place: &dyn Place,
    cx: &Cx,
    request: &VdiActivate,
) -> Result<VdiDatapathDone> {
    let vdi = request.vdi;
    let tree = place.tree()?;
    if request.mode == AttachMode::ReadOnly {
        let access = vec![access(&tree, vdi, false)?];
        return Ok(VdiDatapathDone { access, epoch: None });
    }
    let after = if is_written_here(&tree, cx, vdi)? {
        // Whoever has it locked is ours.
        0
    } else {
        place.wait_for_the_shut_out(cx, &tree, vdi)?
    };
    let guard = tree.lock(cx.deadline()).map_err(from_vhd)?;
    cx.check()?;
    let sharable = Metadata::of(&usable(&tree, vdi)?)?.sharable;
    let holder = writing(&tree, &guard, cx, vdi, sharable, after)?;
    if !request.tracked {
        crate::changes::spoil(&tree, &guard, vdi)?;
    }
    tree.claim(&guard, vdi.0, &holder.name()).map_err(from_vhd)?;
    step!("vdi_activate.claimed");
    let epoch = holder.writing;
    Ok(VdiDatapathDone { access: vec![access(&tree, vdi, true)?], epoch })
}

/// This host as the one who writes a disk, if no other one does, with an epoch after that.
fn writing(
    tree: &Tree,
    guard: &Guard,
    cx: &Cx,
    vdi: VdiUuid,
    sharable: bool,
    after: u64,
) -> Result<Holder> {
    let here = Holder::here(cx)?;
    let mut latest = after;
    let mut ours = None;
    for claim in tree.claims(vdi.0).map_err(from_vhd)? {
        let Some(holder) = Holder::of(&claim) else { continue };
        let Some(epoch) = holder.writing else { continue };
        latest = latest.max(epoch);
        if holder.is_at(&here) {
            ours = Some(epoch);
        } else if holder.is_gone(&here) {
            tree.unclaim(guard, vdi.0, &claim).map_err(from_vhd)?;
        } else if !sharable {
            return Err(written_by(vdi, &holder, &here));
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let epoch = ours.unwrap_or_else(|| now.max(latest + 1));
    Ok(Holder { writing: Some(epoch), ..here })
}

/// Claims a disk for writing that is none of the tree's.
pub(crate) fn claim_writer(place: &dyn Place, cx: &Cx, vdi: VdiUuid, sharable: bool) -> Result<()> {
    let (tree, guard) = place.locked(cx)?;
    let holder = writing(&tree, &guard, cx, vdi, sharable, 0)?;
    tree.claim(&guard, vdi.0, &holder.name()).map_err(from_vhd)?;
    step!("vdi_activate.claimed");
    Ok(())
}

/// Error kind `in_use` for a disk that another host, or another installation, has open: it cannot be
/// told from here. One of this host's earlier boots has it no more.
pub(crate) fn refuse_elsewhere(tree: &Tree, cx: &Cx, vdi: VdiUuid) -> Result<()> {
    let here = Holder::here(cx)?;
    if let Some(writer) = writers(tree, vdi, &here)?.iter().find(|by| !by.is_at(&here)) {
        return Err(written_by(vdi, writer, &here));
    }
    for claim in tree.claims(vdi.0).map_err(from_vhd)? {
        if Holder::of(&claim).is_none_or(|by| !by.is_gone(&here) && !by.is_at(&here)) {
            return Err(from_vhd(vhd::Error::InUse { uuid: vdi.0, holder: claim }));
        }
    }
    Ok(())
}

/// Ends the writing; of a disk that is gone too.
pub(crate) fn deactivate(place: &dyn Place, cx: &Cx, vdi: VdiUuid) -> Result<()> {
    let tree = match place.tree_to_leave() {
        Err(error) if error.kind == Kind::NotFound => return Ok(()),
        other => other?,
    };
    let here = Holder::here(cx)?;
    let ours: Vec<Holder> =
        writers(&tree, vdi, &here)?.into_iter().filter(|by| by.is_at(&here)).collect();
    if ours.is_empty() {
        return Ok(());
    }
    let guard = tree.lock(cx.deadline()).map_err(from_vhd)?;
    for holder in ours {
        tree.unclaim(&guard, vdi.0, &holder.name()).map_err(from_vhd)?;
    }
    step!("vdi_deactivate.released");
    Ok(())
}

fn written_by(vdi: VdiUuid, holder: &Holder, here: &Holder) -> Error {
    let (who, gone, ends) = if holder.is_on_host(here) {
        let who = format!("another installation of this host, {}", holder.installation);
        let ends = "remove the claim from .sm/open/ in the SR's folder".to_owned();
        (who, "its state directory is lost", ends)
    } else {
        let ends = format!("smctl host fence {} ends its claims", holder.host);
        (format!("host {}", holder.host), "that host is gone, or hangs", ends)
    };
    Error::new(Kind::InUse, format!("VDI {vdi} is being written by {who}"))
        .legacy(24)
        .context("vdi", vdi)
        .context("claim", holder.name())
        .hint(format!(
            "detach it there; if {gone}, {ends}; so does that host when it attaches the SR after a boot"
        ))
}

/// The hosts that have disks open.
pub(crate) fn hosts(tree: &Tree) -> Result<BTreeSet<String>> {
    let mut hosts = BTreeSet::new();
    for disk in tree.open_disks().map_err(from_vhd)? {
        let claims = tree.claims(disk).map_err(from_vhd)?;
        hosts.extend(claims.iter().filter_map(|claim| Holder::of(claim)).map(|by| by.host));
    }
    Ok(hosts)
}

/// What a host has open, of whatever boot: disks, in order, each with its claims.
pub(crate) fn claims_of(tree: &Tree, host: &str) -> Result<Vec<(VdiUuid, String)>> {
    let mut found = Vec::new();
    for disk in tree.open_disks().map_err(from_vhd)? {
        let claims = tree.claims(disk).map_err(from_vhd)?;
        let theirs = |claim: &String| Holder::of(claim).is_some_and(|by| by.host == host);
        found.extend(claims.into_iter().filter(theirs).map(|claim| (disk.into(), claim)));
    }
    Ok(found)
}

/// Ends what a host that is shut out has open, of whatever boot. The disks, each once.
pub(crate) fn end_claims(tree: &Tree, guard: &Guard, host: &str) -> Result<Vec<VdiUuid>> {
    let mut ended = Vec::new();
    for (disk, claim) in claims_of(tree, host)? {
        tree.unclaim(guard, disk.0, &claim).map_err(from_vhd)?;
        ended.push(disk);
    }
    ended.dedup();
    Ok(ended)
}

/// Whether a disk is being written through this installation.
pub(crate) fn is_written_here(tree: &Tree, cx: &Cx, vdi: VdiUuid) -> Result<bool> {
    let here = Holder::here(cx)?;
    Ok(writers(tree, vdi, &here)?.iter().any(|holder| holder.is_at(&here)))
}

/// Stops whoever writes disks on this host, through the host: all of them at one point in time.
pub(crate) struct Told<'a> {
    tree: &'a Tree,
    cx: &'a Cx,
    vdis: Vec<VdiUuid>,
    /// Their images are closed, too.
    close: bool,
}

impl<'a> Told<'a> {
    /// Who writes a disk that is about to change underneath; none if nobody does. A writer on
    /// another host cannot be told: an error.
    pub(crate) fn of(
        tree: &'a Tree,
        guard: &Guard,
        cx: &'a Cx,
        vdi: VdiUuid,
    ) -> Result<Option<Self>> {
        Self::of_all(tree, guard, cx, &[vdi])
    }

    /// As [`Told::of`], of several disks.
    pub(crate) fn of_all(
        tree: &'a Tree,
        _guard: &Guard,
        cx: &'a Cx,
        all: &[VdiUuid],
    ) -> Result<Option<Self>> {
        let here = Holder::here(cx)?;
        let mut vdis = Vec::new();
        for vdi in all {
            let writers = writers(tree, *vdi, &here)?;
            if let Some(elsewhere) = writers.iter().find(|by| !by.is_at(&here)) {
                return Err(written_by(*vdi, elsewhere, &here));
            }
            if !writers.is_empty() {
                vdis.push(*vdi);
            }
        }
        Ok((!vdis.is_empty()).then_some(Self { tree, cx, vdis, close: false }))
    }

    /// Who has a disk open whose own image is about to be rewritten, be it only for reading; none if
    /// nobody does. Who has it open elsewhere cannot be told: an error.
    pub(crate) fn to_close(
        tree: &'a Tree,
        _guard: &Guard,
        cx: &'a Cx,
        vdi: VdiUuid,
    ) -> Result<Option<Self>> {
        refuse_elsewhere(tree, cx, vdi)?;
        let here = Holder::here(cx)?;
        let claims = tree.claims(vdi.0).map_err(from_vhd)?;
        let mut holders = claims.iter().filter_map(|claim| Holder::of(claim));
        let is_open = holders.any(|holder| holder.is_at(&here));
        Ok(is_open.then(|| Self { tree, cx, vdis: vec![vdi], close: true }))
    }

    /// Has them go on with the images as they are now; all are told, and the first error is
    /// answered.
    pub(crate) fn refresh(&self) -> Result<()> {
        let told = self.vdis.iter().map(|vdi| {
            let request =
                DatapathRefresh { vdi: *vdi, access: vec![access(self.tree, *vdi, true)?] };
            self.cx.request_blocking::<serde_json::Value>("datapath.refresh", &request).map(drop)
        });
        // Each of them, whatever becomes of the one before.
        told.collect::<Vec<_>>().into_iter().collect()
    }
}

impl Writer for Told<'_> {
    fn stop(&self) -> vhd::Result<()> {
        pause(self.tree, self.cx, &self.vdis, self.close)
    }

    fn go_on(&self) {
        // Whatever fails here, the change is made. The writer sees that nobody tells it any more,
        // and looks by itself.
        if let Err(error) = self.refresh() {
            plugin_sdk::tracing::warn!(%error, "a writer was not told to go on");
        }
    }
}

/// Stops disks, through the host. With `close`, nobody has their images open then.
pub(crate) fn pause(tree: &Tree, cx: &Cx, vdis: &[VdiUuid], close: bool) -> vhd::Result<()> {
    let operation = Some(cx.operation_id());
    let request = DatapathPause { vdis: vdis.to_vec(), lock: lock_of(tree), close, operation };
    let paused = cx.request_blocking::<DatapathPaused>("datapath.pause", &request);
    let not_closed = "this release of the host cannot have images closed while they are served";
    let paused = paused.and_then(|paused| {
        if close && !paused.closed { Err(Error::unsupported(not_closed)) } else { Ok(()) }
    });
    paused.map_err(|error| {
        // Of several it is the one that the host names.
        let is_named = |vdi: &&VdiUuid| error.message.contains(&vdi.to_string());
        let vdi = vdis.iter().find(is_named).or(vdis.first());
        let uuid = vdi.map(|vdi| vdi.0).unwrap_or_default();
        vhd::Error::InUse { uuid, holder: error.message.clone() }
    })
}

/// What whoever changes the images holds locked, as the tree documents it.
pub(crate) fn lock_of(tree: &Tree) -> Option<String> {
    tree.store().lock_file()?.into_os_string().into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::Holder;

    #[test]
    fn a_claim_says_who_and_since_when() {
        let holder = Holder {
            host: "host, boot b".into(),
            boot: "93a1-0".into(),
            installation: String::new(),
            writing: Some(17),
        };
        assert_eq!(holder.name(), "host, boot b, boot 93a1-0, writing since 17");
        assert_eq!(Holder::of(&holder.name()), Some(holder.clone()));
        let reading = Holder { writing: None, ..holder.clone() };
        assert_eq!(Holder::of(&reading.name()), Some(reading.clone()));
        assert!(holder.is_at(&reading) && !holder.is_gone(&reading));
        let later = Holder { boot: "93a1-1".into(), ..reading };
        assert!(holder.is_gone(&later));
        assert_eq!(Holder::of("somebody"), None);
    }

    #[test]
    fn what_one_installation_has_open_is_not_anothers() {
        let holder = |installation: &str, boot: &str| Holder {
            host: "host".into(),
            boot: boot.into(),
            installation: installation.into(),
            writing: Some(3),
        };
        let one = holder("5c1de0aa", "93a1-0");
        assert_eq!(one.name(), "host, boot 93a1-0, of 5c1de0aa, writing since 3");
        assert_eq!(Holder::of(&one.name()), Some(one.clone()));
        let other = holder("77f00012", "93a1-0");
        assert!(one.is_at(&one) && !one.is_at(&other) && !other.is_at(&one));
        // One of an earlier release is any installation's.
        let earlier = Holder::of("host, boot 93a1-0, writing since 3").unwrap();
        assert!(earlier.is_at(&one) && earlier.is_at(&other));
        // After a boot nobody's is there, whichever it was of.
        assert!(!one.is_gone(&other) && one.is_gone(&holder("77f00012", "93a1-1")));
    }
}
