//! Limits of a volume: a policy with a rule, both named after the numbers and shared by all volumes that
//! have the same.

use array_kit::array::Volume;
use array_kit::http::Request;
use array_kit::outcome::{Class, OrAbsent as _, Outcome};
use array_kit::qos::QosRule;
use plugin_sdk::Cx;
use plugin_sdk::model::vdi::Qos;
use serde_json::json;

use crate::api::{Api, path};

/// What the array counts bytes in.
pub(crate) const KILOBYTE: u64 = 1024;

/// `io_limit_rule_create`. A burst is a percentage of both limits there, so it is left at none.
pub(crate) fn rule() -> QosRule {
    let most = 2_147_483_646;
    QosRule {
        operations: Some(1..=most),
        bytes: Some(2000 * KILOBYTE..=most * KILOBYTE),
        bytes_unit: KILOBYTE,
        burst: false,
    }
}

fn name(qos: &Qos) -> String {
    let operations = qos.operations.map_or(0, |rate| rate.per_second);
    let kilobytes = qos.bytes.map_or(0, |rate| rate.per_second / KILOBYTE);
    format!("smq-{operations}-{kilobytes}")
}

/// Gives a volume the policy of these limits, and makes it where it is not there.
pub(crate) async fn set(api: &Api, cx: &Cx, volume: &Volume, wanted: &Qos) -> Outcome<()> {
    let mut policy = String::new();
    if !wanted.is_unlimited() {
        let name = name(wanted);
        let mut rule = json!({ "name": name, "type": "Absolute" });
        if let Some(rule) = rule.as_object_mut() {
            let kilobytes = wanted.bytes.map(|rate| rate.per_second / KILOBYTE);
            rule.extend(
                wanted.operations.map(|rate| ("max_iops".to_owned(), json!(rate.per_second))),
            );
            rule.extend(kilobytes.map(|limit| ("max_bw".to_owned(), json!(limit))));
        }
        policy = format!("name:{name}");
        let of_rule = json!({ "name": name, "io_limit_rule_id": policy });
        there(api, cx, "rule_create", "io_limit_rule", &rule).await?;
        there(api, cx, "policy_create", "policy", &of_rule).await?;
    }
    let request = Request::patch("set_qos", &path("volume")).segment(&volume.id);
    api.just(cx, request.json(&json!({ "qos_performance_policy_id": policy }))).await?;
    if volume.qos == *wanted { Ok(()) } else { release(api, cx, &volume.qos).await }
}

/// Makes what may be there: of that name it is the same.
async fn there(
    api: &Api,
    cx: &Cx,
    operation: &'static str,
    resource: &str,
    body: &serde_json::Value,
) -> Outcome<()> {
    match api.just(cx, Request::post(operation, &path(resource)).json(body)).await {
        Err(failure) if failure.class == Class::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Removes the policy of these limits, if no volume has it any more.
pub(crate) async fn release(api: &Api, cx: &Cx, of: &Qos) -> Outcome<()> {
    if of.is_unlimited() {
        return Ok(());
    }
    for resource in ["policy", "io_limit_rule"] {
        let place = path(&format!("{resource}/name:{}", name(of)));
        match api.just(cx, Request::delete("policy_delete", &place)).await.or_absent() {
            Err(failure) if failure.class == Class::InUse => return Ok(()),
            other => other?,
        };
    }
    Ok(())
}
