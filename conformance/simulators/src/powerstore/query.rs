//! Queries in the manner of PostgREST: `select`, filters, `order`, `limit`, `offset`.

use std::cmp::Ordering;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::failure::{BAD_RANGE, Failure};
use super::resource::{Resource, Show};

/// Objects on a page, where nothing else is asked for.
const PAGE: usize = 1000;
/// Most objects on a page.
const LARGEST: usize = 2000;

/// A part of `select`.
#[derive(Clone, Debug)]
enum Pick {
    All,
    Field(Vec<String>),
    Embed(String, Vec<Pick>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Eq,
    Gt,
    Lt,
    Like { case: bool },
    In,
    Is,
    Contains,
}

#[derive(Clone, Debug)]
struct Filter {
    path: Vec<String>,
    /// What the operator says is turned around.
    not: bool,
    op: Op,
    value: String,
}

/// What is asked of a collection.
#[derive(Clone, Debug)]
pub(super) struct Query {
    select: Vec<Pick>,
    filters: Vec<Filter>,
    order: Vec<(Vec<String>, bool)>,
    limit: usize,
    offset: usize,
}

/// A page of an answer.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub(super) items: Vec<Value>,
    pub(super) first: usize,
    pub(super) total: usize,
}

/// The parameters of a URL, decoded.
pub(super) fn pairs(query: &str) -> Vec<(String, String)> {
    let decode =
        |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

fn path_of(text: &str) -> Vec<String> {
    text.split("->").map(|step| step.trim_start_matches('>').to_owned()).collect()
}

fn known(resource: &Resource, path: &[String]) -> Result<(), Failure> {
    let name = path.first().map_or("", String::as_str);
    if resource.fields.contains(&name) {
        return Ok(());
    }
    let text = format!("The property {name} of resource {} does not exist", resource.name);
    Err(Failure::invalid(text).about(name))
}

impl Query {
    /// Reads the parameters of a request for a collection.
    pub(super) fn of(resource: &Resource, pairs: &[(String, String)]) -> Result<Self, Failure> {
        let mut query = Self {
            select: vec![Pick::Field(vec!["id".to_owned()])],
            filters: Vec::new(),
            order: Vec::new(),
            limit: PAGE,
            offset: 0,
        };
        let number = |name: &str, text: &str| {
            let wrong = || Failure::invalid(format!("{name} is no number: {text}")).about(name);
            text.parse::<usize>().map_err(|_| wrong())
        };
        for (name, value) in pairs {
            match name.as_str() {
                "select" => query.select = select(resource, value)?,
                "limit" => query.limit = number(name, value)?.clamp(1, LARGEST),
                "offset" => query.offset = number(name, value)?,
                "order" => {
                    for part in value.split(',') {
                        let down = part.strip_suffix(".desc");
                        let field = down.or(part.strip_suffix(".asc")).unwrap_or(part);
                        let path = path_of(field);
                        known(resource, &path)?;
                        query.order.push((path, down.is_some()));
                    }
                }
                _ => query.filters.push(filter(resource, name, value)?),
            }
        }
        Ok(query)
    }

    /// Reads those of a request for one object: it has a `select` alone.
    pub(super) fn of_one(resource: &Resource, pairs: &[(String, String)]) -> Result<Self, Failure> {
        match pairs.iter().find(|(name, _)| name != "select") {
            None => Self::of(resource, pairs),
            Some((name, _)) => {
                let text = format!("The parameter {name} is not allowed for one instance");
                Err(Failure::invalid(text).about(name))
            }
        }
    }

    /// The value that a field must have, if a filter says so: then not all objects need be built.
    pub(super) fn exactly(&self, field: &str) -> Option<&str> {
        let all = self.filters.iter();
        let mut own = all.filter(|one| one.op == Op::Eq && !one.not && one.path.len() == 1);
        own.find(|one| one.path.first().is_some_and(|name| name == field))
            .map(|one| one.value.as_str())
    }

    /// Answers from all objects that there are.
    pub(super) fn run(
        &self,
        show: &Show<'_>,
        resource: &Resource,
        all: Vec<Map<String, Value>>,
    ) -> Result<Page, Failure> {
        let holds = |object: &Map<String, Value>| self.filters.iter().all(|one| one.holds(object));
        let mut found: Vec<_> = all.into_iter().filter(holds).collect();
        for (path, down) in self.order.iter().rev() {
            found.sort_by(|a, b| {
                let order = compare(at(a, path), at(b, path));
                if *down { order.reverse() } else { order }
            });
        }
        let total = found.len();
        if self.offset > 0 && self.offset >= total {
            let text = format!("The range {} is past the end, {total}", self.offset);
            return Err(Failure::new(416, BAD_RANGE, text));
        }
        let page = found.into_iter().skip(self.offset).take(self.limit);
        let items = page.map(|object| self.pick(show, resource, &object)).collect();
        Ok(Page { items, first: self.offset, total })
    }

    /// What is asked for of one object.
    pub(super) fn pick(
        &self,
        show: &Show<'_>,
        resource: &Resource,
        object: &Map<String, Value>,
    ) -> Value {
        picked(show, resource, object, &self.select)
    }
}

fn picked(
    show: &Show<'_>,
    resource: &Resource,
    object: &Map<String, Value>,
    picks: &[Pick],
) -> Value {
    let mut answer = Map::new();
    for pick in picks {
        match pick {
            Pick::All => answer.extend(object.clone()),
            Pick::Field(path) => {
                let name = path.last().cloned().unwrap_or_default();
                answer.insert(name, at(object, path).cloned().unwrap_or(Value::Null));
            }
            Pick::Embed(name, inner) => {
                let Some(target) = resource.target(name) else { continue };
                let pick = |value: Value| match value {
                    Value::Object(object) => picked(show, target, &object, inner),
                    other => other,
                };
                let value = match show.related(resource, object, name) {
                    Value::Array(all) => Value::Array(all.into_iter().map(pick).collect()),
                    one => pick(one),
                };
                answer.insert(name.clone(), value);
            }
        }
    }
    Value::Object(answer)
}

/// `id,name,protection_data->>source_id,mapped_volumes(host_id,host(name))`
fn select(resource: &Resource, text: &str) -> Result<Vec<Pick>, Failure> {
    let mut picks = Vec::new();
    for part in parts(text)? {
        let part = part.trim();
        if part == "*" {
            picks.push(Pick::All);
        } else if let Some((name, inner)) = part.split_once('(') {
            let Some(target) = resource.target(name) else {
                let text = format!("{} has no relation {name}", resource.name);
                return Err(Failure::invalid(text).about(name));
            };
            let inner = inner.strip_suffix(')').unwrap_or(inner);
            picks.push(Pick::Embed(name.to_owned(), select(target, inner)?));
        } else {
            let path = path_of(part);
            known(resource, &path)?;
            picks.push(Pick::Field(path));
        }
    }
    Ok(picks)
}

/// Splits at the commas that are not within parentheses.
fn parts(text: &str) -> Result<Vec<&str>, Failure> {
    let (mut depth, mut start, mut all) = (0_i32, 0, Vec::new());
    for (index, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                all.push(text.get(start..index).unwrap_or(""));
                start = index + 1;
            }
            _ => {}
        }
        if depth < 0 {
            break;
        }
    }
    if depth != 0 {
        return Err(Failure::invalid(format!("select has unequal parentheses: {text}")));
    }
    all.push(text.get(start..).unwrap_or(""));
    Ok(all)
}

fn filter(resource: &Resource, name: &str, text: &str) -> Result<Filter, Failure> {
    let path = path_of(name);
    known(resource, &path)?;
    let (mut not, rest) = match text.strip_prefix("not.") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let wrong = || Failure::invalid(format!("{text} is no condition for {name}")).about(name);
    let (op, value) = rest.split_once('.').ok_or_else(wrong)?;
    let op = match op {
        "eq" => Op::Eq,
        "gt" => Op::Gt,
        "lt" => Op::Lt,
        "like" => Op::Like { case: true },
        "ilike" => Op::Like { case: false },
        "in" => Op::In,
        "is" => Op::Is,
        "cs" => Op::Contains,
        "neq" | "gte" | "lte" => {
            not = !not;
            match op {
                "neq" => Op::Eq,
                "gte" => Op::Lt,
                _ => Op::Gt,
            }
        }
        _ => return Err(wrong()),
    };
    let listed = match op {
        Op::In => value.starts_with('(') && value.ends_with(')'),
        Op::Contains => value.starts_with('{') && value.ends_with('}'),
        _ => true,
    };
    if !listed {
        return Err(wrong());
    }
    Ok(Filter { path, not, op, value: value.to_owned() })
}

impl Filter {
    fn holds(&self, object: &Map<String, Value>) -> bool {
        let value = at(object, &self.path).unwrap_or(&Value::Null);
        let text = plain(value);
        let inner = || self.value.get(1..self.value.len().saturating_sub(1)).unwrap_or("");
        // As in SQL, nothing is known of what is null.
        let known = !value.is_null();
        let is = match self.op {
            Op::Eq => {
                text.eq_ignore_ascii_case(&self.value) && (text == self.value || value.is_boolean())
            }
            Op::Gt => order(&text, &self.value) == Ordering::Greater,
            Op::Lt => order(&text, &self.value) == Ordering::Less,
            Op::Like { case: true } => like(&self.value, &text),
            Op::Like { case: false } => like(&self.value.to_lowercase(), &text.to_lowercase()),
            Op::In => inner().split(',').any(|one| one.trim_matches('"') == text),
            Op::Is => return (self.value.eq_ignore_ascii_case(&text)) != self.not,
            Op::Contains => inner().split(',').all(|one| {
                value.as_array().is_some_and(|all| all.iter().any(|has| plain(has) == one))
            }),
        };
        known && is != self.not
    }
}

/// `*` stands for anything.
fn like(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or("")) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

fn at<'a>(object: &'a Map<String, Value>, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(object.get(first)?, |value, step| match step.parse::<usize>() {
        Ok(index) => value.get(index),
        Err(_) => value.get(step),
    })
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn order(a: &str, b: &str) -> Ordering {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
        _ => a.cmp(b),
    }
}

fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => order(&plain(a), &plain(b)),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_matched_at_both_ends() {
        for (pattern, text, matches) in [
            ("smv-*", "smv-1", true),
            ("smv-*", "xsmv-1", false),
            ("smv", "smv-1", false),
            ("*a*b", "xaxb", true),
            ("*a*b", "xaxbx", false),
            ("*", "", true),
        ] {
            assert_eq!(like(pattern, text), matches, "{pattern} {text}");
        }
    }

    #[test]
    fn commas_within_parentheses_belong_to_what_is_embedded() {
        assert_eq!(parts("id,a(b,c(d)),e").unwrap(), ["id", "a(b,c(d))", "e"]);
        assert!(parts("a(b").is_err() && parts("a)b(").is_err());
    }
}
