//! Consistency groups: VDIs of one SR whose snapshots are taken at one point in time.
//!
//! A group is what its VDIs say: each keeps the group's name among its own keys, on the storage
//! ([`crate::marks`]). So it is there after the SR was forgotten and introduced again, elsewhere too; it
//! cannot name a VDI that is gone; and a driver needs nothing for it but several disks in one
//! `vdi_snapshot`. An array that knows groups of its own gets one for each snapshot, by its driver.
//!
//! # Why not ...
//! *... a group that the array keeps?* Its volumes could not be removed or resized without it, each
//! vendor in his own way, and arrays without groups would need another place for the same fact.
//!
//! *... an id beside the name?* A group has no life of its own that an id would tell from another's.

use std::collections::BTreeMap;

use sm_model::manifest::feature;
use sm_model::vdi::{VdiInfo, VdisDone};
use sm_model::{Changed, Error, Kind, Result, VdiUuid, name};

use crate::marks::GROUP;
use crate::op::Op;
use crate::sr::{NewSnapshot, Sr};

/// VDIs whose snapshots are taken at one point in time.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Group {
    /// Its name, one within the SR.
    pub name: String,
    /// Its VDIs, by UUID.
    pub vdis: Vec<VdiInfo>,
}

/// A change of a group is done.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct GroupDone {
    /// What changed.
    pub changed: Changed,
    /// The group now; without VDIs it is none any more.
    pub group: Group,
}

/// A key is taken over by clones, which are not in the group: so it says whose it is.
fn mark(vdi: VdiUuid, group: &str) -> String {
    format!("{} {group}", short(vdi))
}

fn short(vdi: VdiUuid) -> String {
    vdi.0.simple().to_string().chars().take(8).collect()
}

/// The group that a VDI is in; of a snapshot, the one that its disk was in.
pub fn group_of(vdi: &VdiInfo) -> Option<&str> {
    let (of, group) = vdi.keys.get(GROUP)?.split_once(' ')?;
    let whose = if vdi.is_a_snapshot { vdi.snapshot_of? } else { vdi.uuid };
    (of == short(whose)).then_some(group)
}

impl Sr {
    /// All groups, by name.
    pub async fn groups(&self, op: &Op) -> Result<Vec<Group>> {
        let mut groups: BTreeMap<String, Vec<VdiInfo>> = BTreeMap::new();
        for vdi in self.vdis(op).await? {
            if let (false, Some(group)) = (vdi.is_a_snapshot, group_of(&vdi).map(str::to_owned)) {
                groups.entry(group).or_default().push(vdi);
            }
        }
        let sorted = |(name, mut vdis): (String, Vec<VdiInfo>)| {
            vdis.sort_by_key(|vdi| vdi.uuid);
            Group { name, vdis }
        };
        Ok(groups.into_iter().map(sorted).collect())
    }

    /// The group of that name. Error kind `not_found`.
    pub async fn group(&self, op: &Op, name: &str) -> Result<Group> {
        let groups = self.groups(op).await?;
        groups.into_iter().find(|group| group.name == name).ok_or_else(|| {
            Error::not_found(format!("SR {} has no group {name:?}", self.uuid()))
                .hint("smctl group list shows the groups, smctl group create makes one")
        })
    }

    /// Makes a group of VDIs. Refused if the driver cannot take their snapshots at one point in time,
    /// if one of them is in another group, or if there is a group of that name.
    pub async fn group_create(&self, op: &Op, name: &str, vdis: &[VdiUuid]) -> Result<GroupDone> {
        name::check_name(name)?;
        if name.is_empty() || vdis.is_empty() {
            return Err(Error::new(Kind::Limit, "a group needs a name and a VDI"));
        }
        self.require(feature::GROUP_SNAPSHOT)?;
        let groups = self.groups(op).await?;
        let there = groups.into_iter().find(|group| group.name == name);
        // What an earlier try with these VDIs has begun goes on.
        let other = |vdi: &VdiInfo| !vdis.contains(&vdi.uuid);
        if there.is_some_and(|group| group.vdis.iter().any(other)) {
            let text = format!("SR {} has a group {name:?} already", self.uuid());
            return Err(Error::new(Kind::Exists, text).hint("smctl group add puts VDIs into it"));
        }
        self.join(op, name, vdis).await
    }

    /// Puts VDIs into a group.
    pub async fn group_add(&self, op: &Op, name: &str, vdis: &[VdiUuid]) -> Result<GroupDone> {
        self.group(op, name).await?;
        self.join(op, name, vdis).await
    }

    /// Takes VDIs out of a group.
    pub async fn group_remove(&self, op: &Op, name: &str, vdis: &[VdiUuid]) -> Result<GroupDone> {
        let mut changed = Changed::Already;
        for vdi in vdis {
            let info = self.vdi_stat(op, *vdi, false).await?;
            if group_of(&info) == Some(name) {
                self.set_group(op, "leave", *vdi, None).await?;
                changed = Changed::Modified;
            }
        }
        self.group_done(op, name, changed).await
    }

    /// Ends a group; its VDIs, and their snapshots, stay.
    pub async fn group_destroy(&self, op: &Op, name: &str) -> Result<GroupDone> {
        let groups = self.groups(op).await?;
        let group = groups.into_iter().find(|group| group.name == name);
        let vdis: Vec<VdiUuid> =
            group.into_iter().flat_map(|group| group.vdis).map(|vdi| vdi.uuid).collect();
        self.group_remove(op, name, &vdis).await
    }

    /// Takes snapshots of all VDIs of a group, of one point in time, all or none: a set that has the id
    /// of the operation. Without a name they get those of their VDIs.
    pub async fn group_snapshot(
        &self,
        op: &Op,
        group: &str,
        name: Option<&str>,
        description: &str,
    ) -> Result<VdisDone> {
        let group = self.group(op, group).await?;
        let snapshots: Vec<NewSnapshot> = group
            .vdis
            .iter()
            .map(|vdi| NewSnapshot {
                vdi: vdi.uuid,
                name: name.unwrap_or(&vdi.name).to_owned(),
                description: description.to_owned(),
            })
            .collect();
        self.vdi_snapshot_set(op, &snapshots, None).await
    }

    async fn join(&self, op: &Op, name: &str, vdis: &[VdiUuid]) -> Result<GroupDone> {
        let mut new = Vec::new();
        for vdi in vdis {
            let info = self.vdi_stat(op, *vdi, false).await?;
            if info.is_a_snapshot {
                return Err(Error::unsupported(format!("VDI {vdi} is a snapshot"))
                    .context("vdi", vdi)
                    .hint("a group is of disks that are written"));
            }
            match group_of(&info) {
                Some(group) if group == name => {}
                Some(group) => {
                    let text = format!("VDI {vdi} is in the group {group:?}");
                    return Err(Error::new(Kind::InUse, text)
                        .context("vdi", vdi)
                        .hint(format!("smctl group remove {group:?} {vdi}")));
                }
                None => new.push(*vdi),
            }
        }
        let mut joined = Vec::new();
        for vdi in new {
            match self.set_group(op, "join", vdi, Some(name)).await {
                Ok(()) => joined.push(vdi),
                Err(error) => {
                    // All or none, as far as it goes: the caller may repeat it.
                    for vdi in joined {
                        let _ = self.set_group(op, "undo", vdi, None).await;
                    }
                    return Err(error);
                }
            }
        }
        let changed = if joined.is_empty() { Changed::Already } else { Changed::Modified };
        self.group_done(op, name, changed).await
    }

    async fn set_group(&self, op: &Op, why: &str, vdi: VdiUuid, to: Option<&str>) -> Result<()> {
        let keys = [(GROUP.to_owned(), to.map(|group| mark(vdi, group)))].into();
        self.vdi_mark(&op.part(&format!("{why}-{vdi}")), vdi, keys).await.map(drop)
    }

    async fn group_done(&self, op: &Op, name: &str, changed: Changed) -> Result<GroupDone> {
        let groups = self.groups(op).await?;
        let none = || Group { name: name.to_owned(), vdis: Vec::new() };
        let group = groups.into_iter().find(|group| group.name == name).unwrap_or_else(none);
        Ok(GroupDone { changed, group })
    }
}
