//! Moving an attached disk to another place while it is used.
//!
//! The mirror belongs to the data path's process: whoever began it may end, and another program
//! asks how far it is, switches, or cancels. What is remembered here is only that a disk went, or
//! may have gone, elsewhere, so that nobody takes what stays behind for the disk:
//!
//! | when | who knows that the target is the disk |
//! |---|---|
//! | the switch is asked for | the catalog knows, durably, that it may be |
//! | the process has recorded it | its run directory, until the host boots |
//! | it is answered, or anybody looks after the VDI | the catalog, durably, until the VDI is destroyed or the move is forgotten |
//!
//! After a power cut in the very moment of the switch nobody knows; the VDI is then attached to
//! nobody until somebody has looked at the target.

use std::time::Duration;

use datapath::control::protocol::{
    Credentials, MirrorPhase, MirrorStart, MirrorStatus, MirrorSwitch, Moved,
};
use serde::{Deserialize, Serialize};
use sm_model::{Bytes, Error, Kind, Result, VdiUuid};

use crate::catalog::AttachmentRecord;
use crate::events::Event;
use crate::op::Op;
use crate::services::blocking;
use crate::serving::{Datapaths, told};
use crate::sr::Sr;

/// How long it may take to connect to the target and to begin.
const BEGIN: Duration = Duration::from_secs(90);

/// How long a switch may wait for requests that are under way, and for the target.
const QUIET: Duration = Duration::from_secs(10);

/// How long all of a switch may take, but for comparing.
const SWITCH: Duration = Duration::from_secs(120);

/// Bytes that are compared in a second at the very least.
const COMPARED: u64 = 16 << 20;

/// How long it may take to end a mirror.
const END: Duration = Duration::from_secs(60);

/// How often a mirror that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Where to mirror a VDI, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorTarget {
    /// The address of an NBD export that can be written: `nbd+unix:///NAME?socket=PATH`,
    /// `nbd://HOST:PORT/NAME`, or with TLS `nbds://HOST:PORT/NAME`.
    pub uri: String,
    /// For an address with TLS.
    pub credentials: Option<Credentials>,
    /// The name in the server's certificate, where it is not the host of the address.
    pub server_name: Option<String>,
    /// Bytes per second of the copy.
    pub rate: Option<Bytes>,
}

/// The mirror of a VDI, and where the VDI went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mirrored {
    /// How far the mirror is; none without one.
    pub mirror: Option<MirrorStatus>,
    /// Where the VDI went.
    pub moved: Option<Moved>,
    /// Whether the host went down in the moment of the switch: `moved` is where it may have gone.
    pub in_doubt: bool,
}

/// The record of a VDI that went elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MovedRecord {
    moved: Moved,
    /// Whether it did. Else a switch was asked for, and how it ended has not been recorded.
    sure: bool,
    /// The boot of this host in which it was asked for.
    boot: String,
}

/// The VDI's UUID alone: a process is found by no more than that.
fn key(vdi: VdiUuid) -> String {
    format!("moved/{vdi}")
}

impl Datapaths {
    fn mirror_start(&self, vdi: VdiUuid, asked: MirrorStart) -> Result<MirrorStatus> {
        let mut client = self.must_find(vdi)?;
        client.mirror_start(asked, BEGIN).map_err(|error| with_hint(vdi, told(vdi, &error)))
    }

    fn mirror_rate(&self, vdi: VdiUuid, rate: Option<u64>) -> Result<MirrorStatus> {
        self.must_find(vdi)?.mirror_rate(rate, END).map_err(|error| told(vdi, &error))
    }

    /// Err of none: there was no answer.
    fn mirror_switch(&self, vdi: VdiUuid, verify: bool) -> Result<Moved, Option<Error>> {
        let mut client = self.must_find(vdi)?;
        let size = client.status(END).map_err(|error| told(vdi, &error))?.size;
        let milliseconds = u64::try_from(QUIET.as_millis()).unwrap_or(u64::MAX);
        let compare = if verify { Duration::from_secs(size / COMPARED) } else { Duration::ZERO };
        let asked = MirrorSwitch { verify, milliseconds };
        client
            .mirror_switch(asked, SWITCH + compare)
            .map_err(|error| error.kind().is_some().then(|| with_hint(vdi, told(vdi, &error))))
    }

    fn mirror_cancel(&self, vdi: VdiUuid) -> Result<bool> {
        let Some(mut client) = self.find(vdi)? else { return Ok(false) };
        let there = client.status(END).map_err(|error| told(vdi, &error))?.mirror.is_some();
        client.mirror_cancel(END).map_err(|error| told(vdi, &error))?;
        Ok(there)
    }
}

impl Sr {
    /// Begins to copy a VDI that is attached to another place, while it is used; what is written
    /// meanwhile goes there as well. Answers when the target is found good; [`Self::vdi_mirror`]
    /// tells how far it is. To the same target again is done already.
    pub async fn vdi_mirror_start(
        &self,
        op: &Op,
        vdi: VdiUuid,
        target: MirrorTarget,
    ) -> Result<MirrorStatus> {
        let (_held, _record) = self.mirrored(op, vdi).await?;
        let asked = MirrorStart {
            target: target.uri,
            credentials: target.credentials,
            server_name: target.server_name,
            rate: target.rate.map(|rate| rate.0),
        };
        let datapaths = self.manager.inner.datapaths.clone();
        let status = blocking(move || datapaths.mirror_start(vdi, asked)).await?;
        self.event(Event::MirrorChanged { sr: self.uuid(), vdi });
        Ok(status)
    }

    /// The mirror of a VDI, and where the VDI went. Waits for nobody.
    pub async fn vdi_mirror(&self, vdi: VdiUuid) -> Result<Mirrored> {
        let status = self.datapath(vdi).await?;
        if let Some(status) = &status
            && (status.mirror.is_some() || status.moved.is_some())
        {
            let (mirror, moved) = (status.mirror.clone(), status.moved.clone());
            return Ok(Mirrored { mirror, moved, in_doubt: false });
        }
        let place = self.manager.inner.datapaths.place(vdi);
        if let Some(moved) = place.moved() {
            return Ok(Mirrored { moved: Some(moved), ..Mirrored::default() });
        }
        let Some(record) = self.moved(vdi)? else { return Ok(Mirrored::default()) };
        // Whoever changes something next settles a switch of this boot that did not happen.
        if !record.sure && record.boot == self.manager.inner.boot {
            return Ok(Mirrored::default());
        }
        Ok(Mirrored { mirror: None, in_doubt: !record.sure, moved: Some(record.moved) })
    }

    /// Waits until the mirror of a VDI can be switched to. It goes on if the waiting is cancelled.
    pub async fn vdi_mirror_wait(&self, op: &Op, vdi: VdiUuid) -> Result<MirrorStatus> {
        loop {
            let Some(status) = self.vdi_mirror(vdi).await?.mirror else {
                return Err(Error::new(
                    Kind::NotFound,
                    format!("VDI {vdi} is not mirrored any more"),
                )
                .context("vdi", vdi)
                .hint("it was cancelled or switched, or its data path was killed"));
            };
            if let Some(progress) = &op.progress {
                progress(permille(&status), phase_name(status.phase));
            }
            match status.phase {
                MirrorPhase::Ready => return Ok(status),
                MirrorPhase::Failed => {
                    let why = status.reason.unwrap_or_default();
                    let text = format!("the mirror of VDI {vdi} to {} has failed", status.target);
                    return Err(Error::new(Kind::Unreachable, format!("{text}: {why}"))
                        .context("vdi", vdi)
                        .hint("the VDI is as if there had been no mirror; start another one"));
                }
                _ => {}
            }
            op.check_cancelled()?;
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = op.cancel.cancelled() => {}
            }
        }
    }

    /// Sets the limit of the copy; none lifts it.
    pub async fn vdi_mirror_rate(
        &self,
        op: &Op,
        vdi: VdiUuid,
        rate: Option<Bytes>,
    ) -> Result<MirrorStatus> {
        let (_held, _record) = self.mirrored(op, vdi).await?;
        let datapaths = self.manager.inner.datapaths.clone();
        blocking(move || datapaths.mirror_rate(vdi, rate.map(|rate| rate.0))).await
    }

    /// Has the target of the mirror be the disk: it has everything, and this VDI ends. Its clients
    /// are sent away, it stays attached to nobody's use, and it cannot be attached again. With
    /// `verify` every byte of both is compared first, while requests wait. After a failure the VDI
    /// goes on as before. Done already is done.
    pub async fn vdi_mirror_switch(&self, op: &Op, vdi: VdiUuid, verify: bool) -> Result<Moved> {
        let _held = self.manager.lock(op, &self.vdi_locks(op, &[vdi])).await?;
        if let Some(record) = self.settle_move(vdi).await?.filter(|record| record.sure) {
            return Ok(record.moved);
        }
        self.refuse_moved(vdi)?;
        let status = self.vdi_mirror(vdi).await?.mirror.ok_or_else(|| no_mirror(vdi))?;
        let may_have = Moved {
            target: status.target,
            verified: false,
            time: crate::journal::now(),
            milliseconds: 0,
        };
        self.keep_move(vdi, may_have, false)?;
        let datapaths = self.manager.inner.datapaths.clone();
        let answer = blocking(move || Ok(datapaths.mirror_switch(vdi, verify))).await?;
        let moved = match answer {
            Ok(moved) => moved,
            Err(why) => {
                // It says no, or died. Whatever it has recorded is so.
                let settled = self.settle_move(vdi).await?;
                match (settled, why) {
                    (Some(record), _) if record.sure => record.moved,
                    (_, Some(error)) => return Err(error),
                    (_, None) => return Err(died(vdi)),
                }
            }
        };
        self.keep_move(vdi, moved.clone(), true)?;
        self.event(Event::MirrorChanged { sr: self.uuid(), vdi });
        self.event(Event::VdiChanged { sr: self.uuid(), vdi });
        Ok(moved)
    }

    /// Ends the mirror of a VDI, which goes on as if there had been none; the target is of no use.
    /// Answers whether there was one.
    pub async fn vdi_mirror_cancel(&self, op: &Op, vdi: VdiUuid) -> Result<bool> {
        let _held = self.manager.lock(op, &self.vdi_locks(op, &[vdi])).await?;
        let datapaths = self.manager.inner.datapaths.clone();
        let there = blocking(move || datapaths.mirror_cancel(vdi)).await?;
        if there {
            self.event(Event::MirrorChanged { sr: self.uuid(), vdi });
        }
        Ok(there)
    }

    /// Forgets that a VDI went elsewhere: what it held then can be attached again. For whoever
    /// knows that the disk there is not used. Answers whether it went.
    pub async fn vdi_mirror_forget(&self, op: &Op, vdi: VdiUuid) -> Result<bool> {
        let _held = self.manager.lock(op, &self.vdi_locks(op, &[vdi])).await?;
        self.refuse_if_attached(op, vdi, "", None).await?;
        self.settle_move(vdi).await?;
        let there = self.moved(vdi)?.is_some();
        let place = self.manager.inner.datapaths.place(vdi);
        if place.moved().is_some() {
            // Left by a process that was ended by a signal.
            blocking(move || {
                datapath::control::end(&place, END).map_err(|error| told(vdi, &error))
            })
            .await?;
        }
        self.forget_move(vdi)?;
        Ok(there)
    }

    /// The lock of a VDI that has a data path, which does what it shall.
    async fn mirrored(
        &self,
        op: &Op,
        vdi: VdiUuid,
    ) -> Result<(crate::locks::Held, AttachmentRecord)> {
        let held = self.manager.lock(op, &self.vdi_locks(op, &[vdi])).await?;
        let record = self.served(op, vdi, "mirror it").await?;
        self.refuse_moved(vdi)?;
        Ok((held, record))
    }

    // Where the VDI is -----------------------------------------------------------------------------

    /// What is known of the way of a VDI.
    pub(crate) fn moved(&self, vdi: VdiUuid) -> Result<Option<MovedRecord>> {
        Ok(self.manager.inner.catalog.get(&key(vdi))?.map(|found| found.record))
    }

    fn keep_move(&self, vdi: VdiUuid, moved: Moved, sure: bool) -> Result<()> {
        let record = MovedRecord { moved, sure, boot: self.manager.inner.boot.clone() };
        self.manager.inner.catalog.set(&key(vdi), &record, true)
    }

    /// A VDI of that UUID may be used here again.
    pub(crate) fn forget_move(&self, vdi: VdiUuid) -> Result<()> {
        self.manager.inner.catalog.remove(&key(vdi), true)
    }

    /// Learns what nobody has recorded: a move that the data path knows of, or a switch that did
    /// not happen. With the VDI's lock in hand.
    pub(crate) async fn settle_move(&self, vdi: VdiUuid) -> Result<Option<MovedRecord>> {
        let known = self.moved(vdi)?;
        if known.as_ref().is_some_and(|record| record.sure) {
            return Ok(known);
        }
        let place = self.manager.inner.datapaths.place(vdi);
        if known.is_none() && place.moved().is_none() {
            return Ok(None);
        }
        if known.is_some() && place.moved().is_none() {
            let datapaths = self.manager.inner.datapaths.clone();
            let status = blocking(move || datapaths.status(vdi)).await;
            // One that dies just now does not answer, and may have recorded the move before.
            let status = if place.moved().is_some() { None } else { status? };
            let mirror = status.and_then(|status| status.mirror);
            if mirror.is_some_and(|mirror| mirror.phase == MirrorPhase::Switching) {
                return Err(Error::busy(format!("VDI {vdi} is being moved just now"))
                    .context("vdi", vdi)
                    .hint("smctl vdi mirror status tells when it is"));
            }
        }
        // Looked at after the question: what a process has begun is over by now.
        if let Some(moved) = place.moved() {
            self.keep_move(vdi, moved, true)?;
        } else if known.as_ref().is_some_and(|record| record.boot == self.manager.inner.boot) {
            self.forget_move(vdi)?;
        }
        self.moved(vdi)
    }

    /// What stays behind of a disk that went elsewhere is not the disk.
    pub(crate) fn refuse_moved(&self, vdi: VdiUuid) -> Result<()> {
        let Some(record) = self.moved(vdi)? else { return Ok(()) };
        let target = &record.moved.target;
        let error = if record.sure {
            Error::new(Kind::Fenced, format!("VDI {vdi} was moved to {target}")).hint(format!(
                "use the disk there; smctl vdi mirror forget {vdi} gives back what it held then"
            ))
        } else {
            Error::new(
                Kind::Fenced,
                format!("VDI {vdi} was being moved to {target} when the host went down"),
            )
            .hint(format!(
                "if the disk there was not used since, smctl vdi mirror forget {vdi} makes this one \
                 the disk"
            ))
        };
        Err(error.context("vdi", vdi))
    }
}

/// How much of a mirror is done.
pub(crate) fn permille(status: &MirrorStatus) -> u32 {
    let done = status.total.saturating_sub(status.dirty);
    let part = done.saturating_mul(1000).checked_div(status.total).unwrap_or(0);
    // All is done when the process says so.
    if status.phase == MirrorPhase::Ready { 1000 } else { part.min(999) as u32 }
}

fn phase_name(phase: MirrorPhase) -> &'static str {
    match phase {
        MirrorPhase::Copying => "copying",
        MirrorPhase::Ready => "ready",
        MirrorPhase::Retrying => "retrying",
        MirrorPhase::Switching => "switching",
        MirrorPhase::Failed => "failed",
        MirrorPhase::Other => "other",
    }
}

/// What to do about a mirror that was refused.
fn with_hint(vdi: VdiUuid, error: Error) -> Error {
    let hint = match error.kind {
        Kind::Limit => "make the target at least as large as the VDI".to_owned(),
        Kind::Unsupported => "name an export that can be written, of another disk".to_owned(),
        Kind::Unreachable => "look whether its server runs, is to be reached there and has that \
                              export; with TLS, whether each side knows the other's authority"
            .to_owned(),
        Kind::InUse => format!("smctl vdi mirror cancel {vdi} ends the other mirror"),
        Kind::Busy { .. } => format!("smctl vdi mirror status {vdi} --wait, and try again"),
        Kind::Corrupt => "find out who else writes the target, and switch again".to_owned(),
        _ => return error,
    };
    error.hint(hint)
}

fn no_mirror(vdi: VdiUuid) -> Error {
    Error::not_found(format!("VDI {vdi} is not mirrored"))
        .context("vdi", vdi)
        .hint(format!("smctl vdi mirror start {vdi} URI"))
}

fn died(vdi: VdiUuid) -> Error {
    Error::new(
        Kind::Unreachable,
        format!("the data path of VDI {vdi} gave no answer, and has not recorded that it moved"),
    )
    .context("vdi", vdi)
    .hint(
        "VDI and mirror are as smctl vdi mirror status says; if its process died, the VDI is here",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails so")]

    use std::collections::BTreeMap;

    use super::*;
    use crate::catalog::SrRecord;
    use crate::manager::StorageManager;

    async fn sr(folder: &tempfile::TempDir) -> Sr {
        let state = camino::Utf8Path::from_path(folder.path()).unwrap();
        let manager = StorageManager::builder(state).open().await.unwrap();
        let record = SrRecord {
            uuid: "5c000000-0000-4000-8000-000000000001".parse().unwrap(),
            driver: "none".into(),
            name: String::new(),
            description: String::new(),
            device_config: BTreeMap::new(),
            attached: true,
            attached_in_boot: String::new(),
            created: 0,
            created_by: None,
        };
        Sr { manager, record }
    }

    fn moved() -> Moved {
        let target = "nbd://host/x".to_owned();
        Moved { target, verified: false, time: 1, milliseconds: 0 }
    }

    #[tokio::test]
    async fn a_switch_that_a_power_cut_has_cut_is_in_doubt_until_somebody_decides() {
        let folder = tempfile::tempdir().unwrap();
        let sr = sr(&folder).await;
        let vdi: VdiUuid = "0d000000-0000-4000-8000-000000000001".parse().unwrap();
        let record = MovedRecord { moved: moved(), sure: false, boot: "an earlier one".into() };
        sr.manager.inner.catalog.set(&key(vdi), &record, true).unwrap();

        assert_eq!(sr.settle_move(vdi).await.unwrap(), Some(record));
        let told = sr.vdi_mirror(vdi).await.unwrap();
        assert_eq!(told, Mirrored { mirror: None, moved: Some(moved()), in_doubt: true });
        let error = sr.refuse_moved(vdi).unwrap_err();
        assert_eq!(error.kind, Kind::Fenced);
        assert_eq!(
            error.message,
            format!("VDI {vdi} was being moved to nbd://host/x when the host went down")
        );
        assert!(error.hint.as_deref().unwrap().contains("smctl vdi mirror forget"));
        assert!(sr.vdi_mirror_forget(&Op::new(), vdi).await.unwrap());
        assert!(!sr.vdi_mirror_forget(&Op::new(), vdi).await.unwrap());
        sr.refuse_moved(vdi).unwrap();
    }

    #[tokio::test]
    async fn a_switch_of_this_boot_that_no_process_knows_of_did_not_happen() {
        let folder = tempfile::tempdir().unwrap();
        let sr = sr(&folder).await;
        let vdi: VdiUuid = "0d000000-0000-4000-8000-000000000002".parse().unwrap();
        sr.keep_move(vdi, moved(), false).unwrap();
        assert_eq!(sr.vdi_mirror(vdi).await.unwrap(), Mirrored::default());
        assert_eq!(sr.settle_move(vdi).await.unwrap(), None);
        sr.refuse_moved(vdi).unwrap();
    }

    #[test]
    fn all_is_done_only_when_it_can_be_switched_to() {
        let of = |phase, total, dirty| {
            permille(&MirrorStatus {
                target: String::new(),
                phase,
                reason: None,
                total,
                copied: 0,
                dirty,
                forwarded: 0,
                retries: 0,
                rate: None,
            })
        };
        assert_eq!(of(MirrorPhase::Copying, 0, 0), 0);
        assert_eq!(of(MirrorPhase::Copying, 100, 25), 750);
        assert_eq!(of(MirrorPhase::Copying, 100, 0), 999);
        assert_eq!(of(MirrorPhase::Ready, 0, 0), 1000);
    }
}
