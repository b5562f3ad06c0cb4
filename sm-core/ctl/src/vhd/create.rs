//! `smctl vhd create`

use std::path::Path;

use serde_json::json;
use sm_model::{Bytes, Error, Kind};
use uuid::Uuid;
use vhd::Raw;
use vhd::footer::DiskType;
use vhd::image::{NewImage, ParentLink};

use super::errors::failure;
use crate::cli::vhd::CreateArgs;
use crate::errors::{Failure, Result, file_error};
use crate::output::Report;

pub(super) fn create(args: &CreateArgs, json: bool) -> Result<Report> {
    if args.block_size.0 != vhd::BLOCK {
        let message = format!("blocks of {} are not written, only those of 2MiB", args.block_size);
        return Err(Failure::from(Error::unsupported(message))
            .hint("2MiB is the only size that all readers of VHD agree on; leave the option out"));
    }
    let parent = args.parent.as_deref().map(|parent| link(&args.file, parent)).transpose()?;
    let least = parent.as_ref().map_or(0, |(_, size)| *size);
    let wanted = args.size.map_or(least, |size| size.0);
    if wanted < least {
        let message =
            format!("{} is smaller than the parent, which has {}", Bytes(wanted), Bytes(least));
        return Err(Error::new(Kind::Limit, message).hint("a child can only be larger").into());
    }
    if wanted == 0 {
        return Err(Error::new(Kind::Limit, "the size of a disk must be above 0").into());
    }
    // A child takes its parent's size as it is, also one that another tool did not round.
    let size = match &parent {
        Some((_, size)) if *size == wanted => wanted,
        _ => vhd::round_size(wanted).map_err(failure)?,
    };
    let uuid = Uuid::new_v4();
    let kind = match (&parent, args.fixed) {
        (Some(_), _) => DiskType::Differencing,
        (None, true) => DiskType::Fixed,
        (None, false) => DiskType::Dynamic,
    };
    let parent = parent.map(|(link, _)| link);
    let parent_uuid = parent.as_ref().map(|link| link.uuid);
    write(&args.file, kind, &NewImage { uuid, size, parent })?;
    let document = json!({
        "path": args.file.to_string_lossy(),
        "uuid": uuid,
        "type": kind.to_string(),
        "virtual_size": size,
        "block_size": (kind != DiskType::Fixed).then_some(vhd::BLOCK),
        "parent": parent_uuid,
    });
    let report = Report::new(json, &document, || format!("{uuid}\n"));
    if size == wanted {
        return Ok(report);
    }
    Ok(report.note(json, format!("the size is rounded up to {}", Bytes(size))))
}

fn write(file: &Path, kind: DiskType, new: &NewImage) -> Result<()> {
    let written = match kind {
        DiskType::Fixed => vhd::image::create_fixed(file, new.uuid, new.size).and_then(|open| {
            let raw = Raw::from_blob(Box::new(open), file, vhd::Mode::Write)?;
            vhd::Disk::flush(&raw)
        }),
        DiskType::Dynamic | DiskType::Differencing => vhd::image::create(file, new),
    };
    match written {
        Ok(()) => sync_dir(file),
        Err(error) => {
            let exists = matches!(&error, vhd::Error::Io { source, action: "create", .. }
                if source.kind() == std::io::ErrorKind::AlreadyExists);
            if exists {
                return Err(already(file));
            }
            if !matches!(
                &error,
                vhd::Error::Io { action: "create", .. } | vhd::Error::TooLarge { .. }
            ) {
                // Ours, and half of an image is none.
                let _ = std::fs::remove_file(file);
            }
            Err(failure(error))
        }
    }
}

/// Somebody's file is in the way.
pub(super) fn already(file: &Path) -> Failure {
    Error::new(Kind::Exists, format!("{} exists", file.display()))
        .hint("remove it, or choose another name")
        .into()
}

/// Makes the name of a new file durable.
pub(super) fn sync_dir(file: &Path) -> Result<()> {
    let dir = vhd::folder::dir_of(file);
    std::fs::File::open(dir)
        .and_then(|open| open.sync_all())
        .map_err(|error| file_error(dir.display(), error))
}

/// How a child names its parent, and the parent's size.
fn link(child: &Path, parent: &Path) -> Result<(ParentLink, u64)> {
    let same = |left: &Path, right: &Path| {
        let real = |path: &Path| std::fs::canonicalize(vhd::folder::dir_of(path));
        matches!((real(left), real(right)), (Ok(left), Ok(right)) if left == right)
    };
    let info = vhd::image::probe(parent).map_err(failure)?;
    let refuse =
        |message: String, hint: &str| -> Failure { Error::unsupported(message).hint(hint).into() };
    if !same(child, parent) {
        let message = format!("{} lies in another directory", parent.display());
        return Err(refuse(message, "a parent is found by UUID in the directory of its child"));
    }
    let Some(name) = parent.file_name().and_then(|name| name.to_str()) else {
        let message = format!("the name of {} is not UTF-8", parent.display());
        return Err(refuse(message, "a VHD names its parent in Unicode: rename it"));
    };
    if !vhd::folder::is_image_name(parent) {
        let message = format!("the name of {} does not end in .vhd", parent.display());
        return Err(refuse(message, "only such files are looked at to find a parent: rename it"));
    }
    if info.uuid.is_nil() {
        let message = format!("{} has the null UUID, which no child can name", parent.display());
        return Err(refuse(message, "convert it: the result has a UUID"));
    }
    Ok((ParentLink { uuid: info.uuid, name: name.to_owned() }, info.size))
}
