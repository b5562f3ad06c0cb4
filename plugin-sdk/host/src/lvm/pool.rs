//! The thin pool: its size, how full it is, and growing it.

use plugin_sdk::model::{Bytes, Kind};
use plugin_sdk::{Error, Result};

use crate::lvm::report::{Group, Volume};

/// Name of the pool's volume.
pub(crate) const NAME: &str = "pool";

/// From here on, in ten-thousandths, the pool takes what is free in the group, and the SR warns.
pub(crate) const WARN: u64 = 8000;
/// From here on nothing new is begun: guests that write need what is left.
const REFUSE: u64 = 9500;

/// Bytes of metadata for a chunk that one volume maps. Snapshots that differ need more; then the
/// metadata grows.
const PER_CHUNK: u64 = 64;
/// dm-thin addresses no more metadata than this (thin-provisioning.txt).
const MOST_METADATA: u64 = 15 << 30;
/// Least that is worth a volume.
const LEAST_METADATA: u64 = 4 << 20;

/// How to lay out a pool in so many free bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) extents: u64,
    pub(crate) metadata: u64,
    pub(crate) chunk: u64,
}

impl Layout {
    /// All that is free, less the metadata, its spare copy for repairs, and room for both to
    /// double. Small chunks make snapshots cheap, large ones the metadata small: LVM's own choice
    /// goes by its default for the metadata, and gives 2 MiB at 4 TiB.
    pub(crate) fn of(group: &Group) -> Result<Self> {
        let chunk = match group.free {
            ..=0x200_0000_0000 => 64 << 10,
            0x200_0000_0001..=0x1000_0000_0000 => 256 << 10,
            _ => 512 << 10,
        };
        let wanted = (group.free / chunk).saturating_mul(PER_CHUNK);
        let metadata = wanted.clamp(LEAST_METADATA, MOST_METADATA).next_multiple_of(group.extent);
        let free = group.free / group.extent;
        let extents = free.saturating_sub(4 * (metadata / group.extent));
        if extents == 0 {
            return Err(Error::new(
                Kind::NoSpace,
                format!("{} are too few for a thin pool", Bytes(group.free)),
            )
            .legacy(44));
        }
        Ok(Self { extents, metadata, chunk })
    }
}

/// The pool of a group.
pub(crate) fn of(group: &Group) -> Option<&Volume> {
    group.volume(NAME).filter(|volume| volume.is_pool)
}

/// Bytes of data that the pool has or can get: what its metadata may need is no room for data.
pub(crate) fn size(group: &Group, pool: &Volume) -> u64 {
    let metadata = pool.metadata_size.max(group.extent);
    pool.size + group.free.saturating_sub(2 * metadata)
}

/// What is wrong with the pool, so that all disks of the SR suffer from it.
pub(crate) fn trouble(group: &Group) -> Option<String> {
    let pool = of(group)?;
    let what = match pool.health.as_str() {
        "" if pool.needs_check => "needs a check",
        "" => return None,
        "out_of_data" => "is full: writes fail with ENOSPC",
        "metadata_read_only" => "has read-only metadata, because they were full or are damaged",
        "failed" => "has failed",
        "partial" => "lacks a device",
        other => other,
    };
    Some(format!("the thin pool {what}"))
}

/// What will be a trouble if nobody does anything.
pub(crate) fn warnings(group: &Group) -> Vec<String> {
    let Some(pool) = of(group) else { return Vec::new() };
    let mut warnings = Vec::new();
    for (what, full) in [("data", pool.data), ("metadata", pool.metadata)] {
        if let Some(full) = full.filter(|full| *full >= WARN) {
            warnings.push(format!(
                "thin pool of {}: {what} {} full; {}",
                group.name,
                Percent(full),
                advice(group)
            ));
        }
    }
    if pool.data.is_none() {
        warnings.push(format!(
            "thin pool of {}: not active, so how full it is is not known; smctl sr attach",
            group.name
        ));
    }
    warnings
}

/// Refuses new work in a pool that is about to be full.
pub(crate) fn room(group: &Group) -> Result<()> {
    let Some(pool) = of(group) else { return Ok(()) };
    for (what, full) in [("data", pool.data), ("metadata", pool.metadata)] {
        if let Some(full) = full.filter(|full| *full >= REFUSE) {
            return Err(Error::new(
                Kind::NoSpace,
                format!(
                    "the thin pool of {} is nearly full: {what} {}, nothing new from {} on",
                    group.name,
                    Percent(full),
                    Percent(REFUSE)
                ),
            )
            .legacy(44)
            .hint(advice(group)));
        }
    }
    Ok(())
}

/// Refuses a writer of a pool that takes no writes.
pub(crate) fn writable(group: &Group) -> Result<()> {
    match trouble(group) {
        Some(reason) => Err(Error::new(Kind::NoSpace, format!("{reason}, in {}", group.name))
            .legacy(44)
            .hint(advice(group))),
        None => Ok(()),
    }
}

fn advice(group: &Group) -> String {
    format!("destroy VDIs, or add a disk to the group {} (docs/drivers/lvm.md)", group.name)
}

/// The commands that let the pool grow, if it should and can: words for `lvextend`.
pub(crate) fn growth(group: &Group) -> Vec<Vec<String>> {
    let Some(pool) = of(group) else { return Vec::new() };
    let path = format!("{}/{NAME}", group.name);
    let full = |used: Option<u64>| used.is_some_and(|used| used >= WARN);
    let metadata = pool.metadata_size.max(group.extent);
    let mut commands = Vec::new();
    let mut free = group.free;
    // The spare copy, which a repair needs, grows with it.
    let more = metadata.min(MOST_METADATA.saturating_sub(metadata));
    if full(pool.metadata) && more >= group.extent && free >= 2 * more {
        commands.push(vec![format!("--poolmetadatasize=+{more}b"), path.clone()]);
        free -= 2 * more;
    }
    let extents = free.saturating_sub(2 * metadata) / group.extent;
    if full(pool.data) && extents > 0 {
        commands.push(vec![format!("--extents=+{extents}"), path]);
    }
    commands
}

/// Ten-thousandths as people write them.
struct Percent(u64);

impl std::fmt::Display for Percent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:02} %", self.0 / 100, self.0 % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn group(free: u64, data: u64, metadata: u64) -> Group {
        let pool = Volume {
            name: NAME.into(),
            is_pool: true,
            data: Some(data),
            metadata: Some(metadata),
            metadata_size: 8 * MIB,
            ..Volume::default()
        };
        Group { name: "g".into(), free, extent: 4 * MIB, volumes: vec![pool], ..Group::default() }
    }

    #[test]
    fn a_pool_takes_what_is_free_less_its_metadata() {
        let layout = |free: u64| Layout::of(&group(free, 0, 0)).unwrap();
        assert_eq!(layout(492 * MIB), Layout { extents: 119, metadata: 4 * MIB, chunk: 64 << 10 });
        // 2 TiB: 32 Mi chunks of 64 KiB.
        assert_eq!(
            layout(2 << 40),
            Layout { extents: 524_288 - 2048, metadata: 2 << 30, chunk: 64 << 10 }
        );
        assert_eq!(layout(4 << 40).chunk, 256 << 10);
        assert_eq!(layout(64 << 40).chunk, 512 << 10);
        let none = Layout::of(&group(16 * MIB, 0, 0)).unwrap_err();
        assert_eq!(
            (none.kind.clone(), none.message.as_str()),
            (Kind::NoSpace, "16MiB are too few for a thin pool")
        );
    }

    #[test]
    fn what_is_full_grows_and_nothing_else() {
        let path = || "g/pool".to_owned();
        assert!(growth(&group(400 * MIB, 7999, 7999)).is_empty());
        let data = vec!["--extents=+96".to_owned(), path()];
        assert_eq!(growth(&group(400 * MIB, 8000, 0)), vec![data]);
        let metadata = vec!["--poolmetadatasize=+8388608b".to_owned(), path()];
        assert_eq!(growth(&group(400 * MIB, 0, 8000)), vec![metadata.clone()]);
        let rest = vec!["--extents=+92".to_owned(), path()];
        assert_eq!(growth(&group(400 * MIB, 9000, 9000)), vec![metadata, rest]);
        // What the metadata may need is kept for it.
        assert!(growth(&group(16 * MIB, 9999, 0)).is_empty());
        assert!(growth(&group(0, 9999, 9999)).is_empty());
    }

    #[test]
    fn a_pool_that_is_nearly_full_says_so_before() {
        assert!(room(&group(0, 9499, 9499)).is_ok() && warnings(&group(0, 7999, 7999)).is_empty());
        let full = room(&group(0, 9500, 0)).unwrap_err();
        assert_eq!(full.kind, Kind::NoSpace);
        assert_eq!(
            full.message,
            "the thin pool of g is nearly full: data 95.00 %, nothing new from 95.00 % on"
        );
        assert_eq!(
            warnings(&group(0, 10, 8765)),
            ["thin pool of g: metadata 87.65 % full; destroy VDIs, or add a disk to the group g \
              (docs/drivers/lvm.md)"]
        );
    }
}
