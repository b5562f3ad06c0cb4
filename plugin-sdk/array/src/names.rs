//! Names of our objects on an array.
//!
//! No array has idempotency keys, so the name is the key: it follows from the SR and the UUID, is
//! read back into them, and a name that is not exactly ours is foreign, never shown and never
//! touched. The name a user gives is metadata.
//!
//! | an array's longest name | form | example |
//! |---|---|---|
//! | 69 and more (PowerStore, ONTAP) | both UUIDs in hexadecimal | `smv-<32>-<32>` |
//! | 63 and more (Pure, EqualLogic) | the SR in base 32 | `smv-<26>-<32>` |
//! | 31 and more (3PAR) | 10 bits of the SR, the UUID in base 32 | `smv<2><26>` |
//! | within an object that is ours (`ds@name`, `vol.suffix`) | the UUID in base 32 | `s<26>` |
//!
//! The third form does not tell one SR from another for certain: the metadata has to.

use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::model::{Error, Result, SrUuid};

/// What a vendor takes as a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameRule {
    /// Most characters.
    pub max: usize,
    /// Between the parts: `-`, or `_` where that is refused.
    pub separator: char,
    /// Whether `A` and `a` name the same object.
    pub case_insensitive: bool,
}

impl NameRule {
    /// Letters of either case, digits and `-`.
    pub const fn new(max: usize) -> Self {
        Self { max, separator: '-', case_insensitive: false }
    }

    /// The same, where case does not matter.
    #[must_use]
    pub const fn case_insensitive(self) -> Self {
        Self { case_insensitive: true, ..self }
    }
}

/// What an object of ours is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// A VDI that is no snapshot.
    Disk,
    /// A VDI that is a snapshot.
    Snapshot,
    /// A snapshot that a clone needs and nobody sees; it has the UUID of the clone.
    Hidden,
    /// The record of the SR; it has the UUID of the SR.
    Record,
    /// A group of volumes that is made for one consistent snapshot, and the snapshots of one that
    /// share its name.
    Group,
}

impl Role {
    const ALL: [Self; 5] = [Self::Disk, Self::Snapshot, Self::Hidden, Self::Record, Self::Group];

    const fn letter(self) -> char {
        match self {
            Self::Disk => 'v',
            Self::Snapshot => 's',
            Self::Hidden => 'h',
            Self::Record => 'r',
            Self::Group => 'g',
        }
    }

    fn of(letter: char) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.letter() == letter)
    }
}

/// What a name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// What it is for.
    pub role: Role,
    /// The UUID in it.
    pub uuid: Uuid,
    /// The SR, where the name is long enough to tell for certain.
    pub sr: Option<SrUuid>,
}

/// Makes and reads the names of one SR.
#[derive(Clone, Copy, Debug)]
pub struct Codec {
    rule: NameRule,
    sr: SrUuid,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Long,
    Middle,
    Short,
}

impl NameRule {
    const fn form(&self) -> Option<Form> {
        match self.max {
            0..31 => None,
            31..63 => Some(Form::Short),
            63..69 => Some(Form::Middle),
            _ => Some(Form::Long),
        }
    }

    /// Whether a name is one of ours for this, whichever SR it is of.
    pub fn is(&self, name: &str, role: Role) -> bool {
        self.parse(name).is_some_and(|named| named.role == role)
    }

    /// What the names of a role begin with, whichever SR they are of.
    pub fn prefix(&self, role: Role) -> String {
        let dash = Some(self.separator).filter(|_| self.form() != Some(Form::Short));
        format!("sm{}{}", role.letter(), dash.map(String::from).unwrap_or_default())
    }

    /// What a name says, whichever SR it is of. `None` is foreign.
    pub fn parse(&self, name: &str) -> Option<Named> {
        let lower;
        let name = if self.case_insensitive {
            lower = name.to_ascii_lowercase();
            &lower
        } else {
            name
        };
        let mut rest = name.strip_prefix("sm")?.chars();
        let role = Role::of(rest.next()?)?;
        let rest = rest.as_str();
        if self.form()? == Form::Short {
            let (_, uuid) = rest.split_at_checked(2)?;
            return Some(Named { role, uuid: from_base32(uuid)?, sr: None });
        }
        let (sr, uuid) = rest.strip_prefix(self.separator)?.split_once(self.separator)?;
        let sr = if self.form()? == Form::Long { from_hex(sr)? } else { from_base32(sr)? };
        Some(Named { role, uuid: from_hex(uuid)?, sr: Some(SrUuid(sr)) })
    }
}

impl Codec {
    /// The names of an SR. Error kind `internal` if the vendor's names are too short for any form.
    pub fn new(rule: NameRule, sr: SrUuid) -> Result<Self> {
        let form = rule.form().ok_or_else(|| {
            Error::internal(format!("names of {} characters hold no UUID: 31 are needed", rule.max))
        })?;
        Ok(Self { rule, sr, form })
    }

    /// The name of an object.
    pub fn name(&self, role: Role, uuid: Uuid) -> String {
        let (letter, dash) = (role.letter(), self.rule.separator);
        match self.form {
            Form::Long => {
                format!("sm{letter}{dash}{}{dash}{}", self.sr.0.simple(), uuid.simple())
            }
            Form::Middle => {
                format!("sm{letter}{dash}{}{dash}{}", base32(self.sr.0), uuid.simple())
            }
            Form::Short => format!("sm{letter}{}{}", self.tag(), base32(uuid)),
        }
    }

    /// What the names of a role begin with: for an array that can list by prefix.
    pub fn prefix(&self, role: Role) -> String {
        let (letter, dash) = (role.letter(), self.rule.separator);
        match self.form {
            Form::Long => format!("sm{letter}{dash}{}{dash}", self.sr.0.simple()),
            Form::Middle => format!("sm{letter}{dash}{}{dash}", base32(self.sr.0)),
            Form::Short => format!("sm{letter}{}", self.tag()),
        }
    }

    /// What a name of this SR says. `None` is foreign, or another SR's.
    pub fn read(&self, name: &str) -> Option<Named> {
        let named = self.rule.parse(name)?;
        let ours = match named.sr {
            Some(sr) => sr == self.sr,
            None => name.get(3..5).is_some_and(|tag| tag.eq_ignore_ascii_case(&self.tag())),
        };
        ours.then_some(named)
    }

    /// The name of an object within one that is ours.
    pub fn inner(role: Role, uuid: Uuid) -> String {
        format!("{}{}", role.letter(), base32(uuid))
    }

    /// What a name within an object of ours says. `None` is foreign.
    pub fn read_inner(name: &str) -> Option<(Role, Uuid)> {
        let mut rest = name.chars();
        let role = Role::of(rest.next()?)?;
        Some((role, from_base32(rest.as_str())?))
    }

    fn tag(&self) -> String {
        base32(self.sr.0).chars().take(2).collect()
    }
}

/// RFC 4648 section 6, in lower case.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// 26 characters; the last one has two bits of padding.
fn base32(uuid: Uuid) -> String {
    let bits = uuid.as_u128();
    let digit = |shift: i32| {
        let value = if shift >= 0 { bits >> shift } else { bits << -shift };
        char::from(ALPHABET.get((value & 31) as usize).copied().unwrap_or(b'a'))
    };
    (0..26).map(|n| digit(123 - 5 * n)).collect()
}

fn from_base32(text: &str) -> Option<Uuid> {
    if text.len() != 26 {
        return None;
    }
    let mut bits: u128 = 0;
    for (n, byte) in text.bytes().enumerate() {
        let digit = ALPHABET.iter().position(|letter| *letter == byte)? as u128;
        if n < 25 {
            bits = bits << 5 | digit;
        } else {
            if digit & 3 != 0 {
                return None; // Padding: or two names would mean the same.
            }
            bits = bits << 3 | digit >> 2;
        }
    }
    Some(Uuid::from_u128(bits))
}

fn from_hex(text: &str) -> Option<Uuid> {
    let plain = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if plain { Uuid::try_parse(text).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: [NameRule; 5] = [
        NameRule::new(128),
        NameRule::new(63),
        NameRule::new(63).case_insensitive(),
        NameRule::new(31),
        NameRule { max: 255, separator: '_', case_insensitive: false },
    ];

    fn codec(rule: NameRule) -> Codec {
        let sr = "0b0b0b0b-1111-2222-3333-444455556666".parse().unwrap();
        Codec::new(rule, sr).unwrap()
    }

    /// A name that changes with a release loses every disk made before.
    #[test]
    fn the_names_are_frozen() {
        let uuid = "619372c4-f8f4-544a-9121-5566407a9574".parse().unwrap();
        let names = RULES.map(|rule| codec(rule).name(Role::Disk, uuid));
        assert_eq!(
            names[0],
            "smv-0b0b0b0b111122223333444455556666-619372c4f8f4544a91215566407a9574"
        );
        assert_eq!(
            names[1],
            "smv-bmfqwcyrceragmztireegorgmq-619372c4f8f4544a91215566407a9574".replace(
                "bmfqwcyrceragmztireegorgmq",
                &base32("0b0b0b0b-1111-2222-3333-444455556666".parse().unwrap())
            )
        );
        assert_eq!(names[1].len(), 63);
        assert_eq!(names[3].len(), 31);
        assert_eq!(
            names[4],
            "smv_0b0b0b0b111122223333444455556666_619372c4f8f4544a91215566407a9574"
        );
        assert_eq!(Codec::inner(Role::Snapshot, uuid).len(), 27);
    }

    #[test]
    fn too_short_a_rule_is_refused() {
        let error = Codec::new(NameRule::new(30), SrUuid::random()).unwrap_err();
        assert_eq!(error.message, "names of 30 characters hold no UUID: 31 are needed");
    }

    #[test]
    fn foreign_names_are_foreign() {
        for rule in RULES {
            let codec = codec(rule);
            let own = codec.name(Role::Disk, Uuid::from_u128(7));
            let other = Codec::new(rule, SrUuid(Uuid::from_u128(9))).unwrap();
            for name in [
                "",
                "sm",
                "smv",
                "smv-",
                "web",
                "sm-web",
                "smv--",
                "smx",
                &own[1..],
                &own[..own.len() - 1],
                &format!("{own}x"),
                &format!("copy-{own}"),
                &other.name(Role::Disk, Uuid::from_u128(7)),
                "smé-☃",
                "s☃",
            ] {
                assert_eq!(codec.read(name), None, "{name:?}");
            }
            let upper = codec.read(&own.to_uppercase());
            assert_eq!(upper.is_some(), rule.case_insensitive);
        }
    }

    proptest! {
        #[test]
        fn names_are_read_back(bits: u128, which in 0..RULES.len(), role in 0..5_usize) {
            let (codec, uuid, role) = (codec(RULES[which]), Uuid::from_u128(bits), Role::ALL[role]);
            let name = codec.name(role, uuid);
            prop_assert!(name.len() <= RULES[which].max);
            prop_assert!(name.starts_with(&codec.prefix(role)));
            prop_assert!(name.starts_with(&RULES[which].prefix(role)));
            prop_assert!(RULES[which].is(&name, role));
            let named = codec.read(&name).unwrap();
            prop_assert_eq!((named.role, named.uuid), (role, uuid));
            let inner = Codec::inner(role, uuid);
            prop_assert_eq!(Codec::read_inner(&inner), Some((role, uuid)));
        }

        #[test]
        fn any_text_is_read_without_a_panic(name in "\\PC{0,80}", which in 0..RULES.len()) {
            if let Some(named) = codec(RULES[which]).read(&name) {
                let again = codec(RULES[which]).name(named.role, named.uuid);
                prop_assert!(again.eq_ignore_ascii_case(&name));
            }
            let _ = Codec::read_inner(&name);
        }
    }
}
