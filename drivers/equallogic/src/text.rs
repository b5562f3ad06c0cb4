//! The text of an object, in its description on the array: [`array_kit::text`] has its form.

pub use array_kit::text::{encode, is_inherited, size};

use crate::array::NAMES;

/// Most characters of a description, by the manuals' words on those of other objects.
pub const ROOM: usize = 127;

/// The JSON text of the object of this name; `None` where it has none of its own.
pub fn decode(name: &str, description: &str) -> Option<String> {
    array_kit::text::decode(NAMES, name, description)
}

#[cfg(test)]
mod tests {
    use super::*;
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
