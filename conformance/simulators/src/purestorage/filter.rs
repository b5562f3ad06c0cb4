//! The parameter `filter`: `name='a*' and not is_local`, over the members of what is listed.

use serde_json::Value;

use super::failure::Refused;

/// A filter.
#[derive(Debug)]
pub(super) enum Filter {
    Any(Vec<Self>),
    All(Vec<Self>),
    Not(Box<Self>),
    /// A member that is true.
    Is(String),
    /// A member, how it is compared, and with what.
    Compares(String, Operator, Vec<String>),
}

/// How a member is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Operator {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    More,
    MoreOrEqual,
}

const OPERATORS: [(&str, Operator); 6] = [
    ("!=", Operator::Unequal),
    ("<=", Operator::LessOrEqual),
    (">=", Operator::MoreOrEqual),
    ("=", Operator::Equal),
    ("<", Operator::Less),
    (">", Operator::More),
];

fn wrong(rest: &str) -> Refused {
    Refused::of("Invalid filter.", rest)
}

impl Filter {
    pub(super) fn parse(text: &str) -> Result<Self, Refused> {
        let mut rest = text.trim();
        let filter = any(&mut rest)?;
        if rest.is_empty() { Ok(filter) } else { Err(wrong(rest)) }
    }

    pub(super) fn lets(&self, item: &Value) -> bool {
        match self {
            Self::Any(parts) => parts.iter().any(|part| part.lets(item)),
            Self::All(parts) => parts.iter().all(|part| part.lets(item)),
            Self::Not(part) => !part.lets(item),
            Self::Is(field) => member(item, field) == Some(&Value::Bool(true)),
            Self::Compares(field, operator, values) => {
                let found = member(item, field);
                let equal = values.iter().any(|value| found.is_some_and(|one| equals(one, value)));
                let order = |wanted: fn(f64, f64) -> bool| {
                    let found = found.and_then(Value::as_f64);
                    let value = values.first().and_then(|value| value.parse().ok());
                    found.zip(value).is_some_and(|(one, other)| wanted(one, other))
                };
                match operator {
                    Operator::Equal => equal,
                    Operator::Unequal => !equal,
                    Operator::Less => order(|one, other| one < other),
                    Operator::LessOrEqual => order(|one, other| one <= other),
                    Operator::More => order(|one, other| one > other),
                    Operator::MoreOrEqual => order(|one, other| one >= other),
                }
            }
        }
    }
}

fn member<'a>(item: &'a Value, field: &str) -> Option<&'a Value> {
    field.split('.').try_fold(item, |value, name| value.get(name))
}

fn equals(found: &Value, wanted: &str) -> bool {
    match found {
        Value::Array(list) => list.iter().any(|one| equals(one, wanted)),
        Value::String(text) => matches(&text.to_ascii_lowercase(), &wanted.to_ascii_lowercase()),
        other => {
            let text = other.to_string();
            text == wanted
        }
    }
}

/// Whether a text is like a pattern with `*` in it.
fn matches(text: &str, pattern: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return text == pattern };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or("");
    for part in parts {
        match text.find(part) {
            Some(at) => text = text.get(at + part.len()..).unwrap_or(""),
            None => return false,
        }
    }
    text.ends_with(last)
}

/// Takes a word off, if it is there as a whole.
fn word(rest: &mut &str, wanted: &str) -> bool {
    let Some(after) = rest.strip_prefix(wanted) else { return false };
    if after.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.') {
        return false;
    }
    *rest = after.trim_start();
    true
}

fn any(rest: &mut &str) -> Result<Filter, Refused> {
    let mut parts = vec![all(rest)?];
    while word(rest, "or") {
        parts.push(all(rest)?);
    }
    Ok(Filter::Any(parts))
}

fn all(rest: &mut &str) -> Result<Filter, Refused> {
    let mut parts = vec![one(rest)?];
    while word(rest, "and") {
        parts.push(one(rest)?);
    }
    Ok(Filter::All(parts))
}

fn one(rest: &mut &str) -> Result<Filter, Refused> {
    if word(rest, "not") {
        return Ok(Filter::Not(Box::new(one(rest)?)));
    }
    if let Some(after) = rest.strip_prefix('(') {
        *rest = after.trim_start();
        let inner = any(rest)?;
        *rest = rest.strip_prefix(')').ok_or_else(|| wrong(rest))?.trim_start();
        return Ok(inner);
    }
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.');
    let (field, after) = rest.split_at(end.unwrap_or(rest.len()));
    if field.is_empty() {
        return Err(wrong(rest));
    }
    *rest = after.trim_start();
    let found = OPERATORS.iter().find(|(sign, _)| rest.starts_with(sign));
    let Some((sign, operator)) = found else { return Ok(Filter::Is(field.to_owned())) };
    *rest = rest.get(sign.len()..).unwrap_or("").trim_start();
    let mut values = Vec::new();
    if let Some(after) = rest.strip_prefix('(') {
        *rest = after.trim_start();
        loop {
            values.push(value(rest)?);
            if let Some(after) = rest.strip_prefix(',') {
                *rest = after.trim_start();
                continue;
            }
            *rest = rest.strip_prefix(')').ok_or_else(|| wrong(rest))?.trim_start();
            break;
        }
    } else {
        values.push(value(rest)?);
    }
    Ok(Filter::Compares(field.to_owned(), *operator, values))
}

fn value(rest: &mut &str) -> Result<String, Refused> {
    let quote = rest.chars().next().filter(|c| *c == '\'' || *c == '"');
    let (value, after) = if let Some(quote) = quote {
        let inner = rest.get(1..).unwrap_or("");
        inner.split_once(quote).ok_or_else(|| wrong(rest))?
    } else {
        let end = rest.find(|c: char| c.is_whitespace() || c == ')' || c == ',');
        rest.split_at(end.unwrap_or(rest.len()))
    };
    if value.is_empty() && quote.is_none() {
        return Err(wrong(rest));
    }
    *rest = after.trim_start();
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn filters_mean_what_they_say() {
        let item = json!({"name": "smv-A-1", "destroyed": false, "size": 7, "is_local": true,
            "iqns": ["iqn.a:1", "iqn.b:2"], "source": {"name": "web.disk"}});
        for (text, lets) in [
            ("name='smv-a-1'", true),
            ("name='smv-*'", true),
            ("name='*-1' and size=7", true),
            ("name='s*-*2'", false),
            ("name=('x','smv-a-1')", true),
            ("source.name='web.*'", true),
            ("iqns='iqn.b:2' and is_local", true),
            ("iqns=\"iqn.b:2\" and not is_local", false),
            ("destroyed='false' or nothing='x'", true),
            ("destroyed", false),
            ("size>=7 and size<8 and size!=6", true),
            ("not (size>7 or name='y*')", true),
        ] {
            assert_eq!(Filter::parse(text).unwrap().lets(&item), lets, "{text}");
        }
        for wrong in ["", "name=", "='x'", "name='x", "name='x' und size=1", "(name='x'"] {
            let refused = Filter::parse(wrong).unwrap_err();
            assert_eq!(refused.errors[0].0, "Invalid filter.", "{wrong}");
        }
    }
}
