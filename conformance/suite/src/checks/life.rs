//! A life of disks, whose changes go wrong: what each change must have made in the end.

use std::collections::BTreeSet;
use std::time::Duration;

use sm_loader::Call;
use sm_model::vdi::{VdiClone, VdiCreate, VdiDestroy, VdiResize, VdiSnapshot};
use sm_model::{Bytes, Error, Kind, Operation, OperationId, VdiUuid};

use crate::verdict::{Verdict, fail, must, said, same};
use crate::world::World;

/// How often a wish is uttered until it must be done, once nothing goes wrong any more.
const TRIES: usize = 3;

/// A change.
#[derive(Clone, Debug)]
pub(super) enum Wish {
    Create(VdiCreate),
    Snapshot(VdiSnapshot),
    Clone(VdiClone),
    Resize(VdiResize),
    Destroy(VdiDestroy),
}

impl Wish {
    pub(super) fn name(&self) -> &'static str {
        self.operation().name()
    }

    fn operation(&self) -> Operation {
        match self {
            Self::Create(_) => Operation::VdiCreate,
            Self::Snapshot(_) => Operation::VdiSnapshot,
            Self::Clone(_) => Operation::VdiClone,
            Self::Resize(_) => Operation::VdiResize,
            Self::Destroy(_) => Operation::VdiDestroy,
        }
    }

    pub(super) fn call(&self, world: &mut World<'_>, id: OperationId) -> Result<(), Error> {
        self.call_within(world, id, world.bench.config.call_budget())
    }

    pub(super) fn call_within(
        &self,
        world: &mut World<'_>,
        id: OperationId,
        budget: Duration,
    ) -> Result<(), Error> {
        let port = world.port().map_err(|_| Error::internal("the driver is not open"))?;
        let call = Call::new(self.operation(), id, budget);
        match self {
            Self::Create(request) => world.call_on(&port, call, request).map(drop),
            Self::Snapshot(request) => world.call_on(&port, call, request).map(drop),
            Self::Clone(request) => world.call_on(&port, call, request).map(drop),
            Self::Resize(request) => world.call_on(&port, call, request).map(drop),
            Self::Destroy(request) => world.call_on(&port, call, request).map(drop),
        }
    }
}

/// Changes of which each needs those before it.
pub(super) struct Life {
    pub(super) wishes: Vec<Wish>,
    disk: VdiUuid,
}

impl Life {
    pub(super) fn new(world: &mut World<'_>) -> Verdict<Self> {
        let create = world.disk("disk");
        let disk = create.uuid;
        let mut wishes = vec![Wish::Create(create)];
        if world.can("vdi_snapshot") {
            wishes.push(Wish::Snapshot(world.snapshot_of(disk)));
        }
        let mut last = disk;
        if world.can("vdi_clone") {
            let clone = world.clone_of(disk);
            last = clone.uuid;
            wishes.push(Wish::Clone(clone));
        }
        if world.can("vdi_resize") {
            let virtual_size = Bytes(world.size() * 2);
            wishes.push(Wish::Resize(VdiResize { vdi: last, virtual_size }));
        }
        if last != disk {
            wishes.push(Wish::Destroy(VdiDestroy { vdi: last }));
        }
        for (vdi, _) in wishes.iter().filter_map(made) {
            world.own_vdi(vdi)?;
        }
        Ok(Self { wishes, disk })
    }

    /// The VDIs that there are when a wish is done.
    fn after(&self, wish: &Wish) -> BTreeSet<VdiUuid> {
        let mut there = BTreeSet::new();
        for each in &self.wishes {
            there.extend(made(each).map(|(vdi, _)| vdi));
            if let Wish::Destroy(request) = each {
                there.remove(&request.vdi);
            }
            if each.name() == wish.name() {
                break;
            }
        }
        there
    }

    /// What a call answered while something went wrong: it may be uttered again, or what it said is done is
    /// done.
    pub(super) fn told(
        &self,
        world: &mut World<'_>,
        wish: &Wish,
        answer: Result<(), Error>,
    ) -> Verdict {
        let done = answer.is_ok();
        may_be_again(wish.name(), answer)?;
        if done { self.holds(world, wish) } else { Ok(()) }
    }

    /// A wish is uttered again until it is done; then the listing must be what it made of it.
    pub(super) fn done(&self, world: &mut World<'_>, wish: &Wish, id: OperationId) -> Verdict {
        let mut last = None;
        for _ in 0..TRIES {
            match wish.call(world, id) {
                Ok(()) => return self.holds(world, wish),
                Err(error) => last = Some(error),
            }
        }
        let why = last.as_ref().map_or_else(String::new, said);
        fail(format!("nothing goes wrong any more, and {why}"))
    }

    /// The listing is what a wish made of it, and what was made is called and as large as it should be.
    fn holds(&self, world: &mut World<'_>, wish: &Wish) -> Verdict {
        let listed = world.list()?;
        let all: BTreeSet<VdiUuid> = listed.keys().copied().collect();
        same(&format!("the listing after {}", wish.name()), all, self.after(wish))?;
        if let Some((vdi, name)) = made(wish) {
            let found = listed.get(&vdi).map_or("", |info| info.name.as_str());
            same(&format!("the name of what {} made", wish.name()), found, name)?;
        }
        if let Wish::Resize(request) = wish {
            let size = world.stat(request.vdi)?.virtual_size;
            must(size >= request.virtual_size && size.0 < request.virtual_size.0 * 3 / 2, || {
                format!("{} were asked for, {size} are there", request.virtual_size)
            })?;
        }
        Ok(())
    }

    /// Nothing is left when all is destroyed.
    pub(super) fn ends(&self, world: &mut World<'_>) -> Verdict {
        for vdi in world.list()?.into_keys().filter(|vdi| *vdi != self.disk) {
            world.destroy(vdi)?;
        }
        if world.list()?.contains_key(&self.disk) {
            world.destroy(self.disk)?;
        }
        let left = world.left_over()?;
        must(left.is_empty(), || format!("a leak: the array holds {}", left.join(", ")))
    }
}

/// What a wish makes, and its name.
fn made(wish: &Wish) -> Option<(VdiUuid, &str)> {
    match wish {
        Wish::Create(request) => Some((request.uuid, &request.name)),
        Wish::Clone(request) => Some((request.uuid, &request.name)),
        Wish::Snapshot(request) => {
            request.snapshots.first().map(|spec| (spec.uuid, spec.name.as_str()))
        }
        Wish::Resize(_) | Wish::Destroy(_) => None,
    }
}

/// Success, or an error after which the same call may succeed.
pub(super) fn may_be_again(what: &str, answer: Result<(), Error>) -> Verdict {
    let Err(error) = answer else { return Ok(()) };
    let kinds = [Kind::Unreachable, Kind::Unknown, Kind::DeadlineExceeded, Kind::Auth];
    let fits = kinds.contains(&error.kind) || matches!(error.kind, Kind::Busy { .. });
    must(fits, || format!("{what}: the kind does not fit: {}", said(&error)))
}
