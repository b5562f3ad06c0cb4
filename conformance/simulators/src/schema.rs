//! What a value of JSON may be: tables of members, after a vendor's document, and one walk along them. How
//! it is said that something is wrong is each vendor's own.

use serde_json::Value;

/// What a value may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Any,
    Null,
    Bool,
    /// What is done can only be true.
    True,
    Int,
    /// From one to another.
    Within(i64, i64),
    IntOf(&'static [i64]),
    Float,
    Text,
    /// Of so many bytes at least, and at most.
    Bytes(usize, usize),
    /// Of so many characters at least, and at most.
    Chars(usize, usize),
    /// The same, and none of them a control character.
    Plain(usize, usize),
    OneOf(&'static [&'static str]),
    /// A time of TrueNAS: its document calls it a text, what its messages have is
    /// `{"$date": milliseconds}`.
    Time,
    /// An object that the document leaves open.
    Open,
    /// An object with these members and no others.
    Of(&'static [Field]),
    /// Objects of this kind under any names.
    Names(&'static Kind),
    List(&'static Kind),
    Either(&'static Kind, &'static Kind),
}

/// A member.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    name: &'static str,
    kind: Kind,
    must: bool,
}

/// A member that must be there.
pub(crate) const fn must(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, must: true }
}

/// A member that may be left out.
pub(crate) const fn may(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, must: false }
}

/// What is wrong with a value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wrong {
    /// No table has it.
    Unknown,
    Missing,
    /// It is not of this kind.
    Not(Kind),
}

/// Something that is wrong.
#[derive(Debug)]
pub(crate) struct Fault<'a> {
    /// Names of members and numbers of items, from the outside in, with points between; empty for the
    /// whole.
    pub(crate) path: String,
    pub(crate) wrong: Wrong,
    pub(crate) value: &'a Value,
}

impl Fault<'_> {
    /// The member's own name; of the whole, `body`.
    pub(crate) fn name(&self) -> &str {
        let is_name = |part: &&str| !part.is_empty() && part.parse::<usize>().is_err();
        self.path.rsplit('.').find(is_name).unwrap_or("body")
    }
}

/// How a value is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// Whether what must be there must be there; below, it always must.
    pub(crate) whole: bool,
    /// Whether null is as good as nothing where nothing will do.
    pub(crate) null_is_none: bool,
}

/// As most documents are read.
pub(crate) const STRICT: Reading = Reading { whole: true, null_is_none: false };

impl Reading {
    /// All that is wrong with a value of this kind: of each object first what its table does not have.
    pub(crate) fn faults(self, kind: Kind, value: &Value) -> Vec<Fault<'_>> {
        let mut found = Vec::new();
        self.walk("", kind, value, &mut found);
        found
    }

    fn walk<'a>(self, at: &str, kind: Kind, value: &'a Value, found: &mut Vec<Fault<'a>>) {
        use Kind::{
            Any, Bool, Bytes, Chars, Either, Float, Int, IntOf, List, Names, Null, Of, OneOf, Open,
            Plain, Text, Time, True, Within,
        };
        let text = value.as_str();
        let chars = text.map(|text| text.chars().count());
        let fits = match (kind, value) {
            (Any, _) => true,
            (Null, _) => value.is_null(),
            (Bool, _) => value.is_boolean(),
            (True, _) => *value == Value::Bool(true),
            (Int, _) => value.is_i64() || value.is_u64(),
            (Within(from, to), _) => value.as_i64().is_some_and(|n| (from..=to).contains(&n)),
            (IntOf(numbers), _) => value.as_i64().is_some_and(|number| numbers.contains(&number)),
            (Float, _) => value.is_number(),
            (Text, _) => text.is_some(),
            (Bytes(from, to), _) => text.is_some_and(|text| (from..=to).contains(&text.len())),
            (Chars(from, to), _) => chars.is_some_and(|length| (from..=to).contains(&length)),
            (Plain(from, to), _) => {
                let control = text.is_some_and(|text| text.contains(char::is_control));
                !control && chars.is_some_and(|length| (from..=to).contains(&length))
            }
            (OneOf(words), _) => text.is_some_and(|word| words.contains(&word)),
            (Time, _) => {
                let date = value.as_object().filter(|object| object.len() == 1);
                text.is_some() || date.is_some_and(|date| date.contains_key("$date"))
            }
            (Open, _) => value.is_object(),
            (Of(fields), Value::Object(object)) => {
                let known = |name: &str| fields.iter().any(|field| field.name == name);
                for (name, value) in object.iter().filter(|(name, _)| !known(name)) {
                    found.push(Fault { path: join(at, name), wrong: Wrong::Unknown, value });
                }
                for Field { name, kind, must } in fields {
                    match object.get(*name) {
                        None if *must && (self.whole || !at.is_empty()) => {
                            let (path, wrong) = (join(at, name), Wrong::Missing);
                            found.push(Fault { path, wrong, value: &Value::Null });
                        }
                        None => {}
                        Some(Value::Null) if self.null_is_none && !must => {}
                        Some(value) => self.walk(&join(at, name), *kind, value, found),
                    }
                }
                true
            }
            (Names(kind), Value::Object(object)) => {
                for (name, value) in object {
                    self.walk(&join(at, name), *kind, value, found);
                }
                true
            }
            (List(kind), Value::Array(items)) => {
                for (number, value) in items.iter().enumerate() {
                    self.walk(&join(at, &number.to_string()), *kind, value, found);
                }
                true
            }
            (Of(_) | Names(_) | List(_), _) => false,
            (Either(one, other), _) => {
                let (mut first, mut second) = (Vec::new(), Vec::new());
                self.walk(at, *one, value, &mut first);
                if !first.is_empty() {
                    self.walk(at, *other, value, &mut second);
                }
                if !second.is_empty() {
                    found.append(&mut first);
                }
                true
            }
        };
        if !fits {
            found.push(Fault { path: at.to_owned(), wrong: Wrong::Not(kind), value });
        }
    }
}

fn join(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Kind::{Bool, Either, Int, List, Null, Of, OneOf, Plain};
    use super::*;

    const PORT: Kind = Of(&[must("ip", Plain(1, 15)), may("port", Int)]);
    const TARGET: Kind = Of(&[
        must("name", Plain(1, 8)),
        may("mode", OneOf(&["iscsi", "fc"])),
        may("ports", List(&PORT)),
        may("alias", Either(&Bool, &Null)),
    ]);

    fn paths(reading: Reading, value: &Value) -> Vec<String> {
        let said = |fault: Fault<'_>| match fault.wrong {
            Wrong::Unknown => format!("{} unknown", fault.path),
            Wrong::Missing => format!("{} missing", fault.path),
            Wrong::Not(kind) => format!("{} not {kind:?}", fault.path),
        };
        reading.faults(TARGET, value).into_iter().map(said).collect()
    }

    #[test]
    fn all_that_is_wrong_is_found_where_it_is() {
        let good = json!({ "name": "a", "alias": null, "ports": [{ "ip": "::1", "port": 1 }] });
        assert!(paths(STRICT, &good).is_empty());
        let wrong = json!({ "name": "a\u{7}", "mode": "usb", "x": 1, "alias": 2,
            "ports": [{ "ip": "::1" }, { "port": "1" }] });
        assert_eq!(
            paths(STRICT, &wrong),
            [
                "x unknown",
                "name not Plain(1, 8)",
                "mode not OneOf([\"iscsi\", \"fc\"])",
                "ports.1.ip missing",
                "ports.1.port not Int",
                "alias not Bool",
            ]
        );
        assert!(paths(STRICT, &json!([]))[0].starts_with(" not Of("));
    }

    #[test]
    fn a_part_lacks_nothing_but_its_items_do() {
        let part = Reading { whole: false, ..STRICT };
        assert_eq!(paths(STRICT, &json!({})), ["name missing"]);
        assert_eq!(paths(part, &json!({ "ports": [{}] })), ["ports.0.ip missing"]);
        let nothing = json!({ "name": "a", "mode": null });
        assert_eq!(paths(STRICT, &nothing), ["mode not OneOf([\"iscsi\", \"fc\"])"]);
        assert!(paths(Reading { null_is_none: true, ..STRICT }, &nothing).is_empty());
    }

    #[test]
    fn a_name_is_that_of_the_member_not_of_the_item() {
        let value = json!({ "name": "a", "ports": [1] });
        let faults = STRICT.faults(TARGET, &value);
        let [fault] = faults.as_slice() else { panic!("{faults:?}") };
        assert_eq!((fault.path.as_str(), fault.name()), ("ports.0", "ports"));
        let none = json!(1);
        assert_eq!(STRICT.faults(TARGET, &none)[0].name(), "body");
    }
}
