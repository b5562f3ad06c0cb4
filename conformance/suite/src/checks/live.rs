//! Copies of a disk that goes on being written.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sm_model::AttachMode::{ReadOnly, ReadWrite};
use sm_model::VdiUuid;

use super::{CLONES, Check, Setup};
use crate::disk::Disk;
use crate::oracle::{self, BLOCK, Content, Mark};
use crate::verdict::{Stop, Verdict, fail, must};
use crate::world::World;

/// Clones that are made meanwhile.
const TAKEN: usize = 3;

/// Writes that are done before the first, and after each.
const AHEAD: u64 = 16;

/// How long they may take.
const WRITING: Duration = Duration::from_secs(30);

pub(super) const CHECKS: &[Check] = &[Check {
    id: "E12",
    needs: CLONES,
    sentences: &["DRV-SNAP-14", "DRV-SNAP-10", "DRV-SNAP-4"],
    explain: "A disk is cloned three times while it is written, block after block in places drawn \
        by chance, each write durable before the next begins. A clone must be of one moment: it \
        holds all writes that had ended before the call, of the later ones the first so many, none \
        that began after the answer, and nothing else. The writer goes on, and the source keeps \
        all. It applies to drivers that declare `datapath` or `live_snapshot`.",
    setup: Setup::Sr,
    run: while_written,
}];

/// Somebody who writes a disk, and how far he is.
struct Writer {
    seed: u64,
    blocks: u64,
    /// Writes that have begun, and that are durable.
    begun: AtomicU64,
    done: AtomicU64,
    stop: AtomicBool,
}

impl Writer {
    /// The place of a write; the first is number 1.
    fn place(&self, number: u64) -> u64 {
        crate::dice::mix(self.seed ^ number) % self.blocks
    }

    /// Generation 1 is what was there before.
    fn mark(vdi: VdiUuid, number: u64) -> Mark {
        Mark { disk: vdi.0.as_u64_pair().1, generation: number + 1 }
    }

    fn write(&self, vdi: VdiUuid, disk: &Disk) -> Result<(), String> {
        for number in 1.. {
            if self.stop.load(Ordering::SeqCst) {
                break;
            }
            let lba = self.place(number);
            self.begun.store(number, Ordering::SeqCst);
            disk.write(lba * BLOCK, &oracle::block(Self::mark(vdi, number), lba))?;
            disk.flush()?;
            self.done.store(number, Ordering::SeqCst);
        }
        Ok(())
    }

    /// What there is after so many writes.
    fn content(&self, vdi: VdiUuid, base: &Content, number: u64) -> Content {
        let mut content = base.clone();
        for number in 1..=number {
            content.set(self.place(number), Self::mark(vdi, number));
        }
        content
    }

    /// Waits until some more writes are done.
    fn further(&self) -> Verdict {
        let (from, until) = (self.done.load(Ordering::SeqCst), Instant::now() + WRITING);
        while self.done.load(Ordering::SeqCst) < from + AHEAD {
            must(Instant::now() < until && !self.stop.load(Ordering::SeqCst), || {
                "a disk that was cloned is not written on".into()
            })?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// A clone, and between which writes it was made.
struct Taken {
    clone: VdiUuid,
    least: u64,
    most: u64,
}

fn while_written(world: &mut World<'_>) -> Verdict {
    if !world.can("datapath") && !world.can("live_snapshot") {
        let why = "the driver declares neither datapath nor live_snapshot";
        return Err(Stop::NotApplicable(why.into()));
    }
    let (vdi, base) = world.filled("live")?;
    let disk = world.open(vdi, ReadWrite)?;
    let writer = Writer {
        seed: world.dice.below(u64::MAX),
        blocks: world.size() / BLOCK,
        begun: AtomicU64::new(0),
        done: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    let (taken, written) = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let written = writer.write(vdi, &disk);
            writer.stop.store(true, Ordering::SeqCst);
            written
        });
        let taken = clones(world, vdi, &writer);
        writer.stop.store(true, Ordering::SeqCst);
        let broke = || Err("the writer broke: a defect of the suite".into());
        (taken, writing.join().unwrap_or_else(|_| broke()))
    });
    world.shut(vdi, disk)?;
    written.map_err(Stop::Fail)?;
    let taken = taken?;
    let content = writer.content(vdi, &base, writer.done.load(Ordering::SeqCst));
    world.verify(vdi, &content, "a disk that was cloned while it was written")?;
    taken.iter().try_for_each(|one| of_one_moment(world, vdi, &base, &writer, one))
}

fn clones(world: &mut World<'_>, vdi: VdiUuid, writer: &Writer) -> Verdict<Vec<Taken>> {
    let mut taken = Vec::new();
    writer.further()?;
    for _ in 0..TAKEN {
        let least = writer.done.load(Ordering::SeqCst);
        let clone = world.clone(vdi)?.uuid;
        let most = writer.begun.load(Ordering::SeqCst);
        world.note("the clone is of a write", &format!("from {least} to {most}"), "");
        taken.push(Taken { clone, least, most });
        writer.further()?;
    }
    Ok(taken)
}

fn of_one_moment(
    world: &mut World<'_>,
    vdi: VdiUuid,
    base: &Content,
    writer: &Writer,
    one: &Taken,
) -> Verdict {
    let disk = world.open(one.clone, ReadOnly)?;
    let verdict = newest(&disk).map_err(Stop::Fail).and_then(|number| {
        let (least, most) = (one.least, one.most);
        if number < least {
            return fail(format!(
                "a clone ends with write {number}, and {least} were done before it"
            ));
        }
        must(number <= most, || {
            format!("a clone has write {number}, and the last before its answer was {most}")
        })?;
        let content = writer.content(vdi, base, number);
        let what =
            format!("a clone that has write {number} of those that came one after the other");
        world.verify_open(&disk, &content, &what)
    });
    world.shut(one.clone, disk)?;
    verdict
}

/// The newest write that a disk holds.
fn newest(disk: &Disk) -> Result<u64, String> {
    let mut newest = 0;
    let mut block = vec![0; BLOCK as usize];
    for lba in 0..disk.size() / BLOCK {
        disk.read(lba * BLOCK, &mut block)?;
        if let oracle::Found::Written { mark, .. } = oracle::Found::of(&block) {
            newest = newest.max(mark.generation.saturating_sub(1));
        }
    }
    Ok(newest)
}
