//! Several hosts: each a process of the driver with a name and a state of its own, over one backend.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sm_loader::{Call, DriverPort as _, ProcessPort, port};
use sm_model::AttachMode::{self, ReadOnly, ReadWrite};
use sm_model::operation::Request;
use sm_model::vdi::{VdiActivate, VdiAttach, VdiDatapathDone, VdiDeactivate, VdiDetach};
use sm_model::{Access, Error, Kind, VdiUuid};

use super::{Check, DATA, Needs, SNAPSHOTS, Setup};
use crate::disk::Disk;
use crate::oracle::{BLOCK, Mark, block};
use crate::verdict::{Stop, Verdict, fail, must, said};
use crate::world::World;

const HOSTS: Needs = DATA.and(&["vdi_deactivate", "vdi_detach"]);

/// Hosts that want the same disk.
const MANY: usize = 4;

/// How often they do.
const ROUNDS: usize = 6;

/// Most writes while another host takes a snapshot.
const WRITES: u64 = 3000;

/// Why several hosts cannot be played.
pub(super) const DEVICE: &str =
    "the driver answers a device of this host, which several hosts cannot be played with";

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "G07",
        needs: HOSTS,
        sentences: &["DRV-ATT-3", "DRV-CONC-1"],
        explain: "Four hosts ask at the same moment to write one disk, six times over: each time \
            exactly one of them may, the others are refused with `in_use`. When the one has let \
            go, the next may.",
        setup: Setup::SrOfHosts,
        run: |world| {
            let (vdi, content) = world.filled("disk")?;
            keeps_lock(world, vdi)?;
            let hosts = several(world, vdi)?;
            for round in 0..ROUNDS {
                let answers = at_once(world, &hosts, &activate(vdi, ReadWrite));
                let mut won = Vec::new();
                for (number, answer) in answers?.into_iter().enumerate() {
                    match answer {
                        Ok(_) => won.push(number),
                        Err(error) if error.kind == Kind::InUse => {}
                        Err(error) => return fail(format!("round {round}: {}", said(&error))),
                    }
                }
                must(won.len() == 1, || {
                    format!("in round {round} hosts {won:?} of {MANY} may write at once")
                })?;
                for number in won {
                    on(world, hosts.get(number), &VdiDeactivate { vdi })?;
                }
            }
            part(world, hosts, vdi)?;
            world.verify(vdi, &content, "a disk that many hosts wanted")
        },
    },
    Check {
        id: "M09",
        needs: HOSTS,
        sentences: &["DRV-ATT-3", "DRV-CONC-1"],
        explain: "Four hosts take and give back the right to write one disk as fast as they can, \
            each by itself. From the answer to its activate until it asks for the deactivate a \
            host has the disk: no two of these times may overlap.",
        setup: Setup::SrOfHosts,
        run: |world| {
            let (vdi, _) = world.filled("disk")?;
            keeps_lock(world, vdi)?;
            let hosts = several(world, vdi)?;
            let budget = world.bench.config.call_budget();
            let mut tasks = Vec::new();
            for host in &hosts {
                let wishes: Vec<_> = (0..ROUNDS * 2).map(|_| world.new_operation()).collect();
                let host = Arc::clone(host);
                tasks.push(world.bench.runtime.spawn(async move {
                    let mut held = Vec::new();
                    for pair in wishes.chunks(2) {
                        let &[first, second] = pair else { break };
                        let request = activate(vdi, ReadWrite);
                        let call = Call::new(VdiActivate::OPERATION, first, budget);
                        match port::call(host.as_ref(), call, &request).await {
                            Ok(_) => {}
                            Err(error) if error.kind == Kind::InUse => continue,
                            Err(error) => return Err(error),
                        }
                        let since = Instant::now();
                        tokio::time::sleep(Duration::from_millis(2)).await;
                        held.push((since, Instant::now()));
                        let call = Call::new(VdiDeactivate::OPERATION, second, budget);
                        port::call(host.as_ref(), call, &VdiDeactivate { vdi }).await?;
                    }
                    Ok(held)
                }));
            }
            let mut held = Vec::new();
            for (number, task) in tasks.into_iter().enumerate() {
                let times = world.bench.runtime.block_on(task);
                let times =
                    times.map_err(|e| Stop::NotTestable(format!("a call broke: {e}")))??;
                held.extend(times.into_iter().map(|(since, until)| (since, until, number)));
            }
            held.sort();
            for pair in held.windows(2) {
                let &[(_, until, one), (since, _, two)] = pair else { break };
                must(since >= until, || format!("hosts {one} and {two} had the disk at once"))?;
            }
            must(!held.is_empty(), || "no host ever got the disk".into())?;
            part(world, hosts, vdi)
        },
    },
    Check {
        id: "G08",
        needs: HOSTS,
        sentences: &["DRV-ATT-3", "DRV-ATT-5"],
        explain: "While one host writes a disk, another one deactivates and detaches it, which it \
            never had: whether that is refused or answered with success, the first must keep the \
            disk, and a third may not write it.",
        setup: Setup::SrOfHosts,
        run: |world| {
            let (vdi, mut content) = world.filled("disk")?;
            keeps_lock(world, vdi)?;
            let disk = world.open(vdi, ReadWrite)?;
            let hosts = vec![host(world, "b")?, host(world, "c")?];
            let _ = on(world, hosts.first(), &VdiDeactivate { vdi });
            let _ = on(world, hosts.first(), &VdiDetach { vdi });
            still_held(world, &hosts, vdi, "after another host's detach")?;
            world.fill_open(&disk, vdi, &mut content, &[1, 2], 2)?;
            world.shut(vdi, disk)?;
            part(world, hosts, vdi)?;
            world.verify(vdi, &content, "a disk that another host detached")
        },
    },
    Check {
        id: "G13",
        needs: HOSTS,
        sentences: &["DRV-ATT-3", "DRV-ATT-4"],
        explain: "A disk goes from host to host, as with a virtual machine: both have it attached, \
            the source writes and lets go, the target writes. The target must be refused until \
            then, and see what the source wrote; the source is refused from then on, and its late \
            detach must not end the target's hold.",
        setup: Setup::SrOfHosts,
        run: |world| {
            let (vdi, mut content) = world.filled("disk")?;
            keeps_lock(world, vdi)?;
            let disk = world.open(vdi, ReadWrite)?;
            let hosts = vec![host(world, "b")?, host(world, "c")?];
            on(world, hosts.first(), &VdiAttach { vdi, mode: ReadWrite })?;
            world.fill_open(&disk, vdi, &mut content, &[1, 2], 2)?;
            still_held(world, &hosts, vdi, "before its source has let go")?;
            world.services.forget(vdi);
            disk.close().map_err(Stop::Fail)?;
            world.call(VdiDeactivate { vdi })?;
            let there = on(world, hosts.first(), &activate(vdi, ReadWrite))?;
            let there = reach(world, hosts.first(), vdi, ReadWrite, there)?;
            world.verify_open(&there, &content, "a disk at the target of a migration")?;
            world.fill_open(&there, vdi, &mut content, &[2, 3], 3)?;
            let late = world.call(activate(vdi, ReadWrite));
            World::refused("the source's activate after the migration", "in_use", late)?;
            world.call(VdiDetach { vdi })?;
            let rest = hosts.get(1).cloned().into_iter().collect::<Vec<_>>();
            still_held(world, &rest, vdi, "after the detach of the source")?;
            world.fill_open(&there, vdi, &mut content, &[3, 4], 4)?;
            there.close().map_err(Stop::Fail)?;
            part(world, hosts, vdi)?;
            world.verify(vdi, &content, "a disk after a migration")
        },
    },
    Check {
        id: "G14",
        needs: HOSTS,
        sentences: &["DRV-ATT-3", "DRV-ATT-6"],
        explain: "As G13, but the target's process dies before it takes the disk: the source must \
            get it back, with all that was written, and go on.",
        setup: Setup::SrOfHosts,
        run: |world| {
            let (vdi, mut content) = world.filled("disk")?;
            keeps_lock(world, vdi)?;
            let disk = world.open(vdi, ReadWrite)?;
            let target = host(world, "b")?;
            on(world, Some(&target), &VdiAttach { vdi, mode: ReadWrite })?;
            world.fill_open(&disk, vdi, &mut content, &[1, 2], 2)?;
            world.shut_keeping(vdi, disk)?;
            kill(&target);
            let disk = world.open(vdi, ReadWrite)?;
            world.verify_open(&disk, &content, "a disk whose migration failed")?;
            world.fill_open(&disk, vdi, &mut content, &[2, 3], 3)?;
            world.shut(vdi, disk)?;
            let again = host(world, "b")?;
            part(world, vec![again, target], vdi)?;
            world.verify(vdi, &content, "a disk after a migration that failed")
        },
    },
    Check {
        id: "G04",
        needs: HOSTS,
        sentences: &["DRV-ATT-3"],
        explain: "Three hosts have a disk attached for reading at the same time: all read all of \
            it, and one that lets go takes it from nobody.",
        setup: Setup::SrOfHosts,
        run: |world| {
            let (vdi, content) = world.filled("disk")?;
            keeps_lock(world, vdi)?;
            let hosts = several(world, vdi)?;
            let mut disks = Vec::new();
            for host in &hosts {
                on(world, Some(host), &VdiAttach { vdi, mode: ReadOnly })?;
                let done = on(world, Some(host), &activate(vdi, ReadOnly))?;
                disks.push(reach(world, Some(host), vdi, ReadOnly, done)?);
            }
            on(world, hosts.last(), &VdiDeactivate { vdi })?;
            on(world, hosts.last(), &VdiDetach { vdi })?;
            disks.truncate(hosts.len() - 1);
            for disk in disks {
                world.verify_open(&disk, &content, "a disk that many hosts read")?;
                disk.close().map_err(Stop::Fail)?;
            }
            part(world, hosts, vdi)?;
            world.verify(vdi, &content, "a disk that many hosts have read")
        },
    },
    Check {
        id: "G05",
        needs: HOSTS,
        sentences: &["DRV-ATT-3"],
        explain: "While one host writes a disk, another one wants to read it. Refused or not, the \
            writer must keep the disk when the reader has let go, and no third host may write it.",
        setup: Setup::SrOfHosts,
        run: |world| {
            let (vdi, mut content) = world.filled("disk")?;
            keeps_lock(world, vdi)?;
            let disk = world.open(vdi, ReadWrite)?;
            let hosts = vec![host(world, "b")?, host(world, "c")?];
            if on(world, hosts.first(), &VdiAttach { vdi, mode: ReadOnly }).is_ok() {
                match on(world, hosts.first(), &activate(vdi, ReadOnly)) {
                    Err(error) if error.kind != Kind::InUse => {
                        return fail(format!("a reader beside a writer: {}", said(&error)));
                    }
                    _ => {}
                }
            }
            on(world, hosts.first(), &VdiDeactivate { vdi })?;
            on(world, hosts.first(), &VdiDetach { vdi })?;
            still_held(world, &hosts, vdi, "after a reader has let go")?;
            world.fill_open(&disk, vdi, &mut content, &[1, 2], 2)?;
            world.shut(vdi, disk)?;
            part(world, hosts, vdi)?;
            world.verify(vdi, &content, "a disk that was read while it was written")
        },
    },
    Check {
        id: "G10",
        needs: HOSTS,
        sentences: &["DRV-ATT-6", "DRV-ATT-3"],
        explain: "The driver's process is killed while a disk is written, and the SR is attached \
            and recovered by the next one, and by another host: the disk stays open and goes on, \
            nobody else may write it, and its own host can.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("disk")?;
            let played = Setup::SrOfHosts.lacks(world.bench).is_none();
            let locks = match if played { keeps_lock(world, vdi) } else { Ok(()) } {
                Err(Stop::NotApplicable(_)) => false,
                other => other.map(|()| played)?,
            };
            let disk = world.open(vdi, ReadWrite)?;
            world.fill_open(&disk, vdi, &mut content, &[1, 2], 2)?;
            world.kill()?;
            world.fill_open(&disk, vdi, &mut content, &[2, 3], 3)?;
            world.reopen()?;
            world.call(sm_model::sr::SrAttach {})?;
            if world.can("sr_recover") {
                world.call(sm_model::sr::SrRecover {})?;
            }
            if locks {
                let hosts = vec![host(world, "b")?];
                on(world, hosts.first(), &sm_model::sr::SrAttach {})?;
                still_held(world, &hosts, vdi, "after the death of its host's driver")?;
                part(world, hosts, vdi)?;
            }
            world.fill_open(&disk, vdi, &mut content, &[3, 4], 4)?;
            world.call(activate(vdi, ReadWrite))?;
            world.fill_open(&disk, vdi, &mut content, &[4, 5], 5)?;
            world.shut(vdi, disk)?;
            world.verify(vdi, &content, "a disk whose driver died")
        },
    },
    Check {
        id: "G18",
        needs: SNAPSHOTS.and(&["vdi_deactivate", "vdi_detach"]),
        sentences: &["DRV-SNAP-1", "DRV-SNAP-3"],
        explain: "A host writes the first and the last block of a disk in turn, without a pause; \
            meanwhile another host takes a snapshot of it. That is refused, or the snapshot is of \
            one instant: its two blocks are those of one turn, or the first is one turn ahead.",
        setup: Setup::SrOfHosts,
        run: |world| {
            let (vdi, mut content) = world.filled("disk")?;
            keeps_lock(world, vdi)?;
            let last = world.size() / BLOCK - 1;
            let disk = world.open(vdi, ReadWrite)?;
            world.fill_open(&disk, vdi, &mut content, &[0, last], 2)?;
            let other = host(world, "b")?;
            let request = world.snapshot_of(vdi);
            let snapshot = request.snapshots.first().map(|spec| spec.uuid);
            let id = world.new_operation();
            let call =
                Call::new(sm_model::Operation::VdiSnapshot, id, world.bench.config.call_budget());
            let (by, asked) = (Arc::clone(&other), request.clone());
            let task = world
                .bench
                .runtime
                .spawn(async move { port::call(by.as_ref(), call, &asked).await });
            let mut turn = 2;
            while !task.is_finished() && turn < WRITES {
                turn += 1;
                let mark = Mark { disk: vdi.0.as_u64_pair().1, generation: turn };
                for lba in [0, last] {
                    disk.write(lba * BLOCK, &block(mark, lba)).map_err(Stop::Fail)?;
                    content.set(lba, mark);
                }
            }
            disk.flush().map_err(Stop::Fail)?;
            let answer = world.bench.runtime.block_on(task);
            let answer = answer.map_err(|e| Stop::NotTestable(format!("a call broke: {e}")))?;
            world.note("vdi_snapshot by another host", &format!("{turn} turns"), &told(&answer));
            world.shut(vdi, disk)?;
            part(world, vec![other], vdi)?;
            match (answer, snapshot) {
                (Ok(_), Some(snapshot)) => {
                    let disk = world.open(snapshot, ReadOnly)?;
                    let found = [0, last].map(|lba| generation(&disk, lba));
                    world.shut(snapshot, disk)?;
                    let [first, second] = found;
                    let whole = match (first?, second?) {
                        (Some(first), Some(second)) => first == second || first == second + 1,
                        _ => false,
                    };
                    must(whole, || "a snapshot by another host is of no one instant".into())?;
                }
                (Err(error), _) => {
                    let kinds = [Kind::InUse, Kind::Unsupported];
                    must(kinds.contains(&error.kind), || said(&error))?;
                }
                (Ok(_), None) => {}
            }
            world.verify(vdi, &content, "a disk that another host has snapshotted")
        },
    },
];

/// An answer in a few words.
fn told<T>(answer: &Result<T, Error>) -> String {
    answer.as_ref().map_or_else(said, |_| "success".to_owned())
}

/// The generation of a block that says which it is.
fn generation(disk: &Disk, lba: u64) -> Verdict<Option<u64>> {
    let mut bytes = vec![0; BLOCK as usize];
    disk.read(lba * BLOCK, &mut bytes).map_err(Stop::Fail)?;
    Ok(match crate::oracle::Found::of(&bytes) {
        crate::oracle::Found::Written { mark, .. } => Some(mark.generation),
        _ => None,
    })
}

/// A request for I/O.
fn activate(vdi: VdiUuid, mode: AttachMode) -> VdiActivate {
    VdiActivate { vdi, mode, tracked: false }
}

/// Another host, which uses the same SR.
pub(super) fn host(world: &mut World<'_>, letter: &str) -> Verdict<Arc<ProcessPort>> {
    world.other(world.sr, &format!("conformance-host-{letter}"))
}

/// A call of another host.
pub(super) fn on<R: Request>(
    world: &mut World<'_>,
    host: Option<&Arc<ProcessPort>>,
    request: &R,
) -> Result<R::Reply, Error> {
    let host = host.cloned().ok_or_else(|| Error::internal("there is no such host"))?;
    let call = Call::new(R::OPERATION, world.new_operation(), world.bench.config.call_budget());
    world.call_on(&host, call, request)
}

/// Several hosts that have a disk attached.
fn several(world: &mut World<'_>, vdi: VdiUuid) -> Verdict<Vec<Arc<ProcessPort>>> {
    let mut hosts = Vec::new();
    for letter in ["b", "c", "d", "e"].iter().take(MANY) {
        let host = host(world, letter)?;
        on(world, Some(&host), &VdiAttach { vdi, mode: ReadWrite })?;
        hosts.push(host);
    }
    Ok(hosts)
}

/// The same call of all hosts, before any of them is waited for.
fn at_once<R: Request + Sync + Clone>(
    world: &mut World<'_>,
    hosts: &[Arc<ProcessPort>],
    request: &R,
) -> Verdict<Vec<Result<R::Reply, Error>>> {
    let budget = world.bench.config.call_budget();
    let mut tasks = Vec::new();
    for host in hosts {
        let (host, request) = (Arc::clone(host), request.clone());
        let call = Call::new(R::OPERATION, world.new_operation(), budget);
        let call = async move { port::call(host.as_ref(), call, &request).await };
        tasks.push(world.bench.runtime.spawn(call));
    }
    let mut answers = Vec::new();
    for task in tasks {
        let answer = world.bench.runtime.block_on(task);
        let answer = answer.map_err(|e| Stop::NotTestable(format!("a call broke: {e}")))?;
        world.note(R::OPERATION.name(), "by one of several hosts", &told(&answer));
        answers.push(answer);
    }
    Ok(answers)
}

/// None of the hosts may write.
fn still_held(
    world: &mut World<'_>,
    hosts: &[Arc<ProcessPort>],
    vdi: VdiUuid,
    when: &str,
) -> Verdict {
    for host in hosts {
        on(world, Some(host), &VdiAttach { vdi, mode: ReadWrite })?;
        let answer = on(world, Some(host), &activate(vdi, ReadWrite));
        let what = format!("another host's activate for writing {when}");
        World::refused(&what, "in_use", answer)?;
    }
    Ok(())
}

/// The hosts let go of a disk, and end.
fn part(world: &mut World<'_>, hosts: Vec<Arc<ProcessPort>>, vdi: VdiUuid) -> Verdict {
    for host in hosts {
        // One that was killed is started anew by this.
        on(world, Some(&host), &VdiDeactivate { vdi })?;
        on(world, Some(&host), &VdiDetach { vdi })?;
        world.bench.runtime.block_on(host.close(Duration::from_secs(5)));
    }
    Ok(())
}

/// Opens what another host reaches.
fn reach(
    world: &mut World<'_>,
    host: Option<&Arc<ProcessPort>>,
    vdi: VdiUuid,
    mode: AttachMode,
    done: VdiDatapathDone,
) -> Verdict<Disk> {
    let access = if done.access.is_empty() {
        on(world, host, &VdiAttach { vdi, mode })?.access
    } else {
        done.access
    };
    let folder = world.bench.images();
    let disk = Disk::open(&access, mode == ReadOnly, folder.as_deref());
    disk.map_err(|why| Stop::Fail(format!("another host cannot open VDI {vdi}: {why}")))
}

fn kill(host: &Arc<ProcessPort>) {
    let pid = host.process_id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        // One that has ended by itself is as dead.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Whether several hosts can be played here, and are kept apart by the driver. It must keep them apart
/// where hosts open images by themselves. A device is another matter: one machine has it once, whatever
/// its host calls itself. A driver whose files are those of one host may leave it to the toolstack.
fn keeps_lock(world: &mut World<'_>, vdi: VdiUuid) -> Verdict {
    let attached = world.call(VdiAttach { vdi, mode: ReadWrite })?;
    let device = match attached.access.first() {
        Some(Access::BlockDevice { .. }) => true,
        // A volume is no file, and may not be there before it is active.
        Some(Access::File { path, .. }) => !path.is_file(),
        _ => false,
    };
    let mut kept = world.can("datapath");
    if !device && !kept {
        world.call(activate(vdi, ReadWrite))?;
        let other = host(world, "z")?;
        on(world, Some(&other), &VdiAttach { vdi, mode: ReadWrite })?;
        kept = on(world, Some(&other), &activate(vdi, ReadWrite)).is_err();
        world.call(VdiDeactivate { vdi })?;
        part(world, vec![other], vdi)?;
    }
    world.call(VdiDetach { vdi })?;
    if device {
        return Err(Stop::NotApplicable(DEVICE.into()));
    }
    if !kept {
        let why = "the driver keeps hosts apart by nothing: its folder is one host's";
        return Err(Stop::NotApplicable(why.into()));
    }
    Ok(())
}
