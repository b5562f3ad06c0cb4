//! The driver against the simulated array with real blocks: in guests of the lab, by `smctl`, with the
//! kernel's initiator.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use array_matrix::lab::{Place, Station, luns};
use array_matrix::wishes::MIB;
use array_sim::powerstore::{PASSWORD, USER};
use lab::Result;
use serde_json::json;

struct PowerStore;

impl Station for PowerStore {
    const DRIVER: &'static str = "powerstore";
    const SCSI_ID: &'static str = "368ccf098";
    // One port: each is a target of its own, and a second one a second path.
    const ARRAY: &'static [&'static str] =
        &["powerstore", "--pool", "pool=1073741824", "--settings", "{\"vendor\":{\"ports\":1}}"];
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
            format!("username={USER}"),
            format!("password={PASSWORD}"),
        ]
    }
}

#[test]
fn luns_are_reached_by_what_they_are_and_leave_nothing_behind() -> Result<()> {
    luns::<PowerStore>(|_| Ok(()))
}
