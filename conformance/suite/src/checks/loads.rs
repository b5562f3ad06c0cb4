//! The file, its manifest, and what a loader does with them.

use sm_loader::{Call, DriverPort as _};
use sm_model::manifest::feature;
use sm_model::operation::OPERATIONS;
use sm_model::{Kind, Operation};

use super::{Check, DISKS, Needs, Setup};
use crate::bench::Opening;
use crate::verdict::{Stop, Verdict, must, said, same};
use crate::world::{HOST, World};

/// Sessions that are opened and closed.
const RELOADS: usize = 20;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "A01",
        needs: Needs::NOTHING,
        sentences: &["DRV-LOAD-1", "DRV-LOAD-2", "DRV-LOAD-3", "DRV-TIME-5"],
        explain: "The file is inspected without running its code, loaded into a process, its \
            layout and its manifest compared with what the code answers, and opened; its session \
            says that it is well.",
        setup: Setup::Nothing,
        run: |world| {
            world.reopen()?;
            let (said, read) = (world.port()?.manifest().clone(), world.manifest());
            same("the manifest of the code", &said, read)?;
            let health = world.port()?.health();
            must(health == sm_loader::PortHealth::Ok, || format!("a new session is {health:?}"))?;
            must(!read.name.is_empty() && !read.version.is_empty(), || "it has no name".into())
        },
    },
    Check {
        id: "A03",
        needs: Needs::NOTHING,
        sentences: &["DRV-LOAD-1"],
        explain: "A text file, an empty one, and this driver cut to a half and to 4 KiB must each \
            be refused in words, without a crash.",
        setup: Setup::Nothing,
        run: |world| {
            let whole = std::fs::read(&world.bench.driver).map_err(|error| {
                Stop::NotTestable(format!("the driver cannot be read: {error}"))
            })?;
            let half = whole.get(..whole.len() / 2).unwrap_or_default();
            let head = whole.get(..4096).unwrap_or_default();
            for (number, bytes) in [b"#!/bin/sh\n", b"".as_slice(), half, head].iter().enumerate() {
                let path = world.bench.scratch.join(format!("no-driver-{number}.so"));
                std::fs::write(&path, bytes)
                    .map_err(|error| Stop::NotTestable(format!("{}: {error}", path.display())))?;
                let refused = sm_loader::inspect(&path).is_err();
                must(refused, || format!("file {number}, which is no driver, is taken for one"))?;
            }
            Ok(())
        },
    },
    Check {
        id: "A07",
        needs: DISKS,
        sentences: &["DRV-LOAD-7", "DRV-LOAD-8", "DRV-LOAD-10"],
        explain: "Twenty sessions are opened and closed, each with a process of its own, beside \
            one that stays: no process, file or socket may be left by them, the one that stays \
            works on, and the backend is as before.",
        setup: Setup::Sr,
        run: |world| {
            let files = world.files()?;
            let me = std::process::id();
            let before = (crate::inventory::processes(me).len(), crate::inventory::held(me));
            for _ in 0..RELOADS {
                let port = world.other(world.sr, HOST)?;
                let id = world.new_operation();
                let call = Call::new(Operation::SrAttach, id, world.bench.config.call_budget());
                world.call_on(&port, call, &sm_model::sr::SrAttach {})?;
                world.bench.runtime.block_on(port.close(std::time::Duration::from_secs(5)));
            }
            let after = (crate::inventory::processes(me).len(), crate::inventory::held(me));
            must(after.0 <= before.0, || {
                format!("{} processes are left after {RELOADS} sessions", after.0 - before.0)
            })?;
            if let (Some(before), Some(after)) = (before.1, after.1) {
                must(after.sockets <= before.sockets + 2, || {
                    format!("{} sockets are open, {} were", after.sockets, before.sockets)
                })?;
            }
            same("the backend after sessions that did nothing", world.files()?, files)?;
            world.list().map(drop)
        },
    },
    Check {
        id: "A10",
        needs: DISKS,
        sentences: &["DRV-LOAD-11", "DRV-LOAD-4"],
        explain: "A request with a field that this driver's release does not know comes from a \
            newer host: it must be answered as if the field were not there.",
        setup: Setup::Sr,
        run: |world| {
            let port = world.port()?;
            let id = world.new_operation();
            let call = Call::new(Operation::SrScan, id, world.bench.config.call_budget());
            let request = br#"{"of_a_later_release": {"a": [1, 2, 3]}}"#.to_vec();
            world.bench.runtime.block_on(port.call(call, request))?;
            Ok(())
        },
    },
    Check {
        id: "A14",
        needs: Needs::NOTHING,
        sentences: &["DRV-LOAD-12", "DRV-LOAD-4", "DRV-LOAD-5"],
        explain: "The manifest must not contradict itself: no capability twice, no operation \
            without those that it is nothing without, no limit of zero. And each operation that \
            is not declared must be answered with `unsupported`: what works undeclared is a lie too.",
        setup: Setup::Nothing,
        run: |world| {
            well_formed(world)?;
            world.reopen()?;
            for row in OPERATIONS {
                if !world.can(row.name) && row.operation != Operation::SrProbe {
                    undeclared(world, row.operation)?;
                }
            }
            Ok(())
        },
    },
    Check {
        id: "Q03",
        needs: DISKS,
        sentences: &["DRV-PROC-2"],
        explain: "A driver that does not say it needs root must do its work as the user nobody, in \
            a process that can gain no rights.",
        setup: Setup::Sr,
        run: |world| {
            if world.manifest().needs_root {
                return Err(Stop::NotApplicable("the driver says that it needs root".into()));
            }
            if !rustix::process::geteuid().is_root() {
                return Err(Stop::NotTestable("only root can run it as another user".into()));
            }
            world.create("mine")?;
            let pid = world.port()?.process_id().unwrap_or(0);
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            must(status.contains("\nUid:\t65534\t65534\t65534\t65534\n"), || {
                "the driver's process is not nobody's".into()
            })?;
            must(status.contains("\nNoNewPrivs:\t1\n"), || "it could gain rights".into())
        },
    },
    Check {
        id: "A08",
        needs: DISKS,
        sentences: &["DRV-ATT-6", "DRV-CRASH-1", "DRV-IDEM-1"],
        explain: "The session is closed while a create is under way. The call ends, one way or the \
            other; the next session is sound, and the same wish, uttered again, is fulfilled once.",
        setup: Setup::Sr,
        run: |world| {
            let request = world.disk("busy");
            let id = world.new_operation();
            let (port, budget) = (world.port()?, world.bench.config.call_budget());
            let call = Call::new(Operation::VdiCreate, id, budget);
            let (busy, asked) = (std::sync::Arc::clone(&port), request.clone());
            let under_way = world
                .bench
                .runtime
                .spawn(async move { sm_loader::port::call(busy.as_ref(), call, &asked).await });
            world.close()?;
            let answer = world.bench.runtime.block_on(under_way);
            world.note("the call under way", "", &format!("{answer:?}"));
            world.reopen()?;
            world.call(sm_model::sr::SrAttach {})?;
            world.call_as(id, &request)?;
            same("VDIs in the listing", world.list()?.len(), 1)
        },
    },
];

/// What is nothing without something else.
const PAIRS: &[(&str, &[&str])] = &[
    ("sr_destroy", &["sr_create"]),
    ("sr_detach", &["sr_attach"]),
    ("vdi_destroy", &["sr_scan"]),
    ("vdi_create", &["vdi_destroy", "sr_scan"]),
    ("vdi_snapshot", &["vdi_destroy", "sr_scan"]),
    ("vdi_clone", &["vdi_destroy", "sr_scan"]),
    ("vdi_revert", &["vdi_snapshot"]),
    ("vdi_activate", &["vdi_attach", "vdi_deactivate"]),
    ("vdi_attach", &["vdi_detach"]),
    ("vdi_changed", &["vdi_cbt"]),
    (feature::GROUP_SNAPSHOT, &["vdi_snapshot"]),
    ("vdi_snapshot_prepare", &["vdi_snapshot"]),
    (feature::QOS_OPERATIONS, &["vdi_qos"]),
    (feature::QOS_BYTES, &["vdi_qos"]),
    (feature::LIVE_SNAPSHOT, &["vdi_snapshot"]),
    (feature::LIVE_RESIZE, &["vdi_resize"]),
    (feature::CHANGED_BLOCKS, &["vdi_cbt", "vdi_changed"]),
];

fn well_formed(world: &World<'_>) -> Verdict {
    let manifest = world.manifest();
    let mut names: Vec<&str> = manifest.capabilities.iter().map(|c| c.name.as_str()).collect();
    names.sort_unstable();
    for pair in names.windows(2) {
        must(pair.first() != pair.last(), || format!("{pair:?} is declared twice"))?;
    }
    for (name, needs) in PAIRS.iter().filter(|(name, _)| manifest.can(name)) {
        let lacks = needs.iter().find(|need| !manifest.can(need));
        must(lacks.is_none(), || format!("{name} is declared, and {lacks:?} is not"))?;
    }
    let zero = manifest.capabilities.iter().find(|capability| capability.limit == Some(0));
    must(zero.is_none(), || format!("{zero:?} is no limit"))
}

/// An operation that is not declared must be refused as such.
pub(crate) fn undeclared(world: &mut World<'_>, operation: Operation) -> Verdict {
    let port = world.port()?;
    let id = world.new_operation();
    let call = Call::new(operation, id, world.bench.config.call_budget());
    let request = serde_json::json!({
        "vdi": world.new_vdi(), "uuid": world.new_vdi(), "snapshot": world.new_vdi(),
        "from": world.new_vdi(), "to": world.new_vdi(), "name": "n", "description": "",
        "virtual_size": 4 << 20, "snapshots": [], "time": 1, "mode": "read_only", "enabled": true,
        "vdi_type": "user", "keys": {}, "host": "other",
    });
    let answer = world.bench.runtime.block_on(port.call(call, request.to_string().into_bytes()));
    world.note(operation.name(), "undeclared", &format!("{answer:?}"));
    match answer {
        Err(error) if error.kind == Kind::Unsupported => Ok(()),
        Err(error) => Err(Stop::Fail(format!(
            "{operation} is not declared, and must be refused with unsupported: {}",
            said(&error)
        ))),
        Ok(_) => Err(Stop::Fail(format!("{operation} is not declared, and works"))),
    }
}

/// Whether an operation that a check needs is honestly absent.
pub(crate) fn honestly_absent(world: &mut World<'_>, need: &str) -> Verdict {
    let Ok(operation) = need.parse::<Operation>() else { return Ok(()) };
    if operation == Operation::SrProbe {
        let opening = Opening { host: HOST, ..Opening::default() };
        let services = world.bench.services();
        let port = std::sync::Arc::new(world.bench.open(&opening, &services)?);
        let id = world.new_operation();
        let call = Call::new(operation, id, world.bench.config.call_budget());
        let answer = world.call_on(&port, call, &sm_model::sr::SrProbe {});
        return World::refused("a probe that is not declared", "unsupported", answer).map(drop);
    }
    world.reopen()?;
    undeclared(world, operation)
}
