//! Import, export and copy: jobs that move the bytes of a disk.
//!
//! A disk that is being filled is marked `incomplete` on the storage until the last byte is
//! safe, so that no half-made disk is taken for a good one, by anybody.

use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{CWD, RenameFlags};
use sm_model::manifest::feature;
use sm_model::vdi::{VdiInfo, VdiStat, VdiUpdate};
use sm_model::{AttachMode, Bytes, Error, Kind, Result, VdiUuid};
use sm_step::step;
use vhd::{Disk, Mode};

use crate::attach::JOB;
use crate::catalog::AttachmentRecord;
use crate::checksum::{self, Checks, Checksum, Sum, Summed};
use crate::jobs::{ExportTarget, ImportSource, JobRecord, Plan, Running};
use crate::op::Op;
use crate::services::blocking;
use crate::sr::{NewVdi, Sr};
use crate::transfer;

/// What an export wrote.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Transferred {
    /// Bytes of the disk, holes included.
    pub bytes: Bytes,
    /// Bytes the file takes.
    pub allocated: Bytes,
    /// That of the disk's content, if it was asked for.
    pub checksum: Option<Checksum>,
}

/// What an import or copy made.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Filled {
    /// The VDI.
    pub vdi: VdiInfo,
    /// That of its content, if it was asked for.
    pub checksum: Option<Checksum>,
}

impl Sr {
    /// Makes a VDI of the bytes of a file or of standard input. A job of the operation's id: the
    /// same call with the same id goes on after a crash.
    pub async fn import(&self, op: &Op, source: ImportSource, new: NewVdi) -> Result<VdiInfo> {
        Ok(self.import_checked(op, source, new, Checks::default()).await?.vdi)
    }

    /// As [`Self::import`], and makes sure of what `checks` says. When that does not hold, the VDI
    /// is gone again.
    pub async fn import_checked(
        &self,
        op: &Op,
        source: ImportSource,
        new: NewVdi,
        checks: Checks,
    ) -> Result<Filled> {
        let vdi = new.uuid.unwrap_or_else(|| op.id.vdi(0));
        self.run(op, Plan::Import { source, new, checks }).await?;
        Ok(Filled {
            vdi: self.read(op, &VdiStat::of(vdi)).await?,
            checksum: self.manager.job(&op.id.to_string())?.checksum,
        })
    }

    /// Writes the content of a VDI to a file. Refused while somebody may be writing the VDI.
    pub async fn export(&self, op: &Op, vdi: VdiUuid, target: ExportTarget) -> Result<Transferred> {
        self.export_checked(op, vdi, target, Checks::default()).await
    }

    /// As [`Self::export`], and makes sure of what `checks` says. When that does not hold, there is
    /// no file.
    pub async fn export_checked(
        &self,
        op: &Op,
        vdi: VdiUuid,
        target: ExportTarget,
        checks: Checks,
    ) -> Result<Transferred> {
        let path = target.path.clone();
        self.run(op, Plan::Export { vdi, target, checks }).await?;
        let info = self.read(op, &VdiStat::of(vdi)).await?;
        let file =
            std::fs::metadata(&path).map_err(|error| Error::from(error).context("path", &path))?;
        Ok(Transferred {
            bytes: info.virtual_size,
            allocated: Bytes(file.blocks() * 512),
            checksum: self.manager.job(&op.id.to_string())?.checksum,
        })
    }

    /// Makes a VDI in `target` with the content of a VDI of this SR.
    pub async fn copy(&self, op: &Op, vdi: VdiUuid, target: &Sr, new: NewVdi) -> Result<VdiInfo> {
        Ok(self.copy_checked(op, vdi, target, new, Checks::default()).await?.vdi)
    }

    /// As [`Self::copy`], and makes sure of what `checks` says. When that does not hold, the new
    /// VDI is gone again.
    pub async fn copy_checked(
        &self,
        op: &Op,
        vdi: VdiUuid,
        target: &Sr,
        new: NewVdi,
        checks: Checks,
    ) -> Result<Filled> {
        let uuid = new.uuid.unwrap_or_else(|| op.id.vdi(0));
        self.run(op, Plan::Copy { vdi, target: target.uuid(), new, checks }).await?;
        Ok(Filled {
            vdi: target.read(op, &VdiStat::of(uuid)).await?,
            checksum: self.manager.job(&op.id.to_string())?.checksum,
        })
    }

    /// Runs a job to its end, from wherever an earlier process left it.
    pub(crate) async fn run(&self, op: &Op, plan: Plan) -> Result<()> {
        let (vdi, description) = match &plan {
            Plan::Import { source, new, .. } => {
                let from = match source {
                    ImportSource::File { path, .. } => path.as_str(),
                    ImportSource::Stdin { .. } => "standard input",
                };
                (Some(new.uuid.unwrap_or_else(|| op.id.vdi(0))), format!("import {from}"))
            }
            Plan::Export { vdi, target, .. } => {
                (Some(*vdi), format!("export VDI {vdi} to {}", target.path))
            }
            Plan::Copy { vdi, target, .. } => {
                (Some(*vdi), format!("copy VDI {vdi} to SR {target}"))
            }
            Plan::Maintain { .. } => (None, format!("maintain SR {}", self.uuid())),
        };
        let started =
            Running::start(&self.manager, op, self.uuid(), vdi, description, &plan).await?;
        let (running, record) = match started {
            Ok(started) => started,
            Err(_done) => return Ok(()),
        };
        step!("job.started");
        let mut running = Some(running);
        let result = match plan {
            Plan::Import { source, new, checks } => {
                self.run_import(op, &mut running, &record, source, (new, checks)).await
            }
            Plan::Export { vdi, target, checks } => {
                self.run_export(op, &mut running, &record, vdi, (&target, checks)).await
            }
            Plan::Copy { vdi, target, new, checks } => match self.manager.sr(&target.to_string()) {
                Ok(target) => {
                    self.run_copy(op, &mut running, &record, vdi, &target, (new, checks)).await
                }
                Err(error) => Err(error),
            },
            Plan::Maintain { budget } => self.run_maintain(op, &mut running, budget).await,
        };
        match running {
            Some(running) => running.end(&result)?,
            None => return Err(lost()),
        }
        result.map_err(|error| error.context("job", op.id))
    }

    async fn run_import(
        &self,
        op: &Op,
        running: &mut Option<Running>,
        record: &JobRecord,
        source: ImportSource,
        (mut new, checks): (NewVdi, Checks),
    ) -> Result<()> {
        let (disk, stream_size) = match &source {
            ImportSource::File { path, format } => {
                let path = path.clone();
                let format = *format;
                let disk = blocking(move || {
                    let format = match format {
                        Some(format) => format,
                        None => transfer::look(path.as_std_path())?,
                    };
                    transfer::open_source(path.as_std_path(), format)
                        .map_err(|error| error.context("path", &path))
                })
                .await?;
                (Some(disk), 0)
            }
            ImportSource::Stdin { size: Some(size) } => (None, size.0),
            ImportSource::Stdin { size: None } => {
                return Err(Error::new(Kind::Limit, "the size of standard input is not known")
                    .hint("give it with --size"));
            }
        };
        let bytes = disk.as_ref().map_or(stream_size, |disk| disk.size());
        if new.virtual_size.0 < bytes {
            if new.virtual_size.0 != 0 {
                return Err(Error::new(
                    Kind::Limit,
                    format!("a VDI of {} cannot hold {bytes} bytes", new.virtual_size),
                )
                .legacy(79));
            }
            new.virtual_size = Bytes(bytes);
        }
        let start = record.safe.min(bytes);
        self.fill(op, running, record, (new, checks), move |target, running| {
            let mut report = |done, safe| {
                step!("job.copying");
                running.report(done, bytes, safe)
            };
            let Some(disk) = disk else {
                let mut sum = (!checks.are_none()).then(Sum::default);
                let stdin = &mut std::io::stdin().lock();
                transfer::fill(stdin, bytes, target, sum.as_mut(), &mut report)?;
                let read_back = checks.verify;
                return Ok(sum.map(|sum| Taken { of: sum.finish(bytes), bytes, read_back }));
            };
            copy_checked(disk.as_ref(), target, start, checks, running)
        })
        .await
    }

    async fn run_copy(
        &self,
        op: &Op,
        running: &mut Option<Running>,
        record: &JobRecord,
        vdi: VdiUuid,
        target: &Self,
        (mut new, checks): (NewVdi, Checks),
    ) -> Result<()> {
        let start = record.safe;
        let reader = Reader::attach(self, op, vdi).await?;
        let result = async {
            let source = reader.open().await?;
            let bytes = source.size();
            new.virtual_size = Bytes(new.virtual_size.0.max(bytes));
            target
                .fill(op, running, record, (new, checks), move |disk, running| {
                    let start = start.min(bytes);
                    copy_checked(source.as_ref(), disk, start, checks, running)
                })
                .await
        }
        .await;
        reader.detach().await.and(result)
    }

    async fn run_export(
        &self,
        op: &Op,
        running: &mut Option<Running>,
        record: &JobRecord,
        vdi: VdiUuid,
        (target, checks): (&ExportTarget, Checks),
    ) -> Result<()> {
        let target = target.clone();
        let ExportTarget { path, overwrite, .. } = target.clone();
        // Attached first even if there is nothing to do: the end lets go of what a dead process
        // has left attached.
        let reader = Reader::attach(self, op, vdi).await?;
        let result = async {
            if let Ok(found) = std::fs::metadata(&path) {
                if record.written == Some((found.dev(), found.ino())) {
                    return Ok(()); // The process died after the file had got its name.
                }
                if !overwrite {
                    return Err(exists(&path));
                }
            }
            let folder = folder_of(&path);
            if !folder.is_dir() {
                return Err(Error::not_found(format!("{folder} is not a directory")));
            }
            let source = reader.open().await?;
            let Some(mut job) = running.take() else { return Err(lost()) };
            let (job, result) = blocking(move || {
                let result = write_file(source.as_ref(), &target, checks, &mut job);
                Ok((job, result))
            })
            .await?;
            *running = Some(job);
            result
        }
        .await;
        reader.detach().await.and(result)
    }

    /// Makes a VDI, lets `work` fill it, and clears its `incomplete` mark. If the work fails the
    /// VDI goes; if this process dies it stays, marked, for the job to be resumed.
    async fn fill(
        &self,
        op: &Op,
        running: &mut Option<Running>,
        record: &JobRecord,
        (new, checks): (NewVdi, Checks),
        work: impl FnOnce(&dyn Disk, &mut Running) -> Result<Option<Taken>> + Send + 'static,
    ) -> Result<()> {
        let vdi = new.uuid.unwrap_or_else(|| op.id.vdi(0));
        let new = NewVdi { uuid: Some(vdi), ..new };
        let datapath = datapath(op);
        if !record.target_is_ours {
            // Create would answer `already` for a disk of this UUID, and we would write over it.
            match self.read(op, &VdiStat::of(vdi)).await {
                Ok(_) => {
                    return Err(Error::new(Kind::Exists, format!("VDI {vdi} exists")).legacy(43));
                }
                Err(error) if error.kind == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
            running.as_ref().ok_or_else(lost)?.own_target(true)?;
        }
        self.create(&op.part("create"), new, true).await?;
        step!("job.created");
        if !self.read(op, &VdiStat::of(vdi)).await?.incomplete {
            // The process died after the last byte: somebody may be using the disk by now.
            return self.complete(op, vdi).await;
        }
        let filled = async {
            let part = op.part("target");
            let access = self.attach_any(&part, vdi, &datapath, AttachMode::ReadWrite).await?;
            self.vdi_activate(&part, vdi, &datapath).await?;
            step!("job.attached");
            let Some(mut job) = running.take() else { return Err(lost()) };
            let (job, result) = blocking(move || {
                let result = transfer::open(&access, Mode::Write)
                    .and_then(|target| work(target.as_ref(), &mut job))
                    .and_then(|taken| {
                        let reopen = || {
                            transfer::forget_cached(&access);
                            transfer::open(&access, Mode::Read)
                        };
                        finish_checks(taken, checks, reopen, &mut job)
                    });
                Ok((job, result))
            })
            .await?;
            *running = Some(job);
            result
        }
        .await;
        step!("job.filled");
        // The caller's cancel must not keep us from cleaning up.
        let end = Op { cancel: sm_loader::port::CancelFlag::default(), ..op.part("end") };
        let left = async {
            self.vdi_deactivate(&end, vdi, &datapath).await?;
            self.vdi_detach(&end, vdi, &datapath).await
        }
        .await;
        step!("job.detached");
        if let Err(error) = filled {
            let undo = end.part("undo");
            let undone = self.vdi_destroy(&undo, vdi).await;
            if undone.is_ok() {
                // The same job may be asked for again: it must find neither the old answer to
                // its create nor to this destroy.
                let catalog = &self.manager.inner.catalog;
                crate::journal::forget(catalog, op.part("create").id)?;
                crate::journal::forget(catalog, undo.id)?;
                running.as_ref().ok_or_else(lost)?.own_target(false)?;
            }
            return Err(match undone {
                Ok(_) => error,
                Err(also) => error
                    .hint(format!("the unfinished VDI {vdi} is still there: {also}; destroy it")),
            });
        }
        left?;
        self.complete(op, vdi).await
    }

    /// Clears the mark of a disk that is filled; that it is cleared is no change.
    async fn complete(&self, op: &Op, vdi: VdiUuid) -> Result<()> {
        let done = VdiUpdate {
            vdi,
            name: None,
            description: None,
            vdi_type: None,
            read_only: None,
            keys: std::collections::BTreeMap::new(),
            incomplete: Some(false),
        };
        let op = Op { cancel: sm_loader::port::CancelFlag::default(), ..op.part("complete") };
        self.vdi_update(&op, done).await?;
        step!("job.completed");
        Ok(())
    }

    /// Lets go of what a job held whose process died, and finishes detaches that were cut.
    pub(crate) async fn release_dead_jobs(&self, op: &Op) -> Result<()> {
        for record in self.attachment_records()? {
            // One disk that cannot be let go of must not keep the SR from being scanned.
            if let Err(error) = self.release(op, &record).await {
                tracing::warn!(vdi = %record.vdi, %error, "a dead job's disk stays attached");
            }
        }
        Ok(())
    }

    async fn release(&self, op: &Op, record: &AttachmentRecord) -> Result<()> {
        for name in record.datapaths.keys() {
            let Some(id) = name.strip_prefix(JOB).and_then(|id| id.parse().ok()) else {
                continue;
            };
            let lock = crate::locks::Lock::operation(id);
            if self.manager.inner.locks.try_take(&lock)?.is_none() {
                continue; // It is alive.
            }
            self.vdi_deactivate(op, record.vdi, name).await?;
            self.vdi_detach(op, record.vdi, name).await?;
            tracing::info!(vdi = %record.vdi, datapath = name, "let go of a dead job's disk");
        }
        self.finish_detach(op, record.vdi).await
    }
}

fn datapath(op: &Op) -> String {
    format!("{JOB}{}", op.id)
}

pub(crate) fn lost() -> Error {
    Error::internal("the job's thread ended without giving the job back")
}

/// A VDI attached for reading by a job.
struct Reader<'a> {
    sr: &'a Sr,
    op: Op,
    vdi: VdiUuid,
    datapath: String,
    access: Vec<sm_model::Access>,
}

impl<'a> Reader<'a> {
    async fn attach(sr: &'a Sr, op: &Op, vdi: VdiUuid) -> Result<Self> {
        let datapath = datapath(op);
        let op = op.part("source");
        sr.refuse_if_attached(&op, vdi, feature::LIVE_SNAPSHOT, Some(AttachMode::ReadWrite))
            .await
            .map_err(|error| match error.kind {
                Kind::InUse => error.hint("snapshot it and use the snapshot"),
                _ => error,
            })?;
        let access = sr.vdi_attach(&op, vdi, &datapath, AttachMode::ReadOnly).await?;
        sr.vdi_activate(&op, vdi, &datapath).await?;
        Ok(Self { sr, op, vdi, datapath, access })
    }

    async fn open(&self) -> Result<Box<dyn Disk>> {
        let access = self.access.clone();
        blocking(move || transfer::open(&access, Mode::Read)).await
    }

    async fn detach(self) -> Result<()> {
        let op = Op { cancel: sm_loader::port::CancelFlag::default(), ..self.op };
        self.sr.vdi_deactivate(&op, self.vdi, &self.datapath).await?;
        self.sr.vdi_detach(&op, self.vdi, &self.datapath).await
    }
}

fn write_file(
    source: &dyn Disk,
    target: &ExportTarget,
    checks: Checks,
    job: &mut Running,
) -> Result<()> {
    let ExportTarget { path, format, overwrite } = target;
    let (path, format, overwrite) = (path.as_path(), *format, *overwrite);
    let failed = |error: std::io::Error| Error::from(error).context("path", path);
    // The name appears only when the content is whole.
    let partial = Utf8PathBuf::from(format!("{path}.{}.partial", job.id()));
    let bytes = source.size();
    let _ = std::fs::remove_file(&partial);
    let mut report = |done, safe| {
        step!("job.copying");
        job.report(done, bytes, safe)
    };
    let written = if checks.are_none() {
        transfer::write(source, partial.as_std_path(), format, &mut report)
    } else {
        let summed = Summed::new(source, Sum::default());
        transfer::write(&summed, partial.as_std_path(), format, &mut report)
            .and_then(|()| summed.finish())
            .and_then(|of| {
                let reopen = || {
                    transfer::forget_cached_file(partial.as_std_path());
                    transfer::open_source(partial.as_std_path(), format)
                };
                let taken = Taken { of, bytes, read_back: checks.verify };
                finish_checks(Some(taken), checks, reopen, job)
            })
    }
    .and_then(|()| {
        let file = std::fs::metadata(&partial).map_err(failed)?;
        job.has_written((file.dev(), file.ino()))?;
        step!("job.written");
        let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match rustix::fs::renameat_with(CWD, partial.as_str(), CWD, path.as_str(), flags) {
            Err(rustix::io::Errno::EXIST) => return Err(exists(path)),
            // A file system that cannot promise it, such as NFS: the check above has to do.
            Err(rustix::io::Errno::INVAL) => std::fs::rename(&partial, path).map_err(failed)?,
            other => other.map_err(|errno| failed(errno.into()))?,
        }
        step!("job.named");
        std::fs::File::open(folder_of(path)).and_then(|folder| folder.sync_all()).map_err(failed)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    written
}

/// The checksum of what was copied.
#[derive(Clone, Copy)]
struct Taken {
    of: Checksum,
    bytes: u64,
    /// What was made is to be read, too.
    read_back: bool,
}

/// Copies `source` over the beginning of `target`, and takes its checksum if that is asked for.
fn copy_checked(
    source: &dyn Disk,
    target: &dyn Disk,
    start: u64,
    checks: Checks,
    job: &mut Running,
) -> Result<Option<Taken>> {
    let bytes = source.size();
    let report = |job: &mut Running, done, safe| {
        step!("job.copying");
        job.report(done, bytes, safe)
    };
    if checks.are_none() {
        transfer::copy(source, target, start, &mut |done, safe| report(job, done, safe))?;
        return Ok(None);
    }
    let mut sum = Sum::default();
    sum.add_disk(source, start, &mut |done| job.report_stage(done, bytes, READING).is_continue())?;
    let summed = Summed::new(source, sum);
    transfer::copy(&summed, target, start, &mut |done, safe| report(job, done, safe))?;
    // What another process has written is as it is: it is read.
    let read_back = checks.verify || start > 0;
    Ok(Some(Taken { of: summed.finish()?, bytes, read_back }))
}

/// The stages of a job that checks.
const READING: &str = "reading again";
const READING_BACK: &str = "reading back";

/// Compares what was made with what it was made of, and that with what is expected.
fn finish_checks(
    taken: Option<Taken>,
    checks: Checks,
    reopen: impl FnOnce() -> Result<Box<dyn Disk>>,
    job: &mut Running,
) -> Result<()> {
    let Some(Taken { of, bytes, read_back }) = taken else { return Ok(()) };
    checksum::check(of, checks.expected)?;
    if read_back {
        let back = checksum::of_disk(reopen()?.as_ref(), bytes, &mut |done| {
            job.report_stage(done, bytes, READING_BACK).is_continue()
        })?;
        checksum::check_back(back, of)?;
    }
    job.has_checksum(of)
}

fn exists(path: &Utf8Path) -> Error {
    Error::new(Kind::Exists, format!("{path} exists"))
        .hint("choose another name, or --force to replace it")
}

fn folder_of(path: &Utf8Path) -> &Utf8Path {
    path.parent().filter(|folder| !folder.as_str().is_empty()).unwrap_or(Utf8Path::new("."))
}
