//! SRs: found, made, left, introduced, removed.

use sm_model::sr::{SrAttach, SrCreate, SrDestroy, SrDetach, SrProbe, SrScan, SrStat, SrUpdate};
use sm_model::{Changed, Operation};

use super::{Check, DATA, DISKS, Needs, Setup};
use crate::bench::Opening;
use crate::oracle::Content;
use crate::verdict::{Verdict, must, same};
use crate::world::{HOST, World};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "B14",
        needs: DATA.and(&["sr_detach", "sr_destroy"]),
        sentences: &["DRV-SR-4"],
        explain: "The destroy of an SR that holds a VDI must be refused with `in_use`, and nothing \
            of it may be gone afterwards.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("kept")?;
            let answer = world.call(SrDestroy {});
            World::refused("the destroy of an SR with a VDI", "in_use", answer)?;
            world.verify(vdi, &content, "a VDI of an SR that was to be destroyed")?;
            same("VDIs in the listing", world.list()?.len(), 1)
        },
    },
    Check {
        id: "B16",
        needs: DATA,
        sentences: &["DRV-META-4", "DRV-IDEM-7"],
        explain: "The SR is forgotten and introduced again by a host that knows nothing of it: the \
            listing must be the same in every field, and the content too.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("kept")?;
            world.create("empty")?;
            if world.can("vdi_snapshot") {
                world.snapshot(vdi)?;
            }
            let before = world.list()?;
            world.close()?;
            world.services = world.bench.services();
            world.reopen()?;
            world.call(SrAttach {})?;
            same("the listing after an introduce", world.list()?, before)?;
            world.verify(vdi, &content, "a VDI after an introduce")
        },
    },
    Check {
        id: "B17",
        needs: DISKS,
        sentences: &["DRV-LIST-1", "DRV-LIST-7"],
        explain: "Two listings with nothing in between must be the same, also in two processes, \
            and a VDI that the other process makes must be in the next one of this.",
        setup: Setup::Sr,
        run: |world| {
            world.create("one")?;
            let first = world.list()?;
            same("the second listing", world.list()?, first.clone())?;
            let port = world.other(world.sr, HOST)?;
            let listed = scan(world, &port)?;
            same("VDIs in another session", listed, first.len())?;
            world.create("two")?;
            let listed = scan(world, &port)?;
            same("VDIs in another session, after a create in this one", listed, 2)
        },
    },
    Check {
        id: "B15",
        needs: DATA.and(&["sr_detach", "sr_destroy"]),
        sentences: &["DRV-SR-4"],
        explain: "After an SR was made, used, emptied and destroyed, the backend must hold what it \
            held before, looked at in the backend itself; a second destroy is `already`.",
        setup: Setup::Nothing,
        run: |world| {
            let before = world.must_see_files()?;
            world.make_sr()?;
            let (vdi, _) = world.filled("used")?;
            world.destroy(vdi)?;
            world.call(SrDetach {})?;
            same("changed", world.call(SrDestroy {})?.changed, Changed::Modified)?;
            same("the backend after the destroy", world.must_see_files()?, before)?;
            same("changed of a second destroy", world.call(SrDestroy {})?.changed, Changed::Already)
        },
    },
    Check {
        id: "B21",
        needs: DATA,
        sentences: &["DRV-LOAD-10", "DRV-SR-1"],
        explain: "Two SRs on the same backend, open at the same time: neither lists, changes or \
            removes anything of the other's.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("here")?;
            let mut second = World::second(world.bench, "B21-second")?;
            let verdict = apart(world, &mut second, vdi, &content);
            // Else it is gone, and all of the place would go with what is left of it.
            if verdict.is_err() {
                second.wipe();
            }
            verdict
        },
    },
    Check {
        id: "B07",
        needs: DISKS,
        sentences: &["DRV-SR-1", "DRV-LOAD-8"],
        explain: "An open before there is an SR must succeed and change nothing. The SR is made; \
            its listing is empty; where there is `sr_stat`, the name and the description are those \
            of the request, in a new process too.",
        setup: Setup::Nothing,
        run: |world| {
            let before = world.files()?;
            world.own_sr()?;
            world.reopen()?;
            same("the backend after an open", world.files()?, before)?;
            let (name, description) = (world.name("n\u{e4}me"), "line\nline".to_owned());
            let request = SrCreate { name: name.clone(), description: description.clone() };
            same("changed", world.call(request)?.changed, Changed::Created)?;
            world.call(SrAttach {})?;
            same("VDIs in a new SR", world.list()?.len(), 0)?;
            if world.can("sr_stat") {
                world.reopen()?;
                let told = world.call(SrStat {})?;
                same("name and description", (told.name, told.description), (name, description))?;
            }
            Ok(())
        },
    },
    Check {
        id: "B08",
        needs: DISKS,
        sentences: &["DRV-IDEM-1", "DRV-IDEM-2", "DRV-SR-1"],
        explain: "The create of an SR comes again with its operation id, in the same process and \
            in another: `already`. Another wish to make an SR that exists is `already` or \
            `exists`, and its VDI stays either way.",
        setup: Setup::Nothing,
        run: |world| {
            world.own_sr()?;
            let id = world.new_operation();
            let request = SrCreate { name: world.name("sr"), description: String::new() };
            for wanted in [Changed::Created, Changed::Already, Changed::Already] {
                world.reopen()?;
                same("changed", world.call_as(id, &request)?.changed, wanted)?;
                let again = world.call_as(id, &request)?.changed;
                same("changed of a second create", again, Changed::Already)?;
            }
            world.call(SrAttach {})?;
            let vdi = world.create("kept")?.uuid;
            match world.call(request) {
                Ok(done) => same("changed of another wish", done.changed, Changed::Already)?,
                Err(error) if error.kind == sm_model::Kind::Exists => {}
                Err(error) => return Err(error.into()),
            }
            must(world.list()?.contains_key(&vdi), || "the VDI is gone".into())?;
            world.destroy(vdi)
        },
    },
    Check {
        id: "B11",
        needs: DISKS.and(&["sr_detach"]),
        sentences: &["DRV-SR-2", "DRV-SR-3"],
        explain: "Attach ten times without a detach between, then detach ten times: all succeed, \
            and the VDIs are there.",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("kept")?.uuid;
            for _ in 0..10 {
                let done = world.call(SrAttach {})?;
                must(done.removed.is_empty() && done.undone.is_empty(), || {
                    format!("an attach with nothing to recover answered {done:?}")
                })?;
            }
            for round in 0..10 {
                let done = world.call(SrDetach {})?.changed;
                must(round == 0 || done == Changed::Already, || {
                    format!("a detach of what is detached answered {done:?}")
                })?;
            }
            world.call(SrAttach {})?;
            must(world.list()?.contains_key(&vdi), || "the VDI is gone".into())
        },
    },
    Check {
        id: "B12",
        needs: DISKS,
        sentences: &["DRV-SR-2"],
        explain: "The attach of an SR that does not exist must be refused with `not_found`, and \
            make nothing.",
        setup: Setup::Nothing,
        run: |world| {
            let before = world.files()?;
            world.reopen()?;
            let answer = world.call(SrAttach {});
            World::refused("the attach of an SR that is not there", "not_found", answer)?;
            same("the backend after a refusal", world.files()?, before)
        },
    },
    Check {
        id: "B19",
        needs: DISKS.and(&["sr_update", "sr_stat"]),
        sentences: &["DRV-SR-7", "DRV-META-1"],
        explain: "A new name must be on the backend, the description that was not named must stay, \
            and the same again is `already`.",
        setup: Setup::Sr,
        run: |world| {
            let update = |name: Option<&str>, description: Option<&str>| SrUpdate {
                name: name.map(str::to_owned),
                description: description.map(str::to_owned),
            };
            world.call(update(None, Some("a text")))?;
            same("changed", world.call(update(Some("new"), None))?.changed, Changed::Modified)?;
            world.reopen()?;
            let told = world.call(SrStat {})?;
            same(
                "name and description",
                (told.name.as_str(), told.description.as_str()),
                ("new", "a text"),
            )?;
            let again = world.call(update(Some("new"), None))?.changed;
            same("changed of the same again", again, Changed::Already)
        },
    },
    Check {
        id: "B02",
        needs: DISKS.and(&["sr_probe"]),
        sentences: &["DRV-CONF-5"],
        explain: "A probe must find the SR that was made, by its UUID.",
        setup: Setup::Sr,
        run: |world| {
            let found = probe(world)?;
            let listed = found.items.iter().filter_map(|item| item.sr.as_ref());
            must(listed.clone().any(|sr| sr.uuid == world.sr), || {
                format!("the probe finds {:?}", listed.collect::<Vec<_>>())
            })
        },
    },
    Check {
        id: "B01",
        needs: Needs::only(&["sr_probe"]),
        sentences: &["DRV-CONF-5", "DRV-LOAD-9"],
        explain: "A probe of a place without an SR is an answer without one, not an error.",
        setup: Setup::Nothing,
        run: |world| {
            let found = probe(world)?;
            let ours = found.items.iter().any(|item| item.sr.is_some());
            must(!ours || world.bench.config.backend.foreign, || {
                format!("the probe of an empty place finds {found:?}")
            })
        },
    },
    Check {
        id: "B05",
        needs: DISKS.and(&["sr_probe"]),
        sentences: &["DRV-CONF-5", "DRV-LOAD-9"],
        explain: "A probe must change nothing on the backend; and a session that was opened for a \
            probe must refuse anything else.",
        setup: Setup::Sr,
        run: |world| {
            let before = world.files()?;
            probe(world)?;
            same("the backend after a probe", world.files()?, before)?;
            let opening = Opening { host: HOST, ..Opening::default() };
            let services = world.bench.services();
            let port = std::sync::Arc::new(world.bench.open(&opening, &services)?);
            let id = world.new_operation();
            let call =
                sm_loader::Call::new(Operation::SrScan, id, world.bench.config.call_budget());
            let answer = world.call_on(&port, call, &SrScan::default());
            must(answer.is_err(), || "a session for a probe answered a listing".into())
        },
    },
];

/// Two SRs, with a VDI in the first.
fn apart(
    world: &mut World<'_>,
    second: &mut World<'_>,
    vdi: sm_model::VdiUuid,
    content: &Content,
) -> Verdict {
    second.make_sr()?;
    let (other, of_other) = second.filled("there")?;
    let listed: Vec<_> = second.list()?.into_keys().collect();
    same("the listing of the second SR", listed, vec![other])?;
    let listed: Vec<_> = world.list()?.into_keys().collect();
    same("the listing of the first SR", listed, vec![vdi])?;
    second.verify(other, &of_other, "a VDI of the second SR")?;
    second.destroy(other)?;
    world.verify(vdi, content, "a VDI of the first SR")?;
    second.finish_quietly()
}

fn probe(world: &mut World<'_>) -> Verdict<sm_model::sr::SrProbed> {
    let opening = Opening { host: HOST, ..Opening::default() };
    let services = world.bench.services();
    let port = std::sync::Arc::new(world.bench.open(&opening, &services)?);
    let id = world.new_operation();
    let call = sm_loader::Call::new(Operation::SrProbe, id, world.bench.config.call_budget());
    Ok(world.call_on(&port, call, &SrProbe {})?)
}

fn scan(world: &mut World<'_>, port: &std::sync::Arc<sm_loader::ProcessPort>) -> Verdict<usize> {
    let id = world.new_operation();
    let call = sm_loader::Call::new(Operation::SrScan, id, world.bench.config.call_budget());
    Ok(world.call_on(port, call, &SrScan::default())?.vdis.len())
}
