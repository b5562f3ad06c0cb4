//! Brings another disk to the same content while the first is written.

pub mod bits;
mod engine;
mod leaf;
mod left;
mod lock;
mod mirror;
mod options;
mod pace;
pub mod regions;
mod target;
mod watched;
mod work;

pub use engine::Copy;
pub use leaf::{Converged, LeafMerge};
pub use left::Left;
pub use mirror::{Difference, Mirror, Switched};
pub use options::{Load, Options, Phase, Progress};
pub use target::{Failure, LocalTarget, NbdTarget, Piece, PieceKind, Sent, Source, Target};
