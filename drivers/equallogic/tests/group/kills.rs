//! The real library in a process of its own, killed at each of its steps; and the demo.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use array_sim::equallogic::{Group, plan};
use conformance::built::artefact;
use conformance::kills::{SimulatedArray, at_each_step};

use crate::support::{MIB, simulator};

/// A group, and where its sessions are counted.
struct Simulated(Group, String);

impl Simulated {
    fn start(folder: &Path) -> Self {
        let place = folder.join("array");
        let group = simulator().block_on(Group::start(&place, &plan(1 << 40))).unwrap();
        let foreign = |change: &mut array_sim::core::Change<'_>| {
            let new = array_sim::core::NewVolume::thin("default", 30 * MIB);
            change.create_volume("payroll", new).map(drop)
        };
        group.array.change(foreign).unwrap();
        // The driver's process is another user's, where the test is root's.
        let locks = folder.join("locks");
        std::fs::create_dir(&locks).unwrap();
        std::fs::set_permissions(&locks, std::fs::Permissions::from_mode(0o777)).unwrap();
        Self(group, locks.display().to_string())
    }
}

impl SimulatedArray for Simulated {
    fn keys(&self) -> Vec<String> {
        let line = &self.0.command_line;
        vec![
            "target=127.0.0.1".to_owned(),
            format!("port={}", line.address.port()),
            "username=grpadmin".to_owned(),
            "password=grpadmin".to_owned(),
            "storagepool=default".to_owned(),
            format!("host-key-fingerprint={}", line.fingerprint),
            format!("session-directory={}", self.1),
            "initiator=iqn.2004-01.example:h1".to_owned(),
        ]
    }

    fn objects(&self) -> String {
        self.0.inventory().join("\n")
    }
}

#[test]
fn a_driver_that_is_killed_anywhere_makes_one_object_and_leaves_none() {
    let killed = at_each_step("libsm_driver_equallogic.so", Simulated::start);
    for step in [
        "array.create_intended",
        "array.created",
        "array.made_without_text",
        "array.make_intended",
        "array.made_unnamed",
        "array.name_intended",
        "array.named",
        "equallogic.cloned",
        "array.resize_intended",
        "array.resized",
        "equallogic.restore_offline",
        "equallogic.restored",
        "equallogic.restore_online",
        "array.restored",
        "array.delete_intended",
        "equallogic.offline",
        "array.volume_removed",
        "array.snapshot_removed",
        "array.deleted",
    ] {
        assert!(killed.contains(step), "nobody was killed at {step}");
    }
}

/// What the README says to type first, for whoever has no array.
#[test]
fn the_demo_of_a_simulated_group_passes() {
    let xtask = artefact("xtask");
    let product = xtask.parent().unwrap();
    let output = Command::new(&xtask)
        .args(["demo", "--array", "equallogic", "--product"])
        .arg(product)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("the array has copied "), "progress is shown: {said}");
    assert!(said.lines().last().unwrap().starts_with("demo passed: "), "{said}");
}
