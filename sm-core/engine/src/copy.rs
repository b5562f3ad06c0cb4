//! Import, export and copy: jobs that move the bytes of a disk.
//!
//! A disk that is being filled is marked `incomplete` on the storage until the last byte is
//! safe, so that no half-made disk is taken for a good one, by anybody.

use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{CWD, RenameFlags};
use sm_model::manifest::feature;
use sm_model::vdi::{VdiInfo, VdiStat, VdiUpdate};
use sm_model::{AttachMode, Bytes, Error, ImageFormat, Kind, Result, VdiUuid};
use sm_step::step;
use vhd::{Disk, Mode};

use crate::attach::JOB;
use crate::catalog::AttachmentRecord;
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
}

impl Sr {
    /// Makes a VDI of the bytes of a file or of standard input. A job of the operation's id: the
    /// same call with the same id goes on after a crash.
    pub async fn import(&self, op: &Op, source: ImportSource, new: NewVdi) -> Result<VdiInfo> {
        let vdi = new.uuid.unwrap_or_else(|| op.id.vdi(0));
        self.run(op, Plan::Import { source, new }).await?;
        self.read(op, &VdiStat::of(vdi)).await
    }

    /// Writes the content of a VDI to a file. Refused while somebody may be writing the VDI.
    pub async fn export(&self, op: &Op, vdi: VdiUuid, target: ExportTarget) -> Result<Transferred> {
        let path = target.path.clone();
        self.run(op, Plan::Export { vdi, target }).await?;
        let info = self.read(op, &VdiStat::of(vdi)).await?;
        let file =
            std::fs::metadata(&path).map_err(|error| Error::from(error).context("path", &path))?;
        Ok(Transferred { bytes: info.virtual_size, allocated: Bytes(file.blocks() * 512) })
    }

    /// Makes a VDI in `target` with the content of a VDI of this SR.
    pub async fn copy(&self, op: &Op, vdi: VdiUuid, target: &Sr, new: NewVdi) -> Result<VdiInfo> {
        let uuid = new.uuid.unwrap_or_else(|| op.id.vdi(0));
        self.run(op, Plan::Copy { vdi, target: target.uuid(), new }).await?;
        target.read(op, &VdiStat::of(uuid)).await
    }

    /// Runs a job to its end, from wherever an earlier process left it.
    pub(crate) async fn run(&self, op: &Op, plan: Plan) -> Result<()> {
        let (vdi, description) = match &plan {
            Plan::Import { source, new } => {
                let from = match source {
                    ImportSource::File { path, .. } => path.as_str(),
                    ImportSource::Stdin { .. } => "standard input",
                };
                (Some(new.uuid.unwrap_or_else(|| op.id.vdi(0))), format!("import {from}"))
            }
            Plan::Export { vdi, target } => {
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
            Plan::Import { source, new } => {
                self.run_import(op, &mut running, &record, source, new).await
            }
            Plan::Export { vdi, target } => {
                self.run_export(op, &mut running, &record, vdi, &target).await
            }
            Plan::Copy { vdi, target, new } => match self.manager.sr(&target.to_string()) {
                Ok(target) => self.run_copy(op, &mut running, &record, vdi, &target, new).await,
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
        mut new: NewVdi,
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
        self.fill(op, running, record, new, move |target, running| {
            let mut report = |done, safe| {
                step!("job.copying");
                running.report(done, bytes, safe)
            };
            if let Some(disk) = disk {
                return transfer::copy(disk.as_ref(), target, start, &mut report);
            }
            transfer::fill(&mut std::io::stdin().lock(), bytes, target, &mut report)
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
        mut new: NewVdi,
    ) -> Result<()> {
        let start = record.safe;
        let reader = Reader::attach(self, op, vdi).await?;
        let result = async {
            let source = reader.open().await?;
            let bytes = source.size();
            new.virtual_size = Bytes(new.virtual_size.0.max(bytes));
            target
                .fill(op, running, record, new, move |disk, running| {
                    let start = start.min(bytes);
                    transfer::copy(source.as_ref(), disk, start, &mut |done, safe| {
                        step!("job.copying");
                        running.report(done, bytes, safe)
                    })
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
        target: &ExportTarget,
    ) -> Result<()> {
        let ExportTarget { path, format, overwrite } = target.clone();
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
                let result = write_file(source.as_ref(), &path, format, overwrite, &mut job);
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
        new: NewVdi,
        work: impl FnOnce(&dyn Disk, &mut Running) -> Result<()> + Send + 'static,
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
                    .and_then(|target| work(target.as_ref(), &mut job));
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
    path: &Utf8Path,
    format: ImageFormat,
    overwrite: bool,
    job: &mut Running,
) -> Result<()> {
    let failed = |error: std::io::Error| Error::from(error).context("path", path);
    // The name appears only when the content is whole.
    let partial = Utf8PathBuf::from(format!("{path}.{}.partial", job.id()));
    let bytes = source.size();
    let _ = std::fs::remove_file(&partial);
    let written = transfer::write(source, partial.as_std_path(), format, &mut |done, safe| {
        step!("job.copying");
        job.report(done, bytes, safe)
    })
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

fn exists(path: &Utf8Path) -> Error {
    Error::new(Kind::Exists, format!("{path} exists"))
        .hint("choose another name, or --force to replace it")
}

fn folder_of(path: &Utf8Path) -> &Utf8Path {
    path.parent().filter(|folder| !folder.as_str().is_empty()).unwrap_or(Utf8Path::new("."))
}
