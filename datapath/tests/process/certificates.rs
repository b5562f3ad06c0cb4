//! Authorities and what they have signed.

use std::fs;
use std::path::{Path, PathBuf};

use datapath::control::protocol::Credentials;
use datapath::nbd::tls::{Identity, TlsClient};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// A folder with an authority and two certificates of it, under the names that GnuTLS's users
/// expect.
pub(crate) struct Authority(PathBuf);

impl Authority {
    pub(crate) fn new(folder: &Path) -> Self {
        fs::create_dir(folder).unwrap();
        let put = |name: &str, text: String| fs::write(folder.join(name), text).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut root = CertificateParams::new([]).unwrap();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.distinguished_name.push(DnType::CommonName, "test authority");
        put("ca-cert.pem", root.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(root, key);
        for who in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
            let mut params = CertificateParams::new(names).unwrap();
            params.distinguished_name.push(DnType::CommonName, who);
            put(&format!("{who}-cert.pem"), params.signed_by(&key, &issuer).unwrap().pem());
            put(&format!("{who}-key.pem"), key.serialize_pem());
        }
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
