//! What is sent for each primitive, in both forms, and how many requests it takes.

use array_kit::array::{Array as _, New, Volume};
use array_kit::outcome::Class;
use plugin_sdk::model::Bytes;
use serde_json::{Value, json};

use crate::script::{FOLDER, both, encoded, name, step, volume};

const TEXT: &str = r#"{"v":1}"#;

fn new(name: &str) -> New<'_> {
    New { name, size: Bytes(1 << 30), pool: Some("tank/vms"), metadata: TEXT }
}

/// A zvol as the array describes it.
fn zvol(path: &str, size: u64) -> Value {
    json!({
        "id": path, "name": path, "type": "VOLUME", "pool": "tank", "locked": false,
        "volsize": { "rawvalue": size.to_string(), "parsed": size, "value": "1G", "source": "LOCAL" },
        "used": { "rawvalue": "65536" }, "usedbydataset": { "rawvalue": "57344" },
        "origin": { "rawvalue": "", "value": "" },
        "user_properties": {
            "storage-manager:vdi": { "value": TEXT, "rawvalue": TEXT, "source": "LOCAL" },
        },
    })
}

fn snapshot(path: &str, size: u64) -> Value {
    json!({
        "id": path, "snapshot_name": path.split('@').next_back(), "dataset": path.split('@').next(),
        "createtxg": "77", "type": "SNAPSHOT",
        "properties": {
            "volsize": { "rawvalue": size.to_string() }, "used": { "rawvalue": "0" },
            "storage-manager:vdi": { "rawvalue": TEXT, "source": "LOCAL" },
        },
    })
}

fn flat_query(path: &str) -> (String, Value) {
    let rest = format!("GET /pool/dataset?id={}&extra.retrieve_children=false", encoded(path));
    (rest, json!([[["id", "=", path]], { "extra": { "retrieve_children": false } }]))
}

#[test]
fn a_volume_is_made_thin_with_its_text_by_one_request() {
    let path = volume(1).id;
    let body = json!({
        "name": path, "type": "VOLUME", "volsize": 1 << 30, "volblocksize": "16K", "sparse": true,
        "user_properties": [{ "key": "storage-manager:vdi", "value": TEXT }],
    });
    let reply = zvol(&path, 1 << 30);
    let steps =
        vec![step("POST /pool/dataset", body.clone(), "pool.dataset.create", json!([body]), reply)];
    let made =
        both(steps, |cx, array| Box::pin(async move { array.create(cx, &new(&name(1))).await }));
    let made = made.unwrap();
    assert_eq!((made.id, made.size), (path, Bytes(1 << 30)));
    assert_eq!(made.metadata.as_deref(), Some(TEXT));
    assert_eq!((made.used, made.origin), (Some(Bytes(57344)), None));
}

#[test]
fn the_record_of_an_sr_is_the_dataset_of_its_volumes() {
    let body = json!({
        "name": FOLDER, "type": "FILESYSTEM",
        "user_properties": [{ "key": "storage-manager:vdi", "value": TEXT }],
    });
    let reply = json!({ "id": FOLDER, "type": "FILESYSTEM" });
    let steps =
        vec![step("POST /pool/dataset", body.clone(), "pool.dataset.create", json!([body]), reply)];
    let made = both(steps, |cx, array| {
        Box::pin(async move {
            let record = FOLDER.rsplit('/').next().unwrap();
            array.create(cx, &new(record)).await
        })
    });
    assert_eq!(made.unwrap().id, FOLDER);
}

#[test]
fn a_volume_is_asked_for_by_its_path() {
    let path = volume(1).id;
    let (rest, params) = flat_query(&path);
    let steps =
        vec![step(rest, Value::Null, "pool.dataset.query", params, json!([zvol(&path, 5)]))];
    let found = both(steps, |cx, array| Box::pin(async move { array.get(cx, &name(1)).await }));
    assert_eq!(found.unwrap().name, name(1));
}

#[test]
fn a_volume_that_is_not_there_is_not_found() {
    let (rest, params) = flat_query(&volume(1).id);
    let steps = vec![step(rest, Value::Null, "pool.dataset.query", params, json!([]))];
    let found = both(steps, |cx, array| Box::pin(async move { array.get(cx, &name(1)).await }));
    assert_eq!(found.unwrap_err().class, Class::NotFound);
}

/// The query of a listing's page.
fn page(what: &str, prefix: &str, flat: bool, offset: usize) -> (String, Value) {
    let extra = if flat { "&extra.retrieve_children=false" } else { "" };
    let rest = format!(
        "GET /{what}?id__startswith={}{extra}&limit=1000&offset={offset}&sort=id",
        encoded(prefix)
    );
    let mut options = json!({ "limit": 1000, "offset": offset, "order_by": ["id"] });
    if flat {
        options["extra"] = json!({ "retrieve_children": false });
    }
    (rest, json!([[["id", "^", prefix]], options]))
}

/// Each page begins with the last object of the one before: nothing has moved meanwhile.
#[test]
fn volumes_are_listed_in_pages_that_overlap() {
    let all: Vec<Value> = (0..2500).map(|n| zvol(&volume(n).id, 1 << 20)).collect();
    let prefix = format!("{FOLDER}/smv-");
    let mut steps = Vec::new();
    for offset in [0, 999, 1998] {
        let (rest, params) = page("pool/dataset", &prefix, true, offset);
        let part = &all[offset..all.len().min(offset + 1000)];
        steps.push(step(rest, Value::Null, "pool.dataset.query", params, json!(part)));
    }
    let found = both(steps, |cx, array| Box::pin(async move { array.list(cx, "smv-").await }));
    let found = found.unwrap();
    let names: std::collections::BTreeSet<_> = found.iter().map(|one| &one.name).collect();
    assert_eq!((found.len(), names.len()), (2500, 2500));
}

#[test]
fn a_volume_grows_to_a_size_in_bytes() {
    let path = volume(1).id;
    let body = json!({ "volsize": 2_u64 << 30 });
    let rest = format!("PUT /pool/dataset/id/{}", encoded(&path));
    let reply = zvol(&path, 2 << 30);
    let steps = vec![step(rest, body.clone(), "pool.dataset.update", json!([path, body]), reply)];
    let size = both(steps, |cx, array| {
        Box::pin(async move { array.resize(cx, &volume(1), Bytes(2 << 30)).await })
    });
    assert_eq!(size.unwrap(), Some(Bytes(2 << 30)));
}

#[test]
fn a_snapshot_is_taken_with_its_text() {
    let path = volume(1).id;
    let body = json!({
        "dataset": path, "name": "sabc", "recursive": false,
        "properties": { "storage-manager:vdi": TEXT },
    });
    let reply = snapshot(&format!("{path}@sabc"), 1 << 30);
    let steps =
        vec![step("POST /zfs/snapshot", body.clone(), "zfs.snapshot.create", json!([body]), reply)];
    let made = both(steps, |cx, array| {
        Box::pin(async move {
            let new = New { name: "sabc", size: Bytes(1 << 30), pool: None, metadata: TEXT };
            array.snapshot(cx, &volume(1), &new).await
        })
    });
    let made = made.unwrap();
    assert_eq!((made.name.as_str(), made.order), ("sabc", 77));
    assert_eq!((made.snapshot_of, made.size), (Some(name(1)), Bytes(1 << 30)));
}

#[test]
fn a_snapshot_of_a_known_volume_is_asked_for_by_its_id() {
    let id = format!("{}@sabc", volume(1).id);
    let rest = format!("GET /zfs/snapshot?id={}", encoded(&id));
    let params = json!([[["id", "=", id]], {}]);
    let reply = json!([snapshot(&id, 1 << 30)]);
    let steps = vec![step(rest, Value::Null, "zfs.snapshot.query", params, reply)];
    let found = both(steps, |cx, array| {
        Box::pin(async move { array.get_snapshot(cx, "sabc", Some(&volume(1))).await })
    });
    assert_eq!(found.unwrap().metadata.as_deref(), Some(TEXT));
}

/// One of the same name elsewhere is not ours.
#[test]
fn a_snapshot_of_any_volume_of_the_sr_is_found_by_its_name() {
    let rest = "GET /zfs/snapshot?snapshot_name=sabc";
    let params = json!([[["snapshot_name", "=", "sabc"]], {}]);
    let reply = json!([
        snapshot("tank/vms@sabc", 1),
        snapshot(&format!("{FOLDER}x/other@sabc"), 1),
        snapshot(&format!("{}@sabc", volume(2).id), 1 << 30),
    ]);
    let steps = vec![step(rest, Value::Null, "zfs.snapshot.query", params, reply)];
    let found = both(steps, |cx, array| {
        Box::pin(async move { array.get_snapshot(cx, "sabc", None).await })
    });
    assert_eq!(found.unwrap().snapshot_of, Some(name(2)));
}

#[test]
fn snapshots_are_listed_of_the_sr_or_of_one_volume() {
    let (rest, params) = page("zfs/snapshot", &format!("{FOLDER}/"), false, 0);
    let own = format!("{}@", volume(1).id);
    let (rest_one, params_one) = page("zfs/snapshot", &own, false, 0);
    let reply = json!([snapshot(&format!("{own}a"), 1), snapshot(&format!("{own}b"), 1)]);
    let steps = vec![
        step(rest, Value::Null, "zfs.snapshot.query", params, reply.clone()),
        step(rest_one, Value::Null, "zfs.snapshot.query", params_one, reply),
    ];
    let found = both(steps, |cx, array| {
        Box::pin(async move {
            let all = array.snapshots(cx, None).await?;
            Ok([all, array.snapshots(cx, Some(&volume(1))).await?].map(|all| all.len()))
        })
    });
    assert_eq!(found.unwrap(), [2, 2]);
}

fn sample() -> Volume {
    let of = volume(1);
    let (id, name) = (format!("{}@sabc", of.id), "sabc".to_owned());
    Volume { id, name, snapshot_of: Some(of.name), size: of.size, ..Volume::default() }
}

/// Not deferred, or it would vanish some time later; not recursive.
#[test]
fn a_snapshot_is_removed_alone() {
    let options = json!({ "defer": false, "recursive": false });
    let rest = format!("DELETE /zfs/snapshot/id/{}", encoded(&sample().id));
    let params = json!([sample().id, options]);
    let steps = vec![step(rest, options, "zfs.snapshot.delete", params, json!(true))];
    both(steps, |cx, array| Box::pin(async move { array.delete_snapshot(cx, &sample()).await }))
        .unwrap();
}

#[test]
fn a_restore_asks_for_no_removal_of_newer_snapshots() {
    let options = json!({ "recursive": false, "recursive_clones": false, "force": false });
    let body = json!({ "id": sample().id, "options": options });
    let params = json!([sample().id, options]);
    let steps = vec![step(
        "POST /zfs/snapshot/rollback",
        body,
        "zfs.snapshot.rollback",
        params,
        Value::Null,
    )];
    both(steps, |cx, array| {
        Box::pin(async move { array.restore(cx, &volume(1), &sample()).await })
    })
    .unwrap();
}

#[test]
fn a_clone_is_one_request_with_its_text() {
    let body = json!({
        "snapshot": sample().id, "dataset_dst": volume(2).id,
        "dataset_properties": { "storage-manager:vdi": TEXT },
    });
    let params = json!([body]);
    let steps =
        vec![step("POST /zfs/snapshot/clone", body, "zfs.snapshot.clone", params, json!(true))];
    let made = both(steps, |cx, array| {
        Box::pin(async move { array.clone_of(cx, &sample(), &new(&name(2))).await })
    });
    let made = made.unwrap();
    assert_eq!((made.id, made.origin), (volume(2).id, Some(sample().id)));
}

#[test]
fn a_promotion_names_the_clone() {
    let path = volume(2).id;
    let rest = format!("POST /pool/dataset/id/{}/promote", encoded(&path));
    let steps = vec![step(rest, json!({}), "pool.dataset.promote", json!([path]), Value::Null)];
    both(steps, |cx, array| Box::pin(async move { array.promote(cx, &volume(2)).await })).unwrap();
}

#[test]
fn a_text_is_changed_alone_with_volumes_and_snapshots() {
    let property = json!({ "key": "storage-manager:vdi", "value": TEXT });
    let body = json!({ "user_properties_update": [property] });
    let path = volume(1).id;
    let of_volume = format!("PUT /pool/dataset/id/{}", encoded(&path));
    let of_snapshot = format!("PUT /zfs/snapshot/id/{}", encoded(&sample().id));
    let steps = vec![
        step(of_volume, body.clone(), "pool.dataset.update", json!([path, body]), json!({})),
        step(
            of_snapshot,
            body.clone(),
            "zfs.snapshot.update",
            json!([sample().id, body]),
            json!({}),
        ),
    ];
    both(steps, |cx, array| {
        Box::pin(async move {
            array.describe(cx, &volume(1), TEXT).await?;
            array.describe(cx, &sample(), TEXT).await
        })
    })
    .unwrap();
}

#[test]
fn the_capacity_is_that_of_the_dataset() {
    let (rest, params) = flat_query("tank/vms");
    let reply = json!([{ "id": "tank/vms", "type": "FILESYSTEM",
        "used": { "rawvalue": "100" }, "available": { "rawvalue": "900" } }]);
    let steps = vec![step(rest, Value::Null, "pool.dataset.query", params, reply)];
    let pools = both(steps, |cx, array| Box::pin(async move { array.pools(cx).await })).unwrap();
    assert_eq!((pools[0].size, pools[0].used), (Bytes(1000), Bytes(100)));
}
