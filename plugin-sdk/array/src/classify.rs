//! Tells what an array's refusal means, by a table of its vendor.
//!
//! Vendors put the verdict in different places: an HTTP status, a code that is a text or a number, a
//! message, the first characters of a line. What all have is a [`Fault`]; a [`Table`] of [`Row`]s
//! turns it into a [`Class`].
//!
//! ```
//! use array_kit::classify::{Fault, Row, Table};
//! use array_kit::outcome::Class;
//!
//! const TABLE: Table = Table::new(&[
//!     // What asks for a state that holds already is done.
//!     Row::code("0xE0A08001000F").on("unmap").done(),
//!     Row::code("0xE0A040010003").is(Class::LimitReached),
//!     Row::text("already exists").status(422).is(Class::AlreadyExists),
//! ]);
//!
//! let fault = Fault { status: Some(422), code: Some("0xE0A040010003".into()), ..Fault::default() };
//! assert_eq!(TABLE.verdict("snapshot", &fault), Some(Class::LimitReached));
//! ```

use std::time::Duration;

use crate::outcome::{Class, Failure};

/// An array's refusal, before anybody knows what it means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// HTTP status, where there is one.
    pub status: Option<u16>,
    /// The vendor's code as text: `5374242`, `0xE0A08001000E`, `SM_eexist`, `-6`.
    pub code: Option<String>,
    /// The vendor's words.
    pub message: String,
    /// When to come back.
    pub retry_after: Option<Duration>,
}

/// One line of a [`Table`]. All that it names must match.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    status: Option<u16>,
    code: Option<&'static str>,
    codes: &'static [&'static str],
    text: Option<&'static str>,
    texts: &'static [&'static str],
    whole: bool,
    operation: Option<&'static str>,
    class: Option<Class>,
}

impl Row {
    const ANY: Self = Self {
        status: None,
        code: None,
        codes: &[],
        text: None,
        texts: &[],
        whole: false,
        operation: None,
        class: Some(Class::Unknown),
    };

    /// Faults with this code.
    pub const fn code(code: &'static str) -> Self {
        Self { code: Some(code), ..Self::ANY }
    }

    /// Faults with any of these codes.
    pub const fn codes(codes: &'static [&'static str]) -> Self {
        Self { codes, ..Self::ANY }
    }

    /// Faults whose message holds any of these texts, in upper or lower case.
    pub const fn texts(texts: &'static [&'static str]) -> Self {
        Self { texts, ..Self::ANY }
    }

    /// Faults whose message holds this text, in upper or lower case.
    pub const fn text(text: &'static str) -> Self {
        Self { text: Some(text), ..Self::ANY }
    }

    /// Faults whose message is this text and nothing else.
    pub const fn exactly(text: &'static str) -> Self {
        Self { text: Some(text), whole: true, ..Self::ANY }
    }

    /// Faults with this status and no better row.
    pub const fn of_status(status: u16) -> Self {
        Self { status: Some(status), ..Self::ANY }
    }

    /// ... and this status.
    #[must_use]
    pub const fn status(self, status: u16) -> Self {
        Self { status: Some(status), ..self }
    }

    /// ... and this text.
    #[must_use]
    pub const fn and_text(self, text: &'static str) -> Self {
        Self { text: Some(text), ..self }
    }

    /// ... and this operation of the driver.
    #[must_use]
    pub const fn on(self, operation: &'static str) -> Self {
        Self { operation: Some(operation), ..self }
    }

    /// What it means.
    #[must_use]
    pub const fn is(self, class: Class) -> Self {
        Self { class: Some(class), ..self }
    }

    /// It means that what was asked for holds: no failure.
    #[must_use]
    pub const fn done(self) -> Self {
        Self { class: None, ..self }
    }

    fn matches(&self, operation: &str, fault: &Fault) -> bool {
        self.status.is_none_or(|status| fault.status == Some(status))
            && self.code.is_none_or(|code| fault.code.as_deref() == Some(code))
            && (self.codes.is_empty()
                || fault.code.as_deref().is_some_and(|one| self.codes.contains(&one)))
            && (self.texts.is_empty() || self.texts.iter().any(|text| holds(&fault.message, text)))
            && self.operation.is_none_or(|own| own == operation)
            && self.text.is_none_or(|text| {
                if self.whole { fault.message == text } else { holds(&fault.message, text) }
            })
    }

    /// Codes say more than texts, and texts more than statuses.
    fn rank(&self) -> u8 {
        if self.code.is_some() || !self.codes.is_empty() {
            0
        } else if self.text.is_some() || !self.texts.is_empty() {
            1
        } else {
            2
        }
    }
}

fn holds(message: &str, text: &str) -> bool {
    text.is_empty()
        || message
            .as_bytes()
            .windows(text.len())
            .any(|part| part.eq_ignore_ascii_case(text.as_bytes()))
}

/// What the refusals of a vendor mean. Of the rows with a code the first that matches decides, then
/// of those with a text, then of those with a status; else what the status usually means.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    rows: &'static [Row],
}

impl Table {
    /// A table.
    pub const fn new(rows: &'static [Row]) -> Self {
        Self { rows }
    }

    /// The class, or `None` if what was asked for holds.
    pub fn verdict(&self, operation: &str, fault: &Fault) -> Option<Class> {
        for rank in 0..=2 {
            let mut rows = self.rows.iter().filter(|row| row.rank() == rank);
            if let Some(row) = rows.find(|row| row.matches(operation, fault)) {
                return row.class;
            }
        }
        Some(usual(fault.status))
    }

    /// The failure that a fault is, or `None` if what was asked for holds.
    pub fn failure(&self, operation: &str, fault: &Fault) -> Option<Failure> {
        let class = self.verdict(operation, fault)?;
        let mut failure = Failure::new(class);
        failure.status = fault.status;
        failure.code.clone_from(&fault.code);
        failure.retry_after = fault.retry_after;
        if !fault.message.is_empty() {
            failure.words = Some(fault.message.clone());
        }
        Some(failure)
    }
}

/// What a status means where the vendor's table says nothing. An error of the server leaves open
/// whether it was done.
fn usual(status: Option<u16>) -> Class {
    match status {
        Some(401) => Class::Expired,
        Some(403) => Class::Denied,
        Some(404 | 410) => Class::NotFound,
        Some(405 | 501) => Class::Unsupported,
        Some(409) => Class::AlreadyExists,
        Some(423) => Class::InUse,
        Some(429 | 503) => Class::Busy,
        Some(507) => Class::NoSpace,
        Some(400..=499) => Class::Invalid,
        _ => Class::Unknown,
    }
}
