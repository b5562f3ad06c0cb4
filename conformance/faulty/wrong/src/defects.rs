//! The list of what can be wrong.

/// A defect: one thing that a driver of the field got wrong.
#[derive(Clone, Copy, Debug)]
pub struct Defect {
    /// Value of the key `defect`.
    pub name: &'static str,
    /// The class, for the score.
    pub class: &'static str,
    /// What is wrong.
    pub what: &'static str,
    /// The checks of which one must find it: those that name the sentence it breaks.
    pub killers: &'static [&'static str],
}

macro_rules! defects {
    ($($class:literal { $($name:literal: $what:literal, by $killers:expr;)* })*) => {
        /// All of them.
        pub const DEFECTS: &[Defect] = &[$($(
            Defect { name: $name, class: $class, what: $what, killers: &$killers },
        )*)*];
    };
}

defects! {
    "data" {
        "clone-empty": "a clone has the size of its source and none of its data", by ["E08", "E05", "E07"];
        "clone-partial": "a clone lacks the last megabyte of its source", by ["E08", "E05"];
        "snapshot-live": "a snapshot is another name for its source", by ["E02"];
        "snapshot-writable": "a snapshot can be attached for writing", by ["E03", "C19"];
        "snapshot-destroy-wipes": "destroying a snapshot wipes its source", by ["E13", "E15"];
        "source-destroy-wipes": "destroying a disk removes its snapshots' data", by ["E14", "E15"];
        "clone-shares": "a clone is written together with its source", by ["E08", "E05", "E07"];
        "resize-wipes": "a growth throws away what was there", by ["F03"];
        "stale-space": "a new disk takes over a destroyed disk's file as it is", by ["C02", "Q07", "D13"];
        "deactivate-wipes": "the end of an attachment loses the first block", by ["D01", "D02"];
        "revert-nothing": "a revert answers success and does nothing", by ["E16"];
        "create-again-wipes": "a repeated create makes the image anew", by ["C07", "K03"];
        "damaged-forgotten": "recovery takes a disk whose record it cannot read for one that was never finished", by ["N12"];
        "tidy-recovery": "recovery removes every file that it does not know", by ["N15"];
        "revert-in-place": "a revert empties the disk before it copies the snapshot", by ["T03"];
        "clone-goes-on": "a disk is written on while it is cloned, block by block", by ["E12"];
        "depth-two": "a snapshot taken after another one gets the first one's data", by ["E02", "E13"];
    }
    "attach" {
        "lock-looked-at-first": "whether another host writes a disk is looked at, and noted a moment later", by ["G07", "M09"];
        "lock-of-a-process": "the one who writes a disk is a process, so that its host is shut out when it has died", by ["G10", "K08", "N06"];
        "anyone-unlocks": "the end of an attachment that never was ends the one of another host", by ["G08", "G05"];
        "detach-unlocks": "the source of a migration, detached late, ends the attachment of its target", by ["G13"];
        "handover-sticks": "a disk is given to the target of a migration as soon as its source lets go", by ["G14"];
        "recovery-unlocks": "an attach of the SR takes every lock for one that a crash has left", by ["G10"];
        "readers-lock": "a host that reads keeps others from reading", by ["G04"];
        "copies-while-written": "a disk that another host writes is copied bit by bit", by ["G18"];
        "attach-counts": "an attach whose answer was lost counts twice, and one detach is not enough", by ["K08", "N06"];
        "detach-once": "the detach of what is not attached any more is an error", by ["K09", "G09", "N07"];
        "attach-half": "a mark of an attach that was cut keeps the disk from being attached for ever", by ["N06"];
        "detach-half": "of a deactivation that was cut a file stays for ever", by ["N07"];
        "resize-swaps": "a growth puts a new image in the place of one that is being written", by ["F02"];
    }
    "retry" {
        "wishes-expire": "after half a day a wish is not known any more", by ["K15"];
        "snapshot-again": "a repeated snapshot is taken anew", by ["K05", "K01"];
        "clone-by-name": "a clone of another source under the same UUID is taken for done", by ["E25", "K13"];
        "revert-again": "a revert that comes late throws away what was written since", by ["T02"];
        "wish-of-a-host": "a wish is remembered for one host only", by ["K14"];
        "resize-late": "a resize that comes late is taken for an error", by ["F10"];
        "half-clone": "a clone that was cut is found by its name and called done", by ["N04"];
        "destroy-twice": "the destroy of what is gone is an error", by ["C11", "C12", "K04", "Q07"];
        "exists-ignored": "a create with another size is answered with what is there", by ["C08"];
    }
    "restart" {
        "memory-names": "a rename is kept in memory only", by ["C17"];
        "memory-size": "a growth is kept in memory only", by ["F09", "F01"];
    }
    "recovery" {
        "recovery-once": "a recovery that was killed is for ever taken for one that runs", by ["N10"];
        "leftovers-of-a-host": "what a dead host has begun is left alone by all others", by ["G19"];
        "maintained-in-place": "maintenance empties an image before it writes it anew", by ["N08"];
        "record-trusted": "a record that is no JSON is a panic", by ["Q08"];
    }
    "storage" {
        "sync-ignored": "a sync that fails is none of a create's business", by ["O10", "O11"];
        "sync-trusted": "a sync that fails is a panic", by ["O10", "O11"];
        "already-unsynced": "what is so already is not synced, though the first try died of that", by ["O10", "O11"];
        "full-is-internal": "a file system without room is a defect of the driver", by ["O11"];
        "leftover-in-the-way": "what a create has left that found no room is in the way of the next", by ["O10", "O11"];
        "image-first": "a destroy removes the image before the record, with no step in between", by ["N09"];
        "record-in-place": "a record is written where the old one was", by ["N09"];
    }
    "concurrency" {
        "thread-bound": "the first thread that asks how full an SR is is the only one that may", by ["A13"];
        "hang-by-order": "a snapshot and a destroy take the same two locks in different orders", by ["M08"];
    }
    "leak" {
        "destroy-leaves-image": "a destroy leaves the image behind", by ["C14", "Q07", "C02", "H04", "D11"];
        "refusal-leaves": "a create above the limit leaves a file behind", by ["C04"];
        "sr-destroy-leaves": "the destroy of an SR leaves its record", by ["B15"];
        "process-left": "each session leaves a process behind", by ["A07"];
        "descriptors": "each attach leaves a file open", by ["G01"];
    }
    "size" {
        "rounds-down": "a size that does not fit is rounded down", by ["C01", "D13"];
        "said-and-done": "the device is a sector smaller than is said", by ["D13", "C21", "F01"];
        "shrinks": "a smaller size is obeyed", by ["F05"];
        "used-never-grows": "the space that a disk takes is always said to be none", by ["H02"];
        "snapshot-copies": "a snapshot takes as much space as its source, and thin is declared", by ["H05"];
        "shared-counts-twice": "what a disk shares with its snapshots is said to be taken by each", by ["H11"];
        "thick-but-thin": "a disk takes all of its space, and thin is declared", by ["H01"];
    }
    "listing" {
        "lost-page": "the second page of a listing is empty", by ["C15"];
        "snapshot-of-itself": "a snapshot is said to be one of itself", by ["E01", "E24"];
        "foreign-sr": "a disk is listed in another SR too", by ["B21"];
    }
    "errors" {
        "wrong-kind": "what does not exist is an internal error", by ["L01", "L06", "C10", "G02"];
        "retry-helps": "what does not exist is said to come later", by ["L02"];
        "chatty": "an error is a page of text", by ["L03"];
        "limit-as-no-space": "a size above the limit is a lack of space", by ["C04"];
        "chain-unsaid": "a chain at its end is refused as a size would be", by ["P03"];
        "full-sr-destroyed": "an SR with disks is destroyed", by ["B14"];
        "panic-in-create": "an odd size is a panic", by ["L06"];
        "abort-in-create": "an odd size ends the process", by ["L06"];
        "hang-in-create": "a sharable disk is never made", by ["C19"];
    }
    "metadata" {
        "trims-names": "names lose their spaces at both ends", by ["C06"];
        "update-forgets": "an update clears what it does not name", by ["C17"];
    }
    "hygiene" {
        "secret-in-log": "a password is logged at login", by ["Q01"];
        "shell-in-name": "a name is part of a shell's command", by ["Q04"];
        "secret-on-disk": "a password lies in the SR's record", by ["Q01"];
        "file-in-tmp": "a password lies in /tmp for a moment, under a name that others know", by ["Q06"];
        "probe-makes": "a probe writes a file", by ["B05"];
    }
    "time" {
        "scan-quadratic": "a listing reads all records again for each disk", by ["P07"];
        "recovery-quadratic": "an attach of the SR reads all records again for each disk", by ["N18"];
        "slow-create": "each create takes 1.2 s more", by ["R02"];
        "looks-again": "a thread looks every millisecond whether something has changed", by ["R05"];
        "keeps-answers": "each answer stays in memory", by ["R06"];
    }
}
