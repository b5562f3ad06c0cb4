//! A simulated array with objects of somebody else.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use array_kit::http::{Client, Limits, Request, Trust, basic};
use array_kit::recorder::Recorder;
use array_matrix::vendor::copy_volume;
use array_matrix::{Facts, Simulated, Vendor};
use array_sim::core::{Change, Options, Trouble, View, Volume};
use array_sim::powerstore::{PASSWORD, PowerStore, USER};
use array_sim::{Plan, Simulator};
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::TestHost;
use serde_json::{Value, json};
use sm_driver_powerstore::{NAMES, PowerStoreProduct};

pub(crate) struct Array;

impl Vendor for Array {
    type Product = PowerStoreProduct;
    const LIBRARY: &'static str = "libsm_driver_powerstore.so";
    const DOCUMENT: &'static str = include_str!("../../../../docs/drivers/powerstore.md");
    const FACTS: Facts = Facts {
        reads: &["login", "metrics.generate"],
        group_snapshots: true,
        ..Facts::new(NAMES, "368ccf098", 8192)
    };

    async fn start(folder: &Path) -> Simulated {
        start(folder, json!({})).await
    }

    fn volume(view: &View, sr: SrUuid, vdi: VdiUuid) -> String {
        let name = Self::name(sr, vdi);
        let all = view.all::<Volume>();
        let mut own = all.iter().filter(|(_, one)| one.attributes["name"] == name.as_str());
        own.next().unwrap_or_else(|| panic!("there is no volume {name}")).0.clone()
    }

    /// The key is an id that the array chooses.
    fn copy(
        change: &mut Change<'_>,
        sr: SrUuid,
        from: VdiUuid,
        to: VdiUuid,
    ) -> Result<(), Trouble> {
        let (old, new) = (Self::name(sr, from), Self::name(sr, to));
        let volume = change.volume(&Self::volume(&change.view(), sr, from))?;
        let tag = |name: &str| format!("sm1:{}", &name[name.len() - 4..]);
        let id = Uuid::new_v4().to_string();
        copy_volume(change, &volume, &id, |text| {
            text.replace(&old, &new).replace(&tag(&old), &tag(&new))
        })
    }
}

/// An array with these settings of the vendor.
pub(crate) async fn start(folder: &Path, settings: Value) -> Simulated {
    let mut options = Options::default();
    options.settings.vendor = settings.as_object().unwrap().clone();
    let plan = Plan { options, tls: true, ..Plan::default() };
    let simulator = Simulator::start(Arc::new(PowerStore), folder, &plan).await.unwrap();
    let pin = simulator.certificate().unwrap().fingerprint().unwrap();
    let config = vec![
        ("target", simulator.url()),
        ("username", USER.to_owned()),
        ("password", PASSWORD.to_owned()),
        ("fingerprint", pin),
    ];
    let array = simulator.array.clone();
    let simulated = Simulated::new(&array, PowerStore, config, &[PASSWORD], simulator);
    theirs(&simulated).await;
    simulated
}

/// What an administrator does, and what the array says to it.
pub(crate) async fn managed(
    simulated: &Simulated,
    asked: &[(&str, &str, Value)],
) -> Vec<(u16, Value)> {
    let key = |name| simulated.config.iter().find(|(key, _)| *key == name).unwrap().1.clone();
    let (limits, recorder) = (Limits::default(), Recorder::default());
    let trust = Trust::Fingerprint(key("fingerprint"));
    let client = Client::new(&key("target"), &trust, limits, recorder).unwrap();
    let authorization = basic(USER, &Secret::from(PASSWORD));
    let asked: Vec<_> = asked
        .iter()
        .map(|(method, path, body)| {
            let path = format!("/api/rest/{path}");
            let (path, query) = path.split_once('?').unwrap_or((&path, ""));
            let request = match *method {
                "GET" => Request::get("test", path),
                "PATCH" => Request::patch("test", path).json(body),
                "DELETE" => Request::delete("test", path).json(body),
                _ => Request::post("test", path).json(body),
            };
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let request = pairs.fold(request, |request, (name, value)| request.query(name, value));
            request.header("authorization", authorization.clone())
        })
        .collect();
    let work = |cx: Cx| async move {
        let mut said = Vec::new();
        for request in asked {
            let reply = client.send(&cx, &request).await?;
            said.push((reply.status(), serde_json::from_slice(reply.body()).unwrap_or_default()));
        }
        Ok(said)
    };
    TestHost::new().with_cx(Duration::from_secs(30), work).await.unwrap()
}

/// A volume of somebody else with a snapshot, mapped to a host of theirs, in a group, with a limit.
async fn theirs(simulated: &Simulated) {
    let made = managed(
        simulated,
        &[
            (
                "POST",
                "volume",
                json!({ "name": "theirs", "size": 1 << 20, "description": "not ours" }),
            ),
            ("POST", "volume/name:theirs/snapshot", json!({ "name": "theirs.1" })),
            (
                "POST",
                "host",
                json!({ "name": "them", "os_type": "ESXi", "initiators": [
                { "port_name": "iqn.2000-01.com.example:them", "port_type": "iSCSI" }] }),
            ),
            ("POST", "volume/name:theirs/attach", json!({ "host_id": "name:them" })),
            (
                "POST",
                "io_limit_rule",
                json!({ "name": "slow", "type": "Absolute", "max_iops": 10 }),
            ),
            ("POST", "policy", json!({ "name": "slow", "io_limit_rule_id": "name:slow" })),
            ("PATCH", "volume/name:theirs", json!({ "qos_performance_policy_id": "name:slow" })),
        ],
    )
    .await;
    assert!(made.iter().all(|(status, _)| *status < 300), "{made:?}");
    let group = json!({ "name": "theirs", "volume_ids": [made[0].1["id"]] });
    let made = managed(simulated, &[("POST", "volume_group", group)]).await;
    assert_eq!(made[0].0, 201, "{made:?}");
}
