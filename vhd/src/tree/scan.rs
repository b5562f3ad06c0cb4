//! Reading the directory: what is there, who is whose parent, and what is damaged.
//!
//! Nothing here waits for the lock: a listing answers while a disk is being copied.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::doc::Doc;
use super::journal::Entry as JournalEntry;
use super::{
    Format, Health, Kind, Listing, Node, Tree, image_name, parse_image, parse_link, parse_name,
};
use crate::chain::{Chain, Level};
use crate::error::{Error, Result};
use crate::image::{Info, Mode, Suspect};
use crate::raw::Raw;
use crate::store::{Area, At};

/// How long a listing beside changes tries to see the directory between two of them.
const SETTLE: Duration = Duration::from_millis(500);

/// How long a disk may be half there while somebody makes or removes it: an image that is a volume goes
/// by a command.
const HALF: Duration = Duration::from_secs(2);

/// Between two looks at one that is half there.
const AGAIN: Duration = Duration::from_millis(10);

/// How often a chain is looked up again when it has changed while it was opened.
const TRIES: usize = 3;

/// One image file.
pub(super) struct Entry {
    pub(super) uuid: Uuid,
    pub(super) format: Format,
    pub(super) what: What,
    /// Index of the parent, or why it has none that can be used.
    pub(super) link: Link,
    pub(super) children: usize,
    /// Images that name it as their parent, whether or not they can be used.
    pub(super) named_by: usize,
    pub(super) depth: usize,
    /// Index of the entry that is damaged, and how: this one or an ancestor.
    pub(super) fault: Option<(usize, String)>,
}

/// What a file turned out to be.
pub(super) enum What {
    Vhd(Box<Info>),
    Raw {
        size: u64,
        physical: u64,
    },
    /// Why it cannot be used, and whom it may need.
    Damaged(String, Suspect),
}

/// Where the parent is.
pub(super) enum Link {
    None,
    To(usize),
    Broken(String),
}

/// All images of the directory, with their links resolved.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) entries: Vec<Entry>,
    pub(super) index: HashMap<Uuid, usize>,
}

impl Entry {
    pub(super) fn info(&self) -> Option<&Info> {
        match &self.what {
            What::Vhd(info) => Some(info),
            _ => None,
        }
    }

    pub(super) fn hidden(&self) -> bool {
        self.info().is_some_and(|info| info.hidden)
    }

    pub(super) fn parent(&self) -> Option<usize> {
        match self.link {
            Link::To(parent) => Some(parent),
            _ => None,
        }
    }
}

impl Tree {
    /// Everything in the directory. Never fails because of one file: what cannot be used is
    /// listed, with the reason. What an unfinished operation explains is not.
    pub fn list(&self) -> Result<Listing> {
        self.settled(|| self.list_once())
    }

    /// Looks at the directory while nobody changes it: under a shared lock when it is free, and
    /// otherwise, since a change may take long, again and again until two looks at the
    /// directories' times say that nothing moved in between. After [`SETTLE`] the last look counts.
    pub(super) fn settled<T>(&self, look: impl Fn() -> Result<T>) -> Result<T> {
        let lock = self.store.try_lock_shared();
        let deadline = Instant::now() + SETTLE;
        loop {
            let before = self.store.stamp()?;
            let found = look();
            if lock.is_some() || self.store.stamp()? == before || Instant::now() >= deadline {
                return found;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// One node; [`Error::NotFound`] when there is nothing of that name, not even metadata.
    pub fn get(&self, uuid: Uuid) -> Result<Node> {
        if let Some(node) = self.get_quickly(uuid)? {
            return Ok(node);
        }
        let found = self.list()?.nodes.into_iter().find(|node| node.uuid == uuid);
        found.ok_or_else(|| Error::NotFound { uuid, dir: self.store.path() })
    }

    /// The files of a disk, the leaf first, each verified to be the parent of the one before.
    pub fn chain(&self, uuid: Uuid) -> Result<Vec<PathBuf>> {
        let (_, files) = self.chain_nodes(uuid)?;
        Ok(files.iter().map(|at| self.store.path_of(at)).collect())
    }

    /// Opens a disk with all its ancestors; only the leaf is opened for writing.
    pub fn open_disk(&self, uuid: Uuid, mode: Mode) -> Result<Chain> {
        // An image may be merged away between looking the chain up and opening it.
        for _ in 0..TRIES {
            match self.open_disk_once(uuid, mode) {
                Err(Error::ParentMismatch { .. } | Error::ChainIncomplete { .. }) => {}
                Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                other => return other,
            }
        }
        self.open_disk_once(uuid, mode)
    }

    fn open_disk_once(&self, uuid: Uuid, mode: Mode) -> Result<Chain> {
        let (format, files) = self.chain_nodes(uuid)?;
        Chain::of(files.iter().enumerate().map(|(index, at)| {
            let mode = if index == 0 { mode } else { Mode::Read };
            Ok(match format {
                Format::Vhd => Level::Vhd(Box::new(self.open_image(at, mode)?)),
                Format::Raw => {
                    let file = self.store.open(at, mode == Mode::Write)?;
                    Level::Raw(Raw::from_blob(file, &self.store.path_of(at), mode)?)
                }
            })
        }))
    }

    pub(super) fn chain_nodes(&self, uuid: Uuid) -> Result<(Format, Vec<At>)> {
        let raw = Self::image_at(uuid, Format::Raw);
        let vhd = self.store.exists(&Self::image_at(uuid, Format::Vhd))?;
        if vhd && let Some(walk) = self.walk(uuid) {
            let paths = walk.iter().map(|(uuid, _)| Self::image_at(*uuid, Format::Vhd)).collect();
            return Ok((Format::Vhd, paths));
        }
        if !vhd && self.store.exists(&raw)? {
            return Ok((Format::Raw, vec![raw]));
        }
        let scan = self.settled(|| self.scan())?;
        let Some(index) = scan.index.get(&uuid).copied() else {
            return Err(Error::NotFound { uuid, dir: self.store.path() });
        };
        if let Some(reason) = scan.reason(index) {
            return Err(Error::Quarantined { uuid, reason });
        }
        let paths = scan.ancestry(index).map(|entry| Self::image_at(entry.uuid, entry.format));
        Ok((Format::Vhd, paths.collect()))
    }

    /// Follows the locators' hints from a leaf to the root without reading the directory. None
    /// when anything is not as it should be: then the full scan tells what.
    fn walk(&self, uuid: Uuid) -> Option<Vec<(Uuid, Info)>> {
        let mut chain: Vec<(Uuid, Info)> = Vec::new();
        let mut next = uuid;
        loop {
            let info = self.probe(&Self::image_at(next, Format::Vhd)).ok()?;
            if let Some((_, child)) = chain.last() {
                let expected = child.parent.as_ref().map(|parent| parent.uuid);
                if expected != Some(info.uuid) || child.size < info.size {
                    return None;
                }
            }
            if chain.iter().any(|(seen, _)| *seen == next) {
                return None;
            }
            let hint = info.parent.as_ref().map(|parent| parent.sibling().and_then(parse_link));
            chain.push((next, info));
            match hint {
                None => return Some(chain),
                Some(Some((parent, Format::Vhd))) => next = parent,
                Some(_) => return None,
            }
        }
    }

    /// The node, when it is a sound leaf that the caller has described: the usual case, without
    /// reading the directory. An image that nobody described may be a base copy that its maker
    /// did not come to hide, which only its children tell.
    fn get_quickly(&self, uuid: Uuid) -> Result<Option<Node>> {
        let Ok(Some(doc)) = self.doc(uuid) else { return Ok(None) };
        let other = Format::ALL.into_iter().find(|format| *format != doc.format);
        if let Some(other) = other
            && self.store.exists(&Self::image_at(uuid, other))?
        {
            return Ok(None);
        }
        for entry in self.records()? {
            if let JournalEntry::Record(record) = entry
                && record.uuids().contains(&uuid)
            {
                return Ok(None);
            }
        }
        let mut node = match doc.format {
            Format::Raw => match self.look(uuid, Format::Raw) {
                Some(What::Raw { size, physical }) => Node {
                    virtual_size: size,
                    physical_size: physical,
                    depth: 1,
                    ..blank(uuid, Format::Raw)
                },
                _ => return Ok(None),
            },
            Format::Vhd => {
                let Some(walk) = self.walk(uuid) else { return Ok(None) };
                let Some((_, info)) = walk.first() else { return Ok(None) };
                Node {
                    virtual_size: info.size,
                    physical_size: info.physical_size,
                    parent: walk.get(1).map(|(uuid, _)| *uuid),
                    image_uuid: Some(info.uuid),
                    hidden: info.hidden,
                    needs_repair: info.missing_footer(),
                    kind: if info.hidden { Kind::Base } else { Kind::Leaf },
                    depth: walk.len(),
                    ..blank(uuid, Format::Vhd)
                }
            }
        };
        describe(&mut node, doc);
        Ok(Some(node))
    }

    /// What a file is; none when it is gone.
    pub(super) fn look(&self, uuid: Uuid, format: Format) -> Option<What> {
        let at = Self::image_at(uuid, format);
        let found = match format {
            Format::Vhd => self.probe(&at).map(|info| What::Vhd(Box::new(info))),
            Format::Raw => {
                self.stat(&at).map(|stat| What::Raw { size: stat.length, physical: stat.allocated })
            }
        };
        match found {
            Ok(what) => Some(what),
            Err(error) if error.is_not_found() => None,
            Err(error) if error.os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                let text = format!("{} is a symbolic link, which is never followed", at.name);
                Some(What::Damaged(text, Suspect::Rubbish))
            }
            Err(error) if format == Format::Raw => {
                Some(What::Damaged(error.reason(), Suspect::NoParent))
            }
            Err(error) => {
                let path = self.store.path_of(&at);
                let suspect = match self.store.open(&at, false) {
                    Ok(file) => crate::image::suspect(&*file, &path),
                    Err(_) => Suspect::Anyone,
                };
                Some(What::Damaged(error.reason(), suspect))
            }
        }
    }

    /// Reads the directory and every image's header, and resolves who is whose parent.
    pub(super) fn scan(&self) -> Result<Scan> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut index: HashMap<Uuid, usize> = HashMap::new();
        for name in self.store.names(Area::Images)? {
            let Some((uuid, format)) = parse_image(&name) else { continue };
            let Some(what) = self.look(uuid, format) else { continue };
            if let Some(first) = index.get(&uuid) {
                if let Some(entry) = entries.get_mut(*first) {
                    let text = "there are both a VHD and a raw file".to_owned();
                    entry.what = What::Damaged(text, Suspect::Anyone);
                }
                continue;
            }
            index.insert(uuid, entries.len());
            let (link, fault) = (Link::None, None);
            entries.push(Entry {
                uuid,
                format,
                what,
                link,
                children: 0,
                named_by: 0,
                depth: 0,
                fault,
            });
        }
        let mut scan = Scan { entries, index };
        scan.resolve();
        Ok(scan)
    }

    fn list_once(&self) -> Result<Listing> {
        let mut bases = HashSet::new();
        let mut coming = HashSet::new();
        let records = self.records()?;
        for entry in &records {
            if let JournalEntry::Record(record) = entry {
                let (targets, names) = record.coming();
                coming.extend(targets);
                bases.extend(names);
            }
        }
        let tmp = self.store.names(Area::Tmp)?;
        coming.extend(tmp.iter().filter_map(|name| parse_image(name)).map(|(uuid, _)| uuid));
        let mut described: HashSet<Uuid> = self
            .store
            .names(Area::Docs)?
            .iter()
            .filter_map(|name| parse_name(name).filter(|(_, extension)| *extension == "json"))
            .map(|(uuid, _)| uuid)
            .collect();
        let scan = self.scan()?;

        // Two names of one file: the one that nobody described is a base copy in the making.
        let mut files: HashMap<(u64, u64), Vec<usize>> = HashMap::new();
        for (index, entry) in scan.entries.iter().enumerate() {
            if let Some(info) = entry.info() {
                files.entry(info.file_id).or_default().push(index);
            }
        }
        let shared: HashSet<usize> =
            files.into_values().filter(|names| names.len() > 1).flatten().collect();

        let mut nodes = Vec::with_capacity(scan.entries.len());
        for (index, entry) in scan.entries.iter().enumerate() {
            let mut node = scan.node(index);
            if let What::Damaged(..) = entry.what {
                let at = Self::image_at(entry.uuid, entry.format);
                node.physical_size = self.stat(&at).map_or(0, |stat| stat.allocated);
            }
            let has_doc = described.remove(&entry.uuid);
            if bases.contains(&entry.uuid) {
                node.kind = Kind::Base;
            } else if shared.contains(&index) && !has_doc && node.kind == Kind::Leaf {
                if records.is_empty() {
                    let text = "its file has a second name, and it is not known which is the disk";
                    node.health = Health::Quarantined(text.to_owned());
                } else {
                    node.kind = Kind::Base;
                }
            }
            if has_doc {
                match self.doc(entry.uuid) {
                    Ok(Some(doc)) => describe(&mut node, doc),
                    Ok(None) => {}
                    Err(error) => node.health = Health::Quarantined(error.reason()),
                }
            }
            nodes.push(node);
        }
        let until = Instant::now() + HALF;
        for uuid in described.difference(&coming) {
            nodes.extend(self.lost(*uuid, until)?);
        }
        nodes.sort_by_key(|node| node.uuid);
        Ok(Listing { nodes, unfinished: !records.is_empty() || !tmp.is_empty() })
    }

    /// A disk with metadata and, so it seemed, no image. It may have come or gone meanwhile, or be about
    /// to: its metadata come first and go last. So where somebody may be at work it is looked at until
    /// then; the image first, as it is the last to come.
    fn lost(&self, uuid: Uuid, until: Instant) -> Result<Option<Node>> {
        let lock = self.store.try_lock_shared();
        let doc = loop {
            for format in Format::ALL {
                let tmp = Self::tmp_at(image_name(uuid, format));
                if self.store.exists(&Self::image_at(uuid, format))? || self.store.exists(&tmp)? {
                    return Ok(None);
                }
            }
            let doc = self.doc(uuid);
            if matches!(doc, Ok(None)) {
                return Ok(None);
            }
            if lock.is_some() || Instant::now() >= until {
                break doc;
            }
            std::thread::sleep(AGAIN);
            // What is kept in memory is read anew.
            self.store.stamp()?;
        };
        let mut node = blank(uuid, Format::Vhd);
        match doc {
            Ok(None) => return Ok(None),
            Ok(Some(doc)) => {
                node.format = doc.format;
                describe(&mut node, doc);
                let name = image_name(uuid, node.format);
                node.health = Health::Quarantined(format!("its image {name} is gone"));
            }
            Err(error) => {
                let text = format!("its image is gone, and {}", error.reason());
                node.health = Health::Quarantined(text);
            }
        }
        Ok(Some(node))
    }
}

impl Scan {
    /// Files from an entry to its root.
    pub(super) fn ancestry(&self, index: usize) -> impl Iterator<Item = &Entry> {
        std::iter::successors(self.entries.get(index), |entry| {
            entry.parent().and_then(|parent| self.entries.get(parent))
        })
    }

    /// Why an entry cannot be used.
    pub(super) fn reason(&self, index: usize) -> Option<String> {
        let (at, reason) = self.entries.get(index)?.fault.as_ref()?;
        if *at == index {
            return Some(reason.clone());
        }
        let ancestor = self.entries.get(*at).map(|entry| entry.uuid).unwrap_or_default();
        Some(format!("its ancestor {ancestor} cannot be used: {reason}"))
    }

    /// An image, other than `gone`, that may need anyone: nothing can be told apart from its
    /// parents then.
    pub(super) fn unknown(&self, gone: Option<Uuid>) -> Option<&Entry> {
        self.entries.iter().find(|entry| {
            matches!(entry.what, What::Damaged(_, Suspect::Anyone)) && Some(entry.uuid) != gone
        })
    }

    /// Why an entry cannot be used, when that is no ancestor's fault.
    pub(super) fn own_reason(&self, index: usize) -> Option<String> {
        let (at, reason) = self.entries.get(index)?.fault.as_ref()?;
        (*at == index).then(|| reason.clone())
    }

    /// For each entry, how many images the longest chain through it has.
    pub(super) fn tallest(&self) -> Vec<usize> {
        let mut tallest: Vec<usize> = self.entries.iter().map(|entry| entry.depth).collect();
        for entry in self.entries.iter().filter(|entry| entry.depth > 0 && entry.children == 0) {
            let mut next = entry.parent();
            while let Some(index) = next {
                // A taller chain has been here already.
                let Some(known) = tallest.get_mut(index).filter(|known| **known < entry.depth)
                else {
                    break;
                };
                *known = entry.depth;
                next = self.entries.get(index).and_then(Entry::parent);
            }
        }
        tallest
    }

    /// Whether every image but `gone` says whom it needs.
    pub(super) fn is_complete_without(&self, gone: Option<Uuid>) -> bool {
        self.entries.iter().filter(|entry| Some(entry.uuid) != gone).all(|entry| {
            !matches!(entry.what, What::Damaged(_, Suspect::Anyone | Suspect::Rubbish))
        })
    }

    pub(super) fn get(&self, uuid: Uuid) -> Option<&Entry> {
        self.entries.get(*self.index.get(&uuid)?)
    }

    fn node(&self, index: usize) -> Node {
        let entry = &self.entries[index];
        let mut node = blank(entry.uuid, entry.format);
        node.depth = entry.depth;
        node.parent = entry.parent().map(|parent| self.entries[parent].uuid);
        match &entry.what {
            What::Vhd(info) => {
                node.virtual_size = info.size;
                node.physical_size = info.physical_size;
                node.image_uuid = Some(info.uuid);
                node.hidden = info.hidden;
                node.needs_repair = info.missing_footer();
            }
            What::Raw { size, physical } => {
                (node.virtual_size, node.physical_size) = (*size, *physical);
            }
            What::Damaged(..) => {}
        }
        if node.hidden || entry.children > 0 {
            node.kind = Kind::Base;
        }
        if let Some(reason) = self.reason(index) {
            node.health = Health::Quarantined(reason);
        }
        node
    }
}

fn blank(uuid: Uuid, format: Format) -> Node {
    Node {
        uuid,
        format,
        kind: Kind::Leaf,
        virtual_size: 0,
        physical_size: 0,
        parent: None,
        image_uuid: None,
        hidden: false,
        depth: 0,
        metadata: None,
        created_by: None,
        last_op: None,
        health: Health::Ok,
        needs_repair: None,
    }
}

fn describe(node: &mut Node, doc: Doc) {
    node.last_op = doc.ops.last().copied();
    node.created_by = doc.created_by;
    node.metadata = Some(doc.metadata);
}
