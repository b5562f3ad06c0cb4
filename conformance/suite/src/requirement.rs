//! The sentences of the contract, as `docs/driver-spec.md` numbers them.

use std::sync::LazyLock;

use sha2::{Digest as _, Sha256};

const TEXT: &str = include_str!("../../../docs/driver-spec.md");

/// One numbered sentence of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Its id: `DRV-IDEM-1`.
    pub id: &'static str,
    /// What it says.
    pub text: String,
    /// Whether it is a condition for being a driver.
    pub must: bool,
}

static ALL: LazyLock<Vec<Requirement>> = LazyLock::new(|| parse(TEXT));

static UNCHECKED: LazyLock<Vec<(&str, &str)>> = LazyLock::new(|| {
    include_str!("unchecked.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" | "))
        .collect()
});

/// All of them, in the order of the document.
pub fn all() -> &'static [Requirement] {
    &ALL
}

/// The sentence of an id.
pub fn find(id: &str) -> Option<&'static Requirement> {
    ALL.iter().find(|requirement| requirement.id == id)
}

/// The sentences that no check of this suite covers, each with who looks after it instead.
pub fn unchecked() -> &'static [(&'static str, &'static str)] {
    &UNCHECKED
}

/// SHA-256 over all sentences: what a certificate was given for.
pub fn hash() -> String {
    let mut hash = Sha256::new();
    for requirement in all() {
        hash.update(requirement.id);
        hash.update(b" ");
        hash.update(&requirement.text);
        hash.update(b"\n");
    }
    crate::hex(&hash.finalize())
}

/// An item begins with `- **ID**` and goes on over the indented lines below.
fn parse(document: &'static str) -> Vec<Requirement> {
    let mut found: Vec<Requirement> = Vec::new();
    let mut open = false;
    for line in document.lines() {
        if let Some((id, rest)) = line.strip_prefix("- **").and_then(|rest| rest.split_once("**")) {
            found.push(Requirement { id, text: rest.trim().to_owned(), must: false });
            open = true;
        } else if open && line.starts_with("  ") {
            if let Some(last) = found.last_mut() {
                last.text.push(' ');
                last.text.push_str(line.trim());
            }
        } else {
            open = false;
        }
    }
    for requirement in &mut found {
        requirement.must = requirement.text.contains("MUST");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_read_over_their_lines() {
        let snap = find("DRV-SNAP-4").unwrap();
        assert!(snap.must && snap.text.starts_with("Snapshot and clone MUST leave the source's"));
        assert!(snap.text.ends_with("as they are."), "{}", snap.text);
        assert!(!find("DRV-CONC-2").unwrap().must);
    }

    #[test]
    fn every_must_has_a_check_or_stands_in_the_list_of_those_that_have_none() {
        let mut wrong = Vec::new();
        for requirement in all().iter().filter(|requirement| requirement.must) {
            let checked =
                crate::checks::ALL.iter().any(|check| check.sentences.contains(&requirement.id));
            let listed = unchecked().iter().any(|(id, _)| *id == requirement.id);
            if checked == listed {
                wrong.push(format!("{} checked: {checked}, listed: {listed}", requirement.id));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn no_list_names_a_sentence_that_does_not_exist() {
        let named = crate::checks::ALL.iter().flat_map(|check| check.sentences.iter().copied());
        for id in named.chain(unchecked().iter().map(|(id, _)| *id)) {
            assert!(find(id).is_some(), "{id} is not in docs/driver-spec.md");
        }
    }
}
