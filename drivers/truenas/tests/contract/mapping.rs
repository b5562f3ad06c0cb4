//! How volumes become LUNs, and cease to be: extents, associations, targets, initiator groups.

use array_kit::array::{Array as _, Mapping, Masking as _, Target};
use array_kit::outcome::Class;
use serde_json::{Value, json};

use crate::script::{DOOR, Step, both, encoded, initiator, name, refusal, step, volume};

/// A query of iSCSI objects by one field.
fn by(what: &'static str, method: &'static str, field: &str, value: &Value, reply: Value) -> Step {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let rest = format!("GET /iscsi/{what}?{field}={text}");
    step(rest, Value::Null, method, json!([[[field, "=", value]], {}]), reply)
}

fn no_extent() -> Step {
    by("extent", "iscsi.extent.query", "name", &json!(name(1)), json!([]))
}

fn removal() -> Step {
    let path = volume(1).id;
    let options = json!({ "recursive": false, "force": false });
    let rest = format!("DELETE /pool/dataset/id/{}", encoded(&path));
    step(rest, options.clone(), "pool.dataset.delete", json!([path, options]), json!(true))
}

/// Without `recursive` and `force`: snapshots and extents of others stay.
#[test]
fn a_volume_is_removed_alone() {
    let steps = vec![no_extent(), removal()];
    both(steps, |cx, array| Box::pin(async move { array.delete(cx, &volume(1)).await })).unwrap();
}

fn extent() -> Value {
    json!({
        "id": 7, "name": name(1), "type": "DISK", "disk": format!("zvol/{}", volume(1).id),
        "naa": "0x6589cfc0000007151aa56d2a04af84db", "serial": "0123456789abcde",
        "vendor": "TrueNAS", "enabled": true,
    })
}

fn the_extent() -> Step {
    by("extent", "iscsi.extent.query", "name", &json!(name(1)), json!([extent()]))
}

/// As [`the_extent`], of a volume that is not mapped.
fn the_idle_extent() -> Step {
    let mut idle = extent();
    idle["enabled"] = json!(false);
    by("extent", "iscsi.extent.query", "name", &json!(name(1)), json!([idle]))
}

fn extent_served(on: bool) -> Step {
    let body = json!({ "enabled": on });
    let params = json!([7, body]);
    step("PUT /iscsi/extent/id/7", body, "iscsi.extent.update", params, extent())
}

fn associations(reply: Value) -> Step {
    by("targetextent", "iscsi.targetextent.query", "extent", &json!(7), reply)
}

fn extent_removal() -> Step {
    let body = json!({ "remove": false, "force": false });
    let params = json!([7, false, false]);
    step("DELETE /iscsi/extent/id/7", body, "iscsi.extent.delete", params, json!(true))
}

#[test]
fn the_extent_of_a_volume_goes_before_it() {
    for extent in [the_extent(), the_idle_extent()] {
        let steps = vec![extent, associations(json!([])), extent_removal(), removal()];
        both(steps, |cx, array| Box::pin(async move { array.delete(cx, &volume(1)).await }))
            .unwrap();
    }
}

#[test]
fn a_volume_that_is_mapped_is_not_removed() {
    let mapped = json!([{ "id": 9, "target": 99, "extent": 7, "lunid": 0 }]);
    let steps = vec![the_extent(), associations(mapped)];
    let refused =
        both(steps, |cx, array| Box::pin(async move { array.delete(cx, &volume(1)).await }));
    assert_eq!(refused.unwrap_err().class, Class::InUse);
}

/// What this host needs before its first mapping, none of it there yet.
fn door() -> Vec<Step> {
    let portals = json!([{ "id": 3, "tag": 1, "comment": "", "listen": [
        { "ip": "0.0.0.0", "port": 3260 }, { "ip": "10.0.0.9", "port": 3261 },
    ] }]);
    let global = json!({ "id": 1, "basename": "iqn.2005-10.org.freenas.ctl", "listen_port": 3260 });
    let group = json!({ "initiators": [initiator().iqn], "comment": DOOR });
    let target = json!({
        "name": DOOR, "alias": null, "mode": "ISCSI",
        "groups": [{ "portal": 3, "initiator": 5, "authmethod": "NONE", "auth": null }],
    });
    let made = json!({ "id": 5, "initiators": [initiator().iqn], "comment": DOOR });
    let mut made_target = target.clone();
    made_target["id"] = json!(6);
    vec![
        step("GET /iscsi/portal", Value::Null, "iscsi.portal.query", json!([[], {}]), portals),
        step("GET /iscsi/global", Value::Null, "iscsi.global.config", json!([]), global),
        by("initiator", "iscsi.initiator.query", "comment", &json!(DOOR), json!([])),
        step(
            "POST /iscsi/initiator",
            group.clone(),
            "iscsi.initiator.create",
            json!([group]),
            made,
        ),
        by("target", "iscsi.target.query", "name", &json!(DOOR), json!([])),
        step(
            "POST /iscsi/target",
            target.clone(),
            "iscsi.target.create",
            json!([target]),
            made_target,
        ),
    ]
}

fn new_extent(reply: crate::script::Reply) -> Step {
    let body = json!({
        "name": name(1), "type": "DISK", "disk": format!("zvol/{}", volume(1).id),
        "blocksize": 512, "insecure_tpc": false, "xen": true, "rpm": "SSD", "ro": false,
    });
    let params = json!([body]);
    Step { reply, ..step("POST /iscsi/extent", body, "iscsi.extent.create", params, Value::Null) }
}

fn new_association(reply: crate::script::Reply) -> Step {
    let body = json!({ "target": 6, "extent": 7, "lunid": null });
    let params = json!([body]);
    let step =
        step("POST /iscsi/targetextent", body, "iscsi.targetextent.create", params, Value::Null);
    Step { reply, ..step }
}

fn expected() -> Mapping {
    let iqn = format!("iqn.2005-10.org.freenas.ctl:{DOOR}");
    let at = |portal: &str| Target { portal: portal.to_owned(), iqn: iqn.clone() };
    Mapping {
        lun: 4,
        scsi_id: "36589cfc0000007151aa56d2a04af84db".to_owned(),
        targets: vec![at("127.0.0.1:3260"), at("10.0.0.9:3261")],
    }
}

/// A group without initiators would admit everybody: it has this host's name, and no other.
#[test]
fn a_volume_is_mapped_to_this_host_alone_and_found_by_its_identity() {
    use crate::script::Reply::Ok as Done;
    let mapped = json!({ "id": 9, "target": 6, "extent": 7, "lunid": 4 });
    let mut steps = door();
    steps.extend([new_extent(Done(extent())), new_association(Done(mapped))]);
    let mapping = both(steps, |cx, array| {
        Box::pin(async move {
            array.grant(cx, &initiator()).await?;
            array.map(cx, &volume(1), &initiator()).await
        })
    });
    assert_eq!(mapping.unwrap(), expected());
}

#[test]
fn a_mapping_that_is_there_in_part_or_as_a_whole_is_taken_up() {
    let taken = refusal("iscsi_extent_create.name", "Extent name must be unique", 22);
    let inside =
        refusal("iscsi_targetextent_create.extent", "Extent is already in this target.", 22);
    let mapped = json!([
        { "id": 8, "target": 1, "extent": 7, "lunid": 0 },
        { "id": 9, "target": 6, "extent": 7, "lunid": 4 },
    ]);
    let mut steps = door();
    steps.extend([new_extent(taken), the_extent(), new_association(inside), associations(mapped)]);
    let mapping = both(steps, |cx, array| {
        Box::pin(async move { array.map(cx, &volume(1), &initiator()).await })
    });
    assert_eq!(mapping.unwrap(), expected());
}

/// The extent that it was mapped with: its NAA is the same.
#[test]
fn a_volume_that_was_mapped_before_has_the_same_identity() {
    use crate::script::Reply::Ok as Done;
    let taken = refusal("iscsi_extent_create.name", "Extent name must be unique", 22);
    let mapped = json!({ "id": 9, "target": 6, "extent": 7, "lunid": 4 });
    let mut steps = door();
    steps.extend([new_extent(taken), the_idle_extent(), extent_served(true)]);
    steps.push(new_association(Done(mapped)));
    let mapping = both(steps, |cx, array| {
        Box::pin(async move { array.map(cx, &volume(1), &initiator()).await })
    });
    assert_eq!(mapping.unwrap(), expected());
}

/// The target is in use while this host has other LUNs of it, so the association goes by force. The
/// extent stays, and is not served.
#[test]
fn an_unmapping_removes_the_association_and_keeps_the_extent() {
    let mapped = json!([{ "id": 9, "target": 6, "extent": 7, "lunid": 4 }]);
    let gone = step(
        "DELETE /iscsi/targetextent/id/9",
        json!(true),
        "iscsi.targetextent.delete",
        json!([9, true]),
        json!(true),
    );
    let target = json!([{ "id": 6, "name": DOOR, "groups": [] }]);
    let steps = vec![
        the_extent(),
        associations(mapped),
        by("target", "iscsi.target.query", "name", &json!(DOOR), target),
        gone,
        extent_served(false),
    ];
    both(steps, |cx, array| {
        Box::pin(async move { array.unmap(cx, &volume(1), &initiator()).await })
    })
    .unwrap();
}

#[test]
fn an_extent_that_another_host_uses_stays() {
    let mapped = json!([{ "id": 9, "target": 66, "extent": 7, "lunid": 4 }]);
    let steps = vec![
        the_extent(),
        associations(mapped),
        by("target", "iscsi.target.query", "name", &json!(DOOR), json!([])),
    ];
    both(steps, |cx, array| {
        Box::pin(async move { array.unmap(cx, &volume(1), &initiator()).await })
    })
    .unwrap();
}

#[test]
fn what_is_not_mapped_is_unmapped() {
    let never = vec![no_extent()];
    let no_more = vec![the_idle_extent(), associations(json!([]))];
    for steps in [never, no_more] {
        both(steps, |cx, array| {
            Box::pin(async move { array.unmap(cx, &volume(1), &initiator()).await })
        })
        .unwrap();
    }
}

#[test]
fn a_detach_of_the_sr_removes_target_and_initiator_group() {
    let target = json!([{ "id": 6, "name": DOOR, "groups": [] }]);
    let group = json!([{ "id": 5, "initiators": [], "comment": DOOR }]);
    let steps = vec![
        by("target", "iscsi.target.query", "name", &json!(DOOR), target),
        by("targetextent", "iscsi.targetextent.query", "target", &json!(6), json!([])),
        step(
            "DELETE /iscsi/target/id/6",
            json!(false),
            "iscsi.target.delete",
            json!([6, false]),
            json!(true),
        ),
        by("initiator", "iscsi.initiator.query", "comment", &json!(DOOR), group),
        step(
            "DELETE /iscsi/initiator/id/5",
            json!({}),
            "iscsi.initiator.delete",
            json!([5]),
            json!(true),
        ),
    ];
    both(steps, |cx, array| Box::pin(async move { array.revoke(cx, &initiator()).await })).unwrap();
}

#[test]
fn a_target_with_luns_stays() {
    let target = json!([{ "id": 6, "name": DOOR, "groups": [] }]);
    let mapped = json!([{ "id": 9, "target": 6, "extent": 7, "lunid": 4 }]);
    let steps = vec![
        by("target", "iscsi.target.query", "name", &json!(DOOR), target),
        by("targetextent", "iscsi.targetextent.query", "target", &json!(6), mapped),
    ];
    both(steps, |cx, array| Box::pin(async move { array.revoke(cx, &initiator()).await })).unwrap();
}

#[test]
fn everybody_who_reaches_a_volume_is_named() {
    let mapped = json!([
        { "id": 8, "target": 1, "extent": 7, "lunid": 0 },
        { "id": 9, "target": 6, "extent": 7, "lunid": 4 },
    ]);
    let targets = json!([
        { "id": 1, "groups": [{ "portal": 1, "initiator": null }] },
        { "id": 6, "groups": [{ "portal": 1, "initiator": 5 }] },
    ]);
    let groups = json!([{ "id": 5, "initiators": ["iqn.a:1", "iqn.a:2"] }]);
    let steps = vec![
        the_extent(),
        associations(mapped),
        step("GET /iscsi/target", Value::Null, "iscsi.target.query", json!([[], {}]), targets),
        step("GET /iscsi/initiator", Value::Null, "iscsi.initiator.query", json!([[], {}]), groups),
    ];
    let names =
        both(steps, |cx, array| Box::pin(async move { array.mappings(cx, &volume(1)).await }));
    assert_eq!(names.unwrap(), ["everybody", "iqn.a:1", "iqn.a:2"]);
}
