//! How this host reaches volumes.

use array_kit::array::{Initiator, Mapping};
use array_kit::driver::Connector;
use plugin_sdk::{Cx, Error, Result, Secret, Utf8PathBuf};

/// Where open-iscsi keeps the name of this host's initiator.
const NAME_FILE: &str = "/etc/iscsi/initiatorname.iscsi";

/// This host as an iSCSI initiator.
#[derive(Debug)]
pub struct Host {
    /// The qualified name, if the configuration has it.
    pub iqn: Option<String>,
    /// CHAP user and password.
    pub chap: Option<(String, Secret)>,
}

impl Connector for Host {
    async fn initiator(&self, cx: &Cx) -> Result<Initiator> {
        let iqn = match &self.iqn {
            Some(iqn) => iqn.clone(),
            None => cx.blocking(|_| Ok(std::fs::read_to_string(NAME_FILE))).await?.ok().and_then(
                |text| named(&text),
            ).ok_or_else(|| {
                Error::config("this host's iSCSI initiator has no name").legacy(97).hint(format!(
                    "install open-iscsi, which writes {NAME_FILE}, or set localiqn"
                ))
            })?,
        };
        Ok(Initiator { host: cx.host().to_string(), iqn, chap: self.chap.clone() })
    }

    async fn connect(&self, _: &Cx, mapping: &Mapping, _: bool) -> Result<Utf8PathBuf> {
        // The host's iSCSI layer is what every array shares; it is not here yet.
        Err(Error::unsupported(format!(
            "this release does not log in to iSCSI targets of an array: LUN {}",
            mapping.scsi_id
        ))
        .hint(format!(
            "log in by hand: iscsiadm -m node -T {} -p {} --login",
            mapping.targets.first().map_or("TARGET", |target| target.iqn.as_str()),
            mapping.targets.first().map_or("PORTAL", |target| target.portal.as_str())
        )))
    }

    async fn disconnect(&self, _: &Cx, _: &Mapping) -> Result<()> {
        Ok(())
    }
}

/// The name in open-iscsi's file.
fn named(text: &str) -> Option<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let name = lines.filter_map(|line| line.strip_prefix("InitiatorName=")).next()?.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn the_initiators_name_is_read() {
        let text = "# made by iscsi-iname\n#InitiatorName=iqn.old\nInitiatorName=iqn.1993-08.org.debian:01:a1\n";
        assert_eq!(named(text).as_deref(), Some("iqn.1993-08.org.debian:01:a1"));
        assert_eq!(named("InitiatorName=\n"), None);
    }
}
