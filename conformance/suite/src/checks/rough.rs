//! What is rough on a driver: a growth under a writer, calls that cross, names that are commands,
//! records that are nonsense.

use std::fs;

use sm_model::AttachMode::ReadWrite;
use sm_model::sr::SrAttach;
use sm_model::vdi::{VdiDestroy, VdiResize};
use sm_model::{Bytes, Kind, VdiUuid};

use super::beside::{Started, start};
use super::damage::{backend, tidied};
use super::{Check, DATA, DISKS, Setup, TREES};
use crate::oracle::{BLOCK, Content};
use crate::verdict::{Stop, Verdict, fail, must, said, same};
use crate::world::World;

/// How often calls cross.
const ROUNDS: u64 = 3;

/// A record is not larger; what is, is data.
const RECORD: u64 = 256 << 10;

/// Most records that are damaged.
const RECORDS: usize = 12;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "F02",
        needs: DATA.and(&["vdi_resize", "live_resize"]),
        sentences: &["DRV-SNAP-3", "DRV-VDI-5"],
        explain: "A disk is grown while it is open for writing, and written before, after, and at \
            its old end: nothing of that may be lost, and the new part reads as zeros until it is \
            written.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("live")?;
            let last = world.size() / BLOCK - 1;
            let disk = world.open(vdi, ReadWrite)?;
            world.fill_open(&disk, vdi, &mut content, &[1, last], 2)?;
            let virtual_size = Bytes(world.size() * 2);
            let size = world.call(VdiResize { vdi, virtual_size })?.vdi.virtual_size;
            world.fill_open(&disk, vdi, &mut content, &[2, last - 1, last], 3)?;
            world.shut(vdi, disk)?;
            world.verify(vdi, &content, "a disk that was grown while it was written")?;
            world.fill(vdi, &mut content, &[last + 1, size.0 / BLOCK - 1], 4)?;
            world.verify(vdi, &content, "a disk that was grown while it was written")
        },
    },
    Check {
        id: "M08",
        needs: TREES,
        sentences: &["DRV-CONC-1", "DRV-SNAP-8", "DRV-VDI-6"],
        explain: "Of one family of disks, at the same time: a snapshot of one, a clone of another, \
            the destroy of a snapshot and of a clone, and listings. No two are about one VDI, but \
            all about one tree. Each must end in time and succeed, and every disk that is left must \
            have its content.",
        setup: Setup::Sr,
        run: |world| {
            let (root, of_root) = world.filled("root")?;
            let mut kept: Vec<(VdiUuid, Content)> = vec![(root, of_root.clone())];
            for round in 0..ROUNDS {
                let old = world.snapshot(root)?.uuid;
                let gone = world.clone(root)?.uuid;
                let (twin, mut of_twin) = (world.clone(root)?.uuid, of_root.clone());
                world.fill(twin, &mut of_twin, &[round, round + 9], round + 2)?;
                let snapshots = vec![world.snapshot_of(root), world.snapshot_of(twin)];
                let clones = vec![world.clone_of(twin)];
                for uuid in snapshots.iter().flat_map(|request| &request.snapshots) {
                    let content = if uuid.vdi == root { &of_root } else { &of_twin };
                    kept.push((uuid.uuid, content.clone()));
                }
                // The host asks for no two changes of one VDI at once: the clone waits for its turn.
                let destroys: Vec<_> = [old, gone].map(|vdi| VdiDestroy { vdi }).into();
                let snapping = start(world, snapshots)?;
                let removing = start(world, destroys)?;
                let listing = start(world, vec![sm_model::sr::SrScan::default(); 4])?;
                all(world, snapping)?;
                let cloning = start(world, clones.clone())?;
                all(world, removing)?;
                all(world, cloning)?;
                all(world, listing)?;
                kept.extend(clones.iter().map(|request| (request.uuid, of_twin.clone())));
                kept.push((twin, of_twin));
                let listed = world.list()?.len();
                same("VDIs in the listing", listed, kept.len())?;
            }
            world.verify_all(&kept, "a disk of a family that was changed from all sides")
        },
    },
    Check {
        id: "Q04",
        needs: DISKS.and(&["vdi_stat"]),
        sentences: &["DRV-META-2"],
        explain: "Names and descriptions that would be commands, options or paths if anybody took \
            them for more than texts: each disk is made, listed with its name as it was given, or \
            refused with `limit`, and none of the commands has been carried out.",
        setup: Setup::Sr,
        run: |world| {
            let marker = world.bench.steps_log().with_extension("injected");
            let _ = fs::remove_file(&marker);
            let touch = format!("touch {}", marker.display());
            let texts = [
                format!("$({touch})"),
                format!("`{touch}`"),
                format!("x; {touch} #"),
                format!("' ; {touch} ; '"),
                format!("\" && {touch} && \""),
                format!("x | {touch} & x"),
                "--help".to_owned(),
                "-o /dev/null".to_owned(),
                "%s%n%x".to_owned(),
                "{\"name\": \"x\"}".to_owned(),
                "</name><name>".to_owned(),
                "a,b=c;d:e@f*g?".to_owned(),
            ];
            for text in texts {
                let request = sm_model::vdi::VdiCreate {
                    name: text.clone(),
                    description: text.clone(),
                    ..world.disk("named")
                };
                let uuid = request.uuid;
                world.own_vdi(uuid)?;
                match world.call(request) {
                    Ok(_) => {
                        let found = world.stat(uuid)?;
                        same("the name", found.name, text.clone())?;
                        same("the description", found.description, text)?;
                        world.destroy(uuid)?;
                    }
                    Err(error) if error.kind == Kind::Limit => {}
                    Err(error) => return fail(format!("the name {text:?}: {}", said(&error))),
                }
                let ran = fs::remove_file(&marker).is_ok();
                must(!ran, || "a part of a name was carried out as a command".into())?;
            }
            Ok(())
        },
    },
    Check {
        id: "Q08",
        needs: DATA,
        sentences: &["DRV-ERR-6", "DRV-ERR-1", "DRV-SR-10"],
        explain: "Records on the backend are damaged: in each file of up to 256 KiB, at most \
            twelve, some bytes near its beginning are changed by chance. The SR is attached, \
            recovered, listed and maintained: no answer may be a defect of the driver, and its \
            process must live. Then the file is put back, and every disk has its content. It does \
            not apply where nothing is kept in files.",
        setup: Setup::Sr,
        run: |world| {
            let root = backend(world)?;
            let all = vec![world.filled("disk")?, world.filled("other")?];
            for file in world.own_files()?.into_iter().take(RECORDS) {
                world.close()?;
                let path = root.join(&file);
                let Ok(whole) = fs::read(&path) else { continue };
                if whole.is_empty() || whole.len() as u64 > RECORD {
                    continue;
                }
                let trouble = |error: std::io::Error| Stop::NotTestable(format!("{file}: {error}"));
                let mut bad = whole.clone();
                for _ in 0..3 {
                    let at = world.dice.below(bad.len().min(512) as u64) as usize;
                    let mask = 1 + world.dice.below(255) as u8;
                    bad.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
                }
                fs::write(&path, &bad).map_err(trouble)?;
                world.note("some bytes changed", &file, "");
                sound(world, &file)?;
                world.close()?;
                fs::write(&path, &whole).map_err(trouble)?;
                world.note("put back", &file, "");
                world.reopen()?;
                world.call(SrAttach {})?;
                world.verify_all(&all, &format!("a VDI after {file} was damaged and put back"))?;
            }
            Ok(())
        },
    },
];

/// All calls that were started, each with success.
fn all<T: Send + 'static>(world: &mut World<'_>, (tasks, _): Started<T>) -> Verdict {
    for task in tasks {
        let answer = world.bench.runtime.block_on(task);
        answer.map_err(|error| Stop::NotTestable(format!("a call broke: {error}")))??;
    }
    Ok(())
}

/// A driver over a damaged record: whatever it answers, it is no defect of its own.
fn sound(world: &mut World<'_>, file: &str) -> Verdict {
    let listed = match tidied(world) {
        Ok(listed) => listed,
        Err(Stop::Fail(why)) => return fail(format!("with {file} damaged: {why}")),
        Err(other) => return Err(other),
    };
    let alive = world.port()?.process_id().is_some();
    must(alive, || format!("with {file} damaged, the driver's process has died"))?;
    for vdi in listed.into_iter().flatten().map(|(vdi, _)| vdi) {
        if let Err(error) = world.stat(vdi) {
            let defect = error.kind == Kind::Internal;
            must(!defect, || format!("with {file} damaged: {}", said(&error)))?;
        }
    }
    Ok(())
}
