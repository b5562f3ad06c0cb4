//! The rule for names, descriptions and user keys.
//!
//! They are kept verbatim or refused, never interpreted: a name is not a file name, not an option,
//! not a pattern. Any Unicode text is allowed, except characters that XML 1.0 cannot carry (the
//! controls other than tab, line feed and carriage return, and U+FFFE, U+FFFF), because a
//! toolstack talks XML-RPC and would lose the whole answer.

use crate::error::{Error, Kind, Result};

/// Longest name of an SR or VDI, in bytes of UTF-8.
pub const NAME_LIMIT: usize = 1024;
/// Longest description, in bytes of UTF-8.
pub const DESCRIPTION_LIMIT: usize = 16 * 1024;
/// Longest user key and longest value, in bytes of UTF-8.
pub const KEY_LIMIT: usize = 4 * 1024;

/// Checks a name. May be empty.
pub fn check_name(name: &str) -> Result<()> {
    check("name", name, NAME_LIMIT)
}

/// Checks a description. May be empty.
pub fn check_description(description: &str) -> Result<()> {
    check("description", description, DESCRIPTION_LIMIT)
}

/// Checks a user key, which must not be empty, and its value.
pub fn check_key(key: &str, value: &str) -> Result<()> {
    if key.is_empty() {
        return Err(Error::new(Kind::Limit, "a key must not be empty"));
    }
    check("key", key, KEY_LIMIT)?;
    check("value", value, KEY_LIMIT)
}

fn check(what: &'static str, text: &str, limit: usize) -> Result<()> {
    if text.len() > limit {
        return Err(Error::new(
            Kind::Limit,
            format!("the {what} has {} bytes, the limit is {limit}", text.len()),
        ));
    }
    let illegal = |c: &char| {
        (c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{7f}'..='\u{9f}'))
            || matches!(c, '\u{fffe}' | '\u{ffff}')
    };
    match text.chars().find(illegal) {
        None => Ok(()),
        Some(c) => Err(Error::new(
            Kind::Limit,
            format!("the {what} holds U+{:04X}, which XML 1.0 cannot carry", u32::from(c)),
        )
        .legacy(447)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_and_odd_names_are_kept() {
        for name in ["", "disk 1", "../../etc/passwd", "-rf", "a\nb\t'\"", "💽", "\u{202e}x"] {
            assert_eq!(check_name(name), Ok(()), "{name:?}");
        }
    }

    #[test]
    fn the_rule_is_stated_in_the_refusal() {
        let long = check_name(&"x".repeat(10_000)).unwrap_err();
        assert_eq!(long.message, "the name has 10000 bytes, the limit is 1024");
        let control = check_name("a\0b").unwrap_err();
        assert_eq!(control.message, "the name holds U+0000, which XML 1.0 cannot carry");
        assert_eq!(control.legacy.as_ref().map(|l| l.code), Some(447));
    }
}
