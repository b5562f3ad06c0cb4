//! Attaching VDIs on this host.
//!
//! The rules are those of xapi's wrapper: the effect first, then the record, and every effect
//! can be repeated. A step that failed leaves a record that says what the driver was last told
//! (`driver_state`); the next operation on the VDI starts by going from there to what the
//! datapaths need. Before the driver is asked to attach, that it will be is recorded: what a crash
//! leaves attached for nobody is found, and taken back.

use std::collections::BTreeMap;

use datapath::control::protocol::Status;
use datapath::disk::{Limits, Plan};
use sm_loader::port;
use sm_model::vdi::{VdiActivate, VdiAttach, VdiDeactivate, VdiDetach, VdiStat};
use sm_model::{Access, AttachMode, Error, Kind, Operation, OperationId, Result, SrUuid, VdiUuid};
use sm_step::step;

use crate::attached::holders;
use crate::automaton::{State, Step};
use crate::catalog::{AttachmentRecord, Datapath};
use crate::changed::shut_out_of;
use crate::events::Event;
use crate::journal::leaves_doubt;
use crate::locks::Lock;
use crate::op::Op;
use crate::qos::first_limits;
use crate::services::blocking;
use crate::serving::{Left, Wanted, is_active, is_read_only, plan_of};
use crate::sr::Sr;

/// How the datapaths of jobs begin: with the job's id behind it. They read and write the images by
/// themselves.
pub(crate) const JOB: &str = "job-";

/// Whether a datapath is that of a job.
pub(crate) fn is_job(datapath: &str) -> bool {
    datapath.strip_prefix(JOB).is_some_and(|id| id.parse::<OperationId>().is_ok())
}

/// Whether a data path may have been told images that maintenance has exchanged since: it takes no
/// VDI's lock, and may be that of another process.
fn may_be_of_before(error: &Error) -> bool {
    matches!(error.kind, Kind::Internal | Kind::NotFound | Kind::Corrupt)
}

/// The catalog's key of an attachment.
pub(crate) fn key(sr: SrUuid, vdi: VdiUuid) -> String {
    format!("attach/{sr}/{vdi}")
}

impl AttachmentRecord {
    /// The images to serve, in the mode that the driver was told; none for a disk that is the bytes
    /// of a file or device.
    pub(crate) fn plan(&self) -> Option<Plan> {
        let mode = self.driver_state.mode().unwrap_or(AttachMode::ReadOnly);
        plan_of(&self.images, is_read_only(mode))
    }

    /// The images, for what a data path that was killed has left.
    fn left(&self) -> Option<Left> {
        self.plan().map(|plan| Left { plan, shut_out: shut_out_of(&self.images) })
    }

    /// What the data path has to do for those who hold the disk, jobs left out.
    fn wanted(&self) -> Wanted {
        let holders = self.datapaths.iter().filter(|(name, _)| !is_job(name));
        match State::superstate(holders.map(|(_, held)| held.state())) {
            State::Detached => Wanted::Nothing,
            State::Attached(_) => Wanted::Attached,
            State::Activated(_) => Wanted::Active,
        }
    }
}

impl Datapath {
    /// Its state.
    pub fn state(&self) -> State {
        if self.activated { State::Activated(self.mode) } else { State::Attached(self.mode) }
    }
}

impl Sr {
    /// Makes a VDI reachable for `datapath` (any name the caller chooses: a VM's disk, an export)
    /// and says how. No I/O before [`Self::vdi_activate`]. Attaching again gives the same answer.
    ///
    /// A disk that is the bytes of a file or device is reached there. Any other is served by a
    /// process that is started now, outlives this one, and ends with the last detach.
    pub async fn vdi_attach(
        &self,
        op: &Op,
        vdi: VdiUuid,
        datapath: &str,
        mode: AttachMode,
    ) -> Result<Vec<Access>> {
        self.attach_with(op, vdi, datapath, mode, false).await
    }

    /// As [`Self::vdi_attach`], also of a VDI that is being filled.
    pub(crate) async fn attach_any(
        &self,
        op: &Op,
        vdi: VdiUuid,
        datapath: &str,
        mode: AttachMode,
    ) -> Result<Vec<Access>> {
        self.attach_with(op, vdi, datapath, mode, true).await
    }

    async fn attach_with(
        &self,
        op: &Op,
        vdi: VdiUuid,
        datapath: &str,
        mode: AttachMode,
        incomplete_too: bool,
    ) -> Result<Vec<Access>> {
        let _held = self.manager.lock(op, &self.vdi_locks(op, &[vdi])).await?;
        let info = self.read(op, &VdiStat::of(vdi)).await?;
        if info.incomplete && !incomplete_too {
            return Err(incomplete(vdi));
        }
        let step = Step::Attach(mode);
        let record = self.step_locked(op, vdi, datapath, step, first_limits(&info)).await?;
        Ok(if is_job(datapath) { record.images } else { record.access })
    }

    /// Allows I/O. Of several datapaths that write, one at a time may be activated, unless the
    /// VDI is sharable.
    pub async fn vdi_activate(&self, op: &Op, vdi: VdiUuid, datapath: &str) -> Result<()> {
        let mode = self
            .attachment(vdi)?
            .and_then(|record| record.datapaths.get(datapath).map(|held| held.mode))
            .unwrap_or(AttachMode::ReadOnly);
        self.step(op, vdi, datapath, Step::Activate(mode)).await?;
        Ok(())
    }

    /// Ends I/O. Nothing to do is success.
    pub async fn vdi_deactivate(&self, op: &Op, vdi: VdiUuid, datapath: &str) -> Result<()> {
        self.step(op, vdi, datapath, Step::Deactivate).await?;
        Ok(())
    }

    /// Ends the reachability for `datapath`. Nothing to do is success.
    pub async fn vdi_detach(&self, op: &Op, vdi: VdiUuid, datapath: &str) -> Result<()> {
        self.step(op, vdi, datapath, Step::Detach).await?;
        Ok(())
    }

    /// Tells the driver what it still has to be told after a call that was cut.
    pub(crate) async fn finish_detach(&self, op: &Op, vdi: VdiUuid) -> Result<()> {
        let _held = self.manager.lock(op, &self.vdi_locks(op, &[vdi])).await?;
        let Some(mut record) = self.attachment(vdi)? else { return Ok(()) };
        self.finish(op, &mut record).await
    }

    /// What the data path of a VDI does, and has done since it was activated; none if the VDI has
    /// none. Waits for nobody.
    pub async fn datapath(&self, vdi: VdiUuid) -> Result<Option<Status>> {
        if self.attachment(vdi)?.is_none_or(|record| !record.served) {
            return Ok(None);
        }
        let datapaths = self.manager.inner.datapaths.clone();
        blocking(move || datapaths.status(vdi)).await
    }

    /// Limits what an attached VDI may do in a second, as long as it is attached. Refused for one
    /// that no data path serves.
    pub async fn vdi_limit(&self, op: &Op, vdi: VdiUuid, limits: Limits) -> Result<()> {
        let _held = self.manager.lock(op, &self.vdi_locks(op, &[vdi])).await?;
        let mut record = self.served(op, vdi, "limit it").await?;
        record.limits = limits;
        self.keep(&record)?;
        let datapaths = self.manager.inner.datapaths.clone();
        blocking(move || datapaths.limit(vdi, limits)).await
    }

    /// The record of a VDI whose data path does what it shall. Refused for one that no data path
    /// serves, which could not do `what`.
    pub(crate) async fn served(
        &self,
        op: &Op,
        vdi: VdiUuid,
        what: &str,
    ) -> Result<AttachmentRecord> {
        let Some(mut record) = self.attachment(vdi)?.filter(|record| record.served) else {
            return Err(Error::unsupported(format!(
                "VDI {vdi} has no data path on this host, which could {what}"
            ))
            .context("vdi", vdi)
            .hint("attach it first; a raw disk is reached without a data path"));
        };
        self.finish(op, &mut record).await?;
        Ok(record)
    }

    /// What is attached on this host.
    pub fn attachments(&self) -> Result<Vec<AttachmentRecord>> {
        let mut records = self.attachment_records()?;
        records
            .retain(|record| !record.datapaths.is_empty() || record.driver_state.mode().is_some());
        Ok(records)
    }

    /// As [`Self::attachments`], those of which only an attempt is known too.
    pub(crate) fn attachment_records(&self) -> Result<Vec<AttachmentRecord>> {
        let records: Vec<(String, AttachmentRecord)> =
            self.manager.inner.catalog.list(&format!("attach/{}/", self.uuid()))?;
        Ok(records
            .into_iter()
            .map(|(_, record)| record)
            .filter(|record| record.boot == self.manager.inner.boot)
            .collect())
    }

    async fn step(
        &self,
        op: &Op,
        vdi: VdiUuid,
        datapath: &str,
        step: Step,
    ) -> Result<AttachmentRecord> {
        let _held = self.manager.lock(op, &self.vdi_locks(op, &[vdi])).await?;
        self.step_locked(op, vdi, datapath, step, Limits::default()).await
    }

    /// As [`Self::step`], by a caller that holds the locks. `limits` are those of a VDI that was not
    /// attached before.
    async fn step_locked(
        &self,
        op: &Op,
        vdi: VdiUuid,
        datapath: &str,
        step: Step,
        limits: Limits,
    ) -> Result<AttachmentRecord> {
        let mut record = self.attachment(vdi)?.unwrap_or_else(|| AttachmentRecord {
            vdi,
            datapaths: BTreeMap::new(),
            access: Vec::new(),
            images: Vec::new(),
            served: false,
            epoch: 0,
            limits,
            bitmaps: Vec::new(),
            remote: None,
            driver_state: State::Detached,
            asked: false,
            boot: self.manager.inner.boot.clone(),
        });
        // First finish what an earlier call could not: a detach that failed, for instance. Who is shut
        // out of the storage brings nothing back, and has to let go of what it had all the same.
        let down = matches!(step, Step::Deactivate | Step::Detach);
        match self.finish(op, &mut record).await {
            Err(error) if down && error.kind == Kind::Fenced => {
                tracing::warn!(%vdi, %error, "the disk is let go of as it is");
            }
            finished => finished?,
        }
        if matches!(step, Step::Attach(_) | Step::Activate(_)) {
            self.refuse_moved(vdi)?;
        }

        let before = record.datapaths.get(datapath).map_or(State::Detached, Datapath::state);
        let after = before.after(step).map_err(|illegal| {
            Error::new(Kind::InUse, format!("VDI {vdi}, datapath {datapath:?}: {illegal}"))
                .legacy(46)
                .context("vdi", vdi)
        })?;
        if let (Step::Attach(AttachMode::ReadWrite), Some(AttachMode::ReadOnly)) =
            (step, record.driver_state.mode())
        {
            return Err(Error::new(
                Kind::InUse,
                format!(
                    "VDI {vdi} is attached read-only by {}, which never becomes read-write",
                    holders(&record)
                ),
            )
            .legacy(24)
            .hint("detach the readers first"));
        }
        if after == State::Activated(AttachMode::ReadWrite) && after != before {
            self.refuse_second_writer(op, &record, datapath).await?;
        }
        if step == Step::Detach && record.driver_state == State::Detached {
            // What is held for a state directory that was lost ends here too.
            self.end_datapath(&mut record).await?;
            match self.tell_driver(op, &mut record, step).await {
                Err(error) if error.kind != Kind::Unsupported => {
                    return Err(error.context("vdi", vdi));
                }
                _ => {}
            }
        }
        let others = record.datapaths.clone();
        match after {
            State::Detached => record.datapaths.remove(datapath),
            State::Attached(mode) => {
                record.datapaths.insert(datapath.to_owned(), Datapath { mode, activated: false })
            }
            State::Activated(mode) => {
                record.datapaths.insert(datapath.to_owned(), Datapath { mode, activated: true })
            }
        };
        // A step down is recorded first: if the driver fails, the datapath is gone all the same,
        // and the next operation tries the driver again.
        if matches!(step, Step::Deactivate | Step::Detach) && before != after {
            self.keep(&record)?;
        }
        if record.driver_state == State::Detached && after != State::Detached {
            record.asked = true;
            self.keep(&AttachmentRecord { datapaths: others.clone(), ..record.clone() })?;
            step!("core.attach_recorded");
        }
        if let (Step::Attach(_), Some(mode)) = (step, record.driver_state.mode()) {
            // The images may have changed since, by a snapshot for instance.
            self.tell_driver(op, &mut record, Step::Attach(mode)).await?;
        }
        let followed = self.follow(op, &mut record).await;
        if followed.is_err() && matches!(step, Step::Attach(_) | Step::Activate(_)) {
            // A step up that failed has not happened.
            record.datapaths = others;
            self.keep(&record)?;
            if !record.asked
                && let Err(error) = self.follow(op, &mut record).await
            {
                tracing::warn!(%vdi, %error, "a step that failed is not yet undone");
            }
        }
        self.keep(&record)?;
        followed?;
        if before != after {
            self.event(Event::VdiChanged { sr: self.uuid(), vdi });
        }
        Ok(record)
    }

    /// Finishes what an earlier call could not, and keeps the record of it.
    pub(crate) async fn finish(&self, op: &Op, record: &mut AttachmentRecord) -> Result<()> {
        let finished = async {
            self.settle_move(record.vdi).await?;
            if record.asked {
                // Whoever asked has no answer, so nobody uses what there may be.
                let vdi = record.vdi;
                self.end_datapath(record).await?;
                self.tell_driver(op, record, Step::Detach)
                    .await
                    .map_err(|e| e.context("vdi", vdi))?;
                record.asked = false;
                record.driver_state = State::Detached;
            }
            self.follow(op, record).await
        }
        .await;
        self.keep(record)?;
        finished
    }

    /// Brings the driver to what the datapaths need. The record then says how far it came, also
    /// after an error: the caller keeps it.
    async fn follow(&self, op: &Op, record: &mut AttachmentRecord) -> Result<()> {
        let mut target = State::superstate(record.datapaths.values().map(Datapath::state));
        // Writing stays writing until the last one leaves: lowering it would cut off the readers.
        target = match (record.driver_state.mode(), target) {
            (Some(AttachMode::ReadWrite), State::Attached(_)) => {
                State::Attached(AttachMode::ReadWrite)
            }
            (Some(AttachMode::ReadWrite), State::Activated(_)) => {
                State::Activated(AttachMode::ReadWrite)
            }
            (_, target) => target,
        };
        let steps = record.driver_state.steps_to(target).map_err(|illegal| {
            Error::new(Kind::InUse, format!("VDI {}: {illegal}", record.vdi)).legacy(46)
        })?;
        let vdi = record.vdi;
        let down = |step: &Step| matches!(step, Step::Deactivate | Step::Detach);
        let mut most = record.wanted();
        if steps.iter().any(down) {
            most = most.min(if steps.contains(&Step::Detach) {
                Wanted::Nothing
            } else {
                Wanted::Attached
            });
        }
        self.lower_datapath(record, most).await?;
        for step in steps {
            let told = self.tell_driver(op, record, step).await;
            if matches!(step, Step::Attach(_)) && !told.as_ref().is_err_and(leaves_doubt) {
                record.asked = false;
            }
            told.map_err(|e| e.context("vdi", vdi))?;
            record.driver_state = record
                .driver_state
                .after(step)
                .map_err(|illegal| Error::internal(format!("a wrong step: {illegal}")))?;
        }
        self.raise_datapath(op, record).await
    }

    /// Has the data path of a VDI do no more than `most`. It comes before the driver is told.
    async fn lower_datapath(&self, record: &mut AttachmentRecord, most: Wanted) -> Result<()> {
        if !record.served || most == Wanted::Active {
            return Ok(());
        }
        if most == Wanted::Nothing {
            return self.end_datapath(record).await;
        }
        let (vdi, left) = (record.vdi, record.left());
        let datapaths = self.manager.inner.datapaths.clone();
        blocking(move || datapaths.deactivate(vdi, left.as_ref())).await
    }

    async fn end_datapath(&self, record: &mut AttachmentRecord) -> Result<()> {
        let (vdi, left) = (record.vdi, record.left());
        let datapaths = self.manager.inner.datapaths.clone();
        blocking(move || datapaths.end(vdi, left.as_ref())).await?;
        record.served = false;
        record.remote = None;
        Ok(())
    }

    /// Has the data path of a VDI do what its holders need, whatever has become of it. It comes
    /// after the driver was told.
    async fn raise_datapath(&self, op: &Op, record: &mut AttachmentRecord) -> Result<()> {
        let wanted = record.wanted();
        if wanted == Wanted::Nothing || record.plan().is_none() {
            record.access.clone_from(&record.images);
            return Ok(());
        }
        let vdi = record.vdi;
        if self.moved(vdi)?.is_some() {
            // What stays behind is nobody's disk.
            return Ok(());
        }
        if !record.served {
            // Recorded before it is there, so that it is found whatever happens.
            record.served = true;
            self.keep(record)?;
        }
        let datapaths = self.manager.inner.datapaths.clone();
        let (access, status) = blocking({
            let datapaths = datapaths.clone();
            move || datapaths.start_and_ask(vdi)
        })
        .await?;
        record.access = vec![access];
        self.raise_remote(record, Some(&status)).await;
        if wanted != Wanted::Active || is_active(&status) {
            return Ok(());
        }
        let mut refused: Option<(Plan, Error)> = None;
        loop {
            if let State::Activated(mode) = record.driver_state {
                // It tells the images as they are now.
                self.tell_driver(op, record, Step::Activate(mode)).await?;
            }
            let Some(plan) = record.plan() else { return Ok(()) };
            match refused {
                Some((before, error)) if before == plan => return Err(error),
                _ => {}
            }
            let (epoch, limits) = (record.epoch, record.limits);
            let tracking = record.tracking(&datapaths.place(vdi));
            let activate = {
                let (datapaths, plan) = (datapaths.clone(), plan.clone());
                move || datapaths.activate(vdi, plan, tracking, epoch, limits)
            };
            match blocking(activate).await {
                Err(error) if may_be_of_before(&error) => refused = Some((plan, error)),
                done => return done,
            }
        }
    }

    /// Ends data paths whose VDI nobody holds, by any record.
    pub(crate) async fn end_deserted_datapaths(&self) -> Result<()> {
        let inner = &self.manager.inner;
        for vdi in inner.datapaths.all()? {
            let held = || -> Result<bool> {
                let records = inner.catalog.list::<AttachmentRecord>("attach/")?;
                let of_now = |record: &AttachmentRecord| record.boot == inner.boot;
                Ok(records.iter().any(|(_, record)| record.vdi == vdi && of_now(record)))
            };
            if held()? {
                continue;
            }
            // Whoever attaches it records that before anything is there.
            let Some(_lock) = inner.locks.try_take(&Lock::vdi(vdi))? else { continue };
            if held()? {
                continue;
            }
            self.settle_move(vdi).await?;
            let datapaths = inner.datapaths.clone();
            blocking(move || datapaths.end(vdi, None)).await?;
            tracing::info!(%vdi, "ended a data path that nobody needs");
        }
        Ok(())
    }

    async fn tell_driver(&self, op: &Op, record: &mut AttachmentRecord, step: Step) -> Result<()> {
        let vdi = record.vdi;
        let (_, port) = self.manager.session(op, self.uuid()).await?;
        let port = port.as_ref();
        match step {
            Step::Attach(mode) => {
                let call = op.part("attach").call(Operation::VdiAttach);
                let request = VdiAttach { vdi, mode };
                let attached = self.within(port::call(port, call, &request)).await?;
                step!("vdi_attach.driver_answered");
                record.images = attached.access;
            }
            Step::Activate(mode) => {
                let call = op.part("activate").call(Operation::VdiActivate);
                let served = record.plan().is_some() && record.wanted() != Wanted::Nothing;
                let request = VdiActivate { vdi, mode, tracked: record.is_tracked(served) };
                let done = self.within(port::call(port, call, &request)).await?;
                step!("vdi_activate.driver_answered");
                if !done.access.is_empty() {
                    record.images = done.access;
                }
                record.epoch = done.epoch.unwrap_or(0);
            }
            Step::Deactivate => {
                let call = op.part("deactivate").call(Operation::VdiDeactivate);
                self.within(port::call(port, call, &VdiDeactivate { vdi })).await?;
                step!("vdi_deactivate.driver_answered");
            }
            Step::Detach => {
                let call = op.part("detach").call(Operation::VdiDetach);
                self.within(port::call(port, call, &VdiDetach { vdi })).await?;
                step!("vdi_detach.driver_answered");
                record.access.clear();
                record.images.clear();
            }
        }
        Ok(())
    }

    /// The record of a VDI, if it is of this boot of the host.
    pub(crate) fn attachment(&self, vdi: VdiUuid) -> Result<Option<AttachmentRecord>> {
        let found = self.manager.inner.catalog.get::<AttachmentRecord>(&self.attach_key(vdi))?;
        Ok(found.map(|found| found.record).filter(|found| found.boot == self.manager.inner.boot))
    }

    pub(crate) fn keep(&self, record: &AttachmentRecord) -> Result<()> {
        let key = self.attach_key(record.vdi);
        let held = !record.datapaths.is_empty() || record.served || record.asked;
        if !held && record.driver_state == State::Detached {
            return self.manager.inner.catalog.remove(&key, false);
        }
        self.manager.inner.catalog.set(&key, record, false)
    }

    fn attach_key(&self, vdi: VdiUuid) -> String {
        key(self.uuid(), vdi)
    }

    async fn refuse_second_writer(
        &self,
        op: &Op,
        record: &AttachmentRecord,
        datapath: &str,
    ) -> Result<()> {
        let writing = State::Activated(AttachMode::ReadWrite);
        let other = record
            .datapaths
            .iter()
            .find(|(name, held)| *name != datapath && held.state() == writing);
        let Some((other, _)) = other else { return Ok(()) };
        if self.read(op, &VdiStat::of(record.vdi)).await?.sharable {
            return Ok(());
        }
        Err(Error::new(Kind::InUse, format!("VDI {} is being written by {other:?}", record.vdi))
            .legacy(24)
            .context("vdi", record.vdi)
            .hint("deactivate it there first"))
    }
}

fn incomplete(vdi: VdiUuid) -> Error {
    Error::busy(format!(
        "VDI {vdi} is not complete: an import or copy is filling it, or was interrupted"
    ))
    .hint("smctl job list shows which; resume it, or destroy the VDI")
}
