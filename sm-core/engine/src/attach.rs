//! Attaching VDIs on this host.
//!
//! The rules are those of xapi's wrapper: the effect first, then the record, and every effect
//! can be repeated. A step that failed leaves a record that says what the driver was last told
//! (`driver_state`); the next operation on the VDI starts by going from there to what the
//! datapaths need. Before the driver is asked to attach, that it will be is recorded: what a crash
//! leaves attached for nobody is found, and taken back.

use std::collections::BTreeMap;

use sm_loader::port;
use sm_model::vdi::{VdiActivate, VdiAttach, VdiDeactivate, VdiDetach, VdiStat};
use sm_model::{Access, AttachMode, Error, Kind, Operation, Result, VdiUuid};
use sm_step::step;

use crate::automaton::{State, Step};
use crate::catalog::{AttachmentRecord, Datapath};
use crate::events::Event;
use crate::journal::leaves_doubt;
use crate::op::Op;
use crate::sr::Sr;

impl Datapath {
    /// Its state.
    pub fn state(&self) -> State {
        if self.activated { State::Activated(self.mode) } else { State::Attached(self.mode) }
    }
}

impl Sr {
    /// Makes a VDI reachable for `datapath` (any name the caller chooses: a VM's disk, an export)
    /// and says how. No I/O before [`Self::vdi_activate`]. Attaching again gives the same answer.
    pub async fn vdi_attach(
        &self,
        op: &Op,
        vdi: VdiUuid,
        datapath: &str,
        mode: AttachMode,
    ) -> Result<Vec<Access>> {
        if self.read(op, &VdiStat::of(vdi)).await?.incomplete {
            return Err(incomplete(vdi));
        }
        self.attach_any(op, vdi, datapath, mode).await
    }

    /// As [`Self::vdi_attach`], also of a VDI that is being filled.
    pub(crate) async fn attach_any(
        &self,
        op: &Op,
        vdi: VdiUuid,
        datapath: &str,
        mode: AttachMode,
    ) -> Result<Vec<Access>> {
        Ok(self.step(op, vdi, datapath, Step::Attach(mode)).await?.access)
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
        let mut record = self.attachment(vdi)?.unwrap_or_else(|| AttachmentRecord {
            vdi,
            datapaths: BTreeMap::new(),
            access: Vec::new(),
            driver_state: State::Detached,
            asked: false,
            boot: self.manager.inner.boot.clone(),
        });
        // First finish what an earlier call could not: a detach that failed, for instance.
        self.finish(op, &mut record).await?;

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
            // What the driver holds for a state directory that was lost ends here too.
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
        let followed = self.follow(op, &mut record).await;
        if followed.is_err() && matches!(step, Step::Attach(_) | Step::Activate(_)) {
            // A step up that failed has not happened.
            record.datapaths = others;
        }
        self.keep(&record)?;
        followed?;
        if before != after {
            self.event(Event::VdiChanged { sr: self.uuid(), vdi });
        }
        Ok(record)
    }

    /// Finishes what an earlier call could not, and keeps the record of it.
    async fn finish(&self, op: &Op, record: &mut AttachmentRecord) -> Result<()> {
        let finished = async {
            if record.asked {
                // Whoever asked has no answer, so nobody uses what there may be.
                let vdi = record.vdi;
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
        for step in steps {
            let vdi = record.vdi;
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
                record.access = attached.access;
            }
            Step::Activate(mode) => {
                let call = op.part("activate").call(Operation::VdiActivate);
                self.within(port::call(port, call, &VdiActivate { vdi, mode })).await?;
                step!("vdi_activate.driver_answered");
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
            }
        }
        Ok(())
    }

    /// The record of a VDI, if it is of this boot of the host.
    fn attachment(&self, vdi: VdiUuid) -> Result<Option<AttachmentRecord>> {
        let found = self.manager.inner.catalog.get::<AttachmentRecord>(&self.attach_key(vdi))?;
        Ok(found.map(|found| found.record).filter(|found| found.boot == self.manager.inner.boot))
    }

    fn keep(&self, record: &AttachmentRecord) -> Result<()> {
        let key = self.attach_key(record.vdi);
        if record.datapaths.is_empty() && record.driver_state == State::Detached && !record.asked {
            return self.manager.inner.catalog.remove(&key, false);
        }
        self.manager.inner.catalog.set(&key, record, false)
    }

    fn attach_key(&self, vdi: VdiUuid) -> String {
        format!("attach/{}/{vdi}", self.uuid())
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

    /// Refuses if the VDI is attached, unless the driver has the `live` capability. With a mode,
    /// only an attachment of that mode counts.
    pub(crate) async fn refuse_if_attached(
        &self,
        op: &Op,
        vdi: VdiUuid,
        live: &str,
        mode: Option<AttachMode>,
    ) -> Result<()> {
        let Some(mut record) = self.attachment(vdi)? else { return Ok(()) };
        self.finish(op, &mut record).await?;
        let held = record.driver_state.mode();
        if held.is_none() || mode.is_some_and(|mode| held != Some(mode)) {
            return Ok(());
        }
        if self.driver_manifest()?.can(live) {
            return Ok(());
        }
        Err(Error::new(Kind::InUse, format!("VDI {vdi} is attached by {}", holders(&record)))
            .legacy(24)
            .context("vdi", vdi)
            .hint(detach_hint(&record)))
    }

    pub(crate) fn refuse_if_any_attached(&self) -> Result<()> {
        let attached = self.attachments()?;
        let Some(first) = attached.first() else { return Ok(()) };
        Err(Error::new(
            Kind::InUse,
            format!(
                "{} VDIs of SR {} are attached, among them {} by {}",
                attached.len(),
                self.uuid(),
                first.vdi,
                holders(first)
            ),
        )
        .legacy(16)
        .hint("detach them first; smctl vdi list --attached shows them"))
    }
}

fn incomplete(vdi: VdiUuid) -> Error {
    Error::busy(format!(
        "VDI {vdi} is not complete: an import or copy is filling it, or was interrupted"
    ))
    .hint("smctl job list shows which; resume it, or destroy the VDI")
}

fn detach_hint(record: &AttachmentRecord) -> String {
    let commands: Vec<String> = record
        .datapaths
        .keys()
        .map(|name| format!("smctl vdi detach {} --datapath {name}", record.vdi))
        .collect();
    commands.join("; ")
}

fn holders(record: &AttachmentRecord) -> String {
    let names: Vec<String> = record.datapaths.keys().map(|name| format!("{name:?}")).collect();
    if names.is_empty() { "nobody any more".to_owned() } else { names.join(", ") }
}
