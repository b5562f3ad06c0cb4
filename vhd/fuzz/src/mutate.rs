//! Changes to inputs that know the format: a field of the footer becomes a value that matters, an
//! entry of a block table becomes that of another block, a file names another as its parent.

use crate::input::{FILES, File, Input, PIECE, PIECES};

/// Position and bytes of the fields of a footer.
const FOOTER: &[(usize, usize)] = &[
    (0, 8),
    (8, 4),
    (12, 4),
    (16, 8),
    (24, 4),
    (28, 4),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 4),
    (68, 8),
    (76, 8),
    (84, 1),
    (85, 1),
    (200, 4),
];

/// Those of a dynamic header, of which three are in each locator.
const HEADER: &[(usize, usize)] = &[
    (0, 8),
    (8, 8),
    (16, 8),
    (24, 4),
    (28, 4),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (64, 2),
    (66, 2),
    (576, 4),
    (580, 4),
    (584, 4),
    (592, 8),
    (600, 4),
    (604, 4),
    (608, 4),
    (616, 8),
    (624, 4),
    (628, 4),
    (632, 4),
    (640, 8),
    (744, 4),
    (748, 4),
    (752, 4),
    (760, 8),
];

/// Those of a batmap's header.
const BATMAP: &[(usize, usize)] = &[(0, 8), (8, 8), (16, 4), (20, 4), (24, 4)];

/// Numbers that mean something somewhere in the format.
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    32,
    255,
    256,
    511,
    512,
    513,
    1023,
    1024,
    1536,
    2048,
    4095,
    4096,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x1_0001,
    0x1_0002,
    0x1_0003,
    1 << 19,
    1 << 20,
    1 << 21,
    1 << 28,
    1 << 29,
    0x7fff_ffff,
    0x8000_0000,
    0xff00_0000,
    0xffff_fffe,
    0xffff_ffff,
    0x1_0000_0000,
    0xff00_0000 * 512,
    0xff00_0000 * 512 + 512,
    1 << 40,
    1 << 43,
    1 << 50,
    1 << 63,
    u64::MAX - 511,
    u64::MAX - 1,
    u64::MAX,
];

/// Words that mean something.
const WORDS: &[&[u8]] = &[
    b"conectix",
    b"v_poison",
    b"cxsparse",
    b"tdbatmap",
    b"tap\0",
    b"win ",
    b"vpc ",
    b"qemu",
    b"MacX",
    b"W2ku",
    b"W2ru",
    b"Wi2r",
    b"file://./",
    b"file://",
    b"../",
    b".\0\\\0",
];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit.max(1)
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        list.get(self.below(list.len()))
    }
}

/// Changes an input in one to four places. `bytes` changes bytes without knowing what they are.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    bytes: &mut dyn FnMut(&mut [u8]),
) -> usize {
    let mut random =
        Random((u64::from(seed) << 20 | 0x9_e377).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut input = Input::decode(&data[..size]);
    for _ in 0..=random.below(4) {
        change(&mut input, &mut random, bytes);
    }
    let encoded = input.encode();
    if encoded.len() > max_size {
        return size;
    }
    data[..encoded.len()].copy_from_slice(&encoded);
    encoded.len()
}

fn change(input: &mut Input, random: &mut Random, bytes: &mut dyn FnMut(&mut [u8])) {
    if input.files.is_empty() {
        input.files.push(File::default());
    }
    let chosen = random.below(input.files.len());
    match random.below(32) {
        0 => input.control = random.next() as u8,
        1 => input.files[chosen].fixes ^= 1 << random.below(5),
        2 if input.files.len() < FILES => {
            let copy = input.files[chosen].clone();
            input.files.push(copy);
        }
        3 if input.files.len() > 1 => drop(input.files.remove(chosen)),
        4 => {
            let other = random.below(input.files.len());
            input.files.swap(chosen, other);
        }
        5..=7 => relate(input, random),
        8..=10 => resize(&mut input.files[chosen], random),
        11 | 12 => pieces(&mut input.files[chosen], random),
        13..=17 => table(&mut input.files[chosen], random),
        18..=25 => field(&mut input.files[chosen], random),
        _ => {
            let file = &mut input.files[chosen];
            let count = file.pieces.len();
            if let Some((_, piece)) = file.pieces.get_mut(random.below(count)) {
                let at = random.below(piece.len());
                let end = (at + 1 + random.below(64)).min(piece.len());
                match random.below(4) {
                    0 => {
                        let word = random.of(WORDS).copied().unwrap_or_default();
                        if let Some(place) = piece.get_mut(at..at + word.len()) {
                            place.copy_from_slice(word);
                        }
                    }
                    1 => bytes(piece),
                    _ => bytes(&mut piece[at..end]),
                }
            }
        }
    }
}

fn find<'a>(file: &'a mut File, cookie: &[u8], random: &mut Random) -> Option<&'a mut [u8]> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (index, (_, piece)) in file.pieces.iter().enumerate() {
        let starts = piece.chunks(512).enumerate().filter(|(_, chunk)| chunk.starts_with(cookie));
        found.extend(starts.map(|(chunk, _)| (index, chunk * 512)));
    }
    let (piece, at) = *random.of(&found)?;
    file.pieces.get_mut(piece).and_then(|(_, piece)| piece.get_mut(at..))
}

fn number(random: &mut Random, file_length: u64, was: u64) -> u64 {
    match random.below(8) {
        0 => was.wrapping_add(random.below(5) as u64).wrapping_sub(2),
        1 => was.wrapping_add(512),
        2 => was.wrapping_sub(512),
        3 => was << random.below(4) >> random.below(4),
        4 => file_length.wrapping_sub(512 * random.below(5) as u64),
        5 => file_length / 512 - random.below(5).min((file_length / 512) as usize) as u64,
        _ => random.of(NUMBERS).copied().unwrap_or_default(),
    }
}

fn read(bytes: &[u8], at: usize, width: usize) -> u64 {
    let part = bytes.get(at..at + width).unwrap_or_default();
    part.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn write(bytes: &mut [u8], at: usize, width: usize, value: u64) {
    if let Some(part) = bytes.get_mut(at..at + width) {
        part.copy_from_slice(&value.to_be_bytes()[8 - width..]);
    }
}

fn field(file: &mut File, random: &mut Random) {
    let length = file.length;
    let (cookie, fields): (&[u8], _) = match random.below(8) {
        0..=3 => (b"conectix", FOOTER),
        4..=6 => (b"cxsparse", HEADER),
        _ => (b"tdbatmap", BATMAP),
    };
    let Some(found) = find(file, cookie, random) else { return };
    let Some((at, width)) = random.of(fields).copied() else { return };
    let was = read(found, at, width);
    let value = if random.below(6) == 0 {
        let other = random.of(fields).copied().unwrap_or((0, 1));
        read(found, other.0, other.1)
    } else {
        number(random, length, was)
    };
    write(found, at, width, value);
}

/// Changes an entry of the block table, where the header says that it is.
fn table(file: &mut File, random: &mut Random) {
    let length = file.length;
    let Some(header) = find(file, b"cxsparse", random) else { return };
    let (at, entries, block) = (read(header, 16, 8), read(header, 28, 4), read(header, 32, 4));
    let near = file
        .pieces
        .iter_mut()
        .find(|(start, piece)| at >= *start && at < start.saturating_add(piece.len() as u64));
    let Some((start, piece)) = near else { return };
    let within = (at - *start) as usize;
    let entries = (entries as usize).min((piece.len() - within) / 4);
    let entry = within + 4 * random.below(entries);
    let other = within + 4 * random.below(entries.min(8));
    let (was, other) = (read(piece, entry, 4), read(piece, other, 4));
    let value = match random.below(8) {
        0 => u64::from(u32::MAX),
        1 => other,
        2 => other.wrapping_add(block / 512),
        3 => other.wrapping_add(block / 512 + (block / 4096).div_ceil(512)),
        4 => (length / 512).wrapping_sub(random.below(20) as u64),
        5 => (length / 512).wrapping_sub(block / 512 + 2),
        _ => number(random, length, was),
    };
    write(piece, entry, 4, value);
}

/// Makes a file longer or shorter, often with its last piece, the footer, at the new end.
fn resize(file: &mut File, random: &mut Random) {
    let was = file.length;
    file.length = match random.below(6) {
        0 => was.wrapping_sub(1),
        1 => was.saturating_sub(512 * (1 + random.below(16) as u64)),
        2 => was.saturating_add(512 * (1 + random.below(16) as u64)),
        3 => file.pieces.get(random.below(file.pieces.len())).map_or(0, |(at, _)| *at),
        4 => was.saturating_add(1 << (9 + random.below(34))),
        _ => was.saturating_add(2 << 20),
    };
    if random.below(3) > 0
        && let Some((at, piece)) = file.pieces.last_mut()
    {
        *at = file.length.saturating_sub(piece.len() as u64) / 512 * 512;
    }
}

fn pieces(file: &mut File, random: &mut Random) {
    let chosen = random.below(file.pieces.len());
    let Some((at, piece)) = file.pieces.get(chosen).cloned() else { return };
    match random.below(4) {
        0 => drop(file.pieces.remove(chosen)),
        1 if file.pieces.len() < PIECES => {
            let moved = at.wrapping_add(512 * random.below(4096) as u64);
            file.pieces.push((moved, piece));
        }
        2 if file.pieces.len() < PIECES => {
            let bytes = vec![random.next() as u8; 512 * (1 + random.below(PIECE / 512))];
            let place = random.of(NUMBERS).copied().unwrap_or_default();
            file.pieces.insert(chosen, (place.min(file.length) / 512 * 512, bytes));
        }
        _ => file.pieces[chosen].0 = number(random, file.length, at),
    }
}

/// Makes one file name another, or itself, as its parent, or be another's twin.
fn relate(input: &mut Input, random: &mut Random) {
    let count = input.files.len();
    let (from, to) = (random.below(count), random.below(count));
    let Some(uuid) = find(&mut input.files[to], b"conectix", random)
        .and_then(|footer| footer.get(68..84))
        .map(<[u8]>::to_vec)
    else {
        return;
    };
    if random.below(4) == 0 {
        if let Some(place) =
            find(&mut input.files[from], b"conectix", random).and_then(|f| f.get_mut(68..84))
        {
            place.copy_from_slice(&uuid);
        }
        return;
    }
    if let Some(header) = find(&mut input.files[from], b"cxsparse", random)
        && let Some(place) = header.get_mut(40..56)
    {
        place.copy_from_slice(&uuid);
    }
}
