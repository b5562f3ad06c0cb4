//! How a FlashArray refuses: almost always status 400, and what it means is in the words.

use serde_json::{Value, json};

use crate::core::Trouble;
use crate::http::Say;

/// Why a request is refused: one message for each name that it was refused for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) errors: Vec<(String, String)>,
}

impl Refused {
    /// A message, and what it is about.
    pub(super) fn of(message: &str, context: &str) -> Self {
        Self { status: 400, errors: vec![(message.to_owned(), context.to_owned())] }
    }

    /// The same with another status.
    pub(super) fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    pub(super) fn say(&self) -> Say {
        let one = |(message, context): &(String, String)| match context.as_str() {
            "" => json!({"message": message, "context": null}),
            context => json!({"message": message, "context": context}),
        };
        let errors: Vec<Value> = self.errors.iter().map(one).collect();
        Say::json(self.status, &json!({ "errors": errors }))
    }
}

impl From<Trouble> for Refused {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Missing("volume", key) => Self::of("Volume does not exist.", &key),
            Trouble::Missing(_, key) => Self::of("No such volume or snapshot.", &key),
            Trouble::Exists("volume", key) => Self::of("Volume already exists.", &key),
            Trouble::Exists(_, key) => Self::of("Snapshot already exists.", &key),
            Trouble::InUse(key, _) => Self::of("Object is in use.", &key),
            Trouble::NoSpace(pool) => Self::of("Insufficient capacity.", &pool),
            Trouble::Limit(what, most) => {
                Self::of(&format!("The limit reached: {most} {what}."), "")
            }
            Trouble::Invalid(text) => Self::of(&text, ""),
            Trouble::Offline(key) => Self::of("Volume has been destroyed.", &key),
            Trouble::Broken(error) => Self::of(&error.to_string(), "").status(500),
        }
    }
}

/// Does the same with each name. What succeeds stays done although others fail, which is why a
/// client should name one.
pub(super) fn each<T>(
    names: &[String],
    mut work: impl FnMut(&str) -> Result<T, Refused>,
) -> Result<Vec<T>, Refused> {
    let mut done = Vec::new();
    let mut refused: Option<Refused> = None;
    for name in names {
        match (work(name), &mut refused) {
            (Ok(one), _) => done.push(one),
            (Err(error), Some(all)) => all.errors.extend(error.errors),
            (Err(error), none) => *none = Some(error),
        }
    }
    refused.map_or(Ok(done), Err)
}
