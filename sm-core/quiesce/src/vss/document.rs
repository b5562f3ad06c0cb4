//! The backup components document, as the guest's agent leaves it in XenStore: 16-bit characters,
//! each four hexadecimal digits with the low byte first, 255 characters to an entry.

use std::time::Instant;

use sm_model::{Error, Kind, Result};

use super::Vss;
use crate::xenstore::XenStore;

/// More entries than a store has room for.
const MOST: usize = 100_000;

/// Reads the document of the last snapshot, if the agent has left one.
pub(super) fn read<S: XenStore>(vss: &mut Vss<S>, until: Instant) -> Result<Option<String>> {
    let mut digits = String::new();
    for page in 0..MOST {
        let path = vss.control(&format!("snapid/{page}"));
        match vss.read(&path, until)? {
            Some(part) => digits.push_str(&part),
            None => break,
        }
    }
    if digits.is_empty() { Ok(None) } else { decode(&digits).map(Some) }
}

fn decode(digits: &str) -> Result<String> {
    let wrong = || Error::new(Kind::Corrupt, "the guest's backup document is damaged");
    let mut characters = Vec::with_capacity(digits.len() / 4);
    for four in digits.as_bytes().chunks(4) {
        let four = std::str::from_utf8(four).map_err(|_| wrong())?;
        if four.len() != 4 || !four.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let number = u16::from_str_radix(four, 16).map_err(|_| wrong())?;
        characters.push(number.swap_bytes());
    }
    String::from_utf16(&characters).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_have_their_low_byte_first() {
        assert_eq!(decode("3c0078003e00").unwrap(), "<x>");
        assert_eq!(decode("3DD8BEDC").unwrap(), "\u{1f4be}");
        for wrong in ["3c0", "3c00zz", "3c007800+e00", "3DD8"] {
            assert_eq!(
                decode(wrong).unwrap_err().message,
                "the guest's backup document is damaged"
            );
        }
    }
}
