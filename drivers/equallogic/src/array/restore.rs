//! A volume is put back to a snapshot of it.
//!
//! The array does that offline, and first takes a snapshot of what was there, named by the time like
//! any other, which nobody asked for. To know it afterwards, the names of those that were there
//! before are kept in the host's state until the restore is done, so that a crash in between leaves
//! nothing behind once the restore is asked for again.

use array_kit::array::Volume;
use array_kit::outcome::{Class, Failure, OrAbsent as _, Outcome};
use array_kit::retry::Effect;
use plugin_sdk::{Cx, step};

use super::{EqualLogic, NAMES};
use crate::cli::command::{Object, word};

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
    let key = format!("restore/{}", volume.name);
    let before = if let Some(before) = cx.kv().get::<Vec<String>>(&key).await? {
        before
    } else {
        let before = array.snapshot_names(cx, &volume.name).await?;
        cx.kv().put(&key, &before).await?;
        before
    };
    array.on(cx, object, "offline", Effect::Changes, "offline").await?;
    step!("equallogic.restore_offline");
    // The volume comes back also when the restore is refused.
    let rest = format!("snapshot select {} restore", word("name", &snapshot.name)?);
    let restored = array.on(cx, object, "restore", Effect::Changes, &rest).await;
    if restored.as_ref().is_err_and(|failure| !failure.class.is_certain()) {
        return restored.map(drop);
    }
    step!("equallogic.restored");
    let cx = &cx.shielded();
    // The group names it by the volume and the time; of a long name it may keep the beginning.
    let beginning: String = volume.name.chars().take(20).collect();
    for name in array.snapshot_names(cx, &volume.name).await.map_err(open)? {
        let is_backup =
            NAMES.parse(&name).is_none() && name.starts_with(&beginning) && !before.contains(&name);
        if is_backup {
            let rest = format!("snapshot delete {}", word("name", &name)?);
            let gone = array.on(cx, object, "delete_snapshot", Effect::Changes, &rest).await;
            gone.or_absent().map_err(open)?;
        }
    }
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
