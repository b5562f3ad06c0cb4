//! Several volumes at one instant.
//!
//! The array has snapshot sets for that, whose snapshots are not removed one by one, and go when their
//! group goes. So a volume group that lives for a moment is cloned instead: its clones leave their group
//! and are volumes like any other. One that has the name of a snapshot of ours is one.

use std::time::Duration;

use array_kit::array::{Group, Volume};
use array_kit::http::Request;
use array_kit::ledger::{Ledger, Settle};
use array_kit::names::Role;
use array_kit::outcome::{Class, Failure, OrAbsent as _, Outcome};
use array_kit::retry::wait;
use array_kit::text::encode;
use plugin_sdk::Cx;
use serde_json::{Value, json};

use crate::api::{Api, path};
use crate::array::{NAMES, PowerStore};
use crate::object::{list, text};

/// What the clone of a group is called.
fn copy_of(name: &str) -> String {
    format!("{name}-c")
}

/// A request for a group by its name.
fn of_group(
    request: fn(&'static str, &str) -> Request,
    operation: &'static str,
    name: &str,
) -> Request {
    request(operation, &path(&format!("volume_group/name:{name}")))
}

/// The members of a group; none if the array does not show it.
async fn members(api: &Api, cx: &Cx, name: &str) -> Outcome<Option<Value>> {
    let query = [("select", "volumes(id,name,protection_data)"), ("name", &*format!("eq.{name}"))];
    let found: Vec<Value> = api.few(cx, "group_get", "volume_group", &query).await?;
    Ok(found.into_iter().next())
}

/// Removes a group that may be gone.
async fn remove(api: &Api, cx: &Cx, name: &str, with_members: bool) -> Outcome<()> {
    let request = of_group(Request::delete, "group_delete", name);
    let request = request.json(&json!({ "delete_members": with_members }));
    api.just(cx, request).await.or_absent().map(drop)
}

impl PowerStore {
    /// Makes the group, whose name is ours alone.
    pub(crate) async fn prepare(&self, cx: &Cx, group: &Group<'_>) -> Outcome<()> {
        let ids: Vec<&str> = group.parts.iter().map(|part| part.volume.id.as_str()).collect();
        let body = json!({
            "name": group.name, "volume_ids": ids, "is_write_order_consistent": true,
        });
        let request = Request::post("group_create", &path("volume_group")).json(&body);
        match self.api.just(cx, request).await {
            Err(failure) if failure.class == Class::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Clones the group, and names the clones.
    pub(crate) async fn catch(&self, cx: &Cx, group: &Group<'_>) -> Outcome<Vec<Volume>> {
        let copy = copy_of(group.name);
        let request = of_group(Request::post, "group_clone", group.name).then("/clone");
        match self.api.just(cx, request.json(&json!({ "name": copy }))).await {
            // By an earlier request, whose answer was lost.
            Err(failure) if failure.class == Class::AlreadyExists => {}
            other => other?,
        }
        self.name_all(cx, group, &copy).await.map_err(Failure::partly)
    }

    async fn name_all(&self, cx: &Cx, group: &Group<'_>, copy: &str) -> Outcome<Vec<Volume>> {
        let look = |cx: Cx| async move { members(&self.api, &cx, copy).await };
        let found = Ledger::new(cx, Settle::default()).appears(look).await?.unwrap_or_default();
        let mut made = Vec::new();
        for part in group.parts {
            let of = |one: &&Value| {
                let data = one.get("protection_data").unwrap_or(&Value::Null);
                text(data, "source_id") == part.volume.id
            };
            let one = list(&found, "volumes").iter().find(of).ok_or_else(|| {
                let fact = format!("the array does not show the clone of {}", part.volume.name);
                Failure::new(Class::Unknown).fact(fact)
            })?;
            let id = text(one, "id").to_owned();
            let description = encode(&part.name, &part.metadata);
            let body = json!({ "name": part.name, "description": description });
            let request = Request::patch("group_name", &path("volume")).segment(&id).json(&body);
            self.api.just(cx, request).await?;
            made.push(Volume {
                id,
                name: part.name.clone(),
                size: part.volume.size,
                snapshot_of: Some(part.volume.name.clone()),
                origin: Some(part.volume.id.clone()),
                metadata: Some(part.metadata.clone()),
                ..Volume::default()
            });
        }
        *self.named.lock().await = Some(group.name.to_owned());
        Ok(made)
    }

    /// Removes both groups, and with them the clones that nobody has named.
    pub(crate) async fn let_go(&self, cx: &Cx, group: &Group<'_>) -> Outcome<()> {
        let copy = copy_of(group.name);
        let mut whole = self.named.lock().await.take().is_some_and(|name| name == group.name);
        if !whole {
            // Reads must not be from before a name was given: the clone would be removed.
            if members(&self.api, cx, &copy).await?.is_some() {
                wait(cx, Settle::default().stale + Duration::from_millis(100)).await?;
            }
            let found = members(&self.api, cx, &copy).await?.unwrap_or_default();
            let named = |one: &Value| {
                NAMES.parse(text(one, "name")).is_some_and(|named| named.role == Role::Snapshot)
            };
            whole = list(&found, "volumes").iter().all(named);
        }
        remove(&self.api, cx, &copy, !whole).await?;
        remove(&self.api, cx, group.name, false).await
    }

    /// Takes a clone out of the group that it came into being in.
    pub(crate) async fn leave_group(&self, cx: &Cx, volume: &Volume) -> Outcome<()> {
        let query = [("select", "volume_groups(id)"), ("id", &*format!("eq.{}", volume.id))];
        let found: Vec<Value> = self.api.few(cx, "group_of", "volume", &query).await?;
        for group in found.iter().flat_map(|one| list(one, "volume_groups")) {
            let request = Request::post("group_leave", &path("volume_group"));
            let request = request.segment(text(group, "id")).then("/remove_members");
            self.api.just(cx, request.json(&json!({ "volume_ids": [volume.id] }))).await?;
        }
        Ok(())
    }
}
