//! The checks, most dangerous first: what loses data, then what lies, then what is untidy.

mod again;
mod attach;
mod beside;
mod crash;
mod damage;
mod data;
mod disks;
mod errors;
mod faults;
mod hosts;
mod life;
mod live;
mod loads;
mod offload;
mod process;
mod recover;
mod repository;
mod resize;
mod rough;
mod scale;
pub(crate) mod sequences;
mod snapshots;
mod space;
mod syscalls;
mod threads;
mod trees;

use std::sync::LazyLock;

pub(crate) use loads::honestly_absent;

use crate::bench::Bench;
use crate::verdict::Verdict;
use crate::world::World;

/// What a check finds when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    /// Nothing: it opens the driver itself.
    Nothing,
    /// An SR that is attached and empty.
    Sr,
    /// As `Sr`, on an array that goes wrong on command.
    SrOfSimulator,
    /// As `Sr`, where several hosts can be played.
    SrOfHosts,
}

impl Setup {
    pub(crate) fn has_sr(self) -> bool {
        self != Self::Nothing
    }

    /// Why the check does not apply, where that is known before an SR is made, which takes long on some
    /// backends.
    pub(crate) fn lacks(self, bench: &Bench) -> Option<&'static str> {
        let offload = bench.inspection.manifest.can("offload");
        match self {
            Self::SrOfSimulator if bench.simulator().is_none() => {
                Some("the configuration names no simulated array: nothing goes wrong on command")
            }
            Self::SrOfHosts if offload || bench.config.backend.volume_groups => Some(hosts::DEVICE),
            _ => None,
        }
    }
}

/// A check that is built.
pub(crate) struct Check {
    /// Its id in the list.
    pub(crate) id: &'static str,
    pub(crate) needs: Needs,
    /// The sentences of the contract that it holds a driver to.
    pub(crate) sentences: &'static [&'static str],
    /// What it does and why, a paragraph.
    pub(crate) explain: &'static str,
    pub(crate) setup: Setup,
    pub(crate) run: fn(&mut World<'_>) -> Verdict,
}

/// Operations and features without which a check does not apply: groups that come together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    groups: [&'static [&'static str]; 6],
    used: usize,
}

impl Needs {
    /// It applies to every driver.
    pub(crate) const NOTHING: Self = Self { groups: [&[]; 6], used: 0 };

    pub(crate) const fn only(names: &'static [&'static str]) -> Self {
        Self::NOTHING.and(names)
    }

    /// These too. Used in constants only, where an array that is too short does not compile.
    pub(crate) const fn and(mut self, names: &'static [&'static str]) -> Self {
        self.groups[self.used] = names;
        self.used += 1;
        self
    }

    /// All of them.
    pub(crate) fn iter(self) -> impl Iterator<Item = &'static str> {
        self.groups.into_iter().flatten().copied()
    }
}

/// What nearly every check needs: disks that can be made and removed.
pub(crate) const DISKS: Needs =
    Needs::only(&["sr_create", "sr_attach", "sr_scan", "vdi_create", "vdi_destroy"]);

/// Disks that can be written.
pub(crate) const DATA: Needs = DISKS.and(&["vdi_attach", "vdi_activate"]);

/// Disks that can be written and snapshotted.
pub(crate) const SNAPSHOTS: Needs = DATA.and(&["vdi_snapshot"]);

/// Disks that can be written and cloned.
pub(crate) const CLONES: Needs = DATA.and(&["vdi_clone"]);

/// Both.
pub(crate) const TREES: Needs = SNAPSHOTS.and(&["vdi_clone"]);

/// All that are built, in the order in which they run.
pub(crate) static ALL: LazyLock<Vec<&'static Check>> = LazyLock::new(|| {
    let groups: [&'static [Check]; 25] = [
        data::CHECKS,
        snapshots::CHECKS,
        trees::CHECKS,
        resize::CHECKS,
        disks::CHECKS,
        again::CHECKS,
        attach::CHECKS,
        errors::CHECKS,
        space::CHECKS,
        live::CHECKS,
        repository::CHECKS,
        loads::CHECKS,
        beside::CHECKS,
        threads::CHECKS,
        process::CHECKS,
        sequences::CHECKS,
        crash::CHECKS,
        damage::CHECKS,
        hosts::CHECKS,
        recover::CHECKS,
        rough::CHECKS,
        scale::CHECKS,
        syscalls::CHECKS,
        faults::CHECKS,
        offload::CHECKS,
    ];
    groups.into_iter().flatten().collect()
});

/// The check of an id, if it is built.
pub(crate) fn find(id: &str) -> Option<&'static Check> {
    ALL.iter().copied().find(|check| check.id == id)
}
