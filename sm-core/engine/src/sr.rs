//! Operations on an SR and its VDIs.

use std::collections::BTreeMap;
use std::future::Future;

use sm_loader::port;
use sm_model::manifest::feature;
use sm_model::sr::{
    SrDestroy, SrDetach, SrDone, SrFence, SrFenced, SrInfo, SrRecover, SrRecovered, SrScan, SrStat,
    SrUpdate,
};
use sm_model::vdi::{
    VdiCheck, VdiChecked, VdiClone, VdiCreate, VdiDestroy, VdiDestroyed, VdiDone, VdiForest,
    VdiInfo, VdiIntroduce, VdiResize, VdiRevert, VdiStat, VdiTree, VdiType, VdiUpdate,
};
use sm_model::{
    AttachMode, Bytes, Error, HostId, ImageFormat, Kind, Manifest, Request, Result, SrUuid,
    VdiUuid, name,
};
use sm_step::step;

use crate::catalog::SrRecord;
use crate::events::Event;
use crate::journal::{self, Begin};
use crate::locks::Lock;
use crate::manager::StorageManager;
use crate::marks::check_key;
use crate::op::Op;
use crate::qos::with_limits;
use crate::select::select;

/// A VDI to make.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct NewVdi {
    /// The UUID; one that follows from the operation id if absent.
    pub uuid: Option<VdiUuid>,
    /// Name.
    pub name: String,
    /// Description.
    pub description: String,
    /// Size in bytes; for import and copy 0 means the source's.
    pub virtual_size: Bytes,
    /// Format; the driver's choice if absent.
    pub format: Option<ImageFormat>,
    /// What it is for.
    pub vdi_type: VdiType,
    /// Whether several may write at once.
    pub sharable: bool,
    /// The user's own keys.
    pub keys: BTreeMap<String, String>,
}

/// A snapshot to take.
#[derive(Clone, Debug)]
pub struct NewSnapshot {
    /// Of this VDI.
    pub vdi: VdiUuid,
    /// Name.
    pub name: String,
    /// Description.
    pub description: String,
}

/// What a scan found and did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Scan {
    /// The VDIs.
    pub vdis: Vec<VdiInfo>,
    /// What was finished, undone and removed before.
    pub recovered: SrRecovered,
}

/// An SR of a [`StorageManager`]. Cheap to clone.
#[derive(Clone)]
pub struct Sr {
    pub(crate) manager: StorageManager,
    pub(crate) record: SrRecord,
}

impl Sr {
    /// The record, as it was when the SR was looked up.
    pub fn record(&self) -> &SrRecord {
        &self.record
    }

    /// Its UUID.
    pub fn uuid(&self) -> SrUuid {
        self.record.uuid
    }

    // Life of the SR -----------------------------------------------------------------------------

    /// Makes the SR usable on this host; finishes or undoes what a crash left half done.
    pub async fn attach(&self, op: &Op) -> Result<SrRecovered> {
        let _held = self.manager.lock(op, &[Lock::sr(self.uuid())]).await?;
        let Some(record) = self.manager.record(self.uuid())? else {
            return Err(self.gone());
        };
        let port = self
            .manager
            .open_session(op, record.uuid, &record.driver, &record.device_config)
            .await?;
        let recovered = self.within(self.manager.attach_on_backend(op, port.as_ref())).await?;
        self.manager.change_record(record.uuid, |known| {
            known.attached = true;
            known.attached_in_boot.clone_from(&self.manager.inner.boot);
        })?;
        self.event(Event::SrChanged { sr: record.uuid });
        Ok(recovered)
    }

    /// Lets go of the SR on this host. Refused while one of its VDIs is attached.
    pub async fn detach(&self, op: &Op) -> Result<()> {
        let _held = self.manager.lock(op, &[Lock::sr(self.uuid())]).await?;
        let Some(record) = self.manager.record(self.uuid())? else {
            return Err(self.gone());
        };
        self.refuse_if_any_attached()?;
        if record.attached {
            if record.attached_in_boot == self.manager.inner.boot {
                let (_, port) = self.manager.session(op, record.uuid).await?;
                let call = op.call(sm_model::Operation::SrDetach);
                self.within(port::call(port.as_ref(), call, &SrDetach {})).await?;
            }
            self.manager.change_record(record.uuid, |known| known.attached = false)?;
        }
        self.manager.end_session(record.uuid).await;
        self.event(Event::SrChanged { sr: record.uuid });
        Ok(())
    }

    /// Removes the SR from this installation; nothing on the backend changes. It must be
    /// detached.
    pub async fn forget(&self, op: &Op) -> Result<()> {
        let _held = self.manager.lock(op, &[Lock::sr(self.uuid())]).await?;
        let Some(record) = self.manager.record(self.uuid())? else { return Ok(()) };
        if record.attached {
            return Err(Error::new(Kind::InUse, format!("SR {} is attached", record.uuid))
                .legacy(16)
                .hint(format!("smctl sr detach {}", record.uuid)));
        }
        self.remove_record()
    }

    /// Removes the SR from the backend and from this installation. It must hold no VDI.
    pub async fn destroy(&self, op: &Op) -> Result<()> {
        let locks = [Lock::operation(op.id), Lock::sr(self.uuid())];
        let _held = self.manager.lock(op, &locks).await?;
        if self.manager.record(self.uuid())?.is_none() {
            return Ok(());
        }
        self.refuse_if_any_attached()?;
        self.perform_locked(op, &SrDestroy {}).await?;
        step!("sr_destroy.destroyed_on_backend");
        self.manager.end_session(self.uuid()).await;
        self.remove_record()
    }

    /// Changes name or description, on the storage first.
    pub async fn update(&self, op: &Op, update: SrUpdate) -> Result<SrDone> {
        if let Some(name) = &update.name {
            name::check_name(name)?;
        }
        if let Some(description) = &update.description {
            name::check_description(description)?;
        }
        let _held = self.manager.lock(op, &[Lock::operation(op.id), Lock::sr(self.uuid())]).await?;
        let done = self.perform_locked(op, &update).await?;
        self.manager.change_record(self.uuid(), |known| {
            if let Some(name) = &update.name {
                known.name.clone_from(name);
            }
            if let Some(description) = &update.description {
                known.description.clone_from(description);
            }
        })?;
        self.event(Event::SrChanged { sr: self.uuid() });
        Ok(done)
    }

    /// Takes from another host what it has of the SR: for one that is gone for good, or hangs.
    pub async fn fence(&self, op: &Op, host: &HostId) -> Result<SrFenced> {
        let locks = [Lock::operation(op.id), Lock::sr_shared(self.uuid())];
        let _held = self.manager.lock(op, &locks).await?;
        let done = self.perform_locked(op, &SrFence { host: host.clone() }).await?;
        self.event(Event::SrChanged { sr: self.uuid() });
        Ok(done)
    }

    /// Space and health.
    pub async fn stat(&self, op: &Op) -> Result<SrInfo> {
        let info = self.read(op, &SrStat {}).await?;
        // The storage's name is the name: somebody else may have changed it.
        if let Some(record) = self.manager.record(self.uuid())?
            && (&record.name, &record.description) != (&info.name, &info.description)
        {
            self.manager.change_record(self.uuid(), |known| {
                known.name.clone_from(&info.name);
                known.description.clone_from(&info.description);
            })?;
        }
        Ok(info)
    }

    /// Finishes or undoes what a crash left half done, settles operations whose outcome was not
    /// known, and lists the VDIs.
    pub async fn scan(&self, op: &Op) -> Result<Scan> {
        let recover = op.part("recover");
        let recovered = {
            let _held = self.manager.lock(op, &[Lock::sr_shared(self.uuid())]).await?;
            let (_, port) = self.manager.session(op, self.uuid()).await?;
            let call = recover.call(sm_model::Operation::SrRecover);
            match self.within(port::call(port.as_ref(), call, &SrRecover {})).await {
                Err(error) if error.kind == Kind::Unsupported => SrRecovered::default(),
                other => other?,
            }
        };
        self.release_dead_jobs(op).await?;
        self.end_deserted_datapaths().await?;
        self.settle(op).await?;
        if journal::prune(&self.manager.inner.catalog)? {
            self.manager.prune_jobs()?;
        }
        self.manager.inner.locks.sweep()?;
        Ok(Scan { vdis: self.vdis(op).await?, recovered })
    }

    /// Lists the VDIs, the damaged ones too.
    pub async fn vdis(&self, op: &Op) -> Result<Vec<VdiInfo>> {
        let mut vdis = Vec::new();
        let mut cursor = None;
        loop {
            let page = self.read(op, &SrScan { cursor: cursor.clone() }).await?;
            vdis.extend(page.vdis.into_iter().map(with_limits));
            match page.next {
                None => return Ok(vdis),
                // A driver that turns in a circle must not hang us.
                next if next == cursor => {
                    return Err(Error::internal(format!(
                        "the driver {} answers the same page of SR {} again and again",
                        self.record.driver,
                        self.uuid()
                    )));
                }
                next => cursor = next,
            }
        }
    }

    /// Describes one VDI; with `space` also what it would give back, whatever that costs.
    pub async fn vdi_stat(&self, op: &Op, vdi: VdiUuid, space: bool) -> Result<VdiInfo> {
        self.read(op, &VdiStat { vdi, space }).await.map(with_limits)
    }

    /// What depends on what, base copies included.
    pub async fn tree(&self, op: &Op) -> Result<VdiForest> {
        self.read(op, &VdiTree {}).await
    }

    /// The VDI that `selector` means: its UUID, the beginning of it (4 characters or more), or
    /// its name.
    pub async fn vdi(&self, op: &Op, selector: &str) -> Result<VdiInfo> {
        if let Ok(uuid) = selector.parse::<VdiUuid>() {
            return self.read(op, &VdiStat::of(uuid)).await.map(with_limits);
        }
        let vdis = self.vdis(op).await?;
        select("VDI", selector, &vdis, |vdi| vdi.uuid.0, |vdi| &vdi.name).cloned()
    }

    // VDIs ---------------------------------------------------------------------------------------

    /// Makes an empty VDI.
    pub async fn vdi_create(&self, op: &Op, new: NewVdi) -> Result<VdiDone> {
        self.create(op, new, false).await
    }

    /// Makes a VDI that is marked as being filled, for import and copy.
    pub(crate) async fn create(&self, op: &Op, new: NewVdi, incomplete: bool) -> Result<VdiDone> {
        check_texts(&new.name, &new.description)?;
        for (key, value) in &new.keys {
            check_key(key, value)?;
        }
        if new.virtual_size.0 == 0 {
            return Err(Error::new(Kind::Limit, "the size of a VDI must be above 0")
                .legacy_detail(79, "VDI size must be above 0")
                .hint("give a size such as 10GiB"));
        }
        let request = VdiCreate {
            uuid: new.uuid.unwrap_or_else(|| op.id.vdi(0)),
            name: new.name,
            description: new.description,
            virtual_size: new.virtual_size,
            format: new.format,
            vdi_type: new.vdi_type,
            sharable: new.sharable,
            keys: new.keys,
            incomplete,
        };
        let done = self.perform(op, &[request.uuid], &request).await?;
        self.event(Event::VdiAdded { sr: self.uuid(), vdi: request.uuid });
        Ok(done)
    }

    /// Adopts an image that already lies on the backend.
    pub async fn vdi_introduce(&self, op: &Op, request: VdiIntroduce) -> Result<VdiDone> {
        check_texts(&request.name, &request.description)?;
        for (key, value) in &request.keys {
            check_key(key, value)?;
        }
        let done = self.perform(op, &[request.uuid], &request).await?;
        self.event(Event::VdiAdded { sr: self.uuid(), vdi: request.uuid });
        Ok(done)
    }

    /// Changes name, description, type or keys, on the storage.
    pub async fn vdi_update(&self, op: &Op, request: VdiUpdate) -> Result<VdiDone> {
        check_texts(
            request.name.as_deref().unwrap_or_default(),
            request.description.as_deref().unwrap_or_default(),
        )?;
        for (key, value) in &request.keys {
            check_key(key, value.as_deref().unwrap_or_default())?;
        }
        let done = self.perform(op, &[request.vdi], &request).await?;
        self.event(Event::VdiChanged { sr: self.uuid(), vdi: request.vdi });
        Ok(done)
    }

    /// Makes a VDI larger.
    pub async fn vdi_resize(&self, op: &Op, vdi: VdiUuid, size: Bytes) -> Result<VdiDone> {
        let request = VdiResize { vdi, virtual_size: size };
        let locks = self.vdi_locks(op, &[vdi]);
        let _held = self.manager.lock(op, &locks).await?;
        self.refuse_resize(op, vdi).await?;
        let _paused = self.manager.inner.datapaths.let_go(op.id, &[vdi]);
        let done = self.perform_locked(op, &request).await?;
        self.event(Event::VdiChanged { sr: self.uuid(), vdi });
        Ok(done)
    }

    /// Makes a writable VDI from a VDI or a snapshot.
    pub async fn vdi_clone(
        &self,
        op: &Op,
        vdi: VdiUuid,
        name: &str,
        description: &str,
    ) -> Result<VdiDone> {
        check_texts(name, description)?;
        let request = VdiClone {
            vdi,
            uuid: op.id.vdi(0),
            name: name.to_owned(),
            description: description.to_owned(),
        };
        let locks = self.vdi_locks(op, &[vdi, request.uuid]);
        let _held = self.manager.lock(op, &locks).await?;
        let writing = Some(AttachMode::ReadWrite);
        self.refuse_unless_live(op, vdi, feature::LIVE_SNAPSHOT, writing).await?;
        let _paused = self.manager.inner.datapaths.let_go(op.id, &[vdi]);
        let done = self.perform_locked(op, &request).await?;
        self.event(Event::VdiAdded { sr: self.uuid(), vdi: request.uuid });
        Ok(done)
    }

    /// Puts a VDI back to a snapshot of it.
    pub async fn vdi_revert(&self, op: &Op, vdi: VdiUuid, snapshot: VdiUuid) -> Result<VdiDone> {
        let _held = self.manager.lock(op, &self.vdi_locks(op, &[vdi, snapshot])).await?;
        self.refuse_if_attached(op, vdi, "", None).await?;
        let done = self.perform_locked(op, &VdiRevert { vdi, snapshot }).await?;
        self.event(Event::VdiChanged { sr: self.uuid(), vdi });
        Ok(done)
    }

    /// Removes a VDI. Refused while it is attached.
    pub async fn vdi_destroy(&self, op: &Op, vdi: VdiUuid) -> Result<VdiDestroyed> {
        let _held = self.manager.lock(op, &self.vdi_locks(op, &[vdi])).await?;
        self.refuse_if_attached(op, vdi, "", None).await?;
        let done = self.perform_locked(op, &VdiDestroy { vdi }).await?;
        // The disk may come back from where it went, under its UUID.
        if self.moved(vdi)?.is_some() {
            self.forget_move(vdi)?;
        }
        self.event(Event::VdiRemoved { sr: self.uuid(), vdi });
        Ok(done)
    }

    /// Examines the structure of a VDI and of all it is based on.
    pub async fn vdi_check(&self, op: &Op, vdi: VdiUuid) -> Result<VdiChecked> {
        self.read(op, &VdiCheck { vdi }).await
    }

    // The way to the driver ----------------------------------------------------------------------

    /// A reading operation.
    pub(crate) async fn read<R: Request>(&self, op: &Op, request: &R) -> Result<R::Reply> {
        let (_, port) = self.manager.session(op, self.uuid()).await?;
        self.within(port::call(port.as_ref(), op.call(R::OPERATION), request)).await
    }

    /// A changing operation on some VDIs: locked, journalled, replayable.
    pub(crate) async fn perform<R: Request>(
        &self,
        op: &Op,
        vdis: &[VdiUuid],
        request: &R,
    ) -> Result<R::Reply> {
        let _held = self.manager.lock(op, &self.vdi_locks(op, vdis)).await?;
        self.perform_locked(op, request).await
    }

    /// As [`Self::perform`], by a caller that holds the locks.
    pub(crate) async fn perform_locked<R: Request>(
        &self,
        op: &Op,
        request: &R,
    ) -> Result<R::Reply> {
        op.check_cancelled()?;
        let catalog = &self.manager.inner.catalog;
        let (_, port) = self.manager.session(op, self.uuid()).await?;
        if let Begin::Replay(reply) = journal::begin(catalog, op.id, self.uuid(), request)? {
            return Ok(reply);
        }
        step!("core.intent_recorded");
        match self.within(port::call(port.as_ref(), op.call(R::OPERATION), request)).await {
            Ok(reply) => {
                step!("core.driver_answered");
                journal::finish::<R>(catalog, op.id, &reply)?;
                step!("core.answer_recorded");
                Ok(reply)
            }
            Err(error) => {
                if journal::leaves_doubt(&error) {
                    let id = op.id;
                    return Err(error.context("operation_id", id));
                }
                journal::forget(catalog, op.id)?;
                Err(error)
            }
        }
    }

    /// Settles the operations of this SR whose outcome is not known, by looking at the storage.
    /// Nothing is done again: what has not happened is left to a retry by its caller.
    async fn settle(&self, op: &Op) -> Result<()> {
        let catalog = &self.manager.inner.catalog;
        for (id, entry) in journal::in_doubt(catalog, self.uuid())? {
            // Whoever holds it is still working on it.
            let Some(_held) = self.manager.inner.locks.try_take(&Lock::operation(id))? else {
                continue;
            };
            let settled = match journal::operation(&entry) {
                Some(sm_model::Operation::VdiCreate) => {
                    self.settle_made::<VdiCreate>(op, id, &entry.request, |r| r.uuid).await?
                }
                Some(sm_model::Operation::VdiClone) => {
                    self.settle_made::<VdiClone>(op, id, &entry.request, |r| r.uuid).await?
                }
                // The others are the same when repeated; the driver knows the last operation it
                // did on a VDI and answers `already`.
                _ => false,
            };
            if !settled {
                journal::forget(catalog, id)?;
            }
            tracing::info!(sr = %self.uuid(), operation = entry.operation, %id, done = settled,
                "settled an operation whose outcome was not known");
        }
        Ok(())
    }

    async fn settle_made<R: Request<Reply = VdiDone>>(
        &self,
        op: &Op,
        id: sm_model::OperationId,
        request: &serde_json::Value,
        uuid: impl Fn(&R) -> VdiUuid,
    ) -> Result<bool> {
        let Ok(request) = serde_json::from_value::<R>(request.clone()) else { return Ok(false) };
        match self.read(op, &VdiStat::of(uuid(&request))).await {
            Ok(vdi) => {
                let reply = VdiDone { changed: sm_model::Changed::Created, vdi };
                journal::finish::<R>(&self.manager.inner.catalog, id, &reply)?;
                Ok(true)
            }
            Err(error) if error.kind == Kind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The time in a snapshot request that this operation id has journalled before.
    pub(crate) fn journalled_time(&self, op: &Op) -> Result<Option<u64>> {
        let entry = journal::find(&self.manager.inner.catalog, op.id)?;
        Ok(entry.and_then(|entry| entry.request.get("time")?.as_u64()))
    }

    pub(crate) fn vdi_locks(&self, op: &Op, vdis: &[VdiUuid]) -> Vec<Lock> {
        let mut locks = vec![Lock::operation(op.id), Lock::sr_shared(self.uuid())];
        locks.extend(vdis.iter().copied().map(Lock::vdi));
        locks
    }

    pub(crate) fn driver_manifest(&self) -> Result<Manifest> {
        self.manager.manifest(&self.record.driver)
    }

    pub(crate) fn require(&self, capability: &str) -> Result<()> {
        if self.driver_manifest()?.can(capability) {
            return Ok(());
        }
        Err(Error::unsupported(format!(
            "the driver {} does not offer {capability}",
            self.record.driver
        )))
    }

    pub(crate) async fn within<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        work.await.map_err(|error| error.context("sr", self.uuid()))
    }

    pub(crate) fn event(&self, event: Event) {
        // Nobody has to watch.
        let _ = self.manager.inner.events.send(event);
    }

    fn gone(&self) -> Error {
        Error::not_found(format!("SR {} is not known any more", self.uuid())).legacy(47)
    }

    fn remove_record(&self) -> Result<()> {
        let inner = &self.manager.inner;
        for (key, _) in inner.catalog.list::<serde_json::Value>(&format!("kv/{}/", self.uuid()))? {
            inner.catalog.remove(&key, false)?;
        }
        inner.catalog.remove(&format!("sr/{}", self.uuid()), true)?;
        inner.secrets.remove(self.uuid())?;
        self.event(Event::SrRemoved { sr: self.uuid() });
        Ok(())
    }
}

fn check_texts(name: &str, description: &str) -> Result<()> {
    name::check_name(name)?;
    name::check_description(description)
}
