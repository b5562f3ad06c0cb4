//! Faults of an array on command: each change goes wrong at one of its requests, or all requests do.
//!
//! They need a simulated array, which carries them out, and no initiator: no disk is attached.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sm_loader::Call;
use sm_model::sr::{SrAttach, SrScan};
use sm_model::{Error, Operation, Retry, VdiUuid};

use super::life::{Life, may_be_again};
use super::{Check, DISKS, Needs, Setup};
use crate::inventory::Simulator;
use crate::verdict::{Stop, Verdict, fail, must, said, same};
use crate::world::World;

const CHANGES: Needs = DISKS.and(&["vdi_stat"]);

/// Time of a call to which nobody answers.
const SHORT: Duration = Duration::from_secs(3);

/// When the controllers of an array have long changed over.
const OVER: Duration = Duration::from_secs(10);

/// How soon it is looked again.
const LOOK: Duration = Duration::from_millis(20);

/// Most sessions of one driver at an array: as many as the group of an EqualLogic has.
const SESSIONS: u64 = 7;

/// Most requests of one call while each is refused.
const REFUSALS: usize = 60;

macro_rules! fault {
    ($id:literal, $explain:literal, $ways:expr) => {
        Check {
            id: $id,
            needs: CHANGES,
            sentences: &["DRV-IDEM-1", "DRV-IDEM-8", "DRV-ERR-1", "DRV-ERR-5", "DRV-CRASH-3"],
            explain: $explain,
            setup: Setup::SrOfSimulator,
            run: |world| once(world, &$ways),
        }
    };
}

pub(super) const CHECKS: &[Check] = &[
    fault!(
        "K11",
        "Of each change (create, snapshot, clone, growth, destroy), one request to the array, chosen \
         by chance, is lost with its connection before it is carried out, and then the last one. The \
         call succeeds or says that it may be uttered again; then it is done, once, and nothing is \
         left over. Only a simulated array loses requests on command.",
        [json!({"kind": "drop_request"})]
    ),
    fault!(
        "O02",
        "As K11, of answers: the request is carried out, and its answer is lost, comes by half, ends \
         with a reset, or is a gateway's 504. Half an answer must not be believed.",
        [
            json!({"kind": "drop_reply"}),
            json!({"kind": "half_body"}),
            json!({"kind": "reset"}),
            json!({"kind": "fail_after", "status": 504}),
        ]
    ),
    fault!(
        "O05",
        "As K11, of answers that are no answers: status 200 and nonsense. It does not apply to an \
         array that is spoken to by a command line, where any text may be an answer.",
        [json!({"kind": "garbage"})]
    ),
    fault!(
        "O06",
        "As K11: a page for people, a login page for instance, in the place of an answer, and \
         nothing is carried out. It does not apply to an array that is spoken to by a command line.",
        [json!({"kind": "login_page"})]
    ),
    fault!(
        "I07",
        "As K11: the session is ended by the array before the request. The driver must log in \
         again, and the change be done once.",
        [json!({"kind": "end_session"})]
    ),
    Check {
        id: "I09",
        needs: CHANGES,
        sentences: &["DRV-IDEM-1", "DRV-ERR-7"],
        explain: "One request of each change, chosen by chance, is refused with status 429 and \
            `Retry-After: 1`. Nothing may be asked before that second is over; then the change is \
            done, once, at this call or the next.",
        setup: Setup::SrOfSimulator,
        run: |world| {
            let array = simulator(world)?;
            let requests = learn(world, &array)?;
            let life = Life::new(world)?;
            let way = json!({"kind": "refuse", "status": 429, "retry_after": "1"});
            for (wish, count) in life.wishes.clone().into_iter().zip(requests) {
                let id = world.new_operation();
                script(&array, world.dice.below(count), 1, &way)?;
                let before = asked(&array)?.len();
                let answer = wish.call(world, id);
                clear(&array)?;
                patient(&array, before)?;
                life.told(world, &wish, answer)?;
                life.done(world, &wish, id)?;
            }
            life.ends(world)
        },
    },
    Check {
        id: "O01",
        needs: CHANGES,
        sentences: &["DRV-LIST-3", "DRV-ERR-1", "DRV-ERR-7", "DRV-TIME-2"],
        explain: "Every connection to the array ends before its request is carried out, from the \
            first request of a listing on, and from its last on: the listing must fail as a whole, \
            with an error that does not say that something must change first, and so must a create. \
            Then the array is back, and they succeed.",
        setup: Setup::SrOfSimulator,
        run: |world| {
            let array = simulator(world)?;
            let life = Life::new(world)?;
            let count = requests_of_list(world, &array)?;
            for after in BTreeSet::from([0, count.saturating_sub(1)]) {
                script(&array, after, 0, &json!({"kind": "drop_request"}))?;
                let port = world.port()?;
                let call = Call::new(Operation::SrScan, world.new_operation(), SHORT);
                let answer = world.call_on(&port, call, &SrScan::default());
                clear(&array)?;
                away("a listing", answer.map(drop))?;
            }
            world.list()?;
            for (number, wish) in life.wishes.iter().enumerate() {
                let id = world.new_operation();
                if number == 0 {
                    script(&array, 0, 0, &json!({"kind": "drop_request"}))?;
                    let answer = wish.call_within(world, id, SHORT);
                    clear(&array)?;
                    away(wish.name(), answer)?;
                }
                life.done(world, wish, id)?;
            }
            life.ends(world)
        },
    },
    Check {
        id: "O03",
        needs: CHANGES,
        sentences: &["DRV-TIME-2", "DRV-TIME-1", "DRV-IDEM-1", "DRV-IDEM-8"],
        explain: "The array takes the requests of a create, carries them out, and says nothing: the \
            call must end within 5 s of its deadline, which is 3 s here. Then the array answers \
            again, and the same wish is done, once.",
        setup: Setup::SrOfSimulator,
        run: |world| deadline(world, &json!({"kind": "silence", "milliseconds": 12_000})),
    },
    Check {
        id: "O07",
        needs: CHANGES,
        sentences: &["DRV-TIME-2", "DRV-TIME-1", "DRV-IDEM-1", "DRV-IDEM-8"],
        explain: "As O03, with answers that come a byte in a quarter of a second: that something \
            comes at all is no reason to wait past the deadline.",
        setup: Setup::SrOfSimulator,
        run: |world| deadline(world, &json!({"kind": "slow_drip", "milliseconds": 250})),
    },
    Check {
        id: "O04",
        needs: CHANGES,
        sentences: &["DRV-TIME-2", "DRV-ERR-7", "DRV-IDEM-1"],
        explain: "The array refuses everything with status 503: each change must end in time with \
            an error that does not say that something must change first, after at most sixty \
            requests. Then it answers, and all is done.",
        setup: Setup::SrOfSimulator,
        run: |world| {
            let array = simulator(world)?;
            let life = Life::new(world)?;
            for wish in life.wishes.clone() {
                let id = world.new_operation();
                script(&array, 0, 0, &json!({"kind": "refuse", "status": 503}))?;
                let before = asked(&array)?.len();
                let answer = wish.call_within(world, id, SHORT);
                let requests = asked(&array)?.len().saturating_sub(before);
                clear(&array)?;
                away(wish.name(), answer)?;
                must(requests <= REFUSALS, || {
                    format!("{} made {requests} requests that were refused", wish.name())
                })?;
                life.done(world, &wish, id)?;
            }
            life.ends(world)
        },
    },
    Check {
        id: "O09",
        needs: CHANGES,
        sentences: &["DRV-IDEM-1", "DRV-ERR-7", "DRV-CRASH-3"],
        explain: "The controllers of the array change over before each change: sessions end, and \
            for half a second changes are refused. A change is done, or says that it may be uttered \
            again, and is done when it is.",
        setup: Setup::SrOfSimulator,
        run: |world| {
            let array = simulator(world)?;
            let life = Life::new(world)?;
            for wish in life.wishes.clone() {
                let id = world.new_operation();
                admin(&array, "POST", "/failover", &json!({"milliseconds": 500}))?;
                let mut answer = wish.call(world, id);
                let began = Instant::now();
                while answer.is_err() && began.elapsed() < OVER {
                    may_be_again(wish.name(), answer)?;
                    std::thread::sleep(LOOK);
                    answer = wish.call(world, id);
                }
                life.told(world, &wish, answer)?;
                life.done(world, &wish, id)?;
            }
            life.ends(world)
        },
    },
    Check {
        id: "O15",
        needs: CHANGES,
        sentences: &["DRV-IDEM-1", "DRV-IDEM-7"],
        explain: "The clock of the array jumps a day ahead before each change: sessions, jobs and \
            what else lasts for a time are over. Each change is done at the first or second call.",
        setup: Setup::SrOfSimulator,
        run: |world| {
            let array = simulator(world)?;
            let life = Life::new(world)?;
            for wish in life.wishes.clone() {
                let id = world.new_operation();
                admin(&array, "POST", "/clock", &json!({"advance": 25 * 3_600_000_u64}))?;
                let answer = wish.call(world, id);
                life.told(world, &wish, answer)?;
                life.done(world, &wish, id)?;
            }
            life.ends(world)
        },
    },
    Check {
        id: "R04",
        needs: CHANGES,
        sentences: &["DRV-TIME-6"],
        explain: "The requests of a second listing are counted with four disks and with twenty: \
            sixteen more disks may take four more requests at most, or each disk is asked for by \
            itself. Only a simulated array counts what it is asked.",
        setup: Setup::SrOfSimulator,
        run: |world| {
            let array = simulator(world)?;
            let mut counts = Vec::new();
            for more in [4, 16] {
                for _ in 0..more {
                    world.create("counted")?;
                }
                counts.push(requests_of_list(world, &array)?);
            }
            let &[few, many] = counts.as_slice() else { return Ok(()) };
            must(many <= few + 4, || {
                format!("a listing of 4 disks takes {few} requests, one of 20 takes {many}")
            })
        },
    },
];

/// The requests of a listing when another one was just before.
fn requests_of_list(world: &mut World<'_>, array: &Simulator) -> Verdict<u64> {
    world.list()?;
    let before = asked(array)?.len();
    world.list()?;
    Ok(asked(array)?.len().saturating_sub(before) as u64)
}

/// One request of each change goes wrong, in each way; then the last one.
fn once(world: &mut World<'_>, ways: &[Value]) -> Verdict {
    let array = simulator(world)?;
    // Also those of processes that other checks have killed.
    let before = sessions(&array)?;
    let requests = learn(world, &array)?;
    if ways.iter().any(|way| way["kind"] == "garbage" || way["kind"] == "login_page") {
        by_form(&array)?;
    }
    for way in ways {
        for last in [false, true] {
            let life = Life::new(world)?;
            for (wish, count) in life.wishes.clone().into_iter().zip(&requests) {
                let after = if last { count.saturating_sub(1) } else { world.dice.below(*count) };
                let id = world.new_operation();
                script(&array, after, 1, way)?;
                let answer = wish.call(world, id);
                clear(&array)?;
                let what = format!("{} whose request {} met {way}", wish.name(), after + 1);
                let told = life.told(world, &wish, answer);
                told.and_then(|()| life.done(world, &wish, id)).map_err(|stop| of(&what, stop))?;
            }
            if last {
                listings(world, &array, way)?;
            }
            life.ends(world)?;
        }
    }
    if ways.iter().any(|way| way["kind"] == "end_session") {
        few_sessions(&array, before)?;
    }
    Ok(())
}

/// A failure, with what it is about.
fn of(what: &str, stop: Stop) -> Stop {
    match stop {
        Stop::Fail(why) => Stop::Fail(format!("{what}: {why}")),
        other => other,
    }
}

/// Each request of a listing goes wrong once: the listing is whole, or it fails and may be asked for again.
fn listings(world: &mut World<'_>, array: &Simulator, way: &Value) -> Verdict {
    // Without what the driver knows of the disks that it has just made.
    world.reopen()?;
    world.call(SrAttach {})?;
    let there: BTreeSet<VdiUuid> = world.list()?.into_keys().collect();
    for after in 0..requests_of_list(world, array)? {
        script(array, after, 1, way)?;
        let answer = world.call(SrScan::default());
        clear(array)?;
        let what = format!("a listing whose request {} met {way}", after + 1);
        match answer {
            Ok(page) if page.next.is_none() => {
                let listed = page.vdis.into_iter().map(|vdi| vdi.uuid).collect();
                same(&what, listed, there.clone())?;
            }
            answer => may_be_again(&what, answer.map(drop))?,
        }
    }
    Ok(())
}

/// A driver logs in again when its session has ended, and not beside it.
fn few_sessions(array: &Simulator, before: u64) -> Verdict {
    let more = sessions(array)?.saturating_sub(before);
    must(more <= SESSIONS, || format!("{more} sessions are open at the array, of one driver"))
}

fn sessions(array: &Simulator) -> Verdict<u64> {
    let said = admin(array, "GET", "/sessions", &Value::Null)?;
    Ok(said["open"].as_u64().unwrap_or_default())
}

/// How many requests each change takes.
fn learn(world: &mut World<'_>, array: &Simulator) -> Verdict<Vec<u64>> {
    let life = Life::new(world)?;
    let mut requests = Vec::new();
    for wish in &life.wishes {
        let before = asked(array)?.len();
        let id = world.new_operation();
        wish.call(world, id)?;
        requests.push(asked(array)?.len().saturating_sub(before) as u64);
    }
    life.ends(world)?;
    Ok(requests)
}

/// After a request that was to wait a second, nothing was asked for that long.
fn patient(array: &Simulator, before: usize) -> Verdict {
    let all = asked(array)?;
    let at = |line: &Value| line["at"].as_u64().unwrap_or_default();
    let mut lines = all.iter().skip(before);
    let Some(refused) = lines.find(|line| line["status"] == 429) else { return Ok(()) };
    let waited = lines.next().map_or(u64::MAX, |next| at(next).saturating_sub(at(refused)));
    must(waited >= 900, || {
        format!("a request came {waited} ms after one that was told to wait a second")
    })
}

/// A create to whose requests nothing comes in time.
fn deadline(world: &mut World<'_>, way: &Value) -> Verdict {
    let array = simulator(world)?;
    let life = Life::new(world)?;
    let Some(create) = life.wishes.first().cloned() else { return Ok(()) };
    let id = world.new_operation();
    script(&array, 0, 0, way)?;
    let process = world.port()?.process_id();
    let answer = create.call_within(world, id, SHORT);
    let ended = answer.as_ref().err().map_or_else(String::new, said);
    clear(&array)?;
    same(&format!("the driver's process, after {ended}"), world.port()?.process_id(), process)?;
    life.told(world, &create, answer)?;
    life.done(world, &create, id)?;
    life.ends(world)
}

/// As [`may_be_again`], and no success.
fn away(what: &str, answer: Result<(), Error>) -> Verdict {
    let Err(error) = answer else {
        return fail(format!("{what} succeeded, and the array answered nothing"));
    };
    must(error.retry != Retry::Permanent, || {
        format!(
            "{what}: the same call can succeed later, and the error denies it: {}",
            said(&error)
        )
    })?;
    may_be_again(what, Err(error))
}

/// The array, if it is one that goes wrong on command.
fn simulator(world: &World<'_>) -> Verdict<Simulator> {
    world.bench.simulator().ok_or_else(|| {
        Stop::NotApplicable(
            "the configuration names no simulated array: nothing goes wrong on command".into(),
        )
    })
}

fn admin(array: &Simulator, method: &str, path: &str, body: &Value) -> Verdict<Value> {
    array.admin(method, path, &body.to_string()).map_err(Stop::NotTestable)
}

fn script(array: &Simulator, after: u64, times: u64, effect: &Value) -> Verdict {
    let line = json!([{"call": "*", "after": after, "times": times, "effect": effect}]);
    admin(array, "POST", "/faults", &line).map(drop)
}

fn clear(array: &Simulator) -> Verdict {
    array.admin("DELETE", "/faults", "").map(drop).map_err(Stop::NotTestable)
}

/// The requests so far.
fn asked(array: &Simulator) -> Verdict<Vec<Value>> {
    let all = array.admin("GET", "/requests", "").map_err(Stop::NotTestable)?;
    Ok(all.as_array().cloned().unwrap_or_default())
}

/// An array whose answers have a form: not a command line, where any text may be one.
fn by_form(array: &Simulator) -> Verdict {
    let all = asked(array)?;
    let http = |line: &Value| {
        let line = line["line"].as_str().unwrap_or_default();
        line.split_once(' ').is_some_and(|(_, rest)| rest.starts_with('/'))
    };
    if all.iter().any(http) {
        return Ok(());
    }
    let why = "the array is spoken to by a command line: any text may be an answer";
    Err(Stop::NotApplicable(why.into()))
}
