//! Names and places of iSCSI.

use std::fmt;

use plugin_sdk::config::ConfigValue;
use plugin_sdk::model::manifest::FieldKind;
use plugin_sdk::{Error, Result};

/// The port if none is said (RFC 7143, 14.2).
pub(crate) const PORT: u16 = 3260;

/// A target's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Iqn(String);

impl Iqn {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ConfigValue for Iqn {
    const KIND: FieldKind = FieldKind::Text;

    /// RFC 3722 leaves of ASCII letters, digits, `-`, `.` and `:`; more is in use, and what could
    /// lead out of the folder of records is not.
    fn parse(text: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_alphanumeric() || "-.:_".contains(c);
        let begins = ["iqn.", "eui.", "naa."].iter().any(|begin| text.starts_with(begin));
        if begins && text.len() <= 223 && text.chars().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err("a name such as iqn.2001-05.com.example:disk1".to_owned())
        }
    }
}

impl fmt::Display for Iqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a target is reached: address or host name, and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Portal {
    /// Address or name; of IPv6, without brackets.
    pub address: String,
    /// TCP port.
    pub port: u16,
}

impl Portal {
    /// Reads `address`, `address:port`, `[v6]` and `[v6]:port`. None if it is none of these.
    pub fn parse(text: &str, default_port: u16) -> Option<Self> {
        let (address, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, end) = rest.split_once(']')?;
                (address, end.strip_prefix(':'))
            }
            None => match text.split_once(':') {
                // More than one colon: an address of IPv6 without a port.
                Some((_, rest)) if rest.contains(':') => (text, None),
                Some((address, port)) => (address, Some(port)),
                None => (text, None),
            },
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-.:_%".contains(c);
        let fits = !address.is_empty() && address.chars().all(plain) && !address.starts_with('-');
        let port = match port {
            Some(port) => port.parse().ok().filter(|port| *port > 0)?,
            None => default_port,
        };
        fits.then(|| Self { address: address.to_owned(), port })
    }
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.address.contains(':') {
            write!(f, "[{}]:{}", self.address, self.port)
        } else {
            write!(f, "{}:{}", self.address, self.port)
        }
    }
}

/// A target at one of its portals, as a discovery shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Its name.
    pub iqn: Iqn,
    /// Where.
    pub portal: Portal,
    /// Number of the portal group.
    pub group: u16,
}

/// Reads what a discovery says: `10.9.0.1:3260,1 iqn...`, one a line. A portal that no host can
/// reach (link-local IPv6, which arrays tell of as well) is left out.
pub(super) fn targets(text: &str) -> Result<Vec<Target>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let read = || {
            let (place, iqn) = line.split_once(' ')?;
            let (portal, group) = place.rsplit_once(',')?;
            Some(Target {
                iqn: Iqn::parse(iqn.trim()).ok()?,
                portal: Portal::parse(portal, PORT)?,
                group: group.parse().ok()?,
            })
        };
        let target = read().ok_or_else(|| {
            Error::internal(format!("a discovery says {line:?}, which is no target")).legacy(83)
        })?;
        if !target.portal.address.to_ascii_lowercase().starts_with("fe80:") {
            found.push(target);
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portals_are_read_and_shown() {
        for (text, address, port) in [
            ("10.0.0.1", "10.0.0.1", 3260),
            ("10.0.0.1:3261", "10.0.0.1", 3261),
            ("array.example.com:860", "array.example.com", 860),
            ("[2001:db8::1]:3260", "2001:db8::1", 3260),
            ("[2001:db8::1]", "2001:db8::1", 3260),
            ("2001:db8::1", "2001:db8::1", 3260),
        ] {
            let portal = Portal::parse(text, PORT).unwrap();
            assert_eq!((portal.address.as_str(), portal.port), (address, port), "{text}");
            assert_eq!(Portal::parse(&portal.to_string(), 1), Some(portal));
        }
        for odd in ["", ":1", "a:0", "a:70000", "a b", "a/b", "--login", "[::1", "a:x", "a,b"] {
            assert_eq!(Portal::parse(odd, PORT), None, "{odd}");
        }
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        let longest = format!("iqn.{}", "x".repeat(219));
        for fits in ["iqn.2001-05.com.equallogic:0-8a0906-x", "eui.02004567A425678D", &longest] {
            assert_eq!(Iqn::parse(fits).unwrap().as_str(), fits);
        }
        for odd in ["", "*", "iqn", "iqn.a/../b", "iqn.a b", "-x", "iqn.\n", &format!("{longest}x")]
        {
            assert!(Iqn::parse(odd).is_err(), "{odd}");
        }
    }

    /// open-iscsi 2.1.8 about a target of Linux 6.1 with two portals.
    #[test]
    fn a_discovery_is_read() {
        let said = "10.9.1.1:3260,1 iqn.2026-01.org.example.lab:array\n\
                    10.9.0.1:3260,1 iqn.2026-01.org.example.lab:array\n\
                    10.9.0.1:3260,1 iqn.2026-01.org.example.lab:array\n\
                    [fe80::1]:3260,1 iqn.2026-01.org.example.lab:array\n\
                    [2001:db8::1]:3260,2 iqn.2026-01.org.example.lab:other\n";
        let found = targets(said).unwrap();
        let shown: Vec<String> =
            found.iter().map(|t| format!("{} {} {}", t.iqn, t.portal, t.group)).collect();
        assert_eq!(
            shown,
            [
                "iqn.2026-01.org.example.lab:array 10.9.0.1:3260 1",
                "iqn.2026-01.org.example.lab:array 10.9.1.1:3260 1",
                "iqn.2026-01.org.example.lab:other [2001:db8::1]:3260 2",
            ]
        );
        assert!(targets("").unwrap().is_empty());
        let error = targets("iscsiadm: odd\n").unwrap_err();
        assert_eq!(error.message, "a discovery says \"iscsiadm: odd\", which is no target");
    }
}
