//! Snapshots that were taken for us and have no name of ours yet.
//!
//! The array names a snapshot by its volume and the time; a command of its own gives it our name. Who
//! dies in between leaves one that looks like anybody's. So it has its text from its first moment: by
//! that, another host knows it too.

use array_kit::array::{New, Volume};
use array_kit::outcome::{OrAbsent as _, Outcome};
use array_kit::retry::Effect;
use plugin_sdk::Cx;

use super::{EqualLogic, NAMES, restore};
use crate::cli::command::{Object, word};
use crate::text;

/// Whether a snapshot's name is one that the array chose: by the volume and the time. Of a long name it
/// may keep the beginning.
pub(super) fn is_chosen(volume: &str, name: &str) -> bool {
    let beginning: String = volume.chars().take(20).collect();
    NAMES.parse(name).is_none() && name.starts_with(&beginning)
}

impl EqualLogic {
    /// Removes a snapshot that is not ours by name.
    pub(super) async fn forget_snapshot(&self, cx: &Cx, volume: &str, name: &str) -> Outcome<()> {
        let rest = format!("snapshot delete {}", word("name", name)?);
        let object = &Object::of(volume);
        let gone = self.on(cx, object, "delete_snapshot", Effect::Changes, &rest).await;
        gone.or_absent().map(drop)
    }

    /// The descriptions of snapshots of a volume; of those that are there.
    async fn texts_of(
        &self,
        cx: &Cx,
        volume: &str,
        names: Vec<String>,
    ) -> Outcome<Vec<(String, String)>> {
        self.each(names, |name: String| async move {
            let object = Object { volume: volume.to_owned(), snapshot: Some(name.clone()) };
            let details = self.details(cx, &object).await.or_absent()?;
            let text =
                |d: crate::cli::parse::Details| d.get("description").unwrap_or("").to_owned();
            Ok(details.map(|details| (name, text(details))))
        })
        .await
    }

    /// See [`array_kit::array::Array::taken_for`].
    pub(super) async fn find_taken(
        &self,
        cx: &Cx,
        volume: &Volume,
        new: &New<'_>,
        mut names: Vec<String>,
    ) -> Outcome<Option<String>> {
        names.retain(|name| is_chosen(&volume.name, name));
        // Guests may be waiting: the latest, as many as can be asked for at once. By a schedule there
        // may be hundreds.
        names.sort_unstable_by(|a, b| b.cmp(a));
        names.truncate(self.sessions.at_once());
        let wanted = text::encode(new.name, new.metadata);
        let texts = self.texts_of(cx, &volume.name, names).await?;
        Ok(texts.into_iter().find(|(_, text)| *text == wanted).map(|(name, _)| name))
    }

    /// See [`array_kit::array::Array::remove_forgotten`].
    pub(super) async fn remove_unnamed(
        &self,
        cx: &Cx,
        volume: &Volume,
        mut unnamed: Vec<Volume>,
    ) -> Outcome<Vec<Volume>> {
        let gone = restore::remove_left(self, cx, &volume.name).await?;
        unnamed.retain(|one| !gone.contains(&one.name));
        let Some(vdi) = NAMES.parse(&volume.name).map(|named| named.uuid) else {
            return Ok(unnamed);
        };
        let names = unnamed.iter().map(|one| one.name.clone());
        let names = names.filter(|name| is_chosen(&volume.name, name)).collect();
        let mut texts = self.texts_of(cx, &volume.name, names).await?;
        texts.retain(|(_, text)| text::is_of_snapshot(text, vdi));
        for (name, _) in &texts {
            self.forget_snapshot(cx, &volume.name, name).await?;
        }
        unnamed.retain(|one| texts.iter().all(|(name, _)| *name != one.name));
        Ok(unnamed)
    }
}
