//! Several certificates side by side: drivers by groups of checks.
//!
//! The Markdown is meant for a repository: it has no time, hash or machine in it, so that it only
//! changes when a verdict does.

use std::fmt::Write as _;

use maud::{Markup, display, html};

use crate::catalog;
use crate::certificate::{Certificate, Entry, blocks};
use crate::page;
use crate::report;
use crate::verdict::State;

/// A driver that was not run, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRun {
    /// The driver's name.
    pub driver: String,
    /// The reason.
    pub why: String,
}

impl std::str::FromStr for NotRun {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((driver, why)) if !driver.is_empty() && !why.is_empty() => {
                Ok(Self { driver: driver.to_owned(), why: why.to_owned() })
            }
            _ => Err("a name and a reason, such as lvm=\"needs a disk\"".to_owned()),
        }
    }
}

/// What a driver's results in a group come to.
struct Cell {
    held: usize,
    /// All that apply.
    apply: usize,
    /// The state that weighs most.
    state: Option<State>,
}

impl Cell {
    fn of(certificate: &Certificate, letter: char) -> Self {
        let mut cell = Self { held: 0, apply: 0, state: None };
        for entry in certificate.results.iter().filter(|entry| entry.id.starts_with(letter)) {
            cell.held += usize::from(entry.state == State::Pass);
            cell.apply += usize::from(entry.state != State::NotApplicable);
            if cell.state.is_none_or(|state| weight(entry.state) > weight(state)) {
                cell.state = Some(entry.state);
            }
        }
        cell
    }

    fn text(&self) -> String {
        match self.state {
            None => String::new(),
            Some(State::NotApplicable) => "–".to_owned(),
            Some(state) => format!("{} {}/{}", page::sign(state).1, self.held, self.apply),
        }
    }
}

fn weight(state: State) -> u8 {
    match state {
        State::NotApplicable => 0,
        State::Pass => 1,
        State::Waived => 2,
        State::NotTestable => 3,
        State::Fail => 4,
    }
}

/// How many checks of a group are built, and how many there are.
fn built(letter: char) -> (usize, usize) {
    let rows = || catalog::rows().iter().filter(|row| row.id.starts_with(letter));
    (rows().filter(|row| crate::is_built(row.id)).count(), rows().count())
}

fn name(certificate: &Certificate) -> String {
    format!("{} {}", certificate.driver.name, certificate.driver.version)
}

/// What is not plain success.
fn notable(certificate: &Certificate) -> impl Iterator<Item = &Entry> {
    certificate.results.iter().filter(|entry| entry.state != State::Pass)
}

/// The page.
pub fn html(certificates: &[Certificate], not_run: &[NotRun]) -> String {
    page::shell(
        "Conformance of drivers",
        &html! {
            h1 { "Conformance of drivers" }
            div.wide {
                table #matrix {
                    thead { tr {
                        th scope="col" { "group" }
                        @for certificate in certificates { th scope="col" { (name(certificate)) } }
                        th scope="col" { "built" }
                    } }
                    tr {
                        th scope="row" { b { "level" } }
                        @for certificate in certificates { td { b { (page::level(certificate.level)) } } }
                        td {}
                    }
                    @for (letter, about) in catalog::GROUPS {
                        tr {
                            th scope="row" { b { (letter) } " " (about) }
                            @for certificate in certificates { (cell(certificate, letter)) }
                            @let (built, all) = built(letter);
                            td.faint { (built) "/" (all) }
                        }
                    }
                }
            }
            p.faint { "✓ all that apply held, ✗ one did not, ? one cannot be tried there, w one is \
                waived, – none applies; how many held of those that apply. Of the list of checks, the \
                last column says how many are built." }
            @for certificate in certificates {
                section {
                    h2 { (name(certificate)) }
                    p { (report::closing(certificate)) ", seed " (certificate.seed) }
                    @for entry in notable(certificate).filter(|entry| blocks(entry.state)) {
                        (told(entry))
                    }
                    details {
                        summary { "What does not apply, or is waived" }
                        @for entry in notable(certificate).filter(|entry| !blocks(entry.state)) {
                            (told(entry))
                        }
                    }
                }
            }
            @if !not_run.is_empty() {
                section #not-run {
                    h2 { "Not run" }
                    table {
                        @for NotRun { driver, why } in not_run {
                            tr { th scope="row" { (driver) } td { (why) } }
                        }
                    }
                }
            }
        },
    )
}

fn cell(certificate: &Certificate, letter: char) -> Markup {
    let cell = Cell::of(certificate, letter);
    let class = cell.state.map_or("none", |state| page::sign(state).0);
    html! { td { b class=(class) { (cell.text()) } } }
}

fn told(entry: &Entry) -> Markup {
    let (class, _) = page::sign(entry.state);
    let reason = entry.reason.as_deref().unwrap_or_default();
    html! {
        article class=(class) {
            h3 { (entry.id) " " (entry.name) " " b class=(class) { (display(entry.state)) } }
            p { (report::printable(reason)) }
        }
    }
}

/// The same for a document.
pub fn markdown(certificates: &[Certificate], not_run: &[NotRun]) -> String {
    let mut text = "| group |".to_owned();
    for certificate in certificates {
        let _ = write!(text, " {} |", name(certificate));
    }
    text += " built |\n|---|";
    text += &"---|".repeat(certificates.len() + 1);
    text += "\n| **level** |";
    for certificate in certificates {
        let _ = write!(text, " **{}** |", page::level(certificate.level));
    }
    text += " |\n";
    for (letter, about) in catalog::GROUPS {
        let _ = write!(text, "| {letter} {about} |");
        for certificate in certificates {
            let _ = write!(text, " {} |", Cell::of(certificate, letter).text());
        }
        let (built, all) = built(letter);
        let _ = writeln!(text, " {built}/{all} |");
    }
    text += "\n✓ all that apply held, ✗ one did not, ? one cannot be tried there, w one is waived, \
             – none applies;\nhow many held of those that apply. The last column: how many checks \
             of the list are built\n(`sm-conformance list --missing` names the others).\n";
    for certificate in certificates {
        let _ = write!(text, "\n## {}\n\n{}.\n", name(certificate), report::closing(certificate));
        let mut by_reason: Vec<(&str, State, Vec<&str>)> = Vec::new();
        for entry in notable(certificate) {
            // The words of a failure name identifiers and paths of one run.
            let reason = match entry.state {
                State::NotApplicable => entry.reason.as_deref().unwrap_or_default(),
                _ => entry.name.as_str(),
            };
            match by_reason.iter_mut().find(|(other, ..)| *other == reason) {
                Some((_, _, ids)) => ids.push(&entry.id),
                None => by_reason.push((reason, entry.state, vec![&entry.id])),
            }
        }
        if !by_reason.is_empty() {
            text.push('\n');
        }
        for (reason, state, ids) in by_reason {
            let _ = writeln!(text, "- {state} {}: {}", ids.join(" "), report::cell(reason));
        }
    }
    if !not_run.is_empty() {
        text += "\n## Not run\n\n| driver | why |\n|---|---|\n";
        for NotRun { driver, why } in not_run {
            let _ = writeln!(text, "| {} | {} |", report::cell(driver), report::cell(why));
        }
    }
    text
}
