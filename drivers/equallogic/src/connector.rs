//! This host at the array.

use array_kit::array::{Initiator, Mapping};
use array_kit::driver::Connector;
use plugin_sdk::{Cx, Error, Result, Secret, Utf8PathBuf};

/// This host: who it is. It reaches no volume yet, so the manifest has no attach.
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
            None => host_kit::iscsi::initiator_name()
                .map_err(|error| error.hint("set initiator in the device configuration"))?,
        };
        Ok(Initiator { host: cx.host().to_string(), iqn, chap: self.chap.clone() })
    }

    async fn connect(&self, _: &Cx, _: &Mapping, _: bool) -> Result<Utf8PathBuf> {
        Err(Error::unsupported("this driver cannot reach volumes over iSCSI yet"))
    }

    async fn disconnect(&self, _: &Cx, _: &Mapping) -> Result<()> {
        Ok(())
    }
}
