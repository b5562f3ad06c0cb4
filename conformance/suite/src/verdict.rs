//! How a check ends.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a check's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING-KEBAB-CASE")]
pub enum State {
    /// It ran and held.
    Pass,
    /// It ran and did not hold; also what is declared and broken, and what works undeclared.
    Fail,
    /// The driver does not claim to be able to, and an attempt was refused as it must be.
    NotApplicable,
    /// It is declared, and something is lacking here to try it: blocks the level.
    NotTestable,
    /// It does not hold, and somebody has said until when that is so.
    Waived,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::NotApplicable => "NOT-APPLICABLE",
            Self::NotTestable => "NOT-TESTABLE",
            Self::Waived => "WAIVED",
        })
    }
}

/// Why a check ended before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The driver did something else than it must.
    Fail(String),
    /// The driver does not claim to be able to.
    NotApplicable(String),
    /// Something is lacking here.
    NotTestable(String),
}

/// What a check answers.
pub(crate) type Verdict<T = ()> = Result<T, Stop>;

/// Ends the check: it does not hold.
pub(crate) fn fail<T>(why: impl Into<String>) -> Verdict<T> {
    Err(Stop::Fail(why.into()))
}

/// Ends the check unless something is so.
pub(crate) fn must(holds: bool, why: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(Stop::Fail(why())) }
}

/// Ends the check unless two things are the same.
#[expect(clippy::needless_pass_by_value, reason = "what is compared is mostly made for it")]
pub(crate) fn same<T: PartialEq + fmt::Debug>(what: &str, found: T, wanted: T) -> Verdict {
    must(found == wanted, || format!("{what} is {found:?}, and must be {wanted:?}"))
}

impl From<sm_model::Error> for Stop {
    /// A call that must succeed and did not.
    fn from(error: sm_model::Error) -> Self {
        Self::Fail(said(&error))
    }
}

/// An error in one line.
pub(crate) fn said(error: &sm_model::Error) -> String {
    let operation = error.operation.as_deref().unwrap_or("the call");
    format!("{operation} answered {}: {error}", error.kind.name())
}
