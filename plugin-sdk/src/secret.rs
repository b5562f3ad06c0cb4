//! Passwords, keys and tokens.

use std::fmt;

use zeroize::Zeroizing;

/// A secret of the device configuration: a password, a key, a token.
///
/// It prints as `Secret(***)`, cannot be serialised, and is overwritten when dropped. In the
/// device configuration it may stand as a reference (`secret://array1/password`), which the host
/// resolves before [`Driver::open`](crate::Driver::open) is called, or as plain text.
///
/// ```
/// let secret = plugin_sdk::Secret::from("rosebud");
/// assert_eq!(format!("{secret:?}"), "Secret(***)");
/// assert_eq!(secret.reveal(), "rosebud");
/// ```
///
/// ```compile_fail
/// serde_json::to_string(&plugin_sdk::Secret::from("rosebud"));
/// ```
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text itself, for the one place that sends it to the backend.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}
