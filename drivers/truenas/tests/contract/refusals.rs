//! What the array's refusals mean: the same over both APIs.

use array_kit::array::Array as _;
use array_kit::outcome::{Class, Outcome};
use serde_json::{Value, json};

use crate::script::{Reply, Step, both, encoded, refusal, step, volume};

/// A change of a volume that is refused so.
fn refused(reply: Reply) -> Outcome<()> {
    let path = volume(2).id;
    let rest = format!("PUT /pool/dataset/id/{}", encoded(&path));
    let body =
        json!({ "user_properties_update": [{ "key": "storage-manager:vdi", "value": "{}" }] });
    let params = json!([path, body]);
    let step = step(rest, body, "pool.dataset.update", params, Value::Null);
    both(vec![Step { reply, ..step }], |cx, array| {
        Box::pin(async move { array.describe(cx, &volume(2), "{}").await })
    })
}

#[test]
fn the_words_decide_where_all_is_422() {
    let path = "tank/vms/x";
    let table = [
        ("pool_dataset_create.name", format!("{path} already exists"), 17, Class::AlreadyExists),
        ("iscsi_extent_create.name", "Extent name must be unique".into(), 22, Class::AlreadyExists),
        ("", format!("Dataset {path} does not exist"), 2, Class::NotFound),
        ("", format!("Snapshot {path}@s not found"), 2, Class::NotFound),
        ("", "InstanceNotFound".into(), 2, Class::NotFound),
        (
            "",
            format!("Failed to delete dataset: cannot destroy '{path}': dataset is busy"),
            16,
            Class::InUse,
        ),
        ("", format!("cannot destroy '{path}@s': snapshot has dependent clones"), 16, Class::InUse),
        ("", format!("cannot destroy '{path}': volume has children"), 14, Class::InUse),
        ("", "cannot rollback: more recent snapshots or bookmarks exist".into(), 14, Class::InUse),
        ("", "Target iqn.2005:x is in use.".into(), 14, Class::InUse),
        ("", format!("cannot create '{path}': out of space"), 28, Class::NoSpace),
        (
            "pool_dataset_create.volsize",
            "must be a multiple of the block".into(),
            22,
            Class::Invalid,
        ),
    ];
    for (field, message, errno, class) in table {
        let failure = refused(refusal(field, &message, errno)).unwrap_err();
        assert_eq!(failure.class, class, "{message}");
        assert!(failure.words.as_ref().is_some_and(|words| words.contains(&message)), "{failure}");
    }
}

/// The trace of an error quotes whatever the array's code said on its way: it decides nothing.
#[test]
fn a_trace_is_not_read() {
    let error = json!({ "code": -32001, "message": "Method call error",
        "data": { "reason": "[EFAULT] it broke", "trace": "FileNotFoundError: not found" } });
    let rest = json!({ "message": "it broke", "errno": 14, "traceback": "not found" });
    let failure = refused(Reply::Err(422, rest, error)).unwrap_err();
    assert_eq!(failure.class, Class::Unknown, "it may have been done, and was not \"not found\"");
}

/// Somebody gave up waiting, and the work goes on: not a failure, and never done again blindly.
#[test]
fn a_gateway_that_gave_up_and_an_inner_error_leave_the_outcome_open() {
    for status in [500, 502, 504] {
        let error = json!({ "code": -32603, "message": "Internal error" });
        let failure = refused(Reply::Err(status, json!("gateway"), error)).unwrap_err();
        assert_eq!(failure.class, Class::Unknown, "{status}");
    }
}

#[test]
fn a_promotion_of_what_is_no_clone_any_more_is_done() {
    let path = volume(2).id;
    let rest = format!("POST /pool/dataset/id/{}/promote", encoded(&path));
    let reply = refusal("", &format!("cannot promote '{path}': not a cloned filesystem"), 22);
    let step = step(rest, json!({}), "pool.dataset.promote", json!([path]), Value::Null);
    both(vec![Step { reply, ..step }], |cx, array| {
        Box::pin(async move { array.promote(cx, &volume(2)).await })
    })
    .unwrap();
}
