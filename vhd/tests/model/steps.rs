//! What may happen to a store, and in which mixture.

use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;

/// One step. Disks are named by index, modulo how many there are, so that a sequence stays
/// meaningful when earlier steps are taken out.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Create {
        blocks: u64,
        raw: bool,
    },
    Write {
        disk: usize,
        place: u64,
        sectors: u64,
    },
    /// By somebody who does not say that he has the disk open, but has it to himself.
    RogueWrite {
        disk: usize,
        place: u64,
        sectors: u64,
    },
    /// Zeros, which hide what a parent has.
    Zero {
        disk: usize,
        place: u64,
        sectors: u64,
    },
    Flush {
        disk: usize,
    },
    Snapshot {
        disk: usize,
    },
    /// Of two disks, or three, at one point in time.
    Group {
        disk: usize,
        count: usize,
        ahead: bool,
    },
    /// What takes time of such a group; the next group is this one, if its disks are still there.
    Prepare {
        disk: usize,
        count: usize,
    },
    Revert {
        disk: usize,
        to: usize,
    },
    Resize {
        disk: usize,
        blocks: u64,
    },
    Delete {
        disk: usize,
    },
    /// A snapshot that is deleted again, between two writes: a level to be merged away.
    Layer {
        disk: usize,
        place: u64,
        sectors: u64,
    },
    Maintain,
    /// Also below disks that are open.
    MaintainTold,
    /// Merges, but not to the end.
    MaintainABit {
        batches: u64,
    },
    Reclaim {
        disk: usize,
    },
    Open {
        disk: usize,
    },
    Close {
        disk: usize,
    },
    /// The power goes at the given call of the step, then the step is repeated.
    Cut {
        step: Box<Step>,
        call: u64,
        luck: u64,
        seed: u64,
    },
    /// The process is killed at the given call of the step; what it wrote is there, but not durable.
    Kill {
        step: Box<Step>,
        call: u64,
    },
    /// The disk is full from the given call of the step on.
    Full {
        step: Box<Step>,
        call: u64,
    },
}

fn plain() -> BoxedStrategy<Step> {
    let disk = any::<usize>;
    prop_oneof![
        2 => (1..4_u64, prop::bool::weighted(0.15))
            .prop_map(|(blocks, raw)| Step::Create { blocks, raw }),
        8 => (disk(), any::<u64>(), 1..40_u64)
            .prop_map(|(disk, place, sectors)| Step::Write { disk, place, sectors }),
        1 => (disk(), any::<u64>(), 1..40_u64)
            .prop_map(|(disk, place, sectors)| Step::RogueWrite { disk, place, sectors }),
        2 => (disk(), any::<u64>(), 1..40_u64)
            .prop_map(|(disk, place, sectors)| Step::Zero { disk, place, sectors }),
        1 => disk().prop_map(|disk| Step::Flush { disk }),
        5 => disk().prop_map(|disk| Step::Snapshot { disk }),
        4 => (disk(), 2..4_usize, any::<bool>())
            .prop_map(|(disk, count, ahead)| Step::Group { disk, count, ahead }),
        2 => (disk(), 2..4_usize).prop_map(|(disk, count)| Step::Prepare { disk, count }),
        2 => (disk(), disk()).prop_map(|(disk, to)| Step::Revert { disk, to }),
        1 => (disk(), 1..6_u64).prop_map(|(disk, blocks)| Step::Resize { disk, blocks }),
        4 => disk().prop_map(|disk| Step::Delete { disk }),
        4 => (disk(), any::<u64>(), 1..40_u64)
            .prop_map(|(disk, place, sectors)| Step::Layer { disk, place, sectors }),
        3 => Just(Step::Maintain),
        3 => Just(Step::MaintainTold),
        2 => (0..4_u64).prop_map(|batches| Step::MaintainABit { batches }),
        1 => disk().prop_map(|disk| Step::Reclaim { disk }),
        1 => disk().prop_map(|disk| Step::Open { disk }),
        1 => disk().prop_map(|disk| Step::Close { disk }),
    ]
    .boxed()
}

/// Generates sequences; what is expected is kept by the test itself, because after a cut only the
/// store tells which of two states it is in.
pub(crate) struct Sequences;

impl ReferenceStateMachine for Sequences {
    type State = ();
    type Transition = Step;

    fn init_state() -> BoxedStrategy<()> {
        Just(()).boxed()
    }

    fn transitions((): &()) -> BoxedStrategy<Step> {
        prop_oneof![
            6 => plain(),
            3 => (plain(), 0..60_u64, 0..9_u64, any::<u64>()).prop_map(|(step, call, luck, seed)| {
                Step::Cut { step: Box::new(step), call, luck, seed }
            }),
            // A merge has many calls, and is where most is at stake.
            2 => (0..120_u64, 0..9_u64, any::<u64>()).prop_map(|(call, luck, seed)| {
                let step = if seed % 2 == 0 { Step::Maintain } else { Step::MaintainTold };
                Step::Cut { step: Box::new(step), call, luck, seed }
            }),
            1 => (plain(), 0..60_u64).prop_map(|(step, call)| {
                Step::Kill { step: Box::new(step), call }
            }),
            1 => (0..120_u64).prop_map(|call| {
                let step = if call % 2 == 0 { Step::Maintain } else { Step::MaintainTold };
                Step::Kill { step: Box::new(step), call }
            }),
            1 => (0..80_u64).prop_map(|call| {
                Step::Full { step: Box::new(Step::Maintain), call }
            }),
            1 => (plain(), 0..40_u64).prop_map(|(step, call)| {
                Step::Full { step: Box::new(step), call }
            }),
        ]
        .boxed()
    }

    fn apply((): (), _: &Step) {}
}
