//! The table of results.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// A figure.
#[derive(Default)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) ours: f64,
    /// The peer's figure of this run, and who the peer is.
    pub(crate) peer: Option<(f64, String)>,
    /// Ours must not be above it.
    pub(crate) bar: Option<f64>,
    /// A figure that was recorded elsewhere, or what else a reader must know.
    pub(crate) note: String,
}

impl Row {
    /// How many times the peer's figure is ours.
    fn ratio(&self) -> Option<f64> {
        self.peer.as_ref().map(|(peer, _)| peer / self.ours)
    }

    /// One line for another process to read.
    fn to_line(&self) -> String {
        let (peer, peer_name) = self.peer.clone().unwrap_or((f64::NAN, String::new()));
        let bar = self.bar.unwrap_or(f64::NAN);
        let (name, unit, ours, note) = (&self.name, &self.unit, self.ours, &self.note);
        format!("{name}\t{unit}\t{ours}\t{peer}\t{peer_name}\t{bar}\t{note}\n")
    }

    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let mut fields = line.split('\t');
        let mut text = || fields.next().map(str::to_owned);
        let (name, unit, ours, peer, peer_name, bar, note) =
            (text()?, text()?, text()?, text()?, text()?, text()?, text()?);
        let number = |text: String| text.parse::<f64>().ok();
        Some(Self {
            name,
            unit,
            ours: number(ours)?,
            peer: number(peer).filter(|peer| !peer.is_nan()).map(|peer| (peer, peer_name)),
            bar: number(bar).filter(|bar| !bar.is_nan()),
            note,
        })
    }

    fn ok(&self) -> Option<bool> {
        self.bar.map(|bar| self.ours <= bar)
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

    pub(crate) fn lines(&self) -> String {
        self.0.iter().map(Row::to_line).collect()
    }

    pub(crate) fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "name": row.name,
                "unit": row.unit,
                "ours": round(row.ours),
                "peer": row.peer.as_ref().map(|(peer, _)| round(*peer)),
                "peer_name": row.peer.as_ref().map(|(_, name)| name),
                "ratio": row.ratio().map(round),
                "bar": row.bar,
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
                row.unit.clone(),
                short(row.ours),
                row.peer.as_ref().map_or_else(dash, |(peer, _)| short(*peer)),
                row.peer.as_ref().map_or_else(dash, |(_, name)| name.clone()),
                row.ratio().map_or_else(dash, short),
                row.bar.map_or_else(dash, |bar| format!("<= {bar}")),
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

/// Three digits that mean something.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10_f64.powi(2 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

fn short(value: f64) -> String {
    round(value).to_string()
}
