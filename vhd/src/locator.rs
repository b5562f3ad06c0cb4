//! Parent locators: where a differencing image thinks its parent lies.
//!
//! A locator is a hint from whoever wrote the file, and the file may come from a guest. So a name
//! is only ever used when it is a plain file name in the child's own directory, and what it leads
//! to must carry the parent's UUID.

use crate::error::Fault;
use crate::footer::printable;

/// `MacX`: a `file://` URL in UTF-8.
pub const MACX: [u8; 4] = *b"MacX";
/// `W2ku`: a Windows path in UTF-16 little-endian, absolute by the specification.
pub const W2KU: [u8; 4] = *b"W2ku";
/// `W2ru`: a relative Windows path in UTF-16 little-endian.
pub const W2RU: [u8; 4] = *b"W2ru";

/// Longest locator we read, bytes.
pub const MAX_LENGTH: u32 = 65536;

/// One slot of the header's locator table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Locator {
    /// Platform code; zeros in an empty slot.
    pub code: [u8; 4],
    /// Room for the name: bytes, or sectors when below 512 (the specification says sectors, most
    /// tools write bytes).
    pub space: u32,
    /// Bytes of the name.
    pub length: u32,
    /// Where the name is in the file, bytes.
    pub offset: u64,
}

/// What a locator says about where the parent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// A file name in the child's own directory.
    Sibling(String),
    /// A path that leads elsewhere; never followed.
    Elsewhere(String),
}

impl Locator {
    /// Whether the slot has one of the three codes that are in use.
    pub fn is_known(&self) -> bool {
        [MACX, W2KU, W2RU].contains(&self.code)
    }

    /// Room for the name in bytes.
    pub fn space_bytes(&self) -> u64 {
        let space = u64::from(self.space);
        if space < 512 { space * 512 } else { space }
    }

    /// The range of the file that holds the name, when it can be one.
    pub fn range(&self, file_length: u64) -> Result<(u64, usize), Fault> {
        let end = self.offset.checked_add(u64::from(self.length));
        if self.length > MAX_LENGTH || end.is_none_or(|end| end > file_length) {
            return Err(Fault::Locator {
                code: printable(&self.code),
                offset: self.offset,
                length: self.length,
                file: file_length,
            });
        }
        Ok((self.offset, self.length as usize))
    }

    /// Decodes the name.
    pub fn decode(&self, bytes: &[u8]) -> Option<Hint> {
        let text = if self.code == MACX {
            let text = String::from_utf8_lossy(bytes);
            text.trim_end_matches('\0').strip_prefix("file://").unwrap_or(&text).to_owned()
        } else {
            let units: Vec<u16> =
                bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
            String::from_utf16_lossy(&units)
        };
        let text = text.trim_end_matches('\0');
        (!text.is_empty()).then(|| Hint::of(text))
    }
}

impl Hint {
    fn of(text: &str) -> Self {
        let name = text.strip_prefix("./").or_else(|| text.strip_prefix(".\\")).unwrap_or(text);
        let plain = !name.contains(['/', '\\', ':', '\0']) && !matches!(name, "" | "." | "..");
        if plain { Self::Sibling(name.to_owned()) } else { Self::Elsewhere(text.to_owned()) }
    }
}

/// The bytes of the three locators we write for a sibling file, as XenServer's tools write them.
pub fn encode(name: &str) -> [([u8; 4], Vec<u8>); 3] {
    let windows: Vec<u8> = format!(".\\{name}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    [(MACX, format!("file://./{name}").into_bytes()), (W2KU, windows.clone()), (W2RU, windows)]
}

/// The header's parent name field: UTF-16 big-endian, padded with zeros, cut when too long (the
/// locators hold the full name).
pub fn parent_name(name: &str) -> [u8; 512] {
    let mut field = [0; 512];
    for (slot, unit) in field.chunks_exact_mut(2).zip(name.encode_utf16()) {
        slot.copy_from_slice(&unit.to_be_bytes());
    }
    field
}

/// The text of a parent name field, for people.
pub fn parent_name_text(field: &[u8; 512]) -> String {
    let units: Vec<u16> =
        field.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
    let end = units.iter().position(|unit| *unit == 0).unwrap_or(units.len());
    String::from_utf16_lossy(&units[..end])
}

#[cfg(test)]
mod tests {
    use super::{Hint, Locator, MACX, W2RU, encode};

    fn decode(code: [u8; 4], bytes: &[u8]) -> Option<Hint> {
        Locator { code, ..Locator::default() }.decode(bytes)
    }

    #[test]
    fn what_we_write_reads_back_as_a_sibling() {
        for (code, bytes) in encode("bäse.vhd") {
            assert_eq!(decode(code, &bytes), Some(Hint::Sibling("bäse.vhd".to_owned())));
        }
    }

    #[test]
    fn a_name_that_leaves_the_directory_is_never_a_sibling() {
        let paths: [&[u8]; 8] = [
            b"file:///etc/passwd",
            b"file://../x.vhd",
            b"../../etc/passwd",
            b"a/b.vhd",
            b"./a/../b",
            b"..",
            b"C:\\x.vhd",
            b"\\\\server\\share",
        ];
        for path in paths {
            assert!(matches!(decode(MACX, path), Some(Hint::Elsewhere(_))), "{path:?}");
        }
        assert_eq!(decode(W2RU, b"\0\0"), None);
        assert_eq!(decode(MACX, b""), None);
    }
}
