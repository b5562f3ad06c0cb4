//! Volumes of the thin pool, made and removed.
//!
//! LVM writes its own metadata first: the volume, what the pool is to be told (`create_thin`,
//! `create_snap` or `delete`, with the volume's number in the pool), and the number of this transaction.
//! Then it tells the pool, message by message, the number of the transaction last. What a command that
//! is killed leaves (LVM 2.03.16, killed at each of its `ioctl`):
//!
//! - **before the message**: a volume that LVM lists and cannot activate ("No data available").
//!   Neither `--refresh` nor an activation of the pool sends the message; the next command that makes or
//!   removes a volume does.
//! - **between the message and the number**: each of those commands fails from then on ("File
//!   exists"), since the pool has the device already.
//! - **while the origin of a snapshot is suspended**: a guest that waits.
//!
//! The number of LVM's metadata is one ahead of the pool's then. The volume, whose maker has not succeeded,
//! is marked as being made, the pool is given the number, and the volume is removed. To have LVM send its
//! message after all would catch an origin that a guest is writing to, which dm-thin must not
//! (thin-provisioning.txt, "Internal snapshots").

use plugin_sdk::model::{Kind, VdiUuid};
use plugin_sdk::{Cx, Error, Result, step};

use crate::lvm::attach::mapped_name;
use crate::lvm::lock;
use crate::lvm::metadata::Metadata;
use crate::lvm::names::Names;
use crate::lvm::pool;
use crate::lvm::report::{Group, Volume};
use crate::lvm::sr::Sr;

/// The tag of a volume that is being made, and is no VDI yet.
pub(crate) const MARK: &str = "sm:zeroed-to=0";

/// Makes a volume that has nothing written, inactive.
pub(crate) async fn make(
    sr: &Sr,
    cx: &Cx,
    name: &str,
    size: u64,
    metadata: &Metadata,
) -> Result<()> {
    let words = words_to_make(sr, name, size, metadata)?;
    change(sr, cx, "lvcreate", &borrowed(&words)).await
}

fn borrowed(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn words_to_make(sr: &Sr, name: &str, size: u64, metadata: &Metadata) -> Result<Vec<String>> {
    let size = format!("{size}b");
    let mut words = [
        "--type",
        "thin",
        "--virtualsize",
        &size,
        "--name",
        name,
        "--thinpool",
        pool::NAME,
        "--setactivationskip",
        "y",
        "--activate",
        "n",
    ]
    .map(str::to_owned)
    .to_vec();
    words.extend(metadata.tags()?.into_iter().flat_map(|tag| ["--addtag".to_owned(), tag]));
    words.push(sr.name());
    Ok(words)
}

/// Makes a volume that shares all blocks of another one. LVM stops the writer of an active one for
/// the instant.
pub(crate) async fn share(
    sr: &Sr,
    cx: &Cx,
    source: &Volume,
    name: &str,
    metadata: &Metadata,
) -> Result<()> {
    let permission = if metadata.read_only { "r" } else { "rw" };
    let (tags, from) = (metadata.tags()?, sr.path(&source.name));
    let mut words =
        vec!["--snapshot", "--name", name, "--permission", permission, "--setactivationskip", "y"];
    words.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
    words.push(&from);
    let made = sr.lvm.change(cx, "lvcreate", &words).await;
    if made.as_ref().is_err_and(may_be_half_done)
        && let Err(error) = let_go_on(sr, &cx.shielded(), source).await
    {
        plugin_sdk::tracing::warn!(%error, volume = source.name, "it may be suspended");
    }
    undo(sr, cx, made).await
}

async fn let_go_on(sr: &Sr, cx: &Cx, source: &Volume) -> Result<()> {
    let group = sr.group(cx).await?;
    if let Some(source) = group.volumes.iter().find(|volume| volume.id == source.id) {
        resume(sr, cx, source).await?;
    }
    Ok(())
}

/// Lets the writers of a volume go on, if LVM has left it suspended. Whether it had.
pub(crate) async fn resume(sr: &Sr, cx: &Cx, volume: &Volume) -> Result<bool> {
    if volume.suspended {
        sr.lvm.change(cx, "lvchange", &["--refresh", &sr.path(&volume.name)]).await?;
        step!("pool.resumed");
    }
    Ok(volume.suspended)
}

/// Makes or removes volumes. If the command dies in between, what it has begun is undone before anybody
/// uses it.
pub(crate) async fn change(sr: &Sr, cx: &Cx, command: &str, words: &[&str]) -> Result<()> {
    let changed = sr.lvm.change(cx, command, words).await;
    undo(sr, cx, changed).await
}

async fn undo(sr: &Sr, cx: &Cx, changed: Result<()>) -> Result<()> {
    if changed.as_ref().is_err_and(may_be_half_done)
        && let Err(error) = finish(sr, &cx.shielded()).await
    {
        plugin_sdk::tracing::warn!(%error, "the thin pool is not what LVM has recorded");
    }
    changed
}

/// Whether a command may have died in the middle: LVM has words for all else.
fn may_be_half_done(error: &Error) -> bool {
    error.kind == Kind::Internal
}

/// Whether LVM has recorded for the pool what the pool has not done. Not while it is inactive.
pub(crate) async fn is_begun(sr: &Sr, cx: &Cx, group: &Group) -> Result<bool> {
    Ok(behind(sr, cx, group).await?.is_some())
}

/// The number of the pool's last transaction, if that of LVM's metadata is the next one. A command that
/// is at work is not seen so: LVM reports a group after those that change it.
async fn behind(sr: &Sr, cx: &Cx, group: &Group) -> Result<Option<u64>> {
    let Some(recorded) = pool::of(group).and_then(|pool| pool.transaction) else {
        return Ok(None);
    };
    let words = ["status", "--target", "thin-pool", &device(sr)];
    let status = cx.command("dmsetup").args(words).output().await?;
    Ok(transaction(&status.text()).filter(|done| done.checked_add(1) == Some(recorded)))
}

/// The pool's own device, below that of its volume.
pub(crate) fn device(sr: &Sr) -> String {
    format!("{}-tpool", mapped_name(sr, pool::NAME))
}

/// Reads `0 327680 thin-pool 3 112/1024 ...` (thin-provisioning.txt, "Status"). None of a pool that is
/// not there or has failed.
fn transaction(status: &str) -> Option<u64> {
    let mut words = status.split_whitespace().skip_while(|word| *word != "thin-pool").skip(1);
    words.next()?.parse().ok()
}

/// The group, with this volume only if the pool has it.
pub(crate) async fn settled(sr: &Sr, cx: &Cx, group: Group, volume: &str) -> Result<Group> {
    let last = pool::of(&group).and_then(|pool| pool.transaction);
    let made = group.volume(volume).and_then(|volume| volume.transaction);
    // Whatever is not the last change was told to the pool.
    let is_last = made.is_some_and(|before| last == before.checked_add(1));
    if is_last && is_begun(sr, cx, &group).await? && finish(sr, cx).await? {
        return sr.group(cx).await;
    }
    Ok(group)
}

/// Ends the change that LVM has recorded and the pool does not know. Whether there was one.
pub(crate) async fn finish(sr: &Sr, cx: &Cx) -> Result<bool> {
    // One after the other: who comes second sees it done.
    let _held = lock::exclusive(cx, &lock::of_transactions(&sr.name())).await?;
    let group = sr.group(cx).await?;
    let Some(done) = behind(sr, cx, &group).await? else { return Ok(false) };
    let ours = |volume: &&Volume| {
        sr.names.vdi_of(&volume.name).is_some() || Names::reverted_of(&volume.name).is_some()
    };
    let mut last = group.volumes.iter().filter(|volume| volume.transaction == Some(done));
    match last.find(|volume| volume.is_thin && ours(volume)) {
        Some(new) => {
            // From here on it is one that is being made: a recovery removes it, if this is cut.
            if !new.active && !new.tags.iter().any(|tag| tag == MARK) {
                sr.lvm.change(cx, "lvchange", &["--addtag", MARK, &sr.path(&new.name)]).await?;
                step!("pool.marked");
            }
            // So LVM sends no message again. Its removal is right whether the pool has the device or not.
            let text = format!("set_transaction_id {done} {}", done + 1);
            cx.command("dmsetup").args(["message", &device(sr), "0", &text]).run().await?;
            step!("pool.counted");
            // One that is in use is there, whoever has begun to use it.
            if !new.active {
                let select = format!("lv_uuid={}", new.id);
                sr.lvm.change(cx, "lvremove", &["--select", &select, &group.name]).await?;
            }
        }
        None => send(sr, cx, &group).await?,
    }
    step!("pool.settled");
    if behind(sr, cx, &sr.group(cx).await?).await?.is_none() {
        return Ok(true);
    }
    let text = format!("the thin pool of {} is not what LVM has recorded", group.name);
    let hint = "lvmthin(7), \"Metadata check and repair\", says what to do";
    Err(Error::new(Kind::Corrupt, text).legacy(65).hint(hint))
}

/// Has LVM send a removal that it has not sent, as it does before it makes another volume. One that is
/// being made is removed by a recovery, if this is cut.
async fn send(sr: &Sr, cx: &Cx, group: &Group) -> Result<()> {
    let name = sr.names.volume(VdiUuid::random());
    let making = Metadata { zeroed_to: Some(0), ..Metadata::default() };
    let words = words_to_make(sr, &name, group.extent, &making)?;
    sr.lvm.change(cx, "lvcreate", &borrowed(&words)).await?;
    step!("pool.sent");
    sr.lvm.change(cx, "lvremove", &[&sr.path(&name)]).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_transaction_of_a_pool_is_in_its_status() {
        for (status, expected) in [
            ("0 327680 thin-pool 3 112/1024 0/2560 - rw no_discard_passdown - 256\n", Some(3)),
            ("0 327680 thin-pool Fail\n", None),
            ("0 327680 thin-pool Error\n", None),
            ("0 327680 linear \n", None),
            ("", None),
        ] {
            assert_eq!(transaction(status), expected, "{status}");
        }
    }
}
