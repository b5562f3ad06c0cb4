//! The example of the guide, held to the contract as its author would do it.
//!
//! A program of its own, as an author's: checks count its children.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use conformance::built;

sm_conformance::suite! {
    driver: built::artefact("examples/libscratch.so"),
    level: L5,
    config: r#"
        [device-config]
        location = "{scratch}"
        [backend]
        directory = "{scratch}"
    "#,
}
