//! Driver for Dell EqualLogic PS groups: the group's command line over SSH.
//!
//! A VDI is a volume of the group, thin or thick, in a storage pool, with an iSCSI target of its own;
//! a snapshot is the array's; a clone is the array's copy of the used pages, and no byte goes through
//! the host. What makes a driver of this is the array kit; here is what is peculiar:
//!
//! | module | what |
//! |---|---|
//! | [`config`] | the device configuration, and what single VDIs may have otherwise |
//! | [`cli`] | commands and replies as text |
//! | [`session`] | connections, shells, and seven of them at most over all processes |
//! | [`mod@array`] | which commands each primitive takes |
//! | [`text`] | a VDI's text in 127 characters of a description |
//! | [`identity`] | which LUN a target has |
//!
//! # Why not ...
//!
//! - **one prompt as the end of a reply**: a description may look like the prompt. An empty command goes
//!   along with each command, so that the end is the prompt twice, at no round trip.
//! - **XenServer's layout** (volumes `XenStorage...`, a volume named "SR Management Volume"): what it kept
//!   in descriptions was never published, so its SRs could be neither read nor made.
//! - **a session that is kept**: seven is the array's whole supply. An idle one ends after two seconds.
//! - **a retry of the whole command**, as other clients do: a second `clone` makes a second volume. What
//!   became of a lost command is looked up first, by the kit's ledger.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod array;
pub mod cli;
pub mod config;
pub mod identity;
mod probe;
pub mod session;
pub mod text;

use std::net::IpAddr;
use std::time::Duration;

use array_kit::array::Array as _;
use array_kit::array_manifest;
use array_kit::driver::{Offload, Product};
use array_kit::iscsi::IscsiHost;
use array_kit::ledger::Settle;
use array_kit::retry::RetryPolicy;
use plugin_sdk::config::RawConfig;
use plugin_sdk::model::Kind;
use plugin_sdk::model::manifest::feature;
use plugin_sdk::model::sr::SrProbed;
use plugin_sdk::{Cx, Error, Feature, Manifest, Result};

use array::EqualLogic;
use config::{Config, KeyPolicy};
use session::pool::{Options, Sessions};
use session::ssh::{Address, HostKey};

/// The key of the host's state under which the first host key is kept.
const HOST_KEY: &str = "host-key";

/// The driver's product, for [`Offload`].
#[derive(Debug)]
pub struct PsGroup;

/// The driver.
pub type EqualLogicDriver = Offload<PsGroup>;

impl Product for PsGroup {
    type Config = Config;
    type Array = EqualLogic;
    type Connector = IscsiHost;

    const MANIFEST: Manifest = array_manifest! {
        name: "equallogic",
        title: "Dell EqualLogic PS groups: volumes, snapshots and clones by the group's command line",
        features: &[
            Feature::new(feature::RAW),
            Feature::new(feature::THIN),
            Feature::new(feature::OFFLOAD),
            Feature::new(feature::LIVE_SNAPSHOT),
            Feature::new(feature::LIVE_RESIZE),
        ],
        workers: 2,
        needs_root: true,
    };

    /// A group answers with what it has just done.
    const SETTLE: Settle =
        Settle { stale: Duration::from_millis(500), pause: Duration::from_millis(50), tries: 4 };

    fn pool(config: &Config) -> Option<String> {
        Some(config.storagepool.clone())
    }

    async fn open(config: Config, cx: &Cx) -> Result<(EqualLogic, IscsiHost)> {
        if config.chapuser.is_some() != config.chappassword.is_some() {
            return Err(Error::config("chapuser and chappassword belong together")
                .hint("give both, or neither"));
        }
        let kept = match config.host_key_policy {
            KeyPolicy::FirstUse if config.host_key_fingerprint.is_none() => {
                cx.kv().get::<String>(HOST_KEY).await?
            }
            _ => None,
        };
        let first_use = config.host_key_policy == KeyPolicy::FirstUse;
        let host_key = match (&config.host_key_fingerprint, kept) {
            (Some(fingerprint), _) => HostKey::Is(fingerprint.clone()),
            (None, Some(kept)) => HostKey::Is(kept),
            (None, None) if first_use => HostKey::Any,
            (None, None) => HostKey::Unknown,
        };
        let learns = host_key == HostKey::Any;
        let sessions = sessions(&config, host_key)?;
        if let (Some(_), Some(secret)) = (&config.chapuser, &config.chappassword) {
            sessions.recorder().redactor().learn(secret);
        }
        let array =
            EqualLogic::new(sessions, config.habits()?, config.chapuser.clone(), portal(&config));
        check(&array, &config, cx).await?;
        if learns && let Some(fingerprint) = array.sessions().fingerprint() {
            plugin_sdk::tracing::warn!(
                fingerprint,
                "the host key of the array was not known, and is trusted from now on"
            );
            cx.kv().put(HOST_KEY, &fingerprint).await?;
        }
        let Config { initiator, chapuser, chappassword, .. } = config;
        Ok((array, IscsiHost::new(initiator).chap(chapuser.zip(chappassword))))
    }

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        probe::probe(&config, cx).await
    }
}

/// The sessions of a configuration.
fn sessions(config: &Config, host_key: HostKey) -> Result<Sessions> {
    let address = Address {
        host: config.target.clone(),
        port: config.port,
        user: config.username.clone(),
        password: config.password.clone(),
        old_algorithms: config.old_ssh,
    };
    let options = Options {
        address,
        host_key,
        sessions: u32::from(config.max_sessions.clamp(1, 7)),
        quiet: Duration::from_secs(u64::from(config.reply_timeout.max(1))),
        retry: RetryPolicy {
            tries: 6,
            first: Duration::from_millis(100),
            ..RetryPolicy::default()
        },
    };
    Sessions::new(options, &config.locks())
}

/// The group's iSCSI portal: its own address.
fn portal(config: &Config) -> String {
    match config.target.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:3260"),
        _ => format!("{}:3260", config.target),
    }
}

/// Whether it is the group's address, and the pool is there. Logs in, so that a wrong password shows.
async fn check(array: &EqualLogic, config: &Config, cx: &Cx) -> Result<()> {
    let group = array.identity(cx).await?.version;
    if let (Ok(target), Ok(group)) = (config.target.parse::<IpAddr>(), group.parse::<IpAddr>())
        && target != group
    {
        return Err(Error::config(format!(
            "{target} is not the address of the group, which is {group}"
        ))
        .legacy(173)
        .hint("set target to the group's address: a member's own one is lost with the member"));
    }
    let pools = array.pools(cx).await?;
    if pools.iter().any(|pool| pool.name.eq_ignore_ascii_case(&config.storagepool)) {
        return Ok(());
    }
    let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
    let names = names.join(", ");
    let candidates = pools.iter().map(probe::candidate).collect();
    let kind = Kind::Config { missing: Vec::new(), candidates };
    Err(Error::new(kind, "the group has no storage pool of the name that is configured")
        .legacy(172)
        .hint(format!("pools: {names}")))
}

plugin_sdk::export_driver!(EqualLogicDriver);
