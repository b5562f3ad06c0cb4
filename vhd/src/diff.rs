//! What changed between two images of a chain.
//!
//! A differencing image is the list of what was written since its parent, so what changed between
//! an ancestor and its descendant stands in the block tables and bitmaps of those in between; of
//! two images with a common ancestor, in those of both sides down to it. That is an upper bound: a
//! sector may have been written with what it held before. [`Diff::content`] reads both and
//! compares.

use std::path::PathBuf;

use crate::chain::Chain;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::folder::{Link, Parents, chain, layers};
use crate::image::{Image, Mode};
use crate::{Extents, SECTOR};

/// A range of the disk that may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Bytes from the start of the disk.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// How two images are related.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// They are the same file.
    Same,
    /// The first is an ancestor of the second.
    Ancestor,
    /// The first is a descendant of the second.
    Descendant,
    /// Both are based on a third.
    Common,
    /// They have no image in common.
    Unrelated,
}

/// Receives ranges in order; says whether to go on.
pub type Each<'a> = &'a mut dyn FnMut(Range) -> Result<()>;

/// Two images, and what is between them.
pub struct Diff {
    /// How they are related.
    pub relation: Relation,
    /// The youngest image that both are based on, or that one of them is.
    pub ancestor: Option<PathBuf>,
    /// Bytes of the first disk.
    pub left_size: u64,
    /// Bytes of the second disk.
    pub right_size: u64,
    links: [Vec<Link>; 2],
    between: Vec<Image>,
}

/// Bytes of the disk looked at in one piece.
const WINDOW: u64 = 1 << 30;

/// Bytes compared at a time.
const CHUNK: u64 = 1 << 20;

impl Diff {
    /// Opens two images and finds out how they are related.
    pub fn open(left: &std::path::Path, right: &std::path::Path, at: Parents<'_>) -> Result<Self> {
        let links = [left, right].map(|path| -> Result<Vec<Link>> {
            let (links, findings) = chain(path, at)?;
            let bad = findings.into_iter().find(|f| f.severity == crate::check::Severity::Error);
            match bad {
                None => Ok(links),
                Some(finding) => Err(Error::Store { path: finding.path, what: finding.text }),
            }
        });
        let [left_links, right_links] = links;
        let (left_links, right_links) = (left_links?, right_links?);
        let left_ids = ids(&left_links)?;
        let right_ids = ids(&right_links)?;
        let common = left_ids
            .iter()
            .enumerate()
            .find_map(|(l, id)| right_ids.iter().position(|other| other == id).map(|r| (l, r)));
        let (relation, left_above, right_above) = match common {
            Some((0, 0)) => (Relation::Same, 0, 0),
            Some((0, above)) => (Relation::Ancestor, 0, above),
            Some((above, 0)) => (Relation::Descendant, above, 0),
            Some((l, r)) => (Relation::Common, l, r),
            None => (Relation::Unrelated, 0, 0),
        };
        let ancestor = common.and_then(|(l, _)| left_links.get(l)).map(|link| link.path.clone());
        let above = left_links.iter().take(left_above).chain(right_links.iter().take(right_above));
        let between =
            above.map(|link| Image::open(&link.path, Mode::Read)).collect::<Result<Vec<_>>>()?;
        let size = |links: &[Link]| match links.first() {
            Some(link) => Image::open(&link.path, Mode::Read).map(|image| image.size()),
            None => Ok(0),
        };
        let (left_size, right_size) = (size(&left_links)?, size(&right_links)?);
        let links = [left_links, right_links];
        Ok(Self { relation, ancestor, left_size, right_size, links, between })
    }

    /// What may have changed, by block tables and bitmaps alone; no data is read. Of unrelated
    /// images that is everything.
    pub fn metadata(&self, each: Each<'_>) -> Result<()> {
        let size = self.left_size.max(self.right_size);
        let mut merger = Merger { pending: None, each };
        let mut at = 0;
        while at < size {
            let length = (size - at).min(WINDOW);
            let mut ranges = Vec::new();
            if self.relation == Relation::Unrelated {
                ranges.push(Range { offset: at, length });
            }
            for image in &self.between {
                let inside = image.size().saturating_sub(at).min(length);
                let runs = if inside > 0 { image.map(at, inside)? } else { Vec::new() };
                let present = runs.iter().filter(|run| run.at.is_some());
                ranges.extend(present.map(|r| Range { offset: r.offset, length: r.length }));
            }
            ranges.sort_unstable_by_key(|range| range.offset);
            for range in ranges {
                merger.add(range)?;
            }
            at += length;
        }
        merger.finish()
    }

    /// What did change: what may have is read from both and compared, sector by sector. What lies
    /// beyond the end of the smaller disk counts as zeros there.
    pub fn content(
        &self,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
        each: Each<'_>,
    ) -> Result<()> {
        let open = |links: &[Link]| Chain::open(&layers(links), Mode::Read);
        let (left, right) = (open(&self.links[0])?, open(&self.links[1])?);
        let mut total = 0;
        self.metadata(&mut |range| {
            total += range.length;
            Ok(())
        })?;
        let mut merger = Merger { pending: None, each };
        let mut buffers = [vec![0; CHUNK as usize], vec![0; CHUNK as usize]];
        let mut done = 0;
        self.metadata(&mut |range| {
            let mut at = range.offset;
            let end = range.offset + range.length;
            while at < end {
                let stop = end.min((at / CHUNK + 1) * CHUNK);
                compare(&left, &right, at, stop - at, &mut buffers, &mut merger)?;
                done += stop - at;
                at = stop;
                progress(done, total)?;
            }
            Ok(())
        })?;
        merger.finish()
    }
}

fn ids(links: &[Link]) -> Result<Vec<(u64, u64)>> {
    use std::os::unix::fs::MetadataExt;
    let id = |link: &Link| {
        let meta = std::fs::symlink_metadata(&link.path).map_err(Error::io(&link.path, "stat"))?;
        Ok((meta.dev(), meta.ino()))
    };
    links.iter().map(id).collect()
}

fn compare(
    left: &Chain,
    right: &Chain,
    offset: u64,
    length: u64,
    buffers: &mut [Vec<u8>; 2],
    merger: &mut Merger<'_>,
) -> Result<()> {
    let both_zero = [left, right].iter().all(|disk| {
        let extents = Extents::new(*disk, offset, length);
        extents.into_iter().all(|e| e.is_ok_and(|e| e.kind == crate::ExtentKind::Zero))
    });
    if both_zero {
        return Ok(());
    }
    for (disk, buffer) in [left, right].iter().zip(buffers.iter_mut()) {
        let inside = disk.size().saturating_sub(offset).min(length) as usize;
        disk.read_at(offset.min(disk.size()), &mut buffer[..inside])?;
        buffer[inside..length as usize].fill(0);
    }
    let [left, right] = buffers;
    if left[..length as usize] == right[..length as usize] {
        return Ok(());
    }
    let sector = SECTOR as usize;
    let pairs = left[..length as usize].chunks(sector).zip(right[..length as usize].chunks(sector));
    for ((left, right), at) in pairs.zip((offset..).step_by(sector)) {
        if left != right {
            merger.add(Range { offset: at, length: left.len() as u64 })?;
        }
    }
    Ok(())
}

/// Joins ranges that touch. They come sorted by their beginnings.
struct Merger<'a> {
    pending: Option<Range>,
    each: Each<'a>,
}

impl Merger<'_> {
    fn add(&mut self, range: Range) -> Result<()> {
        match &mut self.pending {
            Some(last) if range.offset <= last.offset + last.length => {
                let end = (range.offset + range.length).max(last.offset + last.length);
                last.length = end - last.offset;
                Ok(())
            }
            pending => match pending.replace(range) {
                Some(done) => (self.each)(done),
                None => Ok(()),
            },
        }
    }

    fn finish(mut self) -> Result<()> {
        match self.pending.take() {
            Some(done) => (self.each)(done),
            None => Ok(()),
        }
    }
}
