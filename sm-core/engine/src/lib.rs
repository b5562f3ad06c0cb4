//! The storage manager as a library.
//!
//! A toolstack embeds this crate; `smctl` is one user of it. It loads drivers, keeps the catalog
//! of SRs, journals what it asks of drivers, knows what is attached on this host, and runs jobs.
//!
//! ```no_run
//! use sm_core::{NewSr, NewVdi, Op, StorageManager};
//! use sm_core::model::{AttachMode, Bytes};
//!
//! # async fn example() -> sm_core::model::Result<()> {
//! let manager = StorageManager::builder("/var/lib/sm")
//!     .driver_directory("/usr/lib/sm/drivers")
//!     .open()
//!     .await?;
//! let config = [("location".to_owned(), "/srv/images".to_owned())].into();
//! let new = NewSr { driver: "file".into(), name: "local".into(), device_config: config, ..NewSr::default() };
//! let record = manager.sr_create(&Op::new(), new).await?;
//! let sr = manager.sr(&record.uuid.to_string())?;
//!
//! let new = NewVdi { name: "system".into(), virtual_size: Bytes::gib(10), ..NewVdi::default() };
//! let disk = sr.vdi_create(&Op::new(), new).await?.vdi;
//! let access = sr.vdi_attach(&Op::new(), disk.uuid, "vm-1", AttachMode::ReadWrite).await?;
//! sr.vdi_activate(&Op::new(), disk.uuid, "vm-1").await?;
//! # let _ = access;
//! # Ok(())
//! # }
//! ```
//!
//! # One wish, one answer
//! Every call takes an [`Op`]. Its id is the idempotency key: a caller that got no answer (its
//! own crash, a driver's crash, a lost connection) repeats the call with the same id and the same
//! arguments and gets the answer of the first time, or the work is finished now; it is never done
//! twice. An error of kind `unknown` says that the outcome is open: repeat, or let
//! [`Sr::scan`] settle it by looking.
//!
//! # Where the state is
//! The storage is the truth about VDIs: names, sizes, keys, parents, snapshots. The state
//! directory holds what the storage cannot know: which SRs there are and how to reach them,
//! secrets (apart, mode 0600), what this host has attached, the journal, jobs. Losing it loses no
//! disk: introduce the SRs again.
//!
//! Why not a daemon first: a library serves both, a command that embeds it needs no service to be
//! running, and several processes may use one state directory at once.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod attach;
mod attached;
pub mod automaton;
pub mod catalog;
mod caught;
mod changed;
mod checksum;
mod coalesce;
mod copy;
mod events;
mod group;
pub mod jobs;
pub mod journal;
mod locks;
mod maintain;
mod manager;
pub mod marks;
mod mirror;
mod op;
mod pausing;
mod qos;
mod quiesced;
mod remote;
mod secrets;
mod select;
mod services;
mod serving;
mod snapshot;
mod sqlite;
mod sr;
pub mod store;
mod transfer;

pub use ::datapath::control::protocol as datapath_protocol;
pub use ::datapath::disk::{Limits, Rate};
pub use catalog::{AttachmentRecord, Datapath, SrRecord};
pub use checksum::{Checks, Checksum};
pub use copy::{Filled, Transferred};
pub use events::Event;
pub use group::{Group, GroupDone, group_of};
pub use jobs::{ExportTarget, ImportSource, JobId, JobRecord, JobState};
pub use manager::{Builder, NewSr, StaticDriver, StorageManager};
pub use mirror::{MirrorTarget, Mirrored};
pub use op::{DEFAULT_BUDGET, Op};
pub use pausing::PausedVdis;
pub use quiesced::{
    DOCUMENT_LIMIT, DiskOf, Presented, Recovered, SetMember, SnapshotSet, SnapshotSets, VmSnapshot,
    snapshot_set_of,
};
pub use sm_loader::Placement;
pub use sm_loader::inspect::Inspection;
pub use sm_loader::port::{CancelFlag, ProgressSink};
pub use sm_model as model;
pub use sm_quiesce as quiesce;
pub use snapshot::PreparedSnapshot;
pub use sr::{NewSnapshot, NewVdi, Scan, Sr};
