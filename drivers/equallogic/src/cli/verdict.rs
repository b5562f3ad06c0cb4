//! What refusals mean.
//!
//! Only two wordings are certain: `% Error - ` at the beginning, and `does not exist.`. The others
//! are what the manuals' sentences have in common, in the order from the particular to the general;
//! one that is not here is of class `Unknown`, and then the ledger looks what became of the change.

use array_kit::classify::{Fault, Row, Table};
use array_kit::outcome::{Class, Failure, Outcome};

use super::reply::{ASKED, Reply};

/// The meanings of the array's words.
pub const TABLE: Table = Table::new(&[
    // What asks for a state that holds already.
    Row::text("already offline").on("offline").done(),
    Row::text("already online").on("online").done(),
    Row::text("already enabled").on("share").done(),
    Row::text(ASKED).is(Class::Unsupported),
    Row::text("maximum number of sessions").is(Class::Busy),
    Row::text("does not exist").is(Class::NotFound),
    Row::text("not found").is(Class::NotFound),
    Row::text("no such").is(Class::NotFound),
    Row::text("already exists").is(Class::AlreadyExists),
    Row::text("already in use").is(Class::AlreadyExists),
    Row::text("name is in use").is(Class::AlreadyExists),
    Row::text("snapshot reserve").is(Class::NoSpace),
    Row::text("insufficient").is(Class::NoSpace),
    Row::text("not enough").is(Class::NoSpace),
    Row::text("no space").is(Class::NoSpace),
    Row::text("out of space").is(Class::NoSpace),
    Row::text("maximum").is(Class::LimitReached),
    Row::text("too many").is(Class::LimitReached),
    Row::text("exceed").is(Class::LimitReached),
    Row::text("too long").is(Class::LimitReached),
    Row::text("active connection").is(Class::InUse),
    Row::text("must be offline").is(Class::InUse),
    Row::text("must be set offline").is(Class::InUse),
    Row::text("is in use").is(Class::InUse),
    Row::text("permission").is(Class::Denied),
    Row::text("not authorized").is(Class::Denied),
    Row::text("privilege").is(Class::Denied),
    Row::text("try again").is(Class::Busy),
    Row::text("busy").is(Class::Busy),
    Row::text("in progress").is(Class::Busy),
    Row::text("not supported").is(Class::Unsupported),
    Row::text("bad command").is(Class::Invalid),
    Row::text("invalid").is(Class::Invalid),
    Row::text("syntax").is(Class::Invalid),
    Row::text("ambiguous").is(Class::Invalid),
    Row::text("missing").is(Class::Invalid),
]);

/// SMAPI's number for a refusal, where it has one of its own for this array.
fn number(operation: &str, class: Class) -> Option<u16> {
    match class {
        Class::Denied => Some(169),
        Class::NoSpace if operation.contains("snapshot") => Some(167),
        _ => None,
    }
}

/// The reply, or the failure that it is. `None` is a refusal of what holds already.
pub fn judge(operation: &str, reply: Reply) -> Outcome<Reply> {
    let Some(words) = &reply.refusal else { return Ok(reply) };
    let fault = Fault { message: words.clone(), ..Fault::default() };
    match TABLE.failure(operation, &fault) {
        None => Ok(Reply { refusal: None, ..reply }),
        Some(failure) => Err(match number(operation, failure.class) {
            Some(number) => failure.legacy(number),
            None => failure,
        }),
    }
}

/// A reply that says neither yes nor no.
pub fn garbled(fact: impl Into<String>) -> Failure {
    Failure::new(Class::Garbled).fact(fact).legacy(174)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(operation: &str, words: &str) -> Result<(), Class> {
        let reply = Reply::read(&format!("% Error - {words}\n"), "x");
        judge(operation, reply).map(drop).map_err(|failure| failure.class)
    }

    #[test]
    fn refusals_have_their_class() {
        for (words, expected) in [
            ("Volume web does not exist.", Class::NotFound),
            ("Volume web already exists.", Class::AlreadyExists),
            ("Insufficient free space in pool default.", Class::NoSpace),
            ("Not enough snapshot reserve.", Class::NoSpace),
            ("Maximum number of sessions reached.", Class::Busy),
            ("Maximum number of volumes reached.", Class::LimitReached),
            ("Volume must be set offline first.", Class::InUse),
            ("Permission denied.", Class::Denied),
            ("Bad command", Class::Invalid),
            ("Something new.", Class::Unknown),
        ] {
            assert_eq!(class("create", words), Err(expected), "{words}");
        }
        assert_eq!(class("offline", "Volume is already offline."), Ok(()));
        assert_eq!(class("delete", "Volume is already offline."), Err(Class::Unknown));
    }

    #[test]
    fn numbers_of_the_seed_are_set() {
        let number = |operation, words: &str| {
            let reply = Reply::read(&format!("% Error - {words}\n"), "x");
            let failure = judge(operation, reply).map(drop).unwrap_err();
            plugin_sdk::Error::from(failure).legacy_code()
        };
        assert_eq!(number("snapshot", "Not enough snapshot reserve."), 167);
        assert_eq!(number("create", "Insufficient free space."), 44);
        assert_eq!(number("create", "Permission denied."), 169);
        assert_eq!(plugin_sdk::Error::from(garbled("no size")).legacy_code(), 174);
    }
}
