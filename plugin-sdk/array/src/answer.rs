//! Reading of an array's answers: members by their path, such as `space.used`.
//!
//! An answer has many members that a driver never reads, and any of them may be missing in some release.
//! What has to be there is asked for with [`Answer::need`]; what is missing otherwise reads as nothing.

use serde_json::Value;

use crate::outcome::{Class, Failure, Outcome};

/// An object in an answer.
pub trait Answer {
    /// A member, `null` if it is missing.
    fn at(&self, path: &str) -> &Value;

    /// A text, empty if it is missing.
    fn text(&self, path: &str) -> &str {
        self.at(path).as_str().unwrap_or_default()
    }

    /// A text that must be there. [`Class::Garbled`] if it is not.
    fn need(&self, path: &str) -> Outcome<&str> {
        let missing = || Failure::new(Class::Garbled).fact(format!("the answer has no {path}"));
        self.at(path).as_str().filter(|text| !text.is_empty()).ok_or_else(missing)
    }

    /// A number.
    fn number(&self, path: &str) -> Option<u64> {
        self.at(path).as_u64()
    }

    /// A number that must be there. [`Class::Garbled`] if it is not.
    fn count(&self, path: &str) -> Outcome<u64> {
        let missing = || Failure::new(Class::Garbled).fact(format!("the answer has no {path}"));
        self.number(path).ok_or_else(missing)
    }

    /// Whether something is so; what is missing is not.
    fn is(&self, path: &str) -> bool {
        self.at(path).as_bool().unwrap_or_default()
    }

    /// A list, empty if it is missing.
    fn list(&self, path: &str) -> &[Value] {
        self.at(path).as_array().map(Vec::as_slice).unwrap_or_default()
    }

    /// The texts in a list, or of a member of each of its objects.
    fn texts(&self, path: &str, member: &str) -> Vec<String> {
        let all = self.list(path).iter();
        all.filter_map(|one| if member.is_empty() { one } else { one.at(member) }.as_str())
            .map(str::to_owned)
            .collect()
    }
}

impl Answer for Value {
    fn at(&self, path: &str) -> &Value {
        let mut names = path.split('.');
        names.try_fold(self, |object, name| object.get(name)).unwrap_or(&Self::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_reads_as_nothing_unless_it_is_needed() {
        let answer = serde_json::json!({
            "uuid": "7", "space": { "used": 5, "name": null }, "on": true,
            "ports": [{ "iqn": "a" }, {}, { "iqn": "b" }], "names": ["x", 1],
        });
        assert_eq!(
            (answer.text("uuid"), answer.text("space.name"), answer.text("a.b")),
            ("7", "", "")
        );
        assert_eq!((answer.number("space.used"), answer.number("uuid")), (Some(5), None));
        assert_eq!((answer.is("on"), answer.is("off")), (true, false));
        assert_eq!(answer.list("space").len(), 0);
        assert_eq!(answer.texts("ports", "iqn"), ["a", "b"]);
        assert_eq!(answer.texts("names", ""), ["x"]);
        assert_eq!(answer.need("uuid").unwrap(), "7");
        let failure = answer.need("space.name").unwrap_err();
        assert_eq!(
            (failure.class, failure.to_string().as_str()),
            (Class::Garbled, "the answer has no space.name")
        );
        assert_eq!(answer.count("space.size").unwrap_err().class, Class::Garbled);
    }
}
