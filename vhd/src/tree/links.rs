//! Who is whose parent among the images of a store, and which chains are sound.

use std::collections::HashMap;

use uuid::Uuid;

use super::scan::{Entry, Link, Scan, What};
use super::{Format, parse_link};
use crate::image::{Parent, Suspect};

impl Scan {
    /// Resolves who is whose parent, and which chains are sound.
    pub(super) fn resolve(&mut self) {
        let mut by_image: HashMap<Uuid, Vec<usize>> = HashMap::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if let Some(info) = entry.info() {
                by_image.entry(info.uuid).or_default().push(index);
            }
        }
        let links: Vec<Link> = self
            .entries
            .iter()
            .map(|entry| match entry.info().and_then(|info| info.parent.as_ref()) {
                Some(parent) => self.find_parent(entry, parent, &by_image),
                None => Link::None,
            })
            .collect();
        for (index, link) in links.into_iter().enumerate() {
            let named = match self.entries.get(index).map(|entry| &entry.what) {
                Some(What::Vhd(info)) => info.parent.as_ref().map(|parent| parent.uuid),
                Some(What::Damaged(_, Suspect::Parent(uuid))) => Some(*uuid),
                _ => None,
            };
            let named = named.and_then(|uuid| by_image.get(&uuid)).map_or(&[][..], Vec::as_slice);
            for parent in named {
                if let Some(parent) = self.entries.get_mut(*parent) {
                    parent.named_by += 1;
                }
            }
            if let Link::To(parent) = link
                && let Some(entry) = self.entries.get_mut(parent)
            {
                entry.children += 1;
                // By its name only: its image cannot be read.
                entry.named_by += usize::from(!named.contains(&parent));
            }
            if let Some(entry) = self.entries.get_mut(index) {
                entry.link = link;
            }
        }
        self.judge();
    }

    fn find_parent(
        &self,
        child: &Entry,
        parent: &Parent,
        by_image: &HashMap<Uuid, Vec<usize>>,
    ) -> Link {
        if let Some(path) = parent.elsewhere() {
            return Link::Broken(format!("its parent locator leaves the directory: {path:?}"));
        }
        if parent.uuid.is_nil() {
            return Link::Broken(
                "names a raw file as its parent, which a store does not hold".to_owned(),
            );
        }
        let hint = parent.sibling().unwrap_or(&parent.name);
        let hinted = parse_link(hint)
            .filter(|(_, format)| *format == Format::Vhd)
            .and_then(|(uuid, _)| self.index.get(&uuid).copied());
        let matching = by_image.get(&parent.uuid).map_or(&[][..], Vec::as_slice);
        let size = child.info().map_or(0, |info| info.size);
        let found = match (hinted, matching) {
            (Some(hinted), all) if all.contains(&hinted) => hinted,
            (_, [only]) => *only,
            (_, [_, _, ..]) => {
                return Link::Broken(format!(
                    "several images claim to be its parent {}",
                    parent.uuid
                ));
            }
            (Some(hinted), []) => {
                match self.entries.get(hinted).map(|entry| (entry, &entry.what)) {
                    Some((_, What::Damaged(..))) => return Link::To(hinted),
                    Some((entry, What::Vhd(info))) => {
                        return Link::Broken(format!(
                            "expects the parent {}, but {} is {}",
                            parent.uuid, entry.uuid, info.uuid
                        ));
                    }
                    _ => return Link::Broken(format!("its parent {hint:?} is not a VHD")),
                }
            }
            (None, []) => {
                return Link::Broken(format!("its parent {} ({hint:?}) is missing", parent.uuid));
            }
        };
        match self.entries.get(found).and_then(Entry::info) {
            Some(info) if info.size > size => {
                Link::Broken(format!("has {size} bytes, fewer than its parent's {}", info.size))
            }
            _ => Link::To(found),
        }
    }

    /// Depth and health of every entry, from the roots down; iterative, since a chain's length is
    /// whatever the files say.
    fn judge(&mut self) {
        let count = self.entries.len();
        // 0: not seen, 1: on the path being walked, 2: judged.
        let mut seen = vec![0_u8; count];
        for start in 0..count {
            let mut path = Vec::new();
            let mut at = start;
            let mut cycle = None;
            while seen[at] == 0 {
                seen[at] = 1;
                path.push(at);
                match self.entries[at].link {
                    Link::To(parent) if seen[parent] == 1 => cycle = Some(parent),
                    Link::To(parent) => at = parent,
                    _ => {}
                }
            }
            if let Some(first) = cycle
                && let Some(position) = path.iter().position(|index| *index == first)
            {
                for index in path.drain(position..) {
                    seen[index] = 2;
                    let reason = "its chain of parents leads back to itself".to_owned();
                    self.entries[index].fault = Some((index, reason));
                }
            }
            for index in path.into_iter().rev() {
                seen[index] = 2;
                let above = self.entries[index]
                    .parent()
                    .map(|parent| (self.entries[parent].depth, self.entries[parent].fault.clone()));
                let entry = &mut self.entries[index];
                entry.fault = match (&entry.what, &entry.link) {
                    (What::Damaged(reason, _), _) | (_, Link::Broken(reason)) => {
                        Some((index, reason.clone()))
                    }
                    _ => above.as_ref().and_then(|(_, fault)| fault.clone()),
                };
                if entry.fault.is_none() {
                    entry.depth = above.map_or(0, |(depth, _)| depth) + 1;
                }
            }
        }
    }
}
