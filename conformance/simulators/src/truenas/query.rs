//! Queries: filters and options, as both protocols have them.

use std::cmp::Ordering;

use serde_json::{Map, Value, json};

use super::failure::{EINVAL, Failure};

/// What a query asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct Query {
    filters: Vec<Value>,
    options: Map<String, Value>,
}

const OPTIONS: &[&str] = &[
    "relationships",
    "extend",
    "extend_context",
    "prefix",
    "extra",
    "order_by",
    "select",
    "count",
    "get",
    "offset",
    "limit",
    "force_sql_filters",
];

impl Query {
    /// From the parameters of a method.
    pub(super) fn of_params(params: &[Value]) -> Result<Self, Failure> {
        let wrong = |at: &str, what: &str| Failure::field(at, what, EINVAL);
        let filters = match params.first() {
            None => Vec::new(),
            Some(Value::Array(filters)) => filters.clone(),
            Some(_) => return Err(wrong("query-filters", "Not a list")),
        };
        let options = match params.get(1) {
            None => Map::new(),
            Some(Value::Object(options)) => options.clone(),
            Some(_) => return Err(wrong("query-options", "A dict was expected")),
        };
        if let Some(name) = options.keys().find(|name| !OPTIONS.contains(&name.as_str())) {
            return Err(wrong(&format!("query-options.{name}"), "Field was not expected"));
        }
        if params.len() > 2 {
            return Err(wrong("query-options", "Too many arguments"));
        }
        Ok(Self { filters, options })
    }

    /// From the query of a URL: `limit`, `offset`, `sort`, `count`, `extra.*`, and filters such as
    /// `name=x` and `id__startswith=x`.
    pub(super) fn of_url(pairs: &[(String, String)]) -> Self {
        let mut query = Self::default();
        let mut extra = Map::new();
        for (key, text) in pairs {
            match key.as_str() {
                "limit" | "offset" | "count" | "get" => {
                    query.options.insert(key.clone(), convert(text));
                }
                "sort" => {
                    let fields: Vec<&str> = text.split(',').collect();
                    query.options.insert("order_by".to_owned(), json!(fields));
                }
                _ => {
                    if let Some(name) = key.strip_prefix("extra.") {
                        extra.insert(name.to_owned(), convert(text));
                        continue;
                    }
                    let (field, operator) = key.split_once("__").unwrap_or((key, "eq"));
                    let operator = match operator {
                        "neq" => "!=",
                        "gt" => ">",
                        "gte" => ">=",
                        "lt" => "<",
                        "lte" => "<=",
                        "startswith" => "^",
                        "endswith" => "$",
                        "in" => "in",
                        "nin" => "nin",
                        _ => "=",
                    };
                    let value = match operator {
                        "in" | "nin" => json!(text.split(',').map(convert).collect::<Vec<_>>()),
                        _ => convert(text),
                    };
                    query.filters.push(json!([field, operator, value]));
                }
            }
        }
        if !extra.is_empty() {
            query.options.insert("extra".to_owned(), Value::Object(extra));
        }
        query
    }

    /// The object of an id.
    pub(super) fn of_id(id: &Value) -> Self {
        Self { filters: vec![json!(["id", "=", id])], options: Map::new() }
    }

    /// Something of the `extra` options.
    pub(super) fn extra(&self, name: &str) -> Option<&Value> {
        self.options.get("extra")?.get(name)
    }

    /// The value that a field must have, if one filter says so: what an answer need not look
    /// through all objects for.
    pub(super) fn exactly(&self, field: &str) -> Option<&str> {
        let filter = self.filters.iter().find(|filter| filter.get(0) == Some(&json!(field)));
        filter.filter(|filter| filter.get(1) == Some(&json!("=")))?.get(2)?.as_str()
    }

    fn number(&self, name: &str) -> usize {
        self.options.get(name).and_then(Value::as_u64).unwrap_or(0) as usize
    }

    fn is(&self, name: &str) -> bool {
        self.options.get(name) == Some(&Value::Bool(true))
    }

    /// Answers from all objects that there are.
    pub(super) fn run(&self, all: Vec<Value>) -> Result<Value, Failure> {
        let mut found = Vec::new();
        for object in all {
            if self.matches(&object)? {
                found.push(object);
            }
        }
        for field in
            self.options.get("order_by").and_then(Value::as_array).into_iter().flatten().rev()
        {
            let field = field.as_str().unwrap_or("");
            let (name, down) = field.strip_prefix('-').map_or((field, false), |name| (name, true));
            found.sort_by(|a, b| {
                let order = compare(path(a, name), path(b, name));
                if down { order.reverse() } else { order }
            });
        }
        if self.is("count") {
            return Ok(json!(found.len()));
        }
        if self.is("get") {
            let first = found.into_iter().next();
            return first.ok_or_else(|| Failure::NoInstance("MatchNotFound: object".to_owned()));
        }
        let mut found: Vec<Value> = found.into_iter().skip(self.number("offset")).collect();
        if self.number("limit") > 0 {
            found.truncate(self.number("limit"));
        }
        if let Some(select) = self.options.get("select").and_then(Value::as_array)
            && !select.is_empty()
        {
            found = found.iter().map(|object| selected(object, select)).collect();
        }
        Ok(Value::Array(found))
    }

    fn matches(&self, object: &Value) -> Result<bool, Failure> {
        for filter in &self.filters {
            if !holds(filter, object)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn selected(object: &Value, select: &[Value]) -> Value {
    let fields = select.iter().filter_map(Value::as_str);
    let fields = fields.map(|name| {
        let last = name.rsplit('.').next().unwrap_or(name);
        (last.to_owned(), path(object, name).cloned().unwrap_or(Value::Null))
    });
    Value::Object(fields.collect())
}

fn holds(filter: &Value, object: &Value) -> Result<bool, Failure> {
    let wrong = || Failure::field("query-filters", format!("Invalid filter {filter}"), EINVAL);
    let parts = filter.as_array().ok_or_else(wrong)?;
    if let [Value::String(or), Value::Array(branches)] = parts.as_slice()
        && or == "OR"
    {
        for branch in branches {
            if holds(branch, object)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    let [Value::String(field), Value::String(operator), wanted] = parts.as_slice() else {
        return Err(wrong());
    };
    let Some(value) = path(object, field) else { return Ok(false) };
    let (text, part) = (value.as_str().unwrap_or(""), wanted.as_str().unwrap_or("\0"));
    let among = || wanted.as_array().is_some_and(|list| list.contains(value));
    Ok(match operator.as_str() {
        "=" => value == wanted,
        "!=" => value != wanted,
        ">" => compare(Some(value), Some(wanted)) == Ordering::Greater,
        ">=" => compare(Some(value), Some(wanted)) != Ordering::Less,
        "<" => compare(Some(value), Some(wanted)) == Ordering::Less,
        "<=" => compare(Some(value), Some(wanted)) != Ordering::Greater,
        "^" => text.starts_with(part),
        "!^" => !text.starts_with(part),
        "$" => text.ends_with(part),
        "!$" => !text.ends_with(part),
        "in" => among(),
        "nin" => !among(),
        _ => return Err(wrong()),
    })
}

fn path<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    name.split('.').try_fold(object, |object, part| object.get(part))
}

fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => {
            a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal)
        }
        (Some(Value::String(a)), Some(Value::String(b))) => a.cmp(b),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

/// Numbers, truth and null are told from texts by their look.
fn convert(text: &str) -> Value {
    match text {
        "true" | "True" => Value::Bool(true),
        "false" | "False" => Value::Bool(false),
        "null" | "None" => Value::Null,
        _ => match text.parse::<i64>() {
            Ok(number) if !text.starts_with('+') => json!(number),
            _ => json!(text),
        },
    }
}
