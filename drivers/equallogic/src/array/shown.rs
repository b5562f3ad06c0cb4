//! Listings in few commands: what the group showed of single objects is kept in the host's state.
//!
//! The group's listing has names, sizes, status and numbers of snapshots, and no descriptions, which
//! are our texts; asking for each would be a command for each volume at each scan. A text changes by
//! this driver, which keeps the new one, or by hand at the group. So what `show` answered once is taken
//! again, with the listing's size, while
//!
//! - the SR stays attached to this host: an attach and a detach forget all of it, because another host
//!   may have had the SR meanwhile;
//! - nothing was sent that may change the text: that forgets it first;
//! - the listing shows the volume as online or offline, with its exact size.
//!
//! The three that were asked for longest ago are asked for again at each scan, which brings the
//! space that they use, and texts that somebody changed by hand.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use array_kit::array::Volume;
use array_kit::outcome::{OrAbsent as _, Outcome};
use plugin_sdk::Cx;
use serde::{Deserialize, Serialize};

use super::EqualLogic;
use crate::cli::command::Object;
use crate::cli::parse::VolumeRow;

/// What stands before the keys of the host's state.
const PREFIX: &str = "shown/";

/// How many are asked for again.
const AGAIN: usize = 3;

/// How long the rows of a listing serve for the listing of snapshots that belongs to it.
const SAME_SCAN: Duration = Duration::from_secs(1);

/// An object as the group showed it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Shown {
    /// When, in milliseconds since 1970.
    seen: u64,
    volume: Volume,
}

/// Volumes with snapshots, as a listing just had them.
pub(super) type Listed = Option<(Instant, Vec<String>)>;

fn key(id: &str) -> String {
    format!("{PREFIX}{id}")
}

/// All that is known, by id. The state is a convenience: what cannot be read is asked for.
async fn all(cx: &Cx) -> BTreeMap<String, Shown> {
    let all = cx.kv().list::<Shown>(PREFIX).await.unwrap_or_default();
    let id = |key: &str| key.strip_prefix(PREFIX).unwrap_or(key).to_owned();
    all.into_iter().map(|(key, shown)| (id(&key), shown)).collect()
}

/// Keeps what the group showed. One that says nothing for certain is asked for at each scan.
pub(super) async fn keep(cx: &Cx, volume: &Volume) {
    if volume.trouble.is_some() || volume.metadata.is_none() {
        return;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seen = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let shown = Shown { seen, volume: volume.clone() };
    // What is not kept is asked for.
    let _ = cx.kv().put(&key(&volume.id), &shown).await;
}

/// Forgets an object, before it changes.
pub(super) async fn forget(cx: &Cx, id: &str) -> Outcome<()> {
    Ok(cx.kv().remove(&key(id)).await?)
}

/// Forgets all.
pub(super) async fn forget_all(cx: &Cx) -> Outcome<()> {
    let kv = cx.kv();
    for key in kv.list::<serde_json::Value>(PREFIX).await?.into_keys() {
        kv.remove(&key).await?;
    }
    Ok(())
}

impl EqualLogic {
    /// The volumes of these rows, which are ours.
    pub(super) async fn ours(&self, cx: &Cx, rows: Vec<VolumeRow>) -> Outcome<Vec<Volume>> {
        let mut known = all(cx).await;
        let (mut taken, mut unknown) = (Vec::new(), Vec::new());
        for row in rows {
            match (known.remove(&row.name), row.size) {
                (Some(shown), Some(size)) if row.is_plain() => {
                    taken.push((shown.seen, Volume { size, ..shown.volume }));
                }
                _ => unknown.push(row.name),
            }
        }
        // Of snapshots it is seen when their volume's are listed.
        for gone in known.keys().filter(|id| !id.contains('/')) {
            forget(cx, gone).await?;
        }
        taken.sort_by_key(|(seen, _)| *seen);
        let rest = taken.split_off(taken.len().min(AGAIN));
        unknown.extend(taken.into_iter().map(|(_, volume)| volume.name));
        let mut volumes = self
            .each(unknown, |name: String| async move {
                self.get_object(cx, &Object::of(&name)).await.or_absent()
            })
            .await?;
        for volume in &volumes {
            keep(cx, volume).await;
        }
        volumes.extend(rest.into_iter().map(|(_, volume)| volume));
        Ok(volumes)
    }

    /// Snapshots of these names, by their volumes: of ours all that is known, of others the name.
    pub(super) async fn snapshots_of(
        &self,
        cx: &Cx,
        volumes: Vec<(String, Vec<String>)>,
    ) -> Outcome<Vec<Volume>> {
        if volumes.is_empty() {
            return Ok(Vec::new());
        }
        let mut known = all(cx).await;
        known.retain(|id, _| id.contains('/'));
        let (mut found, mut unknown) = (Vec::new(), Vec::new());
        for (volume, names) in volumes {
            for name in names {
                let object = Object { volume: volume.clone(), snapshot: Some(name.clone()) };
                let bare = Self::bare(&volume, &name);
                if super::NAMES.parse(&name).is_none() {
                    found.push(bare);
                } else if let Some(shown) = known.remove(&bare.id) {
                    self.hint(&name, &volume);
                    found.push(shown.volume);
                } else {
                    unknown.push(object);
                }
            }
        }
        for gone in known.into_keys() {
            forget(cx, &gone).await?;
        }
        let asked = self
            .each(unknown, |object: Object| async move {
                self.get_object(cx, &object).await.or_absent()
            })
            .await?;
        for snapshot in &asked {
            keep(cx, snapshot).await;
        }
        found.extend(asked);
        Ok(found)
    }

    /// Notes which volumes of ours have snapshots, for the second half of a scan.
    pub(super) fn note_listed(&self, names: Vec<String>) {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        *listed = Some((Instant::now(), names));
    }

    /// What was noted just now; once.
    pub(super) fn take_listed(&self) -> Option<Vec<String>> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        listed.take().filter(|(at, _)| at.elapsed() < SAME_SCAN).map(|(_, names)| names)
    }
}
