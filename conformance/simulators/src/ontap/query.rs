//! Collections: what is asked of them, fields, pages.

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Map, Value, json};

use super::failure::Failure;

/// What a path's query says.
#[derive(Clone, Debug, Default)]
pub(super) struct Query {
    filters: Vec<(String, String)>,
    fields: Vec<String>,
    most: Option<usize>,
    start: Option<String>,
    /// The page of that start was answered empty before.
    looked: bool,
    pub(super) return_records: Option<bool>,
    /// Seconds to wait for a job.
    pub(super) wait: u64,
    pub(super) force: bool,
}

fn decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Collections answer these without being asked: the rest is named in `fields`.
const ALWAYS: &[&str] = &["uuid", "name"];
/// What costs more and is answered only by name.
const COSTLY: &[&str] = &["attributes", "lun_maps", "auto_delete"];

impl Query {
    /// From the query of a URL. `known` are the fields that can be filtered by.
    pub(super) fn read(text: &str, known: &[&str]) -> Result<Self, Failure> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name), decode(value));
            let flag = || match value.as_str() {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(Failure::value(&name, "<true|false>")),
            };
            let number = || value.parse::<u64>().map_err(|_| Failure::value(&name, "<number>"));
            match name.as_str() {
                "fields" => {
                    query.fields = value.split(',').map(str::to_owned).collect();
                    for field in &query.fields {
                        let begins = |all: &&str| {
                            *all == field
                                || all.starts_with(&format!("{field}."))
                                || field.starts_with(&format!("{all}."))
                        };
                        if !field.starts_with('*') && !known.iter().any(begins) {
                            let text =
                                format!("The value \"{field}\" is invalid for field \"fields\".");
                            return Err(Failure::new(400, "262197", text).at("fields"));
                        }
                    }
                }
                "max_records" => query.most = Some(number()? as usize),
                "return_records" => query.return_records = Some(flag()?),
                "return_timeout" => {
                    query.wait = number()?;
                    if query.wait > 120 {
                        return Err(Failure::value(&name, "<0..120>"));
                    }
                }
                "order_by" => {}
                "allow_delete_while_mapped" | "force" => query.force = flag()?,
                "start.key" => query.start = Some(value),
                "start.looked" => query.looked = true,
                _ if known.contains(&name.as_str()) => query.filters.push((name, value)),
                _ => return Err(Failure::unexpected(&name)),
            }
        }
        Ok(query)
    }

    /// Whether a field, or one below it, is asked for by name.
    pub(super) fn asks(&self, name: &str) -> bool {
        self.fields
            .iter()
            .any(|field| field.starts_with('*') || field.split('.').next() == Some(name))
    }

    /// A page of records that are answered as they are.
    pub(super) fn page_whole(&self, path: &str, records: Vec<(String, Value)>) -> Value {
        let whole = Self { fields: vec!["**".to_owned()], ..self.clone() };
        whole.page(path, false, records)
    }

    fn matches(&self, record: &Value) -> bool {
        self.filters.iter().all(|(name, wanted)| {
            let found = path(record, name);
            wanted.split('|').any(|one| found.iter().any(|value| like(one, value)))
        })
    }

    /// The value that a field must have, without wildcards.
    pub(super) fn exactly(&self, field: &str) -> Option<&str> {
        let (_, value) = self.filters.iter().find(|(name, _)| name == field)?;
        (!value.contains(['*', '|', '!', '>', '<'])).then_some(value)
    }

    /// Whether an object of that key and name can match.
    pub(super) fn may_be(&self, field: &str, value: &str) -> bool {
        let mut filters = self.filters.iter().filter(|(name, _)| name == field);
        filters.all(|(_, wanted)| wanted.split('|').any(|one| like(one, value)))
    }

    /// What of a record is answered.
    pub(super) fn shown(&self, record: Value, single: bool) -> Value {
        let whole = single || self.fields.iter().any(|field| field.starts_with('*'));
        let Value::Object(members) = record else { return record };
        let named =
            |name: &str| self.fields.iter().any(|field| field.split('.').next() == Some(name));
        let kept = members.into_iter().filter(|(name, _)| {
            let name = name.as_str();
            let costly = COSTLY.contains(&name) && !self.fields.iter().any(|f| f == "**");
            named(name) || ALWAYS.contains(&name) || (whole && !costly)
        });
        Value::Object(kept.collect())
    }

    /// A page of a collection. `records` are sorted by key; `path` is that of the collection.
    /// `empty`: each page is preceded by an empty one with a link to it, as a node that has not
    /// answered in time makes it.
    pub(super) fn page(&self, path: &str, empty: bool, records: Vec<(String, Value)>) -> Value {
        let all = records.into_iter().filter(|(_, record)| self.matches(record));
        let from = self.start.clone().unwrap_or_default();
        let mut left = all.skip_while(|(key, _)| *key < from).peekable();
        let link = |key: &str, looked: bool| {
            let mut text = format!("{path}?start.key={}", encode(key));
            if looked {
                text.push_str("&start.looked=1");
            }
            let fields = (!self.fields.is_empty()).then(|| ("fields", self.fields.join(",")));
            let most = self.most.map(|most| ("max_records", most.to_string()));
            for (name, value) in fields.into_iter().chain(most) {
                text.extend(["&", name, "=", &encode(&value)]);
            }
            for (name, value) in &self.filters {
                text.extend(["&", name, "=", &encode(value)]);
            }
            json!({ "self": { "href": path }, "next": { "href": text } })
        };
        if empty
            && !self.looked
            && let Some((key, _)) = left.peek()
        {
            return json!({ "records": [], "num_records": 0, "_links": link(key, true) });
        }
        let most = self.most.unwrap_or(10_000).clamp(1, 10_000);
        let page: Vec<Value> =
            left.by_ref().take(most).map(|(_, record)| self.shown(record, false)).collect();
        let links = match left.peek() {
            Some((key, _)) => link(key, false),
            None => json!({ "self": { "href": path } }),
        };
        let count = page.len();
        let mut answer = Map::new();
        if self.return_records != Some(false) {
            answer.insert("records".to_owned(), Value::Array(page));
        }
        answer.insert("num_records".to_owned(), json!(count));
        answer.insert("_links".to_owned(), links);
        Value::Object(answer)
    }
}

/// The texts at a dotted path; those of a list are each a value.
fn path(record: &Value, name: &str) -> Vec<String> {
    let mut at = vec![record];
    for part in name.split('.') {
        at = at
            .into_iter()
            .flat_map(|value| match value {
                Value::Array(list) => list.iter().collect(),
                other => vec![other],
            })
            .filter_map(|value| value.get(part))
            .collect();
    }
    let flat = at.into_iter().flat_map(|value| match value {
        Value::Array(list) => list.clone(),
        other => vec![other.clone()],
    });
    flat.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).collect()
}

/// Whether a text is what a query value with `*` asks for.
fn like(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}
