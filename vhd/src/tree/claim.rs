//! Who has a disk open. What rewrites a disk's own image, or the images below it, asks first.
//!
//! A claim outlives the process that made it: a data path may run on when whoever started it is
//! gone. It is an empty file whose name says who, so that a disk can be opened when the store is
//! full, and nothing of it can be torn. It needs no sync, because a power cut ends the data path
//! as well; what it leaves is for the caller to tell from the holder's name and to take back.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{Guard, Tree, parse_name};
use crate::error::{Error, Result};
use crate::store::{Area, At};

/// Longest name of a claim, bytes: what file systems allow.
const MAX_NAME: usize = 255;

impl Tree {
    /// Says that `holder` has a disk open: from now on nothing rewrites the images that it reads.
    /// The same holder again is the same claim.
    pub fn claim(&self, guard: &Guard, uuid: Uuid, holder: &str) -> Result<()> {
        self.check_guard(guard)?;
        let at = claim_at(uuid, holder);
        if at.name.len() > MAX_NAME {
            let what = format!("the holder's name {holder:?} is too long");
            return Err(Error::Store { path: self.store.path_of(&at), what });
        }
        if !self.store.exists(&at)? {
            self.store.create(&at, 0)?;
        }
        // A merge of this disk may be under way elsewhere, and the disk is about to change.
        self.abandon_merge(uuid)
    }

    /// Takes a claim back. None is fine.
    pub fn unclaim(&self, guard: &Guard, uuid: Uuid, holder: &str) -> Result<()> {
        self.check_guard(guard)?;
        self.store.remove(&claim_at(uuid, holder)).map(drop)
    }

    /// Who has a disk open.
    pub fn claims(&self, uuid: Uuid) -> Result<Vec<String>> {
        let claimed = self.claimed()?.into_iter().filter(|claim| claim.0 == uuid);
        Ok(claimed.map(|claim| claim.1).collect())
    }

    /// The disks that somebody has open.
    pub fn open_disks(&self) -> Result<BTreeSet<Uuid>> {
        Ok(self.claimed()?.into_iter().map(|claim| claim.0).collect())
    }

    /// The disks that somebody has open, and who: one for each claim.
    pub(super) fn claimed(&self) -> Result<Vec<(Uuid, String)>> {
        let names = self.store.names(Area::Claims)?;
        let claims = names.iter().filter_map(|name| parse_name(name));
        Ok(claims.map(|(uuid, holder)| (uuid, decode(holder))).collect())
    }

    /// Takes back all claims on a disk that is gone.
    pub(super) fn forget_claims(&self, uuid: Uuid) -> Result<()> {
        for name in self.store.names(Area::Claims)? {
            if parse_name(&name).is_some_and(|(claimed, _)| claimed == uuid) {
                self.store.remove(&At::new(Area::Claims, name))?;
            }
        }
        Ok(())
    }
}

pub(super) fn claim_at(uuid: Uuid, holder: &str) -> At {
    At::new(Area::Claims, format!("{uuid}.{}", name_part(holder)))
}

/// A text as part of a file's name: other than letters, digits and hyphens as `%` and two digits.
pub fn name_part(holder: &str) -> String {
    let mut text = String::with_capacity(holder.len());
    for byte in holder.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            text.push(char::from(byte));
        } else {
            let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or('0');
            text.extend(['%', digit(byte >> 4), digit(byte & 0xf)]);
        }
    }
    text
}

fn decode(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        let digits = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(digits.unwrap_or(b'%'));
        rest = if digits.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::{decode, name_part};

    #[test]
    fn a_holder_survives_being_part_of_a_file_name() {
        for holder in ["a data path", "host-1, boot 93a1-0", "../../etc", "größe%41", "100%", ""]
        {
            let name = name_part(holder);
            assert!(
                name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-%".contains(&b)),
                "{name}"
            );
            assert_eq!(decode(&name), holder);
        }
    }
}
