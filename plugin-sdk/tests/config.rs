//! Typed device configuration.
#![allow(clippy::unwrap_used, reason = "tests")]

use plugin_sdk::config::{ConfigValue, DeviceConfig as _};
use plugin_sdk::model::manifest::FieldKind;
use plugin_sdk::prelude::*;

/// How a disk is laid out.
#[derive(Clone, Debug, PartialEq)]
pub enum Layout {
    /// One after the other.
    Linear,
    /// Side by side.
    Striped,
}

impl ConfigValue for Layout {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> std::result::Result<Self, String> {
        match text {
            "linear" => Ok(Self::Linear),
            "striped" => Ok(Self::Striped),
            _ => Err("linear or striped".to_owned()),
        }
    }
}

device_config! {
    /// All shapes.
    struct Config {
        location: Utf8PathBuf,
        port: u16 = "3260",
        options: Option<String>,
        #[key = "max-size"]
        max_size: Option<Bytes>,
        readonly: bool = "false",
        layout: Layout = "linear",
        password: Secret,
        token: Option<Secret>,
    }
}

fn parse(pairs: &[(&str, &str)]) -> Result<Config> {
    Config::parse(&pairs.iter().copied().collect())
}

const GOOD: [(&str, &str); 2] = [("location", "/srv"), ("password", "rosebud")];

fn with(more: (&str, &str)) -> Result<Config> {
    parse(&GOOD.iter().copied().filter(|(key, _)| *key != more.0).chain([more]).collect::<Vec<_>>())
}

#[test]
fn required_default_and_optional_follow_from_the_shape() {
    let config = parse(&GOOD).unwrap();
    assert_eq!(config.location, "/srv");
    assert_eq!((config.port, config.readonly, config.layout), (3260, false, Layout::Linear));
    assert_eq!((config.options, config.max_size), (None, None));
    assert_eq!(config.password.reveal(), "rosebud");
    assert_eq!(with(("max-size", "2TiB")).unwrap().max_size, Some(Bytes::gib(2048)));
    assert_eq!(with(("layout", "striped")).unwrap().layout, Layout::Striped);
}

#[test]
fn all_missing_keys_are_named_at_once() {
    let error = parse(&[("port", "1")]).unwrap_err();
    assert_eq!(error.message, "the device configuration lacks location, password");
    let missing = vec!["location".to_owned(), "password".to_owned()];
    assert_eq!(error.kind, Kind::Config { missing, candidates: vec![] });
    assert!(error.hint.as_ref().unwrap().contains("max-size"));
}

#[test]
fn a_wrong_value_says_what_is_expected_and_never_what_was_given() {
    for (key, value, expected) in [
        ("location", "srv-secret", "an absolute path, such as /srv/images"),
        ("port", "70000", "a number from 0 to 65535"),
        ("readonly", "yes-secret", "true or false"),
        ("max-size", "secret", "a size, such as 10GiB"),
        ("layout", "secret", "linear or striped"),
    ] {
        let error = with((key, value)).unwrap_err();
        assert_eq!(error.message, format!("the value of {key} must be {expected}"));
        assert!(!format!("{error:?}").contains(value));
    }
    let error = with(("colour", "red")).unwrap_err();
    assert_eq!(error.message, "the driver does not know colour");
}

#[test]
fn secrets_are_never_printed() {
    let raw: RawConfig = GOOD.into_iter().chain([("token", "t0psecret")]).collect();
    let config = Config::parse(&raw).unwrap();
    let printed = format!("{config:?} {config:#?} {raw:?} {raw:#?} {:?}", config.password);
    assert!(!printed.contains("rosebud") && !printed.contains("t0psecret"), "{printed}");
    assert!(printed.contains("Secret(***)"));
}

#[test]
fn a_probe_reads_what_is_there() {
    let raw: RawConfig = [("port", "80")].into_iter().collect();
    assert_eq!(raw.get::<u16>("port").unwrap(), Some(80));
    assert_eq!(raw.get::<String>("server").unwrap(), None);
    let error = raw.require::<String>("server").unwrap_err();
    assert_eq!(error.message, "the device configuration lacks server");
    assert!(raw.complete::<Config>().is_err());
}
