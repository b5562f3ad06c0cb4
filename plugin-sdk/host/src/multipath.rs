//! dm-multipath: maps, their paths, and having multipathd make, grow and drop them.
//!
//! Whether a map is there is read from sysfs; what its paths are worth is asked of `multipathd`,
//! which is the only one who knows what its checkers found.

use std::time::Duration;

use plugin_sdk::model::Kind;
use plugin_sdk::{Cx, Error, Result};
use serde::Deserialize;

use crate::block::{self, Disk, Mapped, ScsiId};

/// Most time for one question to the daemon.
const DAEMON: Duration = Duration::from_secs(10);
/// Most time for an answer from a daemon that is busy with paths that do not answer.
const BUSY: Duration = Duration::from_secs(30);
/// Most time until a map is there that the daemon was asked for.
const APPEARS: Duration = Duration::from_secs(30);
/// How long the daemon has to hear of a disk by itself, before it is told.
const HEARS: Duration = Duration::from_secs(2);
/// Between two tries to drop a map that somebody has open, or to ask a daemon that is busy.
const AGAIN: Duration = Duration::from_millis(100);
/// Where the daemon listens (unix(7), abstract sockets; multipath-tools, `DEFAULT_SOCKET`).
const SOCKET: &str = "@/org/kernel/linux/storage/multipathd";

/// A map: one LUN with its paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Its name in /dev/mapper.
    pub name: String,
    /// SCSIid of the LUN.
    pub id: String,
    /// The kernel's name, `dm-0`.
    pub device: String,
    /// Whether requests wait (`queue_if_no_path`) while no path is up.
    pub queues: bool,
    /// All paths that the daemon knows.
    pub paths: Vec<Path>,
}

/// A path of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The disk, `sda`.
    pub disk: String,
    /// What device-mapper does with it: `active`, `failed`.
    pub mapped: String,
    /// What the kernel says of the disk: `running`, `offline`.
    pub device: String,
    /// What the checker found: `ready`, `ghost`, `faulty`, `shaky`.
    pub checked: String,
}

impl Path {
    /// Whether requests can go over it.
    pub fn is_up(&self) -> bool {
        self.mapped == "active" && matches!(self.checked.as_str(), "ready" | "ghost")
    }

    /// Its three states in the words of multipath.
    pub fn states(&self) -> String {
        format!("{} {} {}", self.mapped, self.checked, self.device)
    }
}

impl Map {
    /// How many of its paths are up.
    pub fn up(&self) -> usize {
        self.paths.iter().filter(|path| path.is_up()).count()
    }
}

#[derive(Deserialize)]
struct Document {
    maps: Vec<RawMap>,
}

#[derive(Deserialize)]
struct RawMap {
    name: String,
    uuid: String,
    sysfs: String,
    #[serde(default)]
    features: String,
    #[serde(default)]
    path_groups: Vec<RawGroup>,
}

#[derive(Deserialize)]
struct RawGroup {
    paths: Vec<RawPath>,
}

#[derive(Deserialize)]
struct RawPath {
    dev: String,
    dm_st: String,
    dev_st: String,
    chk_st: String,
}

/// Whether the daemon listens. It costs no command.
pub fn is_running() -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    sockets.lines().any(|line| line.split_whitespace().last() == Some(SOCKET))
}

/// All maps. Error with SMAPI's 430 if the daemon does not answer.
pub async fn maps(cx: &Cx) -> Result<Vec<Map>> {
    let words = ["show", "maps", "json"];
    let end = cx.within(BUSY);
    loop {
        let output = end.within(DAEMON).command("multipathd").args(words).output().await;
        let output = output.map_err(|error| match error.kind {
            Kind::DeadlineExceeded => silent("it did not answer in time"),
            _ => error,
        })?;
        if output.status != 0 {
            return Err(silent(String::from_utf8_lossy(&output.stderr).trim()));
        }
        // While a checker waits for a path, the daemon says `timeout` and nothing is wrong.
        let said = output.text().trim().to_owned();
        if said != "timeout" {
            return parse(&output.stdout);
        }
        if end.remaining() <= AGAIN {
            return Err(silent(&said));
        }
        plugin_sdk::tokio::time::sleep(AGAIN).await;
    }
}

fn silent(words: &str) -> Error {
    Error::new(Kind::Unreachable, "multipathd does not answer")
        .legacy(430)
        .backend(words)
        .hint("is the service multipathd running on this host?")
}

fn parse(json: &[u8]) -> Result<Vec<Map>> {
    let document: Document = serde_json::from_slice(json).map_err(|error| {
        Error::internal("the maps of multipathd cannot be read").legacy(431).source(&error)
    })?;
    let path = |raw: RawPath| Path {
        disk: raw.dev,
        mapped: raw.dm_st,
        device: raw.dev_st,
        checked: raw.chk_st,
    };
    let map = |raw: RawMap| Map {
        queues: raw.features.split_whitespace().any(|word| word == "queue_if_no_path"),
        paths: raw.path_groups.into_iter().flat_map(|group| group.paths).map(path).collect(),
        name: raw.name,
        id: raw.uuid,
        device: raw.sysfs,
    };
    Ok(document.maps.into_iter().map(map).collect())
}

/// The map of a LUN, as the kernel has it. It costs no command.
pub fn find(id: &ScsiId) -> Option<Mapped> {
    let uuid = format!("mpath-{id}");
    block::mapped().into_iter().find(|mapped| mapped.uuid == uuid)
}

/// Has the daemon take these paths into a map, and waits until it is there with all of them.
pub async fn ensure(cx: &Cx, id: &ScsiId, disks: &[Disk]) -> Result<Mapped> {
    let whole = |id: &ScsiId| {
        find(id).filter(|map| disks.iter().all(|disk| map.slaves.contains(&disk.name)))
    };
    if let Some(map) = whole(id) {
        return Ok(map);
    }
    // With find_multipaths as distributions have it, a LUN is taken only if it is known already.
    if find(id).is_none()
        && let Some(disk) = disks.first()
    {
        cx.within(DAEMON).command("multipath").args(["-a", &disk.device()]).run().await?;
    }
    // It hears of new disks by itself, through udev, and refuses to be told of one that udev is
    // not done with. Where it does not hear, being told helps.
    let end = cx.within(APPEARS);
    let what = format!("the multipath map {id}");
    loop {
        match block::wait(&end, HEARS, &what, || Ok(whole(id))).await {
            Err(error) if end.remaining().is_zero() => return Err(error.legacy(433)),
            Err(error) if error.kind != Kind::Unreachable => return Err(error),
            Err(_) => {}
            found => return found,
        }
        for disk in disks {
            if find(id).is_none_or(|map| !map.slaves.contains(&disk.name))
                && let Err(error) = ask(&end, &["add", "path", &disk.name]).await
            {
                plugin_sdk::tracing::debug!(%error, "not yet");
            }
        }
    }
}

/// Has the map take the size that its paths have now.
pub async fn resize(cx: &Cx, map: &Mapped) -> Result<()> {
    ask(cx, &["resize", "map", &map.name]).await
}

/// Drops a map. Error kind `in_use` if somebody has it open.
pub async fn flush(cx: &Cx, map: &Mapped) -> Result<()> {
    let holders = std::fs::read_dir(format!("/sys/block/{}/holders", map.device));
    if let Some(holder) = holders.into_iter().flatten().flatten().next() {
        let name = holder.file_name().to_string_lossy().into_owned();
        return Err(Error::new(
            Kind::InUse,
            format!("{name} is on the multipath map {}", map.name),
        )
        .legacy(16)
        .hint("lsblk shows what is on top of it"));
    }
    // A map outlives the daemon that made it. Without one the command removes it by itself.
    if !is_running() {
        return cx
            .within(DAEMON)
            .command("multipath")
            .args(["-f", &map.name])
            .run()
            .await
            .map(drop);
    }
    // udev opens what was just written for a moment, in which it cannot go.
    let end = cx.within(DAEMON);
    loop {
        match ask(cx, &["remove", "map", &map.name]).await {
            Err(error) if error.legacy_code() == 431 && !end.remaining().is_zero() => {
                plugin_sdk::tracing::debug!(%error, "not yet");
                plugin_sdk::tokio::time::sleep(AGAIN).await;
            }
            done => return done,
        }
    }
}

/// Has multipath forget that it once was told to take a LUN into a map, so that the list of those
/// does not grow with each LUN that comes and goes. One that is not in it is no matter.
pub async fn forget(cx: &Cx, disk: &Disk) -> Result<()> {
    let output =
        cx.within(DAEMON).command("multipath").args(["-w", &disk.device()]).output().await?;
    plugin_sdk::tracing::debug!(disk = disk.name, status = output.status, "forgotten by multipath");
    Ok(())
}

/// One command for the daemon, which says `ok` or `fail`.
async fn ask(cx: &Cx, words: &[&str]) -> Result<()> {
    let output = cx.within(DAEMON).command("multipathd").args(words).output().await?;
    let said = output.text().trim().to_owned();
    if output.status == 0 && said.ends_with("ok") {
        return Ok(());
    }
    if !is_running() {
        return Err(silent(&said));
    }
    let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::internal(format!("multipathd refuses: {}", words.join(" ")))
        .legacy(431)
        .backend(format!("{said} {errors}").trim().to_owned())
        .hint("journalctl -u multipathd says why"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_with_their_paths() {
        let maps = parse(include_bytes!("../tests/fixtures/multipath/up.json")).unwrap();
        assert_eq!(maps.len(), 2);
        assert_eq!(
            (maps[0].name.as_str(), maps[0].id.as_str(), maps[0].device.as_str(), maps[0].queues),
            (
                "360014050000beef00000000000000000",
                "360014050000beef00000000000000000",
                "dm-0",
                true
            )
        );
        assert_eq!((maps[0].paths.len(), maps[0].up()), (2, 2));
        assert_eq!(maps[1].paths[0].disk, "sdb");
    }

    #[test]
    fn a_path_that_is_down_is_told_whatever_group_it_is_in() {
        let maps = parse(include_bytes!("../tests/fixtures/multipath/one_down.json")).unwrap();
        for map in &maps {
            assert_eq!((map.up(), map.paths.len()), (1, 2), "{map:?}");
        }
        let down: Vec<String> = maps
            .iter()
            .flat_map(|map| &map.paths)
            .filter(|path| !path.is_up())
            .map(|path| format!("{} {}", path.disk, path.states()))
            .collect();
        assert_eq!(down, ["sda failed faulty running", "sdb failed faulty running"]);
    }

    #[test]
    fn no_maps_and_what_is_no_list_are_different() {
        assert!(parse(br#"{"major_version":0,"minor_version":1,"maps":[]}"#).unwrap().is_empty());
        for odd in [&b"fail\n"[..], b"", b"{}"] {
            let error = parse(odd).unwrap_err();
            assert_eq!(
                (error.message.as_str(), error.legacy_code()),
                ("the maps of multipathd cannot be read", 431)
            );
        }
    }
}
