//! Limits of requests and bytes per second that an array can have.

use std::ops::RangeInclusive;

use plugin_sdk::model::vdi::{Qos, Rate};
use plugin_sdk::model::{Error, Kind, Result};

/// What a vendor's volumes can be limited to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QosRule {
    /// Requests in a second; none if they cannot be limited.
    pub operations: Option<RangeInclusive<u64>>,
    /// Bytes in a second; none if they cannot be limited.
    pub bytes: Option<RangeInclusive<u64>>,
    /// What the array counts bytes in: a limit is rounded down to a multiple of it.
    pub bytes_unit: u64,
    /// Whether a limit can have a burst of its own.
    pub burst: bool,
}

/// The name of the policy of these limits, for arrays that keep limits in policies; none without limits.
/// Its numbers are its name, so volumes share it, and whoever makes it again makes the same.
pub fn policy(limits: &Qos, bytes_unit: u64) -> Option<String> {
    let (operations, bytes) = numbers(limits, bytes_unit);
    (!limits.is_unlimited())
        .then(|| format!("smq-{}-{}", operations.unwrap_or(0), bytes.unwrap_or(0)))
}

/// The limits of a policy of such a name; none of another one.
pub fn limits(policy: &str, bytes_unit: u64) -> Qos {
    let numbers = policy.strip_prefix("smq-").and_then(|rest| rest.split_once('-'));
    let Some((operations, bytes)) = numbers else { return Qos::default() };
    let number = |text: &str| text.parse::<u64>().ok().filter(|number| *number > 0);
    let bytes = number(bytes).map(|units| units.saturating_mul(bytes_unit));
    Qos { operations: rate(number(operations)), bytes: rate(bytes) }
}

/// Requests, and bytes in units of the array, per second.
pub fn numbers(limits: &Qos, bytes_unit: u64) -> (Option<u64>, Option<u64>) {
    let number = |rate: Option<Rate>| rate.map(|rate| rate.per_second);
    (number(limits.operations), number(limits.bytes).map(|bytes| bytes / bytes_unit.max(1)))
}

/// A limit without a burst.
pub fn rate(per_second: Option<u64>) -> Option<Rate> {
    per_second.map(|per_second| Rate { per_second, burst: None })
}

impl QosRule {
    /// The limits to ask the array for. Error kind `limit` for a number that it cannot have,
    /// `unsupported` for a kind of limit.
    pub fn fit(&self, wanted: &Qos) -> Result<Qos> {
        Ok(Qos {
            operations: self.one(wanted.operations, self.operations.as_ref(), 1, "requests")?,
            bytes: self.one(wanted.bytes, self.bytes.as_ref(), self.bytes_unit, "bytes")?,
        })
    }

    fn one(
        &self,
        wanted: Option<Rate>,
        range: Option<&RangeInclusive<u64>>,
        unit: u64,
        what: &str,
    ) -> Result<Option<Rate>> {
        let Some(wanted) = wanted else { return Ok(None) };
        let Some(range) = range else {
            return Err(Error::unsupported(format!("the array cannot limit {what} per second")));
        };
        if wanted.burst.is_some() && !self.burst {
            return Err(Error::unsupported("the array chooses the burst of a limit by itself")
                .hint("leave the burst out"));
        }
        if !range.contains(&wanted.per_second) {
            return Err(Error::new(
                Kind::Limit,
                format!("the array cannot limit a disk to {} {what} per second", wanted.per_second),
            )
            .hint(format!("it takes {} to {}", range.start(), range.end())));
        }
        let per_second = wanted.per_second / unit.max(1) * unit.max(1);
        Ok(Some(Rate { per_second: per_second.max(*range.start()), ..wanted }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_tells_its_limits() {
        let unit = 1 << 20;
        let qos = Qos { operations: rate(Some(500)), bytes: rate(Some(20 * unit)) };
        assert_eq!(policy(&qos, unit).as_deref(), Some("smq-500-20"));
        assert_eq!(limits("smq-500-20", unit), qos);
        assert_eq!((policy(&Qos::default(), unit), limits("gold", unit)), (None, Qos::default()));
        assert_eq!(limits("smq-500-0", unit).bytes, None);
    }

    #[test]
    fn limits_are_rounded_down_or_refused_with_the_range() {
        let rule = QosRule {
            operations: Some(100..=100_000_000),
            bytes: Some(1 << 20..=512 << 30),
            bytes_unit: 1 << 20,
            burst: false,
        };
        let qos = |operations: Option<u64>, bytes: Option<u64>, burst| Qos {
            operations: operations.map(|per_second| Rate { per_second, burst }),
            bytes: bytes.map(|per_second| Rate { per_second, burst }),
        };
        let fitted = rule.fit(&qos(Some(150), Some((5 << 20) + 7), None)).unwrap();
        assert_eq!(fitted, qos(Some(150), Some(5 << 20), None));
        assert_eq!(rule.fit(&fitted).unwrap(), fitted, "what was taken is taken again");
        assert_eq!(rule.fit(&Qos::default()).unwrap(), Qos::default());
        let error = rule.fit(&qos(Some(99), None, None)).unwrap_err();
        assert_eq!(error.message, "the array cannot limit a disk to 99 requests per second");
        assert_eq!(error.hint.as_deref(), Some("it takes 100 to 100000000"));
        let error = rule.fit(&qos(Some(100), None, Some(5))).unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported);
        let none = QosRule { bytes: None, ..rule };
        let error = none.fit(&qos(None, Some(1 << 20), None)).unwrap_err();
        assert_eq!(error.message, "the array cannot limit bytes per second");
    }
}
