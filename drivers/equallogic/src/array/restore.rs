//! A volume is put back to a snapshot of it.
//!
//! The array does that offline, and first takes a snapshot of what was there, named by the time like
//! any other, which nobody asked for. To know it afterwards, the names of those that were there
//! before are kept in the host's state until the restore is done. Whoever dies in between leaves
//! that there: the next restore, the next attach of the SR on this host, or the removal of the volume
//! finds it, and removes the backup.
//!
//! A snapshot that somebody takes by hand or by a schedule has a name of the same kind. What is new is a
//! backup only if there is no more of it than restores were sent; else nothing is removed.

use std::collections::BTreeMap;

use array_kit::array::Volume;
use array_kit::outcome::{Class, Failure, Outcome};
use array_kit::retry::Effect;
use plugin_sdk::{Cx, step};
use serde::{Deserialize, Serialize};

use super::unfinished::is_chosen;
use super::{EqualLogic, is_offline};
use crate::cli::command::{Object, word};

/// What stands before the keys of the host's state.
const PREFIX: &str = "restore/";

fn key(volume: &str) -> String {
    format!("{PREFIX}{volume}")
}

/// A restore that was begun.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Begun {
    /// The snapshots that were there before.
    before: Vec<String>,
    /// How many restores were sent since, less the backups that are removed.
    sent: usize,
}

/// See [`array_kit::array::Array::restore`].
pub(super) async fn restore(
    array: &EqualLogic,
    cx: &Cx,
    volume: &Volume,
    snapshot: &Volume,
) -> Outcome<()> {
    let object = &Object::of(&volume.id);
    // Offline ends the sessions of whoever uses it, without asking.
    let details = array.details(cx, object).await?;
    if let Some(connections @ 1..) = details.number("connections") {
        return Err(Failure::new(Class::InUse)
            .object(volume.name.clone())
            .fact(format!("{connections} iSCSI sessions use it"))
            .hint("detach it first"));
    }
    let key = key(&volume.name);
    // So that there is one backup at a time, which can be told from others.
    let mut begun = cx.kv().get::<Begun>(&key).await?.unwrap_or_default();
    remove_backups(array, cx, object, &mut begun).await?;
    if begun.sent == 0 {
        begun.before = array.snapshot_names(cx, &volume.name).await?;
    }
    cx.kv().put(&key, &begun).await?;
    array.on(cx, object, "offline", Effect::Changes, "offline").await?;
    step!("equallogic.restore_offline");
    begun.sent += 1;
    cx.kv().put(&key, &begun).await?;
    // The volume comes back also when the restore is refused.
    let rest = format!("snapshot select {} restore", word("name", &snapshot.name)?);
    let restored = array.on(cx, object, "restore", Effect::Changes, &rest).await;
    if restored.as_ref().is_err_and(|failure| !failure.class.is_certain()) {
        return restored.map(drop);
    }
    step!("equallogic.restored");
    let cx = &cx.shielded();
    remove_backups(array, cx, object, &mut begun).await.map_err(open)?;
    array.on(cx, object, "online", Effect::Changes, "online").await.map_err(open)?;
    step!("equallogic.restore_online");
    cx.kv().remove(&key).await?;
    restored.map(drop)
}

/// Something is done already: whoever asks again completes it.
fn open(failure: Failure) -> Failure {
    match failure.class {
        Class::Own => failure,
        _ => failure.reclassed(Class::Unknown),
    }
}

/// Removes the backups of restores that were sent. What may be somebody else's stays for good.
async fn remove_backups(
    array: &EqualLogic,
    cx: &Cx,
    object: &Object,
    begun: &mut Begun,
) -> Outcome<Vec<String>> {
    if begun.sent == 0 {
        return Ok(Vec::new());
    }
    let volume = &object.volume;
    let mut new = array.snapshot_names(cx, volume).await?;
    new.retain(|name| is_chosen(volume, name) && !begun.before.contains(name));
    if new.len() > begun.sent {
        plugin_sdk::tracing::warn!(
            volume,
            snapshots = new.join(" "),
            "one of these snapshots is the array's backup of a restore, and none can be told: all are kept"
        );
        begun.before.append(&mut new);
        begun.sent = 0;
    }
    for name in &new {
        array.forget_snapshot(cx, volume, name).await?;
    }
    begun.sent -= new.len();
    cx.kv().put(&key(volume), &*begun).await?;
    Ok(new)
}

/// Removes the backups that restores of this host have left at a volume that is to go.
pub(super) async fn remove_left(array: &EqualLogic, cx: &Cx, volume: &str) -> Outcome<Vec<String>> {
    match cx.kv().get::<Begun>(&key(volume)).await? {
        Some(mut begun) => remove_backups(array, cx, &Object::of(volume), &mut begun).await,
        None => Ok(Vec::new()),
    }
}

/// Forgets the restores of a volume that is gone.
pub(super) async fn forget(cx: &Cx, volume: &str) -> Outcome<()> {
    Ok(cx.kv().remove(&key(volume)).await?)
}

/// See [`array_kit::array::Array::settle_restores`].
pub(super) async fn settle(array: &EqualLogic, cx: &Cx) -> Outcome<Vec<String>> {
    let all: BTreeMap<String, Begun> = cx.kv().list(PREFIX).await?;
    let mut settled = Vec::new();
    for (key, begun) in all {
        let volume = key.strip_prefix(PREFIX).unwrap_or(&key);
        match settle_one(array, cx, volume, begun).await {
            Ok(()) => {
                cx.kv().remove(&key).await?;
                settled.push(volume.to_owned());
            }
            Err(failure) if failure.class == Class::NotFound => cx.kv().remove(&key).await?,
            Err(failure) => match failure.class {
                Class::Own | Class::Unreachable | Class::Busy | Class::Denied => {
                    return Err(failure);
                }
                // Of one volume: the others of the SR can be used. An attach of it brings it online.
                _ => plugin_sdk::tracing::warn!(
                    volume,
                    error = %failure,
                    "a restore that was cut is settled at the next attach of the SR"
                ),
            },
        }
    }
    Ok(settled)
}

async fn settle_one(array: &EqualLogic, cx: &Cx, volume: &str, mut begun: Begun) -> Outcome<()> {
    let object = &Object::of(volume);
    remove_backups(array, cx, object, &mut begun).await?;
    if is_offline(&array.details(cx, object).await?) {
        array.on(cx, object, "online", Effect::Changes, "online").await?;
        step!("equallogic.settled_online");
    }
    Ok(())
}
