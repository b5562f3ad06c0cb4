//! The signature below a certificate: who says so, where the hash only says that nothing changed.
//!
//! Ed25519 over the file's text without the member `signature`. Keys are those of
//! `openssl genpkey -algorithm ed25519` (PKCS #8) and `openssl pkey -pubout` (SPKI), both PEM.
//!
//! Why strict verification: the usual one lets some keys and signatures through in a second
//! form; here exactly one file is good.

use std::path::Path;

use ed25519_dalek::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::Error;

/// A signature, and the key that it says it is by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The public key, 32 bytes in lower-case hexadecimal.
    pub key: String,
    /// The signature, 64 bytes.
    pub value: String,
}

/// A key that signs.
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// Reads a key from PEM.
    ///
    /// # Errors
    /// If there is none in the file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::file(path, &error))?;
        let key = SigningKey::from_pkcs8_pem(&text);
        // What the parser says could repeat a piece of the file.
        let key = key.map_err(|_| Error::Key { path: path.to_owned(), what: "private" })?;
        Ok(Self(key))
    }

    pub(crate) fn sign(&self, text: &str) -> Signature {
        Signature {
            key: crate::hex(self.0.verifying_key().as_bytes()),
            value: crate::hex(&self.0.sign(text.as_bytes()).to_bytes()),
        }
    }
}

/// A key that signatures are verified with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Reads a key from PEM.
    ///
    /// # Errors
    /// If there is none in the file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::file(path, &error))?;
        let key = VerifyingKey::from_public_key_pem(&text);
        let key = key.map_err(|_| Error::Key { path: path.to_owned(), what: "public" })?;
        Ok(Self(key))
    }

    pub(crate) fn text(&self) -> String {
        crate::hex(self.0.as_bytes())
    }
}

impl Signature {
    /// Whether it is that of a text, by the key that it names.
    pub(crate) fn check(&self, text: &str) -> Result<(), String> {
        let key =
            bytes::<32>(&self.key).ok_or("the key of the signature is not 64 digits 0-9a-f")?;
        let value = bytes::<64>(&self.value).ok_or("the signature is not 128 digits 0-9a-f")?;
        let wrong = |_| format!("the signature is not one of this certificate by {}", self.key);
        let key = VerifyingKey::from_bytes(&key).map_err(wrong)?;
        let value = ed25519_dalek::Signature::from_bytes(&value);
        key.verify_strict(text.as_bytes(), &value).map_err(wrong)
    }
}

/// Only the one way in which they are written: an `A` for an `a` is a changed bit too.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut found = [0; N];
    for (byte, pair) in found.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    (crate::hex(&found) == text).then_some(found)
}

#[cfg(test)]
pub(crate) fn for_tests() -> PrivateKey {
    PrivateKey(SigningKey::from_bytes(&[7; 32]))
}
