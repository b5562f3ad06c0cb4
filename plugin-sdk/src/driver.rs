//! The trait a driver implements.

use std::future::ready;

use sm_model::operation::Request;
use sm_model::sr::{
    SrAttach, SrCreate, SrCreated, SrDestroy, SrDetach, SrDone, SrFence, SrFenced, SrInfo,
    SrMaintain, SrMaintained, SrProbed, SrRecover, SrRecovered, SrScan, SrScanned, SrStat,
    SrUpdate,
};
use sm_model::vdi::{
    VdiActivate, VdiAttach, VdiAttached, VdiCbt, VdiChanged, VdiChanges, VdiCheck, VdiChecked,
    VdiClone, VdiCreate, VdiDatapathDone, VdiDeactivate, VdiDestroy, VdiDestroyed, VdiDetach,
    VdiDone, VdiForest, VdiInfo, VdiIntroduce, VdiQos, VdiReclaim, VdiReclaimed, VdiResize,
    VdiRevert, VdiSnapshot, VdiSnapshotPrepare, VdiSnapshotPrepared, VdiStat, VdiTree, VdiUpdate,
    VdisDone,
};
use sm_model::{Error, Operation, Result, SrUuid};

use crate::config::{DeviceConfig, RawConfig};
use crate::cx::Cx;
use crate::export::resolve;
use crate::manifest::Manifest;

/// Whether an opened driver works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionHealth {
    /// It does.
    #[default]
    Ok,
    /// It does, with restrictions that it has logged.
    Degraded,
    /// It must be opened anew.
    Poisoned,
}

/// A driver, opened for one SR. The methods may be written as plain `async fn`.
///
/// An operation that is not implemented answers with an `unsupported` error; one that is
/// implemented must also stand in the manifest.
///
/// # The rules of every operation
///
/// **The same call twice.** Any call can come again with the same request and the same
/// [operation id](Cx::operation_id): the answer was lost, or the host died in between. What is
/// already as asked is success with [`Changed::Already`](sm_model::Changed::Already); something
/// else under the same UUID is an `exists` error. New objects bear the UUID of the request, so
/// that a replay finds them. The storage is the truth: what a restart would lose is kept nowhere
/// else.
///
/// **Several at once.** Calls run concurrently. The host calls no two mutating operations on the
/// same VDI at once; operations of the SR and of different VDIs can meet.
///
/// **Time and cancel.** A *reading* operation is dropped at its next `.await` when the caller
/// cancels or the time is over. A *mutating* one is never dropped: it goes on until it returns,
/// even if nobody waits for the answer, and calls [`Cx::check`] before each step that can be the
/// last one. After a partial effect it either completes ([`Cx::shielded`]) or undoes it; what is
/// left half done nonetheless is finished or undone by [`sr_recover`](Self::sr_recover).
///
/// **Errors.** The [kind](sm_model::Kind) drives what the host does: `not_found` for an unknown
/// UUID, `no_space`, `in_use`, `auth`, `unreachable`, and `unknown` when it cannot be told whether
/// something was done (the host then looks, it does not retry). The backend's own words belong in
/// [`Error::backend`]. The SDK adds the operation, the SR and the VDI. A panic is an `internal`
/// error and leaves the driver open.
pub trait Driver: Send + Sync + Sized + 'static {
    /// Its device configuration, made by [`device_config!`](crate::device_config!).
    type Config: DeviceConfig;

    /// What it says of itself, made by [`manifest!`](crate::manifest!).
    const MANIFEST: Manifest;

    /// Looks for what an incomplete device configuration leaves open, and for SRs that exist.
    /// Operation `sr_probe`, reading; the driver is not opened for it.
    ///
    /// Each item of the answer says which keys to add, and whether the result is then complete.
    /// A reachable backend without SRs is an empty answer, not an error.
    fn probe(config: RawConfig, cx: &Cx) -> impl Future<Output = Result<SrProbed>> + Send {
        let _ = (config, cx);
        unsupported::<Self, _>(Operation::SrProbe)
    }

    /// Starts a session with the backend of one SR: logs in, checks versions. Changes nothing on
    /// the backend, and does not ask that the SR exists, because
    /// [`sr_create`](Self::sr_create) comes after it. May be dropped at any `.await`.
    ///
    /// Errors: `config`, `auth`, `unreachable`.
    fn open(config: Self::Config, sr: SrUuid, cx: &Cx)
    -> impl Future<Output = Result<Self>> + Send;

    /// Makes the SR on the backend, under the UUID given at open. Mutating.
    ///
    /// The answer holds the device configuration to keep: usually [`Cx::device_config`]. Replay:
    /// `already`. Errors: `exists` if the place holds something that is not this SR.
    fn sr_create(
        &self,
        cx: &Cx,
        request: SrCreate,
    ) -> impl Future<Output = Result<SrCreated>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::SrCreate)
    }

    /// Makes the SR usable on this host (mount, login, activate), and finishes or undoes what a
    /// crash left half done, as [`sr_recover`](Self::sr_recover) does. Mutating.
    ///
    /// Attached already: an empty answer. Errors: `not_found` if the SR is not there.
    fn sr_attach(
        &self,
        cx: &Cx,
        request: SrAttach,
    ) -> impl Future<Output = Result<SrRecovered>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::SrAttach)
    }

    /// Lets go of the SR on this host. Mutating.
    ///
    /// Not attached: `already`. Errors: `in_use` while a VDI is attached.
    fn sr_detach(&self, cx: &Cx, request: SrDetach) -> impl Future<Output = Result<SrDone>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::SrDetach)
    }

    /// Removes the SR from the backend. Mutating.
    ///
    /// Gone already: `already`. Errors: `in_use` with SMAPI's 39 if it holds VDIs; what is not
    /// the driver's own is never removed.
    fn sr_destroy(
        &self,
        cx: &Cx,
        request: SrDestroy,
    ) -> impl Future<Output = Result<SrDone>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::SrDestroy)
    }

    /// Lists every VDI, the damaged ones too (as quarantined, with the reason), base copies
    /// excepted. Reading.
    ///
    /// If the backend becomes unreachable half-way, the whole scan fails: a toolstack destroys its
    /// record of a disk that a scan did not return.
    fn sr_scan(&self, cx: &Cx, request: SrScan) -> impl Future<Output = Result<SrScanned>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::SrScan)
    }

    /// Finishes or undoes what a crash left half done, by inspection of the backend. Mutating.
    ///
    /// Twice is the same as once: the second answer is empty.
    fn sr_recover(
        &self,
        cx: &Cx,
        request: SrRecover,
    ) -> impl Future<Output = Result<SrRecovered>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::SrRecover)
    }

    /// Says how full and how healthy the SR is. Reading.
    fn sr_stat(&self, cx: &Cx, request: SrStat) -> impl Future<Output = Result<SrInfo>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::SrStat)
    }

    /// Shortens chains and removes base copies that nothing needs, within the budget of the
    /// request. Mutating.
    ///
    /// May take hours: it tells its progress, looks for cancel at least every quarter of a second,
    /// and works beside all other operations, so what it locks it locks for moments. A VDI that is
    /// attached is left as it is, and so is what one that cannot be read may need; each is named in
    /// `skipped`. Cancel, and the end of the budget's time, are answers that tell what was done
    /// and what is left, not errors; the next call goes on. A dry run answers what would be done.
    fn sr_maintain(
        &self,
        cx: &Cx,
        request: SrMaintain,
    ) -> impl Future<Output = Result<SrMaintained>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::SrMaintain)
    }

    /// Changes the SR's name or description on the backend. Mutating.
    ///
    /// An absent field stays as it is; nothing to change is `already`.
    fn sr_update(&self, cx: &Cx, request: SrUpdate) -> impl Future<Output = Result<SrDone>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::SrUpdate)
    }

    /// Shuts another host out of an SR that several hosts use: ends its turn, if it is in the middle
    /// of something, and its claims on VDIs, and has the storage refuse what it still writes where
    /// the storage can. Mutating.
    ///
    /// From then on the operations of that host are `fenced`, until it has attached the SR again with
    /// nothing of it in use. Shut out already, and not back: `already`. Errors: `not_found` for a
    /// host that the SR does not know.
    fn sr_fence(&self, cx: &Cx, request: SrFence) -> impl Future<Output = Result<SrFenced>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::SrFence)
    }

    /// Makes an empty VDI that reads as zeros. Mutating.
    ///
    /// The size is rounded up to what the format needs. Replay: a VDI of this UUID with the same
    /// size and format is `already`; with others it is an `exists` error. Errors: `limit`,
    /// `no_space`.
    fn vdi_create(
        &self,
        cx: &Cx,
        request: VdiCreate,
    ) -> impl Future<Output = Result<VdiDone>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiCreate)
    }

    /// Adopts an image that already lies on the backend under its UUID. Mutating.
    ///
    /// Known already: `already`. Errors: `not_found`, `corrupt`.
    fn vdi_introduce(
        &self,
        cx: &Cx,
        request: VdiIntroduce,
    ) -> impl Future<Output = Result<VdiDone>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiIntroduce)
    }

    /// Describes one VDI. Reading. With `space` also what it would give back, whatever that costs.
    /// Errors: `not_found`.
    fn vdi_stat(&self, cx: &Cx, request: VdiStat) -> impl Future<Output = Result<VdiInfo>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiStat)
    }

    /// Changes name, description, type or user keys on the backend. Mutating.
    ///
    /// An absent field stays as it is; nothing to change is `already`.
    fn vdi_update(
        &self,
        cx: &Cx,
        request: VdiUpdate,
    ) -> impl Future<Output = Result<VdiDone>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiUpdate)
    }

    /// Makes a VDI larger; the new part reads as zeros. Mutating. While the VDI is attached only
    /// with the feature `live_resize`.
    ///
    /// That size already: `already`. Errors: `limit` with SMAPI's 79 for a smaller size.
    fn vdi_resize(
        &self,
        cx: &Cx,
        request: VdiResize,
    ) -> impl Future<Output = Result<VdiDone>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiResize)
    }

    /// Takes read-only copies of one point in time. Mutating. Several VDIs at once only with the
    /// feature `group_snapshot`, attached ones only with `live_snapshot`.
    ///
    /// All or nothing: a part that was made is undone if another fails. Replay: `already`, with
    /// the VDIs in the order of the request.
    fn vdi_snapshot(
        &self,
        cx: &Cx,
        request: VdiSnapshot,
    ) -> impl Future<Output = Result<VdisDone>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiSnapshot)
    }

    /// Does ahead what the [`vdi_snapshot`](Self::vdi_snapshot) with the same operation id would have
    /// to wait for. Mutating, though nothing that a listing shows changes.
    ///
    /// A hint: it may be lost, and need not come. What it made and nobody used is removed by
    /// `abandon`, or by the next [`sr_attach`](Self::sr_attach). Errors: those of the snapshot, as far
    /// as they can be told.
    fn vdi_snapshot_prepare(
        &self,
        cx: &Cx,
        request: VdiSnapshotPrepare,
    ) -> impl Future<Output = Result<VdiSnapshotPrepared>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiSnapshotPrepare)
    }

    /// Makes a writable VDI from a VDI or a snapshot, sharing what the backend can share.
    /// Mutating. Replay: `already`.
    fn vdi_clone(
        &self,
        cx: &Cx,
        request: VdiClone,
    ) -> impl Future<Output = Result<VdiDone>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiClone)
    }

    /// Puts a VDI back to a snapshot of it. The VDI keeps UUID, name and keys and takes the
    /// snapshot's size and content; the snapshot stays. Mutating.
    ///
    /// Twice is the same as once. Errors: `in_use` while it is activated.
    fn vdi_revert(
        &self,
        cx: &Cx,
        request: VdiRevert,
    ) -> impl Future<Output = Result<VdiDone>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiRevert)
    }

    /// Gives back the space of blocks that hold only zeros and of what nothing refers to; the
    /// content stays the same. Mutating. Errors: `in_use` while it is attached for writing.
    ///
    /// A call that was cut has given back a part; the next one gives back the rest.
    fn vdi_reclaim(
        &self,
        cx: &Cx,
        request: VdiReclaim,
    ) -> impl Future<Output = Result<VdiReclaimed>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiReclaim)
    }

    /// Limits what may be asked of a VDI in a second, whoever asks, also while it is attached; kept
    /// with the VDI. Mutating.
    ///
    /// So already: `already`. The answer, and every description of the VDI, says what the storage
    /// took. Errors: `limit` for a number that it cannot have, `unsupported` for a kind of limit.
    fn vdi_qos(&self, cx: &Cx, request: VdiQos) -> impl Future<Output = Result<VdiDone>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiQos)
    }

    /// Begins, or ends, to track which blocks of a VDI change; also while it is attached, if the
    /// driver has the feature `changed_blocks`. Mutating.
    ///
    /// Done already: `already`. Errors: `unsupported` with SMAPI's 66 for a VDI whose changes cannot
    /// be tracked.
    fn vdi_cbt(&self, cx: &Cx, request: VdiCbt) -> impl Future<Output = Result<VdiDone>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiCbt)
    }

    /// Tells which blocks changed from one point in time to another. Reading.
    ///
    /// Never too few. Where it is not known, the answer says so and why; that is no error.
    fn vdi_changed(
        &self,
        cx: &Cx,
        request: VdiChanged,
    ) -> impl Future<Output = Result<VdiChanges>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiChanged)
    }

    /// Removes a VDI. Mutating.
    ///
    /// Gone already is success: `already`. Errors: `in_use` while it is attached.
    fn vdi_destroy(
        &self,
        cx: &Cx,
        request: VdiDestroy,
    ) -> impl Future<Output = Result<VdiDestroyed>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiDestroy)
    }

    /// Shows what depends on what, base copies included, parents before children. Reading.
    fn vdi_tree(
        &self,
        cx: &Cx,
        request: VdiTree,
    ) -> impl Future<Output = Result<VdiForest>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiTree)
    }

    /// Examines the structure of a VDI and of all it is based on; changes nothing. Reading.
    ///
    /// Damage is a finding, not an error.
    fn vdi_check(
        &self,
        cx: &Cx,
        request: VdiCheck,
    ) -> impl Future<Output = Result<VdiChecked>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiCheck)
    }

    /// Makes a VDI reachable on this host and says how, best way first; no I/O yet. Mutating.
    ///
    /// Attached already: the same answer. The format is stated, never probed.
    fn vdi_attach(
        &self,
        cx: &Cx,
        request: VdiAttach,
    ) -> impl Future<Output = Result<VdiAttached>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiAttach)
    }

    /// Allows I/O; for writing exclusively, unless the VDI is sharable. Mutating.
    ///
    /// Active already: success. Errors: `in_use` if another host writes, `fenced`.
    fn vdi_activate(
        &self,
        cx: &Cx,
        request: VdiActivate,
    ) -> impl Future<Output = Result<VdiDatapathDone>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiActivate)
    }

    /// Ends I/O. What was written is on the storage afterwards. Mutating. Not active: success.
    fn vdi_deactivate(
        &self,
        cx: &Cx,
        request: VdiDeactivate,
    ) -> impl Future<Output = Result<VdiDatapathDone>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiDeactivate)
    }

    /// Ends the reachability. Mutating. Not attached: success, also if the VDI is gone.
    fn vdi_detach(
        &self,
        cx: &Cx,
        request: VdiDetach,
    ) -> impl Future<Output = Result<VdiDatapathDone>> + Send {
        let _ = (cx, request);
        unsupported::<Self, _>(Operation::VdiDetach)
    }

    /// Whether the session works. Answers at once, from memory.
    fn health(&self) -> SessionHealth {
        SessionHealth::Ok
    }

    /// Ends the session: logs out. Attached VDIs stay as they are. No call runs any more, unless
    /// one outlived the time given to close; dropped at the end of that time.
    fn close(&self, cx: &Cx) -> impl Future<Output = ()> + Send {
        let _ = cx;
        ready(())
    }
}

fn unsupported<D: Driver, T: Send>(operation: Operation) -> impl Future<Output = Result<T>> + Send {
    ready(Err(refusal::<D>(operation.name())))
}

fn refusal<D: Driver>(operation: &str) -> Error {
    Error::unsupported(format!("the driver {} does not support {operation}", D::MANIFEST.name))
}

/// Calls the method of an operation: JSON in, JSON out.
pub(crate) async fn dispatch<D: Driver>(
    driver: Option<&D>,
    cx: &Cx,
    operation: Operation,
    request: &[u8],
) -> Result<Vec<u8>> {
    if !D::MANIFEST.operations.contains(&operation) {
        return Err(refusal::<D>(operation.name())
            .hint("a driver serves the operations that its manifest lists"));
    }
    if operation == Operation::SrProbe {
        let _: sm_model::sr::SrProbe = parse(request)?;
        return answer(&D::probe(resolve(cx).await?, cx).await?);
    }
    let Some(driver) = driver else {
        return Err(Error::internal("a driver opened without an SR serves sr_probe alone"));
    };
    macro_rules! call {
        ($($operation:ident => $method:ident,)*) => {
            match operation {
                $(Operation::$operation => {
                    let request: $operation = parse(request)?;
                    answer(&driver.$method(cx, request).await?)
                })*
                Operation::SrProbe => Err(refusal::<D>(operation.name())),
            }
        };
    }
    // Exhaustive: an operation that is added to the model does not compile without a method here.
    call! {
        SrCreate => sr_create,
        SrAttach => sr_attach,
        SrDetach => sr_detach,
        SrDestroy => sr_destroy,
        SrScan => sr_scan,
        SrRecover => sr_recover,
        SrMaintain => sr_maintain,
        SrStat => sr_stat,
        SrUpdate => sr_update,
        SrFence => sr_fence,
        VdiCreate => vdi_create,
        VdiIntroduce => vdi_introduce,
        VdiStat => vdi_stat,
        VdiUpdate => vdi_update,
        VdiResize => vdi_resize,
        VdiSnapshot => vdi_snapshot,
        VdiSnapshotPrepare => vdi_snapshot_prepare,
        VdiClone => vdi_clone,
        VdiReclaim => vdi_reclaim,
        VdiQos => vdi_qos,
        VdiCbt => vdi_cbt,
        VdiChanged => vdi_changed,
        VdiRevert => vdi_revert,
        VdiDestroy => vdi_destroy,
        VdiTree => vdi_tree,
        VdiCheck => vdi_check,
        VdiAttach => vdi_attach,
        VdiActivate => vdi_activate,
        VdiDeactivate => vdi_deactivate,
        VdiDetach => vdi_detach,
    }
}

/// Reads a request; the error names the field that is wrong.
fn parse<R: Request>(json: &[u8]) -> Result<R> {
    serde_json::from_slice(json).or_else(|_| {
        // The second, slower reading keeps track of where it is.
        let mut reader = serde_json::Deserializer::from_slice(json);
        serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let path = error.path().to_string();
            let place = if path == "." { String::new() } else { format!(", field {path}") };
            Error::internal(format!("the request of {} cannot be read{place}", R::OPERATION))
                .source(error.inner())
        })
    })
}

fn answer(reply: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(reply)
        .map_err(|error| Error::internal("the answer cannot be written as JSON").source(&error))
}
