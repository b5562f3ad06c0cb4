//! The driver against the simulated array with real blocks: in guests of the lab, by `smctl`, with the
//! kernel's initiator and dm-multipath.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod in_use;

use std::time::Duration;

use array_matrix::lab::stations::{TrueNas, managed};
use array_matrix::lab::{Place, luns, told};
use array_matrix::wishes::MIB;
use lab::Result;
use lab::kit::{multipath, udev};
use serde_json::{Value, json};

#[test]
fn luns_are_reached_by_what_they_are_and_leave_nothing_behind() -> Result<()> {
    luns::<TrueNas>(two_paths)
}

/// Two portals and multipath; and a number that another LUN is behind.
fn two_paths(place: &Place) -> Result<()> {
    let (smctl, host) = (place.smctl(), &place.host);
    udev::start(host)?;
    multipath::start(host)?;
    place.create::<TrueNas>("two", &["portal=2", "api=rest"])?;
    smctl.check(&["vdi", "create", "--sr", "two", "--name", "pair", "--size", "16MiB"])?;

    // The array's management says one thing, and what it serves is somebody else's.
    let fake = "6589cfc000000fedcba9876543210fed";
    let body = json!({ "id": 1, "naa": format!("0x{fake}") }).to_string();
    let fault = json!([{ "call": "iscsi.extent.create",
        "effect": { "kind": "refuse", "status": 200, "body": body } }]);
    place.simulator("POST", "/faults", &fault)?;
    let error = smctl.refused(&["vdi", "attach", "pair"])?;
    let (kind, message) = told(&error);
    assert_eq!(kind, "corrupt", "{error}");
    let theirs = managed(place, "GET", "iscsi/extent?name=theirs", &Value::Null)?;
    let theirs = theirs[0]["naa"].as_str().unwrap().trim_start_matches("0x").to_owned();
    assert!(message.starts_with("LUN 0 of iqn.2005-10.org.freenas.ctl:sm-"), "{message}");
    let end = format!(" is 3{theirs} and not 3{fake}; it is not used");
    assert!(message.ends_with(&end), "{message}");
    assert_eq!(place.left()?, "");
    // What the array did there is its own.
    let all = managed(place, "GET", "iscsi/targetextent", &Value::Null)?;
    let odd = all.as_array().unwrap().iter().find(|one| one["target"] != 1).unwrap();
    managed(place, "DELETE", &format!("iscsi/targetextent/id/{}", odd["id"]), &json!(true))?;

    let device = place.attach("pair", &[])?;
    let id = device.strip_prefix("/dev/mapper/").unwrap();
    assert!(id.starts_with("36589cfc000000") && id.len() == 33, "{id}");
    assert_eq!((place.size(&device)?, place.sessions()?), (16 * MIB, 2));
    multipath::wait_for(host, 2, 0, Duration::from_secs(20))?;
    place.fill(&device, 16)?;
    let sum = place.sum(&device, 16)?;
    smctl.check(&["vdi", "resize", "pair", "24MiB"])?;
    assert_eq!((place.size(&device)?, place.sum(&device, 16)?), (24 * MIB, sum));
    let busy = host.command(["sh", "-c", "mkfs.ext4 -q $0 && mount $0 /mnt", &device]);
    busy.check()?;
    let error = smctl.refused(&["vdi", "detach", "pair"])?;
    assert_eq!(told(&error).0, "in_use", "{error}");
    assert_eq!(place.sessions()?, 2);
    host.check(["umount", "/mnt"])?;
    smctl.check(&["vdi", "detach", "pair"])?;
    assert_eq!(place.left()?, "");
    let known = host.run(["cat", "/etc/multipath/wwids"])?.text();
    // The line of one that was forgotten is a comment.
    assert!(!known.lines().any(|line| line == format!("/{id}/")), "{known}");
    smctl.check(&["vdi", "destroy", "pair"])?;
    smctl.check(&["sr", "destroy", "two"])?;
    Ok(())
}
