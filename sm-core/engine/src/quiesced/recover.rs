//! What is left of a coordinator that died, and of a storage that was late.

use std::time::{Duration, Instant};

use sm_model::{Error, Kind, Result};
use sm_quiesce::freezer::Files;
use sm_quiesce::{Method, Report};
use sm_step::step;
use uuid::Uuid;

use super::SnapshotSet;
use super::ledger::{self, Phase, Record};
use crate::journal;
use crate::locks::Lock;
use crate::manager::StorageManager;
use crate::op::Op;
use crate::services::blocking;

/// How long a snapshot that was not waited for may still appear on the storage.
const LATE: Duration = Duration::from_secs(600);

/// How often it is looked whether it has.
const AGAIN: Duration = Duration::from_secs(60);

/// How long a guest is tried to be let go on by whoever comes later.
const PATIENCE: Duration = Duration::from_secs(5);

/// A set that was not finished by whoever began it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Recovered {
    /// The set.
    pub set: Uuid,
    /// Whether it is kept: all its snapshots were there, and only their marks were missing.
    pub kept: bool,
    /// Whether something is still to be done: the storage does not answer, or may take a snapshot
    /// later.
    pub pending: bool,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

impl StorageManager {
    /// Lets guests go on, and finishes or destroys sets, that a process which died has left; of
    /// those that a process works on nothing is touched. Quick if there are none.
    pub async fn recover_sets(&self, op: &Op) -> Result<Vec<Recovered>> {
        let mut recovered = Vec::new();
        let oldest = journal::now().saturating_sub(journal::KEEP.as_secs());
        for record in ledger::all(&self.inner.catalog)? {
            if record.phase == Phase::Done {
                if record.since < oldest {
                    ledger::forget(&self.inner.catalog, &record)?;
                }
                continue;
            }
            if record.phase == Phase::Discarding && journal::now() < record.tried + AGAIN.as_secs()
            {
                continue;
            }
            let lock = Lock::operation(record.operation);
            let Some(_operation) = self.inner.locks.try_take(&lock)? else { continue };
            let Ok(_guest) = self.only_one(&record.method) else { continue };
            // Once more: somebody may have finished it in between.
            let Some(record) = ledger::again(&self.inner.catalog, &record)? else { continue };
            if record.phase == Phase::Done {
                continue;
            }
            let set = record.set.id;
            let settled = self.settle_set(op, record.clone()).await;
            let pending = ledger::again(&self.inner.catalog, &record)?
                .is_some_and(|record| record.phase != Phase::Done);
            let (kept, error) = match settled {
                Ok(kept) => (kept.is_some(), None),
                Err(error) => (false, Some(error)),
            };
            tracing::info!(%set, kept, pending, "settled a snapshot set that was not finished");
            recovered.push(Recovered { set, kept, pending, error });
        }
        Ok(recovered)
    }

    /// What a dead coordinator has left of this guest. The caller holds the guest's lock.
    pub(super) async fn recover_guest(&self, op: &Op, method: &Method) -> Result<()> {
        let Some(guest) = method.guest() else { return Ok(()) };
        for record in ledger::all(&self.inner.catalog)? {
            if record.phase != Phase::Taking || record.method.guest().as_ref() != Some(&guest) {
                continue;
            }
            let lock = Lock::operation(record.operation);
            let Some(_operation) = self.inner.locks.try_take(&lock)? else { continue };
            self.settle_set(op, record).await?;
        }
        Ok(())
    }

    /// Brings a set to its end: the set if it is kept. The caller holds the operation's lock.
    pub(super) async fn settle_set(
        &self,
        op: &Op,
        mut record: Record,
    ) -> Result<Option<SnapshotSet>> {
        match record.phase {
            Phase::Done => return Ok(Some(record.set)),
            Phase::Marking => return self.mark_set(op, record).await.map(Some),
            Phase::Taking => {
                // The guest first.
                self.let_go(&record).await?;
                record.phase = Phase::Discarding;
                ledger::keep(&self.inner.catalog, &record)?;
                step!("quiesce.given_up");
            }
            Phase::Discarding => {}
        }
        self.discard_set(op, record).await?;
        Ok(None)
    }

    pub(super) fn files_of(&self, record: &Record) -> Files {
        Files::new(&self.inner.quiescing.folder, record.set.id)
    }

    /// Makes sure that a guest goes on whose coordinator died. Its freezer has seen that and does
    /// it; one that was killed as well has left no report.
    async fn let_go(&self, record: &Record) -> Result<()> {
        if record.method == Method::None {
            return Ok(());
        }
        let (files, limits) = (self.files_of(record), record.limits);
        let until = Instant::now() + limits.thaw + limits.rescue;
        let report = blocking(move || {
            files.ended(until)?;
            Ok(files.report())
        })
        .await?;
        let goes_on = match report {
            Some(report) if report.goes_on => true,
            _ => self.rescue(record).await?.goes_on,
        };
        if goes_on {
            return Ok(());
        }
        let guest = record.method.guest().unwrap_or_default();
        let text = format!("the guest ({guest}) may be frozen, and does not answer");
        Err(Error::new(Kind::Unreachable, text)
            .context("set", record.set.id)
            .hint("restart its agent, or the guest; its snapshots are destroyed when it answers"))
    }

    /// Looks at a guest whose freezer was killed, and lets it go on.
    pub(super) async fn rescue(&self, record: &Record) -> Result<Report> {
        let mut limits = record.limits;
        limits.rescue = limits.rescue.min(PATIENCE);
        let mut freezer = self.freezer(record.set.id, &record.method, limits).await?;
        blocking(move || freezer.rescue()).await
    }

    /// Destroys what there is of a set. Answers whether nothing of it can appear any more.
    pub(super) async fn discard_set(&self, op: &Op, mut record: Record) -> Result<bool> {
        let catalog = &self.inner.catalog;
        record.phase = Phase::Discarding;
        record.tried = journal::now();
        ledger::keep(catalog, &record)?;
        let mut failed = None;
        let mut doubt = false;
        for member in &record.members {
            let found = journal::find(catalog, member.operation)?;
            doubt |= found.is_some_and(|entry| entry.reply.is_none());
            let destroy = async {
                let sr = self.sr(&member.sr.to_string())?;
                let op = Op::new().with_budget(op.budget);
                let destroyed = sr.vdi_destroy(&op, member.snapshot).await;
                step!("quiesce.member_destroyed");
                destroyed
            };
            match destroy.await {
                Ok(_) => {}
                // The SR is gone, and so is all that is in it.
                Err(error) if error.kind == Kind::NotFound => {}
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let late = journal::now() < record.since + LATE.as_secs();
        if doubt && late {
            return Ok(false);
        }
        for member in &record.members {
            journal::forget(catalog, member.operation)?;
        }
        step!("quiesce.destroyed");
        ledger::forget(catalog, &record)?;
        self.files_of(&record).remove();
        Ok(true)
    }
}
