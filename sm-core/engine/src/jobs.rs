//! Jobs: work that can take longer than a second. Their progress and end are recorded, so that
//! any process can watch and cancel them, and one that died can be resumed.
//!
//! A job runs in the process that started it and holds the lock of its operation id while it
//! does; a record that says `running` without that lock is a job whose process died.

use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use sm_loader::port::ProgressSink;
use sm_model::sr::{Budget, SrMaintained};
use sm_model::{Bytes, Error, ImageFormat, Kind, OperationId, Result, SrUuid, VdiUuid};

use crate::checksum::{Checks, Checksum};
use crate::events::Event;
use crate::journal;
use crate::locks::{Held, Lock};
use crate::manager::StorageManager;
use crate::op::Op;
use crate::select::select;
use crate::sr::NewVdi;

/// A job is named by the operation id it was asked for with.
pub type JobId = OperationId;

/// How often a running job writes its progress and looks whether somebody wants it to end.
pub(crate) const BEAT: Duration = Duration::from_millis(250);

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// A process works on it.
    Running,
    /// Its process died.
    Interrupted,
    /// It ended well.
    Done,
    /// It ended with an error.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// Where imported bytes come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportSource {
    /// A file; its format by looking at it if it is not stated.
    File {
        /// The file.
        path: Utf8PathBuf,
        /// Its format.
        format: Option<ImageFormat>,
    },
    /// This process's standard input: raw bytes, exactly as many as stated.
    Stdin {
        /// How many.
        size: Option<Bytes>,
    },
}

/// Where exported bytes go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportTarget {
    /// The file.
    pub path: Utf8PathBuf,
    /// Its format: `raw` with holes, or a `vhd` without parents.
    pub format: ImageFormat,
    /// Whether a file of that name is replaced.
    pub overwrite: bool,
}

/// What a job is to do: all that is needed to go on with it in another process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Plan {
    Import {
        source: ImportSource,
        new: NewVdi,
        #[serde(default, skip_serializing_if = "Checks::are_none")]
        checks: Checks,
    },
    Export {
        vdi: VdiUuid,
        target: ExportTarget,
        #[serde(default, skip_serializing_if = "Checks::are_none")]
        checks: Checks,
    },
    Copy {
        vdi: VdiUuid,
        target: SrUuid,
        new: NewVdi,
        #[serde(default, skip_serializing_if = "Checks::are_none")]
        checks: Checks,
    },
    Maintain {
        budget: Budget,
    },
}

impl Plan {
    fn resumable(&self) -> bool {
        !matches!(self, Self::Import { source: ImportSource::Stdin { .. }, .. })
    }
}

/// The record of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// One line for people.
    pub description: String,
    /// What it is doing.
    pub state: JobState,
    /// How far it is, 0 to 1000.
    pub permille: u32,
    /// The name of the stage it is in.
    pub stage: String,
    /// Bytes done, holes included.
    pub bytes_done: Bytes,
    /// All its bytes.
    pub bytes_total: Bytes,
    /// When it started, in seconds since 1970-01-01 UTC.
    pub started: u64,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<u64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// The SR it works on.
    pub sr: SrUuid,
    /// The VDI it makes or reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vdi: Option<VdiUuid>,
    /// Whether another process can go on with it.
    pub resumable: bool,
    /// Whether somebody wants it to end.
    #[serde(default)]
    pub cancel_requested: bool,
    /// Bytes that are safe on the storage: where a resumed job goes on.
    #[serde(default)]
    pub(crate) safe: u64,
    /// Whether nothing had the target's UUID before the job made it: what has it now is the job's
    /// own, to be filled, and to be destroyed if that fails.
    #[serde(default)]
    pub(crate) target_is_ours: bool,
    /// Device and inode of the file an export has written, before it gets its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) written: Option<(u64, u64)>,
    /// The checksum of the content, of a job that was to take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
    /// What a maintenance did, as far as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintained: Option<SrMaintained>,
    /// When it started, in milliseconds: jobs of the same second have an order.
    #[serde(default)]
    pub(crate) order: u128,
    pub(crate) plan: Plan,
}

impl JobRecord {
    /// What it is: `import`, `export`, `copy` or `maintain`.
    pub fn kind(&self) -> &'static str {
        match self.plan {
            Plan::Import { .. } => "import",
            Plan::Export { .. } => "export",
            Plan::Copy { .. } => "copy",
            Plan::Maintain { .. } => "maintain",
        }
    }
}

fn key(id: JobId) -> String {
    format!("job/{id}")
}

impl StorageManager {
    /// All jobs, the oldest first.
    pub fn jobs(&self) -> Result<Vec<JobRecord>> {
        let records: Vec<(String, serde_json::Value)> = self.inner.catalog.list("job/")?;
        let mut jobs = Vec::with_capacity(records.len());
        for (key, record) in records {
            match serde_json::from_value(record) {
                Ok(record) => jobs.push(self.with_true_state(record)?),
                // One record of another release must not hide all jobs.
                Err(error) => tracing::warn!(key, %error, "the record of a job cannot be read"),
            }
        }
        jobs.sort_by_key(|job| (job.order, job.id));
        Ok(jobs)
    }

    /// The job that `selector` means: its id or the beginning of it.
    pub fn job(&self, selector: &str) -> Result<JobRecord> {
        let jobs = self.jobs()?;
        select("job", selector, &jobs, |job| job.id.0, |_| "").cloned()
    }

    /// Asks a job to end; whoever runs it does so within a second. A job whose process died is
    /// marked as cancelled.
    pub fn job_cancel(&self, id: JobId) -> Result<JobRecord> {
        let orphan = self.inner.locks.try_take(&Lock::operation(id))?;
        let record = self.inner.catalog.update(&key(id), false, |record| {
            let mut record = record.ok_or_else(|| no_job(id))?;
            ended(&record)?;
            record.cancel_requested = true;
            if orphan.is_some() {
                record.state = JobState::Cancelled;
                record.finished = Some(journal::now());
            }
            Ok((Some(record.clone()), record))
        })?;
        let _ = self.inner.events.send(Event::JobChanged { job: id });
        Ok(record)
    }

    /// Waits until a job has ended, or for `budget`.
    pub async fn job_wait(
        &self,
        id: JobId,
        budget: Duration,
        progress: Option<ProgressSink>,
    ) -> Result<JobRecord> {
        let deadline = Instant::now() + budget;
        loop {
            let record = self.inner.catalog.get::<JobRecord>(&key(id))?;
            let record = self.with_true_state(record.ok_or_else(|| no_job(id))?.record)?;
            if let Some(sink) = &progress {
                sink(record.permille, &record.stage);
            }
            if record.state != JobState::Running {
                return Ok(record);
            }
            if Instant::now() >= deadline {
                return Err(Error::new(
                    Kind::DeadlineExceeded,
                    format!("job {id} is still running ({} %)", record.permille / 10),
                ));
            }
            // The job runs in another process, which can tell us only through the catalog.
            tokio::time::sleep(BEAT).await;
        }
    }

    /// Goes on with a job whose process died, from where its bytes are safe, in this process.
    pub async fn job_resume(&self, op: &Op, id: JobId) -> Result<JobRecord> {
        let record = self.job(&id.to_string())?;
        ended(&record)?;
        if !record.resumable {
            return Err(Error::unsupported(format!(
                "job {id} read from standard input, which is gone"
            ))
            .hint("cancel it and import again"));
        }
        let op = op.clone().with_id(id);
        self.sr(&record.sr.to_string())?.run(&op, record.plan).await?;
        self.job(&id.to_string())
    }

    /// Forgets jobs that ended longer ago than [`journal::KEEP`].
    pub(crate) fn prune_jobs(&self) -> Result<()> {
        let oldest = journal::now().saturating_sub(journal::KEEP.as_secs());
        for job in self.jobs()? {
            if job.finished.is_some_and(|finished| finished < oldest) {
                self.inner.catalog.remove(&key(job.id), false)?;
            }
        }
        Ok(())
    }

    /// A job whose record says `running` and whose process died is `interrupted`.
    fn with_true_state(&self, mut record: JobRecord) -> Result<JobRecord> {
        if record.state == JobState::Running
            && self.inner.locks.try_take(&Lock::operation(record.id))?.is_some()
        {
            record.state = JobState::Interrupted;
        }
        Ok(record)
    }
}

fn ended(record: &JobRecord) -> Result<()> {
    let how = match record.state {
        JobState::Running | JobState::Interrupted => return Ok(()),
        JobState::Done => "is done",
        JobState::Failed => "has failed",
        JobState::Cancelled => "was cancelled",
    };
    Err(Error::new(Kind::Exists, format!("job {} {how} already", record.id)))
}

fn no_job(id: JobId) -> Error {
    Error::not_found(format!("there is no job {id}")).hint("smctl job list shows them")
}

/// A job that this process runs.
pub(crate) struct Running {
    manager: StorageManager,
    id: JobId,
    op: Op,
    last_beat: Instant,
    /// Bytes done and all bytes, as last told.
    bytes: (u64, u64),
    _held: Held,
}

impl Running {
    /// Starts a job, or goes on with one of the same id. `Err` of the record if it is done.
    pub(crate) async fn start(
        manager: &StorageManager,
        op: &Op,
        sr: SrUuid,
        vdi: Option<VdiUuid>,
        description: String,
        plan: &Plan,
    ) -> Result<std::result::Result<(Self, JobRecord), JobRecord>> {
        let held = manager.lock(op, &[Lock::operation(op.id)]).await?;
        let same = serde_json::to_value(plan).map_err(|e| Error::internal(e.to_string()))?;
        let record = manager.inner.catalog.update(&key(op.id), true, |found| {
            let mut record = match found {
                None => JobRecord {
                    id: op.id,
                    description: description.clone(),
                    state: JobState::Running,
                    permille: 0,
                    stage: String::new(),
                    bytes_done: Bytes(0),
                    bytes_total: Bytes(0),
                    started: journal::now(),
                    finished: None,
                    error: None,
                    sr,
                    vdi,
                    resumable: plan.resumable(),
                    cancel_requested: false,
                    safe: 0,
                    target_is_ours: false,
                    written: None,
                    checksum: None,
                    maintained: None,
                    order: SystemTime::now()
                        .duration_since(UNIX_EPOCH)
                        .map_or(0, |time| time.as_millis()),
                    plan: plan.clone(),
                },
                Some(record) => record,
            };
            let theirs =
                serde_json::to_value(&record.plan).map_err(|e| Error::internal(e.to_string()))?;
            if theirs != same {
                return Err(Error::new(
                    Kind::Exists,
                    format!("operation id {} was used for another job", op.id),
                )
                .hint("repeat the first request exactly, or use a new operation id"));
            }
            if record.state != JobState::Done {
                record.state = JobState::Running;
                record.finished = None;
                record.error = None;
                record.cancel_requested = false;
            }
            Ok((Some(record.clone()), record))
        })?;
        if record.state == JobState::Done {
            return Ok(Err(record));
        }
        let _ = manager.inner.events.send(Event::JobChanged { job: op.id });
        let running = Self {
            manager: manager.clone(),
            id: op.id,
            op: op.clone(),
            last_beat: Instant::now(),
            bytes: (record.bytes_done.0, record.bytes_total.0),
            _held: held,
        };
        Ok(Ok((running, record)))
    }

    pub(crate) fn id(&self) -> JobId {
        self.id
    }

    /// Tells how far it is: the caller at once, the record now and then, and always when `safe`.
    /// Called from the copying thread; breaks when somebody wants the job to end.
    pub(crate) fn report(&mut self, done: u64, total: u64, safe: bool) -> ControlFlow<()> {
        self.bytes = (done, total);
        let permille = done.saturating_mul(1000).checked_div(total).unwrap_or(1000) as u32;
        if let Some(sink) = &self.op.progress {
            sink(permille.min(1000), "copying");
        }
        if safe || self.last_beat.elapsed() >= BEAT {
            self.record_beat(|record| {
                record.permille = permille.min(1000);
                "copying".clone_into(&mut record.stage);
                record.bytes_done = Bytes(done);
                record.bytes_total = Bytes(total);
                if safe {
                    record.safe = done;
                }
            });
        }
        if self.op.cancel.is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Records what the driver last told, and looks whether somebody wants the job to end.
    pub(crate) fn beat(&mut self, permille: u32, stage: &str) {
        self.record_beat(|record| {
            record.permille = permille.min(1000);
            stage.clone_into(&mut record.stage);
        });
    }

    fn record_beat(&mut self, change: impl Fn(&mut JobRecord)) {
        self.last_beat = Instant::now();
        let beat = self.manager.inner.catalog.update(&key(self.id), false, |record| {
            let record: Option<JobRecord> = record;
            let mut cancel = false;
            let record = record.map(|mut record| {
                change(&mut record);
                cancel = record.cancel_requested;
                record
            });
            Ok((record, cancel))
        });
        match beat {
            Ok(true) => self.op.cancel.cancel(),
            Ok(false) => {}
            // Progress is for people; the work is worth more than its record.
            Err(error) => tracing::warn!(%error, "the job's progress cannot be recorded"),
        }
        let _ = self.manager.inner.events.send(Event::JobChanged { job: self.id });
    }

    /// Records what a maintenance did.
    pub(crate) fn has_maintained(&mut self, reply: &SrMaintained) -> Result<()> {
        let copied = reply.bytes_copied.0;
        let left: u64 = reply.planned.iter().map(|merge| merge.bytes.0).sum();
        self.bytes = (copied, copied.saturating_add(left));
        self.manager.inner.catalog.update(&key(self.id), true, |record| {
            let record: Option<JobRecord> = record;
            let maintained = Some(reply.clone());
            Ok((record.map(|record| JobRecord { maintained, ..record }), ()))
        })
    }

    /// Records whether the target is the job's own.
    pub(crate) fn own_target(&self, ours: bool) -> Result<()> {
        self.manager.inner.catalog.update(&key(self.id), true, |record| {
            let record: Option<JobRecord> = record;
            Ok((record.map(|record| JobRecord { target_is_ours: ours, ..record }), ()))
        })
    }

    /// Records which file an export has written, so that a resumed job knows it under its name.
    pub(crate) fn has_written(&self, file: (u64, u64)) -> Result<()> {
        self.manager.inner.catalog.update(&key(self.id), true, |record| {
            let record: Option<JobRecord> = record;
            Ok((record.map(|record| JobRecord { written: Some(file), ..record }), ()))
        })
    }

    /// Records the checksum of the content.
    pub(crate) fn has_checksum(&self, checksum: Checksum) -> Result<()> {
        self.manager.inner.catalog.update(&key(self.id), true, |record| {
            let record: Option<JobRecord> = record;
            let checksum = Some(checksum);
            Ok((record.map(|record| JobRecord { checksum, ..record }), ()))
        })
    }

    /// Tells that something is done besides copying. Breaks as [`Self::report`].
    pub(crate) fn report_stage(&mut self, done: u64, total: u64, stage: &str) -> ControlFlow<()> {
        let permille = done.saturating_mul(1000).checked_div(total).unwrap_or(1000) as u32;
        if let Some(sink) = &self.op.progress {
            sink(permille.min(1000), stage);
        }
        if self.last_beat.elapsed() >= BEAT {
            self.beat(permille, stage);
        }
        if self.op.cancel.is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Records the end.
    pub(crate) fn end(self, result: &Result<()>) -> Result<()> {
        let state = match result {
            Ok(()) => JobState::Done,
            Err(error) if error.kind == Kind::Cancelled => JobState::Cancelled,
            Err(_) => JobState::Failed,
        };
        self.manager.inner.catalog.update(&key(self.id), true, |record| {
            let record: Option<JobRecord> = record;
            let record = record.map(|mut record| {
                record.state = state;
                record.finished = Some(journal::now());
                record.error = result.as_ref().err().cloned();
                record.bytes_done = Bytes(self.bytes.0);
                record.bytes_total = Bytes(self.bytes.1);
                if state == JobState::Done {
                    record.permille = 1000;
                    // A maintenance whose time was over is done, though not with everything.
                    if record.maintained.is_none() {
                        record.bytes_done = record.bytes_total;
                    }
                }
                record
            });
            Ok((record, ()))
        })?;
        let _ = self.manager.inner.events.send(Event::JobChanged { job: self.id });
        Ok(())
    }
}
