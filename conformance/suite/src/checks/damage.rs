//! What the driver cannot make sense of, on its backend: it keeps its hands off.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use sm_model::sr::{SrAttach, SrDestroy, SrDetach, SrMaintain, SrRecover};

use super::{Check, DATA, DISKS, Setup};
use crate::inventory;
use crate::verdict::{Stop, Verdict, must, said};
use crate::world::World;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "N12",
        needs: DATA,
        sentences: &["DRV-SR-10", "DRV-LIST-1"],
        explain: "Each file of the backend in turn is cut to half its length, as a torn write \
            leaves it, and the SR is attached, recovered, listed and maintained. If that answers \
            at all, every VDI must be listed, in whatever health. Then the file is put back as it \
            was, as from a copy: every VDI must be there with all that was written. A recovery \
            that takes an image whose description it cannot read for one that was never finished \
            has destroyed it by then. It does not apply where nothing is kept in files.",
        setup: Setup::Sr,
        run: |world| {
            let root = backend(world)?;
            let mut all = vec![world.filled("disk")?, world.filled("other")?];
            if let Some((vdi, content)) = all.first().cloned()
                && world.can("vdi_snapshot")
            {
                all.push((world.snapshot(vdi)?.uuid, content));
            }
            for file in world.own_files()? {
                world.close()?;
                let path = root.join(&file);
                let Ok(whole) = fs::read(&path) else { continue };
                if whole.len() < 2 {
                    continue;
                }
                let trouble = |error: std::io::Error| Stop::NotTestable(format!("{file}: {error}"));
                let half = whole.len() as u64 / 2;
                let cut = fs::OpenOptions::new().write(true).open(&path);
                cut.and_then(|opened| opened.set_len(half)).map_err(trouble)?;
                world.note("cut in half", &file, "");
                let known = tidied(world)?;
                world.close()?;
                // In place, so that owner and mode stay.
                fs::write(&path, &whole).map_err(trouble)?;
                world.note("put back", &file, "");
                if let Some(known) = known {
                    for (vdi, _) in &all {
                        must(known.contains_key(vdi), || {
                            format!("with half of {file}, VDI {vdi} is not listed at all")
                        })?;
                    }
                }
                world.reopen()?;
                world.call(SrAttach {})?;
                world.verify_all(&all, &format!("a VDI after {file} was damaged and put back"))?;
            }
            Ok(())
        },
    },
    Check {
        id: "N15",
        needs: DISKS,
        sentences: &["DRV-SR-10", "DRV-SR-4"],
        explain: "Somebody's files lie beside the driver's, in every folder that it uses. While \
            disks come and go, and through attach, recovery, maintenance and the destroy of the \
            SR, none of them may be changed or removed. On an array these are the objects that are \
            there before the SR is, in a volume group a volume that nobody has told the driver of.",
        setup: Setup::Nothing,
        run: |world| {
            if world.bench.directory().is_none() {
                return objects(world);
            }
            let root = backend(world)?;
            world.make_sr()?;
            let mut folders = vec![root.clone()];
            let vdi = disk(world)?;
            for file in world.own_files()? {
                let folder = root.join(file).parent().map_or_else(|| root.clone(), PathBuf::from);
                if !folders.contains(&folder) {
                    folders.push(folder);
                }
            }
            let stray = world.new_vdi();
            let names = [
                "of-somebody.txt".to_owned(),
                ".of-somebody".to_owned(),
                format!("copy-of-{stray}.txt"),
            ];
            let mut foreign: BTreeMap<PathBuf, String> = BTreeMap::new();
            for (folder, name) in folders.iter().flat_map(|f| names.iter().map(move |n| (f, n))) {
                let path = folder.join(name);
                let text = format!("{} is not of this SR", path.display());
                let made = fs::write(&path, &text);
                made.map_err(|e| Stop::NotTestable(format!("{}: {e}", path.display())))?;
                foreign.insert(path, text);
            }
            let verdict = beside(world, vdi, &|when| {
                foreign.iter().try_for_each(|(path, text)| {
                    let found = fs::read_to_string(path).ok();
                    stays(found.as_ref() == Some(text), &path.display().to_string(), when)
                })
            });
            // Whatever came of it, they are this run's own.
            for path in foreign.keys() {
                let _ = fs::remove_file(path);
            }
            verdict
        },
    },
];

pub(super) fn backend(world: &World<'_>) -> Verdict<PathBuf> {
    let backend = &world.bench.config.backend;
    let none = if backend.simulator.is_some() || backend.volume_groups {
        Stop::NotApplicable(
            "the driver keeps no files: its records are in objects of an array or in volumes, whose \
             changes are whole or not made"
                .into(),
        )
    } else {
        Stop::NotTestable("backend.directory is not set".into())
    };
    world.bench.directory().ok_or(none)
}

/// All that a driver does to bring an SR in order; the listing, unless the SR was refused.
pub(super) fn tidied(
    world: &mut World<'_>,
) -> Verdict<Option<BTreeMap<sm_model::VdiUuid, sm_model::vdi::VdiInfo>>> {
    world.reopen()?;
    if let Err(error) = world.call(SrAttach {}) {
        let defect = error.kind == sm_model::Kind::Internal;
        must(!defect, || format!("damage is no defect of the driver: {}", said(&error)))?;
        return Ok(None);
    }
    let listed = world.list()?;
    if world.can("sr_recover") {
        let _ = world.call(SrRecover {});
    }
    if world.can("sr_maintain") {
        let _ = world.call(SrMaintain::default());
    }
    Ok(Some(listed))
}

/// Somebody's objects beside those of a driver that keeps no files.
fn objects(world: &mut World<'_>) -> Verdict {
    if world.bench.config.backend.volume_groups {
        return volume(world);
    }
    let inventory = world.bench.inventory();
    let inventory =
        inventory.ok_or_else(|| Stop::NotTestable("there is no backend to look at".into()))?;
    let theirs = inventory.records().map_err(Stop::NotTestable)?;
    if theirs.is_empty() {
        return Err(Stop::NotTestable("the backend holds nothing of somebody else's".into()));
    }
    world.make_sr()?;
    let vdi = disk(world)?;
    beside(world, vdi, &|when| {
        let now = inventory.records().map_err(Stop::NotTestable)?;
        theirs
            .iter()
            .try_for_each(|(name, record)| stays(now.get(name) == Some(record), name, when))
    })
}

/// The name of somebody's volume.
const VOLUME: &str = "of-somebody";

/// Somebody's volume in the group of the SR.
fn volume(world: &mut World<'_>) -> Verdict {
    let groups = |world: &World<'_>| -> Verdict<BTreeSet<String>> {
        let found = world.must_see_files()?;
        Ok(found.iter().filter_map(|name| name.strip_prefix("group ")).map(str::to_owned).collect())
    };
    let before = groups(world)?;
    world.make_sr()?;
    let vdi = disk(world)?;
    let group = groups(world)?.difference(&before).next().cloned();
    let group = group.ok_or_else(|| Stop::NotTestable("the SR has no volume group".into()))?;
    let full = format!("{group}/{VOLUME}");
    // Not active and not wiped: LVM needs no device of it then.
    let make = ["-y", "-an", "-Zn", "-Wn", "-l", "1", "-n", VOLUME, &group];
    inventory::command("lvcreate", &make).map_err(Stop::NotTestable)?;
    let name = format!("volume {full}");
    let inventory = world.bench.inventory();
    let verdict = beside(world, vdi, &|when| {
        let found = inventory.as_ref().map(|inventory| inventory.look()).transpose();
        let found = found.map_err(Stop::NotTestable)?.unwrap_or_default();
        stays(found.contains(&name), &name, when)
    });
    // Whatever came of it, it is this run's own.
    let _ = inventory::command("lvremove", &["-y", &full]);
    verdict
}

/// A disk, with data where disks can be written here.
fn disk(world: &mut World<'_>) -> Verdict<sm_model::VdiUuid> {
    if world.can_use_data() {
        return Ok(world.filled("disk")?.0);
    }
    Ok(world.create("disk")?.uuid)
}

fn stays(is: bool, name: &str, when: &str) -> Verdict {
    must(is, || format!("{name}, which is somebody's, is gone or changed {when}"))
}

fn beside(
    world: &mut World<'_>,
    vdi: sm_model::VdiUuid,
    there: &dyn Fn(&str) -> Verdict,
) -> Verdict {
    tidied(world)?;
    there("after an attach, a recovery and maintenance")?;
    let gone = world.create("short-lived")?.uuid;
    world.destroy(gone)?;
    world.destroy(vdi)?;
    tidied(world)?;
    there("after disks were destroyed")?;
    if world.can("sr_destroy") {
        world.call(SrDetach {})?;
        // To refuse is as good as to leave them. A volume is seen where its SR is attached.
        if world.call(SrDestroy {}).is_err() {
            world.call(SrAttach {})?;
        }
        there("after the SR was destroyed")?;
    }
    Ok(())
}
