//! Finding an object by what a person types: its UUID, the beginning of it, or its name.

use sm_model::{Error, Kind, Result};
use uuid::Uuid;

/// Fewest characters of a UUID that count as its beginning.
const PREFIX: usize = 4;

/// The one of `items` that `selector` means. `what` names the kind of object in errors.
pub(crate) fn select<'a, T>(
    what: &str,
    selector: &str,
    items: &'a [T],
    uuid: impl Fn(&T) -> Uuid,
    name: impl Fn(&T) -> &str,
) -> Result<&'a T> {
    if let Ok(wanted) = selector.parse::<Uuid>() {
        return items
            .iter()
            .find(|item| uuid(item) == wanted)
            .ok_or_else(|| not_found(what, selector));
    }
    // A name beats a beginning: names are what people choose.
    let by_name: Vec<&T> = items.iter().filter(|item| name(item) == selector).collect();
    let found = if by_name.is_empty() && selector.len() >= PREFIX {
        let prefix = selector.to_ascii_lowercase();
        items.iter().filter(|item| uuid(item).to_string().starts_with(&prefix)).collect()
    } else {
        by_name
    };
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(not_found(what, selector)),
        several => {
            let list: Vec<String> =
                several.iter().map(|item| format!("{} ({:?})", uuid(item), name(item))).collect();
            Err(Error::new(Kind::Exists, format!("{selector:?} means {} {what}s", several.len()))
                .hint(format!("say which: {}", list.join(", "))))
        }
    }
}

fn not_found(what: &str, selector: &str) -> Error {
    let legacy = if what == "VDI" { 144 } else { 47 };
    Error::not_found(format!("there is no {what} {selector:?}"))
        .legacy(legacy)
        .hint(format!("smctl {} list shows them", what.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEMS: [(&str, u128); 4] = [
        ("data", 0xaaaa_0000_0000_0000_0000_0000_0000_0001),
        ("data", 0xaaaa_bbbb_0000_0000_0000_0000_0000_0002),
        ("aaaa", 0xcccc_0000_0000_0000_0000_0000_0000_0003),
        ("unique", 0xdddd_0000_0000_0000_0000_0000_0000_0004),
    ];

    fn pick(selector: &str) -> Result<&'static str> {
        select("VDI", selector, &ITEMS, |item| Uuid::from_u128(item.1), |item| item.0)
            .map(|item| item.0)
    }

    #[test]
    fn a_name_a_uuid_and_a_beginning_are_found() {
        assert_eq!(pick("unique"), Ok("unique"));
        assert_eq!(pick("dddd"), Ok("unique"));
        assert_eq!(pick("DDDD0000-0000-0000-0000-000000000004"), Ok("unique"));
        assert_eq!(pick("aaaa"), Ok("aaaa"), "a name beats a beginning");
    }

    #[test]
    fn several_are_listed() {
        let error = pick("data").unwrap_err();
        assert_eq!(error.message, "\"data\" means 2 VDIs");
        assert!(error.hint.as_ref().unwrap().contains("aaaabbbb-0000-0000-0000-000000000002"));
    }

    #[test]
    fn none_is_not_found() {
        assert_eq!(pick("ddd").unwrap_err().message, "there is no VDI \"ddd\"");
        assert_eq!(pick("").unwrap_err().legacy_code(), 144);
    }
}
