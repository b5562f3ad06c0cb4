//! Times as pictures: SVG inside the page, with the figures as text, so that it is read without
//! colours too. Drawn for a width of 400, which is about that of a phone.

#![expect(
    clippy::cast_precision_loss,
    reason = "milliseconds and lines become places of a picture"
)]

use std::collections::BTreeMap;

use maud::{Markup, html};

use crate::certificate::{Certificate, Entry, Timing};

/// Width of all pictures.
const WIDTH: f64 = 400.0;

/// Height of a line.
const LINE: f64 = 20.0;

/// Checks in the picture of the slowest.
const SLOWEST: usize = 15;

/// How long the slowest checks took.
pub(crate) fn slowest(certificate: &Certificate) -> Markup {
    let mut all: Vec<&Entry> = certificate.results.iter().collect();
    all.sort_by_key(|entry| std::cmp::Reverse(entry.milliseconds));
    all.truncate(SLOWEST);
    let most = all.first().map_or(1, |entry| entry.milliseconds.max(1));
    let height = LINE * all.len() as f64;
    let bar = |ms: u64| (ms as f64 / most as f64 * 240.0).max(1.0);
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label="the slowest checks" {
            @for (line, entry) in all.iter().enumerate() {
                @let top = LINE * line as f64;
                text x="0" y=(top + 14.0) { (entry.id) }
                rect class="bar" x="40" y=(top + 4.0) width=(format!("{:.1}", bar(entry.milliseconds)))
                    height="12" { title { (entry.name) } }
                text class="faint" x=(format!("{:.1}", 46.0 + bar(entry.milliseconds)))
                    y=(top + 14.0) { (entry.milliseconds) " ms" }
            }
        }
    }
}

/// How long the driver's calls took: a row for each operation, a dot for each check where half of
/// them took no longer, and a line from there to where all but a twentieth did.
pub(crate) fn calls(certificate: &Certificate) -> Markup {
    let mut rows: BTreeMap<&str, Vec<Timing>> = BTreeMap::new();
    for entry in &certificate.results {
        for (operation, timing) in &entry.calls {
            rows.entry(operation).or_default().push(*timing);
        }
    }
    let most = rows.values().flatten().map(|timing| timing.p95_ms).max().unwrap_or(1).max(10);
    // Powers of ten; what took no millisecond is at the left.
    let decades = (most - 1).max(1).ilog10() + 1;
    let at = |ms: u64| 140.0 + (ms.max(1) as f64).log10() / f64::from(decades) * 245.0;
    let place = |ms: u64| format!("{:.1}", at(ms));
    let ticks: Vec<u64> = (0..=decades).map(|power| 10_u64.pow(power)).collect();
    let bottom = LINE * rows.len() as f64;
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {}", bottom + LINE)) role="img"
            aria-label="times of the driver's calls" {
            @for tick in &ticks {
                line class="grid" x1=(place(*tick)) x2=(place(*tick)) y1="0" y2=(bottom) {}
                text class="faint" x=(place(*tick)) y=(bottom + 14.0) text-anchor="middle" {
                    (match tick { 1 => "≤ 1 ms".to_owned(), other => other.to_string() })
                }
            }
            @for (line, (operation, timings)) in rows.iter().enumerate() {
                @let middle = LINE * line as f64 + LINE / 2.0;
                text x="0" y=(middle + 4.0) { (operation) }
                @for timing in timings {
                    line class="reach" x1=(place(timing.p50_ms)) x2=(place(timing.p95_ms))
                        y1=(middle) y2=(middle) stroke-width="3" {}
                    circle class="dot" cx=(place(timing.p50_ms)) cy=(middle) r="4" {}
                }
            }
        }
    }
}
