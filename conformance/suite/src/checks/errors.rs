//! What goes wrong, in words and in kinds.

use sm_loader::Call;
use sm_model::manifest::FieldKind;
use sm_model::vdi::{VdiAttach, VdiResize, VdiRevert, VdiUpdate};
use sm_model::{AttachMode, Bytes, Error, Kind, Operation, Retry};

use super::{Check, DISKS, Needs, Setup};
use crate::bench::Opening;
use crate::verdict::{Stop, Verdict, must, said, same};
use crate::world::{HOST, World};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "L01",
        needs: DISKS,
        sentences: &["DRV-ERR-1"],
        explain: "Each operation that the driver declares is called for a VDI that does not \
            exist: the kind must be `not_found`, each time.",
        setup: Setup::Sr,
        run: |world| {
            world.create("other")?;
            for (what, answer) in unknown(world) {
                World::refused(&format!("{what} of a VDI that is not there"), "not_found", answer)?;
            }
            Ok(())
        },
    },
    Check {
        id: "L02",
        needs: DISKS,
        sentences: &["DRV-ERR-7", "DRV-ERR-1"],
        explain: "That a VDI does not exist does not change by trying again: such an error must \
            not say that it is temporary.",
        setup: Setup::Sr,
        run: |world| {
            for (what, answer) in unknown(world) {
                if let Err(error) = answer {
                    must(error.retry != Retry::Temporary, || {
                        format!("{what} says that a retry can help: {}", said(&error))
                    })?;
                }
            }
            Ok(())
        },
    },
    Check {
        id: "L03",
        needs: DISKS,
        sentences: &["DRV-ERR-2"],
        explain: "The error about a VDI that does not exist must name the VDI, in its message or \
            its context, name the operation, and be one sentence.",
        setup: Setup::Sr,
        run: |world| {
            let absent = world.new_vdi();
            let answer = world.call(sm_model::vdi::VdiStat::of(absent));
            let error = World::refused("vdi_stat of nothing", "not_found", answer)?;
            let named = error.message.contains(&absent.to_string())
                || error.context.values().any(|value| *value == absent.to_string());
            must(named, || format!("the error does not name the VDI: {}", said(&error)))?;
            must(error.message.len() < 300 && !error.message.contains('\n'), || {
                format!("the message is not one sentence: {:?}", error.message)
            })?;
            same("the operation of an error", error.operation.as_deref(), Some("vdi_stat"))
        },
    },
    Check {
        id: "L04",
        needs: DISKS,
        sentences: &["DRV-ERR-5"],
        explain: "After each refused call the listing and the backend must be as before it.",
        setup: Setup::Sr,
        run: |world| {
            let (listed, files) =
                (world.create("other").and_then(|_| world.list())?, world.files()?);
            unknown(world);
            same("the listing after refusals", world.list()?, listed)?;
            same("the backend after refusals", world.files()?, files)
        },
    },
    Check {
        id: "L05",
        needs: Needs::only(&["sr_create"]),
        sentences: &["DRV-CONF-1"],
        explain: "A key that the driver does not declare must be refused by name, with `config`, \
            before anything happens.",
        setup: Setup::Nothing,
        run: |world| {
            let mut config = world.bench.device_config(false);
            config.insert("no-such-key".into(), "smc-value-of-a-key".into());
            let error = refused_open(world, config)?;
            must(error.message.contains("no-such-key"), || {
                format!("the error does not name the key: {}", said(&error))
            })?;
            no_value(&error, "smc-value-of-a-key")
        },
    },
    Check {
        id: "B03",
        needs: Needs::only(&["sr_create"]),
        sentences: &["DRV-CONF-2", "DRV-CONF-3"],
        explain: "All required keys that are missing must be named at once, with `config`; and a \
            value of the wrong form must be refused without being repeated.",
        setup: Setup::Nothing,
        run: |world| {
            let fields = &world.manifest().config;
            let required: Vec<&str> =
                fields.iter().filter(|f| f.required).map(|f| f.name.as_str()).collect();
            if !required.is_empty() {
                let error = refused_open(world, std::collections::BTreeMap::new())?;
                for key in &required {
                    must(error.message.contains(key), || {
                        format!("the error does not name {key}: {}", said(&error))
                    })?;
                }
            }
            for field in fields.iter().filter(|field| field.kind != FieldKind::Text) {
                let mut config = world.bench.device_config(false);
                config.insert(field.name.clone(), "smc not a value".into());
                let error = refused_open(world, config)?;
                no_value(&error, "smc not a value")?;
            }
            Ok(())
        },
    },
    Check {
        id: "L06",
        needs: DISKS,
        sentences: &["DRV-ERR-6"],
        explain: "No error, of calls with unknown VDIs, odd sizes and wrong modes, may be \
            `internal`, or speak of a panic or a place in the source: those are defects.",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("other")?.uuid;
            let mut answers = unknown(world);
            if world.can("vdi_resize") {
                for size in [0, 1, u64::MAX, u64::MAX - 511, 1 << 62] {
                    let request = VdiResize { vdi, virtual_size: Bytes(size) };
                    answers.push(("vdi_resize", world.call(request).map(drop)));
                }
            }
            for size in [u64::MAX, u64::MAX - 511, 1 << 63, 0] {
                let mut request = world.disk("odd");
                request.virtual_size = Bytes(size);
                answers.push(("vdi_create", world.call(request).map(drop)));
            }
            for (what, answer) in answers {
                let Err(error) = answer else { continue };
                let text = serde_json::to_string(&error).unwrap_or_default();
                let defect = error.kind == Kind::Internal
                    || error.kind == Kind::Unknown
                    || ["panicked", ".rs:", "backtrace"].iter().any(|word| text.contains(word));
                must(!defect, || format!("{what} answered a defect: {text}"))?;
            }
            world.list().map(drop)
        },
    },
    Check {
        id: "A12",
        needs: DISKS,
        sentences: &["DRV-TIME-1", "DRV-TIME-2"],
        explain: "A create is cancelled before it begins: it must end with `cancelled` and leave \
            nothing, or be whole. It must end within deadline and grace either way.",
        setup: Setup::Sr,
        run: |world| {
            for _ in 0..3 {
                let request = world.disk("cancelled");
                let uuid = request.uuid;
                let id = world.new_operation();
                let call = Call::new(Operation::VdiCreate, id, world.bench.config.call_budget());
                call.cancel.cancel();
                let port = world.port()?;
                match world.call_on(&port, call, &request) {
                    // It was done before the cancel was seen.
                    Ok(_) => world.destroy(uuid)?,
                    Err(error) if error.kind == Kind::Cancelled => {
                        must(!world.list()?.contains_key(&uuid), || {
                            "a create that was cancelled has made a VDI".into()
                        })?;
                        let left = world.left_over()?;
                        must(left.is_empty(), || format!("a cancelled create left {left:?}"))?;
                    }
                    Err(error) => {
                        return Err(Stop::Fail(format!("a cancelled create: {}", said(&error))));
                    }
                }
            }
            Ok(())
        },
    },
    Check {
        id: "Q01",
        needs: DISKS,
        sentences: &["DRV-SEC-1", "DRV-CONF-4"],
        explain: "A secret that is made up for this run, or one of the configuration with twelve \
            characters or more, is looked for in everything that the driver logs, answers, keeps on the backend, stores with the host and gives to \
            programs as an argument, and in the environment and arguments of its processes.",
        setup: Setup::Sr,
        run: canary,
    },
];

/// A call of each operation about a VDI that is not there.
fn unknown(world: &mut World<'_>) -> Vec<(&'static str, Result<(), Error>)> {
    let vdi = world.new_vdi();
    let mut answers = vec![("vdi_stat", world.stat(vdi).map(drop))];
    macro_rules! ask {
        ($name:literal, $request:expr) => {
            if world.can($name) {
                let request = $request;
                answers.push(($name, world.call(request).map(drop)));
            }
        };
    }
    ask!("vdi_attach", VdiAttach { vdi, mode: AttachMode::ReadWrite });
    ask!("vdi_resize", VdiResize { vdi, virtual_size: Bytes(world.size() * 2) });
    ask!("vdi_snapshot", world.snapshot_of(vdi));
    ask!("vdi_clone", world.clone_of(vdi));
    ask!("vdi_revert", VdiRevert { vdi, snapshot: world.new_vdi() });
    ask!("vdi_check", sm_model::vdi::VdiCheck { vdi });
    ask!(
        "vdi_update",
        VdiUpdate {
            vdi,
            name: Some("n".into()),
            description: None,
            vdi_type: None,
            read_only: None,
            keys: std::collections::BTreeMap::new(),
            incomplete: None,
        }
    );
    if !world.can("vdi_stat") {
        drop(answers.remove(0));
    }
    answers
}

fn refused_open(
    world: &mut World<'_>,
    config: std::collections::BTreeMap<String, String>,
) -> Verdict<Error> {
    let opening = Opening {
        sr: Some(world.sr),
        host: HOST,
        device_config: Some(config),
        ..Opening::default()
    };
    let answer = world.bench.open(&opening, &world.services).map(drop);
    World::refused("an open with a wrong configuration", "config", answer)
}

fn no_value(error: &Error, value: &str) -> Verdict {
    let text = serde_json::to_string(error).unwrap_or_default();
    must(!text.contains(value), || format!("an error repeats the value of a key: {text}"))
}

fn canary(world: &mut World<'_>) -> Verdict {
    let secrets = world.bench.secrets();
    if !world.manifest().config.iter().any(|field| field.secret) {
        return Err(Stop::NotApplicable("the driver declares no secret".into()));
    }
    if secrets.is_empty() {
        let why = "no key of [secrets] is \"{canary}\", or has a text that can be told from others";
        return Err(Stop::NotTestable(why.into()));
    }
    if !crate::logbook::installed() {
        return Err(Stop::NotTestable("another log is installed in this process".into()));
    }
    let vdi = world.create("secret")?.uuid;
    if world.can_use_data() {
        let disk = world.open(vdi, AttachMode::ReadOnly)?;
        world.shut(vdi, disk)?;
    }
    let refusals = unknown(world);
    let attached = world.call(sm_model::sr::SrAttach {})?;
    let again =
        world.call(sm_model::sr::SrCreate { name: "again".into(), description: String::new() });
    let pid = world.port()?.process_id().unwrap_or(0);
    let mut places = vec![
        ("an answer", world.log.clone()),
        ("an answer", format!("{attached:?} {again:?}")),
        ("an error", format!("{refusals:?}")),
        ("the log", crate::logbook::text()),
        ("the host's state or an argument of a program", world.services.seen().join("\n")),
    ];
    for file in ["cmdline", "environ"] {
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        places.push(("the process table", String::from_utf8_lossy(&bytes).into_owned()));
    }
    for file in world.own_files()? {
        let path = world.bench.directory().unwrap_or_default().join(&file);
        if path.metadata().is_ok_and(|facts| facts.len() < (1 << 20)) {
            let bytes = std::fs::read(path).unwrap_or_default();
            places.push(("a file of the backend", String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    let found = places.iter().find(|(_, text)| secrets.iter().any(|secret| text.contains(secret)));
    must(found.is_none(), || {
        format!("the text of a secret is in {}", found.map_or("", |(place, _)| place))
    })
}
