//! What is kept on the array about a VDI: a small JSON text beside its volume.
//!
//! Arrays give little room (128 bytes in a PowerStore description), so members have short names and
//! are left out where they say nothing. A text that cannot be read is not overwritten: its VDI is
//! quarantined.

use std::collections::BTreeMap;

use plugin_sdk::model::vdi::VdiType;
use plugin_sdk::model::{Bytes, Error, Kind, OperationId, Result, SrUuid, VdiUuid};
use serde::{Deserialize, Serialize};

/// The layout that this release writes.
const VERSION: u8 = 1;

/// What is kept about a VDI, or about the SR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Layout; a higher one is left alone.
    #[serde(rename = "v")]
    pub(crate) version: u8,
    /// The SR it belongs to: a name that is ours by chance alone does not have it.
    pub sr: SrUuid,
    /// Name.
    #[serde(rename = "n", default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Description.
    #[serde(rename = "d", default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What the VDI is for.
    #[serde(rename = "t", default, skip_serializing_if = "is_default")]
    pub vdi_type: VdiType,
    /// Whether it may never be written.
    #[serde(rename = "r", default, skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// Whether several may write at once.
    #[serde(rename = "s", default, skip_serializing_if = "is_default")]
    pub sharable: bool,
    /// Of a snapshot: of which VDI.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub snapshot_of: Option<VdiUuid>,
    /// Of a snapshot: when, in seconds since 1970.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub snapshot_time: Option<u64>,
    /// Of a clone: of which VDI or snapshot, to recognise a repeated request.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub cloned_from: Option<VdiUuid>,
    /// Of a snapshot whose name it shares with others: which VDI it is.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    pub itself: Option<VdiUuid>,
    /// The user's keys.
    #[serde(rename = "k", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, String>,
    /// Whether it is being filled.
    #[serde(rename = "i", default, skip_serializing_if = "is_default")]
    pub incomplete: bool,
    /// The size that was asked for last, where the array makes another one of it: a smaller one is no
    /// repeated request.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Bytes>,
    /// The last revert, to recognise a repeated request.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    pub reverted: Option<OperationId>,
    /// Destroyed, and kept only because something hangs on it.
    #[serde(rename = "x", default, skip_serializing_if = "is_default")]
    pub gone: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Document {
    /// An empty one.
    pub fn new(sr: SrUuid) -> Self {
        Self {
            version: VERSION,
            sr,
            name: String::new(),
            description: String::new(),
            vdi_type: VdiType::default(),
            read_only: false,
            sharable: false,
            snapshot_of: None,
            snapshot_time: None,
            cloned_from: None,
            itself: None,
            keys: BTreeMap::new(),
            incomplete: false,
            asked: None,
            reverted: None,
            gone: false,
        }
    }

    /// Reads a text. The error says why the VDI is quarantined.
    pub fn read(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            v: u8,
        }
        let unreadable = "its metadata on the array cannot be read";
        let Version { v } = serde_json::from_str(text).map_err(|_| unreadable.to_owned())?;
        if v > VERSION {
            return Err(format!(
                "its metadata on the array is of layout {v}, from a newer release"
            ));
        }
        serde_json::from_str(text).map_err(|_| unreadable.to_owned())
    }

    /// The text. Error kind `limit` if it is longer than the array takes.
    pub fn write(&self, limit: usize) -> Result<String> {
        self.write_as(limit, str::len)
    }

    /// As [`Self::write`], for an array that keeps texts in another form: `size` tells how many bytes
    /// a text then has.
    pub fn write_as(&self, limit: usize, size: impl Fn(&str) -> usize) -> Result<String> {
        let text = serde_json::to_string(self)
            .map_err(|error| Error::internal("metadata cannot be written").source(&error))?;
        let size = size(&text);
        if size <= limit {
            return Ok(text);
        }
        Err(Error::new(
            Kind::Limit,
            format!(
                "name, description and keys take {size} bytes on the array, which has room for {limit}"
            ),
        )
        .hint("shorten the name or the description, or remove keys"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_disk_fits_into_128_bytes() {
        let document =
            Document { name: "web server, root".into(), ..Document::new(SrUuid::random()) };
        let text = document.write(128).unwrap();
        assert!(text.len() <= 96, "{text}");
        assert_eq!(Document::read(&text).unwrap(), document);
    }

    #[test]
    fn too_much_is_refused_with_both_sizes() {
        let document = Document { name: "x".repeat(200), ..Document::new(SrUuid::random()) };
        let error = document.write(128).unwrap_err();
        assert_eq!(
            error.message,
            "name, description and keys take 258 bytes on the array, which has room for 128"
        );
    }

    #[test]
    fn a_newer_layout_and_rubbish_are_told_apart() {
        let newer = Document::read(r#"{"v":2,"sr":"?"}"#).unwrap_err();
        assert_eq!(newer, "its metadata on the array is of layout 2, from a newer release");
        let rubbish = Document::read("made by hand").unwrap_err();
        assert_eq!(rubbish, "its metadata on the array cannot be read");
    }
}
