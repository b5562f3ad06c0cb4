//! Tables, `key: value` blocks, JSON, and text that cannot steer a terminal.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use crate::cli::ColorWhen;
use crate::errors::Status;

/// What a command answers.
#[derive(Debug)]
pub(crate) struct Report {
    /// For stdout: lines, each ended; or the JSON document.
    pub(crate) text: String,
    /// For stderr, and only for people.
    pub(crate) note: Option<String>,
    /// The exit status.
    pub(crate) status: Status,
}

impl Report {
    /// Success, with a text that is made only if it is asked for.
    pub(crate) fn new(
        json: bool,
        document: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Self {
        let text = if json { to_json(document) } else { text() };
        Self { text, note: None, status: Status::OK }
    }

    /// With a word on stderr.
    #[must_use]
    pub(crate) fn note(mut self, json: bool, note: impl Into<String>) -> Self {
        if !json {
            self.note = Some(note.into());
        }
        self
    }

    /// With another exit status.
    #[must_use]
    pub(crate) fn status(mut self, status: Status) -> Self {
        self.status = status;
        self
    }
}

/// A document as it is printed: indented, because people look at it too.
pub(crate) fn to_json(document: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(document).unwrap_or_else(|error| {
        // The types of the model are all representable; if one is not, the reader must see it.
        Value::String(format!("this answer cannot be written as JSON: {error}")).to_string()
    });
    text.push('\n');
    text
}

/// Writes to stdout. A reader who has gone away (`smctl vdi list | head -1`) is no error.
pub(crate) fn print(text: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Whether to use colour on a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    on: bool,
}

impl Style {
    /// Without colour.
    #[cfg(test)]
    pub(crate) const fn plain() -> Self {
        Self { on: false }
    }

    /// As wished, for the stream.
    pub(crate) fn choose(when: ColorWhen, stream: &impl IsTerminal) -> Self {
        let on = match when {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => {
                let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
                let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
                !set("NO_COLOR") && !dumb && stream.is_terminal()
            }
        };
        Self { on }
    }

    /// Whether it colours.
    pub(crate) fn is_on(self) -> bool {
        self.on
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    pub(crate) fn error(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(crate) fn hint(self, text: &str) -> String {
        self.paint("1;36", text)
    }

    pub(crate) fn header(self, text: &str) -> String {
        self.paint("1", text)
    }
}

/// Whether a character must not reach a terminal as it is: controls, and what reorders or hides
/// text (a name could show as another one).
pub(crate) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A text on one line, unambiguously: `\n`, `\t`, `\u{1b}`, and a backslash doubled.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '\t' => escaped.push_str("\\t"),
            '\r' => escaped.push_str("\\r"),
            c if is_unsafe(c) => escaped.extend(c.escape_unicode()),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Which side of a column the text stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows in columns two blanks apart.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row. Cells are shown as they are: what came from outside is escaped before.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The text, a line for the header and one for each row.
    pub(crate) fn render(&self, style: Style) -> String {
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(n, (title, _))| {
                let cells = self.rows.iter().filter_map(|row| row.get(n));
                cells.map(|cell| cell.width()).max().unwrap_or(0).max(title.width())
            })
            .collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for ((cell, (_, align)), width) in cells.zip(&self.columns).zip(&widths) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                let padding = " ".repeat(width.saturating_sub(cell.width()));
                match align {
                    Align::Left => line.extend([cell, &padding]),
                    Align::Right => line.extend([&padding, cell]),
                }
            }
            line.truncate(line.trim_end_matches(' ').len());
            line
        };
        let mut text = style.header(&line(&mut self.columns.iter().map(|(title, _)| *title)));
        text.push('\n');
        for row in &self.rows {
            text.push_str(&line(&mut row.iter().map(String::as_str)));
            text.push('\n');
        }
        text
    }
}

/// `key: value` lines, the values aligned.
#[derive(Debug, Default)]
pub(crate) struct Block(Vec<(String, String)>);

impl Block {
    /// Adds a line. The value is shown as it is.
    pub(crate) fn line(&mut self, key: impl Into<String>, value: impl Into<String>) -> &mut Self {
        self.0.push((key.into(), value.into()));
        self
    }

    /// Adds a line with a text that somebody chose.
    pub(crate) fn text(&mut self, key: impl Into<String>, value: &str) -> &mut Self {
        self.line(key, escape(value))
    }

    pub(crate) fn render(&self) -> String {
        let width = self.0.iter().map(|(key, _)| key.width()).max().unwrap_or(0) + 1;
        let mut text = String::new();
        for (key, value) in &self.0 {
            let padding = " ".repeat(width - key.width());
            text.push_str(format!("{key}:{padding}{value}").trim_end_matches(' '));
            text.push('\n');
        }
        text
    }
}

/// A yes or no.
pub(crate) fn yes(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}

/// Seconds since 1970 as `2026-01-31T12:00:00Z`.
pub(crate) fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a count of days since 1970-01-01, in the Gregorian calendar: years are
/// counted from March, so that the leap day is the last of its year, in eras of 400 years.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let mut table =
            Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right), ("X", Align::Left)]);
        table.row(["a", "10GiB", ""].map(String::from));
        table.row(["磁盘盘", "1B", "y"].map(String::from));
        assert_eq!(
            table.render(Style::plain()),
            "NAME     SIZE  X\na       10GiB\n磁盘盘     1B  y\n"
        );
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_eq!(Table::new(&[("NAME", Align::Left)]).render(Style::plain()), "NAME\n");
    }

    #[test]
    fn an_empty_first_cell_keeps_its_column() {
        let mut table = Table::new(&[("NAME", Align::Left), ("X", Align::Left)]);
        table.row(["", "y"].map(String::from));
        assert_eq!(table.render(Style::plain()), "NAME  X\n      y\n");
    }

    #[test]
    fn blocks_align_their_values() {
        let mut block = Block::default();
        block.line("uuid", "1").text("name", "a\nb").line("empty", "");
        assert_eq!(block.render(), "uuid:  1\nname:  a\\nb\nempty:\n");
    }

    #[test]
    fn escaping_shows_what_a_terminal_would_act_on() {
        for (text, shown) in [
            ("plain ü 💽", "plain ü 💽"),
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("\u{9b}2J", "\\u{9b}2J"),
            ("\u{202e}gpj.exe", "\\u{202e}gpj.exe"),
            ("C:\\n", "C:\\\\n"),
            ("zero\u{200b}width", "zero\\u{200b}width"),
        ] {
            assert_eq!(escape(text), shown);
        }
    }

    #[test]
    fn times_are_written_as_iso_8601() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }
}
