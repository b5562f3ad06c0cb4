//! How the driver is opened, and what a probe shows.

use array_kit::driver::Offload;
use array_matrix::sr::start;
use array_matrix::wishes::SR;
use array_matrix::{Simulated, Sr};
use plugin_sdk::prelude::*;
use plugin_sdk::testing::{TestHost, run};
use serde_json::json;
use sm_driver_powerstore::PowerStoreProduct;

use crate::array::{self, Array};

type Driver = Offload<PowerStoreProduct>;

fn keys<'a>(simulated: &'a Simulated, without: &[&str]) -> Vec<(&'static str, &'a str)> {
    let given = simulated.config.iter().filter(|(key, _)| !without.contains(key));
    given.map(|(key, value)| (*key, value.as_str())).collect()
}

/// One question, so that no account is locked; and it is said without the password.
#[test]
fn a_wrong_password_is_told_at_open_and_asked_once() {
    let (_folder, simulated) = start::<Array>();
    simulated.array.requests().clear();
    let mut keys = keys(&simulated, &["password"]);
    keys.push(("password", "canary-of-the-mine"));
    run(async {
        let opened = TestHost::new().open::<Driver>(SR, &keys).await;
        let Err(error) = opened else { panic!("it opens") };
        assert_eq!(error.kind, Kind::Auth, "{error:?}");
        assert_eq!(error.message, "the array does not accept user and password");
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        let asked = simulated.array.requests().all();
        assert_eq!(asked.len(), 1, "{asked:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_release_that_is_too_old_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let settings = json!({ "version": "2.1.1.0" });
    let simulated = array_matrix::runtime().block_on(array::start(folder.path(), settings));
    run(async {
        let opened = TestHost::new().open::<Driver>(SR, &keys(&simulated, &[])).await;
        let Err(error) = opened else { panic!("it opens") };
        assert_eq!(error.kind, Kind::Unsupported, "{error:?}");
        assert_eq!(error.message, "the array has PowerStoreOS 2.1.1.0");
        Ok(())
    })
    .unwrap();
}

#[test]
fn an_appliance_that_is_not_there_is_told_with_those_that_are() {
    let (_folder, simulated) = start::<Array>();
    let mut keys = keys(&simulated, &[]);
    keys.push(("appliance", "other"));
    run(async {
        let opened = TestHost::new().open::<Driver>(SR, &keys).await;
        let Err(error) = opened else { panic!("it opens") };
        assert_eq!(error.message, "the array has no appliance of the name that is configured");
        assert_eq!(error.hint.as_deref(), Some("appliances: pool"));
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_probe_shows_srs_and_appliances() {
    run(async {
        let mut sr = Sr::<Array>::new().await?;
        sr.until_done(SrCreate { name: "vms".into(), description: "of us".into() }).await?;
        let found = TestHost::new().probe::<Driver>(&keys(&sr.simulated, &[])).await?;
        let short: Vec<_> = found
            .items
            .iter()
            .map(|item| {
                let sr = item.sr.as_ref().map(|sr| (sr.uuid, sr.name.as_str()));
                (item.configuration.len(), item.complete, sr)
            })
            .collect();
        assert_eq!(short, [(0, true, Some((SR, "vms"))), (0, true, None)]);
        assert_eq!(found.items[1].extra_info["appliance_name"], "pool");
        assert_eq!(found.items[1].extra_info["size"], (1_u64 << 40).to_string());
        Ok(())
    })
    .unwrap();
}
