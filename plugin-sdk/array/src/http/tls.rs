//! Whom we trust, and what is wrong with a certificate.

use std::fmt;
use std::sync::Arc;

use plugin_sdk::{Error, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use sha2::{Digest as _, Sha256};

/// Whom a connection trusts. There is no way to trust everybody.
#[derive(Clone, Debug)]
pub enum Trust {
    /// The authorities of this host's operating system.
    System,
    /// The certificates of a PEM text, and no others.
    Authority(String),
    /// The one certificate with this SHA-256, whoever signed it, whatever its names and times: for
    /// arrays that come with a certificate of their own. Colons between the bytes are fine.
    Fingerprint(String),
}

impl Trust {
    pub(crate) fn config(&self) -> Result<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::internal("TLS cannot be set up").source(&error))?;
        match self {
            Self::Fingerprint(text) => {
                let pinned = fingerprint(text)?;
                let verifier = Arc::new(Pinned { pinned, provider });
                Ok(builder
                    .dangerous()
                    .with_custom_certificate_verifier(verifier)
                    .with_no_client_auth())
            }
            Self::Authority(pem) => {
                let roots = authority(pem)?;
                Ok(builder.with_root_certificates(roots).with_no_client_auth())
            }
            Self::System => {
                let found = rustls_native_certs::load_native_certs();
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    return Err(Error::config("this host trusts no certificate authority").hint(
                        "install ca-certificates, or name the array's authority or fingerprint",
                    ));
                }
                Ok(builder.with_root_certificates(roots).with_no_client_auth())
            }
        }
    }
}

fn authority(pem: &str) -> Result<RootCertStore> {
    let unreadable = || {
        Error::config("the certificate authority is no PEM text with a certificate")
            .hint("it begins with -----BEGIN CERTIFICATE-----")
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|_| unreadable())?;
        roots.add(certificate).map_err(|error| unreadable().source(&error))?;
    }
    if roots.is_empty() { Err(unreadable()) } else { Ok(roots) }
}

fn fingerprint(text: &str) -> Result<[u8; 32]> {
    let digits: String = text.chars().filter(|c| !matches!(c, ':' | ' ')).collect();
    let mut bytes = [0; 32];
    let whole = digits.len() == 64 && digits.is_ascii();
    for (n, byte) in bytes.iter_mut().enumerate() {
        let pair = digits.get(2 * n..2 * n + 2).filter(|_| whole);
        *byte = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(|| {
            Error::config("the fingerprint is no SHA-256 of a certificate: 64 hexadecimal digits")
                .hint("openssl x509 -noout -fingerprint -sha256 shows it")
        })?;
    }
    Ok(bytes)
}

/// Trusts one certificate. The signature of the handshake is verified as always, so whoever shows
/// the certificate has its key.
#[derive(Debug)]
struct Pinned {
    pinned: [u8; 32],
    provider: Arc<CryptoProvider>,
}

/// The certificate is another one.
#[derive(Debug)]
pub(crate) struct OtherCertificate([u8; 32]);

impl fmt::Display for OtherCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its certificate has another fingerprint: SHA-256 ")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::error::Error for OtherCertificate {}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let seen: [u8; 32] = Sha256::digest(end_entity).into();
        if seen == self.pinned {
            return Ok(ServerCertVerified::assertion());
        }
        let other = OtherError(Arc::new(OtherCertificate(seen)));
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(other)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What is wrong with the peer's certificate, and what to do about it; `None` if the error is about
/// something else.
pub(crate) fn problem(error: &(dyn std::error::Error + 'static)) -> Option<(String, &'static str)> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(explain(tls));
        }
        // An I/O error does not count what it wraps among its sources.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn explain(error: &rustls::Error) -> (String, &'static str) {
    const PIN: &str = "if the array's certificate was changed on purpose, change the fingerprint";
    let rustls::Error::InvalidCertificate(problem) = error else {
        let hint = "look whether the port speaks TLS, and which versions the array allows";
        return (format!("TLS fails: {error}"), hint);
    };
    match problem {
        // A bad signature: an authority of the same name, and another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "its certificate is signed by an authority that is not trusted".to_owned(),
            "name the array's authority, or the fingerprint of its certificate",
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            "its certificate has expired".to_owned(),
            "renew the certificate on the array, and look at this host's clock",
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("its certificate is not valid yet".to_owned(), "look at the clocks of host and array")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            "its certificate is for another host name".to_owned(),
            "use the name or address in the certificate, or its fingerprint",
        ),
        CertificateError::Other(OtherError(other)) => (other.to_string(), PIN),
        other => {
            let fact = format!("its certificate cannot be trusted: {other}");
            (fact, "renew the certificate on the array, or name its fingerprint")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_with_and_without_colons() {
        let plain = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        assert_eq!(fingerprint(&plain).unwrap(), [0xab; 32]);
        assert_eq!(fingerprint(&colons).unwrap(), [0xab; 32]);
        for wrong in ["", "ab", &"xy".repeat(32), &"é".repeat(32), &format!("{plain}ab")] {
            let error = fingerprint(wrong).unwrap_err();
            assert_eq!(
                error.message,
                "the fingerprint is no SHA-256 of a certificate: 64 hexadecimal digits"
            );
        }
    }

    #[test]
    fn an_authority_that_is_none_is_refused() {
        for wrong in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
        {
            let error = authority(wrong).unwrap_err();
            assert_eq!(
                error.message,
                "the certificate authority is no PEM text with a certificate"
            );
        }
    }
}
