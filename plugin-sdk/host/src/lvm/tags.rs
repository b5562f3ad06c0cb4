//! Texts as LVM tags.
//!
//! A tag has at most 1024 characters, all of `A-Za-z0-9_+.-/=!:&#`; an object may have many, and they
//! change in the same write of the group's metadata as the rest of a command. A document is a list
//! of pairs `field=value`, each one tag of ours, readable in `lvs -o tags`:
//!
//! ```text
//! sm:name=web+20server
//! sm:key/owner+2fteam=storage
//! ```
//!
//! Bytes beyond letters, digits, `_`, `.` and `-` are `+hh`. A pair that is too long for one tag is
//! cut in numbered pieces, `sm#<pair>/<piece>/<pieces>#...`, of which none may be missing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Begins a pair in one tag.
const WHOLE: &str = "sm:";
/// Begins a piece of a pair.
const PIECE: &str = "sm#";
/// Longest piece. The limit is 1024 (lvm(8), VALID NAMES).
const LONGEST: usize = 960;

/// Whether a tag is ours.
pub(crate) fn is_ours(tag: &str) -> bool {
    tag.starts_with(WHOLE) || tag.starts_with(PIECE)
}

/// The tags for a document, in an order that does not depend on anything but the document.
pub(crate) fn encode(document: &BTreeMap<String, String>) -> Vec<String> {
    let mut tags = Vec::new();
    for (number, (field, value)) in document.iter().enumerate() {
        let pair = format!("{}={}", escape(field, true), escape(value, false));
        if pair.len() <= LONGEST {
            tags.push(format!("{WHOLE}{pair}"));
            continue;
        }
        // All of it is ASCII, so any place is a boundary of characters.
        let pieces: Vec<&[u8]> = pair.as_bytes().chunks(LONGEST).collect();
        let count = pieces.len();
        tags.extend(pieces.iter().enumerate().map(|(index, piece)| {
            format!("{PIECE}{number}/{index}/{count}#{}", String::from_utf8_lossy(piece))
        }));
    }
    tags
}

/// The document that tags hold; tags of others are not looked at. The error says what is wrong.
pub(crate) fn decode<'a>(
    tags: impl IntoIterator<Item = &'a str>,
) -> Result<BTreeMap<String, String>, String> {
    let mut pairs: Vec<String> = Vec::new();
    let mut pieces: BTreeMap<u32, (usize, BTreeMap<usize, &str>)> = BTreeMap::new();
    for tag in tags {
        if let Some(pair) = tag.strip_prefix(WHOLE) {
            pairs.push(pair.to_owned());
        } else if let Some(piece) = tag.strip_prefix(PIECE) {
            let parsed = piece.split_once('#').and_then(|(place, text)| {
                let mut numbers = place.splitn(3, '/');
                let number: u32 = numbers.next()?.parse().ok()?;
                let index: usize = numbers.next()?.parse().ok()?;
                let count: usize = numbers.next()?.parse().ok()?;
                Some((number, index, count, text))
            });
            let (number, index, count, text) =
                parsed.ok_or_else(|| format!("the tag {tag} cannot be read"))?;
            let (counted, texts) = pieces.entry(number).or_insert((count, BTreeMap::new()));
            if *counted != count || texts.insert(index, text).is_some() {
                return Err(format!("the tag {tag} contradicts another"));
            }
        }
    }
    for (number, (count, texts)) in pieces {
        if !texts.keys().copied().eq(0..count) {
            return Err(format!("{} of {count} pieces of tag {number} are there", texts.len()));
        }
        pairs.push(texts.into_values().collect());
    }
    let mut document = BTreeMap::new();
    for pair in pairs {
        let read = pair
            .split_once('=')
            .and_then(|(field, value)| Some((unescape(field)?, unescape(value)?)));
        let (field, value) = read.ok_or_else(|| format!("the tag {pair} cannot be read"))?;
        if document.insert(field.clone(), value).is_some() {
            return Err(format!("the field {field} is there twice"));
        }
    }
    Ok(document)
}

fn escape(text: &str, field: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        // A user's key is behind `key/`, the only slash of a field that is not escaped.
        if plain || (field && byte == b'/') {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "+{byte:02x}");
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte == b'+' {
            let (hex, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(field, value)| ((*field).to_owned(), (*value).to_owned())).collect()
    }

    fn decoded(tags: &[String]) -> Result<BTreeMap<String, String>, String> {
        decode(tags.iter().map(String::as_str))
    }

    #[test]
    fn odd_texts_come_back_and_only_legal_characters_are_used() {
        let long = "ü \u{202e}=+#:/\\\"'\n\t,@💽".repeat(700);
        let document = document(&[
            ("", ""),
            ("name", "web server"),
            ("key/a/b=c+d e", "-rf"),
            ("key/=", "="),
            ("key/+20", "+20"),
            ("description", &long),
            (&format!("key/{long}"), &long),
        ]);
        let tags = encode(&document);
        let legal = |c: char| c.is_ascii_alphanumeric() || "_+.-/=!:&#".contains(c);
        for tag in &tags {
            assert!(tag.len() <= 1024 && tag.chars().all(legal) && is_ours(tag), "{tag}");
        }
        assert!(tags.contains(&"sm:name=web+20server".to_owned()), "{tags:?}");
        // LVM keeps no order.
        let mut turned = tags;
        turned.reverse();
        turned.push("somebody-elses".to_owned());
        assert_eq!(decoded(&turned).unwrap(), document);
    }

    #[test]
    fn a_lost_piece_is_damage_and_not_a_shorter_text() {
        let tags = encode(&document(&[("description", &"x".repeat(5000))]));
        assert_eq!(tags.len(), 6);
        for lost in 0..tags.len() {
            let mut rest = tags.clone();
            rest.remove(lost);
            assert_eq!(decoded(&rest).unwrap_err(), "5 of 6 pieces of tag 0 are there");
        }
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        for (tags, said) in [
            (vec!["sm:name"], "the tag name cannot be read"),
            (vec!["sm:name=+2"], "the tag name=+2 cannot be read"),
            (vec!["sm:name=+zz"], "the tag name=+zz cannot be read"),
            (vec!["sm:name=+ff"], "the tag name=+ff cannot be read"),
            (vec!["sm:a=1", "sm:a=2"], "the field a is there twice"),
            (vec!["sm#0/0#a=b"], "the tag sm#0/0#a=b cannot be read"),
            (vec!["sm#0/0/1#a=b", "sm#0/0/2#a=b"], "the tag sm#0/0/2#a=b contradicts another"),
        ] {
            assert_eq!(decode(tags).unwrap_err(), said);
        }
    }
}
