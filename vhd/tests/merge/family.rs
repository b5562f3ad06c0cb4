//! Random images, and what they read as.

use vhd::bits;

use crate::SECTOR;
use crate::common::{Content, Random, Spec, bitmap_len};
use crate::memory::Memory;

/// An image of random content, and what it holds.
pub(crate) struct Made {
    pub(crate) spec: Spec,
    pub(crate) file: Content,
    /// Per sector of the disk, what the file holds.
    pub(crate) sectors: Vec<Option<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Fixed,
    Dynamic,
    Reversed,
}

pub(crate) const BLOCKS: [u32; 8] = [512, 1024, 4096, 8192, 64 << 10, 512 << 10, 2 << 20, 4 << 20];

pub(crate) fn bitmap(random: &mut Random, sectors: u64) -> Vec<u8> {
    let mut map = vec![0; bitmap_len((sectors * SECTOR) as u32)];
    match random.below(6) {
        0 => {}
        1 | 2 => map.fill(0xff),
        3 => map.fill(0xaa),
        4 => map.iter_mut().for_each(|byte| *byte = random.next() as u8),
        _ => {
            for _ in 0..=random.below(5) {
                let start = random.below(sectors);
                let length = 1 + random.below(sectors - start);
                bits::set(&mut map, start, if random.below(2) == 0 { length } else { 8 });
            }
        }
    }
    map
}

/// Sectors are filled with one byte each; every tenth with zeros, which are data too.
pub(crate) fn make(
    random: &mut Random,
    id: u128,
    kind: Kind,
    size: u64,
    parent: Option<&Spec>,
) -> Made {
    let limit = (size * 2).clamp(512, 4 << 20);
    let fitting: Vec<u32> = BLOCKS.into_iter().filter(|b| u64::from(*b) <= limit).collect();
    // At most some hundred blocks.
    let least = size / 300;
    let fitting: Vec<u32> = fitting.into_iter().filter(|b| u64::from(*b) >= least).collect();
    let block = fitting[random.below(fitting.len() as u64) as usize];
    let mut spec = Spec { size, uuid: id, kind: 3, ..Spec::default() };
    match kind {
        Kind::Fixed => spec.kind = 2,
        Kind::Dynamic => {}
        Kind::Reversed => (spec.creator, spec.version) = (*b"tap\0", 1),
    }
    let blocks = size.div_ceil(u64::from(block)) as usize;
    spec = spec.block(block);
    spec = spec.entries((blocks as u64 + random.below(3)) as u32);
    if let Some(parent) = parent {
        spec = spec.child_of(parent, "parent.vhd");
    }
    let all = (size / SECTOR) as usize;
    let byte = |random: &mut Random| {
        if random.below(10) == 0 { 0 } else { 1 + random.below(250) as u8 }
    };
    if kind == Kind::Fixed {
        let mut file = spec.content();
        let sectors: Vec<_> = (0..all).map(|_| Some(byte(random))).collect();
        for (index, sector) in sectors.iter().enumerate() {
            file.put(index as u64 * SECTOR, &[sector.unwrap(); 512]);
        }
        return Made { spec, file, sectors };
    }
    let per_block = u64::from(block) / SECTOR;
    let mut sectors = vec![None; all];
    let mut maps = Vec::new();
    for index in 0..blocks {
        if random.below(3) > 0 {
            let mut map = bitmap(random, per_block);
            // Bits behind the end of the disk would show when it grows.
            let inside = (all as u64).saturating_sub(index as u64 * per_block);
            for sector in inside..map.len() as u64 * 8 {
                map[sector as usize / 8] &= !(0x80 >> (sector % 8));
            }
            let stored = match kind {
                Kind::Reversed => map.iter().map(|byte| byte.reverse_bits()).collect(),
                _ => map.clone(),
            };
            let place = random.below(maps.len() as u64 + 1) as usize;
            spec.blocks.insert(place, (index, stored, 0));
            maps.push((index, map));
        }
    }
    let mut file = spec.content();
    for (index, map) in maps {
        let entry = file.bytes(spec.bat_offset + index as u64 * 4, 4);
        let start = u64::from(u32::from_be_bytes(entry.try_into().unwrap())) * SECTOR;
        let data = start + bitmap_len(block) as u64;
        let run = byte(random);
        let plain = random.below(2) == 0;
        for sector in 0..per_block {
            let number = index as u64 * per_block + sector;
            let held = bits::get(&map, sector);
            // What no bit speaks for must never be read.
            let fill = if !held {
                if parent.is_some() { 0xee } else { 0 }
            } else if plain {
                run
            } else {
                byte(random)
            };
            file.put(data + sector * SECTOR, &[fill; 512]);
            if held && number < all as u64 {
                sectors[number as usize] = Some(fill);
            }
        }
    }
    Made { spec, file, sectors }
}

/// A child, its parent and perhaps that one's parent.
pub(crate) struct Family {
    pub(crate) made: Vec<Made>,
}

impl Family {
    pub(crate) fn random(random: &mut Random, most: u64) -> Self {
        let sizes: Vec<u64> = {
            let mut sizes: Vec<u64> =
                (0..3).map(|_| SECTOR * (1 + random.below(most / SECTOR))).collect();
            sizes.sort_unstable();
            sizes
        };
        let kind = |random: &mut Random| {
            if random.below(4) == 0 { Kind::Reversed } else { Kind::Dynamic }
        };
        let mut made: Vec<Made> = Vec::new();
        let root = if random.below(4) == 0 { Kind::Fixed } else { kind(random) };
        made.push(make(random, 1, root, sizes[0], None));
        let levels = 2 + random.below(2) as usize;
        for (level, size) in sizes.iter().enumerate().take(levels).skip(1) {
            let kind = kind(random);
            let below = made.first().map(|made| made.spec.clone());
            made.insert(0, make(random, level as u128 + 1, kind, *size, below.as_ref()));
        }
        Self { made }
    }

    /// What the disk reads as.
    pub(crate) fn model(&self) -> Vec<u8> {
        let mut sectors = vec![0; self.made[0].sectors.len()];
        for made in self.made.iter().rev() {
            for (to, held) in sectors.iter_mut().zip(&made.sectors) {
                *to = held.unwrap_or(*to);
            }
            // A child larger than its parent reads zeros behind it.
        }
        sectors.iter().flat_map(|byte| [*byte; 512]).collect()
    }

    pub(crate) fn files(&self) -> Vec<Memory> {
        let files = self.made.iter().zip(1..);
        files.map(|(made, id)| Memory::new(id, made.file.clone())).collect()
    }
}
