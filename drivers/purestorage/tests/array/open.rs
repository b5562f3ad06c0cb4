//! How the driver is opened, and what a probe shows.

use array_kit::driver::Offload;
use array_matrix::wishes::SR;
use array_matrix::{Sr, Vendor};
use plugin_sdk::prelude::*;
use plugin_sdk::testing::{TestHost, run};
use sm_driver_purestorage::PureStorageProduct;

use crate::array::{Newer, Older};

type Driver = Offload<PureStorageProduct>;

fn borrowed<'a>(keys: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    keys.iter().map(|(key, value)| (*key, value.as_str())).collect()
}

/// One question, so that nothing is locked; and it is said without the token.
#[test]
fn a_wrong_token_is_told_at_open_and_asked_once() {
    run(async {
        let sr = Sr::<Newer>::new().await?;
        let mut keys = sr.simulated.config.clone();
        keys.retain(|(key, _)| *key != "api-token");
        keys.push(("api-token", "canary-of-the-mine".to_owned()));
        let opened = TestHost::new().open::<Driver>(SR, &borrowed(&keys)).await;
        let Err(error) = opened else { panic!("it opens") };
        assert_eq!(error.kind, Kind::Auth, "{error:?}");
        assert_eq!(error.message, "the array does not accept user and password");
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        let counts = sr.simulated.array.requests().counts();
        assert_eq!(counts["POST login"], 1, "{counts:?}");
        Ok(())
    })
    .unwrap();
}

/// All requests are of the highest version that both have.
fn speaks<V: Vendor>(version: &str) {
    run(async {
        let mut sr = Sr::<V>::new().await?;
        sr.until_done(SrCreate::default()).await?;
        let prefix = format!("/api/{version}/");
        for asked in &sr.asked {
            assert!(asked.line.contains(&prefix), "{asked:?}");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn the_highest_version_of_both_is_spoken() {
    speaks::<Newer>("2.26");
    speaks::<Older>("2.2");
}

#[test]
fn an_array_without_a_version_that_is_known_is_refused() {
    run(async {
        let sr = Sr::<Newer>::new().await?;
        sr.simulated
            .array
            .set(|settings| {
                settings.vendor.insert("version".to_owned(), "2.1".into());
            })
            .unwrap();
        let opened = TestHost::new().open::<Driver>(SR, &borrowed(&sr.simulated.config)).await;
        let Err(error) = opened else { panic!("it opens") };
        let message = "the array has neither REST 2.26 nor 2.2; its newest version is 2.1";
        assert_eq!((error.kind.clone(), error.message.as_str()), (Kind::Unsupported, message));
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_probe_shows_srs_and_the_array() {
    run(async {
        let mut sr = Sr::<Newer>::new().await?;
        sr.until_done(SrCreate { name: "vms".into(), description: "of us".into() }).await?;
        let found = TestHost::new().probe::<Driver>(&borrowed(&sr.simulated.config)).await?;
        let found: Vec<_> = found.items.into_iter().map(|item| (item.complete, item.sr)).collect();
        let (name, description) = ("vms".to_owned(), "of us".to_owned());
        let ours = FoundSr { uuid: SR, name, description };
        assert_eq!(found, [(true, Some(ours)), (true, None)]);
        Ok(())
    })
    .unwrap();
}
