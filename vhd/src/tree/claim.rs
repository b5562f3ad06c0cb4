//! Who has a disk open. What rewrites a disk's own image, or the images below it, asks first.
//!
//! A claim outlives the process that made it: a data path may run on when whoever started it is
//! gone. It needs no sync, because a power cut ends the data path as well; what it leaves is for
//! the caller to tell from the holder's name and to take back.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::doc::VERSION;
use super::{Guard, Tree, parse_name};
use crate::error::Result;
use crate::store::{Area, At};
use crate::sys;

/// The holder of a claim that cannot be read.
const UNREADABLE: &str = "unknown (the claim cannot be read)";

#[derive(Serialize, Deserialize)]
struct Claims {
    /// [`VERSION`].
    sm: u32,
    holders: Vec<String>,
}

impl Tree {
    /// Says that `holder` has a disk open: from now on nothing rewrites the images that it reads.
    /// The same holder again is the same claim.
    pub fn claim(&self, guard: &Guard, uuid: Uuid, holder: &str) -> Result<()> {
        self.check_guard(guard)?;
        let mut holders = self.claims(uuid)?;
        holders.retain(|known| known != UNREADABLE);
        if !holders.iter().any(|known| known == holder) {
            holders.push(holder.to_owned());
            self.write_claims(uuid, holders)?;
        }
        // A merge of this disk may be under way elsewhere, and the disk is about to change.
        self.abandon_merge(uuid)
    }

    /// Takes a claim back. None is fine.
    pub fn unclaim(&self, guard: &Guard, uuid: Uuid, holder: &str) -> Result<()> {
        self.check_guard(guard)?;
        let mut holders = self.claims(uuid)?;
        let before = holders.len();
        holders.retain(|known| known != holder && known != UNREADABLE);
        if holders.len() == before {
            return Ok(());
        }
        if holders.is_empty() {
            return self.store.remove(&Self::claims_at(uuid)).map(drop);
        }
        self.write_claims(uuid, holders)
    }

    /// Who has a disk open.
    pub fn claims(&self, uuid: Uuid) -> Result<Vec<String>> {
        let Some(bytes) = self.read_small(&Self::claims_at(uuid))? else { return Ok(Vec::new()) };
        Ok(match serde_json::from_slice::<Claims>(&bytes) {
            Ok(claims) => claims.holders,
            // On the safe side: whoever opens or closes the disk next replaces it.
            Err(_) => vec![UNREADABLE.to_owned()],
        })
    }

    /// The disks that somebody has open, with one holder each.
    pub(super) fn claimed(&self) -> Result<Vec<(Uuid, String)>> {
        let mut claimed = Vec::new();
        for name in self.store.names(Area::Claims)? {
            if let Some((uuid, "json")) = parse_name(&name)
                && let Some(holder) = self.claims(uuid)?.into_iter().next()
            {
                claimed.push((uuid, holder));
            }
        }
        Ok(claimed)
    }

    fn write_claims(&self, uuid: Uuid, holders: Vec<String>) -> Result<()> {
        let new = Self::tmp_at(format!("{uuid}.open"));
        self.store.remove(&new)?;
        let claims = Claims { sm: VERSION, holders };
        let bytes = self.to_json(&new, &claims)?;
        // Made in place the first time, which also makes the area; replaced whole after that.
        let at = Self::claims_at(uuid);
        if !self.store.exists(&at)? {
            let file = self.store.create(&at, bytes.len() as u64)?;
            return sys::write_at(&*file, &self.store.path_of(&at), &bytes, 0);
        }
        let file = self.store.create(&new, bytes.len() as u64)?;
        sys::write_at(&*file, &self.store.path_of(&new), &bytes, 0)?;
        self.store.rename(&new, &at)
    }

    fn claims_at(uuid: Uuid) -> At {
        At::new(Area::Claims, format!("{uuid}.json"))
    }
}
