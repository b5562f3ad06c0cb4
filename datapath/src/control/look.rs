//! Which images the disk has, when whoever was changing them is gone.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FlockOperation;
use uuid::Uuid;

use crate::disk::{Format, Layer, Plan};

/// Most images of a chain; as [`vhd::tree::MAX_DEPTH`].
const MOST_IMAGES: usize = vhd::tree::MAX_DEPTH;

/// What is known of the images from before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Device and inode number of the leaf.
    pub(super) leaf: (u64, u64),
    /// Footer UUID of the leaf, if it is closed: the numbers may be another file's by now.
    pub(super) image: Option<Uuid>,
    /// Device and inode number of its parent, if that has all that the leaf has: it may have got
    /// the leaf's name.
    pub(super) merged: Option<(u64, u64)>,
}

/// Takes the lock of those who change the images, or says why not.
pub(super) fn try_lock(path: &Path) -> Result<Option<File>, String> {
    match File::open(path) {
        // There is nobody any more who could hold it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
        Ok(file) => match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(errno) => Err(format!("{} is locked: {errno}", path.display())),
        },
    }
}

/// Footer UUID of a VHD.
pub(super) fn image_of(layer: &Layer) -> Option<Uuid> {
    vhd::image::probe(&layer.path).ok().map(|info| info.uuid)
}

/// Which images the disk has now, by the path of its leaf: ours, a leaf that was put upon ours, or
/// its parent.
pub(super) fn look(plan: &Plan, known: Known) -> Result<Plan, String> {
    let id =
        |path: &Path| std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let is_ours = |layer: &Layer| {
        id(&layer.path) == Some(known.leaf)
            && known.image.is_none_or(|image| image_of(layer) == Some(image))
    };
    if is_ours(&plan.leaf) {
        return Ok(Plan { backing: below(plan)?, ..plan.clone() });
    }
    if let Some((parent, backing)) = plan.backing.split_first()
        && known.merged.is_some()
        && id(&plan.leaf.path) == known.merged
    {
        let leaf = Layer { path: plan.leaf.path.clone(), format: parent.format };
        sync_folder_of(&leaf.path);
        return Ok(Plan { leaf, backing: backing.to_vec(), read_only: plan.read_only });
    }
    if plan.leaf.format != Format::Vhd {
        return Err(format!("{} is another file", plan.leaf.path.display()));
    }
    let mut layers = Vec::new();
    let mut path = plan.leaf.path.clone();
    while layers.len() + plan.backing.len() < MOST_IMAGES {
        let info = vhd::image::probe(&path).map_err(|error| error.to_string())?;
        layers.push(Layer { path: path.clone(), format: Format::Vhd });
        // A parent lies beside its child, or it is not one that our side has made.
        let Some(name) = info.parent.as_ref().and_then(|parent| parent.sibling()) else { break };
        path = path.with_file_name(name);
        let layer = Layer { path: path.clone(), format: Format::Vhd };
        if is_ours(&layer) {
            let backing = below(&Plan { leaf: layer.clone(), ..plan.clone() })?;
            layers.push(layer);
            layers.extend(backing);
            let leaf = layers.remove(0);
            sync_folder_of(&leaf.path);
            return Ok(Plan { leaf, backing: layers, read_only: plan.read_only });
        }
    }
    Err(format!("{} is another disk", plan.leaf.path.display()))
}

/// The images below the leaf of a plan: one may have been taken out of the chain.
fn below(plan: &Plan) -> Result<Vec<Layer>, String> {
    let mut found: Vec<Layer> = Vec::new();
    let mut known = plan.backing.as_slice();
    let mut child = &plan.leaf;
    while child.format == Format::Vhd {
        let info = vhd::image::probe(&child.path).map_err(|error| error.to_string())?;
        let Some(parent) = info.parent else { break };
        let mut rest = known.iter();
        let is_it =
            |layer: &&Layer| layer.format == Format::Raw || image_of(layer) == Some(parent.uuid);
        let Some(next) = rest.find(is_it) else {
            return Err(format!("{}: its parent is none that it had", child.path.display()));
        };
        found.push(next.clone());
        (known, child) = (rest.as_slice(), next);
    }
    Ok(found)
}

/// What is written from now on lies in a file that must be found again after a power cut. If it
/// cannot be made sure of, nothing better can be done than to go on.
fn sync_folder_of(path: &Path) {
    if let Some(folder) = path.parent() {
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
}
