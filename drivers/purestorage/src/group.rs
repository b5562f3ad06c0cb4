//! Several volumes at one instant: a protection group that lives for a moment. Its snapshots would go
//! only together, so each is copied to a volume of its own, a frozen copy.

use array_kit::prelude::*;

use crate::array::PureStorage;

/// The suffix of a group's snapshot.
const INSTANT: &str = "instant";

impl PureStorage {
    /// Makes the group, whose name is ours alone.
    pub(crate) async fn prepare(&self, cx: &Cx, group: &Group<'_>) -> Outcome<()> {
        let request = Request::post("group", "protection-groups").query("names", group.name);
        self.api.just(cx, request).await.or_there()?;
        for part in group.parts {
            let request = Request::post("member", "protection-groups/volumes")
                .query("group_names", group.name)
                .query("member_names", &part.volume.name);
            self.api.just(cx, request).await.or_there()?;
        }
        Ok(())
    }

    pub(crate) async fn catch(&self, cx: &Cx, group: &Group<'_>) -> Outcome<Vec<Volume>> {
        let request = Request::post("instant", "protection-group-snapshots");
        let request = request.query("source_names", group.name).json(&json!({ "suffix": INSTANT }));
        // There already: an earlier request arrived. The instant has passed, and was one.
        self.api.just(cx, request).await.or_there()?;
        let mut made = Vec::new();
        for Part { volume, name, .. } in group.parts {
            let from = format!("{}.{INSTANT}.{}", group.name, volume.name);
            let copied = match self.freeze(cx, &from, volume, name).await {
                Err(failure) if failure.class == Class::AlreadyExists => {
                    self.get_snapshot(cx, name, Some(volume)).await
                }
                other => other,
            };
            let snapshot_of = Some(volume.name.clone());
            made.push(Volume { snapshot_of, ..copied.map_err(Failure::partly)? });
        }
        Ok(made)
    }

    pub(crate) async fn let_go(&self, cx: &Cx, group: &Group<'_>) -> Outcome<()> {
        let request = Request::patch("destroy", "protection-groups");
        let request = request.query("names", group.name).json(&json!({ "destroyed": true }));
        self.api.just(cx, request).await.or_absent()?;
        let request = Request::delete("eradicate", "protection-groups").query("names", group.name);
        self.api.just(cx, request).await.or_absent().map(drop)
    }
}
