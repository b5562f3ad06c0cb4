//! Limits of a volume: a policy with a rule, both named after the numbers and shared by all volumes that
//! have the same.

use array_kit::prelude::*;

use crate::array::PowerStore;

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

/// The limits of a volume.
pub(crate) fn limits(volume: &Value) -> Qos {
    let rule = volume.at("qos_performance_policy.io_limit_rule");
    // By the gigabyte it is another limit for each size.
    if rule.text("type") == "Density" {
        return Qos::default();
    }
    let bytes = rule.number("max_bw").map(|kilobytes| kilobytes.saturating_mul(KILOBYTE));
    Qos { operations: qos::rate(rule.number("max_iops")), bytes: qos::rate(bytes) }
}

impl PowerStore {
    /// Gives a volume the policy of these limits, and makes it where it is not there.
    pub(crate) async fn limit(&self, cx: &Cx, volume: &Volume, wanted: &Qos) -> Outcome<()> {
        let mut policy = String::new();
        if let Some(name) = qos::policy(wanted, KILOBYTE) {
            policy = format!("name:{name}");
            let mut rule = json!({ "name": name, "type": "Absolute" });
            let (operations, kilobytes) = qos::numbers(wanted, KILOBYTE);
            for (member, limit) in [("max_iops", operations), ("max_bw", kilobytes)] {
                if let Some(limit) = limit {
                    rule[member] = json!(limit);
                }
            }
            let request = Request::post("rule_create", "io_limit_rule").json(&rule);
            self.api.just(cx, request).await.or_there()?;
            let body = json!({ "name": name, "io_limit_rule_id": policy });
            let request = Request::post("policy_create", "policy").json(&body);
            self.api.just(cx, request).await.or_there()?;
        }
        let request = Request::patch("set_qos", "volume").segment(&volume.id);
        self.api.just(cx, request.json(&json!({ "qos_performance_policy_id": policy }))).await?;
        if volume.qos == *wanted { Ok(()) } else { self.release_limits(cx, &volume.qos).await }
    }

    /// Removes the policy of these limits, if no volume has it any more.
    pub(crate) async fn release_limits(&self, cx: &Cx, of: &Qos) -> Outcome<()> {
        let Some(name) = qos::policy(of, KILOBYTE) else { return Ok(()) };
        for resource in ["policy", "io_limit_rule"] {
            let request = Request::delete("policy_delete", &format!("{resource}/name:{name}"));
            let removed = self.api.just(cx, request).await.or_absent();
            if removed.unless_in_use()?.is_none() {
                break;
            }
        }
        Ok(())
    }
}
