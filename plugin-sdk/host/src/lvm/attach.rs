//! Reaching a VDI: its volume is active, as long as it is attached for I/O.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use plugin_sdk::model::vdi::{VdiActivate, VdiAttach, VdiAttached};
use plugin_sdk::model::{Access, AttachMode, Kind, VdiUuid};
use plugin_sdk::{Cx, Error, Result, Utf8PathBuf, step};

use crate::lvm::metadata::Metadata;
use crate::lvm::pool;
use crate::lvm::sr::Sr;
use crate::lvm::thin;
use crate::lvm::vdis::{refuse_write, usable, write};

/// The device of a volume, while it is active.
pub(crate) fn device(sr: &Sr, volume: &str) -> Utf8PathBuf {
    format!("/dev/{}/{volume}", sr.name()).into()
}

/// Says where the device will be. No process is in the way of the data.
pub(crate) async fn attach(sr: &Sr, cx: &Cx, request: &VdiAttach) -> Result<VdiAttached> {
    let (_held, group) = sr.changing(cx).await?;
    let group = thin::settled(sr, cx, group, &sr.names.volume(request.vdi)).await?;
    let vdi = usable(&group, request.vdi)?;
    if request.mode == AttachMode::ReadWrite {
        let metadata = vdi.metadata.clone()?;
        if metadata.read_only {
            return Err(refuse_write(request.vdi, metadata.is_a_snapshot));
        }
        pool::writable(&group)?;
    }
    Ok(VdiAttached { access: vec![Access::BlockDevice { path: device(sr, &vdi.volume.name) }] })
}

/// Makes the device. That of a snapshot is read-only in LVM; that of another VDI that is attached
/// for reading is made so.
pub(crate) async fn activate(sr: &Sr, cx: &Cx, request: &VdiActivate) -> Result<()> {
    let name = sr.names.volume(request.vdi);
    let words = ["--activate", "y", "--ignoreactivationskip", &sr.path(&name)];
    sr.lvm.change(cx, "lvchange", &words).await?;
    step!("vdi_activate.active");
    let path = device(sr, &name);
    match (request.mode, is_read_only(&path)?) {
        (AttachMode::ReadOnly, false) => {
            // LVM's own way, read_only_volume_list, makes it reload the pool read-only as well,
            // which fails.
            cx.shielded().command("blockdev").args(["--setro", path.as_str()]).run().await?;
            step!("vdi_activate.read_only");
            Ok(())
        }
        (AttachMode::ReadWrite, true) => Err(Error::new(
            Kind::InUse,
            format!("VDI {} is active for reading on this host", request.vdi),
        )
        .legacy(24)
        .hint("detach the readers first")),
        _ => Ok(()),
    }
}

fn is_read_only(path: &Utf8PathBuf) -> Result<bool> {
    let failed = |error: std::io::Error| {
        let words = error.to_string();
        Error::internal(format!("{path} did not appear")).backend(words)
    };
    let device = std::fs::metadata(path).map_err(failed)?.rdev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro"));
    Ok(text.map_err(failed)?.trim() == "1")
}

/// The name of a volume's device in device-mapper, by LVM's rule.
pub(crate) fn mapped_name(sr: &Sr, volume: &str) -> String {
    format!("{}-{}", sr.name().replace('-', "--"), volume.replace('-', "--"))
}

/// Whether the device is there. A node alone says nothing: it can be left of one that is gone.
fn is_active(sr: &Sr, volume: &str) -> bool {
    let Ok(found) = std::fs::metadata(device(sr, volume)) else { return false };
    let (major, minor) = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
    std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/name"))
        .is_ok_and(|name| name.trim() == mapped_name(sr, volume))
}

/// Takes the device away, with all that was written on the storage; notes what the VDI takes.
/// Nothing to do costs no command.
pub(crate) async fn deactivate(sr: &Sr, cx: &Cx, vdi: VdiUuid) -> Result<()> {
    let name = sr.names.volume(vdi);
    if !is_active(sr, &name) {
        return Ok(());
    }
    let path = device(sr, &name);
    let synced = path.clone();
    cx.blocking(move |_| {
        // A device that fails must not keep a guest's disk attached for ever; its errors were told
        // to whoever wrote.
        if let Err(error) = File::open(&synced).and_then(|file| file.sync_all()) {
            plugin_sdk::tracing::warn!(%error, device = %synced, "a flush has failed");
        }
        Ok(())
    })
    .await?;
    let _held = crate::lvm::lock::shared(cx, &sr.name()).await?;
    let group = match sr.group(cx).await {
        Ok(group) if group.missing == 0 => group,
        Err(error) if !matches!(error.kind, Kind::NotFound | Kind::Unreachable) => {
            return Err(error);
        }
        // LVM does nothing for a group that it cannot see; the guest has to let go all the same.
        _ => {
            let mapped = mapped_name(sr, &name);
            let words = ["remove", "--retry", &mapped];
            cx.shielded().command("dmsetup").args(words).run().await?;
            plugin_sdk::tracing::warn!(%vdi, "the devices of the SR are gone; so is the disk's");
            return Ok(());
        }
    };
    let Some(volume) = group.volume(&name) else { return Ok(()) };
    let words = ["--activate", "n", &sr.path(&name)];
    sr.lvm.change(cx, "lvchange", &words).await.map_err(|error| {
        if error.kind != Kind::InUse {
            return error;
        }
        let mut busy = Error::new(Kind::InUse, format!("the device of VDI {vdi} is still open"))
            .legacy(53)
            .hint(format!("lsof {path} shows by whom, lsblk what is on top of it"));
        busy.backend.clone_from(&error.backend);
        busy
    })?;
    step!("vdi_deactivate.inactive");
    let (Some(used), Ok(metadata)) = (volume.mapped(), Metadata::of(volume)) else { return Ok(()) };
    if metadata.used != used && volume.tags.iter().any(|tag| crate::lvm::tags::is_ours(tag)) {
        write(sr, &cx.shielded(), volume, &Metadata { used, ..metadata }, &[]).await?;
        step!("vdi_deactivate.noted");
    }
    Ok(())
}
