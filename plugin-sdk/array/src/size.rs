//! Sizes that an array can have.

use plugin_sdk::model::{Bytes, Error, Kind, Result};

/// What sizes a vendor's volumes can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeRule {
    /// Every size is a multiple of it; 512 for Pure, 8192 for PowerStore, 15 MiB for EqualLogic.
    pub unit: Bytes,
    /// The smallest volume.
    pub min: Bytes,
    /// The largest volume.
    pub max: Bytes,
    /// How much the array may add by itself (ONTAP rounds up to a geometry that it does not tell);
    /// 0 where it takes sizes as they are.
    pub slack: Bytes,
}

impl SizeRule {
    /// A rule without slack.
    pub const fn new(unit: Bytes, min: Bytes, max: Bytes) -> Self {
        Self { unit, min, max, slack: Bytes(0) }
    }

    /// The size to ask the array for: rounded up to its unit, at least its smallest volume. Error
    /// kind `limit` with SMAPI's 79 for nothing, and for what is above its largest.
    pub fn fit(&self, wanted: Bytes) -> Result<Bytes> {
        let refusal = |fact: String| {
            let limits = format!("a size from {} to {}", self.min, self.max);
            Err(Error::new(Kind::Limit, fact)
                .legacy_detail(79, &limits)
                .hint(format!("the array takes {limits}")))
        };
        if wanted == Bytes(0) {
            return refusal("the size of a VDI must be above 0".to_owned());
        }
        match wanted.max(self.min).round_up(self.unit) {
            Some(size) if size <= self.max => Ok(size),
            _ => refusal(format!(
                "{} bytes are above the largest volume of the array, {} bytes",
                wanted.0, self.max.0
            )),
        }
    }

    /// The same in the vendor's units, for APIs that count MiB or GiB.
    pub fn units(&self, wanted: Bytes) -> Result<u64> {
        self.fit(wanted).map(|size| size.0 / self.unit.0)
    }

    /// The size that was asked for, to be kept with the volume: where the array adds what it likes, nobody
    /// could tell it from the size that came of it.
    pub fn asked(&self, size: Bytes) -> Option<Bytes> {
        (self.slack > Bytes(0)).then_some(size)
    }

    /// Whether a volume of size `actual` is what a request for `wanted` makes.
    pub fn is(&self, wanted: Bytes, actual: Bytes) -> bool {
        self.fit(wanted).is_ok_and(|size| actual >= size && actual.0 - size.0 <= self.slack.0)
    }
}

/// The bytes that a text of an array means, rounded up: `111GB`, `1536.0MB`. Binary units, as
/// arrays use them. Texts of arrays are rounded, so nothing is accounted by them.
pub fn parse_text(text: &str) -> Option<Bytes> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit: u128 = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "KB" | "K" => 1 << 10,
        "MB" | "M" => 1 << 20,
        "GB" | "G" => 1 << 30,
        "TB" | "T" => 1 << 40,
        "PB" | "P" => 1 << 50,
        _ => return None,
    };
    let (whole, fraction) = number.trim().split_once('.').unwrap_or((number.trim(), ""));
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let scale = 10_u128.pow(fraction.len() as u32);
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let whole: u64 = whole.parse().ok()?;
    let bytes = (u128::from(whole) * scale + part).checked_mul(unit)?.div_ceil(scale);
    u64::try_from(bytes).ok().map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POWERSTORE: SizeRule =
        SizeRule::new(Bytes(8192), Bytes(1_048_576), Bytes(281_474_976_710_656));

    #[test]
    fn sizes_are_rounded_up_and_bounded() {
        assert_eq!(POWERSTORE.fit(Bytes(1)).unwrap(), Bytes(1_048_576));
        assert_eq!(POWERSTORE.fit(Bytes(1_048_577)).unwrap(), Bytes(1_048_576 + 8192));
        assert_eq!(POWERSTORE.fit(Bytes(1 << 40)).unwrap(), Bytes(1 << 40));
        assert_eq!(POWERSTORE.fit(POWERSTORE.max).unwrap(), POWERSTORE.max);
    }

    #[test]
    fn what_is_too_large_is_refused_with_the_limit() {
        let error = POWERSTORE.fit(Bytes(POWERSTORE.max.0 + 1)).unwrap_err();
        assert_eq!(
            error.message,
            "281474976710657 bytes are above the largest volume of the array, \
             281474976710656 bytes"
        );
        assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::Limit, 79));
        assert_eq!(
            POWERSTORE.fit(Bytes(0)).unwrap_err().message,
            "the size of a VDI must be above 0"
        );
    }

    #[test]
    fn a_geometry_that_the_array_chose_is_recognised() {
        let ontap = SizeRule {
            slack: Bytes(64 << 20),
            ..SizeRule::new(Bytes(4096), Bytes(4096), Bytes(140_737_488_355_328))
        };
        assert!(ontap.is(Bytes(300 << 30), Bytes(322_163_441_664)));
        assert!(!ontap.is(Bytes(300 << 30), Bytes(301 << 30)));
        assert!(!ontap.is(Bytes(300 << 30), Bytes(299 << 30)));
    }

    #[test]
    fn texts_of_arrays_are_read() {
        assert_eq!(parse_text("111GB"), Some(Bytes(111 << 30)));
        assert_eq!(parse_text("1536.0MB"), Some(Bytes(1536 << 20)));
        assert_eq!(parse_text(" 5.5 TB"), Some(Bytes(11 << 39)));
        for text in ["", "GB", "5XB", "-1GB", "1.2.3GB", "99999999999999999999GB", "1.GB2"] {
            assert_eq!(parse_text(text), None, "{text:?}");
        }
    }

    proptest! {
        /// A fitted size is a multiple of the unit, holds what was asked, and fits again as it is.
        #[test]
        fn fitting_is_idempotent(wanted in 1_u64..1 << 49, unit in prop::sample::select(
            vec![1_u64, 512, 8192, 15 << 20, 256 << 20, 8 << 30])) {
            let rule = SizeRule::new(Bytes(unit), Bytes(unit), Bytes(1 << 50));
            if let Ok(size) = rule.fit(Bytes(wanted)) {
                prop_assert!(size.0 >= wanted && size.0 % unit == 0);
                prop_assert!(size.0 - wanted < unit);
                prop_assert_eq!(rule.fit(size).unwrap(), size);
            }
        }
    }
}
