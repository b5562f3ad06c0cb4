//! How the array's answers are read.

use array_kit::array::Array as _;
use array_kit::outcome::Class;
use plugin_sdk::model::Bytes;
use serde_json::{Value, json};

use crate::script::{FOLDER, Step, both, encoded, step, volume};

fn query(reply: Value) -> Vec<Step> {
    let path = volume(1).id;
    let rest = format!("GET /pool/dataset?id={}&extra.retrieve_children=false", encoded(&path));
    let params = json!([[["id", "=", path]], { "extra": { "retrieve_children": false } }]);
    vec![step(rest, Value::Null, "pool.dataset.query", params, reply)]
}

/// User properties come down from the dataset of the SR, and from volumes to snapshots.
#[test]
fn an_inherited_text_is_none() {
    let property = json!({ "rawvalue": "{}", "value": "{}", "source": "INHERITED" });
    let reply = json!([{ "id": volume(1).id, "type": "VOLUME", "volsize": { "rawvalue": "512" },
        "user_properties": { "storage-manager:vdi": property } }]);
    let found = both(query(reply), |cx, array| {
        Box::pin(async move { array.get(cx, &volume(1).name).await })
    });
    let found = found.unwrap();
    assert_eq!((found.metadata, found.size), (None, Bytes(512)));
}

#[test]
fn a_clone_names_the_snapshot_it_hangs_on() {
    let origin = format!("{FOLDER}/x@h");
    let reply = json!([{ "id": volume(1).id, "type": "VOLUME", "volsize": { "rawvalue": "512" },
        "origin": { "rawvalue": origin, "value": origin }, "locked": false }]);
    let found = both(query(reply), |cx, array| {
        Box::pin(async move { array.get(cx, &volume(1).name).await })
    });
    assert_eq!(found.unwrap().origin, Some(origin));
}

#[test]
fn a_locked_volume_says_so() {
    let reply = json!([{ "id": volume(1).id, "type": "VOLUME", "locked": true }]);
    let found = both(query(reply), |cx, array| {
        Box::pin(async move { array.get(cx, &volume(1).name).await })
    });
    let trouble = found.unwrap().trouble;
    assert_eq!(trouble.as_deref(), Some("it is locked on the array, with a passphrase or key"));
}

/// Never taken for "there is none".
#[test]
fn an_answer_of_another_form_is_no_answer() {
    for reply in [json!({ "id": 1 }), json!("x"), json!([{ "name": "no id" }]), Value::Null] {
        // Tried again as often as the policy says: only the class is of interest here.
        let failure = both(query(reply), |cx, array| {
            Box::pin(async move { array.get(cx, &volume(1).name).await })
        });
        assert_eq!(failure.unwrap_err().class, Class::Garbled);
    }
}
