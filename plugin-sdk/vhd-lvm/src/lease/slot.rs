//! What a host says of itself in its slot, and how it is read.

use std::io::{self, ErrorKind};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes of a slot that are written at once. It has two of them, which are written by turns: a write
/// that is cut leaves the other one, and with it the number.
pub(super) const SECTOR: usize = 512;
/// Bytes before the content of a slot: a mark, a checksum, a length.
const PREFIX: usize = 26;
const MAGIC: &[u8; 8] = b"SMLEASE1";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    #[default]
    Idle,
    /// It is about to take a number.
    Choosing,
    /// It has the right or waits for it.
    Numbered,
}

/// What a host says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slot {
    pub(super) host: String,
    pub(super) boot: String,
    pub(super) state: State,
    /// Of the last one, when idle.
    pub(super) number: u64,
    /// Tells this wish from every other.
    pub(super) wish: u64,
    /// Counts the writes.
    pub(super) serial: u64,
}

pub(super) fn digest(bytes: &[u8]) -> [u8; 16] {
    let whole = Sha256::digest(bytes);
    let mut short = [0; 16];
    short.copy_from_slice(whole.get(..16).unwrap_or(&[0; 16]));
    short
}

impl Slot {
    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        let content = serde_json::to_vec(self).map_err(io::Error::other)?;
        let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
        let mut bytes = MAGIC.to_vec();
        bytes.extend(digest(&content));
        bytes.extend(length.to_le_bytes());
        bytes.extend(&content);
        if bytes.len() > SECTOR {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                format!("the host's name is too long for a lease: {}", self.host),
            ));
        }
        bytes.resize(SECTOR, 0);
        Ok(bytes)
    }
}

/// A slot as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// No host's.
    Free,
    /// Somebody is just writing it, or it is damaged.
    Torn,
    Slot(Slot),
}

impl Read {
    pub(super) fn of(slot: &[u8]) -> Self {
        let mut sectors = slot.chunks(SECTOR).take(2).map(Self::of_sector);
        match (sectors.next().unwrap_or(Self::Torn), sectors.next().unwrap_or(Self::Torn)) {
            (Self::Slot(one), Self::Slot(other)) => {
                Self::Slot(if one.serial > other.serial { one } else { other })
            }
            (Self::Slot(one), _) | (_, Self::Slot(one)) => Self::Slot(one),
            (Self::Free, Self::Free) => Self::Free,
            _ => Self::Torn,
        }
    }

    fn of_sector(sector: &[u8]) -> Self {
        if sector.iter().all(|byte| *byte == 0) {
            return Self::Free;
        }
        let length = sector.get(24..PREFIX).and_then(|two| two.try_into().ok());
        let length = usize::from(length.map_or(0, u16::from_le_bytes));
        let content = sector.get(PREFIX..PREFIX + length).unwrap_or_default();
        let whole = sector.starts_with(MAGIC) && sector.get(8..24) == Some(&digest(content)[..]);
        match serde_json::from_slice(content) {
            Ok(slot) if whole => Self::Slot(slot),
            _ => Self::Torn,
        }
    }

    pub(super) fn number(&self) -> u64 {
        if let Self::Slot(slot) = self { slot.number } else { 0 }
    }

    pub(super) fn is_quiet(&self) -> bool {
        match self {
            Self::Free => true,
            Self::Torn => false,
            Self::Slot(slot) => slot.state == State::Idle,
        }
    }

    pub(super) fn host(&self) -> String {
        if let Self::Slot(slot) = self { slot.host.clone() } else { "?".to_owned() }
    }
}
