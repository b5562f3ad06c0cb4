//! What an array is made of: objects and pages, and what is kept true between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::content::Contents;
use super::model::{Depletion, Hold, Layer, Pool, Snapshot, Trouble, Volume};
use super::objects::{Objects, View};

/// How full a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes it has.
    pub capacity: u64,
    /// Bytes of pages in it, each counted once.
    pub used: u64,
    /// Bytes kept for thick volumes and not written.
    pub reserved: u64,
}

impl Space {
    /// What is left.
    pub fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used + self.reserved)
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) objects: Objects,
    pub(super) contents: Contents,
    /// What reads see until when, oldest first.
    pub(super) stale: VecDeque<(Instant, View)>,
    /// Targets that an initiator has open, by target and initiator: how many sessions.
    pub(super) logins: BTreeMap<(String, String), usize>,
    /// When the last session of a target ended.
    pub(super) left: BTreeMap<String, u64>,
}

impl State {
    pub(super) fn open(folder: &Path, page: u64) -> std::io::Result<Self> {
        let objects = Objects::open(folder)?;
        let layers = objects.now.all::<Layer>();
        let known: Vec<u64> = layers.iter().filter_map(|(key, _)| key.parse().ok()).collect();
        let contents = Contents::open(folder, page, &known)?;
        let (stale, logins, left) = (VecDeque::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Self { objects, contents, stale, logins, left })
    }

    /// The layers from `top` down.
    pub(super) fn chain(&self, top: u64) -> Vec<u64> {
        let mut chain = Vec::new();
        let mut next = Some(top);
        while let Some(number) = next {
            chain.push(number);
            next = self.objects.now.get::<Layer>(&number.to_string()).and_then(|layer| layer.below);
        }
        chain
    }

    pub(super) fn space(&self, pool: &str) -> Result<Space, Trouble> {
        let missing = || Trouble::Missing("pool", pool.to_owned());
        let capacity = self.objects.now.get::<Pool>(pool).ok_or_else(missing)?.capacity;
        let now = &self.objects.now;
        let of_pool = now.each::<Layer>().filter(|(_, layer)| layer.pool == pool);
        let used =
            of_pool.filter_map(|(key, _)| Some(self.contents.bytes(key.parse().ok()?))).sum();
        let thick = now.each::<Volume>().filter(|(_, volume)| volume.thick && volume.pool == pool);
        let reserved = thick
            .map(|(_, volume)| volume.size.saturating_sub(self.contents.bytes(volume.layer)))
            .sum();
        Ok(Space { capacity, used, reserved })
    }

    /// Removes layers that nobody reads, and joins those that one reader alone needs.
    pub(super) fn collect(&mut self) -> Result<(), Trouble> {
        loop {
            let now = &self.objects.now;
            let mut held: BTreeSet<u64> = BTreeSet::new();
            held.extend(now.all::<Volume>().iter().map(|(_, volume)| volume.layer));
            held.extend(now.all::<Snapshot>().iter().map(|(_, snapshot)| snapshot.layer));
            held.extend(now.all::<Hold>().iter().map(|(_, hold)| hold.layer));
            let layers: BTreeMap<u64, Arc<Layer>> = now
                .all::<Layer>()
                .into_iter()
                .filter_map(|(key, layer)| Some((key.parse().ok()?, layer)))
                .collect();
            let mut above: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            for (number, layer) in &layers {
                if let Some(below) = layer.below {
                    above.entry(below).or_default().push(*number);
                }
            }
            let nobody = |number: &u64| above.get(number).map_or(0, Vec::len);
            let lost = layers.keys().find(|number| !held.contains(number) && nobody(number) == 0);
            if let Some(number) = lost.copied() {
                self.objects.remove::<Layer>(&number.to_string());
                self.objects.commit()?;
                self.contents.remove(number)?;
                continue;
            }
            let single = layers.keys().find(|number| !held.contains(number) && nobody(number) == 1);
            let Some(lower) = single.copied() else { return Ok(()) };
            let Some(upper) = above.get(&lower).and_then(|all| all.first()).copied() else {
                return Ok(());
            };
            self.join(lower, upper, above.get(&upper).map_or(&[][..], Vec::as_slice))?;
        }
    }

    /// Joins a layer and the only one above it into the lower.
    fn join(&mut self, lower: u64, upper: u64, above: &[u64]) -> Result<(), Trouble> {
        let below = self.chain(lower).split_off(1);
        self.contents.merge(upper, lower, &below)?;
        for number in above {
            let key = number.to_string();
            if let Some(layer) = self.objects.now.get::<Layer>(&key) {
                let layer = Layer { below: Some(lower), ..(*layer).clone() };
                self.objects.put(&key, &layer)?;
            }
        }
        for (key, volume) in self.objects.now.all::<Volume>() {
            if volume.layer == upper {
                self.objects.put(&key, &Volume { layer: lower, ..(*volume).clone() })?;
            }
        }
        for (key, snapshot) in self.objects.now.all::<Snapshot>() {
            if snapshot.layer == upper {
                self.objects.put(&key, &Snapshot { layer: lower, ..(*snapshot).clone() })?;
            }
        }
        for (key, hold) in self.objects.now.all::<Hold>() {
            if hold.layer == upper {
                self.objects.put(&key, &Hold { layer: lower })?;
            }
        }
        self.objects.remove::<Layer>(&upper.to_string());
        self.objects.commit()?;
        self.contents.remove(upper)?;
        Ok(())
    }

    /// What a copy held that did not end before the array was killed.
    pub(super) fn drop_holds(&mut self) -> Result<(), Trouble> {
        for (key, _) in self.objects.now.all::<Hold>() {
            self.objects.remove::<Hold>(&key);
        }
        self.objects.commit()?;
        self.collect()
    }
}

/// A volume stops serving.
pub(super) fn put_offline(state: &mut State, key: &str, volume: &Volume) -> Result<(), Trouble> {
    state.objects.put(key, &Volume { online: false, ..volume.clone() })?;
    state.objects.commit()?;
    Ok(())
}

/// The snapshots of a volume, oldest first.
pub(super) fn snapshots_of(state: &State, key: &str) -> Vec<(String, Arc<Snapshot>)> {
    let all = state.objects.now.all::<Snapshot>();
    let mut own: Vec<_> = all.into_iter().filter(|(_, snapshot)| snapshot.volume == key).collect();
    own.sort_by_key(|(_, snapshot)| snapshot.order);
    own
}

/// Bytes that the snapshots of a volume hold and the volume itself does not read any more.
pub(super) fn kept(state: &State, key: &str, volume: &Volume) -> u64 {
    if snapshots_of(state, key).is_empty() { 0 } else { state.contents.bytes(volume.layer) }
}

/// Makes room in the reserve. Says whether the volume still serves.
pub(super) fn deplete(
    state: &mut State,
    key: &str,
    volume: &Volume,
    depletion: Depletion,
) -> Result<bool, Trouble> {
    let oldest = snapshots_of(state, key).into_iter().next();
    if let (Depletion::DeleteOldest, Some((oldest, _))) = (depletion, oldest) {
        state.objects.remove::<Snapshot>(&oldest);
        state.objects.commit()?;
        state.collect()?;
        return Ok(true);
    }
    put_offline(state, key, volume)?;
    Ok(false)
}
