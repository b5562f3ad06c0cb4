//! Maintenance of storage: an SR as a job, and a VDI.
//!
//! The driver keeps the record of how far it is, on the storage. So a job that was cut simply asks
//! again, and a call needs no entry in the journal: to repeat it is the same as to go on with it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sm_loader::port;
use sm_model::sr::{Budget, SrMaintain, SrMaintained, Stopped};
use sm_model::vdi::{VdiReclaim, VdiReclaimed};
use sm_model::{AttachMode, Error, Kind, Operation, Request, Result, VdiUuid};
use sm_step::step;

use crate::events::Event;
use crate::jobs::{BEAT, Plan, Running};
use crate::locks::Lock;
use crate::op::Op;
use crate::sr::Sr;

/// A job has no deadline of its own, and the clock of a driver's call needs one.
const WITHOUT_END: Duration = Duration::from_secs(365 * 24 * 3600);

impl Sr {
    /// Shortens chains and removes base copies that nothing needs, beside all other work. A job of
    /// the operation's id; the same call with the same id goes on after a crash or a cancel.
    ///
    /// A dry run is no job: it only tells what would be done.
    pub async fn maintain(&self, op: &Op, request: SrMaintain) -> Result<SrMaintained> {
        check_budget(&request.budget)?;
        self.offers::<SrMaintain>()?;
        if !request.dry_run {
            self.run(op, Plan::Maintain { budget: request.budget }).await?;
            let job = self.manager.job(&op.id.to_string())?;
            return job.maintained.ok_or_else(|| {
                Error::internal(format!("job {} is done and has left no answer", op.id))
            });
        }
        let _held = self.manager.lock(op, &[Lock::sr_shared(self.uuid())]).await?;
        let (_, port) = self.manager.session(op, self.uuid()).await?;
        let call = op.call(Operation::SrMaintain);
        self.within(port::call(port.as_ref(), call, &request)).await
    }

    pub(crate) async fn run_maintain(
        &self,
        op: &Op,
        running: &mut Option<Running>,
        budget: Budget,
    ) -> Result<()> {
        let running = running.as_mut().ok_or_else(crate::copy::lost)?;
        // A data path that was killed cannot be told anything before it is there again.
        self.release_dead_jobs(&op.part("revive")).await?;
        // Shared: only what changes the SR as a whole has to wait. What is done to its VDIs
        // meanwhile is between the driver and its store.
        let _held = self.manager.lock(op, &[Lock::sr_shared(self.uuid())]).await?;
        let (_, port) = self.manager.session(op, self.uuid()).await?;
        step!("job.maintaining");

        let told = Arc::new(Mutex::new((0, String::new())));
        let mut call = op.call(Operation::SrMaintain);
        call.deadline = Instant::now() + WITHOUT_END;
        call.progress = Some(Arc::new({
            let (told, sink) = (Arc::clone(&told), op.progress.clone());
            move |permille, stage: &str| {
                if let Some(sink) = &sink {
                    sink(permille, stage);
                }
                *told.lock().unwrap_or_else(PoisonError::into_inner) = (permille, stage.to_owned());
            }
        }));
        let request = SrMaintain { budget, dry_run: false };
        // What it has told data paths ends with the call, however that does.
        let _told = self.manager.inner.datapaths.let_go(op.id, &[]);
        let work = self.within(port::call(port.as_ref(), call, &request));
        tokio::pin!(work);
        let reply = loop {
            tokio::select! {
                biased;
                reply = &mut work => break reply?,
                // Other processes ask for the end through the record, which has to be looked at.
                () = tokio::time::sleep(BEAT) => {
                    let (permille, stage) =
                        told.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    running.beat(permille, &stage);
                }
            }
        };
        step!("job.maintained");
        running.has_maintained(&reply)?;
        self.event(Event::SrChanged { sr: self.uuid() });
        if reply.stopped == Some(Stopped::Cancelled) {
            return Err(cancelled(&reply, self));
        }
        Ok(())
    }

    /// Gives back the space of a VDI that holds zeros or nothing any more. Refused while it is
    /// attached for writing.
    pub async fn vdi_reclaim(&self, op: &Op, vdi: VdiUuid) -> Result<VdiReclaimed> {
        self.offers::<VdiReclaim>()?;
        let _held = self.manager.lock(op, &self.vdi_locks(op, &[vdi])).await?;
        self.refuse_if_attached(op, vdi, "", Some(AttachMode::ReadWrite)).await?;
        let done = self.perform_locked(op, &VdiReclaim { vdi }).await?;
        self.event(Event::VdiChanged { sr: self.uuid(), vdi });
        Ok(done)
    }

    /// Refuses what the driver does not do, before a job is made for it.
    fn offers<R: Request>(&self) -> Result<()> {
        let name = R::OPERATION.name();
        if self.driver_manifest()?.can(name) {
            return Ok(());
        }
        Err(Error::unsupported(format!(
            "the driver {} does not support {name}",
            self.record.driver
        ))
        .operation(name)
        .context("sr", self.uuid())
        .hint("smctl driver info shows what a driver can do"))
    }
}

/// The answer to whoever ended it: what was done is not lost.
fn cancelled(reply: &SrMaintained, sr: &Sr) -> Error {
    Error::new(
        Kind::Cancelled,
        format!(
            "the maintenance was cancelled: {} merges are done, {} are left",
            reply.merged.len(),
            reply.remaining
        ),
    )
    .hint(format!(
        "what was done stays done; smctl sr maintain {} goes on with the rest",
        sr.uuid()
    ))
}

fn check_budget(budget: &Budget) -> Result<()> {
    let wrong = |what: &str| Err(Error::new(Kind::Limit, format!("the budget has {what}")));
    match budget {
        Budget { bytes_per_second: Some(sm_model::Bytes(0)), .. } => wrong("0 bytes per second"),
        Budget { seconds: Some(0), .. } => wrong("no time"),
        Budget { cpu_percent: Some(percent), .. } if !(1..=100).contains(percent) => {
            wrong(&format!("{percent} percent of a processor; it must be 1 to 100"))
        }
        Budget { parallel: Some(0), .. } => wrong("0 merges at the same time"),
        _ => Ok(()),
    }
}
