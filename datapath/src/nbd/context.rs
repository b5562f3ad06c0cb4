//! Contexts: what block status can tell of a disk.

use std::fmt;

use super::protocol::{CONTEXT_ALLOCATION, CONTEXT_BITMAP, STATE_DIRTY, state};
use crate::error::Result;
use crate::export::{Changed, Export, Extent};

/// Contexts that one client may choose.
const MOST: usize = 16;

/// A context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Context {
    /// Holes and zeros.
    Allocation,
    /// What has changed, by the bitmap of this name.
    Bitmap(String),
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allocation => f.write_str(CONTEXT_ALLOCATION),
            Self::Bitmap(name) => write!(f, "{CONTEXT_BITMAP}{name}"),
        }
    }
}

/// The contexts that match queries, numbered from 1. A list (`exact` false) may ask for groups:
/// nothing at all, `base:`, `qemu:` and `qemu:dirty-bitmap:` stand for everything in them.
pub(super) fn select(queries: &[String], bitmaps: &[String], exact: bool) -> Vec<(u32, Context)> {
    let all = std::iter::once(Context::Allocation)
        .chain(bitmaps.iter().cloned().map(Context::Bitmap))
        .filter(|context| context.to_string().len() <= super::protocol::MAX_NAME);
    let wanted = |context: &Context| {
        let name = context.to_string();
        let group = match context {
            Context::Allocation => ["base:", "base:"],
            Context::Bitmap(_) => ["qemu:", CONTEXT_BITMAP],
        };
        let matches = |query: &String| *query == name || (!exact && group.contains(&&**query));
        queries.iter().any(matches) || (!exact && queries.is_empty())
    };
    (1..).zip(all.filter(wanted)).take(if exact { MOST } else { usize::MAX }).collect()
}

/// Room for what contexts say; kept from request to request.
#[derive(Default)]
pub(super) struct Found {
    extents: Vec<Extent>,
    changed: Vec<Changed>,
    /// Lengths and flags, as they are sent.
    pub(super) words: Vec<(u32, u32)>,
}

impl Context {
    /// What a range holds; at most `limit` pieces. The range is no longer than 32 bits say.
    pub(super) fn ask(
        &self,
        export: &dyn Export,
        offset: u64,
        length: u64,
        limit: usize,
        into: &mut Found,
    ) -> Result<()> {
        into.words.clear();
        match self {
            Self::Allocation => {
                into.extents.clear();
                export.extents(offset, length, limit, &mut into.extents)?;
                let word = |extent: &Extent| {
                    let hole = if extent.hole { state::HOLE } else { 0 };
                    let zero = if extent.zero { state::ZERO } else { 0 };
                    (extent.length.min(length) as u32, hole | zero)
                };
                into.words.extend(into.extents.iter().take(limit).map(word));
            }
            Self::Bitmap(name) => {
                into.changed.clear();
                export.changed(name, offset, length, limit, &mut into.changed)?;
                let word = |changed: &Changed| {
                    let dirty = if changed.dirty { STATE_DIRTY } else { 0 };
                    (changed.length.min(length) as u32, dirty)
                };
                into.words.extend(into.changed.iter().take(limit).map(word));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::select;

    fn names(queries: &[&str], exact: bool) -> Vec<String> {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let found = select(&owned(queries), &owned(&["one", "two"]), exact);
        found.into_iter().map(|(id, context)| format!("{id} {context}")).collect()
    }

    #[test]
    fn lists_know_groups_and_choices_do_not() {
        let all = ["1 base:allocation", "2 qemu:dirty-bitmap:one", "3 qemu:dirty-bitmap:two"];
        assert_eq!(names(&[], false), all);
        assert_eq!(names(&["base:", "qemu:"], false), all);
        assert_eq!(names(&["base:"], false), all[..1]);
        assert_eq!(
            names(&["qemu:dirty-bitmap:"], false),
            ["1 qemu:dirty-bitmap:one", "2 qemu:dirty-bitmap:two"]
        );
        assert_eq!(names(&["qemu:dirty-bitmap:two"], false), ["1 qemu:dirty-bitmap:two"]);
        for group in [&[][..], &["base:"], &["qemu:", "qemu:dirty-bitmap:", "other:x"]] {
            assert_eq!(names(group, true), [""; 0], "{group:?} chooses nothing");
        }
        assert_eq!(
            names(&["qemu:dirty-bitmap:two", "base:allocation"], true),
            ["1 base:allocation", "2 qemu:dirty-bitmap:two"]
        );
    }
}
