//! The device configuration: XenServer's keys.

use host_kit::block::ScsiId;
use host_kit::iscsi::{Chap, Credentials, Iqn, Portal};
use host_kit::lvm::Allocation;
use plugin_sdk::config::{ConfigValue, RawConfig};
use plugin_sdk::model::Kind;
use plugin_sdk::model::manifest::FieldKind;
use plugin_sdk::{Error, Result, Secret};

/// The port if none is said.
const PORT: u16 = 3260;

plugin_sdk::device_config! {
    /// Which LUN of which target, and how to get there.
    pub struct Config {
        /// Address or name of the target, or several with commas between; address:port is possible.
        pub target: Addresses,
        /// Name of the target, or * for all that it has; sr probe lists them.
        #[key = "targetIQN"]
        pub iqn: Wanted,
        /// Identifier of the LUN that the SR takes as a whole; sr probe lists them.
        #[key = "SCSIid"]
        pub scsi_id: ScsiId,
        /// TCP port of the target.
        pub port: Port = "3260",
        /// Name that this host tells the target.
        pub chapuser: Option<String>,
        /// Password that goes with it.
        pub chappassword: Option<Secret>,
        /// Name that the target must tell this host.
        pub incoming_chapuser: Option<String>,
        /// Password that goes with it.
        pub incoming_chappassword: Option<Secret>,
        /// Whether to log in at all portals of the target, and to use them together by multipath.
        pub multihomed: bool = "true",
        /// Whether a disk has room for all of its blocks from the beginning, or only while it is
        /// attached for writing. Meant for the creation; the group's tags keep it.
        pub allocation: Allocation = "thick",
        /// Whether creating the SR erases what is on the LUN.
        pub force: bool = "false",
    }
}

/// The key `target`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses(Vec<String>);

impl ConfigValue for Addresses {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> std::result::Result<Self, String> {
        let all: Vec<String> = text.split(',').map(|one| one.trim().to_owned()).collect();
        if all.iter().all(|one| Portal::parse(one, PORT).is_some()) {
            Ok(Self(all))
        } else {
            Err("an address or name, or several with commas between".to_owned())
        }
    }
}

/// The key `targetIQN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Every target that the portal tells of.
    All,
    /// This one.
    One(Iqn),
}

impl ConfigValue for Wanted {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> std::result::Result<Self, String> {
        match text {
            "*" => Ok(Self::All),
            text => Iqn::parse(text).map(Self::One).map_err(|expected| format!("*, or {expected}")),
        }
    }
}

impl Wanted {
    /// Whether a target is meant.
    pub(crate) fn is(&self, iqn: &Iqn) -> bool {
        match self {
            Self::All => true,
            Self::One(wanted) => wanted == iqn,
        }
    }
}

/// The key `port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port(u16);

impl ConfigValue for Port {
    const KIND: FieldKind = FieldKind::Integer;

    fn parse(text: &str) -> std::result::Result<Self, String> {
        match text.parse() {
            Ok(port) if port > 0 => Ok(Self(port)),
            _ => Err("a number between 1 and 65535".to_owned()),
        }
    }
}

/// How to get to targets.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Where to ask, in this order.
    pub(crate) portals: Vec<Portal>,
    pub(crate) chap: Chap,
    /// By all portals, not only the first that works.
    pub(crate) multihomed: bool,
}

impl Place {
    /// Of a configuration that may still lack the rest. Error kind `config` with SMAPI's 95.
    pub(crate) fn of(config: &RawConfig) -> Result<Self> {
        let Some(target) = config.get::<Addresses>("target")? else {
            let missing = vec!["target".to_owned()];
            return Err(Error::new(
                Kind::Config { missing, candidates: Vec::new() },
                "the device configuration lacks target",
            )
            .legacy(95)
            .hint(
                "target is the address or name of an iSCSI target; sr probe goes on from there",
            ));
        };
        Self::new(
            &target,
            config.get("port")?.unwrap_or(Port(PORT)),
            (config.get("chapuser")?, config.get("chappassword")?),
            (config.get("incoming_chapuser")?, config.get("incoming_chappassword")?),
            config.get("multihomed")?.unwrap_or(true),
        )
    }

    /// Of a whole configuration.
    pub(crate) fn of_config(config: &Config) -> Result<Self> {
        Self::new(
            &config.target,
            config.port,
            (config.chapuser.clone(), config.chappassword.clone()),
            (config.incoming_chapuser.clone(), config.incoming_chappassword.clone()),
            config.multihomed,
        )
    }

    fn new(
        target: &Addresses,
        Port(port): Port,
        outgoing: (Option<String>, Option<Secret>),
        incoming: (Option<String>, Option<Secret>),
        multihomed: bool,
    ) -> Result<Self> {
        let chap = Chap { outgoing: pair("", outgoing)?, incoming: pair("incoming_", incoming)? };
        if chap.incoming.is_some() && chap.outgoing.is_none() {
            return Err(Error::config("mutual CHAP needs chapuser and chappassword, too")
                .hint("a target tells its password only to a host that has told its own"));
        }
        let portals = target.0.iter().filter_map(|address| Portal::parse(address, port)).collect();
        Ok(Self { portals, chap, multihomed })
    }
}

/// A name without a password is a mistake, and so is the opposite.
fn pair(prefix: &str, given: (Option<String>, Option<Secret>)) -> Result<Option<Credentials>> {
    match given {
        (Some(user), Some(password)) => Ok(Some(Credentials { user, password })),
        (None, None) => Ok(None),
        (user, _) => {
            let (there, missing) =
                if user.is_some() { ("user", "password") } else { ("password", "user") };
            let missing = format!("{prefix}chap{missing}");
            Err(Error::new(
                Kind::Config { missing: vec![missing.clone()], candidates: Vec::new() },
                format!("{prefix}chap{there} is given without {missing}"),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(pairs: &[(&str, &str)]) -> Result<Place> {
        Place::of(&pairs.iter().copied().collect())
    }

    #[test]
    fn a_list_of_targets_has_one_port_unless_it_says_others() {
        let found =
            place(&[("target", "10.0.0.1, nas:3261,[2001:db8::1]"), ("port", "860")]).unwrap();
        let shown: Vec<String> = found.portals.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.0.0.1:860", "nas:3261", "[2001:db8::1]:860"]);
        assert!(found.multihomed && !found.chap.is_set());
        for odd in ["", "a,,b", "a b", "-x", "a/b"] {
            assert!(place(&[("target", odd)]).is_err(), "{odd}");
        }
        for odd in ["0", "65536", "x"] {
            let error = place(&[("target", "a"), ("port", odd)]).unwrap_err();
            assert_eq!(error.message, "the value of port must be a number between 1 and 65535");
        }
    }

    #[test]
    fn half_of_a_name_and_password_is_refused_by_the_key_that_is_missing() {
        let full = [
            ("target", "a"),
            ("chapuser", "u"),
            ("chappassword", "p"),
            ("incoming_chapuser", "tu"),
            ("incoming_chappassword", "tp"),
        ];
        let found = place(&full).unwrap();
        assert!(found.chap.outgoing.is_some() && found.chap.incoming.is_some());
        for (without, said) in [
            ("chapuser", "chappassword is given without chapuser"),
            ("chappassword", "chapuser is given without chappassword"),
            ("incoming_chapuser", "incoming_chappassword is given without incoming_chapuser"),
            ("incoming_chappassword", "incoming_chapuser is given without incoming_chappassword"),
        ] {
            let rest: Vec<_> = full.into_iter().filter(|(key, _)| *key != without).collect();
            assert_eq!(place(&rest).unwrap_err().message, said);
        }
        let alone = place(&[full[0], full[3], full[4]]).unwrap_err();
        assert_eq!(alone.message, "mutual CHAP needs chapuser and chappassword, too");
    }

    #[test]
    fn without_a_target_nothing_can_be_found() {
        let error = place(&[]).unwrap_err();
        assert_eq!(error.legacy_code(), 95);
        assert!(matches!(&error.kind, Kind::Config { missing, .. } if missing[..] == ["target"]));
        let iqn = Iqn::parse("iqn.2001-05.com.example:a").unwrap();
        assert!(Wanted::parse("*").unwrap().is(&iqn));
        assert!(Wanted::parse(iqn.as_str()).unwrap().is(&iqn));
        assert!(!Wanted::parse("iqn.2001-05.com.example:b").unwrap().is(&iqn));
        assert!(Wanted::parse("").is_err());
    }
}
