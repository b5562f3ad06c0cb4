//! What the device configuration says.

use std::fmt;

use plugin_sdk::config::{ConfigValue, RawConfig};
use plugin_sdk::model::Kind;
use plugin_sdk::model::manifest::FieldKind;
use plugin_sdk::{Error, Result};

/// How a mount waits if nothing else is asked for. The times are those of XenServer (20 s for an
/// answer, then four tries more), with which arrays have been run for years; they decide when the
/// kernel connects anew and complains. XenServer mounts `soft`: after these tries a guest's write
/// fails, its file system becomes read-only, and what the host had not yet written is lost. Here it
/// is `hard`: a guest waits for its disk and goes on. What must not wait is seen to by deadlines.
/// The attributes of folders are not kept, so that a host sees at once what another has renamed.
const POLICY: &str = "hard,proto=tcp,timeo=200,retrans=4,acdirmin=0,acdirmax=0";

plugin_sdk::device_config! {
    /// Where the images lie.
    pub struct Config {
        /// Name or address of the NFS server.
        pub server: Host,
        /// Folder that the server exports, or one below it; it must exist.
        pub serverpath: Path,
        /// Version of NFS: 3, 4, 4.0, 4.1 or 4.2; the best that the server has if absent.
        pub nfsversion: Option<Version>,
        /// Options of mount.nfs, with commas between, after the driver's own.
        pub options: Option<Options>,
        /// Whether the images lie in serverpath itself instead of a folder of the SR's own.
        pub nosubdir: Option<bool>,
    }
}

/// A server's name or address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host(pub String);

impl ConfigValue for Host {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:%".contains(c);
        // It is a word on a command line, where a hyphen would begin an option.
        if !bare.is_empty() && !bare.starts_with('-') && bare.chars().all(plain) {
            Ok(Self(bare.to_owned()))
        } else {
            Err("the name or address of a host, such as nas.example.com".to_owned())
        }
    }
}

/// A path on the server, without superfluous slashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(pub String);

impl ConfigValue for Path {
    const KIND: FieldKind = FieldKind::Path;

    fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
        let strange = parts.iter().any(|part| matches!(*part, "." | ".."));
        if !text.starts_with('/') || strange || text.chars().any(char::is_control) {
            return Err("an absolute path on the server, such as /srv/images".to_owned());
        }
        Ok(Self(format!("/{}", parts.join("/"))))
    }
}

/// A version of NFS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 3.
    Three,
    /// 4 with the best minor version that the server has.
    Four,
    /// 4 with this minor version.
    Minor(u8),
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Three => f.write_str("3"),
            Self::Four => f.write_str("4"),
            Self::Minor(minor) => write!(f, "4.{minor}"),
        }
    }
}

impl ConfigValue for Version {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "3" => Ok(Self::Three),
            "4" => Ok(Self::Four),
            "4.0" => Ok(Self::Minor(0)),
            "4.1" => Ok(Self::Minor(1)),
            "4.2" => Ok(Self::Minor(2)),
            _ => Err("3, 4, 4.0, 4.1 or 4.2".to_owned()),
        }
    }
}

/// Further options of a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(pub Vec<String>);

impl ConfigValue for Options {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        let words: Vec<String> =
            text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let plain = |word: &String| word.chars().all(|c| c.is_ascii_graphic());
        // Who mounts, and where, is said elsewhere.
        let ours = |word: &String| {
            let key = word.split('=').next().unwrap_or(word);
            matches!(key, "vers" | "nfsvers" | "retry" | "bg" | "fg" | "ro" | "minorversion")
        };
        if !words.iter().all(plain) {
            return Err("options of mount.nfs with commas between, such as soft,nconnect=4".into());
        }
        if words.iter().any(ours) {
            return Err("options without vers (that is nfsversion), retry, bg, fg and ro".into());
        }
        Ok(Self(words))
    }
}

/// A server, and how it is mounted.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) port: u16,
    /// Whether it can be asked on a port of TCP.
    pub(crate) tcp: bool,
    pub(crate) options: String,
}

impl Server {
    pub(crate) fn new(name: &Host, version: Option<Version>, more: Option<&Options>) -> Self {
        let more = more.map(|options| options.0.as_slice()).unwrap_or_default();
        let value = |name: &str| {
            more.iter().rev().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let transport = value("proto");
        let tcp = transport.is_none_or(|name| name.starts_with("tcp"))
            && !more.iter().any(|word| word == "udp" || word == "rdma");
        // An address of IPv6 says by itself what it is; a name is for the system to look up.
        let policy = if name.0.contains(':') {
            POLICY.replace("proto=tcp", "proto=tcp6")
        } else {
            POLICY.to_owned()
        };
        // Once: how long it is tried is seen to here.
        let mut words = vec![policy, "retry=0".to_owned()];
        words.extend(version.map(|version| format!("vers={version}")));
        words.extend(more.iter().cloned());
        Self {
            name: name.0.clone(),
            port: value("port")
                .and_then(|port| port.parse().ok())
                .unwrap_or(host_kit::mount::nfs::PORT),
            tcp,
            options: words.join(","),
        }
    }

    /// As far as a probe was told; the error names `server` if not even that.
    pub(crate) fn of_probe(raw: &RawConfig) -> Result<Self> {
        let Some(name) = raw.get::<Host>("server")? else {
            let kind = Kind::Config { missing: vec!["server".to_owned()], candidates: Vec::new() };
            return Err(Error::new(kind, "the device configuration lacks server")
                .legacy(102)
                .hint("server=NAME alone shows what the server exports"));
        };
        Ok(Self::new(&name, raw.get("nfsversion")?, raw.get("options")?.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use plugin_sdk::config::ConfigValue as _;

    use super::{Host, Options, Path, Server, Version};

    #[test]
    fn values_are_what_a_command_line_can_take() {
        for good in ["nas", "nas.lan", "10.9.0.1", "fd00::1", "fe80::1%eth0"] {
            assert_eq!(Host::parse(good), Ok(Host(good.to_owned())), "{good}");
        }
        assert_eq!(Host::parse("[fd00::1]"), Ok(Host("fd00::1".to_owned())));
        for bad in ["", "-o", "a b", "nas:/x", "a,b", "nas\n"] {
            assert!(Host::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Path::parse("//srv///a b/"), Ok(Path("/srv/a b".to_owned())));
        assert_eq!(Path::parse("/"), Ok(Path("/".to_owned())));
        for bad in ["", "srv", "/srv/../etc", "/srv/.", "/a\nb"] {
            assert!(Path::parse(bad).is_err(), "{bad:?}");
        }
        for text in ["3", "4", "4.0", "4.1", "4.2"] {
            assert_eq!(Version::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Version::parse("2"), Err("3, 4, 4.0, 4.1 or 4.2".to_owned()));
        for bad in ["vers=3", "nfsvers=4", "soft,retry=1", "bg", "ro", "a b", "soft,minorversion=1"]
        {
            assert!(Options::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mount_waits_unless_told_otherwise() {
        let server = |name: &str, version, more: Option<&str>| {
            let more = more.map(|text| Options::parse(text).unwrap());
            Server::new(&Host::parse(name).unwrap(), version, more.as_ref())
        };
        let plain = server("nas", None, None);
        assert_eq!(
            plain.options,
            "hard,proto=tcp,timeo=200,retrans=4,acdirmin=0,acdirmax=0,retry=0"
        );
        assert_eq!((plain.port, plain.tcp), (2049, true));
        let other = server("fd00::1", Some(Version::Minor(1)), Some("soft,port=2050,nconnect=4"));
        assert_eq!(
            other.options,
            "hard,proto=tcp6,timeo=200,retrans=4,acdirmin=0,acdirmax=0,retry=0,vers=4.1,soft,\
             port=2050,nconnect=4",
            "of two that contradict each other, mount.nfs takes the last"
        );
        assert_eq!((other.port, other.tcp), (2050, true));
        assert!(!server("nas", None, Some("proto=rdma,port=20049")).tcp);
    }
}
