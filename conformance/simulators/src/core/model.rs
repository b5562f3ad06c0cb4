//! What every array has: pools, volumes, snapshots, jobs, and what it is set to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::objects::Record;

/// A pool of fixed size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pool {
    /// Bytes it has.
    pub capacity: u64,
    /// What the vendor adds.
    #[serde(default)]
    pub attributes: Map<String, Value>,
}

impl Record for Pool {
    const TABLE: &'static str = "pool";
}

/// What a pool that is full does with a thin volume that needs a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The write fails.
    #[default]
    Refuse,
    /// The write fails, and the volume goes offline.
    Offline,
}

/// What happens when the snapshots of a volume need more than is reserved for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depletion {
    /// The oldest snapshots go.
    DeleteOldest,
    /// The volume goes offline; the write fails.
    VolumeOffline,
}

/// A volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// The pool it is in.
    pub pool: String,
    /// Bytes that a host sees.
    pub size: u64,
    /// Whether its whole size is taken from the pool at once.
    pub thick: bool,
    /// Whether it serves hosts.
    pub online: bool,
    /// 32 random hexadecimal digits, the same for ever: what serial numbers are made of.
    pub uuid: String,
    /// Milliseconds since 1970, by the array's clock.
    pub created: u64,
    /// The key of the snapshot that a clone hangs on, for vendors where that matters.
    pub origin: Option<String>,
    /// What it does in a full pool.
    #[serde(default)]
    pub when_full: WhenFull,
    /// Bytes reserved for its snapshots, and what happens when they are used up.
    #[serde(default)]
    pub snapshot_reserve: Option<(u64, Depletion)>,
    /// What the vendor adds: tags, comments, states.
    #[serde(default)]
    pub attributes: Map<String, Value>,
    /// Its top layer.
    pub layer: u64,
}

impl Record for Volume {
    const TABLE: &'static str = "volume";
}

/// A snapshot. Its key is unique over the array.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// The key of its volume.
    pub volume: String,
    /// The size the volume had.
    pub size: u64,
    /// 32 random hexadecimal digits.
    pub uuid: String,
    /// Milliseconds since 1970, by the array's clock.
    pub created: u64,
    /// Grows from one snapshot to the next.
    pub order: u64,
    /// What the vendor adds.
    #[serde(default)]
    pub attributes: Map<String, Value>,
    /// Its layer, which nobody writes.
    pub layer: u64,
}

impl Record for Snapshot {
    const TABLE: &'static str = "snapshot";
}

/// A layer of pages: what is below it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Layer {
    pub(super) pool: String,
    pub(super) below: Option<u64>,
}

impl Record for Layer {
    const TABLE: &'static str = "layer";
}

/// Content that a copy under way still needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hold {
    pub(super) layer: u64,
}

impl Record for Hold {
    const TABLE: &'static str = "hold";
}

/// A counter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Counter(pub(super) u64);

impl Record for Counter {
    const TABLE: &'static str = "counter";
}

/// A job. Its end is decided when it begins, and comes when the array's clock says so.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// What it does: the vendor's name.
    pub method: String,
    /// What the vendor keeps with it: arguments, what is still to do at the end.
    pub arguments: Value,
    /// When it was asked for; milliseconds by the array's clock.
    pub created: u64,
    /// When it ends.
    pub ends: u64,
    /// Why it fails, if it does. Its object may be visible all the same.
    pub error: Option<String>,
    /// Whether what is done at its end is done.
    pub finished: bool,
    /// What it answers, when it is finished.
    pub result: Value,
}

impl Record for Job {
    const TABLE: &'static str = "job";
}

/// How a job stands.
#[derive(Clone, Debug, PartialEq)]
pub enum JobState {
    /// It runs, by so many per cent.
    Running(u8),
    /// It has ended well.
    Done(Value),
    /// It has ended with an error.
    Failed(String),
}

/// Who may reach a LUN.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// Everybody.
    All,
    /// These qualified names. None is nobody.
    Only(Vec<String>),
}

impl Who {
    /// Whether it lets that initiator in. Qualified names have no case.
    pub fn lets(&self, initiator: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.iter().any(|name| name.eq_ignore_ascii_case(initiator)),
        }
    }
}

/// A LUN that a host can reach: what the data path serves. The vendor derives them from its objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// The target's qualified name.
    pub target: String,
    /// The LUN's number.
    pub lun: u16,
    /// The key of the volume or snapshot.
    pub volume: String,
    /// Whether that is a snapshot.
    pub snapshot: bool,
    /// Who reaches it.
    pub who: Who,
    /// User and secret that an initiator must prove, if any.
    pub chap: Option<(String, String)>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Bytes of a block.
    pub block: u32,
    /// What the unit says of itself.
    pub identity: Identity,
}

/// What a unit says of itself to SCSI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// At most eight characters.
    pub vendor: String,
    /// At most sixteen.
    pub product: String,
    /// At most four.
    pub revision: String,
    /// The serial number of the unit.
    pub serial: String,
    /// The NAA identifier, 32 hexadecimal digits that begin with 6. `scsi_id` prints 3 before it.
    pub naa: String,
}

/// What an array is set to: durations in milliseconds. All of it can be changed while it runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Added to each request.
    pub latency: u64,
    /// Requests a second before 429, if there is a rate.
    pub rate: Option<u32>,
    /// Requests at once; more than that wait.
    pub parallel: Option<usize>,
    /// How long a session lives without requests.
    pub session_idle: u64,
    /// How many sessions there may be.
    pub sessions: Option<usize>,
    /// How far reads lag behind changes.
    pub stale: u64,
    /// How long a target is in use after its initiator has left.
    pub settle: u64,
    /// How long a job takes.
    pub job: u64,
    /// How long the record of a job is kept after its end.
    pub job_kept: u64,
    /// Limits by the vendor's word: `volumes`, `snapshots_per_volume`, `hosts`, `luns`.
    pub limits: BTreeMap<String, u64>,
    /// What a vendor has beyond these.
    pub vendor: Map<String, Value>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            latency: 0,
            rate: None,
            parallel: None,
            session_idle: 300_000,
            sessions: None,
            stale: 0,
            settle: 0,
            job: 0,
            job_kept: 3_600_000,
            limits: BTreeMap::new(),
            vendor: Map::new(),
        }
    }
}

impl Record for Settings {
    const TABLE: &'static str = "settings";
}

/// Why the array does not do something. The vendor says it in its words.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// There is no such object.
    #[error("{0} {1} does not exist")]
    Missing(&'static str, String),
    /// The name is taken.
    #[error("{0} {1} exists already")]
    Exists(&'static str, String),
    /// Others need it: their keys.
    #[error("{0} is in use by {1:?}")]
    InUse(String, Vec<String>),
    /// The pool is full.
    #[error("pool {0} is full")]
    NoSpace(String),
    /// A limit is reached.
    #[error("limit of {1} {0} is reached")]
    Limit(&'static str, u64),
    /// A value is not one that it takes.
    #[error("{0}")]
    Invalid(String),
    /// The volume is offline.
    #[error("volume {0} is offline")]
    Offline(String),
    /// The simulator's own disk fails.
    #[error("the simulator's state cannot be kept: {0}")]
    Broken(#[from] std::io::Error),
}
