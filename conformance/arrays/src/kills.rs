//! The real library in a process of its own, killed at each of its steps.

use std::path::Path;

use conformance::kills::{self, SimulatedArray};

use crate::host::IQN;
use crate::vendor::{Simulated, Vendor, runtime};

/// Steps of the kit that every driver comes by.
const STEPS: [&str; 9] = [
    "array.create_intended",
    "array.created",
    "array.resize_intended",
    "array.resized",
    "array.restored",
    "array.delete_intended",
    "array.volume_removed",
    "array.snapshot_removed",
    "array.deleted",
];

struct Place(Simulated);

impl Place {
    fn start<V: Vendor>(folder: &Path) -> Self {
        let place = folder.join("array");
        std::fs::create_dir(&place).unwrap();
        Self(runtime().block_on(V::start(&place)))
    }
}

impl SimulatedArray for Place {
    fn keys(&self) -> Vec<String> {
        let given = self.0.config.iter().map(|(key, value)| format!("{key}={value}"));
        given.chain([format!("initiator={IQN}")]).collect()
    }

    fn objects(&self) -> String {
        self.0.objects().to_string()
    }
}

/// See [`kills::at_each_step`]: there is one object of each or none, and in the end none.
///
/// # Panics
/// Also if nobody was killed at one of the kit's steps or of [`Facts::steps`](crate::Facts::steps).
pub fn at_each_step<V: Vendor>() {
    let killed = kills::at_each_step(V::LIBRARY, Place::start::<V>);
    for step in STEPS.iter().chain(V::FACTS.steps) {
        assert!(killed.contains(*step), "nobody was killed at {step}");
    }
}
