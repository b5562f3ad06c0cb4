//! The folder of an SR.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;

use plugin_sdk::model::sr::{FoundSr, SrCreate, SrInfo, SrRecovered, SrUpdate};
use plugin_sdk::model::vdi::Health;
use plugin_sdk::model::{Bytes, Changed, HostId, Kind, OperationId, SrUuid, VdiUuid};
use plugin_sdk::{Cx, Error, Result, Utf8Path, Utf8PathBuf, files, step};
use serde::{Deserialize, Serialize};
use vhd::tree::{self, Tree};

use crate::error::{from_io, from_vhd};
use crate::place::Place;
use crate::{changes, recover, space};

/// Our own data inside the folder; the tree of images keeps its own there too.
pub(crate) const OURS: &str = ".sm";

/// What we keep about the SR, in `.sm/sr.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct SrFile {
    /// Version of this document; a higher one than 1 is refused.
    version: u32,
    name: String,
    description: String,
    /// The operation that made the SR, to know a replay; none if it was made by XenServer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created_by: Option<OperationId>,
}

/// The folder of an SR. Holds nothing open and no state.
#[derive(Clone, Debug)]
pub struct Folder {
    location: Utf8PathBuf,
    path: Utf8PathBuf,
    sr: SrUuid,
    /// This host, which may be shut out.
    host: String,
    /// It is made and removed with the SR.
    own: bool,
}

impl Folder {
    /// The SR's own folder in a location that may hold others: `<location>/<sr>`.
    pub fn new(location: &Utf8Path, sr: SrUuid, host: &HostId) -> Self {
        let (path, host) = (location.join(sr.to_string()), host.0.clone());
        Self { location: location.to_owned(), path, sr, host, own: true }
    }

    /// A location that is the SR's as a whole: it is there before the SR, and after.
    pub fn whole(location: &Utf8Path, sr: SrUuid, host: &HostId) -> Self {
        let (path, host) = (location.to_owned(), host.0.clone());
        Self { location: location.to_owned(), path, sr, host, own: false }
    }

    /// Where the images are.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Whose folder this is.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn create(&self, cx: &Cx, request: &SrCreate) -> Result<Changed> {
        if !there(&self.location)? {
            return Err(Error::config(format!("{} is not a directory", self.location))
                .legacy(94)
                .hint("make it first, or mount what shall hold the SR"));
        }
        if let Some(found) = self.read()? {
            if found.created_by == Some(cx.operation_id()) {
                return Ok(Changed::Already);
            }
            return Err(Error::new(Kind::Exists, format!("{} holds an SR already", self.path))
                .legacy(42)
                .hint("smctl sr introduce makes it known here"));
        }
        if self.own {
            make_folder(&self.path)?;
        }
        step!("sr_create.folder_made");
        Tree::init(self.path.as_std_path()).map_err(from_vhd)?;
        step!("sr_create.tree_made");
        // Its presence is what makes the folder an SR of ours.
        self.write(&SrFile {
            version: 1,
            name: request.name.clone(),
            description: request.description.clone(),
            created_by: Some(cx.operation_id()),
        })?;
        step!("sr_create.written");
        self.sync_location()?;
        Ok(Changed::Created)
    }

    pub(crate) fn attach(&self, cx: &Cx) -> Result<SrRecovered> {
        // Once for all that follows: a server is asked again and again while a folder is opened.
        let tree = self.ready()?;
        self.let_in(cx)?;
        // This is the first that a host asks for after a boot.
        crate::maintain::release_stale(&tree, cx)?;
        recover::recover(&tree, cx)
    }

    /// The images, with a place for our data beside them, which an SR that XenServer made lacks.
    fn ready(&self) -> Result<Tree> {
        // `sr.json` is written last: with it all else is there and synced, unless somebody took it away.
        let is_ours = self.read()?.is_some();
        if is_ours {
            match self.open() {
                Err(error) if error.is_not_found() => {}
                other => return other.map_err(from_vhd),
            }
        } else if !there(&self.path)? {
            return Err(self.missing());
        }
        Tree::init(self.path.as_std_path()).map_err(from_vhd)?;
        if !is_ours {
            self.write(&SrFile { version: 1, ..SrFile::default() })?;
        }
        self.tree()
    }

    pub(crate) fn recover(&self, cx: &Cx) -> Result<SrRecovered> {
        recover::recover(&self.tree()?, cx)
    }

    pub(crate) fn destroy(&self, cx: &Cx) -> Result<Changed> {
        let mark = if self.own { self.path.clone() } else { self.path.join(OURS) };
        if !there(&mark)? {
            // The call that removed it may have been cut before this.
            return match self.sync_location() {
                Err(error) if error.kind != Kind::NotFound => Err(error),
                _ => Ok(Changed::Already),
            };
        }
        // Without its mark it is no SR any more: an earlier call was cut behind that step.
        if self.read()?.is_some() {
            self.refuse_images(cx)?;
            self.refuse_foreign()?;
            step!("sr_destroy.checked");
            // First what makes it an SR, so that a cut leaves no SR with half its data.
            files::remove(&self.sr_file()).map_err(|e| from_io(e, &self.path))?;
            step!("sr_destroy.unmarked");
        }
        self.refuse_foreign()?;
        match std::fs::remove_dir_all(self.path.join(OURS)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(from_io(error, &self.path));
            }
            _ => {}
        }
        step!("sr_destroy.emptied");
        if self.own {
            std::fs::remove_dir(&self.path).map_err(|e| from_io(e, &self.path))?;
        }
        step!("sr_destroy.removed");
        self.sync_location()?;
        Ok(Changed::Modified)
    }

    /// Makes it last that the folder came or went.
    fn sync_location(&self) -> Result<()> {
        if !self.own {
            return Ok(());
        }
        files::sync_directory_of(&self.path).map_err(|e| from_io(e, &self.location))
    }

    /// An SR that holds images, be they disks or what disks depend on, is not destroyed.
    fn refuse_images(&self, cx: &Cx) -> Result<()> {
        let (tree, guard) = self.locked(cx)?;
        tree.recover(&guard).map_err(from_vhd)?;
        tree.collect(&guard).map_err(from_vhd)?;
        changes::sweep(&tree, &guard)?;
        let nodes = tree.list().map_err(from_vhd)?.nodes;
        let Some(first) = nodes.first() else { return Ok(()) };
        let (sr, count) = (self.sr, nodes.len());
        Err(Error::new(
            Kind::InUse,
            format!("SR {sr} is not empty: it holds {count} images, among them {}", first.uuid),
        )
        .legacy(39)
        .hint("destroy its VDIs first"))
    }

    pub(crate) fn update(&self, cx: &Cx, request: &SrUpdate) -> Result<Changed> {
        let (_tree, _guard) = self.locked(cx)?;
        let before = self.read()?.unwrap_or_default();
        let mut after = SrFile { version: 1, ..before.clone() };
        if let Some(name) = &request.name {
            after.name.clone_from(name);
        }
        if let Some(description) = &request.description {
            after.description.clone_from(description);
        }
        if after == before {
            return Ok(Changed::Already);
        }
        self.write(&after)?;
        step!("sr_update.written");
        Ok(Changed::Modified)
    }

    pub(crate) fn stat(&self) -> Result<SrInfo> {
        let nodes = self.tree()?.list().map_err(from_vhd)?.nodes;
        let file = self.read()?.unwrap_or_default();
        let space = rustix::fs::statvfs(self.path.as_std_path())
            .map_err(|errno| from_io(errno.into(), &self.path))?;
        let leaves = || nodes.iter().filter(|node| node.kind == tree::Kind::Leaf);
        let quarantined: Vec<VdiUuid> =
            leaves().filter(|node| !node.is_ok()).map(|node| node.uuid.into()).collect();
        let health = match quarantined.len() {
            0 => Health::Ok,
            count => Health::Degraded { reason: format!("{count} VDIs are quarantined") },
        };
        Ok(SrInfo {
            uuid: self.sr,
            name: file.name,
            description: file.description,
            physical_size: Bytes(space.f_blocks.saturating_mul(space.f_frsize)),
            physical_utilisation: Bytes(
                space.f_blocks.saturating_sub(space.f_bfree).saturating_mul(space.f_frsize),
            ),
            virtual_allocation: Bytes(leaves().map(|node| node.virtual_size).sum()),
            vdis: leaves().count() as u64,
            quarantined,
            health,
            usage: Some(space::usage(&self.path, &nodes)?),
            warnings: [space::warnings(&nodes), self.fence_warnings()?].concat(),
            paths: None,
        })
    }

    fn sr_file(&self) -> Utf8PathBuf {
        self.path.join(OURS).join("sr.json")
    }

    fn read(&self) -> Result<Option<SrFile>> {
        read_sr_file(&self.sr_file())
    }

    fn write(&self, file: &SrFile) -> Result<()> {
        let text = serde_json::to_vec_pretty(file)
            .map_err(|error| Error::internal("sr.json cannot be written").source(&error))?;
        let path = self.sr_file();
        files::replace(&path, &text).map_err(|error| from_io(error, &path))
    }

    /// A folder may hold what its owner put there; destroying the SR must not take it along.
    fn refuse_foreign(&self) -> Result<()> {
        if !self.own {
            return Ok(());
        }
        let entries = std::fs::read_dir(&self.path).map_err(|e| from_io(e, &self.path))?;
        for entry in entries {
            let name = entry.map_err(|e| from_io(e, &self.path))?.file_name();
            if name != OURS {
                let name = name.to_string_lossy().into_owned();
                return Err(Error::new(
                    Kind::InUse,
                    format!("{} holds {name:?}, which is not the SR's", self.path),
                )
                .legacy(39)
                .hint("move it away, then destroy the SR again"));
            }
        }
        Ok(())
    }

    fn open(&self) -> vhd::Result<Tree> {
        let mark = self.mark_of(&self.host).into_std_path_buf();
        Tree::open_unless(self.path.as_std_path(), mark)
    }

    fn opened(&self, tree: vhd::Result<Tree>) -> Result<Tree> {
        match tree {
            Err(error) if error.is_not_found() => Err(self.missing()),
            other => other.map_err(from_vhd),
        }
    }

    fn missing(&self) -> Error {
        // In a directory that a server has lost track of, nothing is found.
        if let Err(error) = there(&self.location) {
            return error;
        }
        Error::not_found(format!("there is no SR at {}", self.path))
            .legacy(47)
            .hint("is the file system mounted? smctl sr probe shows the SRs of a location")
    }
}

impl Place for Folder {
    fn sr(&self) -> SrUuid {
        self.sr
    }

    fn tree(&self) -> Result<Tree> {
        self.opened(self.open())
    }

    fn tree_to_leave(&self) -> Result<Tree> {
        self.opened(Tree::open(self.path.as_std_path()))
    }

    fn give_back(&self, cx: &Cx, vdi: VdiUuid) -> Result<()> {
        Self::give_back(self, cx, vdi)
    }

    fn wait_for_the_shut_out(&self, cx: &Cx, tree: &Tree, vdi: VdiUuid) -> Result<u64> {
        Self::wait_for_the_shut_out(self, cx, tree, vdi)
    }
}

/// The SRs in a location: folders named by a UUID with our data or with VHD images.
pub fn found(location: &Utf8Path) -> Result<Vec<FoundSr>> {
    let entries = std::fs::read_dir(location).map_err(|error| from_io(error, location))?;
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| from_io(error, location))?.file_name();
        let Some(name) = name.to_str() else { continue };
        let Ok(uuid) = name.parse::<SrUuid>() else { continue };
        let folder = location.join(name);
        let file = match read_sr_file(&folder.join(OURS).join("sr.json")) {
            Ok(Some(file)) => file,
            // Of XenServer, or damaged: it is shown all the same.
            Ok(None) if holds_images(&folder) => SrFile::default(),
            Ok(None) => continue,
            Err(error) => SrFile { description: error.to_string(), ..SrFile::default() },
        };
        found.push(FoundSr { uuid, name: file.name, description: file.description });
    }
    found.sort_by_key(|sr| sr.uuid);
    Ok(found)
}

fn holds_images(folder: &Utf8Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let path = std::path::Path::new(&name);
            path.extension().is_some_and(|extension| extension == "vhd" || extension == "raw")
        })
    })
}

fn read_sr_file(path: &Utf8Path) -> Result<Option<SrFile>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(from_io(error, path)),
    };
    let file: SrFile = serde_json::from_slice(&text).map_err(|error| {
        Error::new(Kind::Corrupt, format!("{path} cannot be read")).legacy(181).source(&error)
    })?;
    if file.version > 1 {
        return Err(Error::unsupported(format!(
            "{path} has version {}, this release knows 1",
            file.version
        )));
    }
    Ok(Some(file))
}

/// Whether a path is a directory. One that cannot be looked at is an error: what a server has lost
/// track of is not gone.
fn there(path: &Utf8Path) -> Result<bool> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => Ok(false),
        Err(error) => Err(from_io(error, path)),
    }
}

fn make_folder(path: &Utf8Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(|error| from_io(error, path)),
    }
}
