//! Passwords are in no log, no state, no error, and not in what is asked in clear.

use std::fmt::Write as _;

use array_kit::driver::Product as _;
use array_sim::core::Effect;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::{TestHost, run, set_log_level};
use plugin_sdk::tracing::Level;

use crate::host::Tested;
use crate::sr::{Driver, Sr, open};
use crate::vendor::Vendor;
use crate::wishes::{MIB, create};

/// At the finest level of logging, with an array that repeats what it should not.
pub fn nowhere<V: Vendor>() {
    set_log_level::<Driver<V, false>>(Some(Level::TRACE));
    run(async {
        let mut sr = Sr::<V>::new().await?;
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(create(1, MIB)).await?;
        let call = sr.learned.last().and_then(|calls| calls.first()).cloned().unwrap();
        let secrets = sr.simulated.secrets.clone();
        assert!(!secrets.is_empty(), "there is nothing to look for");
        let mut seen = String::new();
        for (n, secret) in secrets.iter().enumerate() {
            let body = Some(format!("bad value {secret}"));
            let effect = Effect::Refuse { status: 500, retry_after: None, body };
            sr.simulated.fault(&call, 0, effect);
            let answer = sr.driver.call(create(2 + n as u32, MIB)).await.map(drop);
            write!(seen, "{answer:?}").unwrap();
        }
        // And where it is wrong. The simulator's secrets are a driver's only if they differ.
        let wrong = "canary-of-a-wrong-one";
        for (key, value) in sr.simulated.config.clone() {
            if secrets.contains(&value) {
                let mut config = sr.simulated.config.clone();
                config.retain(|(other, _)| *other != key);
                config.push((key, wrong.to_owned()));
                let other = TestHost::new();
                match open::<V, false>(&other, &config).await {
                    Ok(_) => panic!("a wrong {key} is accepted"),
                    Err(error) => assert_eq!(error.kind, Kind::Auth, "{key}: {error}"),
                }
                write!(seen, "{:?} {:?}", other.logs(), other.kv()).unwrap();
            }
        }
        let host = &sr.host;
        write!(seen, "{:?} {:?} {:?}", host.logs(), host.kv(), host.commands()).unwrap();
        let asked = sr.simulated.array.requests().all();
        seen.extend(asked.into_iter().map(|asked| asked.line));
        let told = host.logs().iter().any(|log| log.target == "array_request");
        assert!(told, "{} logs no requests", Tested::<V, false>::MANIFEST.name);
        for secret in secrets.iter().map(String::as_str).chain([wrong]) {
            if let Some(at) = seen.find(secret) {
                let around: String = seen.chars().skip(at.saturating_sub(300)).take(600).collect();
                panic!("{secret} is in {around}");
            }
        }
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
    set_log_level::<Driver<V, false>>(None);
}
