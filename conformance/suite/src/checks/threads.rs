//! Calls of one session from many threads, each with a runtime of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use sm_loader::{Call, ProcessPort, port};
use sm_model::operation::Request;
use sm_model::sr::{SrScan, SrStat};
use sm_model::vdi::{VdiStat, VdiUpdate};
use sm_model::{Error, OperationId, VdiUuid};
use tokio::runtime::{Builder, Runtime};

use super::{Check, DISKS, Setup};
use crate::verdict::{Stop, Verdict, must, same};
use crate::world::World;

/// Threads of the host, and how often each calls: usually, and where the driver is slow.
const THREADS: [usize; 2] = [8, 4];
const ROUNDS: [usize; 2] = [4, 2];

pub(super) const CHECKS: &[Check] = &[Check {
    id: "A13",
    needs: DISKS.and(&["vdi_stat"]),
    sentences: &["DRV-LOAD-13", "DRV-CONC-1", "DRV-META-1"],
    explain: "A second session of the host is opened for the SR, under a runtime that ends at once. Eight \
        threads (four where the driver is slow), each with a runtime of its own, call it: one after \
        the other, then all at the same time, each with a disk that it renames and asks for, and with \
        listings and `sr_stat` between, where the driver has them. Each call must be answered, and by \
        what that thread has done. A ninth thread closes the session; the first one goes on, \
        and sees what the threads have left.",
    setup: Setup::Sr,
    run: many,
}];

/// What a thread of the host has to do: its disk, and its wishes.
struct Part {
    /// Whether the driver renames disks, and tells of the SR.
    renames: bool,
    tells: bool,
    /// How many disks there are.
    disks: u64,
    vdi: VdiUuid,
    names: Vec<String>,
    ids: Vec<OperationId>,
}

fn many(world: &mut World<'_>) -> Verdict {
    let mut parts = Vec::new();
    let slow = usize::from(world.bench.config.suite.slow.is_some());
    let (threads, rounds) = (THREADS[slow], ROUNDS[slow]);
    for thread in 0..threads {
        let vdi = world.create("threads")?.uuid;
        let names = (0..rounds).map(|round| world.name(&format!("t{thread}r{round}"))).collect();
        let ids = (0..rounds * 4).map(|_| world.new_operation()).collect();
        let (renames, tells) = (world.can("vdi_update"), world.can("sr_stat"));
        parts.push(Part { renames, tells, disks: threads as u64, vdi, names, ids });
    }
    let port = elsewhere(|runtime| world.beside(runtime))??;
    let budget = world.bench.config.call_budget();
    world.note("threads, one after the other", &threads.to_string(), "");
    for part in &parts {
        let first = part.names.first().map(std::slice::from_ref).unwrap_or_default();
        elsewhere(|runtime| act(runtime, &port, budget, part, first, 0))??;
    }
    world.note("threads, all at once", &threads.to_string(), "");
    let all = Barrier::new(threads);
    let answers: Vec<Verdict<Verdict>> = std::thread::scope(|scope| {
        let start = |part| {
            let (port, all) = (&port, &all);
            scope.spawn(move || {
                elsewhere(|runtime| {
                    all.wait();
                    act(runtime, port, budget, part, part.names.get(1..).unwrap_or_default(), 4)
                })
            })
        };
        let threads: Vec<_> = parts.iter().map(start).collect();
        let broke = || Err(Stop::NotTestable("a thread of the suite broke".into()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| broke())).collect()
    });
    for answer in answers {
        answer??;
    }
    elsewhere(|runtime| {
        runtime.block_on(sm_loader::DriverPort::close(&*port, Duration::from_secs(5)));
    })?;
    if !world.can("vdi_update") {
        return same("VDIs after the threads", world.list()?.len(), threads);
    }
    let listed = world.list()?.into_iter().map(|(uuid, vdi)| (uuid, vdi.name));
    let listed: BTreeMap<VdiUuid, String> = listed.collect();
    let wanted = parts.iter().filter_map(|part| Some((part.vdi, part.names.last()?.clone())));
    same("the listing after the threads", listed, wanted.collect())
}

/// Something in a thread of its own, with a runtime that ends with it.
fn elsewhere<T: Send>(act: impl FnOnce(&Runtime) -> T + Send) -> Verdict<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| act(&runtime))
        });
        let broke = |why: &str| Stop::NotTestable(format!("a thread of the suite: {why}"));
        let ended = thread.join().map_err(|_| broke("it panicked"))?;
        ended.map_err(|error| broke(&error.to_string()))
    })
}

/// Renames a disk, and looks at it, at the listing and at the SR.
fn act(
    runtime: &Runtime,
    port: &Arc<ProcessPort>,
    budget: Duration,
    part: &Part,
    names: &[String],
    from: usize,
) -> Verdict {
    let mut ids = part.ids.iter().skip(from);
    for name in names {
        let mut next = || ids.next().copied().unwrap_or(OperationId(uuid::Uuid::nil()));
        if part.renames {
            ask(runtime, port, budget, next(), &rename(part.vdi, name))?;
        }
        let found = ask(runtime, port, budget, next(), &VdiStat::of(part.vdi))?;
        must(!part.renames || found.name == *name, || {
            format!("a thread has given the name {name}, and is told {}", found.name)
        })?;
        let page = ask(runtime, port, budget, next(), &SrScan::default())?;
        let here = page.next.is_some() || page.vdis.iter().any(|vdi| vdi.uuid == part.vdi);
        must(here, || format!("a listing lacks {}", part.vdi))?;
        if part.tells {
            let told = ask(runtime, port, budget, next(), &SrStat {})?;
            let wanted = part.disks;
            must(told.vdis >= wanted, || format!("{} VDIs are told of, not {wanted}", told.vdis))?;
        }
    }
    Ok(())
}

fn rename(vdi: VdiUuid, name: &str) -> VdiUpdate {
    VdiUpdate {
        vdi,
        name: Some(name.to_owned()),
        description: None,
        vdi_type: None,
        read_only: None,
        keys: BTreeMap::new(),
        incomplete: None,
    }
}

fn ask<R: Request>(
    runtime: &Runtime,
    port: &Arc<ProcessPort>,
    budget: Duration,
    id: OperationId,
    request: &R,
) -> Result<R::Reply, Error> {
    runtime.block_on(port::call(port.as_ref(), Call::new(R::OPERATION, id, budget), request))
}
