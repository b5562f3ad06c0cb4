//! LUN masking by entries: arrays on which a host is an object of its own (host, initiator group) that
//! volumes are mapped to.
//!
//! What differs is which requests that takes ([`HostEntries`]); in which order, and what is looked at
//! before, is here:
//!
//! | step | what is done |
//! |---|---|
//! | grant | the entry is found or made. One that others share is refused: they would reach each volume |
//! | map | mapped already: the array shows the number. The entry is gone meanwhile: it is made again, once |
//! | unmap | without an entry nothing is mapped to it. One that others share is refused if the volume is mapped to it |
//! | revoke | the entry goes, unless something is mapped to it still |

use plugin_sdk::Cx;
use plugin_sdk::tokio::sync::Mutex;

use crate::array::{Initiator, Mapping, Masking, Target, Volume};
use crate::ledger::{Ledger, Settle};
use crate::outcome::{Class, Failure, OrAbsent as _, Outcome};

/// An entry of the array.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// What requests call it.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// All its initiators.
    pub initiators: Vec<String>,
    /// Whether it is in a group, whose members all reach what is mapped to one.
    pub in_group: bool,
}

/// A portal of the array.
#[derive(Clone, Debug)]
pub struct Portal {
    /// Where it is.
    pub target: Target,
    /// The part of the array that it belongs to, where other parts do not serve its volumes.
    pub part: Option<String>,
}

impl From<Target> for Portal {
    fn from(target: Target) -> Self {
        Self { target, part: None }
    }
}

/// A volume as a host sees it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The number of the LUN.
    pub lun: u16,
    /// What `scsi_id` prints for it.
    pub scsi_id: String,
    /// The part of the array that serves it.
    pub part: Option<String>,
}

impl Shown {
    /// A LUN at any portal. [`Class::Garbled`] if there is none of that number.
    pub fn at(lun: u64, scsi_id: String) -> Outcome<Self> {
        let none = |_| Failure::new(Class::Garbled).fact(format!("no LUN has the number {lun}"));
        Ok(Self { lun: u16::try_from(lun).map_err(none)?, scsi_id, part: None })
    }
}

/// What was found or made for this host.
#[derive(Clone, Debug)]
struct Entrance {
    initiator: String,
    entry: String,
    portals: Vec<Portal>,
}

impl Entrance {
    fn mapping(self, shown: Shown) -> Mapping {
        let serves = |portal: &Portal| portal.part.is_none() || portal.part == shown.part;
        let targets = self.portals.into_iter().filter(serves).map(|portal| portal.target);
        Mapping { lun: shown.lun, scsi_id: shown.scsi_id, targets: targets.collect() }
    }
}

/// What is known of this host at the array, so that a map is one request.
#[derive(Debug, Default)]
pub struct Known(Mutex<Option<Entrance>>);

impl Known {
    async fn entry(&self, of: &Initiator) -> Option<String> {
        let known = self.0.lock().await;
        known.as_ref().filter(|known| known.initiator == of.iqn).map(|known| known.entry.clone())
    }

    async fn forget(&self) {
        *self.0.lock().await = None;
    }
}

/// The requests for [`Masking`] by entries.
pub trait HostEntries: Send + Sync + 'static {
    /// Whether an initiator is in one entry of the whole array, whoever made it: then that is looked
    /// for before one is made.
    const ONE_ENTRY: bool;
    /// Whether a snapshot can be mapped.
    const SNAPSHOTS: bool = false;
    /// What the array calls an entry.
    const ENTRY: &'static str = "host";

    /// Where what is known is kept.
    fn known(&self) -> &Known;

    /// The name of the entry that is made for a host. It follows from the initiator.
    fn entry_name(&self, of: &Initiator) -> String;

    /// The entry of an initiator; of arrays without [`ONE_ENTRY`](Self::ONE_ENTRY) the one of
    /// [that name](Self::entry_name).
    fn find_entry(
        &self,
        cx: &Cx,
        of: &Initiator,
    ) -> impl Future<Output = Outcome<Option<Entry>>> + Send;

    /// Makes the entry, with this initiator alone, and answers its id if the array says it.
    fn make_entry(
        &self,
        cx: &Cx,
        name: &str,
        to: &Initiator,
    ) -> impl Future<Output = Outcome<Option<String>>> + Send;

    /// Removes the entry that was made for a host. [`Class::InUse`] while something is mapped to it.
    fn remove_entry(&self, cx: &Cx, of: &Initiator) -> impl Future<Output = Outcome<()>> + Send;

    /// The portals for iSCSI.
    fn portals(&self, cx: &Cx) -> impl Future<Output = Outcome<Vec<Portal>>> + Send;

    /// Maps a volume to an entry, and answers how it is seen if the array says it.
    fn connect(
        &self,
        cx: &Cx,
        volume: &Volume,
        entry: &str,
    ) -> impl Future<Output = Outcome<Option<Shown>>> + Send;

    /// How a volume is seen by an entry; none if it is not mapped to it.
    fn shown(
        &self,
        cx: &Cx,
        volume: &Volume,
        entry: &str,
    ) -> impl Future<Output = Outcome<Option<Shown>>> + Send;

    /// Ends the mapping to an entry.
    fn disconnect(
        &self,
        cx: &Cx,
        volume: &Volume,
        entry: &str,
    ) -> impl Future<Output = Outcome<()>> + Send;

    /// The initiators that reach a volume, in any order; a group of hosts by its name.
    fn reached_by(
        &self,
        cx: &Cx,
        volume: &Volume,
    ) -> impl Future<Output = Outcome<Vec<String>>> + Send;
}

/// The id of an entry that holds this host's initiator and no other.
fn own<A: HostEntries>(entry: Entry, of: &Initiator) -> Outcome<String> {
    let is_ours = |iqn: &String| iqn.eq_ignore_ascii_case(&of.iqn);
    let (fact, hint) = if entry.in_group {
        let fact = "it is in a group, whose members all reach what is mapped to one";
        (fact, "take it out of its group on the array")
    } else if !entry.initiators.iter().all(is_ours) {
        let fact = "it has other initiators than this host's, which would reach the same volumes";
        (fact, "give this host's initiator an entry of its own on the array")
    } else if entry.initiators.is_empty() {
        ("it does not have this host's initiator", "look at it on the array")
    } else {
        return Ok(entry.id);
    };
    let object = format!("{} {}", A::ENTRY, entry.name);
    Err(Failure::new(Class::AlreadyExists).object(object).fact(fact).hint(hint))
}

async fn find_or_make<A: HostEntries>(array: &A, cx: &Cx, to: &Initiator) -> Outcome<String> {
    if A::ONE_ENTRY
        && let Some(found) = array.find_entry(cx, to).await?
    {
        return own::<A>(found, to);
    }
    let missing = match array.make_entry(cx, &array.entry_name(to), to).await {
        Ok(Some(made)) => return Ok(made),
        Ok(None) => Failure::new(Class::Unknown).fact("the array does not show what it has made"),
        // By an earlier request, or by another SR of this host at the same moment; reads may be late.
        Err(failure) if failure.class == Class::AlreadyExists => failure,
        Err(failure) => return Err(failure),
    };
    let look = |cx: Cx| async move { array.find_entry(&cx, to).await };
    match Ledger::new(cx, Settle::default()).appears(look).await? {
        Some(found) => own::<A>(found, to),
        None => Err(missing),
    }
}

/// Finds or makes what this host needs; `anew` also where it is known.
async fn enter<A: HostEntries>(
    array: &A,
    cx: &Cx,
    to: &Initiator,
    anew: bool,
) -> Outcome<Entrance> {
    // Held meanwhile: two tasks need not both make it.
    let mut known = array.known().0.lock().await;
    if let Some(entrance) = known.as_ref().filter(|known| known.initiator == to.iqn && !anew) {
        return Ok(entrance.clone());
    }
    let entry = find_or_make(array, cx, to).await?;
    let portals = array.portals(cx).await?;
    if portals.is_empty() {
        return Err(Failure::new(Class::Unsupported)
            .fact("the array has no portal for iSCSI")
            .hint("look at its network interfaces for one that serves iSCSI"));
    }
    Ok(known.insert(Entrance { initiator: to.iqn.clone(), entry, portals }).clone())
}

impl<A: HostEntries> Masking for A {
    async fn grant(&self, cx: &Cx, to: &Initiator) -> Outcome<()> {
        enter(self, cx, to, true).await.map(drop)
    }

    async fn revoke(&self, cx: &Cx, from: &Initiator) -> Outcome<()> {
        self.known().forget().await;
        let removed = self.remove_entry(cx, from).await.or_absent();
        removed.unless_in_use().map(drop)
    }

    async fn map(&self, cx: &Cx, volume: &Volume, to: &Initiator) -> Outcome<Mapping> {
        if volume.snapshot_of.is_some() && !A::SNAPSHOTS {
            return Err(Failure::new(Class::Unsupported)
                .fact("the array gives no LUN to a snapshot")
                .hint("clone it, and attach the clone"));
        }
        let mut was_known = self.known().entry(to).await.is_some();
        loop {
            let entrance = enter(self, cx, to, false).await?;
            let entry = &entrance.entry;
            let missing = match self.connect(cx, volume, entry).await {
                Ok(Some(shown)) => return Ok(entrance.mapping(shown)),
                Ok(None) => {
                    let fact = "the array does not show the mapping that it has made";
                    Failure::new(Class::Unknown).object(volume.name.clone()).fact(fact)
                }
                // Somebody has removed the entry: another SR of this host, when it was detached.
                Err(failure) if failure.class == Class::NotFound && was_known => {
                    was_known = false;
                    self.known().forget().await;
                    continue;
                }
                // Mapped already, perhaps.
                Err(failure) if failure.class == Class::InUse => {
                    let shown = self.shown(cx, volume, entry).await?.ok_or(failure)?;
                    return Ok(entrance.mapping(shown));
                }
                Err(failure) if failure.class == Class::AlreadyExists => failure,
                Err(failure) => return Err(failure),
            };
            // What is read next may be from before.
            let look = |cx: Cx| async move { self.shown(&cx, volume, entry).await };
            let shown = Ledger::new(cx, Settle::default()).appears(look).await?;
            let shown = shown.ok_or(missing)?;
            return Ok(entrance.mapping(shown));
        }
    }

    async fn unmap(&self, cx: &Cx, volume: &Volume, from: &Initiator) -> Outcome<()> {
        // It never had a LUN, though somebody may have asked for one and left the note of it.
        if volume.snapshot_of.is_some() && !A::SNAPSHOTS {
            return Ok(());
        }
        let entry = match self.known().entry(from).await {
            Some(entry) => Some(entry),
            None => match self.find_entry(cx, from).await? {
                Some(found) => {
                    let id = found.id.clone();
                    match own::<A>(found, from) {
                        // Somebody else has mapped it: others would lose it with this host.
                        Err(shared) if self.shown(cx, volume, &id).await?.is_some() => {
                            return Err(shared);
                        }
                        owned => owned.ok(),
                    }
                }
                None => None,
            },
        };
        match entry {
            Some(entry) => self.disconnect(cx, volume, &entry).await.or_absent().map(drop),
            None => Ok(()),
        }
    }

    async fn mappings(&self, cx: &Cx, volume: &Volume) -> Outcome<Vec<String>> {
        let mut names = self.reached_by(cx, volume).await?;
        names.sort();
        names.dedup();
        Ok(names)
    }
}
