//! What an SR and its disks take.

use std::collections::HashSet;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

use plugin_sdk::model::Bytes;
use plugin_sdk::model::sr::SrUsage;
use plugin_sdk::model::vdi::VdiInfo;
use plugin_sdk::{Result, Utf8Path};
use vhd::tree::{Kind, Listing, MAX_DEPTH, Node};

use crate::error::from_io;

/// Percent of the limit from which on a chain is worth a warning.
const WARN_PERCENT: usize = 80;

/// Chains that are named; of more, their number is told.
const WARNINGS: usize = 10;

/// What the SR takes on its file system, divided.
pub(crate) fn usage(folder: &Utf8Path, nodes: &[Node]) -> Result<SrUsage> {
    let sum = |kind| -> u64 {
        nodes.iter().filter(|node| node.kind == kind).map(|node| node.physical_size).sum()
    };
    let (vdis, base_copies) = (sum(Kind::Leaf), sum(Kind::Base));
    let mut seen = HashSet::new();
    let all = taken(folder, &mut seen)?;
    let overhead = all.saturating_sub(vdis).saturating_sub(base_copies);
    Ok(SrUsage { vdis: Bytes(vdis), base_copies: Bytes(base_copies), overhead: Bytes(overhead) })
}

/// What a folder takes with all that is in it; a file with several names once.
fn taken(folder: &Utf8Path, seen: &mut HashSet<(u64, u64)>) -> Result<u64> {
    let failed = |error| from_io(error, folder);
    let mut bytes = allocated(&folder.symlink_metadata().map_err(failed)?);
    for entry in folder.read_dir_utf8().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let metadata = match entry.path().symlink_metadata() {
            Ok(metadata) => metadata,
            // Another operation has just ended.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(from_io(error, entry.path())),
        };
        if metadata.is_dir() {
            bytes += taken(entry.path(), seen)?;
        } else if seen.insert((metadata.dev(), metadata.ino())) {
            bytes += allocated(&metadata);
        }
    }
    Ok(bytes)
}

/// `stat` counts in units of 512 bytes, whatever the file system's blocks are.
fn allocated(metadata: &Metadata) -> u64 {
    metadata.blocks() * 512
}

/// Chains that come close to the limit, the longest first.
pub fn warnings(nodes: &[Node]) -> Vec<String> {
    let near = MAX_DEPTH * WARN_PERCENT / 100;
    let mut long: Vec<&Node> =
        nodes.iter().filter(|node| node.kind == Kind::Leaf && node.depth >= near).collect();
    long.sort_by_key(|node| (std::cmp::Reverse(node.depth), node.uuid));
    let mut warnings: Vec<String> = long
        .iter()
        .take(WARNINGS)
        .map(|node| {
            format!(
                "VDI {}: chain of {} of at most {MAX_DEPTH} images; smctl sr maintain shortens it",
                node.uuid, node.depth
            )
        })
        .collect();
    if long.len() > WARNINGS {
        warnings.push(format!(
            "{} more VDIs have chains of {near} images or more",
            long.len() - WARNINGS
        ));
    }
    warnings
}

/// What comes back when each disk is destroyed: its own image, and the base copies that only it
/// needs.
pub(crate) fn add_exclusive(vdis: &mut [VdiInfo], listing: &Listing) {
    let exclusive = listing.exclusive();
    for vdi in vdis {
        vdi.exclusive = exclusive.get(&vdi.uuid.0).map(|bytes| Bytes(*bytes));
    }
}
