//! Authorities and what they have signed.

use std::path::{Path, PathBuf};

use datapath::control::protocol::Credentials;
use datapath::nbd::tls::{Identity, TlsClient};

#[path = "../common/certificates.rs"]
mod made;

use made::authority;

/// A folder with an authority and two certificates of it, under the names that GnuTLS's users
/// expect.
pub(crate) struct Authority(PathBuf);

impl Authority {
    pub(crate) fn new(folder: &Path) -> Self {
        authority(folder, &["localhost", "127.0.0.1"]);
        Self(folder.to_owned())
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    pub(crate) fn credentials(&self, who: &str) -> Credentials {
        Credentials {
            certificate: self.0.join(format!("{who}-cert.pem")),
            key: self.0.join(format!("{who}-key.pem")),
            authority: self.0.join("ca-cert.pem"),
        }
    }

    pub(crate) fn client(&self) -> TlsClient {
        let files = self.credentials("client");
        let identity = Identity {
            certificates: &files.certificate,
            key: &files.key,
            authorities: &files.authority,
        };
        TlsClient::load(identity).unwrap()
    }
}
