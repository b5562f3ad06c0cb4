//! A request, taken apart and checked; and listings in pages.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::failure::Refused;
use super::filter::Filter;
use super::schema::Endpoint;
use crate::core::Array;
use crate::http::{Ask, Say};

/// Most objects in an answer, where the setting `page` says nothing else.
const PAGE: usize = 1000;

/// What is asked.
pub(super) struct Request<'a> {
    pub(super) array: &'a Array,
    query: Vec<(String, String)>,
    pub(super) body: Value,
    /// Whether pages go on by a token.
    tokens: bool,
    pub(super) version: u32,
}

/// An item with what it is sorted by, where nothing else is asked for.
pub(super) type Sorted = (String, Value);

impl<'a> Request<'a> {
    pub(super) fn new(
        array: &'a Array,
        ask: &Ask,
        endpoint: &Endpoint,
        version: u32,
    ) -> Result<Self, Refused> {
        let decode = |text: &str| {
            let plain = text.replace('+', " ");
            percent_decode_str(&plain).decode_utf8_lossy().into_owned()
        };
        let pairs = ask.query.split('&').filter(|pair| !pair.is_empty());
        let query: Vec<(String, String)> = pairs
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(name), decode(value))
            })
            .collect();
        endpoint.check_query(&query, version)?;
        let body = endpoint.check_body(&ask.body)?;
        Ok(Self { array, query, body, tokens: endpoint.token <= version, version })
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.text(name).map(|value| value == "true")
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        let values = self.text(name).map(|value| value.split(',').map(str::to_owned).collect());
        values.unwrap_or_default()
    }

    /// Names or ids, and whether they are ids: of a request that needs one of the two.
    pub(super) fn targets(&self, kind: &str) -> Result<(Vec<String>, bool), Refused> {
        let (ids, names) = (format!("{kind}ids"), format!("{kind}names"));
        let found = match (self.list(&ids), self.list(&names)) {
            (all, none) if none.is_empty() && !all.is_empty() => (all, true),
            (_, all) if !all.is_empty() => (all, false),
            _ => return Err(Refused::of("Names or ids are required.", &names)),
        };
        Ok(found)
    }

    pub(super) fn member(&self, name: &str) -> Option<&Value> {
        self.body.get(name)
    }

    /// A listing: filtered, sorted, and one page of it. `items` are those that names and ids of the
    /// query let through.
    pub(super) fn page(&self, mut items: Vec<Sorted>) -> Result<Say, Refused> {
        if let Some(filter) = self.text("filter") {
            let filter = Filter::parse(filter)?;
            items.retain(|(_, item)| filter.lets(item));
        }
        items.sort_by(|(one, _), (other, _)| one.cmp(other));
        let sort = self.list("sort");
        for field in sort.iter().rev() {
            let (field, down) =
                field.strip_suffix('-').map_or((field.as_str(), false), |f| (f, true));
            let plain = |c: char| c.is_ascii_lowercase() || c == '_';
            if field.is_empty() || !field.chars().all(plain) {
                return Err(Refused::of("Invalid value of a query parameter.", "sort"));
            }
            let key = |item: &Value| item.get(field).map(ToString::to_string).unwrap_or_default();
            items.sort_by(|(_, one), (_, other)| {
                let order = key(one).cmp(&key(other));
                if down { order.reverse() } else { order }
            });
        }
        let count = items.len();
        let total = match self.flag("total_item_count") {
            Some(true) => json!(count),
            _ if self.text("limit") == Some("0") => json!(count),
            _ => Value::Null,
        };
        let number = |name: &str| self.text(name).and_then(|text| text.parse::<usize>().ok());
        let most = self.array.settings().vendor.get("page").and_then(Value::as_u64);
        let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(PAGE);
        let limit = number("limit").unwrap_or(most).min(most);
        if let Some(token) = self.text("continuation_token") {
            let last = URL_SAFE_NO_PAD.decode(token).ok();
            let last = last.and_then(|bytes| String::from_utf8(bytes).ok());
            let last = last.ok_or_else(|| Refused::of("Invalid continuation token.", token))?;
            items.retain(|(key, _)| *key > last);
        } else {
            items.drain(..number("offset").unwrap_or(0).min(items.len()));
        }
        let more = items.len() > limit;
        items.truncate(limit);
        let last = items.last().filter(|_| more && self.tokens && sort.is_empty());
        let token = last.map(|(key, _)| URL_SAFE_NO_PAD.encode(key));
        let mut shown: Vec<Value> = items.into_iter().map(|(_, item)| item).collect();
        if self.flag("total_only") == Some(true) {
            shown.clear();
        }
        let mut say = Say::json(
            200,
            &json!({
                "items": shown, "more_items_remaining": more, "total_item_count": total,
                "continuation_token": token,
            }),
        );
        say.headers.extend(token.map(|token| ("x-next-token".to_owned(), token)));
        Ok(say)
    }
}

/// The answer of a change.
pub(super) fn done(items: Vec<Value>) -> Say {
    Say::json(200, &json!({ "items": Value::Array(items) }))
}
