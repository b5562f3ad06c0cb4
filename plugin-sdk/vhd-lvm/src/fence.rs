//! Hosts that are shut out of a store: because they are gone for good, or hang.
//!
//! A record says who, by whom, and from which epoch of the right to change the store on. It is there
//! until the host lets itself in again, by attaching the SR with nothing of it in use: what such a
//! host finds in its memory is of before, and so is what its guests have not written yet.

use std::collections::BTreeSet;
use std::time::Instant;

use plugin_sdk::model::{Changed, VdiUuid};
use plugin_sdk::{Cx, Result, step};
use vhd_folder::{Fence, from_vhd};

use crate::disks::Disks;
use crate::inner::{Inner, OBJECTS, View, told};
use crate::objects::Change;
use crate::store::LvStore;

/// Where the records are among the small things: beside the areas of a tree.
const AREA: u8 = u8::MAX;

/// Who uses a store.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// Those that have changed something, or have a disk open.
    pub known: BTreeSet<String>,
    /// Those that have a disk open.
    pub open: BTreeSet<String>,
}

/// What [`Disks::fence`] has done.
#[derive(Clone, Debug)]
pub struct Fenced {
    /// `already` if the host was shut out, and had nothing open.
    pub changed: Changed,
    /// The record.
    pub fence: Fence,
    /// Disks that the host had open.
    pub vdis: Vec<VdiUuid>,
}

impl Inner {
    fn fence_of(&self, view: &mut View, host: &str) -> vhd::Result<Option<Fence>> {
        let found = self.objects(view)?.get(&(AREA, host.to_owned()));
        let parsed = found.map(|bytes| serde_json::from_slice(&bytes)).transpose();
        parsed.map_err(|error| {
            let what = format!("the record of host {host}, which is shut out: {error}");
            vhd::Error::Store { path: self.dir().join(OBJECTS), what }
        })
    }

    /// Error kind `fenced` if this host is shut out.
    pub(crate) fn refuse_fenced(&self, view: &mut View) -> vhd::Result<()> {
        match self.fence_of(view, self.rights.host())? {
            Some(fence) => Err(told(&self.dir(), "change")(fence.error())),
            None => Ok(()),
        }
    }

    fn write_fence(&self, view: &mut View, fence: &Fence) -> vhd::Result<()> {
        let bytes = serde_json::to_vec(fence).map_err(|error| {
            let what = format!("a record cannot be written: {error}");
            vhd::Error::Store { path: self.dir().join(OBJECTS), what }
        })?;
        self.write(view, Change::Set(AREA, fence.host.clone()), &bytes)
    }
}

impl LvStore {
    /// The hosts that are shut out; none if the store is not there yet.
    pub fn fences(&self) -> vhd::Result<Option<Vec<Fence>>> {
        let inner = &self.0;
        let mut view = inner.view();
        if inner.group(&mut view)?.volume(OBJECTS).is_none() {
            return Ok(None);
        }
        let names = inner.objects(&mut view)?.names(AREA);
        let fences =
            names.iter().map(|host| inner.fence_of(&mut view, host).map(Option::into_iter));
        Ok(Some(fences.collect::<vhd::Result<Vec<_>>>()?.into_iter().flatten().collect()))
    }

    /// Lets this host in again. Nothing of the store is in use on it.
    pub fn let_in(&self, deadline: Instant) -> vhd::Result<()> {
        let inner = &self.0;
        let _entered = inner.enter_also_fenced(deadline)?;
        inner.change(false, |view| {
            let host = inner.rights.host().to_owned();
            if inner.fence_of(view, &host)?.is_some() {
                inner.write(view, Change::Remove(AREA, host), &[])?;
                step!("sr_attach.let_in");
            }
            Ok(())
        })
    }
}

impl Disks {
    /// The hosts that are shut out; none if the SR has no store yet.
    pub fn fences(&self) -> Result<Option<Vec<Fence>>> {
        self.store().fences().map_err(from_vhd)
    }

    /// Who uses the SR.
    pub fn hosts(&self) -> Result<Hosts> {
        let open = self.place().hosts(&self.place().tree()?)?;
        let mut known = self.store().hosts().map_err(from_vhd)?;
        known.extend(open.iter().cloned());
        Ok(Hosts { known, open })
    }

    /// Lets this host in again.
    pub fn let_in(&self, cx: &Cx) -> Result<()> {
        self.store().let_in(cx.deadline()).map_err(from_vhd)
    }

    /// Shuts another host out. With `enforced`, the storage refuses what it writes, so that its turn
    /// is over at once; else when its lease is.
    pub fn fence(&self, cx: &Cx, host: &str, enforced: bool) -> Result<Fenced> {
        let inner = &self.store().0;
        if enforced {
            self.store().pass_over(host).map_err(from_vhd)?;
        }
        let (tree, guard) = self.place().locked(cx)?;
        let epoch = inner.epoch();
        // First the record: a host that is not off sees it before it sees that its claims are gone.
        let (mut changed, fence) = inner
            .change(false, |view| {
                if let Some(fence) = inner.fence_of(view, host)? {
                    return Ok((Changed::Already, fence));
                }
                let by = inner.rights.host().to_owned();
                let fence = Fence { host: host.to_owned(), by, epoch };
                inner.leave_half(view)?;
                inner.write_fence(view, &fence)?;
                step!("sr_fence.recorded");
                Ok((Changed::Modified, fence))
            })
            .map_err(from_vhd)?;
        let vdis = self.place().end_claims(&tree, &guard, host)?;
        if !vdis.is_empty() {
            changed = Changed::Modified;
            step!("sr_fence.claims_ended");
        }
        Ok(Fenced { changed, fence, vdis })
    }
}
