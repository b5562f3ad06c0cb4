//! The table of results.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// What we have promised ourselves.
#[derive(Clone, Copy)]
pub(crate) enum Bar {
    /// Ours at most this.
    Most(f64),
    /// Ours at least this.
    Least(f64),
    /// As good as the peer times this.
    Ratio(f64),
}

/// A figure.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    /// Figures of all rounds.
    pub(crate) ours: Vec<f64>,
    /// The peer's figures of this run, and who the peer is.
    pub(crate) peer: Option<(Vec<f64>, &'static str)>,
    pub(crate) bar: Option<Bar>,
    /// A figure that was recorded elsewhere, or what else a reader must know.
    pub(crate) note: String,
}

impl Row {
    /// Whether a larger figure is the better one.
    fn rate(&self) -> bool {
        self.unit.ends_with("/s")
    }

    fn peer(&self) -> Option<f64> {
        self.peer.as_ref().map(|(peer, _)| median(peer))
    }

    /// How many times as good as the peer we are.
    fn ratio(&self) -> Option<f64> {
        let (ours, peer) = (median(&self.ours), self.peer()?);
        Some(if self.rate() { ours / peer } else { peer / ours })
    }

    fn ok(&self) -> Option<bool> {
        Some(match self.bar? {
            Bar::Most(bar) => median(&self.ours) <= bar,
            Bar::Least(bar) => median(&self.ours) >= bar,
            Bar::Ratio(bar) => self.ratio()? >= bar,
        })
    }

    fn bar_text(&self) -> String {
        match self.bar {
            None => "-".to_owned(),
            Some(Bar::Most(bar)) => format!("<= {bar}"),
            Some(Bar::Least(bar)) => format!(">= {bar}"),
            Some(Bar::Ratio(bar)) => format!("ratio >= {bar}"),
        }
    }
}

#[derive(Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    pub(crate) fn push(&mut self, row: Row) {
        self.0.push(row);
    }

    pub(crate) fn all_ok(&self) -> bool {
        self.0.iter().all(|row| row.ok() != Some(false))
    }

    pub(crate) fn json(&self) -> Value {
        let row = |row: &Row| {
            let (bar, of) = match row.bar {
                None => (None, None),
                Some(Bar::Most(bar)) => (Some(bar), Some("ours at most")),
                Some(Bar::Least(bar)) => (Some(bar), Some("ours at least")),
                Some(Bar::Ratio(bar)) => (Some(bar), Some("ratio at least")),
            };
            json!({
                "name": row.name,
                "unit": row.unit,
                "ours": round(median(&row.ours)),
                "ours_range": range(&row.ours).map(round),
                "peer": row.peer().map(round),
                "peer_name": row.peer.as_ref().map(|(_, name)| name),
                "peer_range": row.peer.as_ref().map(|(peer, _)| range(peer).map(round)),
                "ratio": row.ratio().map(round),
                "bar": bar,
                "bar_of": of,
                "ok": row.ok(),
            })
        };
        self.0.iter().map(row).collect()
    }

    /// A table that reads the same in a terminal and in a document.
    pub(crate) fn text(&self) -> String {
        let head = ["name", "unit", "ours", "peer", "peer name", "ratio", "bar", "ok", "note"];
        let mut rows: Vec<Vec<String>> = vec![head.map(str::to_owned).to_vec()];
        for row in &self.0 {
            let dash = || "-".to_owned();
            rows.push(vec![
                row.name.clone(),
                row.unit.to_owned(),
                spread(&row.ours),
                row.peer.as_ref().map_or_else(dash, |(peer, _)| spread(peer)),
                row.peer.as_ref().map_or_else(dash, |(_, name)| (*name).to_owned()),
                row.ratio().map_or_else(dash, |ratio| round(ratio).to_string()),
                row.bar_text(),
                row.ok().map_or_else(dash, |ok| if ok { "yes" } else { "NO" }.to_owned()),
                row.note.clone(),
            ]);
        }
        let columns = 0..head.len();
        let widths: Vec<usize> = columns
            .map(|n| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or_default())
            .collect();
        let mut text = String::new();
        for (n, row) in rows.iter().enumerate() {
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(text, "| {cell:<width$} ");
            }
            text += "|\n";
            if n == 0 {
                for width in &widths {
                    let _ = write!(text, "|{}", "-".repeat(width + 2));
                }
                text += "|\n";
            }
        }
        text
    }
}

/// Bytes, as a number to calculate with.
pub(crate) fn amount(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) * 1024.0
}

pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle.wrapping_sub(1)), sorted.get(middle)) {
        (Some(low), Some(high)) if sorted.len().is_multiple_of(2) => f64::midpoint(*low, *high),
        (_, Some(figure)) => *figure,
        _ => f64::NAN,
    }
}

fn range(figures: &[f64]) -> [f64; 2] {
    let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
    [least, figures.iter().copied().fold(f64::NEG_INFINITY, f64::max)]
}

/// The median, and between which figures it lies.
fn spread(figures: &[f64]) -> String {
    let [least, most] = range(figures).map(round);
    let middle = round(median(figures));
    if least.total_cmp(&most).is_eq() {
        middle.to_string()
    } else {
        format!("{middle} [{least}..{most}]")
    }
}

/// Three digits that mean something.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10_f64.powi(2 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}
