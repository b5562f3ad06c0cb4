//! Several things at once, and how long one thing takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sm_loader::{Call, ProcessPort, port};
use sm_model::Error;
use sm_model::operation::Request;
use sm_model::sr::SrScan;
use sm_model::vdi::{Health, VdiDestroy, VdiStat};

use super::{Check, DATA, DISKS, Setup};
use crate::verdict::{Stop, Verdict, must, same};
use crate::world::World;

/// Calls that are under way at the same time, and where `suite.slow` is set: the last of them waits for
/// all others.
const TOGETHER: [usize; 2] = [16, 6];

fn at_once(world: &World<'_>) -> usize {
    TOGETHER[usize::from(world.bench.config.suite.slow.is_some())]
}

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "M02",
        needs: DISKS,
        sentences: &["DRV-CONC-1"],
        explain: "Sixteen disks (six where `suite.slow` is set) are made at the same time, in one \
            session: all must succeed and be \
            listed, each as it was answered; then all are destroyed at the same time.",
        setup: Setup::Sr,
        run: |world| {
            let requests: Vec<_> =
                (0..at_once(world)).map(|n| world.disk(&format!("n{n}"))).collect();
            let mut made = std::collections::BTreeMap::new();
            for answer in together(world, requests)? {
                let vdi = answer?.vdi;
                made.insert(vdi.uuid, vdi.name);
            }
            let listed = world.list()?;
            let listed = listed.into_iter().map(|(uuid, vdi)| (uuid, vdi.name)).collect();
            same("the listing", &listed, &made)?;
            let requests = made.into_keys().map(|vdi| VdiDestroy { vdi }).collect();
            for answer in together(world, requests)? {
                answer?;
            }
            same("VDIs after all were destroyed", world.list()?.len(), 0)
        },
    },
    Check {
        id: "M06",
        needs: DISKS,
        sentences: &["DRV-LIST-5", "DRV-CONC-1"],
        explain: "While disks are made and destroyed, listings go on: each must have the disks \
            that nobody touches, and none may call a disk damaged that is only half made.",
        setup: Setup::Sr,
        run: |world| {
            let stays: Vec<_> = (0..3).map(|_| world.create("stays").map(|vdi| vdi.uuid)).collect();
            let at_once = at_once(world);
            for round in 0..4 {
                let makes: Vec<_> =
                    (0..at_once).map(|n| world.disk(&format!("r{round}n{n}"))).collect();
                let gone: Vec<_> = makes.iter().map(|r| VdiDestroy { vdi: r.uuid }).collect();
                let making = start(world, makes)?;
                let pages = together(world, vec![SrScan::default(); at_once])?;
                finish(world, making)?.into_iter().collect::<Result<Vec<_>, Error>>()?;
                let removing = start(world, gone)?;
                let more = together(world, vec![SrScan::default(); at_once])?;
                finish(world, removing)?.into_iter().collect::<Result<Vec<_>, Error>>()?;
                for page in pages.into_iter().chain(more) {
                    let page = page?;
                    let whole = page.next.is_some()
                        || stays.iter().flatten().all(|s| page.vdis.iter().any(|v| v.uuid == *s));
                    must(whole, || "a listing lacks a disk that nobody touched".into())?;
                    let ill = page.vdis.iter().find(|vdi| vdi.health != Health::Ok);
                    must(ill.is_none(), || format!("a listing beside other work says {ill:?}"))?;
                }
            }
            Ok(())
        },
    },
    Check {
        id: "M07",
        needs: DISKS.and(&["vdi_stat"]),
        sentences: &["DRV-CONC-1"],
        explain: "Four hundred reading calls that overlap must all be answered, and alike.",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("read")?;
            let told = world.stat(vdi.uuid)?;
            for answer in together(world, vec![VdiStat::of(vdi.uuid); 400])? {
                same("vdi_stat beside others", answer?, told.clone())?;
            }
            Ok(())
        },
    },
    Check {
        id: "R02",
        needs: DATA,
        sentences: &["DRV-TIME-6"],
        explain: "The median of five creates must be at most 1 s, of five attaches 2 s, of five \
            destroys 2 s, of five listings 1 s. All times of all calls are in the certificate.",
        setup: Setup::Sr,
        run: |world| {
            if let Some(why) = &world.bench.config.suite.slow {
                return Err(Stop::NotApplicable(why.clone()));
            }
            for _ in 0..5 {
                let (vdi, _) = world.filled("timed")?;
                world.list()?;
                world.destroy(vdi)?;
            }
            for (operation, most) in [
                ("vdi_create", 1000),
                ("vdi_attach", 2000),
                ("vdi_destroy", 2000),
                ("sr_scan", 1000),
            ] {
                let mut times = world.times.get(operation).cloned().unwrap_or_default();
                times.sort_unstable();
                let median = times.get(times.len() / 2).copied().unwrap_or(0);
                must(median <= most, || format!("{operation} takes {median} ms, at most {most}"))?;
            }
            Ok(())
        },
    },
];

pub(super) type Started<T> = (Vec<tokio::task::JoinHandle<Result<T, Error>>>, Arc<AtomicUsize>);

/// Starts calls, all before the first is waited for.
pub(super) fn start<R: Request + Sync>(
    world: &mut World<'_>,
    requests: Vec<R>,
) -> Verdict<Started<R::Reply>> {
    let port: Arc<ProcessPort> = world.port()?;
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = Vec::new();
    for request in requests {
        let id = world.new_operation();
        let call = Call::new(R::OPERATION, id, world.bench.config.call_budget());
        let (port, inside, most) = (Arc::clone(&port), Arc::clone(&inside), Arc::clone(&most));
        tasks.push(world.bench.runtime.spawn(async move {
            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let answer = port::call(port.as_ref(), call, &request).await;
            inside.fetch_sub(1, Ordering::SeqCst);
            answer
        }));
    }
    Ok((tasks, most))
}

/// Waits for calls. That they overlapped is part of the check.
fn finish<T: Send + 'static>(
    world: &mut World<'_>,
    (tasks, most): Started<T>,
) -> Verdict<Vec<Result<T, Error>>> {
    let mut answers = Vec::new();
    for task in tasks {
        let answer = world.bench.runtime.block_on(task);
        answers.push(answer.map_err(|error| Stop::NotTestable(format!("a call broke: {error}")))?);
    }
    let most = most.load(Ordering::SeqCst);
    world.note("calls at the same time", &answers.len().to_string(), &format!("{most} at once"));
    if most < 2 && answers.len() > 1 {
        return Err(Stop::NotTestable("no two calls were under way at once".into()));
    }
    Ok(answers)
}

fn together<R: Request + Sync>(
    world: &mut World<'_>,
    requests: Vec<R>,
) -> Verdict<Vec<Result<R::Reply, Error>>> {
    let started = start(world, requests)?;
    finish(world, started)
}
