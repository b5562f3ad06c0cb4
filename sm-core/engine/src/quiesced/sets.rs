//! The sets that are on the storage.

use std::collections::BTreeMap;

use sm_model::vdi::{VdiInfo, VdisDone};
use sm_model::{AttachMode, Error, Kind, Result, SrUuid, VdiUuid};
use sm_quiesce::Consistency;
use uuid::Uuid;

use super::keys::{self, Mark};
use super::{DOCUMENT_LIMIT, Presented, SetMember, SnapshotSet};
use crate::manager::StorageManager;
use crate::op::Op;
use crate::sr::{NewSnapshot, Sr};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SnapshotSets {
    /// The sets, the oldest first.
    pub sets: Vec<SnapshotSet>,
    /// The SRs that could not be read, and why: their snapshots are missing above.
    pub unread: Vec<(SrUuid, Error)>,
}

impl Sr {
    /// Takes snapshots of disks, all of one point in time, as a set: it has the id of the operation,
    /// and a document is kept with it. Refused before anything is taken where there is no room for
    /// what is kept, if the driver can tell.
    pub async fn vdi_snapshot_set(
        &self,
        op: &Op,
        snapshots: &[NewSnapshot],
        document: Option<&str>,
    ) -> Result<VdisDone> {
        refuse_long(document)?;
        let mark = Mark {
            set: op.id.0,
            size: snapshots.len() as u32,
            consistency: Consistency::Crash,
            one_point_in_time: true,
        };
        let document = document.map(keys::of_document).unwrap_or_default();
        let (key, value) = mark.key(VdiUuid(op.id.0));
        let known = document.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?)));
        let keys = known.chain([(key, value)]).collect();
        let mut done =
            self.vdi_snapshot_prepare_marked(op, snapshots, keys).await?.commit().await?;
        for (n, vdi) in done.vdis.iter_mut().enumerate() {
            let (key, value) = mark.key(vdi.uuid);
            let mut keys = if n == 0 { document.clone() } else { BTreeMap::new() };
            keys.insert(key, Some(value));
            let part = op.part(&format!("mark-{n}"));
            *vdi = self.vdi_mark(&part, vdi.uuid, keys).await?.vdi;
        }
        Ok(done)
    }
}

/// Error kind `limit` for a document that is too long.
pub(super) fn refuse_long(document: Option<&str>) -> Result<()> {
    let length = document.map_or(0, str::len);
    if length <= DOCUMENT_LIMIT {
        return Ok(());
    }
    let text = format!("the metadata has {length} bytes, the limit is {DOCUMENT_LIMIT}");
    Err(Error::new(Kind::Limit, text))
}

impl StorageManager {
    /// The sets whose snapshots are in SRs that are attached on this host.
    pub async fn snapshot_sets(&self, op: &Op) -> Result<SnapshotSets> {
        let mut found = BTreeMap::<Uuid, SnapshotSet>::new();
        let mut unread = Vec::new();
        for record in self.srs()? {
            if !record.attached {
                continue;
            }
            let sr = self.sr(&record.uuid.to_string())?;
            match sr.vdis(op).await {
                Ok(vdis) => vdis.iter().for_each(|vdi| add(&mut found, sr.uuid(), vdi)),
                Err(error) => unread.push((record.uuid, error)),
            }
        }
        let mut sets: Vec<SnapshotSet> = found.into_values().collect();
        sets.sort_by_key(|set| (set.time, set.id));
        Ok(SnapshotSets { sets, unread })
    }

    /// The set that `selector` means: its id or the beginning of it, or one of its snapshots.
    pub async fn snapshot_set(&self, op: &Op, selector: &str) -> Result<SnapshotSet> {
        let SnapshotSets { sets, unread } = self.snapshot_sets(op).await?;
        let of_snapshot = |set: &&SnapshotSet| {
            set.members.iter().any(|member| member.snapshot.to_string() == selector)
        };
        if let Some(set) = sets.iter().find(of_snapshot) {
            return Ok(set.clone());
        }
        let chosen = crate::select::select("snapshot-group", selector, &sets, |set| set.id, |_| "");
        match (chosen, unread.into_iter().next()) {
            (Ok(set), _) => Ok(set.clone()),
            (Err(error), None) => Err(error),
            (Err(error), Some((sr, why))) => Err(error.source(&why).context("unread_sr", sr)),
        }
    }

    /// The document that is kept with a set.
    pub async fn set_document(&self, op: &Op, set: &SnapshotSet) -> Result<Option<String>> {
        for member in &set.members {
            let info = self.member_sr(member)?.vdi_stat(op, member.snapshot, false).await?;
            if let Some(document) = keys::document(&info)? {
                return Ok(Some(document));
            }
        }
        Ok(None)
    }

    /// Puts all disks of a set back to their snapshots. Refused, with nothing changed, unless all
    /// are there and none is attached. One that was cut is finished by a repetition with the same
    /// operation id.
    pub async fn set_revert(&self, op: &Op, set: &SnapshotSet) -> Result<()> {
        complete(set)?;
        let mut pairs = Vec::with_capacity(set.members.len());
        for member in &set.members {
            let sr = self.member_sr(member)?;
            let Some(vdi) = member.vdi else {
                let text = format!("the disk of snapshot {} is gone", member.snapshot);
                return Err(Error::not_found(text).context("set", set.id));
            };
            sr.vdi_stat(op, vdi, false).await?;
            sr.refuse_if_attached(op, vdi, "", None).await?;
            pairs.push((sr, vdi, member.snapshot));
        }
        for (n, (sr, vdi, snapshot)) in pairs.iter().enumerate() {
            let part = op.part(&format!("revert-{snapshot}"));
            sr.vdi_revert(&part, *vdi, *snapshot).await.map_err(|error| {
                let mut error = error.context("set", set.id);
                error.message =
                    format!("{n} of {} disks are put back: {}", pairs.len(), error.message);
                error.hint(format!("repeat it with the operation id {}", op.id))
            })?;
        }
        Ok(())
    }

    /// Destroys all snapshots of a set. All are tried; the first error is answered.
    pub async fn set_destroy(&self, op: &Op, set: &SnapshotSet) -> Result<()> {
        let mut failed = None;
        for member in &set.members {
            let part = op.part(&format!("destroy-{}", member.snapshot));
            let destroyed = self.member_sr(member)?.vdi_destroy(&part, member.snapshot).await;
            if let Err(error) = destroyed {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), |error| Err(error.context("set", set.id)))
    }

    /// Makes the snapshots of a set reachable on this host, whichever host took them: for reading
    /// only, or as clones that can be written.
    pub async fn set_present(
        &self,
        op: &Op,
        set: &SnapshotSet,
        datapath: &str,
        writable: bool,
    ) -> Result<Vec<Presented>> {
        complete(set)?;
        let mut presented = Vec::with_capacity(set.members.len());
        for member in &set.members {
            let sr = self.member_sr(member)?;
            let op = op.part(&format!("present-{}", member.snapshot));
            let (vdi, mode) = if writable {
                let clone = sr.vdi_clone(&op, member.snapshot, &member.name, "").await?.vdi.uuid;
                let mark = [(keys::PRESENTED.to_owned(), Some(set.id.to_string()))].into();
                sr.vdi_mark(&op.part("mark"), clone, mark).await?;
                (clone, AttachMode::ReadWrite)
            } else {
                (member.snapshot, AttachMode::ReadOnly)
            };
            let access = sr.vdi_attach(&op.part("attach"), vdi, datapath, mode).await?;
            sr.vdi_activate(&op.part("activate"), vdi, datapath).await?;
            presented.push(Presented { sr: sr.uuid(), snapshot: member.snapshot, vdi, access });
        }
        Ok(presented)
    }

    /// Ends what [`Self::set_present`] began: clones are destroyed with what was written to them.
    pub async fn set_withdraw(&self, op: &Op, set: &SnapshotSet, datapath: &str) -> Result<()> {
        for member in &set.members {
            let sr = self.member_sr(member)?;
            self.detach_if(op, &sr, member.snapshot, datapath).await?;
        }
        let mut srs: Vec<SrUuid> = set.members.iter().map(|member| member.sr).collect();
        srs.sort_unstable();
        srs.dedup();
        for sr in srs {
            let sr = self.sr(&sr.to_string())?;
            for vdi in sr.vdis(op).await? {
                if vdi.keys.get(keys::PRESENTED) == Some(&set.id.to_string()) {
                    self.detach_if(op, &sr, vdi.uuid, datapath).await?;
                    sr.vdi_destroy(&op.part(&format!("withdraw-{}", vdi.uuid)), vdi.uuid).await?;
                }
            }
        }
        Ok(())
    }

    async fn detach_if(&self, op: &Op, sr: &Sr, vdi: VdiUuid, datapath: &str) -> Result<()> {
        let held = sr.attachment(vdi)?;
        if !held.is_some_and(|record| record.datapaths.contains_key(datapath)) {
            return Ok(());
        }
        let op = op.part(&format!("detach-{vdi}"));
        sr.vdi_deactivate(&op.part("deactivate"), vdi, datapath).await?;
        sr.vdi_detach(&op, vdi, datapath).await
    }

    fn member_sr(&self, member: &SetMember) -> Result<Sr> {
        self.sr(&member.sr.to_string())
    }
}

fn complete(set: &SnapshotSet) -> Result<()> {
    if set.is_complete() {
        return Ok(());
    }
    let text = format!("of the {} snapshots of the set {} are there", set.size, set.members.len());
    Err(Error::new(Kind::Corrupt, text)
        .context("set", set.id)
        .hint("attach the SRs of the others; or put back single disks with smctl vdi revert"))
}

fn add(found: &mut BTreeMap<Uuid, SnapshotSet>, sr: SrUuid, vdi: &VdiInfo) {
    let Some(mark) = Mark::read(vdi) else { return };
    let time = vdi.snapshot_time.unwrap_or(0);
    let set = found.entry(mark.set).or_insert_with(|| SnapshotSet::begun(mark.set, time, 0));
    let document = vdi.keys.get(keys::DOCUMENT).and_then(|text| text.parse().ok()).unwrap_or(0);
    set.time = set.time.min(time);
    set.size = set.size.max(mark.size);
    set.document = set.document.max(document);
    set.consistency = mark.consistency;
    set.one_point_in_time = mark.one_point_in_time;
    if let Some(system) = vdi.keys.get(keys::SYSTEM) {
        set.system.clone_from(system);
    }
    set.members.push(SetMember {
        sr,
        vdi: vdi.snapshot_of,
        snapshot: vdi.uuid,
        name: vdi.name.clone(),
    });
}
