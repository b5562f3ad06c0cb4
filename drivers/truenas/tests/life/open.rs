//! How the driver is opened, and what a probe shows.

use array_kit::driver::Offload;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::TestHost;
use sm_driver_truenas::TrueNasProduct;

use crate::world::{POOL, World, with_folder};

type Driver = Offload<TrueNasProduct>;

fn keys(world: &World, password: &str) -> Vec<(&'static str, String)> {
    let pin = world.simulator.certificate().unwrap().fingerprint().unwrap();
    vec![
        ("target", world.simulator.url()),
        ("username", array_sim::truenas::USER.to_owned()),
        ("password", password.to_owned()),
        ("fingerprint", pin),
    ]
}

fn borrowed<'a>(keys: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    keys.iter().map(|(key, value)| (*key, value.as_str())).collect()
}

/// One question, so that no account is locked; and it is said without the password.
#[test]
fn a_wrong_password_is_told_at_open_and_asked_once() {
    for api in ["rest", "websocket"] {
        with_folder(|folder| async move {
            let world = World::new(&folder, api, None).await;
            world.simulator.array.requests().clear();
            let mut keys = keys(&world, "canary-of-the-mine");
            keys.extend([("pool", POOL.to_owned()), ("api", api.to_owned())]);
            let opened = TestHost::new().open::<Driver>(world.sr, &borrowed(&keys)).await;
            let Err(error) = opened else { panic!("{api}: it opens") };
            assert_eq!(error.kind, Kind::Auth, "{api}: {error:?}");
            assert_eq!(error.message, "the array does not accept user and password");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
            let asked = world.simulator.array.requests().all();
            assert_eq!(asked.len(), 1, "{api}: {asked:?}");
        });
    }
}

#[test]
fn a_probe_shows_srs_and_pools() {
    for api in ["rest", "websocket"] {
        with_folder(|folder| async move {
            let mut world = World::new(&folder, api, None).await;
            world.until_done(1, SrCreate { name: "vms".into(), description: "of us".into() }).await;
            let keys = keys(&world, array_sim::truenas::PASSWORD);
            let found = TestHost::new().probe::<Driver>(&borrowed(&keys)).await.unwrap();
            let short: Vec<_> = found
                .items
                .iter()
                .map(|item| {
                    let sr = item.sr.as_ref().map(|sr| (sr.uuid, sr.name.as_str()));
                    (item.configuration["pool"].as_str(), item.complete, sr)
                })
                .collect();
            assert_eq!(short, [(POOL, true, Some((world.sr, "vms"))), ("tank", true, None)]);
            assert!(found.items[1].extra_info.contains_key("free"));
        });
    }
}
