//! The states of a VDI on this host, after xapi's `vdi_automaton.ml`.
//!
//! Each datapath (a VM's disk, an export) has a state of its own; the driver only sees the
//! superstate, the least state that allows what every datapath needs.
//!
//! ```text
//! Detached --attach--> Attached --activate--> Activated
//! Detached <--detach-- Attached <--deactivate-- Activated
//! ```
//!
//! Reading never rises to writing: a reader may rely on what it has seen. Writing stays writing
//! when a reader joins.

use serde::{Deserialize, Serialize};
use sm_model::AttachMode;

/// State of a VDI, or of one datapath of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not reachable.
    #[default]
    Detached,
    /// Reachable, no I/O.
    Attached(AttachMode),
    /// I/O is allowed.
    Activated(AttachMode),
}

/// A step between neighbouring states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Detached to Attached.
    Attach(AttachMode),
    /// Attached to Activated.
    Activate(AttachMode),
    /// Activated to Attached.
    Deactivate,
    /// Attached to Detached.
    Detach,
}

/// A step that the state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// Activate without attach.
    #[error("it is not attached")]
    NotAttached,
    /// Detach while I/O is allowed.
    #[error("it is activated; deactivate it first")]
    StillActivated,
    /// Attached or activated for reading, asked for writing.
    #[error("it is attached read-only, which never becomes read-write; detach it first")]
    Upgrade,
}

impl State {
    /// The mode, unless detached.
    pub fn mode(self) -> Option<AttachMode> {
        match self {
            Self::Detached => None,
            Self::Attached(mode) | Self::Activated(mode) => Some(mode),
        }
    }

    /// The state after a step. Doing what is done already changes nothing; deactivate and detach
    /// of something detached are no-ops.
    #[expect(clippy::match_same_arms, reason = "one line for each edge of the picture")]
    pub fn after(self, step: Step) -> Result<Self, Illegal> {
        use AttachMode::{ReadOnly, ReadWrite};
        match (self, step) {
            (Self::Detached, Step::Attach(mode)) => Ok(Self::Attached(mode)),
            (Self::Attached(ReadOnly) | Self::Activated(ReadOnly), Step::Attach(ReadWrite)) => {
                Err(Illegal::Upgrade)
            }
            // Read-write, then attached read-only: it stays read-write.
            (Self::Attached(_) | Self::Activated(_), Step::Attach(_)) => Ok(self),
            (Self::Detached, Step::Activate(_)) => Err(Illegal::NotAttached),
            (Self::Attached(ReadOnly) | Self::Activated(ReadOnly), Step::Activate(ReadWrite)) => {
                Err(Illegal::Upgrade)
            }
            (Self::Attached(mode), Step::Activate(_)) => Ok(Self::Activated(mode)),
            (Self::Activated(_), Step::Activate(_)) => Ok(self),
            (Self::Activated(mode), Step::Deactivate) => Ok(Self::Attached(mode)),
            (Self::Detached | Self::Attached(_), Step::Deactivate) => Ok(self),
            (Self::Activated(_), Step::Detach) => Err(Illegal::StillActivated),
            (Self::Detached | Self::Attached(_), Step::Detach) => Ok(Self::Detached),
        }
    }

    /// The least state that allows what all of `states` need.
    pub fn superstate(states: impl IntoIterator<Item = Self>) -> Self {
        let mut mode = None;
        let mut activated = false;
        for state in states {
            mode = mode.max(state.mode());
            activated |= matches!(state, Self::Activated(_));
        }
        match (mode, activated) {
            (None, _) => Self::Detached,
            (Some(mode), false) => Self::Attached(mode),
            (Some(mode), true) => Self::Activated(mode),
        }
    }

    /// The steps from this state to `target`. Following them from here ends there.
    pub fn steps_to(self, target: Self) -> Result<Vec<Step>, Illegal> {
        use AttachMode::{ReadOnly, ReadWrite};
        if self.mode() == Some(ReadOnly) && target.mode() == Some(ReadWrite) {
            return Err(Illegal::Upgrade);
        }
        let mut steps = Vec::new();
        // Giving up writing while still reading needs a full detach: the driver's attachment has
        // one mode for its life.
        let lower = self.mode() == Some(ReadWrite) && target.mode() == Some(ReadOnly);
        if matches!(self, Self::Activated(_)) && (lower || !matches!(target, Self::Activated(_))) {
            steps.push(Step::Deactivate);
        }
        if self != Self::Detached && (lower || target == Self::Detached) {
            steps.push(Step::Detach);
        }
        if let Some(mode) = target.mode() {
            if self == Self::Detached || lower {
                steps.push(Step::Attach(mode));
            }
            if matches!(target, Self::Activated(_))
                && (lower || !matches!(self, Self::Activated(_)))
            {
                steps.push(Step::Activate(mode));
            }
        }
        Ok(steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use AttachMode::{ReadOnly, ReadWrite};
    use State::{Activated, Attached, Detached};

    const ALL: [State; 5] = [
        Detached,
        Attached(ReadOnly),
        Attached(ReadWrite),
        Activated(ReadOnly),
        Activated(ReadWrite),
    ];

    /// The law of xapi's own test: x + (y - x) = y, or there is no way because it would raise
    /// reading to writing.
    #[test]
    fn following_the_steps_from_x_to_y_ends_in_y() {
        for x in ALL {
            for y in ALL {
                match x.steps_to(y) {
                    Ok(steps) => {
                        let end = steps.iter().try_fold(x, |state, step| state.after(*step));
                        assert_eq!(end, Ok(y), "{x:?} to {y:?} by {steps:?}");
                    }
                    Err(why) => {
                        assert_eq!(why, Illegal::Upgrade);
                        assert_eq!((x.mode(), y.mode()), (Some(ReadOnly), Some(ReadWrite)));
                    }
                }
            }
        }
    }

    #[test]
    fn illegal_steps_are_errors() {
        assert_eq!(Detached.after(Step::Activate(ReadOnly)), Err(Illegal::NotAttached));
        assert_eq!(Activated(ReadOnly).after(Step::Detach), Err(Illegal::StillActivated));
        assert_eq!(Attached(ReadOnly).after(Step::Attach(ReadWrite)), Err(Illegal::Upgrade));
        assert_eq!(Attached(ReadOnly).after(Step::Activate(ReadWrite)), Err(Illegal::Upgrade));
    }

    #[test]
    fn ends_of_nothing_are_no_ops() {
        assert_eq!(Detached.after(Step::Detach), Ok(Detached));
        assert_eq!(Detached.after(Step::Deactivate), Ok(Detached));
    }

    #[test]
    fn writing_stays_writing_when_a_reader_joins() {
        assert_eq!(Attached(ReadWrite).after(Step::Attach(ReadOnly)), Ok(Attached(ReadWrite)));
        assert_eq!(
            State::superstate([Attached(ReadWrite), Activated(ReadOnly)]),
            Activated(ReadWrite)
        );
    }

    #[test]
    fn the_superstate_of_nothing_is_detached() {
        assert_eq!(State::superstate([]), Detached);
    }
}
