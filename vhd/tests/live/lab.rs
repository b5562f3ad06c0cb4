//! A live image in a simulated store, and what each of its sectors may hold.

use std::collections::BTreeSet;
use std::path::Path;

use uuid::Uuid;
use vhd::chain::Level;
use vhd::check::{Severity, check_blob};
use vhd::image::{Live, probe_blob, repair_blob};
use vhd::store::{Area, At, Store};
use vhd::{Chain, Disk, Error, Image, Mode, Result, SECTOR};

use crate::common::{Batmap, Spec};
use crate::simulated::{Rng, Simulated};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Dynamic,
    Differencing,
    /// Bits the other way round.
    Reversed,
    /// Of a creator that has no batmap; otherwise as a differencing one.
    NoBatmap,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) kind: Kind,
    pub(crate) block: u32,
    pub(crate) sectors: u64,
    pub(crate) volume: bool,
    pub(crate) notes: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Request {
    Write { first: u64, count: u64, stamp: u64 },
    Zero { first: u64, count: u64 },
    Read { first: u64, count: u64 },
    Flush,
}

/// What happens at a call, counted from the beginning of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Kill(u64),
    Cut {
        call: u64,
        luck: u64,
        seed: u64,
    },
    Crowded(u64),
    Deaf(u64),
    /// Three writes fail, and things go on.
    Bad(u64),
}

impl Request {
    /// The stamp that a sector gets, if it gets one.
    fn stamps(&self, sector: u64) -> Option<u64> {
        match self {
            Self::Write { first, count, stamp } => {
                (*first..first + count).contains(&sector).then_some(*stamp)
            }
            Self::Zero { first, count } => (*first..first + count).contains(&sector).then_some(0),
            Self::Read { .. } | Self::Flush => None,
        }
    }
}

/// What one sector holds, and what it may hold after a power cut.
#[derive(Clone, Debug)]
struct Cell {
    now: u64,
    may: BTreeSet<u64>,
}

pub(crate) struct Lab {
    pub(crate) setup: Setup,
    pub(crate) store: Simulated,
    pub(crate) boot: u128,
    chain: Chain,
    cells: Vec<Cell>,
    stamps: u64,
}

fn image_at(name: &str) -> At {
    At::new(Area::Images, name)
}

fn sector_of(stamp: u64, sector: u64) -> [u8; 512] {
    if stamp == 0 {
        return [0; 512];
    }
    let mut bytes = [stamp as u8 | 1; 512];
    bytes[..8].copy_from_slice(&stamp.to_be_bytes());
    bytes[8..16].copy_from_slice(&sector.to_be_bytes());
    bytes
}

fn spec(setup: Setup, uuid: u128) -> Spec {
    let base = Spec { uuid: 77, ..Spec::default() };
    let mut spec =
        Spec { size: setup.sectors * SECTOR, uuid, ..Spec::default() }.block(setup.block);
    match setup.kind {
        Kind::Dynamic => {
            (spec.creator, spec.version) = (*b"tap\0", 0x0001_0003);
            spec.batmap = Some(Batmap::of(&[]));
        }
        Kind::Reversed => (spec.creator, spec.version) = (*b"tap\0", 1),
        Kind::Differencing => {
            (spec.creator, spec.version) = (*b"tap\0", 0x0001_0003);
            spec.batmap = Some(Batmap::of(&[]));
            spec = spec.child_of(&base, "base.vhd");
        }
        Kind::NoBatmap => spec = spec.child_of(&base, "base.vhd"),
    }
    spec
}

fn put(store: &Simulated, name: &str, spec: &Spec, room: u64) {
    let content = spec.content();
    let blob = store.create(&image_at(name), content.length + room).unwrap();
    let length = blob.stat().unwrap().length;
    blob.write_at(&content.bytes(0, content.length as usize), 0).unwrap();
    if blob.stat().unwrap().fixed_length {
        blob.write_at(&spec.footer(), (length / SECTOR - 1) * SECTOR).unwrap();
    }
    blob.sync().unwrap();
    store.sync(Area::Images).unwrap();
}

/// Opens the disk as a process does that is going to serve it.
pub(crate) fn open(store: &Simulated, setup: Setup, boot: u128) -> Result<Chain> {
    open_named(store, "leaf.vhd", setup, boot)
}

pub(crate) fn open_named(store: &Simulated, name: &str, setup: Setup, boot: u128) -> Result<Chain> {
    let at = image_at(name);
    let path = store.path_of(&at);
    if probe_blob(&*store.open(&at, false)?, &path)?.needs_repair() {
        repair_blob(store.open(&at, true)?, &path)?;
    }
    let leaf = Image::from_blob(store.open(&at, true)?, &path, Mode::Write)?;
    let notes_at = At::new(Area::Tmp, "notes");
    let notes = setup.notes.then(|| {
        if store.exists(&notes_at)? {
            store.open(&notes_at, true)
        } else {
            store.create(&notes_at, 0)
        }
    });
    let (notes, notes_path) = (notes.transpose()?, store.path_of(&notes_at));
    leaf.go_live(Live { notes, notes_path, boot: Uuid::from_u128(boot) })?;
    let differs = leaf.info().parent.is_some();
    let mut levels = vec![Ok(Level::Vhd(Box::new(leaf)))];
    if differs {
        let at = image_at("base.vhd");
        let path = store.path_of(&at);
        let base = Image::from_blob(store.open(&at, false)?, &path, Mode::Read)?;
        levels.push(Ok(Level::Vhd(Box::new(base))));
    }
    Chain::of(levels)
}

impl Lab {
    pub(crate) fn new(setup: Setup, rng: &mut Rng) -> Self {
        let store = Simulated::new(setup.volume);
        let size = setup.sectors * SECTOR;
        // All blocks, with what lies between them.
        let room = (size / u64::from(setup.block) + 2) * (u64::from(setup.block) + 8192) + 8192;
        let mut cells = vec![Cell { now: 0, may: BTreeSet::from([0]) }; setup.sectors as usize];
        let mut stamps = 1;
        if matches!(setup.kind, Kind::Differencing | Kind::NoBatmap) {
            // Smaller than its child, and of other blocks.
            let sectors = setup.sectors - rng.below(setup.sectors / 4);
            let base = Spec { size: sectors * SECTOR, uuid: 77, ..Spec::default() }.block(16 << 10);
            put(&store, "base.vhd", &base, room + (64 << 10));
            let at = image_at("base.vhd");
            let blob = store.open(&at, true).unwrap();
            let image = Image::from_blob(blob, &store.path_of(&at), Mode::Write).unwrap();
            for sector in 0..sectors {
                if sector % 7 != 0 {
                    image.write_at(sector * SECTOR, &sector_of(1, sector)).unwrap();
                    cells[sector as usize] = Cell { now: 1, may: BTreeSet::from([1]) };
                }
            }
            image.flush().unwrap();
            stamps = 2;
        }
        put(&store, "leaf.vhd", &spec(setup, 5), room);
        put(&store, "other.vhd", &spec(setup, 6), room);
        let chain = open(&store, setup, 1).unwrap();
        Self { setup, store, boot: 1, chain, cells, stamps }
    }

    pub(crate) fn stamp(&mut self) -> u64 {
        self.stamps += 1;
        self.stamps
    }

    pub(crate) fn leaf(&self) -> &Image {
        self.chain.leaf().unwrap()
    }

    /// The image as another process sees it.
    pub(crate) fn open_plain(&self) -> Image {
        let at = image_at("leaf.vhd");
        let blob = self.store.open(&at, true).unwrap();
        Image::from_blob(blob, &self.store.path_of(&at), Mode::Write).unwrap()
    }

    fn perform(&self, request: &Request) -> Result<()> {
        match request {
            Request::Write { first, count, stamp } => {
                let bytes: Vec<u8> =
                    (*first..first + count).flat_map(|at| sector_of(*stamp, at)).collect();
                self.chain.write_at(first * SECTOR, &bytes)
            }
            Request::Zero { first, count } => self.leaf().zero(first * SECTOR, count * SECTOR),
            Request::Read { first, count } => {
                let mut buf = vec![0; (count * SECTOR) as usize];
                self.chain.read_at(first * SECTOR, &mut buf)
            }
            Request::Flush => self.chain.flush(),
        }
    }

    /// Runs requests at once, and compares. Answers whether all succeeded.
    pub(crate) fn run(&mut self, batch: &[Request], fault: Option<Fault>, rng: &mut Rng) -> bool {
        self.arm(fault);
        let results: Vec<Result<()>> = if let [request] = batch {
            vec![self.perform(request)]
        } else {
            std::thread::scope(|scope| {
                let lab = &*self;
                let threads: Vec<_> =
                    batch.iter().map(|request| scope.spawn(|| lab.perform(request))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            })
        };
        self.settle(batch, &results, fault, rng);
        results.iter().all(Result::is_ok)
    }

    /// As [`Lab::run`], one request after the other. Answers whether the fault came to pass.
    pub(crate) fn run_in_order(&mut self, batch: &[Request], fault: Fault, rng: &mut Rng) -> bool {
        self.arm(Some(fault));
        let results: Vec<Result<()>> = batch.iter().map(|request| self.perform(request)).collect();
        let dark = self.store.is_dark();
        self.settle(batch, &results, Some(fault), rng);
        dark
    }

    fn arm(&self, fault: Option<Fault>) {
        let calls = self.store.calls();
        match fault {
            Some(Fault::Kill(call) | Fault::Cut { call, .. }) => {
                self.store.cut_at(Some(calls + call));
            }
            Some(Fault::Crowded(call)) => self.store.crowded_after(Some(calls + call)),
            Some(Fault::Deaf(call)) => self.store.deaf_after(Some(calls + call)),
            Some(Fault::Bad(call)) => self.store.bad_writes(calls + call..calls + call + 3),
            None => {}
        }
    }

    fn settle(
        &mut self,
        batch: &[Request],
        results: &[Result<()>],
        fault: Option<Fault>,
        rng: &mut Rng,
    ) {
        let dark = self.store.is_dark();
        for (request, result) in batch.iter().zip(results) {
            let Err(error) = result else { continue };
            let expected = match fault {
                Some(Fault::Kill(_) | Fault::Cut { .. }) => dark,
                Some(Fault::Crowded(_)) => error.is_no_space(),
                Some(Fault::Bad(_)) => !matches!(error, Error::Unsynced { .. }),
                Some(Fault::Deaf(_)) => {
                    matches!(error, Error::Unsynced { .. } | Error::Io { action: "sync", .. })
                }
                None => matches!(error, Error::Io { .. }) && error.is_no_space(),
            };
            assert!(expected, "{request:?}: {error:?}");
        }
        let flushed = batch
            .iter()
            .zip(results)
            .any(|(request, result)| matches!(request, Request::Flush) && result.is_ok());
        let lost = match fault {
            Some(Fault::Cut { luck, seed, .. }) => {
                self.store = self.store.reboot(&mut Rng::new(seed), luck);
                self.boot += 1;
                true
            }
            // Another process goes on, with all the system knows.
            Some(Fault::Kill(_) | Fault::Deaf(_)) => {
                self.store = self.store.restart();
                !self.setup.notes
            }
            Some(Fault::Crowded(_)) => {
                self.store.crowded_after(None);
                false
            }
            Some(Fault::Bad(_)) => {
                self.store.bad_writes(0..0);
                false
            }
            None => false,
        };
        if !matches!(fault, None | Some(Fault::Crowded(_) | Fault::Bad(_))) {
            self.reopen(rng);
        }
        let rebooted = matches!(fault, Some(Fault::Cut { .. }));
        let in_order = results.len() == 1;
        let found = self.read();
        for (index, cell) in self.cells.iter_mut().enumerate() {
            let sector = index as u64;
            let mut stamps: BTreeSet<u64> = BTreeSet::new();
            let mut answered = false;
            for (request, result) in batch.iter().zip(results) {
                if let Some(stamp) = request.stamps(sector) {
                    stamps.insert(stamp);
                    answered |= result.is_ok();
                }
            }
            if flushed && in_order {
                cell.may.clear();
            } else if flushed && stamps.is_empty() {
                cell.may = BTreeSet::from([cell.now]);
            }
            cell.may.insert(cell.now);
            let mut allowed = stamps.clone();
            if lost {
                allowed.extend(&cell.may);
            } else if !answered {
                allowed.insert(cell.now);
            }
            let got = found[index];
            assert!(
                allowed.contains(&got),
                "sector {sector}: {got}, allowed {allowed:?}, {:?}, {fault:?}, {batch:?}",
                self.setup
            );
            cell.now = got;
            cell.may.extend(stamps);
            if rebooted {
                cell.may = BTreeSet::from([got]);
            }
        }
    }

    /// Opens the disk after a fault, perhaps killed on the way, once or twice.
    fn reopen(&mut self, rng: &mut Rng) {
        self.sound();
        for _ in 0..rng.below(3) {
            self.store.cut_at(Some(self.store.calls() + rng.below(12)));
            let opened = open(&self.store, self.setup, self.boot);
            assert!(opened.is_ok() || self.store.is_dark(), "{:?}", opened.err());
            self.store = self.store.restart();
            self.sound();
        }
        self.chain = open(&self.store, self.setup, self.boot).unwrap_or_else(|error| {
            panic!("{:?}: {}", self.setup, error.reason());
        });
    }

    fn sound(&self) {
        let at = image_at("leaf.vhd");
        let blob = self.store.open(&at, false).unwrap();
        let findings = check_blob(&*blob, Path::new("leaf"));
        let bad = findings.iter().find(|found| found.severity == Severity::Error);
        assert!(bad.is_none(), "{:?}: {bad:?}", self.setup);
    }

    /// The stamp of each sector.
    fn read(&self) -> Vec<u64> {
        let mut buf = vec![0; (self.setup.sectors * SECTOR) as usize];
        self.chain.read_at(0, &mut buf).unwrap();
        let stamp = |(index, bytes): (usize, &[u8])| {
            if vhd::copy::is_zero(bytes) {
                return 0;
            }
            let stamp = u64::from_be_bytes(bytes[..8].try_into().unwrap());
            assert!(
                bytes == sector_of(stamp, index as u64),
                "sector {index} is torn, or of elsewhere: {:?} {:x?}",
                self.setup,
                &bytes[..24]
            );
            stamp
        };
        buf.chunks(SECTOR as usize).enumerate().map(stamp).collect()
    }

    pub(crate) fn close_and_open(&mut self) {
        self.leaf().close().unwrap();
        let now: Vec<u64> = self.cells.iter().map(|cell| cell.now).collect();
        assert_eq!(self.read(), now, "a closed image can be read");
        // All of it is durable, and the notes are not needed.
        self.store = self.store.reboot(&mut Rng::new(1), 0);
        self.boot += 1;
        self.sound();
        self.chain = open(&self.store, self.setup, self.boot).unwrap();
        assert_eq!(self.read(), now);
        for cell in &mut self.cells {
            cell.may = BTreeSet::from([cell.now]);
        }
    }

    pub(crate) fn finish(&mut self) {
        self.close_and_open();
        self.leaf().close().unwrap();
        let at = image_at("leaf.vhd");
        let blob = self.store.open(&at, false).unwrap();
        let findings = check_blob(&*blob, Path::new("leaf"));
        let odd = findings.iter().find(|found| found.severity > Severity::Note);
        assert!(odd.is_none(), "{odd:?}");
    }
}
