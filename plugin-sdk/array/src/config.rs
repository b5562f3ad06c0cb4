//! Parts of a device configuration that arrays with an HTTP API have in common.

use plugin_sdk::config::{ConfigValue, DeviceConfig, RawConfig};
use plugin_sdk::model::manifest::FieldKind;
use plugin_sdk::{Error, Result};

use crate::http::Trust;

/// Where an array's API is: scheme, host, port. HTTPS unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(String);

impl Address {
    /// As a URL without a path, such as `https://10.0.0.1:444`.
    pub fn url(&self) -> &str {
        &self.0
    }

    /// Host, and what follows it: nothing, or a colon and the port.
    fn parts(&self) -> (&str, &str) {
        let rest = self.0.split_once("://").map_or(self.0.as_str(), |(_, rest)| rest);
        match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some(parts) => parts,
            None => rest.split_at(rest.find(':').unwrap_or(rest.len())),
        }
    }

    /// The host alone, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        self.parts().0
    }
}

impl ConfigValue for Address {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> std::result::Result<Self, String> {
        let text = text.trim_end_matches('/');
        let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let address = Self(url);
        let plain = address.0.matches('/').count() == 2 && !address.0.contains(['@', '?', '#']);
        let (host, port) = address.parts();
        let numbered = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
        let fits = port.is_empty() || port.strip_prefix(':').is_some_and(numbered);
        if plain && fits && !host.is_empty() {
            return Ok(address);
        }
        Err("an address such as 10.0.0.1 or https://array.example:444".to_owned())
    }
}

/// A configuration for a probe: one that lacks `key` gets it as `text`.
pub fn with_default<C: DeviceConfig>(raw: &RawConfig, key: &str, text: &str) -> Result<C> {
    let mut values = vec![(key.to_owned(), text.to_owned())];
    for field in C::FIELDS {
        values.extend(raw.get::<String>(field.name)?.map(|value| (field.name.to_owned(), value)));
    }
    values.into_iter().collect::<RawConfig>().complete()
}

/// Whom to trust, out of the keys `ca` and `fingerprint`. Error kind `config` if both are given.
pub fn trust(ca: Option<String>, fingerprint: Option<String>) -> Result<Trust> {
    match (ca, fingerprint) {
        (None, None) => Ok(Trust::System),
        (Some(ca), None) => Ok(Trust::Authority(ca)),
        (None, Some(fingerprint)) => Ok(Trust::Fingerprint(fingerprint)),
        (Some(_), Some(_)) => Err(Error::config("ca and fingerprint are both given")
            .hint("a fingerprint stands for one certificate, whoever signed it: leave one out")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_a_host_with_a_port_or_a_url() {
        for (text, url, host) in [
            ("10.0.0.1", "https://10.0.0.1", "10.0.0.1"),
            ("nas.example:444/", "https://nas.example:444", "nas.example"),
            ("http://nas", "http://nas", "nas"),
            ("https://[fd00::1]:443", "https://[fd00::1]:443", "fd00::1"),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!((address.url(), address.host()), (url, host));
        }
        for wrong in [
            "",
            "https://",
            "nas:",
            "nas:0",
            "nas:x",
            "a/b",
            "https://user@nas",
            "nas?x",
            "https://nas/api",
        ] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_certificate_is_trusted_in_one_way() {
        let text = |text: &str| Some(text.to_owned());
        assert!(matches!(trust(None, None), Ok(Trust::System)));
        let error = trust(text("pem"), text("ab")).unwrap_err();
        assert_eq!(error.message, "ca and fingerprint are both given");
    }
}
