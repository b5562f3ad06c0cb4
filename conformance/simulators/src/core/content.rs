//! The bytes of volumes: layers of pages.
//!
//! A layer is a sparse file with the pages written since it was made, and a file with a byte for
//! each page. What a layer does not have is looked for in the layer below. A snapshot freezes the
//! top layer and puts an empty one upon it, so it costs nothing and copies nothing; what a pool has
//! in use is the number of pages that there are, each counted once, whoever shares it.
//!
//! Why not a copy of the file by reflink: the file system of a build machine often cannot, and what
//! two files share would have to be asked from the kernel. Why not a flat file for a target of the
//! operating system: it would write past the pool's accounting and its copy-on-write.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

/// The page is in a layer below, or nowhere.
const BELOW: u8 = 0;
/// The page is here.
const HERE: u8 = 1;
/// The page reads as zeros, whatever is below.
const ZERO: u8 = 2;

#[derive(Debug)]
struct Layer {
    data: File,
    map_file: File,
    map: Vec<u8>,
    present: u64,
}

/// All layers of an array.
#[derive(Debug)]
pub(super) struct Contents {
    folder: PathBuf,
    page: u64,
    layers: BTreeMap<u64, Layer>,
}

impl Contents {
    /// Opens the layers that are `known`, and removes the files of others: they are of changes that
    /// did not happen.
    pub(super) fn open(folder: &Path, page: u64, known: &[u64]) -> io::Result<Self> {
        let folder = folder.join("layers");
        fs::create_dir_all(&folder)?;
        let mut contents = Self { folder, page, layers: BTreeMap::new() };
        for entry in fs::read_dir(&contents.folder)? {
            let path = entry?.path();
            let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
            match number {
                Some(number) if known.contains(&number) => {
                    if !contents.layers.contains_key(&number) {
                        let layer = contents.load(number)?;
                        contents.layers.insert(number, layer);
                    }
                }
                _ => fs::remove_file(&path)?,
            }
        }
        Ok(contents)
    }

    fn load(&self, number: u64) -> io::Result<Layer> {
        let open = |kind: &str| {
            let path = self.folder.join(format!("{number}.{kind}"));
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
        };
        let (data, map_file) = (open("data")?, open("map")?);
        let mut map = vec![0; usize::try_from(map_file.metadata()?.len()).unwrap_or(0)];
        map_file.read_exact_at(&mut map, 0)?;
        let present = map.iter().map(|state| u64::from(*state == HERE)).sum();
        Ok(Layer { data, map_file, map, present })
    }

    fn layer(&mut self, number: u64) -> io::Result<&mut Layer> {
        if !self.layers.contains_key(&number) {
            let layer = self.load(number)?;
            self.layers.insert(number, layer);
        }
        self.layers.get_mut(&number).ok_or_else(|| io::Error::other("a layer is gone"))
    }

    fn state(&self, number: u64, page: u64) -> u8 {
        let map = self.layers.get(&number).map(|layer| &layer.map);
        map.and_then(|map| map.get(page as usize).copied()).unwrap_or(BELOW)
    }

    /// Bytes of the pages that a layer has.
    pub(super) fn bytes(&self, number: u64) -> u64 {
        self.layers.get(&number).map_or(0, |layer| layer.present * self.page)
    }

    /// The layer of a chain, top first, that has a page.
    fn holder(&self, chain: &[u64], page: u64) -> Option<u64> {
        let held = chain.iter().map(|number| (*number, self.state(*number, page)));
        let mut held = held.skip_while(|(_, state)| *state == BELOW);
        held.next().filter(|(_, state)| *state == HERE).map(|(number, _)| number)
    }

    /// The pages that a reader of the chain finds, ascending.
    pub(super) fn pages(&self, chain: &[u64]) -> Vec<u64> {
        let longest = chain.iter().filter_map(|number| Some(self.layers.get(number)?.map.len()));
        let end = longest.max().unwrap_or(0) as u64;
        (0..end).filter(|page| self.holder(chain, *page).is_some()).collect()
    }

    /// Bytes that a reader of the chain finds.
    pub(super) fn referenced(&self, chain: &[u64]) -> u64 {
        self.pages(chain).len() as u64 * self.page
    }

    pub(super) fn read(&self, chain: &[u64], offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let (page, within) = (at / self.page, at % self.page);
            let length = ((self.page - within) as usize).min(into.len() - done);
            let part = &mut into[done..done + length];
            match self.holder(chain, page).and_then(|number| self.layers.get(&number)) {
                Some(layer) => layer.data.read_exact_at(part, at)?,
                None => part.fill(0),
            }
            done += length;
        }
        Ok(())
    }

    /// How many new pages a write needs in the top layer.
    pub(super) fn needed(&self, top: u64, offset: u64, length: u64) -> u64 {
        if length == 0 {
            return 0;
        }
        let pages = offset / self.page..=(offset + length - 1) / self.page;
        pages.filter(|page| self.state(top, *page) != HERE).count() as u64 * self.page
    }

    pub(super) fn write(&mut self, chain: &[u64], offset: u64, bytes: &[u8]) -> io::Result<()> {
        let top = *chain.first().ok_or_else(|| io::Error::other("a volume without a layer"))?;
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (page, within) = (at / self.page, at % self.page);
            let length = ((self.page - within) as usize).min(bytes.len() - done);
            let part = &bytes[done..done + length];
            if self.state(top, page) == HERE {
                self.layer(top)?.data.write_all_at(part, at)?;
            } else {
                // Its data first: until its map says so, the page is still the one below.
                let mut whole = vec![0; self.page as usize];
                if length < whole.len() {
                    self.read(chain, page * self.page, &mut whole)?;
                }
                whole[within as usize..within as usize + length].copy_from_slice(part);
                let start = page * self.page;
                self.layer(top)?.data.write_all_at(&whole, start)?;
                self.mark(top, page, HERE)?;
            }
            done += length;
        }
        Ok(())
    }

    /// Gives back the whole pages of a range; the rest of it becomes zeros.
    pub(super) fn unmap(&mut self, chain: &[u64], offset: u64, length: u64) -> io::Result<()> {
        let top = *chain.first().ok_or_else(|| io::Error::other("a volume without a layer"))?;
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let page = at / self.page;
            let until = ((page + 1) * self.page).min(end);
            if at == page * self.page && until == (page + 1) * self.page {
                let below = self.holder(&chain[1..], page).is_some();
                self.release(top, page, if below { ZERO } else { BELOW })?;
            } else if self.holder(chain, page).is_some() {
                self.write(chain, at, &vec![0; (until - at) as usize])?;
            }
            at = until;
        }
        Ok(())
    }

    fn release(&mut self, number: u64, page: u64, state: u8) -> io::Result<()> {
        let was = self.state(number, page);
        if was == state {
            return Ok(());
        }
        self.mark(number, page, state)?;
        if was == HERE {
            let size = self.page;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.layer(number)?.data, flags, page * size, size)?;
        }
        Ok(())
    }

    fn mark(&mut self, number: u64, page: u64, state: u8) -> io::Result<()> {
        let layer = self.layer(number)?;
        let index = page as usize;
        if layer.map.len() <= index {
            layer.map.resize(index + 1, BELOW);
        }
        let Some(slot) = layer.map.get_mut(index) else { return Ok(()) };
        layer.map_file.write_all_at(&[state], page)?;
        layer.present = layer.present + u64::from(state == HERE) - u64::from(*slot == HERE);
        *slot = state;
        Ok(())
    }

    /// Copies a page that a reader of the chain finds into another layer.
    pub(super) fn copy_page(&mut self, chain: &[u64], page: u64, to: u64) -> io::Result<()> {
        let mut whole = vec![0; self.page as usize];
        self.read(chain, page * self.page, &mut whole)?;
        let start = page * self.page;
        self.layer(to)?.data.write_all_at(&whole, start)?;
        self.mark(to, page, HERE)
    }

    /// Puts what the only child of a frozen layer has into that layer. Nobody sees a difference
    /// before or after: the child hides what changes.
    pub(super) fn merge(&mut self, child: u64, into: u64, below: &[u64]) -> io::Result<()> {
        let map = self.layers.get(&child).map(|layer| layer.map.clone()).unwrap_or_default();
        for (page, state) in (0_u64..).zip(map) {
            match state {
                HERE => self.copy_page(&[child], page, into)?,
                ZERO => {
                    let hide = self.holder(below, page).is_some();
                    self.release(into, page, if hide { ZERO } else { BELOW })?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what lies past the end, for a volume that became smaller.
    pub(super) fn cut(&mut self, chain: &[u64], from: u64, to: u64) -> io::Result<()> {
        if to > from { self.unmap(chain, from, to - from) } else { Ok(()) }
    }

    pub(super) fn remove(&mut self, number: u64) -> io::Result<()> {
        self.layers.remove(&number);
        for kind in ["data", "map"] {
            match fs::remove_file(self.folder.join(format!("{number}.{kind}"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}
