//! `/policy` and `/io_limit_rule`: limits of throughput, from release 4.0 on.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::failure::{Failure, POLICY_NAME, RULE_NAME};
use super::group::Group;
use super::resource::{object, text};
use super::schema::{POLICY_CREATE, POLICY_MODIFY, RULE_CREATE, RULE_MODIFY, check};
use crate::core::{Array, Change, Record, Volume};

/// A rule with limits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Rule(pub(super) Map<String, Value>);

impl Record for Rule {
    const TABLE: &'static str = "powerstore.io_limit_rule";
}

/// A policy, and the rule that it has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Policy(pub(super) Map<String, Value>, String);

impl Record for Policy {
    const TABLE: &'static str = "powerstore.policy";
}

impl Policy {
    /// The id of its rule.
    pub(super) fn rule(&self) -> &str {
        &self.1
    }

    /// The id of a policy by id or name.
    pub(super) fn id(change: &Change<'_>, wanted: &str) -> Result<String, Failure> {
        id::<Self>(change, "policy", wanted, |policy| &policy.0)
    }
}

fn id<R: Record>(
    change: &Change<'_>,
    resource: &str,
    wanted: &str,
    fields: impl Fn(&R) -> &Map<String, Value>,
) -> Result<String, Failure> {
    let all = change.all::<R>();
    let is = |id: &str, row: &R| match wanted.strip_prefix("name:") {
        Some(name) => text(fields(row), "name") == name,
        None => id == wanted,
    };
    let found = all.iter().find(|(id, row)| is(id, row)).map(|(id, _)| id.clone());
    found.ok_or_else(|| Failure::no_instance(resource, wanted))
}

fn rule_id(change: &Change<'_>, wanted: &str) -> Result<String, Failure> {
    id::<Rule>(change, "io_limit_rule", wanted, |rule| &rule.0)
}

fn member<'a>(body: &'a Value, name: &str) -> &'a str {
    body.get(name).and_then(Value::as_str).unwrap_or("")
}

fn taken(name: &str, code: &'static str) -> Failure {
    Failure::new(422, code, format!("The name {name} is already in use")).about(name)
}

pub(super) fn create_rule(array: &Array, body: &Value) -> Result<Value, Failure> {
    check(RULE_CREATE, body)?;
    let id = Uuid::new_v4().to_string();
    if body.get("max_iops").is_none() && body.get("max_bw").is_none() {
        return Err(Failure::invalid("One of max_iops and max_bw must be given"));
    }
    array.change(|change| {
        let name = member(body, "name");
        if rule_id(change, &format!("name:{name}")).is_ok() {
            return Err(taken(name, RULE_NAME));
        }
        let get = |name: &str| body.get(name).cloned().unwrap_or(Value::Null);
        let fields = object(json!({
            "id": id, "name": name, "type": get("type"), "max_iops": get("max_iops"),
            "max_bw": get("max_bw"),
            "burst_percentage": body.get("burst_percentage").cloned().unwrap_or_else(|| json!(0)),
            "type_l10n": get("type"),
        }));
        change.put::<_, Failure>(&id, &Rule(fields))
    })?;
    Ok(json!({ "id": id }))
}

pub(super) fn modify_rule(array: &Array, wanted: &str, body: &Value) -> Result<Value, Failure> {
    check(RULE_MODIFY, body)?;
    array.change(|change| {
        let id = rule_id(change, wanted)?;
        let rule = change.get::<Rule>(&id);
        let mut rule = rule
            .map(|rule| (*rule).clone())
            .ok_or_else(|| Failure::no_instance("io_limit_rule", &id))?;
        rule.0.extend(object(body.clone()));
        let none = |name: &str| rule.0.get(name).is_none_or(Value::is_null);
        if none("max_iops") && none("max_bw") {
            return Err(Failure::invalid("One of max_iops and max_bw must be left"));
        }
        change.put::<_, Failure>(&id, &rule)
    })?;
    Ok(Value::Null)
}

pub(super) fn delete_rule(array: &Array, wanted: &str) -> Result<Value, Failure> {
    array.change(|change| {
        let id = rule_id(change, wanted)?;
        if change.all::<Policy>().iter().any(|(_, policy)| policy.1 == id) {
            let text = format!("The rule {id} is used by a policy");
            return Err(Failure::failed(text).about(&id));
        }
        change.remove::<Rule>(&id);
        Ok(Value::Null)
    })
}

pub(super) fn create(array: &Array, body: &Value) -> Result<Value, Failure> {
    check(POLICY_CREATE, body)?;
    let id = Uuid::new_v4().to_string();
    array.change(|change| {
        let name = member(body, "name");
        if Policy::id(change, &format!("name:{name}")).is_ok() {
            return Err(taken(name, POLICY_NAME));
        }
        // Those of protection need rules that are not here.
        let rule = rule_id(change, member(body, "io_limit_rule_id"))?;
        let fields = object(json!({
            "id": id, "name": name, "description": body.get("description"), "type": "QoS",
            "managed_by": "User", "is_read_only": false, "type_l10n": "QoS",
        }));
        change.put::<_, Failure>(&id, &Policy(fields, rule))
    })?;
    Ok(json!({ "id": id }))
}

pub(super) fn modify(array: &Array, wanted: &str, body: &Value) -> Result<Value, Failure> {
    check(POLICY_MODIFY, body)?;
    array.change(|change| {
        let id = Policy::id(change, wanted)?;
        let policy = change.get::<Policy>(&id);
        let mut policy = policy
            .map(|policy| (*policy).clone())
            .ok_or_else(|| Failure::no_instance("policy", &id))?;
        for name in ["name", "description"] {
            if let Some(value) = body.get(name) {
                policy.0.insert(name.to_owned(), value.clone());
            }
        }
        if !member(body, "io_limit_rule_id").is_empty() {
            policy.1 = rule_id(change, member(body, "io_limit_rule_id"))?;
        }
        change.put::<_, Failure>(&id, &policy)
    })?;
    Ok(Value::Null)
}

pub(super) fn delete(array: &Array, wanted: &str) -> Result<Value, Failure> {
    array.change(|change| {
        let id = Policy::id(change, wanted)?;
        let used = |fields: &Map<String, Value>| text(fields, "qos_performance_policy_id") == id;
        let volumes = change.all::<Volume>();
        if volumes.iter().any(|(_, volume)| used(&volume.attributes))
            || change.all::<Group>().iter().any(|(_, group)| used(&group.0))
        {
            let text = format!("The policy {id} is assigned to a storage resource");
            return Err(Failure::failed(text).about(&id));
        }
        change.remove::<Policy>(&id);
        Ok(Value::Null)
    })
}
