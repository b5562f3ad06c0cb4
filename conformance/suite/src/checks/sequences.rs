//! Any operations in any order, beside a model of what must come out.

use std::cell::{Cell, RefCell};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use serde::{Deserialize, Serialize};
use sm_model::vdi::{VdiResize, VdiRevert, VdiUpdate};
use sm_model::{Bytes, VdiUuid};

use super::{Check, DATA, Setup};
use crate::oracle::{BLOCK, Content};
use crate::verdict::{Stop, Verdict, must, same};
use crate::world::World;

/// How often a sequence that fails is tried shorter.
const SHRINKS: u32 = 64;

pub(super) const CHECKS: &[Check] = &[Check {
    id: "T01",
    needs: DATA,
    sentences: &["DRV-SNAP-8", "DRV-VDI-6", "DRV-LIST-1", "DRV-IDEM-7"],
    explain: "Sequences of up to sixteen operations, drawn from all that the driver declares: \
        create, write, snapshot, clone, revert, grow, rename, destroy, maintenance, restart. A \
        model says what must be listed after each step, and what each disk must hold at the end. \
        A sequence that fails is made shorter until nothing can be left out; disks are named by \
        their number among those that are there, so that what is left still means the same.",
    setup: Setup::Nothing,
    run: |world| {
        let ops = world.bench.ops.clone();
        match ops {
            Some(ops) => one(world, 0, &ops),
            None => many(world),
        }
    },
}];

/// An operation of a sequence. `disk` is a number among the disks that are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    Create,
    Write { disk: u8, block: u8, count: u8 },
    Snapshot { disk: u8 },
    Clone { disk: u8 },
    Revert { disk: u8 },
    Grow { disk: u8 },
    Rename { disk: u8 },
    Destroy { disk: u8 },
    Maintain,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let disk = any::<u8>;
    prop_oneof![
        2 => Just(Step::Create),
        6 => (disk(), any::<u8>(), 1..9_u8).prop_map(|(disk, block, count)| {
            Step::Write { disk, block, count }
        }),
        4 => disk().prop_map(|disk| Step::Snapshot { disk }),
        3 => disk().prop_map(|disk| Step::Clone { disk }),
        2 => disk().prop_map(|disk| Step::Revert { disk }),
        1 => disk().prop_map(|disk| Step::Grow { disk }),
        1 => disk().prop_map(|disk| Step::Rename { disk }),
        3 => disk().prop_map(|disk| Step::Destroy { disk }),
        1 => Just(Step::Maintain),
        1 => Just(Step::Restart),
    ]
}

fn many(world: &mut World<'_>) -> Verdict {
    let sequences = world.bench.config.suite.sequences;
    let config = Config {
        cases: sequences,
        max_shrink_iters: SHRINKS,
        failure_persistence: None,
        ..Config::default()
    };
    let mut seed = [0; 32];
    for (place, byte) in seed.iter_mut().zip(world.bench.seed.to_le_bytes().iter().cycle()) {
        *place = *byte;
    }
    let mut runner =
        TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let number = Cell::new(0);
    let last = RefCell::new(None);
    let shared = RefCell::new(world);
    let outcome = runner.run(&proptest::collection::vec(step(), 1..17), |steps| {
        number.set(number.get() + 1);
        match one(&mut shared.borrow_mut(), number.get(), &steps) {
            Ok(()) => Ok(()),
            Err(stop) => {
                let text = format!("{stop:?}");
                last.replace(Some(stop));
                Err(TestCaseError::fail(text))
            }
        }
    });
    let world = shared.into_inner();
    match outcome {
        Ok(()) => Ok(()),
        Err(TestError::Fail(_, steps)) => {
            let text = serde_json::to_string(&steps).unwrap_or_default();
            world.ops = Some(steps);
            Err(match last.into_inner() {
                Some(Stop::Fail(why)) => Stop::Fail(format!("{why}; the sequence is {text}")),
                Some(other) => other,
                None => Stop::Fail(format!("the sequence {text}")),
            })
        }
        Err(TestError::Abort(reason)) => Err(Stop::NotTestable(reason.to_string())),
    }
}

struct Node {
    uuid: VdiUuid,
    content: Content,
    size: u64,
    name: String,
    snapshot_of: Option<VdiUuid>,
    /// Of a clone: the disk that it was made of, itself or by a snapshot. Is that gone, the one before.
    came_of: Option<VdiUuid>,
}

/// One sequence, in an SR of its own.
fn one(outer: &mut World<'_>, number: usize, steps: &[Step]) -> Verdict {
    let mut world = World::with_sr(outer.bench, &format!("T01-{number}"))?;
    let result = follow(&mut world, steps).and_then(|()| world.finish());
    outer.log = std::mem::take(&mut world.log);
    world.wipe();
    result
}

fn follow(world: &mut World<'_>, steps: &[Step]) -> Verdict {
    let mut nodes: Vec<Node> = Vec::new();
    let mut generation = 1;
    for (at, step) in steps.iter().enumerate() {
        let known = |disk: u8| (disk as usize).checked_rem(nodes.len());
        generation += 1;
        match step {
            Step::Create => {
                let vdi = world.create("model")?;
                nodes.push(node(&vdi, Content::default()));
            }
            Step::Write { disk, block, count } => {
                let writable: Vec<usize> =
                    (0..nodes.len()).filter(|at| is_disk(nodes.get(*at))).collect();
                let at = (*disk as usize).checked_rem(writable.len());
                let Some(node) =
                    at.and_then(|at| writable.get(at)).and_then(|at| nodes.get_mut(*at))
                else {
                    continue;
                };
                let all = node.size / BLOCK;
                let first = u64::from(*block) * all / 256;
                let blocks: Vec<u64> =
                    (first..first + u64::from(*count)).filter(|lba| *lba < all).collect();
                world.fill(node.uuid, &mut node.content, &blocks, generation)?;
            }
            Step::Snapshot { disk } if world.can("vdi_snapshot") => {
                let Some(source) = known(*disk).and_then(|at| nodes.get(at)) else { continue };
                if source.snapshot_of.is_some() {
                    continue;
                }
                let vdi = world.snapshot(source.uuid)?;
                same("snapshot_of", vdi.snapshot_of, Some(source.uuid))?;
                let content = source.content.clone();
                nodes.push(node(&vdi, content));
            }
            Step::Clone { disk } if world.can("vdi_clone") => {
                let Some(source) = known(*disk).and_then(|at| nodes.get(at)) else { continue };
                let vdi = world.clone(source.uuid)?;
                let (content, of) = (source.content.clone(), source.snapshot_of);
                let came_of = of.or(Some(source.uuid));
                nodes.push(Node { came_of, ..node(&vdi, content) });
            }
            Step::Revert { disk } if world.can("vdi_revert") => {
                let Some(snapshot) = known(*disk).and_then(|at| nodes.get(at)) else { continue };
                let (from, content, size) =
                    (snapshot.uuid, snapshot.content.clone(), snapshot.size);
                let Some(of) = snapshot.snapshot_of else { continue };
                let since = nodes.iter().rev().take_while(|node| node.uuid != from);
                let since =
                    since.filter(|node| [node.snapshot_of, node.came_of].contains(&Some(of)));
                let newest = since.count() == 0;
                let Some(node) = nodes.iter_mut().find(|node| node.uuid == of) else { continue };
                match world.call(VdiRevert { vdi: of, snapshot: from }) {
                    // Then nothing has changed (DRV-SNAP-13).
                    Err(error) if error.kind == sm_model::Kind::InUse && !newest => continue,
                    answer => answer?,
                };
                (node.content, node.size) = (content, size);
            }
            Step::Grow { disk } if world.can("vdi_resize") => {
                let Some(node) = known(*disk).and_then(|at| nodes.get_mut(at)) else { continue };
                if node.snapshot_of.is_some() {
                    continue;
                }
                let virtual_size = Bytes(node.size + world.size());
                node.size =
                    world.call(VdiResize { vdi: node.uuid, virtual_size })?.vdi.virtual_size.0;
            }
            Step::Rename { disk } if world.can("vdi_update") => {
                let Some(node) = known(*disk).and_then(|at| nodes.get_mut(at)) else { continue };
                node.name = format!("renamed-{generation}");
                world.call(VdiUpdate {
                    vdi: node.uuid,
                    name: Some(node.name.clone()),
                    description: None,
                    vdi_type: None,
                    read_only: None,
                    keys: std::collections::BTreeMap::new(),
                    incomplete: None,
                })?;
            }
            Step::Destroy { disk } => {
                let Some(at) = known(*disk) else { continue };
                let gone = nodes.remove(at);
                world.destroy(gone.uuid)?;
                for node in nodes.iter_mut().filter(|node| node.came_of == Some(gone.uuid)) {
                    node.came_of = gone.came_of;
                }
            }
            Step::Maintain if world.can("sr_maintain") => {
                world.call(sm_model::sr::SrMaintain::default())?;
            }
            Step::Restart => {
                world.reopen()?;
                world.call(sm_model::sr::SrAttach {})?;
            }
            _ => continue,
        }
        compare(world, &nodes).map_err(|stop| match stop {
            Stop::Fail(why) => Stop::Fail(format!("after step {at}, {step:?}: {why}")),
            other => other,
        })?;
    }
    for node in &nodes {
        world.verify(node.uuid, &node.content, "a disk at the end of a sequence")?;
    }
    if world.can("vdi_tree") {
        super::trees::invariants(world)?;
    }
    Ok(())
}

fn is_disk(node: Option<&Node>) -> bool {
    node.is_some_and(|node| node.snapshot_of.is_none())
}

fn node(vdi: &sm_model::vdi::VdiInfo, content: Content) -> Node {
    Node {
        uuid: vdi.uuid,
        content,
        size: vdi.virtual_size.0,
        name: vdi.name.clone(),
        snapshot_of: vdi.snapshot_of,
        came_of: None,
    }
}

/// The listing is that of the model.
fn compare(world: &mut World<'_>, nodes: &[Node]) -> Verdict {
    let listed = world.list()?;
    must(listed.len() == nodes.len(), || {
        format!("{} VDIs are listed, {} must be there", listed.len(), nodes.len())
    })?;
    for node in nodes {
        let Some(vdi) = listed.get(&node.uuid) else {
            return Err(Stop::Fail(format!("{} is not listed", node.uuid)));
        };
        same("the size of a VDI", vdi.virtual_size.0, node.size)?;
        same("the name of a VDI", &vdi.name, &node.name)?;
        same("is_a_snapshot of a VDI", vdi.is_a_snapshot, node.snapshot_of.is_some())?;
    }
    Ok(())
}
