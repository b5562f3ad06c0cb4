//! Requests as transfers that somebody else does: a ring, or a pipe.

use super::{Chain, is_whole};
use crate::export::Piece;

/// How bytes get into and out of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::disk) enum Way {
    /// Aligned, past the page cache: of a disk that is served so.
    PastTheCache,
    /// Through the page cache: of a disk that is served so. A write is a single piece, and a read
    /// has no piece without a file.
    ByTheCache,
}

impl Chain {
    /// The pieces of a request, and what is to be held as long as they are under way; none where it
    /// is more than transfers, or the disk is served in the other way.
    pub(in crate::disk) fn transfer(
        &self,
        offset: u64,
        length: u64,
        write: bool,
        way: Way,
    ) -> Option<(Vec<Piece>, Box<dyn Send>)> {
        let leaf = self.levels.first()?;
        if leaf.storage.direct.is_some() != (way == Way::PastTheCache) {
            return None;
        }
        self.check(offset, length).ok()?;
        let held: Box<dyn Send> = if write {
            if !leaf.takes_writes() || !is_whole(leaf.unit(), offset, length) {
                return None;
            }
            Box::new(self.neighbours.try_enter()?)
        } else {
            Box::new(())
        };
        let single = self.locate(offset, length).ok()?;
        let pieces = match single {
            Some(piece) => vec![piece],
            None if write => return None,
            None => self.resolve(offset, length).ok()?,
        };
        let mut parts = Vec::with_capacity(pieces.len());
        let mut start = 0;
        for piece in pieces {
            let part = start..start + piece.length as usize;
            start = part.end;
            let place = match piece.place {
                Some((level, _)) if write && level != 0 => return None,
                None if write || way == Way::ByTheCache => return None,
                Some((level, at)) => {
                    let level = self.levels.get(level)?;
                    if !write && level.may_end_in(at, piece.length) {
                        return None;
                    }
                    let file = match way {
                        Way::PastTheCache => level.storage.for_ring(at, piece.length)?,
                        Way::ByTheCache => level.storage.cached.clone(),
                    };
                    Some((file, at))
                }
                None => None,
            };
            parts.push(Piece { part, place });
        }
        Some((parts, held))
    }
}
