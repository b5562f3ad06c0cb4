//! What a crash left, finished or undone.

use plugin_sdk::model::sr::SrRecovered;
use plugin_sdk::{Cx, Result};
use vhd::tree::{self, Tree};

use crate::changes;
use crate::error::from_vhd;
use crate::live::Served;

pub(crate) fn recover(tree: &Tree, cx: &Cx) -> Result<SrRecovered> {
    // Looking first: the lock would make every scan wait for a running clone.
    let listing = tree.list().map_err(from_vhd)?;
    let deserted = deserted_base(&listing.nodes);
    if !listing.unfinished && !deserted && !changes::has_dead(tree)? {
        return Ok(SrRecovered::default());
    }
    let guard = tree.lock(cx.deadline()).map_err(from_vhd)?;
    let mut recovery = tree.recover(&guard).map_err(from_vhd)?;
    let logs = changes::sweep(tree, &guard)?;
    recovery.removed.extend(logs.iter().map(|vdi| format!("log of changes of {vdi}")));
    // A merge below a disk that is open leaves its node when it is completed here.
    if deserted || deserted_base(&tree.list().map_err(from_vhd)?.nodes) {
        let served = Served::of(tree, cx)?;
        match tree.collect_beside(&guard, &served) {
            Ok(bases) => {
                recovery.removed.extend(bases.iter().map(|base| format!("base copy {base}")));
            }
            Err(error @ vhd::Error::InUse { .. }) => {
                plugin_sdk::tracing::warn!(%error, "base copies that nothing needs stay");
            }
            Err(error) => return Err(from_vhd(error)),
        }
    }
    for failed in &recovery.failed {
        plugin_sdk::tracing::warn!(?failed, "an operation can be neither finished nor undone");
    }
    let sentence = |id: &plugin_sdk::model::uuid::Uuid| format!("operation {id}");
    Ok(SrRecovered {
        completed: recovery.completed.iter().map(sentence).collect(),
        undone: recovery.undone.iter().map(sentence).collect(),
        removed: recovery.removed,
    })
}

/// Whether a base copy has lost its last child, which happens when a disk was deleted while
/// another image of the SR could not be read.
fn deserted_base(nodes: &[tree::Node]) -> bool {
    let parents: std::collections::HashSet<_> =
        nodes.iter().filter_map(|node| node.parent).collect();
    nodes.iter().all(tree::Node::is_ok)
        && nodes.iter().any(|node| node.kind == tree::Kind::Base && !parents.contains(&node.uuid))
}
