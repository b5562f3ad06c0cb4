//! The corpus: files good and bad, each with the verdict it must get.
//!
//! G1 to G21 are good, B1 to B32 bad, X1 and up are further ones: what some tool writes, what a
//! cut leaves, what somebody could make on purpose. All files of a case are named by the UUID of
//! their image, so a case is a directory of a store as well.

mod bad;
mod further;
mod good;
mod parents;

use vhd::error::Fault;
use vhd::{Error, Info};

use super::build::{Content, Spec};

/// Position, length, and the byte that fills it; all the rest of the disk is zero.
pub type Fill = (u64, u64, u8);

/// What must come of it.
#[derive(Clone)]
pub enum Expected {
    /// The chain of all the files reads as this.
    Reads(Vec<Fill>),
    /// As that, but cannot be written to: this is missing.
    ReadsOnly(Vec<Fill>, &'static str),
    /// The first file is refused.
    Refused(fn(&Fault) -> bool),
    /// Each file opens, and the chain of all of them is refused.
    ChainRefused(fn(&Error) -> bool),
}

/// A set of files and what must come of it.
#[derive(Clone)]
pub struct Case {
    /// `G1` and so on; does not change.
    pub name: &'static str,
    pub what: &'static str,
    /// Names and contents: the leaf first, then its parent, and so on.
    pub files: Vec<(String, Content)>,
    pub expected: Expected,
    /// What else the leaf must say of itself.
    pub says: fn(&Info) -> bool,
    /// Why a store lists the leaf as quarantined although the chain of the files reads, or in which
    /// words it refuses.
    pub store: Option<&'static str>,
}

impl Case {
    fn new(name: &'static str, what: &'static str, specs: &[&Spec], expected: Expected) -> Self {
        let files = specs.iter().map(|spec| (file_name(spec.uuid), spec.content())).collect();
        Self { name, what, files, expected, says: |_| true, store: None }
    }

    fn reads(name: &'static str, what: &'static str, specs: &[&Spec], fills: &[Fill]) -> Self {
        Self::new(name, what, specs, Expected::Reads(fills.to_vec()))
    }

    fn refused(
        name: &'static str,
        what: &'static str,
        spec: &Spec,
        is: fn(&Fault) -> bool,
    ) -> Self {
        Self::new(name, what, &[spec], Expected::Refused(is))
    }

    fn says(mut self, says: fn(&Info) -> bool) -> Self {
        self.says = says;
        self
    }

    /// The store refuses it, in words that hold these.
    fn store(mut self, words: &'static str) -> Self {
        self.store = Some(words);
        self
    }

    /// Changes the leaf's bytes.
    fn patch(mut self, at: u64, bytes: &[u8]) -> Self {
        self.files[0].1.put(at, bytes);
        self
    }
}

/// All cases.
pub fn corpus() -> Vec<Case> {
    let mut cases = good::cases();
    cases.extend(bad::cases());
    cases.extend(further::cases());
    cases.extend(parents::cases());
    cases
}

/// The case of that name.
pub fn case(name: &str) -> Case {
    corpus().into_iter().find(|case| case.name == name).expect("there is a case of that name")
}

/// The UUID of the image with that number.
pub fn id(number: u128) -> u128 {
    0xabcd_0000_0000_4000_8000_0000_0000_0000 | number
}

/// The name that a store wants of the file of an image with that UUID.
pub fn file_name(uuid: u128) -> String {
    format!("{}.vhd", uuid::Uuid::from_u128(uuid))
}

/// A dynamic image of 64 MiB without blocks.
fn image(number: u128) -> Spec {
    Spec { uuid: id(number), ..Spec::default() }
}

fn tap(number: u128, version: u32) -> Spec {
    Spec { creator: *b"tap\0", version, ..image(number) }
}

fn child_of(child: Spec, parent: &Spec) -> Spec {
    child.child_of(parent, &file_name(parent.uuid))
}

/// Blocks 0, 1 and 2 with data.
fn base() -> Spec {
    image(1).full(0, 1).full(1, 2).full(2, 3)
}

const BASE: [Fill; 3] = [(0, 4096, 1), (2 << 20, 4096, 2), (4 << 20, 4096, 3)];

/// A bitmap of 512 bytes that begins with these.
fn bits(first: &[u8]) -> Vec<u8> {
    let mut bits = vec![0; 512];
    bits[..first.len()].copy_from_slice(first);
    bits
}
