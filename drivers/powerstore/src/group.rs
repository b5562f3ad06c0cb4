//! Several volumes at one instant.
//!
//! The array has snapshot sets for that, whose snapshots are not removed one by one, and go when their
//! group goes. So a volume group that lives for a moment is cloned instead: its clones leave their group
//! and are volumes like any other. One that has the name of a snapshot of ours is one.

use std::time::Duration;

use array_kit::prelude::*;
use array_kit::text::encode;

use crate::array::{NAMES, PowerStore};

/// What the clone of a group is called.
fn copy_of(name: &str) -> String {
    format!("{name}-c")
}

impl PowerStore {
    /// A group with its members; none if the array does not show it.
    async fn group(&self, cx: &Cx, name: &str) -> Outcome<Option<Value>> {
        let request = Request::get("group_get", "volume_group")
            .query("select", "volumes(id,name,protection_data)")
            .query("name", &format!("eq.{name}"));
        self.first(cx, request).await
    }

    /// Removes a group that may be gone.
    async fn remove_group(&self, cx: &Cx, name: &str, with_members: bool) -> Outcome<()> {
        let request = Request::delete("group_delete", &format!("volume_group/name:{name}"));
        let request = request.json(&json!({ "delete_members": with_members }));
        self.api.just(cx, request).await.or_absent().map(drop)
    }

    /// Makes the group, whose name is ours alone.
    pub(crate) async fn prepare(&self, cx: &Cx, group: &Group<'_>) -> Outcome<()> {
        let ids: Vec<&str> = group.parts.iter().map(|part| part.volume.id.as_str()).collect();
        let body = json!({
            "name": group.name, "volume_ids": ids, "is_write_order_consistent": true,
        });
        let request = Request::post("group_create", "volume_group").json(&body);
        self.api.just(cx, request).await.or_there().map(drop)
    }

    /// Clones the group, and names the clones.
    pub(crate) async fn catch(&self, cx: &Cx, group: &Group<'_>) -> Outcome<Vec<Volume>> {
        let copy = copy_of(group.name);
        let path = format!("volume_group/name:{}/clone", group.name);
        let request = Request::post("group_clone", &path).json(&json!({ "name": copy }));
        // There already: by an earlier request, whose answer was lost.
        self.api.just(cx, request).await.or_there()?;
        self.name_all(cx, group, &copy).await.map_err(Failure::partly)
    }

    async fn name_all(&self, cx: &Cx, group: &Group<'_>, copy: &str) -> Outcome<Vec<Volume>> {
        let look = |cx: Cx| async move { self.group(&cx, copy).await };
        let found = Ledger::new(cx, Settle::default()).appears(look).await?.unwrap_or_default();
        let mut made = Vec::new();
        for Part { volume, name, metadata } in group.parts {
            let of = |one: &&Value| one.text("protection_data.source_id") == volume.id;
            let one = found.list("volumes").iter().find(of).ok_or_else(|| {
                let fact = format!("the array does not show the clone of {}", volume.name);
                Failure::new(Class::Unknown).fact(fact)
            })?;
            let id = one.need("id")?.to_owned();
            let body = json!({ "name": name, "description": encode(name, metadata) });
            let request = Request::patch("group_name", "volume").segment(&id).json(&body);
            self.api.just(cx, request).await?;
            made.push(Volume {
                id,
                name: name.clone(),
                size: volume.size,
                snapshot_of: Some(volume.name.clone()),
                origin: Some(volume.id.clone()),
                metadata: Some(metadata.clone()),
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
            if self.group(cx, &copy).await?.is_some() {
                wait(cx, Settle::default().stale + Duration::from_millis(100)).await?;
            }
            let found = self.group(cx, &copy).await?.unwrap_or_default();
            let named = |one: &Value| NAMES.is(one.text("name"), Role::Snapshot);
            whole = found.list("volumes").iter().all(named);
        }
        self.remove_group(cx, &copy, !whole).await?;
        self.remove_group(cx, group.name, false).await
    }

    /// Takes a clone out of the group that it came into being in.
    pub(crate) async fn leave_group(&self, cx: &Cx, volume: &Volume) -> Outcome<()> {
        let request = Request::get("group_of", "volume")
            .query("select", "volume_groups(id)")
            .query("id", &format!("eq.{}", volume.id));
        let found = self.first(cx, request).await?.unwrap_or_default();
        for group in found.list("volume_groups") {
            let request = Request::post("group_leave", "volume_group").segment(group.need("id")?);
            let body = json!({ "volume_ids": [volume.id] });
            self.api.just(cx, request.then("/remove_members").json(&body)).await?;
        }
        Ok(())
    }
}
