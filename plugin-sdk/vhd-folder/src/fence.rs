//! Hosts that are shut out of an SR: because they are gone for good, or hang.
//!
//! In a folder, a file `.sm/fenced/<host>.json` says who, by whom, since when, and what the host had
//! open. It is made with the folder's lock held, before the host's claims end, and whoever gets the
//! lock later looks for the file of its own host first. So a host that was shut out changes nothing
//! any more, once what it has under way has ended. Its data paths look for the file every few
//! seconds and let go of their images; their locks on the leaves are what the next writer waits for.
//!
//! The file goes when the host attaches the SR with nothing of it in use: what it had open has been
//! given back, or was of an earlier boot.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use plugin_sdk::model::sr::{SrFence, SrFenced};
use plugin_sdk::model::{Changed, Kind, SrUuid, VdiUuid};
use plugin_sdk::{Cx, Error, Result, Utf8Path, Utf8PathBuf, files, step, tracing};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use vhd::tree::{Tree, name_part};

use crate::error::{from_io, from_vhd};
use crate::folder::{Folder, OURS};
use crate::place::Place;
use crate::writer::{self, Holder};

/// Where the files of hosts that are shut out are, below our data.
const FENCED: &str = "fenced";

/// Why a folder's storage is no help.
const NOT_ENFORCED: &str = "a folder refuses no host; data paths that still run there stop by \
                            themselves when they see it, and what is on its way still lands";

/// Of the time of a call, what is kept to say what it waited for.
const RESERVE: Duration = Duration::from_secs(3);

/// Longest pause between two looks whether an image is still locked.
const LOOK: Duration = Duration::from_millis(250);

/// A host that is shut out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The host.
    pub host: String,
    /// The host that did it.
    pub by: String,
    /// From this epoch on, what the host does is refused.
    pub epoch: u64,
}

impl Fence {
    /// Error kind `fenced`, for the host itself.
    pub fn error(&self) -> Error {
        let Self { host, by, epoch } = self;
        Error::new(Kind::Fenced, format!("host {host} was shut out of the SR by host {by}"))
            .context("epoch", epoch)
            .hint(
                "what runs here has lost its disks. Detach its VDIs and the SR (smctl vdi detach, smctl \
                 sr detach), or boot this host anew; then smctl sr attach lets it in again",
            )
    }

    /// A sentence for `sr stat`.
    pub fn sentence(&self) -> String {
        let Self { host, by, epoch } = self;
        format!(
            "host {host} is shut out since epoch {epoch}, by host {by}; smctl sr attach there lets it in"
        )
    }

    /// For a host that would shut itself out.
    pub fn refuse_itself(cx: &Cx, host: &str) -> Result<()> {
        if cx.host().0 != host {
            return Ok(());
        }
        Err(Error::new(Kind::InUse, format!("host {host} cannot shut itself out"))
            .hint("run this on another host of the SR"))
    }

    /// For a host that nobody has heard of.
    pub fn unknown<'a>(
        sr: SrUuid,
        host: &str,
        known: impl IntoIterator<Item = &'a String>,
    ) -> Error {
        let known: Vec<&str> = known.into_iter().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Error::not_found(format!("SR {sr} knows no host {host}"))
            .hint(format!("the hosts that have used it: {known}"))
    }
}

/// What the file of a host says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// Version of this document; a higher one than 1 is refused.
    version: u32,
    #[serde(flatten)]
    fence: Fence,
    /// What the host had open and has not given back.
    #[serde(default)]
    open: Vec<Open>,
}

/// A claim that was ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Open {
    vdi: VdiUuid,
    claim: String,
}

impl Mark {
    /// The first disk that may still be in use on a host, by its present boot.
    fn in_use(&self, here: &Holder) -> Option<VdiUuid> {
        let of_here =
            |open: &&Open| Holder::of(&open.claim).is_none_or(|by| by.shares_devices(here));
        self.open.iter().find(of_here).map(|open| open.vdi)
    }
}

/// What a host is told whose mark was found.
pub(crate) fn refusal(mark: &Path) -> Error {
    let path = Utf8Path::from_path(mark).map(read_mark);
    match path {
        Some(Ok(Some(mark))) => mark.fence.error(),
        // It is let in just now, or the file is damaged.
        _ => Error::new(Kind::Fenced, "this host is shut out of the SR")
            .context("mark", mark.display())
            .hint("smctl sr attach lets it in when nothing of the SR is in use here"),
    }
}

fn read_mark(path: &Utf8Path) -> Result<Option<Mark>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(from_io(error, path)),
    };
    let mark: Mark = serde_json::from_slice(&text).map_err(|error| {
        Error::new(Kind::Corrupt, format!("{path} cannot be read")).legacy(181).source(&error)
    })?;
    if mark.version > 1 {
        let version = mark.version;
        return Err(Error::unsupported(format!(
            "{path} has version {version}, this release knows 1"
        )));
    }
    Ok(Some(mark))
}

fn write_mark(path: &Utf8Path, mark: &Mark) -> Result<()> {
    let text = serde_json::to_vec_pretty(mark)
        .map_err(|error| Error::internal("a record cannot be written").source(&error))?;
    files::replace(path, &text).map_err(|error| from_io(error, path))
}

impl Folder {
    fn fenced(&self) -> Utf8PathBuf {
        self.path().join(OURS).join(FENCED)
    }

    /// The file that is there while a host is shut out.
    pub(crate) fn mark_of(&self, host: &str) -> Utf8PathBuf {
        self.fenced().join(format!("{}.json", name_part(host)))
    }

    fn marks(&self) -> Result<Vec<Mark>> {
        let folder = self.fenced();
        let entries = match folder.read_dir_utf8() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|error| from_io(error, &folder))?,
        };
        let mut marks = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| from_io(error, &folder))?;
            if entry.path().extension() == Some("json") {
                marks.extend(read_mark(entry.path())?);
            }
        }
        marks.sort_by(|one, other| one.fence.host.cmp(&other.fence.host));
        Ok(marks)
    }

    /// What `sr stat` says of the hosts that are shut out.
    pub(crate) fn fence_warnings(&self) -> Result<Vec<String>> {
        let said = |mark: Mark| {
            format!("{}; until then it must be off: {NOT_ENFORCED}", mark.fence.sentence())
        };
        Ok(self.marks()?.into_iter().map(said).collect())
    }

    /// Shuts another host out.
    pub(crate) fn fence(&self, cx: &Cx, request: &SrFence) -> Result<SrFenced> {
        let host = &request.host.0;
        Fence::refuse_itself(cx, host)?;
        let (tree, guard) = self.locked(cx)?;
        let marks = self.marks()?;
        let mut known = writer::hosts(&tree)?;
        known.extend(marks.iter().map(|mark| mark.fence.host.clone()));
        if !known.contains(host) {
            return Err(Fence::unknown(self.sr(), host, &known));
        }
        let before = marks.iter().find(|mark| mark.fence.host == *host);
        let mut mark = before.cloned().unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
            let latest = marks.iter().map(|mark| mark.fence.epoch).max().unwrap_or_default();
            let (host, by) = (host.clone(), cx.host().0.clone());
            Mark { version: 1, fence: Fence { host, by, epoch: now.max(latest + 1) }, open: vec![] }
        });
        for (vdi, claim) in writer::claims_of(&tree, host)? {
            // Whoever comes after this writer has a later epoch, whatever the clocks say.
            let writing = Holder::of(&claim).and_then(|by| by.writing()).unwrap_or_default();
            mark.fence.epoch = mark.fence.epoch.max(writing + 1);
            let open = Open { vdi, claim };
            if !mark.open.contains(&open) {
                mark.open.push(open);
            }
        }
        // First the mark: a host that is not off sees it before it sees that its claims are gone.
        if before != Some(&mark) {
            make_folder(&self.fenced())?;
            write_mark(&self.mark_of(host), &mark)?;
            step!("sr_fence.recorded");
        }
        let vdis = writer::end_claims(&tree, &guard, host)?;
        if !vdis.is_empty() {
            step!("sr_fence.claims_ended");
        }
        let done = before.is_some() && vdis.is_empty();
        Ok(SrFenced {
            changed: if done { Changed::Already } else { Changed::Modified },
            epoch: mark.fence.epoch,
            vdis,
            enforced: false,
            reason: Some(NOT_ENFORCED.to_owned()),
        })
    }

    /// Lets this host in again, if nothing of the SR is in use here.
    pub(crate) fn let_in(&self, cx: &Cx) -> Result<()> {
        let path = self.mark_of(self.host());
        if read_mark(&path)?.is_none() {
            return Ok(());
        }
        let here = Holder::here(cx)?;
        let tree = self.tree_to_leave()?;
        let _guard = tree.lock(cx.deadline()).map_err(from_vhd)?;
        // Another process may have let the host in meanwhile, and it may have been shut out once more.
        let Some(mark) = read_mark(&path)? else { return Ok(()) };
        if let Some(vdi) = mark.in_use(&here) {
            return Err(mark.fence.error().context("vdi", vdi));
        }
        files::remove(&path).map_err(|error| from_io(error, &path))?;
        step!("sr_attach.let_in");
        Ok(())
    }

    /// A disk that was taken from this host is not in use here any more.
    pub(crate) fn give_back(&self, cx: &Cx, vdi: VdiUuid) -> Result<()> {
        let path = self.mark_of(self.host());
        if read_mark(&path)?.is_none() {
            return Ok(());
        }
        let here = Holder::here(cx)?;
        let tree = self.tree_to_leave()?;
        let _guard = tree.lock(cx.deadline()).map_err(from_vhd)?;
        let Some(mut mark) = read_mark(&path)? else { return Ok(()) };
        let ours = |open: &Open| {
            open.vdi == vdi && Holder::of(&open.claim).is_some_and(|by| by.is_at(&here))
        };
        if !mark.open.iter().any(ours) {
            return Ok(());
        }
        mark.open.retain(|open| !ours(open));
        if let Err(error) = write_mark(&path, &mark) {
            // The disk is let go of all the same; at its next boot the host comes in.
            tracing::warn!(%vdi, %error, "it is not noted that a disk was given back");
        }
        Ok(())
    }

    /// Waits until the image of a disk is not locked any more by a host that was shut out: as long as
    /// it is, that host still has it open, or the server has not given up its locks.
    pub(crate) fn wait_for_the_shut_out(&self, cx: &Cx, tree: &Tree, vdi: VdiUuid) -> Result<u64> {
        let had_it = |mark: &Mark| mark.open.iter().any(|open| open.vdi == vdi);
        let Some(mark) = self.marks()?.into_iter().find(had_it) else { return Ok(0) };
        let Some(image) = tree.expose(vdi.0, false).map_err(from_vhd)?.into_iter().next() else {
            return Ok(mark.fence.epoch);
        };
        let until = cx.deadline().checked_sub(RESERVE.min(cx.remaining() / 5));
        let until = until.unwrap_or_else(Instant::now);
        let mut pause = Duration::from_millis(5);
        while is_locked(&image)? {
            cx.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(still_locked(vdi, &mark.fence.host));
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(LOOK);
        }
        Ok(mark.fence.epoch)
    }
}

/// Whether somebody has an image locked, as those do who write it.
fn is_locked(image: &Path) -> Result<bool> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let failed = |errno: rustix::io::Errno| from_vhd(vhd::Error::io(image, "lock")(errno.into()));
    let file = File::from(rustix::fs::open(image, flags, Mode::empty()).map_err(failed)?);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        // Given back with the file.
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(failed(errno)),
    }
}

fn still_locked(vdi: VdiUuid, host: &str) -> Error {
    let what = format!("VDI {vdi}: host {host}, which is shut out, still has its image locked");
    Error::new(Kind::InUse, what).legacy(24).context("vdi", vdi).hint(
        "if that host runs, its data path lets go within seconds of reaching the storage. If it is off, a \
         server of NFS 4 gives up its locks when it has not heard from it for the time of its lease (90 s \
         by default), one of NFS 3 when that host has booted, or by hand. Then attach again",
    )
}

fn make_folder(path: &Utf8Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        other => other.map_err(|error| from_io(error, path))?,
    }
    files::sync_directory_of(path).map_err(|error| from_io(error, path))
}
