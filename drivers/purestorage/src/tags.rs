//! The texts of volumes and snapshots, in tags.

use std::collections::BTreeMap;

use array_kit::pieces;
use array_kit::prelude::*;

use crate::array::{PureStorage, place};

/// A tag's value has 256 characters at most; a text has a digit before it and takes four tags, of the
/// five that older arrays allow.
const PIECE: usize = 255;
/// Most characters of a text.
pub(crate) const TEXT: usize = 4 * PIECE;

impl PureStorage {
    fn tag(&self, number: &str) -> String {
        format!("{}{number}", self.codec.prefix(Role::Disk))
    }

    pub(crate) async fn write_text(&self, cx: &Cx, of: &Volume, text: &str) -> Outcome<()> {
        let (path, id) = place(of);
        let tag = |(number, value): (usize, String)| {
            let key = self.tag(&number.to_string());
            // A copy of the volume must not have the text of its source.
            json!({ "key": key, "value": value, "copyable": false })
        };
        let tags: Vec<Value> = pieces::cut(text, PIECE).into_iter().enumerate().map(tag).collect();
        let request = Request::put("describe", &format!("{path}/tags/batch"));
        self.api.just(cx, request.query("resource_ids", id).json(&tags)).await
    }

    /// The texts of one object, or of all.
    pub(crate) async fn read_texts(&self, cx: &Cx, of: Option<&Volume>) -> Outcome<Texts> {
        if let Some((path, id)) = of.map(place) {
            return self.texts(cx, path, Some(id)).await;
        }
        let mut texts = self.texts(cx, "volumes", None).await?;
        if self.tags_snapshots() {
            texts.extend(self.texts(cx, "volume-snapshots", None).await?);
        }
        Ok(texts)
    }

    async fn texts(&self, cx: &Cx, path: &str, of: Option<&str>) -> Outcome<Texts> {
        let mark = if path == "volumes" { "" } else { "@" };
        let prefix = self.tag("");
        let mut request = Request::get("tags", &format!("{path}/tags"));
        request = request.query("filter", &format!("key='{prefix}*'"));
        if let Some(id) = of {
            request = request.query("resource_ids", id);
        } else if !self.tags_snapshots() {
            // Its pages go by offset: what moves under that shows in the count.
            request = request.query("total_item_count", "true");
        }
        let mut found: BTreeMap<String, BTreeMap<usize, String>> = BTreeMap::new();
        for tag in self.all(cx, request).await? {
            let number = tag.text("key").strip_prefix(&prefix);
            if let Some(number) = number.and_then(|number| number.parse().ok()) {
                let id = format!("{mark}{}", tag.need("resource.id")?);
                found.entry(id).or_default().insert(number, tag.text("value").to_owned());
            }
        }
        Ok(found.into_iter().map(|(id, pieces)| (id, pieces::join(&pieces))).collect())
    }
}
