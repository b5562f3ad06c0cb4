//! The driver against a simulated array with real blocks: in guests of the lab, by `smctl`, with the
//! kernel's initiator.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use array_matrix::lab::{Place, Station, luns};
use array_matrix::wishes::MIB;
use array_sim::purestorage::API_TOKEN;
use lab::Result;
use serde_json::json;

struct Array;

impl Station for Array {
    const DRIVER: &'static str = "purestorage";
    const SCSI_ID: &'static str = "3624a9370";
    const ARRAY: &'static [&'static str] = &["purestorage", "--pool", "flash1=1073741824"];
    const THEIRS: &'static str = "payroll";

    fn furnish(place: &Place) -> Result<()> {
        let theirs = json!({ "name": "payroll", "pool": "flash1", "size": MIB, "attributes": {} });
        place.simulator("POST", "/volume", &theirs).map(drop)
    }

    fn config(place: &Place) -> Vec<String> {
        let (address, port) = place.management();
        vec![format!("target=http://{address}:{port}"), format!("api-token={API_TOKEN}")]
    }
}

#[test]
fn luns_are_reached_by_what_they_are_and_leave_nothing_behind() -> Result<()> {
    luns::<Array>(|_| Ok(()))
}
