//! Where an export is, as people and programs write it.
//!
//! Two dialects are in use. `nbd+unix:///NAME?socket=PATH`, `nbd://HOST:PORT/NAME` and, with TLS,
//! `nbds+unix:` and `nbds:` are those of the NBD project (`doc/uri.md`); names and paths are
//! percent-encoded. `nbd:unix:PATH:exportname=NAME` and `nbd:HOST:PORT:exportname=NAME` are QEMU's
//! older ones, which xapi speaks; nothing is encoded there.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The port that IANA has given to NBD.
pub const PORT: u16 = 10809;

/// The address of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// Where the server listens.
    pub address: Address,
    /// The export; empty for the server's default.
    pub name: String,
    /// Encrypted.
    pub tls: bool,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A host's name or number, and a port.
    Tcp(String, u16),
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no NBD address: {reason}")]
pub struct BadUri {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Uri {
    /// An export of a server on a unix socket of this machine.
    pub fn unix(path: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Self { address: Address::Unix(path.into()), name: name.into(), tls: false }
    }

    /// In QEMU's older dialect, for consumers that know no other. None: it cannot be said there
    /// (TLS, or a colon in the path).
    pub fn to_legacy(&self) -> Option<String> {
        if self.tls {
            return None;
        }
        let address = match &self.address {
            Address::Unix(path) => {
                format!("unix:{}", path.to_str().filter(|path| !path.contains(':'))?)
            }
            Address::Tcp(host, port) => format!("{}:{port}", bracketed(host)),
        };
        let name = &self.name;
        Some(if name.is_empty() {
            format!("nbd:{address}")
        } else {
            format!("nbd:{address}:exportname={name}")
        })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "nbds" } else { "nbd" };
        let name = encode(self.name.as_bytes(), b"");
        match &self.address {
            Address::Unix(path) => {
                let path = encode(path.as_os_str().as_encoded_bytes(), b"/");
                write!(f, "{scheme}+unix:///{name}?socket={path}")
            }
            Address::Tcp(host, PORT) => write!(f, "{scheme}://{}/{name}", bracketed(host)),
            Address::Tcp(host, port) => write!(f, "{scheme}://{}:{port}/{name}", bracketed(host)),
        }
    }
}

impl FromStr for Uri {
    type Err = BadUri;

    fn from_str(text: &str) -> Result<Self, BadUri> {
        let bad = |reason| BadUri { text: text.to_owned(), reason };
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(bad("it does not begin with nbd:, nbds:, nbd+unix: or nbds+unix:"));
        };
        let (unix, tls) = match scheme {
            "nbd" if !rest.starts_with("//") => return legacy(rest).map_err(bad),
            "nbd" => (false, false),
            "nbds" => (false, true),
            "nbd+unix" => (true, false),
            "nbds+unix" => (true, true),
            _ => return Err(bad("it does not begin with nbd:, nbds:, nbd+unix: or nbds+unix:")),
        };
        let rest = rest.strip_prefix("//").ok_or_else(|| bad("two slashes are missing"))?;
        if rest.contains('#') {
            return Err(bad("it has a fragment"));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, name) = place.split_once('/').unwrap_or((place, ""));
        let name = decode(name)
            .and_then(|name| String::from_utf8(name).ok())
            .ok_or_else(|| bad("the name is not UTF-8 in percent-encoding"))?;
        let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
        let address = match (unix, socket) {
            (true, Some(path)) => {
                if !host.is_empty() {
                    return Err(bad("a socket in the file system has no host"));
                }
                Address::Unix(
                    decode(path).and_then(path_of).ok_or_else(|| bad("empty socket path"))?,
                )
            }
            (true, None) => return Err(bad("it does not say socket=PATH")),
            (false, Some(_)) => return Err(bad("a host has no socket path")),
            (false, None) => {
                let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
                let (host, port) = host_and_port(host).map_err(bad)?;
                Address::Tcp(host, port.unwrap_or(PORT))
            }
        };
        Ok(Self { address, name, tls })
    }
}

fn legacy(rest: &str) -> Result<Uri, &'static str> {
    let (place, name) = rest.split_once(":exportname=").unwrap_or((rest, ""));
    let address = match place.strip_prefix("unix:") {
        Some("") => return Err("empty socket path"),
        Some(path) => Address::Unix(PathBuf::from(path)),
        None => match host_and_port(place)? {
            (host, Some(port)) => Address::Tcp(host, port),
            (_, None) => return Err("it has no port"),
        },
    };
    Ok(Uri { address, name: name.to_owned(), tls: false })
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("a bracket is missing")?;
        match after.strip_prefix(':') {
            None if !after.is_empty() => return Err("something stands after the bracket"),
            port => (host, port),
        }
    } else {
        match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if host.is_empty() {
        return Err("it has no host");
    }
    let port = match port {
        None | Some("") => None,
        Some(port) => Some(port.parse().map_err(|_| "the port is not a number up to 65535")?),
    };
    Ok((host.to_owned(), port))
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

fn path_of(bytes: Vec<u8>) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let path = std::ffi::OsString::from_vec(bytes);
    (!path.is_empty()).then(|| Path::new(&path).to_owned())
}

/// Percent-encodes all but letters, digits, `-._~` and what is `kept`.
fn encode(bytes: &[u8], kept: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let (digits, after) = rest.split_first_chunk::<2>()?;
            let digit = |digit: u8| char::from(digit).to_digit(16);
            bytes.push((digit(digits[0])? * 16 + digit(digits[1])?) as u8);
            rest = after;
        } else {
            bytes.push(byte);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::{Address, Uri};

    fn parse(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn both_dialects_name_the_same_export() {
        let uri = Uri::unix("/run/a b/nbd", "disk/1?");
        assert_eq!(uri.to_string(), "nbd+unix:///disk%2F1%3F?socket=/run/a%20b/nbd");
        assert_eq!(parse(&uri.to_string()), uri);
        assert_eq!(uri.to_legacy().as_deref(), Some("nbd:unix:/run/a b/nbd:exportname=disk/1?"));
        assert_eq!(parse(&uri.to_legacy().unwrap()), uri);
    }

    #[test]
    fn hosts_are_names_or_numbers_with_or_without_a_port() {
        let tcp = |host: &str, port, name: &str, tls| Uri {
            address: Address::Tcp(host.to_owned(), port),
            name: name.to_owned(),
            tls,
        };
        assert_eq!(parse("nbd://host"), tcp("host", 10809, "", false));
        assert_eq!(parse("nbds://host:1/x"), tcp("host", 1, "x", true));
        assert_eq!(parse("nbds://user@[::1]:2/x"), tcp("::1", 2, "x", true));
        assert_eq!(parse("nbd:localhost:3"), tcp("localhost", 3, "", false));
        assert_eq!(parse("nbd:h:3:exportname=a:b"), tcp("h", 3, "a:b", false));
        for text in ["nbd://host/x", "nbds://[::1]:2/x%20y", "nbd+unix:///?socket=/s"] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_said_in_the_old_dialect_is_not_said() {
        assert_eq!(parse("nbds://host").to_legacy(), None);
        assert_eq!(Uri::unix("/a:b", "").to_legacy(), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, reason) in [
            ("disk", "it does not begin with nbd:, nbds:, nbd+unix: or nbds+unix:"),
            ("http://host", "it does not begin with nbd:, nbds:, nbd+unix: or nbds+unix:"),
            ("nbd+unix:///x", "it does not say socket=PATH"),
            ("nbd+unix:///x?socket=", "empty socket path"),
            ("nbd+unix://host/x?socket=/s", "a socket in the file system has no host"),
            ("nbd://host/x?socket=/s", "a host has no socket path"),
            ("nbd://", "it has no host"),
            ("nbd://h:70000", "the port is not a number up to 65535"),
            ("nbd:unix:", "empty socket path"),
            ("nbd:host", "it has no port"),
            ("nbd://[::1/x", "a bracket is missing"),
            ("nbd+unix:///%ff?socket=/s", "the name is not UTF-8 in percent-encoding"),
            ("nbd+unix:///%4?socket=/s", "the name is not UTF-8 in percent-encoding"),
        ] {
            let error = text.parse::<Uri>().unwrap_err();
            assert_eq!((error.reason, error.text.as_str()), (reason, text));
        }
    }
}
