//! A LUN as one device of this host: found by what it is, joined by multipath, grown, let go of.
//!
//! The number of a LUN says where to look; what is there is told by its SCSIid, which the kernel is made
//! to ask for anew wherever it has an answer from before. What answers with another one is not used.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use plugin_sdk::model::Kind;
use plugin_sdk::{Cx, Error, Result, step, tokio};

use crate::block::{self, Disk, Mapped, ScsiId};
use crate::iscsi::Session;
use crate::multipath;

/// Most time for a LUN to appear that the array has just mapped, to have its new size, to be gone.
const APPEARS: Duration = Duration::from_secs(10);
/// Between two looks, at most.
const PAUSE: Duration = Duration::from_millis(500);
/// How often a LUN is let go of that multipath takes up again meanwhile.
const TRIES: u32 = 5;

/// The paths to a LUN that some sessions of its target bring: those that are known, asked anew what
/// they are, and those that are found under its number. At least one.
///
/// Errors: SMAPI's 119 if another LUN answers to the number, and nothing is used; 107 if none does;
/// 47 without a session that is up.
pub async fn find(cx: &Cx, id: &ScsiId, number: u16, sessions: &[Session]) -> Result<Vec<Disk>> {
    let up: Vec<&Session> = sessions.iter().filter(|session| session.is_up()).collect();
    if up.is_empty() {
        return Err(block::gone(id));
    }
    let end = cx.within(APPEARS);
    let mut pause = Duration::from_millis(20);
    loop {
        for session in &up {
            drop_other(cx, id, number, session).await?;
            if !known(id, session) {
                block::scan_number(cx, session.host, number).await?;
                block::settle(cx, session.host).await?;
            }
            if let Some(other) = other_at(id, number, session) {
                return Err(not_the_one(id, number, session, &other));
            }
        }
        refresh(cx, id).await?;
        if up.iter().any(|session| known(id, session)) {
            return block::paths(id);
        }
        // Some arrays answer before all of their parts know of it.
        if end.remaining().is_zero() {
            return Err(Error::new(
                Kind::NotFound,
                format!("the target does not show the LUN {id} to this host"),
            )
            .legacy(107)
            .hint("does the array map it to this host's initiator, under the name that this host logs in by?"));
        }
        cx.check()?;
        tokio::time::sleep(pause.min(end.remaining())).await;
        pause = (pause * 2).min(PAUSE);
    }
}

fn at(session: &Session) -> impl Iterator<Item = Disk> + use<> {
    let number = session.number;
    block::disks().into_iter().filter(move |disk| disk.session == Some(number))
}

fn known(id: &ScsiId, session: &Session) -> bool {
    at(session).any(|disk| disk.id.as_ref() == Some(id))
}

/// What the kernel takes another LUN for that has this number.
fn other_at(id: &ScsiId, number: u16, session: &Session) -> Option<Disk> {
    at(session).find(|disk| disk.number() == u64::from(number) && disk.id.as_ref() != Some(id))
}

/// Removes the path of a LUN that had the number before: its size, and what the kernel keeps of its
/// content, would be taken for ours. One that is what it was is an error.
async fn drop_other(cx: &Cx, id: &ScsiId, number: u16, session: &Session) -> Result<()> {
    let Some(old) = other_at(id, number, session) else { return Ok(()) };
    old.refresh(cx).await?;
    match at(session).find(|disk| disk.name == old.name) {
        Some(now) if now.is_running() && now.id.as_ref() != Some(id) => {
            Err(not_the_one(id, number, session, &now))
        }
        Some(now) => {
            plugin_sdk::tracing::warn!(
                disk = now.name,
                "the path of a LUN that is gone is removed"
            );
            if drop_path(cx, &now).await? { Ok(()) } else { Err(in_use(&now.device())) }
        }
        None => Ok(()),
    }
}

/// Removes a path, and the map that multipath has made of it. Whether it is gone: not if somebody
/// has it, or what is on it.
async fn drop_path(cx: &Cx, disk: &Disk) -> Result<bool> {
    let of_multipath = || {
        let maps = block::mapped().into_iter();
        maps.filter(|map| map.uuid.starts_with("mpath-") && map.slaves.contains(&disk.name))
            .collect::<Vec<Mapped>>()
    };
    for _ in 0..TRIES {
        for map in of_multipath() {
            match multipath::flush(cx, &map).await {
                Err(error) if error.kind == Kind::InUse || error.legacy_code() == 431 => {
                    plugin_sdk::tracing::debug!(%error, "the path stays");
                    return Ok(false);
                }
                other => other?,
            }
        }
        let now = block::disks().into_iter().find(|now| now.name == disk.name);
        let Some(now) = now.filter(|now| now.session == disk.session) else { return Ok(true) };
        if !is_claimed(cx, &now.device()).await? {
            if multipath::is_running() {
                multipath::forget(cx, &now).await?;
            }
            now.remove(cx).await?;
            return Ok(true);
        }
        // It may have been taken up again meanwhile.
        if of_multipath().is_empty() {
            return Ok(false);
        }
    }
    Ok(false)
}

/// Removes all paths of a session that is about to end, with maps of them: one that ended under a map
/// would leave it waiting for ever. Whether all are gone; one that somebody has stays.
pub async fn empty(cx: &Cx, session: &Session) -> Result<bool> {
    let mut all = true;
    for disk in at(session) {
        if !drop_path(cx, &disk).await? {
            plugin_sdk::tracing::warn!(target = %session.iqn, disk = disk.name, "a disk of the target is in use by others");
            all = false;
        }
    }
    Ok(all)
}

fn not_the_one(id: &ScsiId, number: u16, session: &Session, other: &Disk) -> Error {
    let is = other.id.as_ref().map_or("a disk without an identifier", ScsiId::as_str);
    Error::new(
        Kind::Corrupt,
        format!("LUN {number} of {} is {is} and not {id}; it is not used", session.iqn),
    )
    .legacy(119)
    .context("device", other.device())
    .hint("what the array says of its mapping is not what it serves: look at the mapping there")
}

/// Has the kernel ask the paths to a LUN what and how large they are, and its map take their size. A
/// path that leads to another LUN now was used for this one: error with SMAPI's 119.
pub async fn refresh(cx: &Cx, id: &ScsiId) -> Result<()> {
    let before = block::paths(id)?;
    for path in &before {
        path.refresh(cx).await?;
    }
    let after = block::disks();
    for old in &before {
        let Some(now) = after.iter().find(|disk| disk.name == old.name) else { continue };
        if now.id.as_ref() == Some(id) {
            continue;
        }
        let is = now.id.as_ref().map_or("a disk without an identifier", ScsiId::as_str);
        return Err(Error::new(
            Kind::Corrupt,
            format!("LUN {} ({}) was {id} and is {is} now", old.lun, old.device()),
        )
        .legacy(119)
        .hint("the array has given its number to another LUN; nothing was written. Detach what is on it, then look at the mapping on the array"));
    }
    let paths = block::paths(id)?;
    if let (Some(map), Ok(size)) = (multipath::find(id), block::size(id, &paths))
        && map.size != size
    {
        multipath::resize(cx, &map).await?;
        step!("lun.map_resized");
    }
    Ok(())
}

/// Has all paths, and the map, take a size that the array has given to a LUN. Nothing is done for
/// one without a path. Error kind `busy` if it is still smaller after a while.
pub async fn grow(cx: &Cx, id: &ScsiId, size: u64) -> Result<()> {
    let end = cx.within(APPEARS);
    let mut pause = Duration::from_millis(20);
    loop {
        refresh(cx, id).await?;
        let paths = block::paths(id)?;
        if paths.is_empty() {
            return Ok(());
        }
        let now = block::size(id, &paths);
        let map = multipath::find(id);
        if matches!(now, Ok(now) if now >= size) && map.is_none_or(|map| map.size >= size) {
            return Ok(());
        }
        if end.remaining().is_zero() {
            let now = now?;
            return Err(Error::busy(format!(
                "the LUN {id} has {now} bytes on this host, and {size} on the array"
            ))
            .hint("the array has not told all of its parts; resize to the same size again"));
        }
        cx.check()?;
        tokio::time::sleep(pause.min(end.remaining())).await;
        pause = (pause * 2).min(PAUSE);
    }
}

/// Makes the paths one device: a map, wherever multipathd runs. It could take up a single path at
/// any later time, and whoever used that would hold it in the way.
pub async fn join(cx: &Cx, id: &ScsiId, paths: &[Disk]) -> Result<()> {
    if multipath::is_running() {
        let map = multipath::ensure(cx, id, paths).await?;
        step!("lun.map_made");
        // Its name is made some time after it is there. Whoever gets the kernel's instead could find
        // another map under that one day.
        let what = format!("the device {}", named(&map));
        let there = || Ok(is_named(&map).then_some(()));
        if let Err(error) = block::wait(cx, APPEARS, &what, there).await {
            cx.check()?;
            plugin_sdk::tracing::warn!(%error, "the map is used by the kernel's name");
        }
        return Ok(());
    }
    if paths.len() > 1 { Err(no_map(id, paths.len())) } else { Ok(()) }
}

fn no_map(id: &ScsiId, count: usize) -> Error {
    Error::new(
        Kind::Unreachable,
        format!("{count} paths lead to the LUN {id}, and no multipath map joins them"),
    )
    .legacy(430)
    .hint("start the service multipathd")
}

/// The device of a LUN as it is now, without a command: the map, or the only path.
pub fn device(id: &ScsiId) -> Result<String> {
    let paths = block::paths(id)?;
    if let Some(map) = multipath::find(id) {
        let disks = block::disks();
        let foreign = |slave: &&String| {
            disks.iter().any(|disk| disk.name == **slave && disk.id.as_ref() != Some(id))
        };
        if let Some(foreign) = map.slaves.iter().find(foreign) {
            return Err(Error::new(
                Kind::Corrupt,
                format!("/dev/{foreign} is in the map of {id} and is another LUN"),
            )
            .legacy(119)
            .hint("the array has given its number to another LUN; detach what is on it"));
        }
        return Ok(path_of(&map));
    }
    match &paths[..] {
        [path] => Ok(path.device()),
        [] => Err(block::gone(id)),
        several => Err(no_map(id, several.len())),
    }
}

fn named(map: &Mapped) -> String {
    format!("/dev/mapper/{}", map.name)
}

/// Whether the map's name leads to it: to a map of before it may for a moment.
fn is_named(map: &Mapped) -> bool {
    let number = |path: &str| std::fs::metadata(path).ok().map(|node| node.rdev());
    let found = number(&named(map));
    found.is_some() && found == number(&format!("/dev/{}", map.device))
}

fn path_of(map: &Mapped) -> String {
    if is_named(map) { named(map) } else { format!("/dev/{}", map.device) }
}

/// Has the kernel refuse writes to a device, or take them again. No command is run for a device that is
/// so already, as a new one is for writing.
pub async fn set_read_only(cx: &Cx, device: &str, read_only: bool) -> Result<()> {
    if is_read_only(Path::new("/sys"), device) == Some(read_only) {
        return Ok(());
    }
    let word = if read_only { "--setro" } else { "--setrw" };
    cx.command("blockdev").args([word, device]).run().await.map(drop)
}

/// What the kernel says of the device that a name leads to; none if it says nothing.
fn is_read_only(sys: &Path, device: &str) -> Option<bool> {
    let device = std::fs::canonicalize(device).ok()?;
    let file = sys.join("class/block").join(device.file_name()?).join("ro");
    match std::fs::read_to_string(file).ok()?.trim() {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

/// Lets go of a LUN: what was written goes out, its map goes, and its paths in these sessions. None
/// of it there is success.
///
/// Errors: kind `in_use` if somebody has it, kind `unreachable` if what was written cannot go out
/// over a path that is up.
pub async fn remove(cx: &Cx, id: &ScsiId, sessions: &[Session]) -> Result<()> {
    let (mut tries, mut is_written_out) = (0, false);
    let mut is_forgotten = !multipath::is_running();
    'again: loop {
        tries += 1;
        if let Some(map) = multipath::find(id) {
            let slaves = block::disks().into_iter().filter(|disk| map.slaves.contains(&disk.name));
            flush(cx, &format!("/dev/{}", map.device), slaves.collect()).await?;
            is_written_out = true;
            multipath::flush(cx, &map).await?;
            step!("lun.map_gone");
            let gone = || Ok(multipath::find(id).is_none().then_some(()));
            block::wait(cx, APPEARS, &format!("the end of the map {id}"), gone).await?;
        }
        let ours = |disk: &Disk| {
            disk.id.as_ref() == Some(id)
                && sessions.iter().any(|session| Some(session.number) == disk.session)
        };
        for path in block::disks().into_iter().filter(ours) {
            if !is_written_out && path.holders.is_empty() {
                flush(cx, &path.device(), vec![path.clone()]).await?;
            }
            if !is_forgotten {
                multipath::forget(cx, &path).await?;
                is_forgotten = true;
            }
            match path.remove(cx).await {
                Ok(()) => step!("lun.path_gone"),
                // It hears of a path that was just closed, and may take it up.
                Err(error)
                    if error.kind == Kind::InUse
                        && tries < TRIES
                        && multipath::find(id).is_some() =>
                {
                    continue 'again;
                }
                Err(error) => return Err(error),
            }
        }
        return Ok(());
    }
}

/// Writes out what the kernel keeps of a LUN, whoever has it. Nothing is done for one without a
/// path.
pub async fn write_out(cx: &Cx, id: &ScsiId) -> Result<()> {
    if block::paths(id)?.is_empty() {
        return Ok(());
    }
    let device = device(id)?;
    let path = device.clone();
    let done = block::apart(cx, &device, move || File::open(path)?.sync_all()).await?;
    done.map_err(|error| not_written(&device, &error))
}

fn not_written(device: &str, error: &std::io::Error) -> Error {
    Error::new(Kind::Unreachable, format!("what was written to {device} cannot be written out"))
        .legacy(47)
        .source(error)
        .hint("the host's log says why")
}

fn in_use(device: &str) -> Error {
    Error::new(Kind::InUse, format!("{device} is in use on this host"))
        .legacy(16)
        .hint("lsblk and fuser show by whom: a file system, or a device on top of it")
}

fn exclusive(device: &str) -> std::io::Result<File> {
    let exclusive = i32::try_from(rustix::fs::OFlags::EXCL.bits()).unwrap_or_default();
    File::options().read(true).custom_flags(exclusive).open(device)
}

/// Whether a file system, or a device on top of it, has a device.
async fn is_claimed(cx: &Cx, device: &str) -> Result<bool> {
    let path = device.to_owned();
    let opened = block::apart(cx, device, move || exclusive(&path).map(drop)).await?;
    Ok(matches!(opened, Err(error) if error.kind() == ErrorKind::ResourceBusy))
}

/// Writes out what the kernel keeps of a device that nobody has any more.
async fn flush(cx: &Cx, device: &str, paths: Vec<Disk>) -> Result<()> {
    let path = device.to_owned();
    let flushed = block::apart(cx, device, move || exclusive(&path)?.sync_all()).await?;
    match flushed {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::ResourceBusy => Err(in_use(device)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if paths.iter().any(Disk::is_running) => Err(not_written(device, &error)),
        // No path is up: whoever wrote was told so.
        Err(error) => {
            plugin_sdk::tracing::warn!(device, %error, "a device without a path is removed");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_only_if_the_kernel_says_so_under_its_own_name() {
        let folder = tempfile::tempdir().unwrap();
        let (dev, ro) = (folder.path().join("dev"), folder.path().join("class/block/dm-0"));
        for place in [&dev, &ro] {
            std::fs::create_dir_all(place).unwrap();
        }
        std::fs::write(dev.join("dm-0"), "").unwrap();
        std::os::unix::fs::symlink(dev.join("dm-0"), dev.join("3600a")).unwrap();
        let told = |name: &str| is_read_only(folder.path(), dev.join(name).to_str().unwrap());
        assert_eq!(told("3600a"), None);
        for (text, expected) in [("1\n", Some(true)), ("0\n", Some(false)), ("", None)] {
            std::fs::write(ro.join("ro"), text).unwrap();
            assert_eq!((told("3600a"), told("dm-0")), (expected, expected));
        }
        assert_eq!(told("sdz"), None);
    }
}
