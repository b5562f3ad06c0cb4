//! The driver against a simulated group with real blocks: in guests of the lab, by `smctl`, with the
//! kernel's initiator.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use array_matrix::lab::{Place, Station, luns};
use array_matrix::wishes::MIB;
use lab::Result;
use serde_json::{Value, json};

struct Group;

impl Station for Group {
    const DRIVER: &'static str = "equallogic";
    const SCSI_ID: &'static str = "36090a0";
    const ARRAY: &'static [&'static str] = &["equallogic", "--pool", "default=1073741824"];
    const TARGET_PER_VOLUME: bool = true;
    const THEIRS: &'static str = "payroll";

    fn furnish(place: &Place) -> Result<()> {
        let theirs = json!({ "name": "payroll", "pool": "default", "size": 15 * MIB });
        place.simulator("POST", "/volume", &theirs)?;
        let mut settings = place.simulator("GET", "/settings", &Value::Null)?;
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
            "password=grpadmin".to_owned(),
            "storagepool=default".to_owned(),
            format!("host-key-fingerprint={key}"),
        ]
    }
}

#[test]
fn luns_are_reached_by_what_they_are_and_leave_nothing_behind() -> Result<()> {
    luns::<Group>(|_| Ok(()))
}
