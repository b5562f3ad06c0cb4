//! Host keys, passwords, and what is refused before anything is done.

use array_matrix::wishes::SR;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::{Opened, TestHost};

use crate::support::{Driver, Fixture, run};

fn with(fixture: &Fixture, key: &str, value: Option<&str>) -> Vec<(&'static str, String)> {
    let mut config = fixture.config();
    config.retain(|(other, _)| *other != key);
    let known =
        ["target", "password", "storagepool", "host-key-fingerprint", "host-key-policy", "port"];
    let key = known.into_iter().find(|known| *known == key).unwrap();
    config.extend(value.map(|value| (key, value.to_owned())));
    config
}

async fn open(host: &TestHost, config: &[(&str, String)]) -> Result<Opened<Driver>> {
    let pairs: Vec<(&str, &str)> = config.iter().map(|(k, v)| (*k, v.as_str())).collect();
    host.open::<Driver>(SrUuid::random(), &pairs).await
}

async fn refused(host: &TestHost, config: &[(&str, String)]) -> Error {
    match open(host, config).await {
        Ok(_) => panic!("it was not refused"),
        Err(error) => error,
    }
}

#[test]
fn a_host_key_is_pinned() {
    run(async {
        let fixture = Fixture::new();
        let (host, seen) = (TestHost::new(), fixture.group.command_line.fingerprint.clone());
        let port = fixture.group.command_line.address.port();
        let error = refused(&host, &with(&fixture, "host-key-fingerprint", None)).await;
        assert_eq!(error.message, format!("the host key of 127.0.0.1:{port}, {seen}, is not known"));
        assert_eq!(error.kind, Kind::Auth);
        let other = "SHA256:uNiVztksCsDhcc0u9e8BrzUXi4L4QJFH2MGFQZVJZWk";
        let error = refused(&host, &with(&fixture, "host-key-fingerprint", Some(other))).await;
        assert_eq!(
            error.message,
            format!("127.0.0.1:{port} shows the host key {seen}, not the one of the device configuration")
        );
        assert!(fixture.simulated.array.sessions().peak() == 0, "no password was sent");

        // The first one is kept if that is wanted, and no other from then on.
        let mut first = with(&fixture, "host-key-fingerprint", None);
        first.push(("host-key-policy", "first-use".to_owned()));
        open(&host, &first).await?.close().await;
        assert_eq!(host.kv()["host-key"], serde_json::json!(seen));
        let another = Fixture::new();
        let mut moved = with(&another, "host-key-fingerprint", None);
        moved.push(("host-key-policy", "first-use".to_owned()));
        let error = refused(&host, &moved).await;
        assert!(error.message.contains("not the one of the device configuration"), "{error}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn what_is_wrong_has_its_number() {
    run(async {
        let fixture = Fixture::new();
        let host = TestHost::new();
        let wrong = "canary-of-a-wrong-one";
        let error = refused(&host, &with(&fixture, "password", Some(wrong))).await;
        assert_eq!(error.message, "the array does not accept the password of \"vms\"");
        assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::Auth, 169));
        let error = refused(&host, &with(&fixture, "storagepool", Some("nowhere"))).await;
        assert_eq!(error.message, "the group has no storage pool of the name that is configured");
        assert_eq!((error.legacy_code(), error.hint.as_deref()), (172, Some("pools: default")));
        // Nobody listens there.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = refused(&host, &with(&fixture, "port", Some(&free.to_string()))).await;
        assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::Unreachable, 171), "{error}");
        fixture
            .group
            .array
            .set(|settings| {
                settings.vendor.insert("address".into(), "10.9.8.7".into());
            })
            .unwrap();
        let error = refused(&host, &fixture.config()).await;
        assert_eq!(error.message, "127.0.0.1 is not the address of the group, which is 10.9.8.7");
        assert_eq!(error.legacy_code(), 173);
        Ok(())
    })
    .unwrap();
}

/// A wrong password is asked for once, whoever asks again: an account is not locked.
#[test]
fn a_wrong_password_is_not_tried_again() {
    run(async {
        let fixture = Fixture::new();
        let host = TestHost::new();
        let driver = fixture.open(&host).await?;
        driver.call(SrCreate::default()).await?;
        fixture
            .group
            .array
            .set(|settings| {
                settings.vendor.insert("accounts".into(), serde_json::json!({ "vms": "changed" }));
            })
            .unwrap();
        fixture.simulated.array.sessions().drop_all();
        for _ in 0..2 {
            // The session that was open has ended, and another one is refused.
            let error = driver.call(SrStat {}).await.unwrap_err();
            assert_eq!(error.legacy_code(), 169, "{error}");
        }
        assert_eq!(driver.health(), SessionHealth::Poisoned);
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_probe_leads_to_pools_and_srs() {
    run(async {
        let fixture = Fixture::new();
        let driver = fixture.open(&TestHost::new()).await?;
        let made = SrCreate { name: "vms".into(), description: "of the test".into() };
        driver.call(made).await?;
        let config = fixture.config();
        let probe = |without: &'static [&'static str]| {
            let pairs: Vec<(String, String)> = config
                .iter()
                .filter(|(key, _)| !without.contains(key))
                .map(|(k, v)| ((*k).to_owned(), v.clone()))
                .collect();
            async move {
                let pairs: Vec<(&str, &str)> =
                    pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                plugin_sdk::testing::probe::<Driver>(&pairs).await
            }
        };
        for (key, number) in [("target", 160), ("username", 161), ("password", 162)] {
            let missing: &'static [&'static str] = match key {
                "target" => &["target"],
                "username" => &["username"],
                _ => &["password"],
            };
            let error = probe(missing).await.unwrap_err();
            assert_eq!(
                (error.message.as_str(), error.legacy_code()),
                (format!("the device configuration lacks {key}").as_str(), number,)
            );
        }
        let found = probe(&["host-key-fingerprint", "storagepool"]).await?;
        let key = &found.items[0].configuration["host-key-fingerprint"];
        assert_eq!(
            (key, found.items[0].complete),
            (&fixture.group.command_line.fingerprint, false)
        );
        let found = probe(&["storagepool"]).await?;
        let pools: Vec<_> =
            found.items.iter().map(|item| &item.configuration["storagepool"]).collect();
        assert_eq!(pools, ["default", "default"]);
        let sr = found.items[1].sr.as_ref().unwrap();
        assert_eq!((sr.uuid, sr.name.as_str()), (SR, "vms"));
        Ok(())
    })
    .unwrap();
}
