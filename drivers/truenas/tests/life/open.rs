//! How the driver is opened, and what a probe shows.

use array_kit::driver::Offload;
use array_matrix::sr::start;
use array_matrix::wishes::SR;
use array_matrix::{Simulated, Sr, Vendor};
use plugin_sdk::prelude::*;
use plugin_sdk::testing::{TestHost, run};
use sm_driver_truenas::TrueNasProduct;

use crate::array::{POOL, Rest, WebSocket};

type Driver = Offload<TrueNasProduct>;

fn keys<'a>(simulated: &'a Simulated, without: &[&str]) -> Vec<(&'static str, &'a str)> {
    let given = simulated.config.iter().filter(|(key, _)| !without.contains(key));
    given.map(|(key, value)| (*key, value.as_str())).collect()
}

/// One question, so that no account is locked; and it is said without the password.
#[test]
fn a_wrong_password_is_told_at_open_and_asked_once() {
    refused::<Rest>("rest");
    refused::<WebSocket>("websocket");
}

fn refused<V: Vendor>(api: &'static str) {
    let (_folder, simulated) = start::<V>();
    simulated.array.requests().clear();
    let mut keys = keys(&simulated, &["password"]);
    keys.extend([("password", "canary-of-the-mine"), ("api", api)]);
    run(async {
        let opened = TestHost::new().open::<Driver>(SR, &keys).await;
        let Err(error) = opened else { panic!("{api}: it opens") };
        assert_eq!(error.kind, Kind::Auth, "{api}: {error:?}");
        assert_eq!(error.message, "the array does not accept user and password");
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        let asked = simulated.array.requests().all();
        assert_eq!(asked.len(), 1, "{api}: {asked:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_probe_shows_srs_and_pools() {
    probed::<Rest>();
    probed::<WebSocket>();
}

fn probed<V: Vendor>() {
    run(async {
        let mut sr = Sr::<V>::new().await?;
        sr.until_done(SrCreate { name: "vms".into(), description: "of us".into() }).await?;
        let keys = keys(&sr.simulated, &["pool"]);
        let found = TestHost::new().probe::<Driver>(&keys).await?;
        let short: Vec<_> = found
            .items
            .iter()
            .map(|item| {
                let sr = item.sr.as_ref().map(|sr| (sr.uuid, sr.name.as_str()));
                (item.configuration["pool"].as_str(), item.complete, sr)
            })
            .collect();
        assert_eq!(short, [(POOL, true, Some((SR, "vms"))), ("tank", true, None)]);
        assert!(found.items[1].extra_info.contains_key("free"));
        Ok(())
    })
    .unwrap();
}
