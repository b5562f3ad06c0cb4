//! Commands, as text.
//!
//! What comes from outside stands in a command only if every character of it is harmless there, so
//! a name cannot end a command and begin another one.

use array_kit::outcome::{Class, Failure, Outcome};
use array_kit::retry::Effect;
use plugin_sdk::model::Bytes;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The driver's name for it, by which refusals are read.
    pub operation: &'static str,
    /// Whether it may be sent twice.
    pub effect: Effect,
    /// The text.
    pub text: String,
}

/// Bytes of a megabyte, as the array counts them.
const MEGABYTE: u64 = 1 << 20;

impl Command {
    fn new(operation: &'static str, effect: Effect, text: String) -> Self {
        Self { operation, effect, text }
    }

    /// A command of fixed words that reads.
    pub fn reads(operation: &'static str, text: &'static str) -> Self {
        Self::new(operation, Effect::Reads, text.to_owned())
    }

    /// `volume create`, with all that a volume has from the beginning.
    pub fn create(volume: &NewVolume<'_>) -> Outcome<Self> {
        let name = name(volume.name)?;
        let megabytes = volume.size.0.div_ceil(MEGABYTE);
        let mut text = format!("volume create {name} {megabytes}MB");
        if let Some(pool) = volume.pool {
            text = format!("{text} pool {}", word("pool", pool)?);
        }
        if volume.thin {
            text.push_str(" thin-provision");
        }
        if let Some(percent) = volume.snap_reserve {
            text = format!("{text} snap-reserve {percent}%");
        }
        if let Some(depletion) = volume.snap_depletion {
            text = format!("{text} snap-depletion {depletion}");
        }
        let text = format!("{text} description {}", quoted(volume.description)?);
        Ok(Self::new("create", Effect::Changes, text))
    }

    /// `volume select NAME ...`.
    pub fn volume(
        operation: &'static str,
        effect: Effect,
        volume: &str,
        rest: &str,
    ) -> Outcome<Self> {
        Ok(Self::new(operation, effect, format!("volume select {} {rest}", name(volume)?)))
    }

    /// `volume delete NAME`.
    pub fn delete(volume: &str) -> Outcome<Self> {
        Ok(Self::new("delete", Effect::Changes, format!("volume delete {}", name(volume)?)))
    }

    /// `... size N MB no-snap`: without `no-snap` the array takes a snapshot first.
    pub fn resize(volume: &str, to: Bytes) -> Outcome<Self> {
        let rest = format!("size {}MB no-snap", to.0.div_ceil(MEGABYTE));
        Self::volume("resize", Effect::Changes, volume, &rest)
    }
}

/// A volume to create.
#[derive(Clone, Copy, Debug)]
pub struct NewVolume<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its size.
    pub size: Bytes,
    /// Its pool.
    pub pool: Option<&'a str>,
    /// Whether it takes space when it is written.
    pub thin: bool,
    /// What is kept for snapshots, in percent of its size.
    pub snap_reserve: Option<u16>,
    /// What happens when that is used up.
    pub snap_depletion: Option<&'static str>,
    /// Its text.
    pub description: &'a str,
}

/// What a volume, or a snapshot of it, is called in commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The volume.
    pub volume: String,
    /// The snapshot of it.
    pub snapshot: Option<String>,
}

impl Object {
    /// The object of an id: `volume`, or `volume/snapshot`.
    pub fn of(id: &str) -> Self {
        match id.split_once('/') {
            Some((volume, snapshot)) => {
                Self { volume: volume.to_owned(), snapshot: Some(snapshot.to_owned()) }
            }
            None => Self { volume: id.to_owned(), snapshot: None },
        }
    }

    /// A command about it.
    pub fn command(&self, operation: &'static str, effect: Effect, rest: &str) -> Outcome<Command> {
        match &self.snapshot {
            None => Command::volume(operation, effect, &self.volume, rest),
            Some(snapshot) => {
                let rest = format!("snapshot select {} {rest}", name(snapshot)?);
                Command::volume(operation, effect, &self.volume, &rest)
            }
        }
    }
}

/// A name of a volume or snapshot.
pub fn name(text: &str) -> Outcome<&str> {
    word("name", text)
}

/// A word that needs no quotes.
pub fn word<'a>(what: &str, text: &'a str) -> Outcome<&'a str> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'_');
    if !text.is_empty() && text.len() <= 223 && !text.starts_with('-') && text.bytes().all(fits) {
        return Ok(text);
    }
    Err(Failure::new(Class::Invalid)
        .fact(format!("a {what} has characters that cannot be sent to the array"))
        .hint("letters, digits, and - . : _ can be used"))
}

/// A text in quotes.
pub fn quoted(text: &str) -> Outcome<String> {
    let fits = |b: u8| (b' '..=b'~').contains(&b) && !matches!(b, b'"' | b'\\' | b'?' | b'>');
    if text.bytes().all(fits) {
        return Ok(format!("\"{text}\""));
    }
    Err(Failure::new(Class::Invalid).fact("a text has characters that cannot be sent to the array"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_read_as_the_array_wants_them() {
        let new = NewVolume {
            name: "web",
            size: Bytes(15 << 20),
            pool: Some("default"),
            thin: true,
            snap_reserve: Some(100),
            snap_depletion: Some("volume-offline"),
            description: "sm1;n=web",
        };
        assert_eq!(
            Command::create(&new).unwrap().text,
            "volume create web 15MB pool default thin-provision snap-reserve 100% \
             snap-depletion volume-offline description \"sm1;n=web\""
        );
        assert_eq!(
            Command::resize("web", Bytes(3 << 30)).unwrap().text,
            "volume select web size 3072MB no-snap"
        );
        let object = Object::of("web/web-2009-06-10-12:00:00.1.1");
        assert_eq!(
            object.command("online", Effect::Changes, "online").unwrap().text,
            "volume select web snapshot select web-2009-06-10-12:00:00.1.1 online"
        );
    }

    proptest! {
        /// Whatever stands in a name, there is one command, and the array sees one word.
        #[test]
        fn nothing_gets_out_of_its_place(text in "(?s).{0,40}") {
            if let Ok(command) = Command::delete(&text) {
                prop_assert_eq!(command.text.split_whitespace().count(), 3);
                prop_assert!(command.text.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
            }
            if let Ok(quoted) = quoted(&text) {
                prop_assert_eq!(quoted.matches('"').count(), 2);
                prop_assert!(!quoted.contains(['\r', '\n']));
            }
        }
    }
}
