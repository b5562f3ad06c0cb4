//! Hosts that want one right at the same time, in orders that chance makes: one of them runs at a
//! time, and each read, write and pause lets another one go on. Writes are torn, hosts stall
//! anywhere, lose power and boot again, and their clocks differ.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Condvar;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
/// As they are, but for looks, which cost a model time.
const SLOWLY: Times = Times { look: SECOND, ..TIMES };

/// A host has lost its power.
struct Died;

struct Actor {
    wake: Duration,
    waits: bool,
    done: bool,
    dead: bool,
}

struct World {
    now: Duration,
    seed: u64,
    slots: Vec<u8>,
    actors: Vec<Actor>,
    running: Option<usize>,
    /// Hosts stall and die only when all have their slots.
    rough: bool,
    /// The epoch of the last who did something.
    last: u64,
    acts: usize,
    deaths: usize,
}

struct Stage {
    world: Mutex<World>,
    turn: Condvar,
}

impl World {
    fn chance(&mut self, of: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % of
    }

    /// Lets one of those go on whose time has come, if all wait.
    fn next(&mut self) {
        if self.actors.iter().any(|actor| !actor.waits && !actor.done) {
            return;
        }
        let waits = |actor: &&Actor| actor.waits;
        let Some(first) = self.actors.iter().filter(waits).map(|actor| actor.wake).min() else {
            return;
        };
        self.now = self.now.max(first);
        let soon = self.now + Duration::from_millis(2);
        let ready: Vec<usize> = (0..self.actors.len())
            .filter(|index| self.actors[*index].waits && self.actors[*index].wake <= soon)
            .collect();
        let chosen = ready[self.chance(ready.len() as u64) as usize];
        self.now = self.now.max(self.actors[chosen].wake);
        self.running = Some(chosen);
    }
}

impl Stage {
    fn new(seed: u64, hosts: usize) -> Arc<Self> {
        let actor = || Actor { wake: Duration::ZERO, waits: false, done: false, dead: false };
        let world = World {
            now: SECOND,
            seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            slots: vec![0; 2 * HOSTS * SLOT],
            actors: (0..hosts).map(|_| actor()).collect(),
            running: None,
            rough: false,
            last: 0,
            acts: 0,
            deaths: 0,
        };
        Arc::new(Self { world: Mutex::new(world), turn: Condvar::new() })
    }

    /// Lets others go on for a time.
    fn step(&self, me: usize, time: Duration) {
        let mut world = locked(&self.world);
        if world.actors[me].dead {
            return;
        }
        world.actors[me].wake = world.now + time;
        world.actors[me].waits = true;
        world.running = None;
        world.next();
        self.turn.notify_all();
        while world.running != Some(me) {
            world = self.turn.wait(world).unwrap_or_else(PoisonError::into_inner);
        }
        world.actors[me].waits = false;
    }

    /// The same in the middle of a read or write: it may take long, and be the last thing.
    fn stumble(&self, me: usize) {
        if std::thread::panicking() {
            return;
        }
        let time = {
            let mut world = locked(&self.world);
            match (world.rough, world.chance(400)) {
                (true, 0..=3) => Duration::from_millis(world.chance(60_000)),
                (true, 4) if !world.actors[me].dead => {
                    world.actors[me].dead = true;
                    world.deaths += 1;
                    drop(world);
                    resume_unwind(Box::new(Died));
                }
                _ => Duration::from_micros(world.chance(3000)),
            }
        };
        self.step(me, time);
    }

    fn done(&self, me: usize) {
        let mut world = locked(&self.world);
        let actor = &mut world.actors[me];
        (actor.waits, actor.done) = (false, true);
        world.running = None;
        world.next();
        self.turn.notify_all();
    }
}

struct Simulated {
    stage: Arc<Stage>,
    me: usize,
}

impl Board for Simulated {
    fn read(&self, right: Right) -> io::Result<Vec<u8>> {
        let size = HOSTS * SLOT;
        let start = right.index() as usize * size;
        let mut all = Vec::new();
        // Not all at one instant.
        for part in 0..2 {
            self.stage.stumble(self.me);
            let world = locked(&self.stage.world);
            let from = start + part * size / 2;
            all.extend_from_slice(&world.slots[from..from + size / 2]);
        }
        Ok(all)
    }

    fn write(&self, right: Right, slot: usize, at: usize, sector: &[u8]) -> io::Result<()> {
        let at = (right.index() as usize * HOSTS + slot) * SLOT + at;
        let place = at..at + sector.len();
        self.stage.stumble(self.me);
        if locked(&self.stage.world).actors[self.me].dead || std::thread::panicking() {
            return Err(ErrorKind::BrokenPipe.into());
        }
        locked(&self.stage.world).slots[place.clone()][8..24].fill(0x5a);
        self.stage.stumble(self.me);
        locked(&self.stage.world).slots[place].copy_from_slice(sector);
        self.stage.stumble(self.me);
        Ok(())
    }
}

/// A clock that began at another time and goes faster or slower.
struct Skewed {
    stage: Arc<Stage>,
    me: usize,
}

impl Skewed {
    fn rate(&self) -> f64 {
        [1.0, 0.9, 1.1, 0.95, 1.05][self.me % 5]
    }
}

impl Clock for Skewed {
    fn now(&self) -> Duration {
        SECOND * 1000 * self.me as u32 + locked(&self.stage.world).now.mul_f64(self.rate())
    }

    fn pause(&self, time: Duration) {
        self.stage.step(self.me, time.div_f64(self.rate()));
    }
}

fn host(stage: &Arc<Stage>, me: usize, boot: usize, times: Times) -> Arc<Hosts> {
    Arc::new(Hosts {
        board: Box::new(Simulated { stage: Arc::clone(stage), me }),
        clock: Box::new(Skewed { stage: Arc::clone(stage), me }),
        times,
        host: format!("host {me}"),
        boot: format!("boot {boot}"),
        memory: Some(std::env::temp_dir().join(format!(
            "sm-lease-{}-{:p}-{me}",
            std::process::id(),
            Arc::as_ptr(stage)
        ))),
        slot: Mutex::default(),
    })
}

/// What one host does: takes the right so many times, and does something while it has it.
fn live(stage: &Arc<Stage>, me: usize, times: Times, rounds: usize) {
    let mut left = rounds;
    let mut boot = 0;
    while left > 0 {
        let lived = catch_unwind(AssertUnwindSafe(|| {
            let hosts = host(stage, me, boot, times);
            hosts.register().unwrap();
            while left > 0 {
                let until = hosts.clock.now() + SECOND * 5000;
                let lease = hosts.acquire(Right::Change, until).map_err(|e| format!("{e:?}"));
                let lease = lease.unwrap();
                for _ in 0..3 {
                    stage.stumble(me);
                    lease.held.renew();
                    // Nobody else runs meanwhile.
                    let epoch = lease.held.epoch();
                    if lease.held.is_valid() {
                        let mut world = locked(&stage.world);
                        assert!(epoch >= world.last, "{epoch} after {}", world.last);
                        world.last = epoch;
                        world.acts += 1;
                    }
                }
                drop(lease);
                left -= 1;
            }
        }));
        match lived {
            Ok(()) => break,
            Err(died) if died.is::<Died>() => {
                locked(&stage.world).actors[me].dead = false;
                let time = Duration::from_millis(locked(&stage.world).chance(40_000));
                stage.step(me, time);
                boot += 1;
                left -= 1;
            }
            Err(other) => {
                stage.done(me);
                resume_unwind(other);
            }
        }
    }
    stage.done(me);
}

/// Some hosts with some chance; what was seen, or the words of whoever saw two at once.
fn play(seed: u64, hosts: usize, rounds: usize, times: Times) -> Result<(usize, usize), String> {
    let stage = Stage::new(seed, hosts);
    let played: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..hosts)
            .map(|me| {
                let stage = &stage;
                scope.spawn(move || {
                    // The first one to come does not run before the others are there.
                    stage.step(me, SECOND);
                    let registered = host(stage, me, 0, times).register();
                    registered.map(drop).unwrap();
                    locked(&stage.world).rough |= me == 0;
                    stage.step(me, SECOND * 60);
                    live(stage, me, times, rounds);
                })
            })
            .collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    for me in 0..hosts {
        let hosts = host(&stage, me, 0, times);
        let _ = std::fs::remove_file(hosts.memory_of(Right::Change).unwrap());
    }
    for end in played {
        end.map_err(|words| {
            let text = words.downcast_ref::<String>().cloned();
            text.unwrap_or_else(|| "a host panicked".to_owned())
        })?;
    }
    let world = locked(&stage.world);
    Ok((world.acts, world.deaths))
}

#[test]
fn one_host_at_a_time_changes_whatever_stalls_dies_and_comes_back() {
    let first: u64 = std::env::var("LEASE_SEED").map_or(1, |seed| seed.parse().unwrap());
    let count: u64 = std::env::var("LEASE_RUNS").map_or(25, |count| count.parse().unwrap());
    println!("LEASE_SEED={first}, LEASE_RUNS={count}");
    let (mut acts, mut deaths) = (0, 0);
    for seed in first..first + count {
        let hosts = 2 + (seed % 4) as usize;
        let (done, died) = play(seed, hosts, 8, SLOWLY).unwrap_or_else(|e| panic!("{seed}: {e}"));
        assert!(done > hosts, "{seed}: {done}");
        (acts, deaths) = (acts + done, deaths + died);
    }
    assert!(acts > 200 && deaths > 10, "{acts} acts, {deaths} deaths");
}

/// The test above is one that fails.
#[test]
fn a_holder_that_goes_on_for_longer_than_others_wait_is_caught() {
    let flawed = Times { stop: SECOND * 60, ..SLOWLY };
    let caught = (1..200).find_map(|seed| play(seed, 4, 8, flawed).err());
    let caught = caught.expect("a run in which two hosts changed at once");
    assert!(caught.contains(" after "), "{caught}");
}

#[test]
fn hosts_that_come_at_once_to_the_same_place_get_slots_of_their_own() {
    for seed in 1..20 {
        let stage = Stage::new(seed, 6);
        let slots: Vec<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6)
                .map(|me| {
                    let stage = &stage;
                    scope.spawn(move || {
                        stage.step(me, SECOND);
                        let found = host(stage, me, 0, TIMES).register().unwrap();
                        // Again it is the same one.
                        assert_eq!(host(stage, me, 1, TIMES).register().unwrap(), found);
                        stage.done(me);
                        found
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let different: BTreeSet<_> = slots.iter().collect();
        assert_eq!(different.len(), 6, "{seed}: {slots:?}");
    }
}

#[test]
fn who_waits_too_long_is_told_who_has_it_and_leaves_no_trace() {
    let stage = Stage::new(1, 1);
    stage.step(0, SECOND);
    let (one, other) = (host(&stage, 0, 0, TIMES), host(&stage, 0, 0, TIMES));
    let other = Arc::new(Hosts {
        host: "b".into(),
        board: Box::new(Simulated { stage: Arc::clone(&stage), me: 0 }),
        clock: Box::new(Skewed { stage: Arc::clone(&stage), me: 0 }),
        boot: other.boot.clone(),
        memory: None,
        slot: Mutex::default(),
        times: TIMES,
    });
    let now = || one.clock.now();
    let take = |hosts: &Arc<Hosts>| {
        hosts.acquire(Right::Change, now()).map_err(|error| format!("{error:?}")).unwrap()
    };
    drop(take(&one));
    let lease = take(&one);
    assert!(lease.alone && !lease.fence);
    match other.acquire(Right::Change, now() + SECOND) {
        Err(Refused::Held(by)) => assert_eq!(by, "host 0"),
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("two have it"),
    }
    // The rights are apart.
    assert!(other.acquire(Right::Merge, now()).is_ok());
    let before = lease.held.epoch();
    drop(lease);
    let again = take(&one);
    assert!(again.held.epoch() > before);
    drop(again);
    // Somebody was there since.
    assert!(!take(&other).alone);
}
