//! Steps with everything decided, as they are done to a store.

use std::ops::ControlFlow;
use std::time::Instant;

use serde_json::json;
use uuid::Uuid;
use vhd::image::Live;
use vhd::tree::{Budget, Format, Readers, Revert, Snapshot, Writer};
use vhd::{Disk, Error, Image, Mode, SECTOR, Tree};

/// A step with everything decided: running it twice is the same as once.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Create {
        uuid: Uuid,
        format: Format,
        size: u64,
    },
    Write {
        uuid: Uuid,
        first: u64,
        count: u64,
        number: u64,
        rogue: bool,
    },
    Flush {
        uuid: Uuid,
    },
    Snapshot {
        op: Uuid,
        source: Uuid,
        new: Uuid,
    },
    /// Sources and the snapshots' names; with `ahead`, what takes time is done first, and the lock
    /// given back.
    Group {
        op: Uuid,
        members: Vec<(Uuid, Uuid)>,
        ahead: bool,
    },
    /// Only that; the group comes later, or never.
    Prepare {
        op: Uuid,
        members: Vec<(Uuid, Uuid)>,
    },
    Revert {
        op: Uuid,
        vdi: Uuid,
        to: Uuid,
    },
    Resize {
        op: Uuid,
        uuid: Uuid,
        size: u64,
        open: bool,
    },
    Delete {
        uuid: Uuid,
    },
    /// Whoever has disks open is told, if he is to be.
    Maintain {
        batches: u64,
        told: bool,
    },
    Reclaim {
        uuid: Uuid,
    },
    Claim {
        uuid: Uuid,
        open: bool,
    },
}

impl Action {
    pub(crate) fn run(&mut self, tree: &Tree) -> vhd::Result<()> {
        let now = Instant::now();
        let lock = || tree.lock(now);
        let mut go = |_: u64| ControlFlow::Continue(());
        match self {
            Self::Create { uuid, format, size } => {
                tree.create(&lock()?, *uuid, *format, *size, &json!({})).map(drop)
            }
            Self::Write { uuid, first, count, number, rogue: true } => {
                write(tree, *uuid, *first, *count, *number)
            }
            Self::Write { uuid, first, count, number, rogue: false } => {
                tree.claim(&lock()?, *uuid, "writer")?;
                let written = write(tree, *uuid, *first, *count, *number);
                tree.unclaim(&lock()?, *uuid, "writer")?;
                written
            }
            Self::Flush { uuid } => tree.open_disk(*uuid, Mode::Write)?.flush(),
            Self::Snapshot { op, source, new } => {
                let request = Snapshot {
                    op: *op,
                    source: *source,
                    new: *new,
                    new_metadata: &json!({}),
                    allow_copy: true,
                };
                tree.snapshot(&lock()?, &request, &mut go).map(drop)
            }
            Self::Group { op, members, ahead } => {
                let metadata = json!({});
                let requests = requests(*op, members, &metadata);
                if *ahead {
                    tree.prepare_group(&lock()?, &requests)?;
                }
                tree.snapshot_group(&lock()?, &requests, None, &mut go).map(drop)
            }
            Self::Prepare { op, members } => {
                let metadata = json!({});
                tree.prepare_group(&lock()?, &requests(*op, members, &metadata))
            }
            Self::Revert { op, vdi, to } => {
                let request = Revert {
                    op: *op,
                    vdi: *vdi,
                    snapshot: *to,
                    metadata: &json!({}),
                    allow_copy: true,
                };
                tree.revert(&lock()?, &request, &mut go).map(drop)
            }
            Self::Resize { op, uuid, size, open } => {
                let guard = lock()?;
                loop {
                    let writer = open.then_some(&Somebody as &dyn Writer);
                    match tree.resize_written(&guard, *op, *uuid, *size, &json!({}), writer) {
                        Err(Error::VolumeFull { needed, .. }) => {
                            tree.extend(&guard, *uuid, needed)?;
                        }
                        other => return other.map(drop),
                    }
                }
            }
            Self::Delete { uuid } => tree.delete(&lock()?, *uuid).map(drop),
            Self::Maintain { batches, told } => {
                let left = std::sync::atomic::AtomicU64::new(*batches);
                let budget = Budget { parallel: 1, batch: 16 << 10, ..Budget::default() };
                let progress = |_| {
                    let before = left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
                    if before == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                let report = if *told {
                    tree.maintain_beside(now, &budget, &progress, &Somebody)?
                } else {
                    tree.maintain(now, &budget, &progress)?
                };
                // A cut or a full disk shows as merges that were left alone.
                match report.skipped.iter().find(|skipped| !skipped.reason.contains("is open")) {
                    Some(skipped) if skipped.reason.contains("the power is off") => {
                        let error = std::io::Error::other("the power is off");
                        Err(Error::Io { path: tree.path(), action: "merge", source: error })
                    }
                    Some(skipped) if skipped.reason.contains("no storage space") => {
                        let error = std::io::ErrorKind::StorageFull.into();
                        Err(Error::Io { path: tree.path(), action: "merge", source: error })
                    }
                    Some(skipped) => panic!("{skipped:?}"),
                    None => Ok(()),
                }
            }
            Self::Reclaim { uuid } => {
                tree.reclaim(now, *uuid, &|_| ControlFlow::Continue(())).map(drop)
            }
            Self::Claim { uuid, open: true } => tree.claim(&lock()?, *uuid, "somebody"),
            Self::Claim { uuid, open: false } => tree.unclaim(&lock()?, *uuid, "somebody"),
        }
    }
}

fn requests<'a>(
    op: Uuid,
    members: &[(Uuid, Uuid)],
    metadata: &'a serde_json::Value,
) -> Vec<Snapshot<'a>> {
    let request = |(source, new): &(Uuid, Uuid)| Snapshot {
        op,
        source: *source,
        new: *new,
        new_metadata: metadata,
        allow_copy: true,
    };
    members.iter().map(request).collect()
}

/// Whoever has disks open does what he is told.
struct Somebody;

impl Writer for Somebody {
    fn stop(&self) -> vhd::Result<()> {
        Ok(())
    }

    fn go_on(&self) {}
}

impl Readers for Somebody {
    fn hears(&self, _: Uuid, holder: &str) -> bool {
        holder == "somebody"
    }

    fn close(&self, _: &[Uuid]) -> vhd::Result<()> {
        Ok(())
    }

    fn go_over(&self, _: Uuid) -> vhd::Result<()> {
        Ok(())
    }
}

fn write(tree: &Tree, uuid: Uuid, first: u64, count: u64, number: u64) -> vhd::Result<()> {
    let bytes: Vec<u8> = (first..first + count).flat_map(|at| sector_of(number, at)).collect();
    loop {
        let disk = tree.open_disk(uuid, Mode::Write)?;
        if let Some(leaf) = disk.leaf() {
            leaf.go_live(Live::default())?;
        }
        match disk.write_at(first * SECTOR, &bytes) {
            Err(Error::VolumeFull { needed, .. }) => {
                drop(disk);
                tree.extend(&tree.lock(Instant::now())?, uuid, needed)?;
            }
            other => {
                other?;
                return disk.leaf().map_or(Ok(()), Image::close);
            }
        }
    }
}

/// Answers that are right and change nothing.
pub(crate) fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::ChainTooLong { .. }
            | Error::FormatsDiffer { .. }
            | Error::Shrink { .. }
            | Error::InUse { .. }
    )
}

/// What a write with a number puts into a sector; zeros have none.
pub(crate) fn sector_of(write: u64, sector: u64) -> [u8; 512] {
    if write == 0 {
        return [0; 512];
    }
    let mut bytes = [write as u8 | 1; 512];
    bytes[..8].copy_from_slice(&write.to_be_bytes());
    bytes[8..16].copy_from_slice(&sector.to_be_bytes());
    bytes
}
