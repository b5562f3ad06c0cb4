//! What all arrays have in common: objects that survive `kill -9`, pages that are really there,
//! sessions, jobs, a clock, a script of faults, a log of requests.

mod array;
mod change;
mod clock;
mod content;
mod data;
mod faults;
mod jobs;
mod model;
mod objects;
mod requests;
mod sessions;
mod state;
mod vendor;

pub use array::{Array, Options};
pub use change::{Change, NewVolume};
pub use clock::Clock;
pub use data::Moved;
pub use faults::{Effect, Fault, Faults};
pub use model::{
    Depletion, Export, Identity, Job, JobState, Pool, Settings, Snapshot, Trouble, Volume,
    WhenFull, Who,
};
pub use objects::{Record, View};
pub use requests::{Asked, Requests};
pub use sessions::{Session, Sessions, TooMany};
pub use state::Space;
pub use vendor::Vendor;

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect()
}
