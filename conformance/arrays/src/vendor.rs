//! What a driver's test says of its arrays.

use std::any::Any;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use array_kit::driver::Product;
use array_kit::names::{Codec, NameRule, Role};
use array_sim::core::{
    Array, Asked, Change, Effect, Export, NewVolume, Trouble, Vendor as Personality, View, Volume,
};
use plugin_sdk::model::{SrUuid, VdiUuid};
use plugin_sdk::tokio::runtime::{Builder, Runtime};
use serde_json::Value;

/// A driver, with the array it is tested against.
pub trait Vendor: Send + Sync + 'static {
    /// The driver.
    type Product: Product;

    /// Its library, `libsm_driver_NAME.so`.
    const LIBRARY: &'static str;

    /// Its document, by `include_str!`: the table in it has a row `| operation | requests |` for each
    /// operation of [`crate::budgets`].
    const DOCUMENT: &'static str;

    /// What its arrays are like.
    const FACTS: Facts;

    /// Starts a new array in a folder that exists and is empty, with what the SR's place needs and with
    /// objects of somebody else.
    fn start(folder: &Path) -> impl Future<Output = Simulated>;

    /// Has it answer without depending on time, where requests are counted.
    fn steady(simulated: &Simulated) {
        let _ = simulated;
    }

    /// The key of a VDI's volume in the simulator.
    fn volume(view: &View, sr: SrUuid, vdi: VdiUuid) -> String {
        let _ = view;
        Self::name(sr, vdi)
    }

    /// The name of a VDI's volume.
    fn name(sr: SrUuid, vdi: VdiUuid) -> String {
        Codec::new(Self::FACTS.names, sr).unwrap().name(Role::Disk, vdi.0)
    }

    /// Makes another VDI's volume of one that was just made: the quick way to thousands. What its
    /// vendor keeps of a volume in tables of its own has to be copied here, too.
    fn copy(
        change: &mut Change<'_>,
        sr: SrUuid,
        from: VdiUuid,
        to: VdiUuid,
    ) -> Result<(), Trouble> {
        let (old, new) = (Self::name(sr, from), Self::name(sr, to));
        let key = Self::volume(&change.view(), sr, from);
        let volume = change.volume(&key)?;
        // The short texts of `array_kit::text` begin with the end of their object's name.
        let tag = |name: &str| format!("sm1:{}", &name[name.len() - 4..]);
        copy_volume(change, &volume, &key.replace(&old, &new), |text| {
            text.replace(&old, &new).replace(&tag(&old), &tag(&new))
        })
    }
}

/// Makes a volume like another one, with another key and other attributes.
pub fn copy_volume(
    change: &mut Change<'_>,
    like: &Volume,
    key: &str,
    attributes: impl Fn(&str) -> String,
) -> Result<(), Trouble> {
    let text = Value::Object(like.attributes.clone()).to_string();
    let attributes = serde_json::from_str(&attributes(&text)).unwrap();
    let mut new = NewVolume::thin(&like.pool, like.size);
    new.snapshot_reserve = like.snapshot_reserve;
    new.attributes = attributes;
    change.create_volume(key, new).map(drop)
}

/// What a vendor's arrays are like, as far as the tests differ by it.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The rule of its names.
    pub names: NameRule,
    /// How each SCSIid of theirs begins: `36589cfc000000`.
    pub scsi_id: &'static str,
    /// What sizes are multiples of.
    pub grain: u64,
    /// The simulator's names of calls that change nothing. A `*` at the begin or end stands for
    /// anything. What came as `GET` is known to read.
    pub reads: &'static [&'static str],
    /// The simulator's names of calls that begin a session: they are not counted. A `*` as above.
    pub logins: &'static [&'static str],
    /// How many sessions eight threads open at most.
    pub sessions: u64,
    /// For how long reads may lag behind changes, in milliseconds: 5000 where nobody promises better.
    pub stale: u64,
    /// Requests of the first listing of so many VDIs, at most.
    pub first_scan: fn(u64) -> u64,
    /// Requests of any later one, at most.
    pub scan: fn(u64) -> u64,
    /// Whether a refusal can say when to come back (`Retry-After`).
    pub retry_after: bool,
    /// Whether snapshots can be attached.
    pub snapshots_attach: bool,
    /// Whether several disks can be caught at one instant.
    pub group_snapshots: bool,
    /// Requests for each disk of a group, after the instant: its text, and what makes a snapshot of its
    /// own of it where the instant does not.
    pub of_a_part: usize,
    /// Ways to go wrong that its interface does not have, with the reason in a comment: names of
    /// [`crate::faults::WAYS`].
    pub cannot: &'static [&'static str],
    /// Steps of the library at which somebody must have been killed, beyond those of the kit that all
    /// drivers have ([`crate::kills`]).
    pub steps: &'static [&'static str],
}

impl Facts {
    /// An array with a session, pages of 1000, and nothing peculiar.
    pub const fn new(names: NameRule, scsi_id: &'static str, grain: u64) -> Self {
        Self {
            names,
            scsi_id,
            grain,
            reads: &[],
            logins: &[],
            sessions: 1,
            stale: 5000,
            first_scan: |volumes| 3 + volumes.div_ceil(1000),
            scan: |volumes| 3 + volumes.div_ceil(1000),
            retry_after: true,
            snapshots_attach: false,
            group_snapshots: false,
            of_a_part: 1,
            cannot: &[],
            steps: &[],
        }
    }

    /// Whether a call changes something.
    pub(crate) fn changes(&self, asked: &Asked) -> bool {
        let reads = asked.line.starts_with("GET ") || is_any(self.reads, &asked.call);
        !reads && !self.begins(asked)
    }

    /// Whether a call belongs to the beginning of a session.
    pub(crate) fn begins(&self, asked: &Asked) -> bool {
        is_any(self.logins, &asked.call)
    }

    /// A size that the array takes, from one that is asked for.
    pub(crate) fn size(&self, bytes: u64) -> u64 {
        bytes.next_multiple_of(self.grain)
    }
}

fn is_any(patterns: &[&str], call: &str) -> bool {
    patterns.iter().any(|pattern| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => call.ends_with(end),
        (None, Some(begin)) => call.starts_with(begin),
        (None, None) => call == *pattern,
    })
}

/// A simulated array that runs. Clones are the same array; it ends with the last of them.
#[derive(Clone)]
pub struct Simulated {
    /// The array: objects, data, faults, log of requests.
    pub array: Array,
    /// Device configuration of an SR on it, with everything but `initiator`.
    pub config: Vec<(&'static str, String)>,
    /// What must be seen nowhere.
    pub secrets: Vec<String>,
    personality: Arc<dyn Personality>,
    restart: Arc<dyn Fn() + Send + Sync>,
    _running: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for Simulated {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Simulated")
            .field("array", &self.personality.name())
            .finish_non_exhaustive()
    }
}

impl Simulated {
    /// An array of a vendor's, with whatever must live as long as it runs.
    pub fn new(
        array: &Array,
        personality: impl Personality,
        config: Vec<(&'static str, String)>,
        secrets: &[&str],
        running: impl Any + Send + Sync,
    ) -> Self {
        let again = array.clone();
        Self {
            array: array.clone(),
            config,
            secrets: secrets.iter().map(|&secret| secret.to_owned()).collect(),
            personality: Arc::new(personality),
            restart: Arc::new(move || again.restart().unwrap()),
            _running: Arc::new(running),
        }
    }

    /// With a way of its own to lose power and come back.
    #[must_use]
    pub fn restarted_by(mut self, restart: impl Fn() + Send + Sync + 'static) -> Self {
        self.restart = Arc::new(restart);
        self
    }

    /// Loses power and comes back.
    pub fn restart(&self) {
        (self.restart)();
    }

    /// The LUNs that it serves now.
    pub fn exports(&self) -> Vec<Export> {
        self.personality.exports(&self.array.current())
    }

    /// All objects but those that are no leak: counters go on, records of jobs are kept for a while.
    pub fn objects(&self) -> Value {
        let mut objects = self.array.inventory(&[])["objects"].take();
        for passing in ["counter", "job", "settings"] {
            objects.as_object_mut().unwrap().remove(passing);
        }
        objects
    }

    /// Has calls of that name go wrong, the first of them or a later one.
    pub fn fault(&self, call: &str, after: u64, effect: Effect) {
        let call = call.to_owned();
        self.array.faults().add(array_sim::core::Fault { call, after, times: 1, effect });
    }
}

/// What simulators run on.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME
        .get_or_init(|| Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap())
}
