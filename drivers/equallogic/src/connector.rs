//! This host at the array.

use array_kit::array::Initiator;
use array_kit::driver::{Connector, Disconnected, Lun};
use array_kit::iscsi::IscsiHost;
use plugin_sdk::{Cx, Result, Secret, Utf8PathBuf};

/// This host: each volume is a target of its own at the group's address, which it logs in to as long as
/// the volume is attached.
#[derive(Debug)]
pub struct Host {
    /// The qualified name, if the configuration has it.
    pub iqn: Option<String>,
    /// CHAP user and password.
    pub chap: Option<(String, Secret)>,
}

impl Host {
    fn by_iscsi(&self) -> IscsiHost {
        IscsiHost::new(self.iqn.clone()).chap(self.chap.clone())
    }
}

impl Connector for Host {
    async fn initiator(&self, cx: &Cx) -> Result<Initiator> {
        self.by_iscsi().initiator(cx).await
    }

    async fn connect(&self, cx: &Cx, lun: &Lun<'_>, writable: bool) -> Result<Utf8PathBuf> {
        self.by_iscsi().connect(cx, lun, writable).await
    }

    async fn disconnect(&self, cx: &Cx, lun: &Lun<'_>) -> Result<Disconnected> {
        self.by_iscsi().disconnect(cx, lun).await
    }

    async fn written(&self, cx: &Cx, lun: &Lun<'_>) -> Result<()> {
        self.by_iscsi().written(cx, lun).await
    }

    async fn resized(&self, cx: &Cx, lun: &Lun<'_>) -> Result<()> {
        self.by_iscsi().resized(cx, lun).await
    }
}
