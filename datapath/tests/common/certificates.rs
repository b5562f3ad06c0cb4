//! Authorities and what they have signed. Included by every test that needs them, also of other
//! crates.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Makes a folder with an authority and two certificates of it, for `server` and `client`, each
/// for these names of hosts. The files are called as GnuTLS's users expect.
pub(crate) fn authority(folder: &Path, names: &[&str]) {
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
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, who);
        put(&format!("{who}-cert.pem"), params.signed_by(&key, &issuer).unwrap().pem());
        put(&format!("{who}-key.pem"), key.serialize_pem());
    }
}
