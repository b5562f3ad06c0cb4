//! The driver against a simulated array with real blocks: in guests of the lab, by `smctl`, with the
//! kernel's initiator.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use array_matrix::lab::{Place, Station, luns};
use array_matrix::wishes::MIB;
use array_sim::ontap::{PASSWORD, SVM, USER};
use lab::Result;
use serde_json::json;

struct Svm;

impl Station for Svm {
    const DRIVER: &'static str = "ontap";
    const SCSI_ID: &'static str = "3600a0980";
    const ARRAY: &'static [&'static str] = &["ontap", "--pool", "vol1=1073741824"];
    const THEIRS: &'static str = "/vol/vol1/payroll";

    fn furnish(place: &Place) -> Result<()> {
        let theirs = json!({ "name": Self::THEIRS, "pool": "vol1", "size": MIB });
        place.simulator("POST", "/volume", &theirs).map(drop)
    }

    fn config(place: &Place) -> Vec<String> {
        let (address, port) = place.management();
        vec![
            format!("target=http://{address}:{port}"),
            format!("username={USER}"),
            format!("password={PASSWORD}"),
            format!("svm={SVM}"),
            "volume=vol1".to_owned(),
        ]
    }
}

#[test]
fn luns_are_reached_by_what_they_are_and_leave_nothing_behind() -> Result<()> {
    luns::<Svm>(|_| Ok(()))
}
