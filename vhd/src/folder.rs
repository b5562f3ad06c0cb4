//! The images of one directory, found by UUID: for files that belong to no store.
//!
//! A differencing image says who its parent is in two ways: by UUID, and by locators, which are
//! paths. Only the UUID is believed. A locator may have been written by anybody, and following it
//! would read whatever file of this host it names; so the parent is looked for among the images of
//! one directory that a person has chosen, and nowhere else.
//!
//! An image is a regular file whose name ends in `.vhd` or `.avhd`. Others are not looked into: a
//! raw disk is a guest's, who can write a VHD's headers with any UUID into it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::chain::Layer;
use crate::check::{Anatomy, Code, Depth, Examination, Finding, Severity, examine, worst};
use crate::error::{Error, Result};
use crate::footer::DiskType;
use crate::image::{Info, probe_blob};
use crate::sys;
use crate::tree::MAX_DEPTH;

/// One image of a directory.
#[derive(Clone, Debug)]
pub struct Member {
    /// The file.
    pub path: PathBuf,
    /// Its UUID.
    pub uuid: Uuid,
    /// What it says of itself; none when it is damaged.
    pub info: Option<Info>,
    id: (u64, u64),
}

/// The images of one directory.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    members: HashMap<Uuid, Vec<Member>>,
    unreadable: Vec<PathBuf>,
}

/// How a chain goes on behind one of its images.
#[derive(Clone, Debug)]
pub enum Next {
    /// It has no parent.
    End,
    /// The parent.
    Vhd(PathBuf),
    /// The parent is a raw file, the one that was named.
    Raw(PathBuf),
    /// It does not go on.
    Broken(Finding),
}

impl Folder {
    /// Looks at all images of a directory: one open, one stat and two reads each. Symbolic links
    /// are not followed; FIFOs, sockets and devices are not opened.
    pub fn scan(path: &Path) -> Result<Self> {
        let dir = File::open(path).map_err(Error::io(path, "open"))?;
        let mut folder =
            Self { path: path.to_owned(), members: HashMap::new(), unreadable: Vec::new() };
        let entries = std::fs::read_dir(path).map_err(Error::io(path, "list"))?;
        for entry in entries {
            let entry = entry.map_err(Error::io(path, "list"))?;
            let name = PathBuf::from(entry.file_name());
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if is_file && is_image_name(&name) {
                folder.add(&dir, &name);
            }
        }
        for members in folder.members.values_mut() {
            members.sort_by(|left, right| left.path.cmp(&right.path));
            // Two names of one file are one image.
            let mut seen = HashSet::new();
            members.retain(|member| seen.insert(member.id));
        }
        folder.unreadable.sort();
        Ok(folder)
    }

    fn add(&mut self, dir: &File, name: &Path) {
        // As a person would write it.
        let here = self.path == Path::new(".");
        let path = if here { name.to_owned() } else { self.path.join(name) };
        let Ok(file) = sys::open_at(dir, name, false) else {
            self.unreadable.push(path);
            return;
        };
        // Replaced since it was listed, by something that is not a file.
        if !file.metadata().is_ok_and(|meta| meta.is_file()) {
            self.unreadable.push(path);
            return;
        }
        let found = match probe_blob(&file, &path) {
            Ok(info) => Some((info.uuid, info.file_id, Some(info))),
            // A damaged parent is found too, and its damage named.
            Err(_) => Anatomy::read(&file, &path)
                .ok()
                .and_then(|anatomy| Some((anatomy.footer?.uuid, anatomy.stat.id, None))),
        };
        match found {
            None => self.unreadable.push(path),
            Some((uuid, id, info)) => {
                self.members.entry(uuid).or_default().push(Member { path, uuid, info, id });
            }
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The images with a UUID: one, unless somebody has copied a file.
    pub fn find(&self, uuid: Uuid) -> &[Member] {
        self.members.get(&uuid).map_or(&[], Vec::as_slice)
    }

    /// The files that have an image's name and are none that can be told.
    pub fn unreadable(&self) -> &[PathBuf] {
        &self.unreadable
    }

    /// The parent of an image. `raw` is the raw file that stands for a null UUID, if somebody has
    /// named one.
    pub fn next(&self, child: &Path, info: &Info, raw: Option<&Path>) -> Next {
        let Some(parent) = &info.parent else { return Next::End };
        let broken = |code, text: String| Next::Broken(Finding::new(child, code, text));
        if parent.uuid.is_nil() {
            return match raw {
                Some(raw) => Next::Raw(raw.to_owned()),
                None => broken(
                    Code::ParentRaw,
                    "its parent has the null UUID, which means a raw file: no name found in an \
                     image is followed"
                        .to_owned(),
                ),
            };
        }
        match self.find(parent.uuid) {
            [one] => Next::Vhd(one.path.clone()),
            [] => {
                let dir = self.path.display();
                let mut text =
                    format!("its parent {} ({:?}) is not in {dir}", parent.uuid, parent.name);
                if !self.unreadable.is_empty() {
                    let _ = write!(text, ", where {} files cannot be told", self.unreadable.len());
                }
                match parent.elsewhere() {
                    None => broken(Code::ParentMissing, text),
                    Some(path) => {
                        let _ = write!(text, "; {path:?} leads out of it and is not followed");
                        broken(Code::ParentOutside, text)
                    }
                }
            }
            several => {
                let names: Vec<String> =
                    several.iter().map(|member| member.path.display().to_string()).collect();
                let text = format!("its parent {} is each of {}", parent.uuid, names.join(" and "));
                broken(Code::ParentAmbiguous, text)
            }
        }
    }
}

/// Whether a name is one of an image: it ends in `.vhd` or `.avhd`.
pub fn is_image_name(name: &Path) -> bool {
    let wanted = |extension: &OsStr| {
        extension.eq_ignore_ascii_case("vhd") || extension.eq_ignore_ascii_case("avhd")
    };
    name.extension().is_some_and(wanted)
}

/// The directory that a file lies in.
pub fn dir_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Where to look for parents.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parents<'a> {
    /// The directory; that of the image if absent.
    pub dir: Option<&'a Path>,
    /// The raw file that a null UUID means.
    pub raw: Option<&'a Path>,
}

/// One file of a chain.
#[derive(Clone, Debug)]
pub struct Link {
    /// The file.
    pub path: PathBuf,
    /// It is raw.
    pub raw: bool,
}

/// The files of a chain, the leaf first, and what is wrong with the links between them. Nothing
/// is opened for longer than to ask what it is, so the length of a chain costs nothing.
pub fn chain(leaf: &Path, parents: Parents<'_>) -> Result<(Vec<Link>, Vec<Finding>)> {
    let mut info = probe_blob(&crate::check::open(leaf)?, leaf)?;
    let mut links = vec![Link { path: leaf.to_owned(), raw: false }];
    let mut findings = Vec::new();
    if info.parent.is_none() {
        return Ok((links, findings));
    }
    let folder = Folder::scan(parents.dir.unwrap_or_else(|| dir_of(leaf)))?;
    let mut seen = HashSet::from([info.file_id]);
    loop {
        let child = links.last().map_or(leaf, |link| link.path.as_path()).to_owned();
        let next = match folder.next(&child, &info, parents.raw) {
            Next::End => break,
            Next::Broken(finding) => {
                findings.push(finding);
                break;
            }
            Next::Raw(path) => {
                let raw = crate::Raw::open(&path, crate::Mode::Read)?;
                let size = crate::Disk::size(&raw);
                findings.extend(smaller(&child, info.size, &path, size));
                links.push(Link { path, raw: true });
                break;
            }
            Next::Vhd(path) => path,
        };
        links.push(Link { path: next.clone(), raw: false });
        let found = match crate::check::open(&next).and_then(|file| probe_blob(&file, &next)) {
            Ok(found) => found,
            // What is wrong with it is found when it is examined.
            Err(_) => break,
        };
        if !seen.insert(found.file_id) {
            links.pop();
            let text = format!("its parent is {}, which is based on it", next.display());
            findings.push(Finding::new(&child, Code::ParentCycle, text));
            break;
        }
        findings.extend(smaller(&child, info.size, &next, found.size));
        info = found;
    }
    if links.len() > MAX_DEPTH {
        let text = format!("a chain of {} images; XenServer's tools accept 30", links.len());
        findings.push(Finding::new(leaf, Code::ChainLong, text));
    }
    Ok((links, findings))
}

fn smaller(child: &Path, size: u64, parent: &Path, parent_size: u64) -> Option<Finding> {
    (size < parent_size).then(|| {
        let text =
            format!("has {size} bytes, fewer than the {parent_size} of {}", parent.display());
        Finding::new(child, Code::ParentLarger, text)
    })
}

/// A file and all that it is based on, examined.
#[derive(Clone, Debug)]
pub struct Examined {
    /// Each file that was found, the leaf first. A raw file has no examination.
    pub links: Vec<(Link, Option<Examination>)>,
    /// All findings, in the order of the chain.
    pub findings: Vec<Finding>,
}

/// Examines an image and everything it is based on.
pub fn examine_chain(leaf: &Path, parents: Parents<'_>, depth: Depth) -> Examined {
    let first = examine(leaf, depth);
    let mut findings = first.findings.clone();
    let differencing = first.anatomy.as_ref().is_some_and(|anatomy| {
        anatomy.footer.as_ref().is_some_and(|f| f.disk_type == DiskType::Differencing)
    });
    let link = Link { path: leaf.to_owned(), raw: false };
    let mut links = vec![(link, Some(first))];
    // A leaf that cannot be used may name anybody.
    if !differencing || worst(&findings) == Some(Severity::Error) {
        return Examined { links, findings };
    }
    match chain(leaf, parents) {
        Ok((chain, of_links)) => {
            // That its locators lead outside is the smaller half of not having a parent.
            if of_links.iter().any(|finding| finding.code == Code::ParentOutside) {
                findings.retain(|finding| finding.code != Code::LocatorOutside);
            }
            for link in chain.into_iter().skip(1) {
                let examination = (!link.raw).then(|| examine(&link.path, depth));
                findings.extend(examination.iter().flat_map(|e| e.findings.clone()));
                links.push((link, examination));
            }
            findings.extend(of_links);
        }
        Err(error) => findings.push(Finding::of(leaf, &error)),
    }
    Examined { links, findings }
}

/// The layers to open a chain with.
pub fn layers(links: &[Link]) -> Vec<Layer<'_>> {
    links
        .iter()
        .map(|link| if link.raw { Layer::Raw(&link.path) } else { Layer::Vhd(&link.path) })
        .collect()
}
