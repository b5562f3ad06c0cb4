//! The names of all checks: what is built, and what is not yet.
//!
//! Ids are stable: a certificate of today is compared with one of next year. So the whole list is
//! here, and each row is either a function of `checks` or a line of `not-built.txt` with
//! the reason. A test holds the two to that: nothing is silently absent.

use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// What a driver is certified for. Each level includes those before it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// Loads.
    #[value(name = "L0", alias = "l0")]
    L0,
    /// Core: SRs, VDIs, data, errors, security.
    #[value(name = "L1", alias = "l1")]
    L1,
    /// Snapshots, clones, thin provisioning.
    #[value(name = "L2", alias = "l2")]
    L2,
    /// Several hosts.
    #[value(name = "L3", alias = "l3")]
    L3,
    /// Offload and quiesce.
    #[value(name = "L4", alias = "l4")]
    L4,
    /// Crashes, faults, scale.
    #[value(name = "L5", alias = "l5")]
    L5,
}

impl Level {
    /// All of them, lowest first.
    pub const ALL: [Self; 6] = [Self::L0, Self::L1, Self::L2, Self::L3, Self::L4, Self::L5];
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L{}", *self as u8)
    }
}

/// One check of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its id, for ever: `E19`.
    pub id: &'static str,
    /// Its level; none for what is checked of the suite itself.
    pub level: Option<Level>,
    /// Its name: `tree.invariants`.
    pub name: &'static str,
    /// When it holds.
    pub holds: &'static str,
}

/// The groups of checks: the first letter of their ids, and what they are about.
pub const GROUPS: [(char, &str); 19] = [
    ('A', "Loading"),
    ('B', "SRs"),
    ('C', "VDIs"),
    ('D', "Data"),
    ('E', "Snapshots and clones"),
    ('F', "Growth"),
    ('G', "Attach"),
    ('H', "Space"),
    ('I', "Offload to an array"),
    ('J', "Quiesce, heartbeat"),
    ('K', "The same call twice"),
    ('L', "Errors"),
    ('M', "Several calls at once"),
    ('N', "Crashes"),
    ('O', "Faults below"),
    ('P', "Scale"),
    ('Q', "Security"),
    ('R', "Time"),
    ('T', "Random sequences"),
];

static ROWS: LazyLock<Vec<Row>> =
    LazyLock::new(|| lines(include_str!("catalog.txt")).filter_map(row).collect());

static NOT_BUILT: LazyLock<Vec<(&str, &str)>> =
    LazyLock::new(|| lines(include_str!("not-built.txt")).filter_map(reason).collect());

/// The whole list.
pub fn rows() -> &'static [Row] {
    &ROWS
}

/// The row of an id.
pub fn find(id: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.id == id)
}

/// The checks that are not built, each with the reason.
pub fn not_built() -> impl Iterator<Item = (&'static Row, &'static str)> {
    rows().iter().filter_map(|row| {
        NOT_BUILT.iter().find(|(ids, _)| covers(ids, row.id)).map(|(_, why)| (row, *why))
    })
}

fn lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn row(line: &'static str) -> Option<Row> {
    let mut cells = line.splitn(4, " | ");
    let (id, level) = (cells.next()?, cells.next()?);
    let level = Level::ALL.into_iter().find(|known| known.to_string() == level);
    Some(Row { id, level, name: cells.next()?, holds: cells.next()? })
}

fn reason(line: &'static str) -> Option<(&'static str, &'static str)> {
    line.split_once(" | ")
}

/// Whether `A02 A04-A06` names an id.
fn covers(ids: &str, id: &str) -> bool {
    ids.split(' ').any(|one| match one.split_once('-') {
        Some((first, last)) => first <= id && id <= last,
        None => one == id,
    })
}

/// Whether a pattern of `--only` (`E19`, `E*`, `snap.*`) matches a check.
pub fn matches(pattern: &str, row: &Row) -> bool {
    let one = |text: &str| match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => text == pattern,
    };
    one(row.id) || one(row.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_whole_and_each_row_is_built_or_excused_but_not_both() {
        assert_eq!(rows().len(), 275);
        let mut wrong = Vec::new();
        for row in rows() {
            let built = crate::checks::find(row.id).is_some();
            let excused = not_built().any(|(other, _)| other.id == row.id);
            if built == excused && row.level.is_some() {
                wrong.push(format!("{} built: {built}, in not-built.txt: {excused}", row.id));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        for (ids, _) in NOT_BUILT.iter() {
            assert!(rows().iter().any(|row| covers(ids, row.id)), "{ids} names no check");
        }
    }

    #[test]
    fn each_check_of_a_level_is_in_a_group() {
        for row in rows().iter().filter(|row| row.level.is_some()) {
            assert!(GROUPS.iter().any(|(letter, _)| row.id.starts_with(*letter)), "{}", row.id);
        }
    }

    #[test]
    fn patterns_match_ids_and_names() {
        let row = find("E19").unwrap();
        for pattern in ["E19", "E*", "tree.*", "*"] {
            assert!(matches(pattern, row), "{pattern}");
        }
        for pattern in ["E1", "F*", "tree"] {
            assert!(!matches(pattern, row), "{pattern}");
        }
    }
}
