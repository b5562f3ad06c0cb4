//! The checks, most dangerous first: what loses data, then what lies, then what is untidy.

mod again;
mod attach;
mod beside;
mod crash;
mod data;
mod disks;
mod errors;
mod loads;
mod repository;
mod resize;
pub(crate) mod sequences;
mod snapshots;
mod space;
mod trees;

use std::sync::LazyLock;

pub(crate) use loads::honestly_absent;

use crate::verdict::Verdict;
use crate::world::World;

/// What a check finds when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    /// Nothing: it opens the driver itself.
    Nothing,
    /// An SR that is attached and empty.
    Sr,
}

/// A check that is built.
pub(crate) struct Check {
    /// Its id in the list.
    pub(crate) id: &'static str,
    /// Operations and features without which it does not apply.
    pub(crate) needs: &'static [&'static str],
    /// The sentences of the contract that it holds a driver to.
    pub(crate) sentences: &'static [&'static str],
    /// What it does and why, a paragraph.
    pub(crate) explain: &'static str,
    pub(crate) setup: Setup,
    pub(crate) run: fn(&mut World<'_>) -> Verdict,
}

/// What nearly every check needs: disks that can be made and removed.
pub(crate) const DISKS: &[&str] =
    &["sr_create", "sr_attach", "sr_scan", "vdi_create", "vdi_destroy"];

/// Disks that can be written.
pub(crate) const DATA: &[&str] = &[
    "sr_create",
    "sr_attach",
    "sr_scan",
    "vdi_create",
    "vdi_destroy",
    "vdi_attach",
    "vdi_activate",
];

/// All that are built, in the order in which they run.
pub(crate) static ALL: LazyLock<Vec<&'static Check>> = LazyLock::new(|| {
    let groups: [&'static [Check]; 14] = [
        data::CHECKS,
        snapshots::CHECKS,
        trees::CHECKS,
        resize::CHECKS,
        disks::CHECKS,
        again::CHECKS,
        attach::CHECKS,
        errors::CHECKS,
        space::CHECKS,
        repository::CHECKS,
        loads::CHECKS,
        beside::CHECKS,
        sequences::CHECKS,
        crash::CHECKS,
    ];
    groups.into_iter().flatten().collect()
});

/// The check of an id, if it is built.
pub(crate) fn find(id: &str) -> Option<&'static Check> {
    ALL.iter().copied().find(|check| check.id == id)
}
