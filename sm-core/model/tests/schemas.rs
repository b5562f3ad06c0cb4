//! The JSON Schemas are checked in, so that a change of the wire format shows in review.
//! `UPDATE_GOLDENS=1 cargo test -p sm-model` writes them anew.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::path::Path;

use schemars::{Schema, schema_for};
use sm_model::operation::OPERATIONS;
use sm_model::{Error, Manifest, host};

fn compare(name: &str, schema: &Schema) -> Result<(), String> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/v1").join(format!("{name}.json"));
    let now = serde_json::to_string_pretty(schema).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, &now).unwrap();
        return Ok(());
    }
    match std::fs::read_to_string(&path) {
        Ok(golden) if golden == now => Ok(()),
        Ok(_) => Err(format!("{} differs from the types", path.display())),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

#[test]
fn schemas_match_the_goldens() {
    let mut wrong = Vec::new();
    for row in OPERATIONS {
        for (part, schema) in [("request", (row.request_schema)()), ("reply", (row.reply_schema)())]
        {
            wrong.extend(compare(&format!("{}.{part}", row.name), &schema).err());
        }
    }
    wrong.extend(compare("error", &schema_for!(Error)).err());
    wrong.extend(compare("manifest", &schema_for!(Manifest)).err());
    wrong.extend(compare("open", &schema_for!(host::OpenRequest)).err());
    assert!(
        wrong.is_empty(),
        "{}\nIf the change keeps the rules of growth (fields added with a default, nothing renamed \
         or retyped), write them with UPDATE_GOLDENS=1 cargo test -p sm-model",
        wrong.join("\n")
    );
}

#[test]
fn no_golden_is_left_over() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/v1");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let stem = name.split('.').next().unwrap();
        let known = ["error", "manifest", "open"].contains(&stem)
            || OPERATIONS.iter().any(|row| row.name == stem);
        assert!(known, "schemas/v1/{name} belongs to no operation");
    }
}
