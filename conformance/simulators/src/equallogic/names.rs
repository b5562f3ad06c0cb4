//! Identifiers, targets, and the names that the group gives by itself.

use crate::core::{Snapshot, Volume};

/// The NAA identifier of a unit: `6090a0`, a digit, `8`, and 24 digits.
pub fn naa(uuid: &str) -> String {
    let digits: String = uuid.chars().filter(char::is_ascii_hexdigit).take(25).collect();
    let (first, rest) = digits.split_at_checked(1).unwrap_or(("0", ""));
    format!("6090a0{first}8{rest:0<24}")
}

/// The target of a unit: the bytes of its identifier from behind, in pieces, and the name that the
/// volume was made with.
pub fn target(uuid: &str, name: &str) -> String {
    let naa = naa(uuid);
    let pairs = naa.as_bytes().chunks(2).rev();
    let turned: String = pairs.flat_map(|pair| pair.iter().map(|b| char::from(*b))).collect();
    let piece = |from: usize, to: usize| turned.get(from..to).unwrap_or_default();
    format!(
        "iqn.2001-05.com.equallogic:{}-{}-{}-{}-{name}",
        piece(31, 32),
        piece(25, 31),
        piece(16, 25),
        piece(0, 16)
    )
}

/// The target of a volume; its name there stays that of its creation.
pub fn of_volume(key: &str, volume: &Volume) -> String {
    let name = volume.attributes.get("made_as").and_then(|name| name.as_str()).unwrap_or(key);
    target(&volume.uuid, name)
}

/// The target of a snapshot.
pub fn of_snapshot(key: &str, snapshot: &Snapshot) -> String {
    let name = snapshot.attributes.get("made_as").and_then(|name| name.as_str()).unwrap_or(key);
    target(&snapshot.uuid, name)
}

/// The name of a snapshot by its time: `web-2009-06-10-12:00:00.1.1`.
pub fn by_time(volume: &str, milliseconds: u64, number: u64) -> String {
    let seconds = milliseconds / 1000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{volume}-{year:04}-{month:02}-{day:02}-{hour:02}:{minute:02}:{second:02}.{number}.1")
}

/// The date so many days after 1970-01-01.
fn date(mut days: u64) -> (u64, u64, u64) {
    let mut year = 1970;
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

/// Whether a name can be one of a volume or snapshot.
pub fn fits(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':');
    (1..=63).contains(&name.len()) && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_its_identifier_from_behind() {
        let uuid = "140b3bc833d6fa4d02f00e016fffffff";
        assert_eq!(naa(uuid), "6090a01840b3bc833d6fa4d02f00e016");
        assert_eq!(
            target(uuid, "web"),
            "iqn.2001-05.com.equallogic:0-8a0906-83bcb3401-16e0002fd0a46f3d-web"
        );
    }

    #[test]
    fn snapshots_are_named_by_their_time() {
        assert_eq!(by_time("web", 1_244_635_200_000, 7), "web-2009-06-10-12:00:00.7.1");
        assert_eq!(by_time("web", 1_709_164_800_000, 1), "web-2024-02-29-00:00:00.1.1");
    }
}
