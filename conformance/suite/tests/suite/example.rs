//! The example of the guide, held to the contract as its author would do it.

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
