//! What ONTAP keeps beside FlexVols (which are pools here) and LUNs (volumes, by their path).

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::core::{Record, Volume};

/// An initiator group, by its UUID.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Igroup {
    pub(super) name: String,
    pub(super) os_type: String,
    pub(super) protocol: String,
    pub(super) comment: String,
    pub(super) initiators: Vec<String>,
}

impl Record for Igroup {
    const TABLE: &'static str = "ontap.igroup";
}

/// That a LUN is mapped to a group, by [`map_key`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Map {
    pub(super) lun: String,
    pub(super) igroup: String,
    pub(super) number: u16,
}

impl Record for Map {
    const TABLE: &'static str = "ontap.map";
}

/// A snapshot of a FlexVol, by its path. What its LUNs had is in the core's snapshots below it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Container {
    pub(super) volume: String,
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) comment: String,
    pub(super) created: u64,
}

impl Record for Container {
    const TABLE: &'static str = "ontap.snapshot";
}

/// A QoS policy, by its name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Policy {
    pub(super) uuid: String,
    pub(super) iops: u64,
    pub(super) mbps: u64,
    pub(super) shared: bool,
}

impl Record for Policy {
    const TABLE: &'static str = "ontap.policy";
}

pub(super) fn map_key(lun: &str, igroup: &str) -> String {
    format!("{lun}\u{0}{igroup}")
}

/// The path of a LUN, taken apart: FlexVol, snapshot, name.
pub(super) fn parts(path: &str) -> Option<(&str, Option<&str>, &str)> {
    let (volume, rest) = path.strip_prefix("/vol/")?.split_once('/')?;
    match rest.strip_prefix(".snapshot/").and_then(|rest| rest.split_once('/')) {
        Some((snapshot, name)) => Some((volume, Some(snapshot), name)),
        None => Some((volume, None, rest)),
    }
}

/// Digits with the dashes of a UUID.
pub(super) fn dashed(digits: &str) -> String {
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or("");
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

pub(super) fn new_uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Serial numbers have twelve printable characters, also such as these.
const SERIAL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789$/";

/// The serial number of a LUN: the same for its life, another one for each clone.
pub(super) fn serial(lun: &Volume) -> String {
    let number = u128::from_str_radix(&lun.uuid, 16).unwrap_or(0);
    let sign =
        |n: u32| SERIAL.get((number >> (6 * n) & 63) as usize).map_or('A', |b| char::from(*b));
    (0..12).map(sign).collect()
}

/// What a LUN has beyond size and content.
pub(super) fn text<'a>(lun: &'a Volume, name: &str) -> &'a str {
    lun.attributes.get(name).and_then(Value::as_str).unwrap_or("")
}

/// Attributes: names and values.
pub(super) fn pairs(lun: &Volume) -> Vec<(String, String)> {
    let map = lun.attributes.get("attributes").and_then(Value::as_object);
    let pairs = map.into_iter().flatten();
    pairs.map(|(name, value)| (name.clone(), value.as_str().unwrap_or("").to_owned())).collect()
}

pub(super) fn set_pairs(lun: &mut Volume, pairs: &[(String, String)]) {
    let map = pairs.iter().map(|(name, value)| (name.clone(), json!(value)));
    lun.attributes.insert("attributes".to_owned(), Value::Object(map.collect()));
}

/// A moment as the API writes it.
pub(super) fn time(milliseconds: u64) -> String {
    let (days, seconds) = (milliseconds / 86_400_000, milliseconds / 1000 % 86_400);
    // Civil from days, after Howard Hinnant's "chrono-compatible low-level date algorithms".
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, extra) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + extra;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_dates() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(951_827_696_000), "2000-02-29T12:34:56Z");
    }

    #[test]
    fn paths_name_volume_snapshot_and_lun() {
        assert_eq!(parts("/vol/v/l"), Some(("v", None, "l")));
        assert_eq!(parts("/vol/v/.snapshot/s/l"), Some(("v", Some("s"), "l")));
        assert_eq!(parts("/vol/v"), None);
        assert_eq!(parts("l"), None);
    }
}
