//! The text of an object, in its description on the array: [`array_kit::text`] has its form.

pub use array_kit::text::{encode, is_inherited, size};

use plugin_sdk::model::uuid::Uuid;
use serde_json::Value;

use crate::array::NAMES;

/// Most characters of a description, by the manuals' words on those of other objects.
pub const ROOM: usize = 127;

/// The JSON text of the object of this name; `None` where it has none of its own.
pub fn decode(name: &str, description: &str) -> Option<String> {
    array_kit::text::decode(NAMES, name, description)
}

/// Whether a description is our text of a snapshot of this VDI, whatever the snapshot is called.
pub fn is_of_snapshot(description: &str, vdi: Uuid) -> bool {
    // Of its name it has the end, which is all that a text is read by.
    let end = description.split([':', ';']).nth(1).unwrap_or_default();
    let json = decode(end, description);
    let members: Option<Value> = json.and_then(|json| serde_json::from_str(&json).ok());
    members.is_some_and(|members| members["o"] == vdi.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshots_text_is_known_under_any_name() {
        let (vdi, other) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let json = serde_json::json!({ "v": 1, "n": "a", "o": vdi.to_string() }).to_string();
        let text = encode("sms-9574", &json);
        assert!(is_of_snapshot(&text, vdi) && !is_of_snapshot(&text, other));
        let disk = encode("smv-9574", &serde_json::json!({ "v": 1, "n": "a" }).to_string());
        for none in [disk.as_str(), "", "sm1:", "sm1:9574", "nightly", ":;", &text[4..]] {
            assert!(!is_of_snapshot(none, vdi), "{none}");
        }
    }
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_command_line_takes_any_text(called in "(?s).{0,40}", key in ".{0,8}") {
            let json = serde_json::json!({ "v": 1, "n": called, "k": { key: "x" } }).to_string();
            let text = encode("smv-9574", &json);
            prop_assert!(crate::cli::command::quoted(&text).is_ok(), "{}", text);
        }
    }
}
