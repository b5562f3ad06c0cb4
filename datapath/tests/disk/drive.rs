//! What a drive promises beside its bytes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use datapath::disk::{
    Change, Drive, Format, Kind, Limits, Options, Paused, Plan, Rate, Ticket, Watcher,
};
use datapath::error::{Errno, Result};
use datapath::export::{Export, Mapped, Zeroes};
use uuid::Uuid;

use crate::files::{layer, new_image, notes, options, plan, soon};

const SIZE: u64 = 8 << 20;

fn disk(dir: &tempfile::TempDir) -> (Arc<Drive>, Vec<PathBuf>) {
    let base = new_image(dir.path(), 1, SIZE, None);
    let leaf = new_image(dir.path(), 2, SIZE, Some((1, &base)));
    let chain = vec![leaf, base];
    (Drive::open(&plan(&chain), options(dir.path())).unwrap(), chain)
}

#[test]
fn a_leaf_is_written_by_one_drive_only_and_read_by_any() {
    let dir = tempfile::tempdir().unwrap();
    let (drive, chain) = disk(&dir);
    let error = Drive::open(&plan(&chain), Options::default()).err().unwrap();
    assert_eq!(error.errno, Errno::NotPermitted);
    assert!(error.what.ends_with("another process is writing to it"), "{error}");
    let reading = Plan { read_only: true, ..plan(&chain) };
    let reader = Drive::open(&reading, Options::default()).unwrap();
    assert!(reader.read_only());
    assert_eq!(reader.write(0, &[1], false).unwrap_err().errno, Errno::NotPermitted);
    assert_eq!(reader.trim(0, 1, false).unwrap_err().errno, Errno::NotPermitted);
    reader.flush().unwrap();
    drop(drive);
    Drive::open(&plan(&chain), Options::default()).unwrap();
}

#[test]
fn only_files_that_belong_together_are_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (drive, chain) = disk(&dir);
    drive.close(soon()).unwrap();
    let what = |plan: &Plan| Drive::open(plan, Options::default()).err().unwrap().what;
    let other = new_image(dir.path(), 3, SIZE, None);
    assert!(what(&plan(&[chain[0].clone(), other])).contains("expects the parent"));
    assert!(what(&plan(&chain[..1])).contains("missing from the chain"));
    assert!(what(&plan(&[chain[0].clone(), chain[0].clone()])).contains("twice"));
    let raw = layer(&chain[1], Format::Raw);
    let mut mixed = plan(&chain[..1]);
    mixed.backing.push(raw);
    assert!(what(&mixed).contains("a raw file"));
    assert!(what(&plan(&[dir.path().join("none.vhd")])).contains("No such file"));
}

#[test]
fn what_is_left_of_a_process_that_died_is_not_lost_when_its_leaf_is_a_parent_by_now() {
    let dir = tempfile::tempdir().unwrap();
    let (drive, mut chain) = disk(&dir);
    drive.write(0, &[7; 4096], false).unwrap();
    drop(drive);
    let leaf = new_image(dir.path(), 3, SIZE, Some((2, &chain[0])));
    chain.insert(0, leaf);
    let error = Drive::open(&plan(&chain), options(dir.path())).err().unwrap();
    assert!(error.what.contains("notes of writes that were not put into it"), "{error}");
    // Opened by itself first, it is in order.
    Drive::open(&plan(&chain[1..]), options(dir.path())).unwrap().close(soon()).unwrap();
    assert!(notes(dir.path()).is_empty());
    let drive = Drive::open(&plan(&chain), options(dir.path())).unwrap();
    let mut buf = [0; 4096];
    drive.read(0, &mut buf).unwrap();
    assert_eq!(buf, [7; 4096]);
}

#[test]
fn a_missing_footer_is_restored_when_a_disk_is_opened_for_writing() {
    let dir = tempfile::tempdir().unwrap();
    let (drive, chain) = disk(&dir);
    drive.write(0, &[7; 4096], false).unwrap();
    drive.close(soon()).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&chain[0]).unwrap();
    file.set_len(file.metadata().unwrap().len() - 512).unwrap();
    let drive = Drive::open(&plan(&chain), options(dir.path())).unwrap();
    drive.write(4096, &[8; 4096], false).unwrap();
    drive.close(soon()).unwrap();
    crate::files::sound(&chain[0]);
}

#[test]
fn a_pause_holds_requests_and_makes_all_that_was_answered_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (drive, chain) = disk(&dir);
    drive.write(100, &[5; 5000], false).unwrap();
    let paused: Paused = drive.pause(soon()).unwrap();
    let error = drive.pause(Instant::now()).err().unwrap();
    assert!(error.what.contains("by somebody else"), "{error}");
    // In the files, for whoever looks at them.
    let layers = [vhd::Layer::Vhd(&chain[0]), vhd::Layer::Vhd(&chain[1])];
    let reader = vhd::Chain::open(&layers, vhd::Mode::Read).unwrap();
    let mut buf = [0; 5000];
    vhd::Disk::read_at(&reader, 100, &mut buf).unwrap();
    assert_eq!(buf, [5; 5000]);
    assert!(matches!(drive.map_read(0, 4096), Mapped::Closed));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            drive.write(0, &[6; 512], false).unwrap();
            done.store(true, Ordering::SeqCst);
        });
        // Others get on while it waits.
        for _ in 0..1000 {
            assert!(!done.load(Ordering::SeqCst));
            std::thread::yield_now();
        }
        drop(paused);
        waiting.join().unwrap();
    });
    assert!(done.load(Ordering::SeqCst));
}

#[test]
fn a_disk_that_is_closed_refuses_who_comes_and_who_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (drive, _) = disk(&dir);
    let paused = drive.pause(soon()).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| drive.write(0, &[6; 512], false));
        paused.end().unwrap();
        assert_eq!(waiting.join().unwrap().unwrap_err().errno, Errno::Shutdown);
    });
    assert_eq!(drive.flush().unwrap_err().errno, Errno::Shutdown);
    assert!(matches!(drive.map_write(0, 4096), Mapped::Closed));
    assert_eq!(drive.close(soon()).unwrap_err().errno, Errno::Shutdown);
}

#[derive(Default)]
struct Log {
    said: Mutex<Vec<String>>,
    ranges: bool,
    writes: AtomicU64,
}

impl Watcher for Log {
    fn before(&self, change: &Change<'_>) -> Ticket {
        let number = self.writes.fetch_add(1, Ordering::SeqCst);
        let (offset, length) = (change.offset(), change.length());
        let what = if matches!(change, Change::Data { .. }) { "data" } else { "zeros" };
        self.say(format!("before {number} {what} {offset} {length}"));
        Ticket::of(number)
    }

    fn after(&self, _change: &Change<'_>, ticket: Ticket, written: bool) {
        self.say(format!("after {} {written}", ticket.take::<u64>().unwrap()));
    }

    fn flushed(&self) -> Result<()> {
        self.say("flushed".to_owned());
        Ok(())
    }

    fn only_ranges(&self) -> bool {
        self.ranges
    }

    fn touched(&self, offset: u64, length: u64) {
        self.say(format!("touched {offset} {length}"));
    }
}

impl Log {
    fn say(&self, text: String) {
        self.said.lock().unwrap().push(text);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.said.lock().unwrap())
    }
}

#[test]
fn a_watcher_is_told_of_every_change_and_of_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (drive, _) = disk(&dir);
    let all = Arc::new(Log::default());
    let ranges = Arc::new(Log { ranges: true, ..Log::default() });
    let id = drive.add_watcher(all.clone(), soon()).unwrap();
    drive.add_watcher(ranges.clone(), soon()).unwrap();
    drive.write(5, &[1; 3], true).unwrap();
    drive.read(0, &mut [0; 9]).unwrap();
    drive.trim(512, 1024, false).unwrap();
    let fast = Zeroes { only_if_fast: true, keep_space: true, durable: false };
    assert_eq!(drive.write_zeroes(0, 9, fast).unwrap_err().errno, Errno::NotSupported);
    assert!(drive.write(SIZE, &[1], false).is_err());
    let want = [
        "before 0 data 5 3",
        "after 0 true",
        "flushed",
        "before 1 zeros 512 1024",
        "after 1 true",
        &format!("before 2 data {SIZE} 1"),
        "after 2 false",
    ];
    assert_eq!(all.take(), want);
    assert_eq!(
        ranges.take(),
        ["touched 5 3", "flushed", "touched 512 1024", &format!("touched {SIZE} 1")]
    );
    drive.remove_watcher(id, soon()).unwrap();
    drive.write(0, &[1], false).unwrap();
    assert_eq!(all.take(), [""; 0]);
    assert_eq!(ranges.take(), ["touched 0 1"]);
}

#[test]
fn requests_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (drive, _) = disk(&dir);
    for _ in 0..10 {
        drive.write(0, &[1; 4096], false).unwrap();
    }
    drive.read(0, &mut [0; 512]).unwrap();
    drive.flush().unwrap();
    assert!(drive.write(SIZE, &[1], false).is_err());
    drive.read_aside(0, &mut [0; 512]).unwrap();
    let stats = drive.stats();
    let of = |kind| {
        let stats = stats.of(kind).unwrap();
        (stats.operations, stats.bytes, stats.errors)
    };
    assert_eq!(of(Kind::Write), (11, 40960, 1));
    assert_eq!(of(Kind::Read), (1, 512, 0));
    assert_eq!(of(Kind::Flush), (1, 0, 0));
    assert!(stats.of(Kind::Write).unwrap().percentile(0.99).is_some());
    let text = serde_json::to_value(&stats).unwrap();
    assert_eq!(text["kinds"][1]["kind"], "write");
}

#[test]
fn a_limit_holds_back_requests_and_not_a_pause() {
    let dir = tempfile::tempdir().unwrap();
    let (drive, _) = disk(&dir);
    let rate = Rate { per_second: 100, burst: 10 };
    drive.set_limits(Limits { operations: Some(rate), bytes: None });
    let start = Instant::now();
    for _ in 0..21 {
        drive.read(0, &mut [0; 512]).unwrap();
    }
    assert!(start.elapsed() >= Duration::from_millis(95), "{:?}", start.elapsed());
    // Held back for hours; the pause does not wait for it, nor it for more than the limit.
    let rate = Rate { per_second: 1, burst: 0 };
    drive.set_limits(Limits { operations: None, bytes: Some(rate) });
    drive.write(0, &[1; 8192], false).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| drive.write(0, &[2; 512], false));
        drop(drive.pause(soon()).unwrap());
        assert!(!waiting.is_finished());
        drive.set_limits(Limits::default());
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn transfers_hold_a_pause_off_and_are_only_given_where_they_are_all_there_is() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let base = new_image(dir.path(), 1, SIZE, None);
    let chain = vec![new_image(dir.path(), 2, SIZE, Some((1, &base))), base];
    let options = Options { direct: true, ..options(dir.path()) };
    let drive = Drive::open(&plan(&chain), options).unwrap();
    assert!(matches!(drive.map_write(0, 4096), Mapped::NotSimple), "a new block");
    drive.write(0, &vec![3; 65536], false).unwrap();
    assert!(matches!(drive.map_write(0, 4097), Mapped::NotSimple));
    assert!(matches!(drive.map_read(512, 4096), Mapped::NotSimple));
    assert!(matches!(drive.map_write(61440, 8192), Mapped::NotSimple), "half of it new");
    let Mapped::Transfer(read) = drive.map_read(4096, 2 << 20) else { panic!("not mapped") };
    let parts: Vec<_> = read.pieces.iter().map(|p| (p.part.clone(), p.place.is_some())).collect();
    assert_eq!(parts, [(0..61440, true), (61440..2 << 20, false)]);
    let error = drive.pause(Instant::now()).err().unwrap();
    assert!(error.what.contains("1 requests did not end"), "{error}");
    drop(read);
    // While others write to the same pages as a part of one, nothing is mapped; and the other way
    // round the part waits.
    let Mapped::Transfer(write) = drive.map_write(8192, 4096) else { panic!("not mapped") };
    let (file, at) = write.pieces[0].place.clone().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| drive.write(8193, &[9; 5], false));
        let until = soon();
        while !matches!(drive.map_write(0, 4096), Mapped::NotSimple) {
            assert!(Instant::now() < until);
            std::thread::yield_now();
        }
        assert!(!waiting.is_finished());
        let mut page = vec![0; 8192];
        let start = page.as_ptr().addr().next_multiple_of(4096) - page.as_ptr().addr();
        page[start..start + 4096].fill(4);
        std::os::unix::fs::FileExt::write_all_at(&*file, &page[start..start + 4096], at).unwrap();
        drop(write);
        waiting.join().unwrap().unwrap();
    });
    let mut buf = [0; 4096];
    drive.read(8192, &mut buf).unwrap();
    let mut want = [4; 4096];
    want[1..6].fill(9);
    assert_eq!(buf, want);
    let watcher = drive.add_watcher(Arc::new(Log::default()), soon()).unwrap();
    assert!(matches!(drive.map_write(0, 4096), Mapped::NotSimple), "its content is watched");
    drive.remove_watcher(watcher, soon()).unwrap();
    drive.add_watcher(Arc::new(Log { ranges: true, ..Log::default() }), soon()).unwrap();
    assert!(matches!(drive.map_write(0, 4096), Mapped::Transfer(_)));
}

/// A merge took out the image in the middle while the disk was in use: the files beside it have
/// changed, and are not taken as they were.
#[test]
fn files_beside_one_that_went_are_read_anew() {
    let dir = tempfile::tempdir().unwrap();
    let bottom = new_image(dir.path(), 1, SIZE, None);
    let middle = new_image(dir.path(), 2, SIZE, Some((1, &bottom)));
    let top = new_image(dir.path(), 3, SIZE, Some((2, &middle)));
    let write = |path: &PathBuf, at: u64, byte: u8| {
        let image = vhd::Image::open(path, vhd::Mode::Write).unwrap();
        image.write_at(at, &[byte; 4096]).unwrap();
        image.flush().unwrap();
    };
    write(&bottom, 0, 1);
    write(&middle, 4096, 2);
    let drive =
        Drive::open(&plan(&[top.clone(), middle.clone(), bottom.clone()]), options(dir.path()))
            .unwrap();
    drive.write(8192, &[3; 4096], false).unwrap();
    let read = || {
        let mut buf = vec![0; 3 * 4096];
        drive.read(0, &mut buf).unwrap();
        [buf[0], buf[4096], buf[8192]]
    };
    assert_eq!(read(), [1, 2, 3]);
    // The middle goes into the bottom, the top gets another parent: a new top, as the old one is
    // in use.
    let child = vhd::Image::open(&middle, vhd::Mode::Read).unwrap();
    let parent = vhd::Image::open(&bottom, vhd::Mode::Write).unwrap();
    let mut go = |_| std::ops::ControlFlow::Continue(());
    vhd::merge::merge(&child, &parent, 0, &vhd::merge::Options::default(), &mut go).unwrap();
    drop(parent);
    assert_eq!(read(), [1, 2, 3]);
    let new = new_image(dir.path(), 4, SIZE, Some((3, &top)));
    let paused = drive.pause(soon()).unwrap();
    let header = vhd::Image::open(&top, vhd::Mode::Write).unwrap();
    header.set_parent(Uuid::from_u128(1), "1.vhd").unwrap();
    drop(header);
    std::fs::remove_file(&middle).unwrap();
    let prepared = drive.prepare(&plan(&[new, top, bottom])).unwrap();
    paused.replace(prepared).unwrap();
    drop(paused);
    assert_eq!(read(), [1, 2, 3]);
}

/// The middle of a chain is merged away below a leaf that goes on being written, also between the
/// moment when its new files are made ready and the pause.
#[test]
fn a_leaf_goes_on_as_it_is_over_other_files() {
    let dir = tempfile::tempdir().unwrap();
    let bottom = new_image(dir.path(), 1, SIZE, None);
    let middle = new_image(dir.path(), 2, SIZE, Some((1, &bottom)));
    let top = new_image(dir.path(), 3, SIZE, Some((2, &middle)));
    for (path, at) in [(&bottom, 0), (&middle, 4096)] {
        let image = vhd::Image::open(path, vhd::Mode::Write).unwrap();
        image.write_at(at, &[at as u8 / 16 + 1; 4096]).unwrap();
        image.flush().unwrap();
    }
    let before = plan(&[top.clone(), middle.clone(), bottom.clone()]);
    let drive = Drive::open(&before, options(dir.path())).unwrap();
    drive.write(2 << 20, &[4; 4096], false).unwrap();
    let child = vhd::Image::open(&middle, vhd::Mode::Read).unwrap();
    let parent = vhd::Image::open(&bottom, vhd::Mode::Write).unwrap();
    let mut go = |_| std::ops::ControlFlow::Continue(());
    vhd::merge::merge(&child, &parent, 0, &vhd::merge::Options::default(), &mut go).unwrap();
    drop((child, parent));
    let header = vhd::Image::open(&top, vhd::Mode::Write).unwrap();
    header.set_parent(Uuid::from_u128(1), "1.vhd").unwrap();
    drop(header);
    let after = plan(&[top.clone(), bottom]);
    let prepared = drive.prepare(&after).unwrap();
    // Another block, and part of one that was there.
    drive.write(4 << 20, &[5; 4096], false).unwrap();
    drive.write((2 << 20) + 8192, &[6; 512], false).unwrap();
    let paused = drive.pause(soon()).unwrap();
    paused.replace(prepared).unwrap();
    drop(paused);
    std::fs::remove_file(&middle).unwrap();
    let all = |drive: &Drive| {
        let mut buf = vec![0; SIZE as usize];
        drive.read(0, &mut buf).unwrap();
        [0, 4096, 2 << 20, 4 << 20, (2 << 20) + 8192, 6 << 20].map(|at| buf[at])
    };
    assert_eq!(all(&drive), [1, 1, 4, 5, 6, 0]);
    drive.write(6 << 20, &[7; 4096], false).unwrap();
    assert_eq!(all(&drive), [1, 1, 4, 5, 6, 7]);
    // Killed, in effect.
    drop(drive);
    let drive = Drive::open(&after, options(dir.path())).unwrap();
    assert_eq!(all(&drive), [1, 1, 4, 5, 6, 7]);
    // As a parent, it is known with the parent that it has now.
    let new = new_image(dir.path(), 4, SIZE, Some((3, &top)));
    let next = plan(&[new, top, after.backing[0].path.clone()]);
    let prepared = drive.prepare(&next).unwrap();
    let paused = drive.pause(soon()).unwrap();
    paused.replace(prepared).unwrap();
    drop(paused);
    assert_eq!(all(&drive), [1, 1, 4, 5, 6, 7]);
    drive.close(soon()).unwrap();
    assert!(notes(dir.path()).is_empty());
    crate::files::sound(&next.leaf.path);
}

/// A snapshot gives the leaf's name to the new leaf, while the old one is still being written under
/// another name.
#[test]
fn files_are_known_by_what_they_are_and_not_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let (drive, chain) = disk(&dir);
    drive.write(0, &[1; 4096], false).unwrap();
    let base = dir.path().join("base.vhd");
    std::fs::rename(&chain[0], &base).unwrap();
    let new = new_image(dir.path(), 3, SIZE, Some((2, &base)));
    std::fs::rename(&new, &chain[0]).unwrap();
    let next = plan(&[chain[0].clone(), base, chain[1].clone()]);
    let prepared = drive.prepare(&next).unwrap();
    drive.write(4 << 20, &[2; 4096], false).unwrap();
    let paused = drive.pause(soon()).unwrap();
    paused.replace(prepared).unwrap();
    drop(paused);
    let mut buf = vec![0; 4096];
    drive.read(4 << 20, &mut buf).unwrap();
    assert_eq!(buf, [2; 4096]);
    drive.write(0, &[3; 512], false).unwrap();
    drop(drive);
    let drive = Drive::open(&next, options(dir.path())).unwrap();
    drive.read(0, &mut buf).unwrap();
    assert_eq!((buf[0], buf[512]), (3, 1));
}

#[test]
fn a_leaf_that_somebody_else_has_written_to_does_not_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (drive, chain) = disk(&dir);
    drive.write(0, &[1; 4096], false).unwrap();
    let paused = drive.pause(soon()).unwrap();
    let other = vhd::Image::open(&chain[0], vhd::Mode::Write).unwrap();
    other.write_at(4 << 20, &[2; 4096]).unwrap();
    let prepared = drive.prepare(&plan(&chain)).unwrap();
    let error = paused.replace(prepared).unwrap_err();
    assert!(error.what.contains("somebody else has written"), "{error}");
}

#[test]
fn a_disk_that_is_another_hosts_is_let_go_of_with_nothing_more_written() {
    let dir = tempfile::tempdir().unwrap();
    let leaf = new_image(dir.path(), 1, SIZE, None);
    let plan = plan(std::slice::from_ref(&leaf));
    let mark = dir.path().join("mark");
    let publish_after = Duration::from_millis(5);
    let with_mark = Options { shut_out: Some(mark.clone()), publish_after, ..options(dir.path()) };
    let drive = Drive::open(&plan, with_mark.clone()).unwrap();
    drive.write(0, &[1; 4096], false).unwrap();
    drive.flush().unwrap();
    std::fs::write(&mark, []).unwrap();
    let until = soon();
    while !drive.is_given_up() {
        assert!(Instant::now() < until, "it is not let go of");
        std::thread::yield_now();
    }

    let before = std::fs::read(&leaf).unwrap();
    for refused in [drive.write(4096, &[2; 4096], false), drive.flush()] {
        assert_eq!(refused.unwrap_err().errno, Errno::Shutdown);
    }
    assert_eq!(drive.read(0, &mut [0; 512]).unwrap_err().errno, Errno::Shutdown);
    drive.close(soon()).unwrap();
    assert!(before == std::fs::read(&leaf).unwrap());
    let error = Drive::open(&plan, with_mark).err().unwrap();
    assert_eq!(error.errno, Errno::NotPermitted);
    assert_eq!(error.what, "this host is shut out of the storage, the disk stays closed");

    // Whoever has it now finds it unlocked, with what was flushed.
    let other = Drive::open(&plan, Options::default()).unwrap();
    let mut found = [0; 4096];
    other.read(0, &mut found).unwrap();
    assert_eq!(found, [1; 4096]);
    drop(drive);
    other.close(soon()).unwrap();
}
