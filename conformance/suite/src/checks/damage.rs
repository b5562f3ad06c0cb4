//! What the driver cannot make sense of, on its backend: it keeps its hands off.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use sm_model::sr::{SrAttach, SrDestroy, SrDetach, SrMaintain, SrRecover};

use super::{Check, DATA, Setup};
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
            has destroyed it by then.",
        setup: Setup::Sr,
        run: |world| {
            let root = backend(world)?;
            let mut all = vec![world.filled("disk")?, world.filled("other")?];
            if let Some((vdi, content)) = all.first().cloned()
                && world.can("vdi_snapshot")
            {
                all.push((world.snapshot(vdi)?.uuid, content));
            }
            for file in world.must_see_files()? {
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
        needs: DATA,
        sentences: &["DRV-SR-10", "DRV-SR-4"],
        explain: "Somebody's files lie beside the driver's, in every folder that it uses. While \
            disks come and go, and through attach, recovery, maintenance and the destroy of the \
            SR, none of them may be changed or removed.",
        setup: Setup::Nothing,
        run: |world| {
            let root = backend(world)?;
            world.make_sr()?;
            let mut folders = vec![root.clone()];
            let vdi = world.filled("disk")?.0;
            for file in world.must_see_files()? {
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
            let verdict = beside(world, vdi, &foreign);
            // Whatever came of it, they are this run's own.
            for path in foreign.keys() {
                let _ = fs::remove_file(path);
            }
            verdict
        },
    },
];

fn backend(world: &World<'_>) -> Verdict<PathBuf> {
    let directory = world.bench.directory();
    directory.ok_or_else(|| Stop::NotTestable("backend.directory is not set".into()))
}

/// All that a driver does to bring an SR in order; the listing, unless the SR was refused.
fn tidied(
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

fn beside(
    world: &mut World<'_>,
    vdi: sm_model::VdiUuid,
    foreign: &BTreeMap<PathBuf, String>,
) -> Verdict {
    let there = |when: &str| {
        foreign.iter().try_for_each(|(path, text)| {
            let found = fs::read_to_string(path).ok();
            must(found.as_ref() == Some(text), || {
                format!("{}, which is somebody's, is gone or changed {when}", path.display())
            })
        })
    };
    tidied(world)?;
    there("after an attach, a recovery and maintenance")?;
    let gone = world.create("short-lived")?.uuid;
    world.destroy(gone)?;
    world.destroy(vdi)?;
    tidied(world)?;
    there("after disks were destroyed")?;
    if world.can("sr_destroy") {
        world.call(SrDetach {})?;
        // To refuse is as good as to leave them.
        let _ = world.call(SrDestroy {});
        there("after the SR was destroyed")?;
    }
    Ok(())
}
