//! Typed device configuration.

use std::collections::BTreeMap;
use std::fmt;

use camino::Utf8PathBuf;
use sm_model::manifest::FieldKind;
use sm_model::{Bytes, Error, Kind, Result};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// A driver's device configuration. Made by [`device_config!`](crate::device_config!).
pub trait DeviceConfig: Sized + Send + 'static {
    /// Its keys, as the manifest shows them.
    const FIELDS: &'static [Field];

    /// Reads the values. Error kind `config`: all missing keys at once, or the first value that
    /// does not fit; a value is never repeated in the message, because it may be a secret.
    fn parse(raw: &RawConfig) -> Result<Self>;
}

/// For a driver that needs no configuration.
impl DeviceConfig for () {
    const FIELDS: &'static [Field] = &[];

    fn parse(raw: &RawConfig) -> Result<Self> {
        raw.check(Self::FIELDS)
    }
}

/// One key of a device configuration.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The key.
    pub name: &'static str,
    /// What its text must be.
    pub kind: FieldKind,
    /// Whether it must be given.
    pub required: bool,
    /// Whether it must never be printed.
    pub secret: bool,
    /// The text used if it is not given.
    pub default: Option<&'static str>,
    /// One line for people.
    pub help: &'static str,
}

/// A type that a value of the device configuration can have.
///
/// Implement it for an enum of your own to have its spelling checked with all the rest.
pub trait ConfigValue: Sized + Clone + fmt::Debug + Send + 'static {
    /// What the text must be, for the manifest.
    const KIND: FieldKind;
    /// Whether it must never be printed.
    const SECRET: bool = false;
    /// Whether the key may be absent.
    const OPTIONAL: bool = false;

    /// Reads the text. The error says what is expected, to follow "the value of KEY must be".
    fn parse(text: &str) -> Result<Self, String>;

    /// The value for an absent key.
    fn absent() -> Option<Self> {
        None
    }
}

impl ConfigValue for String {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl ConfigValue for Secret {
    const KIND: FieldKind = FieldKind::Text;
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self::from(text))
    }
}

impl ConfigValue for Utf8PathBuf {
    const KIND: FieldKind = FieldKind::Path;

    fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('/') && !text.contains('\0') {
            Ok(text.into())
        } else {
            Err("an absolute path, such as /srv/images".to_owned())
        }
    }
}

impl ConfigValue for u64 {
    const KIND: FieldKind = FieldKind::Integer;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "a number without sign".to_owned())
    }
}

impl ConfigValue for u16 {
    const KIND: FieldKind = FieldKind::Integer;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "a number from 0 to 65535".to_owned())
    }
}

impl ConfigValue for bool {
    const KIND: FieldKind = FieldKind::Boolean;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "true or false".to_owned())
    }
}

impl ConfigValue for Bytes {
    const KIND: FieldKind = FieldKind::Size;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "a size, such as 10GiB".to_owned())
    }
}

impl<T: ConfigValue> ConfigValue for Option<T> {
    const KIND: FieldKind = T::KIND;
    const SECRET: bool = T::SECRET;
    const OPTIONAL: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        T::parse(text).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

/// A device configuration as text, secrets resolved. May be incomplete at a probe.
///
/// Its `Debug` shows the keys alone.
#[derive(Clone, Default)]
pub struct RawConfig(BTreeMap<String, Zeroizing<String>>);

impl RawConfig {
    /// The value of a key, if it is given. Error kind `config` if it does not fit.
    pub fn get<T: ConfigValue>(&self, key: &str) -> Result<Option<T>> {
        self.0.get(key).map(|text| value(key, text)).transpose()
    }

    /// The value of a key. Error kind `config` if it is missing or does not fit.
    pub fn require<T: ConfigValue>(&self, key: &str) -> Result<T> {
        self.get(key)?.ok_or_else(|| missing(vec![key.to_owned()], &[]))
    }

    /// The whole configuration, typed. Error kind `config` if something is missing.
    pub fn complete<C: DeviceConfig>(&self) -> Result<C> {
        C::parse(self)
    }

    /// Names all missing keys at once, then the unknown ones.
    #[doc(hidden)]
    pub fn check(&self, fields: &[Field]) -> Result<()> {
        let absent: Vec<String> = fields
            .iter()
            .filter(|field| field.required && !self.0.contains_key(field.name))
            .map(|field| field.name.to_owned())
            .collect();
        if !absent.is_empty() {
            return Err(missing(absent, fields));
        }
        let unknown: Vec<&str> = self
            .0
            .keys()
            .map(String::as_str)
            .filter(|key| fields.iter().all(|field| field.name != *key))
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(Error::config(format!("the driver does not know {}", unknown.join(", ")))
            .hint(known(fields)))
    }

    /// The value of a field of a checked configuration.
    #[doc(hidden)]
    pub fn field<T: ConfigValue>(&self, field: &Field) -> Result<T> {
        match self.0.get(field.name).map(|text| text.as_str()).or(field.default) {
            Some(text) => value(field.name, text),
            None => T::absent().ok_or_else(|| missing(vec![field.name.to_owned()], &[])),
        }
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for RawConfig {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(k, v)| (k.into(), Zeroizing::new(v.into()))).collect())
    }
}

impl fmt::Debug for RawConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RawConfig ")?;
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn value<T: ConfigValue>(key: &str, text: &str) -> Result<T> {
    T::parse(text)
        .map_err(|expected| Error::config(format!("the value of {key} must be {expected}")))
}

fn missing(keys: Vec<String>, fields: &[Field]) -> Error {
    let message = format!("the device configuration lacks {}", keys.join(", "));
    let error = Error::new(Kind::Config { missing: keys, candidates: Vec::new() }, message);
    if fields.is_empty() { error } else { error.hint(known(fields)) }
}

fn known(fields: &[Field]) -> String {
    let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
    format!("known keys: {}", names.join(", "))
}

/// Declares a driver's device configuration.
///
/// * `key: T` must be given; `key: T = "text"` has a default; `key: Option<T>` may be absent.
/// * The type says what the text must be, see [`ConfigValue`](crate::config::ConfigValue); a
///   [`Secret`](crate::Secret) is marked as such in the manifest.
/// * The doc comments become the help text.
/// * A key that is no Rust name is given by `#[key = "..."]` after the doc comment.
///
/// ```
/// use plugin_sdk::{Secret, Utf8PathBuf, config::DeviceConfig as _};
///
/// plugin_sdk::device_config! {
///     /// How to reach the array.
///     pub struct Config {
///         /// Directory that holds the SRs.
///         pub location: Utf8PathBuf,
///         /// Protocol version.
///         pub nfsversion: String = "3",
///         /// Group of the volumes.
///         #[key = "group-name"]
///         pub group: Option<String>,
///         /// Password of the user.
///         pub password: Secret,
///     }
/// }
///
/// assert_eq!(Config::FIELDS[2].name, "group-name");
/// let raw = [("location", "/srv"), ("password", "rosebud")].into_iter().collect();
/// let config = Config::parse(&raw)?;
/// assert_eq!(config.nfsversion, "3");
/// assert!(!format!("{config:?}").contains("rosebud"));
/// # Ok::<(), plugin_sdk::Error>(())
/// ```
#[macro_export]
macro_rules! device_config {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $(
                $(#[doc = $help:literal])*
                $(#[key = $key:literal])?
                $field_vis:vis $field:ident: $type:ty $(= $default:literal)?
            ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        $vis struct $name {
            $($(#[doc = $help])* $field_vis $field: $type,)*
        }

        impl $crate::config::DeviceConfig for $name {
            const FIELDS: &'static [$crate::config::Field] = &[$($crate::config::Field {
                name: $crate::__first!($($key,)? stringify!($field),),
                kind: <$type as $crate::config::ConfigValue>::KIND,
                required: $crate::__first!($({ let _ = $default; false },)?
                    !<$type as $crate::config::ConfigValue>::OPTIONAL,),
                secret: <$type as $crate::config::ConfigValue>::SECRET,
                default: $crate::__first!($(::core::option::Option::Some($default),)?
                    ::core::option::Option::None,),
                help: concat!($($help),*),
            }),*];

            fn parse(raw: &$crate::config::RawConfig) -> $crate::Result<Self> {
                raw.check(Self::FIELDS)?;
                let mut fields = Self::FIELDS.iter();
                let mut next = || fields.next().ok_or_else(
                    || $crate::Error::internal("a configuration has more fields than it lists"));
                Ok(Self { $($field: raw.field(next()?)?,)* })
            }
        }
    };
}

/// The first of its arguments.
#[doc(hidden)]
#[macro_export]
macro_rules! __first {
    ($first:expr, $($rest:expr,)*) => {
        $first
    };
}
