//! The small things of a store (what is said about disks, records of operations, who has a disk
//! open) in one volume, as a log.
//!
//! ```text
//! 0        slots       for each right, 64 slots of 4 KiB, one for each host, see `lease`
//! 512 KiB  half A      head, then records one behind the other
//! ...      half B      the same
//! ```
//!
//! A head tells the generation of its half; the half with the higher one counts. A record is in whole
//! sectors, has a number and a checksum, and is durable before the call that wrote it returns. The first
//! one that is none ends the log: its write was cut, and whoever wrote it was not told that it was
//! done. When a half is full, what there is at that time is written to the other one, which counts
//! from when its head is there.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vhd::store::{Area, At, Blob};

use crate::lease::{HOSTS, Right, SLOT};

/// Bytes of a sector, in which records are counted.
const SECTOR: u64 = 512;
/// Where the first half begins.
const HALVES: u64 = Right::COUNT * (HOSTS * SLOT) as u64;
/// Bytes of a half's head.
const HEAD: u64 = 4096;
/// Bytes of a record before its payload.
const PREFIX: usize = 48;
/// Begins a head.
const HEAD_MAGIC: &[u8; 8] = b"SMOBJECT";
/// Begins a record.
const RECORD_MAGIC: &[u8; 8] = b"SMRECORD";
/// Version of all this; a volume with another one is not touched.
const VERSION: u64 = 2;
/// Read at once.
const CHUNK: u64 = 256 << 10;
/// Bytes of a new volume: two halves of 3.75 MiB, for some 4,000 disks.
pub(crate) const VOLUME: u64 = 8 << 20;

/// A change of what there is. What is written of a thing follows behind it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// A thing is there, with this content.
    Set(u8, String),
    /// It is gone.
    Remove(u8, String),
    /// It has another name, in place of what had it.
    Rename((u8, String), (u8, String)),
    /// Volumes are about to change.
    Tick,
}

/// A thing's place in the log's own words.
pub(crate) fn key(at: &At) -> (u8, String) {
    let area = Area::ALL.iter().position(|area| *area == at.area).unwrap_or_default();
    (area as u8, at.name.clone())
}

type Things = BTreeMap<(u8, String), Arc<Vec<u8>>>;

/// The log, as far as it was read.
pub(crate) struct Objects {
    blob: Box<dyn Blob>,
    /// Bytes of a half.
    half: u64,
    /// Which half counts.
    current: u64,
    generation: u64,
    /// The number of the last record.
    sequence: u64,
    /// Where in the half the next record goes.
    end: u64,
    things: Things,
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the store's log is damaged: {what}"))
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..at + 8).and_then(|field| field.try_into().ok());
    field.map_or(0, u64::from_le_bytes)
}

fn digest(parts: &[&[u8]]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    let whole = hash.finalize();
    let mut short = [0; 16];
    short.copy_from_slice(whole.get(..16).unwrap_or(&[0; 16]));
    short
}

fn head(generation: u64) -> Vec<u8> {
    let mut bytes = HEAD_MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(generation.to_le_bytes());
    let sum = digest(&[&bytes]);
    bytes.extend(sum);
    bytes.resize(SECTOR as usize, 0);
    bytes
}

/// The generation of a head; none if it is none.
fn parse_head(bytes: &[u8]) -> io::Result<Option<u64>> {
    let (body, sum) = (bytes.get(..24).unwrap_or_default(), bytes.get(24..40).unwrap_or_default());
    if !body.starts_with(HEAD_MAGIC) || digest(&[body]) != sum {
        return Ok(None);
    }
    if number(body, 8) != VERSION {
        return Err(io::Error::new(ErrorKind::Unsupported, "the store is of a later release"));
    }
    Ok(Some(number(body, 16)))
}

/// A generation after another one that no volume has seen: what an earlier log, or a cut move to the
/// other half, has left is never taken for records of this one.
fn fresh(before: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    now.max(before + 1)
}

/// A record: its prefix, the change, and what is written of a thing; in whole sectors.
fn encode(generation: u64, sequence: u64, change: &Change, content: &[u8]) -> io::Result<Vec<u8>> {
    let words = serde_json::to_vec(change).map_err(io::Error::other)?;
    let mut bytes = RECORD_MAGIC.to_vec();
    bytes.extend(generation.to_le_bytes());
    bytes.extend(sequence.to_le_bytes());
    bytes.extend((words.len() as u32).to_le_bytes());
    bytes.extend((content.len() as u32).to_le_bytes());
    let sum = digest(&[&bytes, &words, content]);
    bytes.extend(sum);
    bytes.extend(words);
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
    Ok(bytes)
}

/// The record at the start of some bytes.
enum Read {
    /// There is none.
    None,
    /// As many bytes are needed to tell.
    More(u64),
    /// Its number, the change, the content, and its length.
    Record(u64, Change, Vec<u8>, u64),
}

fn decode(bytes: &[u8], generation: u64) -> Read {
    let Some(prefix) = bytes.get(..PREFIX) else { return Read::More(SECTOR) };
    if !prefix.starts_with(RECORD_MAGIC) || number(prefix, 8) != generation {
        return Read::None;
    }
    let lengths = number(prefix, 24);
    let (words, content) = ((lengths & 0xffff_ffff) as usize, (lengths >> 32) as usize);
    let length = PREFIX + words + content;
    let Some(whole) = bytes.get(..length) else { return Read::More(length as u64) };
    let (words, content) = whole.split_at(PREFIX + words);
    let words = words.get(PREFIX..).unwrap_or_default();
    let front = prefix.get(..32).unwrap_or_default();
    if prefix.get(32..) != Some(&digest(&[front, words, content])[..]) {
        return Read::None;
    }
    match serde_json::from_slice(words) {
        Ok(change) => {
            let length = (length as u64).next_multiple_of(SECTOR);
            Read::Record(number(prefix, 16), change, content.to_vec(), length)
        }
        Err(_) => Read::None,
    }
}

impl Objects {
    /// Makes an empty log of a volume.
    pub(crate) fn format(blob: &dyn Blob) -> io::Result<()> {
        let length = blob.stat()?.length;
        let half = half_of(length)?;
        // Whatever the volume's last owner has left there is neither a host's turn nor a head.
        blob.write_at(&vec![0; HALVES as usize], 0)?;
        blob.write_at(&vec![0; HEAD as usize], HALVES + half)?;
        blob.write_at(&head(fresh(0)), HALVES)?;
        blob.sync()
    }

    /// Reads a log.
    pub(crate) fn open(blob: Box<dyn Blob>) -> io::Result<Self> {
        let half = half_of(blob.stat()?.length)?;
        let mut objects = Self {
            blob,
            half,
            current: 0,
            generation: 0,
            sequence: 0,
            end: HEAD,
            things: Things::new(),
        };
        objects.refresh()?;
        Ok(objects)
    }

    /// Takes in what others have written since. Whether there was anything.
    pub(crate) fn refresh(&mut self) -> io::Result<bool> {
        let before = self.stamp();
        let mut newest = None;
        for index in [0, 1] {
            let mut bytes = [0; SECTOR as usize];
            read(&*self.blob, &mut bytes, HALVES + index * self.half)?;
            let generation = parse_head(&bytes)?;
            newest = newest.max(generation.map(|generation| (generation, index)));
        }
        let Some((generation, index)) = newest else { return Err(damaged("it has no head")) };
        if generation != self.generation {
            (self.generation, self.current) = (generation, index);
            (self.sequence, self.end) = (0, HEAD);
            self.things.clear();
        }
        self.follow()?;
        Ok(before != self.stamp())
    }

    /// Reads the records from where the last reading ended.
    fn follow(&mut self) -> io::Result<()> {
        let base = HALVES + self.current * self.half;
        let mut buffer: Vec<u8> = Vec::new();
        let mut want = CHUNK.min(8192);
        loop {
            let have = buffer.len() as u64;
            match decode(&buffer, self.generation) {
                Read::Record(sequence, change, content, length)
                    if sequence == self.sequence + 1 =>
                {
                    self.take(change, content);
                    (self.sequence, self.end) = (sequence, self.end + length);
                    buffer.drain(..buffer.len().min(length as usize));
                }
                Read::More(needed) if have < needed => {
                    let left = (self.half - self.end).saturating_sub(have);
                    if left == 0 || needed > have + left {
                        return Ok(());
                    }
                    let count = want.max(needed - have).next_multiple_of(SECTOR).min(left);
                    want = CHUNK;
                    let start = buffer.len();
                    buffer.resize(start + count as usize, 0);
                    let tail = buffer.get_mut(start..).unwrap_or_default();
                    read(&*self.blob, tail, base + self.end + have)?;
                }
                _ => break,
            }
        }
        // A write that was cut is the last one. One behind it means that this one is damaged.
        let behind = buffer.chunks(SECTOR as usize).enumerate().skip(1).any(|(index, _)| {
            let rest = buffer.get(index * SECTOR as usize..).unwrap_or_default();
            matches!(decode(rest, self.generation), Read::Record(n, ..) if n > self.sequence)
        });
        if behind { Err(damaged("a record in the middle cannot be read")) } else { Ok(()) }
    }

    fn take(&mut self, change: Change, content: Vec<u8>) {
        match change {
            Change::Set(area, name) => drop(self.things.insert((area, name), Arc::new(content))),
            Change::Remove(area, name) => drop(self.things.remove(&(area, name))),
            Change::Rename(from, to) => {
                if let Some(thing) = self.things.remove(&from) {
                    self.things.insert(to, thing);
                }
            }
            Change::Tick => {}
        }
    }

    /// Differs whenever something was written.
    pub(crate) fn stamp(&self) -> (u64, u64) {
        (self.generation, self.sequence)
    }

    pub(crate) fn get(&self, key: &(u8, String)) -> Option<Arc<Vec<u8>>> {
        self.things.get(key).cloned()
    }

    pub(crate) fn names(&self, area: u8) -> Vec<String> {
        self.things.keys().filter(|key| key.0 == area).map(|key| key.1.clone()).collect()
    }

    /// Writes a change, durably. What others have written has been taken in, and nobody else writes
    /// meanwhile.
    pub(crate) fn write(&mut self, change: Change, content: &[u8]) -> io::Result<()> {
        let record = encode(self.generation, self.sequence + 1, &change, content)?;
        if self.end + record.len() as u64 > self.half {
            self.move_over(change, content)?;
            return Ok(());
        }
        self.blob.write_at(&record, HALVES + self.current * self.half + self.end)?;
        self.blob.sync()?;
        self.end += record.len() as u64;
        self.sequence += 1;
        self.take(change, content.to_vec());
        Ok(())
    }

    /// Writes what there is after a change to the other half.
    fn move_over(&mut self, change: Change, content: &[u8]) -> io::Result<()> {
        let before = self.things.clone();
        let adds = matches!(change, Change::Set(..));
        self.take(change, content.to_vec());
        // Room for some more, or each change would move all of it; but what gives room always can.
        let most = if adds { self.half / 8 * 7 } else { self.half };
        let written = self.write_all(most);
        if written.is_err() {
            self.things = before;
        }
        written
    }

    /// Writes all there is to the other half. What a host that is gone may still write lands where it
    /// does not count any more.
    pub(crate) fn leave_half(&mut self) -> io::Result<()> {
        self.write_all(self.half)
    }

    fn write_all(&mut self, most: u64) -> io::Result<()> {
        let (generation, other) = (fresh(self.generation), 1 - self.current);
        let mut bytes = Vec::new();
        for (index, ((area, name), content)) in self.things.iter().enumerate() {
            let set = Change::Set(*area, name.clone());
            bytes.extend(encode(generation, index as u64 + 1, &set, content)?);
        }
        if HEAD + bytes.len() as u64 > most {
            return Err(io::Error::new(ErrorKind::StorageFull, "the store's log is full"));
        }
        let base = HALVES + other * self.half;
        // A head of a generation before the last, which must not count with records of this one.
        self.blob.write_at(&[0; SECTOR as usize], base)?;
        self.blob.sync()?;
        self.blob.write_at(&bytes, base + HEAD)?;
        self.blob.sync()?;
        self.blob.write_at(&head(generation), base)?;
        self.blob.sync()?;
        (self.generation, self.current) = (generation, other);
        (self.sequence, self.end) = (self.things.len() as u64, HEAD + bytes.len() as u64);
        Ok(())
    }
}

fn half_of(length: u64) -> io::Result<u64> {
    let half = length.saturating_sub(HALVES) / 2 / HEAD * HEAD;
    if half < 4 * HEAD { Err(damaged("its volume is too short")) } else { Ok(half) }
}

fn read(blob: &dyn Blob, buf: &mut [u8], offset: u64) -> io::Result<()> {
    if blob.read_at(buf, offset)? == buf.len() {
        return Ok(());
    }
    Err(ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn volume(length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        // As its last owner left it.
        file.write_at(&vec![0xa5; length as usize], 0).unwrap();
        Objects::format(&file).unwrap();
        file
    }

    fn open(file: &File) -> io::Result<Objects> {
        Objects::open(Box::new(file.try_clone().unwrap()))
    }

    fn set(objects: &mut Objects, name: &str, content: &[u8]) {
        objects.write(Change::Set(1, name.to_owned()), content).unwrap();
    }

    fn content(objects: &Objects) -> BTreeMap<String, Vec<u8>> {
        let names = objects.names(1);
        names.into_iter().map(|n| (n.clone(), objects.get(&(1, n)).unwrap().to_vec())).collect()
    }

    #[test]
    fn what_was_written_is_there_for_everybody_through_many_halves() {
        let file = volume(HALVES + (256 << 10));
        let (mut writer, mut reader) = (open(&file).unwrap(), open(&file).unwrap());
        let (first, mut expected) = (writer.stamp().0, BTreeMap::new());
        for round in 0..2000_u32 {
            let name = format!("n{}", round % 7);
            match round % 5 {
                3 => {
                    writer.write(Change::Remove(1, name.clone()), b"").unwrap();
                    expected.remove(&name);
                }
                4 => {
                    let to = format!("n{}", (round + 3) % 7);
                    let change = Change::Rename((1, name.clone()), (1, to.clone()));
                    writer.write(change, b"").unwrap();
                    if let Some(content) = expected.remove(&name) {
                        expected.insert(to, content);
                    }
                }
                _ => {
                    let bytes = vec![round as u8; (round % 1500) as usize];
                    set(&mut writer, &name, &bytes);
                    expected.insert(name, bytes);
                }
            }
            if round % 13 == 0 {
                assert!(reader.refresh().unwrap());
                assert_eq!(content(&reader), expected, "{round}");
                assert_eq!(reader.stamp(), writer.stamp());
                assert!(!reader.refresh().unwrap());
            }
        }
        assert_ne!(writer.stamp().0, first, "it never moved over");
        assert_eq!(content(&open(&file).unwrap()), expected);
    }

    /// Whatever part of a record's sectors arrived, the log is as before or as after.
    #[test]
    fn a_cut_write_is_as_if_it_had_not_been() {
        for (sectors, arrived) in [(1, 0), (3, 1), (3, 2), (5, 4), (3, 3)] {
            let file = volume(HALVES + (256 << 10));
            let mut objects = open(&file).unwrap();
            set(&mut objects, "a", b"before");
            let at = HALVES + objects.end;
            let bytes = vec![7; (sectors - 1) * 512 + 100];
            let change = Change::Set(1, "a".to_owned());
            let record = encode(objects.generation, objects.sequence + 1, &change, &bytes).unwrap();
            assert_eq!(record.len(), sectors * 512);
            file.write_at(&record[..arrived * 512], at).unwrap();
            let mut again = open(&file).unwrap();
            let expected = if arrived == sectors { &bytes[..] } else { b"before" };
            assert_eq!(content(&again)["a"], expected);
            set(&mut again, "b", b"goes on");
            assert_eq!(content(&open(&file).unwrap())["b"], b"goes on");
        }
    }

    #[test]
    fn a_record_that_rots_is_damage_and_not_a_shorter_log() {
        let file = volume(HALVES + (256 << 10));
        let mut objects = open(&file).unwrap();
        for name in ["a", "b", "c"] {
            set(&mut objects, name, b"content");
        }
        file.write_at(&[0], HALVES + HEAD + 512 + 60).unwrap();
        let error = open(&file).err().unwrap();
        assert_eq!(
            error.to_string(),
            "the store's log is damaged: a record in the middle cannot be read"
        );
        file.write_at(&[0], HALVES).unwrap();
        let error = open(&file).err().unwrap();
        assert_eq!(error.to_string(), "the store's log is damaged: it has no head");
    }

    #[test]
    fn a_full_log_says_so_and_stays_as_it_is() {
        let file = volume(HALVES + (44 << 10));
        let mut objects = open(&file).unwrap();
        let mut count = 0;
        let error = loop {
            let change = Change::Set(1, format!("n{count}"));
            match objects.write(change, &[1; 900]) {
                Ok(()) => count += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert!(count > 5, "{count}");
        assert_eq!(content(&objects).len(), count);
        assert_eq!(content(&open(&file).unwrap()).len(), count);
        // What is removed makes room.
        for name in ["n0", "n1", "n2", "n3", "n4"] {
            objects.write(Change::Remove(1, name.to_owned()), b"").unwrap();
        }
        set(&mut objects, "new", b"content");
        assert_eq!(content(&open(&file).unwrap()).len(), count - 4);
    }

    #[test]
    fn what_a_host_that_is_gone_still_writes_counts_for_nobody() {
        let file = volume(HALVES + (256 << 10));
        let (mut gone, mut next) = (open(&file).unwrap(), open(&file).unwrap());
        set(&mut gone, "a", b"old");
        assert!(next.refresh().unwrap());
        next.leave_half().unwrap();
        set(&mut next, "b", b"new");
        // It was on its way, where the log was.
        set(&mut gone, "a", b"late");
        set(&mut gone, "c", b"late");
        let expected: BTreeMap<_, _> =
            [("a".to_owned(), b"old".to_vec()), ("b".to_owned(), b"new".to_vec())].into();
        assert_eq!(content(&open(&file).unwrap()), expected);
        next.refresh().unwrap();
        assert_eq!(content(&next), expected);
        // It finds out by itself.
        assert!(gone.refresh().unwrap());
        assert_eq!(content(&gone), expected);
    }
}
