//! The text of an object in a short form, for arrays whose descriptions are short.
//!
//! EqualLogic has room for 127 characters, and its command line takes neither quotes nor other
//! alphabets in them; PowerStore has room for 128. So the members of the JSON text are written shortly,
//! readable for whoever looks at the array's console: `sm1:9574;n=web_server;t=system`. UUIDs take 22
//! characters, and the SR is left out: the name of the volume has it.
//!
//! `9574` is the end of the object's name. Clones and snapshots may come into being with the
//! description of their source; that is no text of theirs.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use plugin_sdk::model::uuid::Uuid;
use serde_json::{Map, Value};

use crate::names::NameRule;

/// What a text begins with.
const MARK: &str = "sm1:";

/// How much of the name is in the text.
const TAG: usize = 4;

/// The description for a JSON text. Any other text stays as it is, escaped.
pub fn encode(name: &str, json: &str) -> String {
    let mut text = format!("{MARK}{}", tag(name));
    let Ok(Value::Object(members)) = serde_json::from_str(json) else {
        return format!("{text};!{}", escape(json));
    };
    for (key, value) in &members {
        let escaped = escape(key);
        match (key.as_str(), value) {
            ("v", Value::Number(version)) if version.as_u64() == Some(1) => {}
            ("sr", _) => {}
            (_, Value::Object(inner))
                if inner.values().all(Value::is_string) && !inner.is_empty() =>
            {
                for (sub, value) in inner {
                    text.extend([";", &escaped, ".", &escape(sub), "=", &plain(value)]);
                }
            }
            (_, Value::Bool(true)) => text.extend([";", &escaped]),
            (_, value) => text.extend([";", &escaped, "=", &plain(value)]),
        }
    }
    text
}

/// How many characters [`encode`] makes of a JSON text.
pub fn size(json: &str) -> usize {
    encode(&"x".repeat(TAG), json).len()
}

/// The JSON text of the object of this name, by the rule of the vendor's names; `None` where it has
/// none of its own. What is no text of ours is answered as it is.
pub fn decode(names: NameRule, name: &str, description: &str) -> Option<String> {
    let Some(rest) = description.strip_prefix(MARK) else {
        let foreign = description.trim();
        return (!foreign.is_empty()).then(|| foreign.to_owned());
    };
    let (whose, rest) = rest.split_once(';').unwrap_or((rest, ""));
    if whose != tag(name) {
        return None;
    }
    if let Some(other) = rest.strip_prefix('!') {
        return Some(unescape(other).unwrap_or_else(|| description.to_owned()));
    }
    let mut members = Map::new();
    members.insert("v".to_owned(), Value::from(1));
    if let Some(sr) = names.parse(name).and_then(|named| named.sr) {
        members.insert("sr".to_owned(), Value::from(sr.to_string()));
    }
    for part in rest.split(';').filter(|part| !part.is_empty()) {
        // A text that somebody has edited is answered as it is: it then cannot be read.
        if member(&mut members, part).is_none() {
            return Some(description.to_owned());
        }
    }
    Some(Value::Object(members).to_string())
}

/// Whether a description is the text of another object: that of its source, which a clone began with.
pub fn is_inherited(name: &str, description: &str) -> bool {
    let whose = description.strip_prefix(MARK).and_then(|rest| rest.split(';').next());
    whose.is_some_and(|whose| whose != tag(name))
}

fn member(members: &mut Map<String, Value>, part: &str) -> Option<()> {
    let (key, value) = match part.split_once('=') {
        Some((key, value)) => (key, value_of(value)?),
        None => (part, Value::Bool(true)),
    };
    match key.split_once('.') {
        None => {
            members.insert(unescape(key)?, value);
        }
        Some((key, sub)) => {
            let inner = members.entry(unescape(key)?).or_insert_with(|| Value::Object(Map::new()));
            inner.as_object_mut()?.insert(unescape(sub)?, value);
        }
    }
    Some(())
}

fn tag(name: &str) -> &str {
    name.len().checked_sub(TAG).and_then(|from| name.get(from..)).unwrap_or(name)
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => match Uuid::try_parse(text) {
            Ok(uuid) if uuid.to_string() == *text => {
                format!("@{}", URL_SAFE_NO_PAD.encode(uuid.as_bytes()))
            }
            _ => escape(text),
        },
        other => format!("+{}", escape(&other.to_string())),
    }
}

fn value_of(text: &str) -> Option<Value> {
    if let Some(uuid) = text.strip_prefix('@') {
        let bytes = URL_SAFE_NO_PAD.decode(uuid).ok()?;
        return Some(Value::from(Uuid::from_slice(&bytes).ok()?.to_string()));
    }
    if let Some(json) = text.strip_prefix('+') {
        return serde_json::from_str(&unescape(json)?).ok();
    }
    Some(Value::from(unescape(text)?))
}

/// Letters, digits and `- / ,` stay; a space is `_`; all else is `~` and two digits for each byte.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'/' | b',' => {
                escaped.push(char::from(byte));
            }
            b' ' => escaped.push('_'),
            other => {
                let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0');
                escaped.extend(['~', digit(other >> 4), digit(other & 15)]);
            }
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'~' => {
                let digits = [rest.next()?, rest.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
            }
            b'_' => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Document;
    use crate::names::{Codec, Role};
    use plugin_sdk::model::{SrUuid, VdiUuid};
    use proptest::prelude::*;

    const NAMES: NameRule = NameRule::new(63);
    /// What EqualLogic has.
    const ROOM: usize = 127;

    /// A name of an SR.
    fn name(sr: SrUuid) -> String {
        let vdi = "619372c4-f8f4-544a-9121-5566407a9574".parse().unwrap();
        Codec::new(NAMES, sr).unwrap().name(Role::Disk, vdi)
    }

    fn document(sr: SrUuid) -> Document {
        let mut document = Document::new(sr);
        document.name = "web server, root".into();
        document
    }

    #[test]
    fn texts_are_short_and_readable() {
        let sr = SrUuid::random();
        let text = document(sr).write(1000).unwrap();
        assert_eq!(encode(&name(sr), &text), "sm1:9574;n=web_server,_root");
        // A snapshot and a clone fit, with names that people give.
        let mut snapshot = document(sr);
        snapshot.name = "before the upgrade of the database server, 2026-11-22".into();
        snapshot.snapshot_of = Some(VdiUuid::random());
        snapshot.snapshot_time = Some(1_700_000_000);
        snapshot.read_only = true;
        let text = snapshot.write(1000).unwrap();
        assert!(text.len() > ROOM, "{}", text.len());
        assert!(size(&text) <= ROOM, "{}", encode(&name(sr), &text));
        let back = decode(NAMES, &name(sr), &encode(&name(sr), &text)).unwrap();
        assert_eq!(Document::read(&back).unwrap(), snapshot);
    }

    #[test]
    fn an_inherited_text_is_none_and_a_foreign_one_stays() {
        let sr = SrUuid::random();
        let name = name(sr);
        let text = encode(&name, &document(sr).write(1000).unwrap());
        let clone = name.replace("9574", "0001");
        assert_eq!(decode(NAMES, &clone, &text), None);
        assert!(is_inherited(&clone, &text) && !is_inherited(&name, &text));
        assert!(!is_inherited(&name, "") && !is_inherited(&name, "made by hand"));
        assert_eq!(decode(NAMES, &name, ""), None);
        assert_eq!(decode(NAMES, &name, "made by hand"), Some("made by hand".to_owned()));
        for edited in ["sm1:9574;n=~", "sm1:9574;o=@!", "sm1:9574;k=+{", "sm1:9574;n=a;n.b=c"] {
            assert_eq!(decode(NAMES, &name, edited), Some(edited.to_owned()));
            assert!(Document::read(edited).is_err());
        }
    }

    proptest! {
        #[test]
        fn documents_are_read_back(
            called in ".{0,30}", description in "(?s).{0,30}", keys in prop::collection::btree_map(
                ".{0,8}", ".{0,8}", 0..4), flags: [bool; 3], time: u32)
        {
            let sr = SrUuid::random();
            let mut document = Document::new(sr);
            (document.name, document.description, document.keys) = (called, description, keys);
            [document.read_only, document.sharable, document.incomplete] = flags;
            document.snapshot_time = Some(u64::from(time));
            document.cloned_from = Some(VdiUuid::random());
            let json = document.write(1 << 20).unwrap();
            let text = encode(&name(sr), &json);
            prop_assert_eq!(text.len(), size(&json));
            let plain = |c: char| c.is_ascii_alphanumeric() || "-/,_~:;=.@+!".contains(c);
            prop_assert!(text.chars().all(plain), "{}", text);
            let back = decode(NAMES, &name(sr), &text).unwrap();
            prop_assert_eq!(Document::read(&back).unwrap(), document);
        }

        #[test]
        fn any_description_is_taken(text in "(?s)(sm1:9574;)?.{0,60}") {
            let _ = decode(NAMES, "smv-9574", &text);
        }
    }
}
