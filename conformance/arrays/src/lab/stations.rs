//! The arrays of all drivers, as they are started and reached in the lab.

use ::lab::Result;
use array_kit::http::basic;
use array_sim::{ontap, powerstore, purestorage, truenas};
use plugin_sdk::Secret;
use serde_json::{Value, json};

use super::{Place, Station};
use crate::wishes::MIB;

/// The password of an EqualLogic here: the one that a new group has is also the name of its user.
const EQUALLOGIC_PASSWORD: &str = "simulated-password";

/// A group of EqualLogic, over SSH: each volume is a target.
pub struct EqualLogic;

impl Station for EqualLogic {
    const DRIVER: &'static str = "equallogic";
    const SCSI_ID: &'static str = "36090a0";
    const ARRAY: &'static [&'static str] = &["equallogic", "--pool", "default=17179869184"];
    const TARGET_PER_VOLUME: bool = true;
    const THEIRS: &'static str = "payroll";

    fn furnish(place: &Place) -> Result<()> {
        let theirs = json!({ "name": "payroll", "pool": "default", "size": 15 * MIB });
        place.simulator("POST", "/volume", &theirs)?;
        let mut settings = place.simulator("GET", "/settings", &Value::Null)?;
        settings["vendor"]["accounts"] = json!({ "grpadmin": EQUALLOGIC_PASSWORD });
        // What it says of itself is where it is reached.
        settings["vendor"]["address"] = json!(place.management().0.to_string());
        place.simulator("PUT", "/settings", &settings).map(drop)
    }

    fn config(place: &Place) -> Vec<String> {
        let (address, port) = place.management();
        let key = place.said["fingerprint"].as_str().unwrap();
        vec![
            format!("target={address}"),
            format!("port={port}"),
            "username=grpadmin".to_owned(),
            format!("password={EQUALLOGIC_PASSWORD}"),
            "storagepool=default".to_owned(),
            format!("host-key-fingerprint={key}"),
        ]
    }
}

/// An SVM of ONTAP.
pub struct Ontap;

impl Station for Ontap {
    const DRIVER: &'static str = "ontap";
    const SCSI_ID: &'static str = "3600a0980";
    const ARRAY: &'static [&'static str] = &["ontap", "--pool", "vol1=17179869184"];
    const THEIRS: &'static str = "/vol/vol1/payroll";

    fn furnish(place: &Place) -> Result<()> {
        let theirs = json!({ "name": Self::THEIRS, "pool": "vol1", "size": MIB });
        place.simulator("POST", "/volume", &theirs).map(drop)
    }

    fn config(place: &Place) -> Vec<String> {
        let (address, port) = place.management();
        vec![
            format!("target=http://{address}:{port}"),
            format!("username={}", ontap::USER),
            format!("password={}", ontap::PASSWORD),
            format!("svm={}", ontap::SVM),
            "volume=vol1".to_owned(),
        ]
    }
}

/// A PowerStore.
pub struct PowerStore;

impl Station for PowerStore {
    const DRIVER: &'static str = "powerstore";
    const SCSI_ID: &'static str = "368ccf098";
    // One port: each is a target of its own, and a second one a second path.
    const ARRAY: &'static [&'static str] =
        &["powerstore", "--pool", "pool=17179869184", "--settings", "{\"vendor\":{\"ports\":1}}"];
    const THEIRS: &'static str = "payroll";

    fn furnish(place: &Place) -> Result<()> {
        let volume = json!({
            "name": "payroll", "pool": "pool", "size": MIB,
            "attributes": { "name": "payroll", "type": "Primary" },
        });
        place.simulator("POST", "/volume", &volume).map(drop)
    }

    fn config(place: &Place) -> Vec<String> {
        let (address, port) = place.management();
        vec![
            format!("target=http://{address}:{port}"),
            format!("username={}", powerstore::USER),
            format!("password={}", powerstore::PASSWORD),
        ]
    }
}

/// A FlashArray.
pub struct FlashArray;

impl Station for FlashArray {
    const DRIVER: &'static str = "purestorage";
    const SCSI_ID: &'static str = "3624a9370";
    const ARRAY: &'static [&'static str] = &["purestorage", "--pool", "flash1=17179869184"];
    const THEIRS: &'static str = "payroll";

    fn furnish(place: &Place) -> Result<()> {
        let theirs = json!({ "name": "payroll", "pool": "flash1", "size": MIB, "attributes": {} });
        place.simulator("POST", "/volume", &theirs).map(drop)
    }

    fn config(place: &Place) -> Vec<String> {
        let (address, port) = place.management();
        vec![
            format!("target=http://{address}:{port}"),
            format!("api-token={}", purestorage::API_TOKEN),
        ]
    }
}

/// A TrueNAS, reached by one portal.
pub struct TrueNas;

/// What an administrator of a TrueNAS does.
pub fn managed(place: &Place, method: &str, path: &str, body: &Value) -> Result<Value> {
    let authorization = basic(truenas::USER, &Secret::from(truenas::PASSWORD));
    let header = format!("authorization: {}", authorization.reveal());
    place.managed(&[&header], method, &format!("/api/v2.0/{path}"), body)
}

impl Station for TrueNas {
    const DRIVER: &'static str = "truenas";
    const SCSI_ID: &'static str = "36589cfc000000";
    const ARRAY: &'static [&'static str] = &["truenas", "--pool", "tank=17179869184"];
    const BOTH_NETWORKS: bool = true;
    const THEIRS: &'static str = "tank/theirs";

    /// A dataset for SRs, a LUN of somebody else's, and a portal for each of two ways to reach this:
    /// 1 at any address, 2 at both of them.
    fn furnish(place: &Place) -> Result<()> {
        let theirs = json!({ "name": "tank/theirs", "type": "VOLUME", "volsize": MIB,
            "sparse": true, "volblocksize": "16K" });
        let listen: Vec<Value> =
            place.addresses.iter().map(|ip| json!({ "ip": ip.to_string() })).collect();
        for (path, body) in [
            ("pool/dataset", json!({ "name": "tank/vms", "type": "FILESYSTEM" })),
            ("pool/dataset", theirs),
            ("iscsi/portal", json!({ "listen": listen })),
            ("iscsi/initiator", json!({ "initiators": ["iqn.2000-01.com.example:them"] })),
            (
                "iscsi/target",
                json!({ "name": "theirs", "alias": null, "mode": "ISCSI", "groups": [
                    { "portal": 1, "initiator": 1, "authmethod": "NONE", "auth": null }] }),
            ),
            ("iscsi/extent", json!({ "name": "theirs", "disk": "zvol/tank/theirs" })),
            ("iscsi/targetextent", json!({ "target": 1, "extent": 1, "lunid": 0 })),
        ] {
            managed(place, "POST", path, &body)?;
        }
        Ok(())
    }

    fn config(place: &Place) -> Vec<String> {
        let (address, port) = place.management();
        vec![
            format!("target=http://{address}:{port}"),
            "pool=tank/vms".to_owned(),
            format!("username={}", truenas::USER),
            format!("password={}", truenas::PASSWORD),
            "portal=1".to_owned(),
        ]
    }
}
