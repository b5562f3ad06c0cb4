//! The real library in a process of its own, killed at each of its steps; and the demo.

use std::process::Command;

use conformance::built::artefact;

use crate::support::Ps;

#[test]
fn a_driver_that_is_killed_anywhere_makes_one_object_and_leaves_none() {
    array_matrix::kills::at_each_step::<Ps>();
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
