//! The same results for people, for CI systems, and for a page.

use std::fmt::Write as _;

use crate::catalog::{self, Level};
use crate::certificate::{Certificate, Entry, blocks};
use crate::verdict::State;

/// The closing line.
pub fn closing(certificate: &Certificate) -> String {
    let counts = certificate.counts;
    let skipped = counts.not_applicable + counts.not_testable + counts.waived;
    format!("{} passed, {} failed, {skipped} skipped", counts.pass, counts.fail)
}

/// One result, as it is shown while the run goes on.
pub fn line(entry: &Entry, colour: bool) -> String {
    let code = match entry.state {
        State::Pass => 32,
        State::Fail => 31,
        State::NotTestable | State::Waived => 33,
        State::NotApplicable => 90,
    };
    let state = format!("{:<14}", entry.state);
    let state = if colour { format!("\x1b[{code}m{state}\x1b[0m") } else { state };
    let mut text = format!("{} {state} {:>6} ms  {}", entry.id, entry.milliseconds, entry.name);
    if let Some(reason) = entry.reason.as_ref().filter(|_| entry.state != State::Pass) {
        let _ = write!(text, "\n    {}", printable(reason));
    }
    if let Some(replay) = &entry.replay {
        let _ = write!(text, "\n    again: {replay}");
    }
    text
}

/// What a driver says can hold anything.
pub(crate) fn printable(text: &str) -> String {
    let escape = |c: char| -> String {
        if c.is_control() { c.escape_default().to_string() } else { c.to_string() }
    };
    text.chars().take(2000).map(escape).collect()
}

/// What is shown at the end: what blocks, what is missing, the level, the closing line.
pub fn text(certificate: &Certificate, colour: bool) -> String {
    let mut text = String::new();
    for entry in certificate.results.iter().filter(|entry| blocks(entry.state)) {
        let _ = writeln!(text, "{}", line(entry, colour));
    }
    let driver = &certificate.driver;
    let _ = writeln!(
        text,
        "driver {} {}, seed {}, {} checks of the levels up to {} are not built (`list --missing`)",
        driver.name,
        driver.version,
        certificate.seed,
        certificate.not_built.len(),
        certificate.asked
    );
    let level = certificate.level.map_or_else(|| "none".to_owned(), |level| level.to_string());
    let _ = writeln!(text, "level: {level}");
    let _ = writeln!(text, "{}", closing(certificate));
    text
}

/// Markdown.
pub fn markdown(certificate: &Certificate) -> String {
    let driver = &certificate.driver;
    let level = certificate.level.map_or_else(|| "none".to_owned(), |level| level.to_string());
    let mut text = format!(
        "# {} {}: level {level}\n\n{}. Seed {}, suite {}, requirements `{:.12}`, driver \
         `{:.12}`.\n\n| check | level | state | ms | |\n|---|---|---|---|---|\n",
        driver.name,
        driver.version,
        closing(certificate),
        certificate.seed,
        certificate.suite,
        certificate.requirements,
        driver.sha256
    );
    for entry in &certificate.results {
        let level = entry.level.map_or_else(String::new, |level| level.to_string());
        let reason = cell(entry.reason.as_deref().unwrap_or_default());
        let (id, name) = (&entry.id, &entry.name);
        let _ = writeln!(
            text,
            "| {id} {name} | {level} | {} | {} | {reason} |",
            entry.state, entry.milliseconds
        );
    }
    let _ = write!(text, "\nNot built yet: {}.\n", certificate.not_built.join(", "));
    text
}

/// Text inside a cell of a table in Markdown.
pub(crate) fn cell(text: &str) -> String {
    printable(text).replace('|', "\\|")
}

/// The Test Anything Protocol, version 13: the harness of perl knows no later one. A check that
/// cannot be tried is not ok: it blocks.
pub fn tap(certificate: &Certificate) -> String {
    let mut text = format!("TAP version 13\n1..{}\n", certificate.results.len());
    for (number, entry) in (1..).zip(&certificate.results) {
        let ok = if blocks(entry.state) || entry.state == State::Waived { "not ok" } else { "ok" };
        // A directive ends with the line, and a # in it would be taken for another.
        let reason = printable(entry.reason.as_deref().unwrap_or_default()).replace('#', "\\#");
        let directive = match entry.state {
            State::NotApplicable => format!(" # SKIP {reason}"),
            State::Waived => format!(" # TODO {reason}"),
            _ => String::new(),
        };
        let _ = writeln!(text, "{ok} {number} - {} {}{directive}", entry.id, entry.name);
        if blocks(entry.state) {
            // JSON's strings are YAML's.
            let said = |text: &str| serde_json::Value::from(text).to_string();
            let reason = said(entry.reason.as_deref().unwrap_or_default());
            let state = entry.state;
            let _ = write!(text, "  ---\n  state: {state}\n  message: {reason}\n");
            if let Some(replay) = &entry.replay {
                let _ = writeln!(text, "  again: {}", said(replay));
            }
            text.push_str("  ...\n");
        }
    }
    text
}

/// JUnit's XML, as CI systems read it. What is not testable is an error there, not a skip.
pub fn junit(certificate: &Certificate) -> String {
    let seconds = |ms: u64| format!("{}.{:03}", ms / 1000, ms % 1000);
    let total: u64 = certificate.results.iter().map(|entry| entry.milliseconds).sum();
    let counts = certificate.counts;
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"conformance of {}\" \
         tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{}\">\n",
        xml(&certificate.driver.name),
        certificate.results.len(),
        counts.fail,
        counts.not_testable,
        counts.not_applicable + counts.waived,
        seconds(total)
    );
    for entry in &certificate.results {
        let _ = write!(
            text,
            "  <testcase classname=\"{}\" name=\"{} {}\" time=\"{}\"",
            entry.level.map_or_else(String::new, |level| level.to_string()),
            xml(&entry.id),
            xml(&entry.name),
            seconds(entry.milliseconds)
        );
        let element = match entry.state {
            State::Pass => None,
            State::Fail => Some("failure"),
            State::NotTestable => Some("error"),
            State::NotApplicable | State::Waived => Some("skipped"),
        };
        let _ = match element {
            None => writeln!(text, "/>"),
            Some(element) => writeln!(
                text,
                ">\n    <{element} message=\"{}\"/>\n  </testcase>",
                xml(entry.reason.as_deref().unwrap_or_default())
            ),
        };
    }
    text.push_str("</testsuite>\n");
    text
}

/// Text inside XML: what XML 1.0 cannot carry is written out.
fn xml(text: &str) -> String {
    printable(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace(['\u{fffe}', '\u{ffff}'], "?")
}

/// A small picture of the level.
pub fn badge(certificate: &Certificate) -> String {
    let (label, colour) = match certificate.level {
        None => ("none".to_owned(), "#c33"),
        Some(level @ (Level::L0 | Level::L1)) => (level.to_string(), "#b80"),
        Some(level) => (level.to_string(), "#283"),
    };
    let title =
        format!("{} {}: conformance {label}", certificate.driver.name, certificate.driver.version);
    let title = xml(&title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"132\" height=\"20\" role=\"img\" \
         aria-label=\"{title}\"><title>{title}</title><rect width=\"92\" height=\"20\" \
         fill=\"#444\"/><rect x=\"92\" width=\"40\" height=\"20\" fill=\"{colour}\"/><g \
         fill=\"#fff\" font-family=\"sans-serif\" font-size=\"11\" text-anchor=\"middle\"><text \
         x=\"46\" y=\"14\">conformance</text><text x=\"112\" y=\"14\">{label}</text></g></svg>\n"
    )
}

/// The list of checks, with a mark for those that are not built.
pub fn list(missing_only: bool) -> String {
    let mut text = String::new();
    for row in catalog::rows() {
        let level = row.level.map_or_else(|| "--".to_owned(), |level| level.to_string());
        let why = catalog::not_built().find(|(other, _)| other.id == row.id).map(|(_, why)| why);
        match why {
            Some(why) => {
                let _ = writeln!(text, "{} {level} {:<30} NOT BUILT: {why}", row.id, row.name);
            }
            None if missing_only => {}
            None => {
                let _ = writeln!(text, "{} {level} {:<30} {}", row.id, row.name, row.holds);
            }
        }
    }
    text
}
