//! Limits of a LUN: a QoS policy that is named after the numbers and shared by all LUNs that have the
//! same, with the numbers for each of them.

use array_kit::prelude::*;

use crate::array::{LUNS, Ontap};
use crate::object::{MEGABYTE, uuid};

const POLICIES: &str = "storage/qos/policies";

pub(crate) fn rule() -> QosRule {
    QosRule {
        operations: Some(1..=2_147_483_647),
        bytes: Some(MEGABYTE..=4_194_303 * MEGABYTE),
        bytes_unit: MEGABYTE,
        burst: false,
    }
}

impl Ontap {
    /// Gives a LUN the policy of these limits, and makes it where it is not there.
    pub(crate) async fn limit(&self, cx: &Cx, volume: &Volume, wanted: &Qos) -> Outcome<()> {
        let name = qos::policy(wanted, MEGABYTE);
        if let Some(name) = &name {
            let (operations, megabytes) = qos::numbers(wanted, MEGABYTE);
            let body = json!({
                "name": name, "svm": self.svm(),
                "fixed": {
                    "max_throughput_iops": operations.unwrap_or(0),
                    "max_throughput_mbps": megabytes.unwrap_or(0),
                    // For each of its LUNs, not for all of them together.
                    "capacity_shared": false,
                },
            });
            let request = Request::post("policy_create", POLICIES).json(&body);
            self.finish(cx, "policy_create", request).await.or_there()?;
        }
        let body = json!({ "qos_policy": { "name": name.unwrap_or_default() } });
        let request = Request::patch("qos", LUNS).segment(uuid(volume)).json(&body);
        self.api.just(cx, request).await?;
        if volume.qos == *wanted { Ok(()) } else { self.release_limits(cx, &volume.qos).await }
    }

    /// Removes a policy of limits that no LUN has any more. It is of no consequence if it stays.
    pub(crate) async fn release_limits(&self, cx: &Cx, of: &Qos) -> Outcome<()> {
        let Some(name) = qos::policy(of, MEGABYTE) else { return Ok(()) };
        let request = Request::get("policies", POLICIES).query("name", &name);
        for found in self.all(cx, request, "uuid,name,object_count").await? {
            if found.number("object_count") == Some(0) {
                let request = Request::delete("policy_delete", POLICIES);
                let request = request.segment(found.need("uuid")?);
                if let Err(failure) = self.finish(cx, "policy_delete", request).await {
                    plugin_sdk::tracing::info!(policy = name, "a policy stays: {failure}");
                }
            }
        }
        Ok(())
    }
}
