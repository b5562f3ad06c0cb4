//! Byte counts.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A number of bytes. In JSON a plain number; for people `10GiB`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// Units by falling size: the IEC ones are powers of 1024, the SI ones powers of 1000.
const UNITS: &[(&str, u64)] = &[
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("PB", 1_000_000_000_000_000),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("P", 1 << 50),
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
    ("B", 1),
];

impl Bytes {
    /// So many times 1024 × 1024 bytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// So many times 1024 × 1024 × 1024 bytes.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The next multiple of `unit`, or `None` beyond 2^64 bytes.
    pub fn round_up(self, unit: Self) -> Option<Self> {
        self.0.checked_next_multiple_of(unit.0).map(Self)
    }
}

impl fmt::Display for Bytes {
    /// For people: the largest IEC unit, with two decimals at most (`10GiB`, `1.5MiB`, `512B`).
    /// Whole GiB are never rounded, because limits and sizes of disks are (`2040GiB`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const GIB: u64 = 1 << 30;
        let hundredths = |factor: u64| u128::from(self.0) * 100 / u128::from(factor);
        let rounded = |factor: u64| !(u128::from(self.0) * 100).is_multiple_of(u128::from(factor));
        let largest = UNITS
            .iter()
            .filter(|(name, _)| name.ends_with("iB"))
            .find(|(_, factor)| self.0 >= *factor)
            .unwrap_or(&("B", 1));
        let (unit, factor) = match largest {
            (_, factor) if rounded(*factor) && self.0.is_multiple_of(GIB) => ("GiB", GIB),
            (unit, factor) => (*unit, *factor),
        };
        let hundredths = hundredths(factor);
        let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
        f.pad(&format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.')))
    }
}

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size: {why}")]
pub struct ParseSizeError {
    text: String,
    why: &'static str,
}

impl FromStr for Bytes {
    type Err = ParseSizeError;

    /// Reads `10GiB`, `1.5 TiB`, `20G` (powers of 1024), `3GB` (powers of 1000), `1048576`.
    /// Units are read without regard to case, except that `B` needs a unit or nothing before it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |why| ParseSizeError { text: text.to_owned(), why };
        let trimmed = text.trim();
        if trimmed.starts_with('-') {
            return Err(fail("it must not be negative"));
        }
        let digits =
            trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim();
        let factor = if unit.is_empty() {
            1
        } else {
            UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                .map(|(_, factor)| *factor)
                .ok_or_else(|| {
                    fail("the unit is none of B, KiB, MiB, GiB, TiB, PiB, kB, MB, GB, TB, PB")
                })?
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() {
            return Err(fail("it must start with a number, such as 10GiB"));
        }
        let too_large = || fail("it is above 2^64 bytes");
        let whole: u64 = whole.parse().map_err(|_| too_large())?;
        let mut bytes = u128::from(whole) * u128::from(factor);
        if !fraction.is_empty() {
            if fraction.len() > 9 || fraction.contains('.') {
                return Err(fail("it has more than nine decimals"));
            }
            let scale = 10u128.pow(fraction.len() as u32);
            let part: u64 = fraction.parse().map_err(|_| fail("the decimals are not a number"))?;
            let scaled = u128::from(part) * u128::from(factor);
            if !scaled.is_multiple_of(scale) {
                return Err(fail("it is not a whole number of bytes"));
            }
            bytes += scaled / scale;
        }
        u64::try_from(bytes).map(Self).map_err(|_| too_large())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("10GiB", 10 << 30),
            ("10gib", 10 << 30),
            ("10G", 10 << 30),
            ("10GB", 10_000_000_000),
            ("1.5 MiB", 3 << 19),
            ("2040GiB", 2040 << 30),
            ("7B", 7),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_with_the_reason() {
        for (text, why) in [
            ("-1", "it must not be negative"),
            ("", "it must start with a number, such as 10GiB"),
            ("GiB", "it must start with a number, such as 10GiB"),
            ("1.1B", "it is not a whole number of bytes"),
            ("20000PiB", "it is above 2^64 bytes"),
            ("99999999999999999999", "it is above 2^64 bytes"),
            ("1.2.3G", "it has more than nine decimals"),
        ] {
            let error = text.parse::<Bytes>().unwrap_err();
            assert_eq!(error.why, why, "{text}");
        }
        assert!(
            "10 parsecs".parse::<Bytes>().unwrap_err().to_string().contains("the unit is none")
        );
    }

    #[test]
    fn prints_for_people() {
        for (bytes, text) in [
            (0, "0B"),
            (512, "512B"),
            (1 << 20, "1MiB"),
            (3 << 19, "1.5MiB"),
            (1_000_000, "976.56KiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
