//! A run as one page: all that is needed is in the file. It is read without a script, on a
//! phone, and on paper, where what is folded is open.

use std::collections::BTreeMap;

use maud::{DOCTYPE, Markup, PreEscaped, display, html};

use crate::catalog::{self, Level, Row};
use crate::certificate::{Certificate, Entry, blocks};
use crate::verdict::State;
use crate::{checks, plot, report, requirement};

const STYLE: &str = include_str!("page.css");

/// Nothing is fetched and nothing is run, whatever a driver's text says.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// Characters of a log that are shown: its end, where the failure is.
const SHOWN: usize = 20_000;

/// The page of a run. The logs are those of its failures, by the check's id.
pub fn run(certificate: &Certificate, logs: &BTreeMap<String, String>) -> String {
    let driver = &certificate.driver;
    let title = format!("{} {}: level {}", driver.name, driver.version, level(certificate.level));
    let results = &certificate.results;
    let wrong: Vec<&Entry> = results
        .iter()
        .filter(|entry| blocks(entry.state) || entry.state == State::Waived)
        .collect();
    let milliseconds: u64 = results.iter().map(|entry| entry.milliseconds).sum();
    shell(
        &title,
        &html! {
            header {
                h1 { (title) }
                p { b { (report::closing(certificate)) } }
                p.faint {
                    (milliseconds.div_ceil(1000)) " s, seed " (certificate.seed) ", suite "
                    (certificate.suite) ", asked for " (display(certificate.asked)) ", driver "
                    code { (short(&driver.sha256)) }
                    @if let Some(signature) = &certificate.signature {
                        ", signed by " code { (short(&signature.key)) }
                    }
                }
                @if !certificate.only.is_empty() {
                    p { "Checks were chosen by hand, so no level follows: "
                        (certificate.only.join(", ")) }
                }
                @if let Some(part) = certificate.part {
                    p { "A part of the checks, " (part) ", so no level follows." }
                }
            }
            section #groups {
                h2 { "Checks" }
                table {
                    @for (letter, about) in catalog::GROUPS {
                        @if let Some(found) = group(certificate, letter) {
                            tr {
                                th scope="row" { b { (letter) } " " (about) }
                                td { div.squares { (found) } }
                            }
                        }
                    }
                }
                p.faint {
                    "✓ held, ✗ did not hold, ? cannot be tried here, w waived, – does not apply, \
                     · not built"
                }
            }
            @if !wrong.is_empty() {
                section #wrong {
                    h2 { "What blocks, or is waived" }
                    @for entry in &wrong { (told(entry, logs)) }
                }
            }
            section #times {
                h2 { "Times" }
                h3 { "The slowest checks" }
                (plot::slowest(certificate))
                h3 { "Calls of the driver" }
                p.faint { "A dot for each check: half of its calls took no longer. The line reaches to \
                    where all but a twentieth took no longer." }
                (plot::calls(certificate))
            }
            section #all {
                h2 { "All results" }
                @for (letter, about) in catalog::GROUPS {
                    @let entries: Vec<&Entry> = of(results, letter).collect();
                    @if !entries.is_empty() {
                        details {
                            summary { b { (letter) } " " (about) ", " (entries.len()) }
                            div.wide { table {
                                @for entry in entries { (row(entry, &wrong)) }
                            } }
                        }
                    }
                }
            }
            section #missing {
                h2 { "Not built" }
                details {
                    summary { (certificate.not_built.len()) " checks of these levels are not built" }
                    table {
                        @for (row, why) in catalog::not_built() {
                            @if certificate.not_built.iter().any(|id| id == row.id) {
                                tr { th scope="row" { (row.id) " " (row.name) } td { (why) } }
                            }
                        }
                    }
                }
            }
            footer {
                h2 { "Where" }
                p.faint {
                    @for (key, value) in &certificate.environment { (key) " " (value) ", " }
                    "certificate " code { (short(&certificate.sha256)) }
                }
            }
        },
    )
}

/// A whole document.
pub(crate) fn shell(title: &str, body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    }
    .into_string()
}

/// A level, or that there is none.
pub(crate) fn level(level: Option<Level>) -> String {
    level.map_or_else(|| "none".to_owned(), |level| level.to_string())
}

/// The class and the sign of a state.
pub(crate) fn sign(state: State) -> (&'static str, &'static str) {
    match state {
        State::Pass => ("pass", "✓"),
        State::Fail => ("fail", "✗"),
        State::NotTestable => ("lack", "?"),
        State::Waived => ("waived", "w"),
        State::NotApplicable => ("none", "–"),
    }
}

fn short(text: &str) -> &str {
    text.get(..12).unwrap_or(text)
}

fn of(entries: &[Entry], letter: char) -> impl Iterator<Item = &Entry> {
    entries.iter().filter(move |entry| entry.id.starts_with(letter))
}

/// The squares of a group, in the order of the list; none if nothing of it was asked for.
fn group(certificate: &Certificate, letter: char) -> Option<Markup> {
    let rows: Vec<&Row> = catalog::rows()
        .iter()
        .filter(|row| row.id.starts_with(letter))
        .filter(|row| {
            certificate.results.iter().any(|entry| entry.id == row.id)
                || certificate.not_built.iter().any(|id| id == row.id)
        })
        .collect();
    (!rows.is_empty()).then(|| {
        html! {
            @for row in rows {
                @match certificate.results.iter().find(|entry| entry.id == row.id) {
                    Some(entry) => {
                        @let (class, sign) = sign(entry.state);
                        a class=(class) href={ "#" (row.id) }
                            title={ (row.id) " " (row.name) ": " (display(entry.state)) } { (sign) }
                    }
                    None => { span.unbuilt title={ (row.id) " " (row.name) ": not built" } { "·" } }
                }
            }
        }
    })
}

/// A check that did not hold: what is known of it.
fn told(entry: &Entry, logs: &BTreeMap<String, String>) -> Markup {
    let (class, _) = sign(entry.state);
    html! {
        article id=(entry.id) class=(class) {
            h3 { (entry.id) " " (entry.name) " " b class=(class) { (display(entry.state)) } }
            @if let Some(reason) = &entry.reason { p { (report::printable(reason)) } }
            @if let Some(row) = catalog::find(&entry.id) {
                p.faint { "Holds when: " (row.holds) }
            }
            @if let Some(check) = checks::find(&entry.id) { p.faint { (check.explain) } }
            @for id in &entry.sentences {
                @if let Some(found) = requirement::find(id) {
                    p.faint { b { (id) } " " (found.text) }
                }
            }
            @if let Some(replay) = &entry.replay { p { "Again: " code { (replay) } } }
            @if let Some(log) = logs.get(&entry.id) {
                details open { summary { "Log" } pre { (end(log)) } }
            }
        }
    }
}

/// The end of a log, from the beginning of a line.
fn end(log: &str) -> String {
    let from = log.char_indices().rev().nth(SHOWN).map_or(0, |(at, _)| at);
    let shown = log.get(from..).unwrap_or_default();
    match shown.split_once('\n') {
        Some((_, rest)) if from > 0 => format!("[the beginning is in the file]\n{rest}"),
        _ => shown.to_owned(),
    }
}

/// A line of all results. What is told above is only pointed at.
fn row(entry: &Entry, wrong: &[&Entry]) -> Markup {
    let (class, _) = sign(entry.state);
    let above = wrong.iter().any(|other| other.id == entry.id);
    html! {
        tr id=[(!above).then_some(&entry.id)] {
            th scope="row" {
                @if above { a href={ "#" (entry.id) } { (entry.id) " " (entry.name) } }
                @else { (entry.id) " " (entry.name) }
            }
            td { b class=(class) { (display(entry.state)) } }
            td { (entry.milliseconds) " ms" }
            td.faint {
                @if above {}
                @else if let Some(reason) = &entry.reason { (report::printable(reason)) }
                @else if let Some(row) = catalog::find(&entry.id) { (row.holds) }
            }
        }
    }
}
