//! Any requests on any chain, every byte compared with a model.

use std::path::Path;
use std::sync::Arc;

use datapath::disk::{Drive, Format, Options, Plan};
use datapath::export::{Export, Extent, Zeroes};

use crate::build::{Batmap, Spec};
use crate::files::{Rng, layer, new_image, notes, options, plan, soon, sound};

/// A disk and what it must hold.
struct Model {
    dir: tempfile::TempDir,
    options: Options,
    plan: Plan,
    drive: Option<Arc<Drive>>,
    bytes: Vec<u8>,
    /// Numbers of images so far.
    numbers: u128,
    writes: u64,
}

impl Model {
    fn new(dir: tempfile::TempDir, plan: Plan, bytes: Vec<u8>, direct: bool) -> Self {
        let options = Options { direct, memory: 1 << 20, ..options(dir.path()) };
        let drive = Some(Drive::open(&plan, options.clone()).unwrap());
        Self { dir, options, plan, drive, bytes, numbers: 1000, writes: 0 }
    }

    fn drive(&self) -> &Arc<Drive> {
        self.drive.as_ref().unwrap()
    }

    fn range(&self, rng: &mut Rng) -> (usize, usize) {
        let size = self.bytes.len() as u64;
        let near = |rng: &mut Rng, step: u64| {
            (rng.below(size / step + 1) * step).saturating_sub(rng.below(3) * 512)
        };
        let offset = match rng.below(6) {
            0 => rng.below(size),
            1 => near(rng, 2 << 20),
            2 => near(rng, 512 << 10),
            3 => near(rng, 4096) + rng.below(700),
            _ => rng.below(size / 4096) * 4096,
        }
        .min(size - 1);
        let length = match rng.below(7) {
            0 => 1,
            1 => 1 + rng.below(2000),
            2 => 512 * (1 + rng.below(20)),
            3 => rng.below(3 << 20) + 1,
            4 => 65536,
            _ => 4096,
        };
        (offset as usize, length.min(size - offset) as usize)
    }

    fn step(&mut self, rng: &mut Rng) {
        let (at, length) = self.range(rng);
        let range = at..at + length;
        match rng.below(24) {
            0..10 => {
                self.writes += 1;
                let seed = self.writes;
                let data: Vec<u8> =
                    (0..length as u64).map(|at| (at * 7 + seed * 31) as u8 | 1).collect();
                self.drive().write(at as u64, &data, rng.below(9) == 0).unwrap();
                self.bytes[range].copy_from_slice(&data);
            }
            10..13 => {
                let how = Zeroes { keep_space: rng.below(3) == 0, ..Zeroes::default() };
                self.drive().write_zeroes(at as u64, length as u64, how).unwrap();
                self.bytes[range].fill(0);
            }
            13 | 14 => {
                self.drive().trim(at as u64, length as u64, false).unwrap();
                self.bytes[range].fill(0);
            }
            15..20 => {
                let mut buf = vec![0x5a; length];
                self.drive().read(at as u64, &mut buf).unwrap();
                assert!(buf == self.bytes[range], "{length} bytes at {at}");
            }
            20 => self.extents(at, length),
            21 => self.drive().flush().unwrap(),
            22 => self.reopen(rng.below(2) == 0),
            _ => self.snapshot(),
        }
    }

    fn extents(&self, at: usize, length: usize) {
        let mut found: Vec<Extent> = Vec::new();
        self.drive().extents(at as u64, length as u64, 7, &mut found).unwrap();
        assert!(!found.is_empty() && found.len() <= 7);
        assert!(found.windows(2).all(|pair| pair[0].zero != pair[1].zero));
        let mut start = at;
        for extent in found {
            let end = start + extent.length as usize;
            assert!(end <= at + length);
            if extent.zero {
                assert!(self.bytes[start..end].iter().all(|byte| *byte == 0), "{start}..{end}");
            }
            start = end;
        }
    }

    /// Opens it again, after an orderly end or after none.
    fn reopen(&mut self, orderly: bool) {
        let drive = self.drive.take().unwrap();
        if orderly {
            drive.close(soon()).unwrap();
            assert!(notes(self.dir.path()).is_empty());
            assert!(drive.read(0, &mut [0]).is_err(), "a closed disk takes no requests");
            if self.plan.leaf.format == Format::Vhd {
                sound(&self.plan.leaf.path);
            }
        }
        // Dropping it does nothing that a kill would not do.
        assert_eq!(Arc::strong_count(&drive), 1);
        drop(drive);
        self.drive = Some(Drive::open(&self.plan, self.options.clone()).unwrap());
        self.compare();
    }

    fn snapshot(&mut self) {
        if self.plan.backing.len() > 5 || self.plan.leaf.format == Format::Raw {
            return;
        }
        let leaf = &self.plan.leaf.path;
        let uuid = vhd::image::probe(leaf).unwrap().uuid.as_u128();
        self.numbers += 1;
        let size = self.bytes.len() as u64;
        let new = new_image(self.dir.path(), self.numbers, size, Some((uuid, leaf)));
        let mut backing = self.plan.backing.clone();
        backing.insert(0, self.plan.leaf.clone());
        let plan = Plan { leaf: layer(&new, Format::Vhd), backing, read_only: false };
        let prepared = self.drive().prepare(&plan).unwrap();
        let paused = self.drive().pause(soon()).unwrap();
        let old = std::fs::read(leaf).unwrap();
        paused.replace(prepared).unwrap();
        drop(paused);
        self.drive().write(5, &[1; 3], true).unwrap();
        self.bytes[5..8].fill(1);
        assert!(std::fs::read(leaf).unwrap() == old, "the old leaf is written to");
        self.plan = plan;
    }

    fn compare(&self) {
        let mut buf = vec![0x5a; self.bytes.len()];
        self.drive().read(0, &mut buf).unwrap();
        if buf != self.bytes {
            let at = buf.iter().zip(&self.bytes).position(|(got, want)| got != want).unwrap();
            panic!("byte {at} is {}, not {}", buf[at], self.bytes[at]);
        }
    }

    fn run(mut self, steps: u64, rng: &mut Rng) {
        self.compare();
        for _ in 0..steps {
            self.step(rng);
        }
        self.compare();
        self.drive().close(soon()).unwrap();
        // By the code that does not know of disks in use.
        let layers: Vec<_> = self
            .plan
            .layers()
            .map(|layer| match layer.format {
                Format::Vhd => vhd::Layer::Vhd(&layer.path),
                Format::Raw => vhd::Layer::Raw(&layer.path),
            })
            .collect();
        let chain = vhd::Chain::open(&layers, vhd::Mode::Read).unwrap();
        let mut buf = vec![0; self.bytes.len()];
        vhd::Disk::read_at(&chain, 0, &mut buf).unwrap();
        assert!(buf == self.bytes);
    }
}

fn specs(rng: &mut Rng, dir: &Path) -> (Plan, Vec<u8>) {
    let blocks = [4096_u32, 64 << 10, 512 << 10, 2 << 20, 4 << 20];
    let block = |rng: &mut Rng| blocks[rng.below(5) as usize];
    // Bottom up: each level at least as large as the one below.
    let mut size = (4 << 20) + rng.below(3) * 4096 + rng.below(9) * 512;
    let depth = 1 + rng.below(3);
    let mut paths = Vec::new();
    let mut bytes = Vec::new();
    let mut below: Option<Spec> = None;
    for level in 0..depth {
        let base = Spec { size, uuid: 50 + u128::from(level), ..Spec::default() };
        let mut spec = base.block(block(rng));
        match rng.below(4) {
            0 => (spec.creator, spec.version) = (*b"tap\0", 1),
            1 => {
                (spec.creator, spec.version) = (*b"tap\0", 0x0001_0003);
                spec.batmap = Some(Batmap::of(&[]));
            }
            _ => {}
        }
        if let Some(below) = &below {
            spec = spec.child_of(below, &format!("{}.vhd", level - 1));
        }
        let reversed = &spec.creator == b"tap\0" && spec.version == 1;
        bytes.resize(size as usize, 0);
        for index in 0..size / u64::from(spec.block) {
            if rng.below(3) == 0 {
                continue;
            }
            // Data in the first 4096 bytes of a block, some of it present.
            let mut map = vec![0; crate::build::bitmap_len(spec.block)];
            let fill = rng.below(255) as u8 + 1;
            for sector in 0..8_usize {
                if rng.below(3) > 0 {
                    map[0] |= if reversed { 1 << sector } else { 0x80 >> sector };
                    let at = (index * u64::from(spec.block)) as usize + sector * 512;
                    bytes[at..at + 512].fill(fill);
                }
            }
            spec.blocks.push((index as usize, map, fill));
        }
        paths.insert(0, spec.write(&dir.join(format!("{level}.vhd"))));
        size += rng.below(3) * 512 * (1 + rng.below(5000));
        below = Some(spec);
    }
    (plan(&paths), bytes)
}

fn steps(default: u64) -> u64 {
    std::env::var("DISK_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn chains_of_any_images_hold_what_was_written() {
    let mut rng = Rng::any();
    for _ in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let (plan, bytes) = specs(&mut rng, dir.path());
        Model::new(dir, plan, bytes, false).run(steps(70), &mut rng);
    }
}

#[test]
fn so_they_do_past_the_page_cache() {
    let mut rng = Rng::any();
    for round in 0..6 {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (plan, bytes) = if round % 2 == 0 {
            specs(&mut rng, dir.path())
        } else {
            let base = new_image(dir.path(), 1, 8 << 20, None);
            let leaf = new_image(dir.path(), 2, 8 << 20, Some((1, &base)));
            (plan(&[leaf, base]), vec![0; 8 << 20])
        };
        let model = Model::new(dir, plan, bytes, true);
        assert!(model.drive().is_direct(), "the file system of the target directory cannot do it");
        model.run(steps(70), &mut rng);
    }
}

#[test]
fn raw_files_and_fixed_images_and_what_is_based_on_them() {
    let mut rng = Rng::any();
    let fill = |path: &Path, size: usize| {
        let bytes: Vec<u8> = (0..size).map(|at| (at / 300) as u8).collect();
        std::fs::write(path, &bytes).unwrap();
        bytes
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.raw");
    let bytes = fill(&path, (3 << 20) + 77);
    let raw = Plan { leaf: layer(&path, Format::Raw), backing: Vec::new(), read_only: false };
    Model::new(dir, raw, bytes, false).run(steps(100), &mut rng);

    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("x.raw");
    let bytes = fill(&path, (3 << 20) + 77);
    let raw = Plan { leaf: layer(&path, Format::Raw), backing: Vec::new(), read_only: false };
    Model::new(dir, raw, bytes, true).run(steps(100), &mut rng);

    // A raw parent of an odd length.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.raw");
    let mut bytes = fill(&path, (3 << 20) + 77);
    let leaf = new_image(dir.path(), 1, 8 << 20, Some((0, &path)));
    bytes.resize(8 << 20, 0);
    let mut chain = plan(&[leaf]);
    chain.backing.push(layer(&path, Format::Raw));
    Model::new(dir, chain, bytes, false).run(steps(100), &mut rng);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fixed.vhd");
    let uuid = uuid::Uuid::from_u128(9);
    drop(vhd::image::create_fixed(&path, uuid, 4 << 20).unwrap());
    Model::new(dir, plan(&[path]), vec![0; 4 << 20], false).run(steps(100), &mut rng);
}
