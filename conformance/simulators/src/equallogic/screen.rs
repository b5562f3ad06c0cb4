//! How replies are printed: titles, `Key: value` texts, tables; wrapped at the screen's width.

/// A reply before it is printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Line(String),
    Title(String),
    Pairs(Vec<(String, String)>),
    Table(Table),
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The heads, each with the width of its column.
    pub columns: Vec<(&'static str, usize)>,
    /// How far a cell that goes on is indented within its column.
    pub indent: usize,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

/// How a session wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Characters in a line.
    pub columns: usize,
    /// Two pairs in a line.
    pub format: bool,
    /// Sizes in megabytes.
    pub megabytes: bool,
}

impl Page {
    /// A page of one line.
    pub fn line(text: impl Into<String>) -> Self {
        Self { parts: vec![Part::Line(text.into())] }
    }

    /// The page of a refusal.
    pub fn refusal(words: impl std::fmt::Display) -> Self {
        Self::line(format!("% Error - {words}"))
    }

    /// ... and a line.
    #[must_use]
    pub fn and_line(mut self, text: impl Into<String>) -> Self {
        self.parts.push(Part::Line(text.into()));
        self
    }

    /// ... and a title.
    #[must_use]
    pub fn title(mut self, text: &str) -> Self {
        self.parts.push(Part::Title(text.to_owned()));
        self
    }

    /// ... and pairs.
    #[must_use]
    pub fn pairs<K: Into<String>, V: Into<String>>(
        mut self,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let pairs = pairs.into_iter().map(|(key, value)| (key.into(), value.into()));
        self.parts.push(Part::Pairs(pairs.collect()));
        self
    }

    /// ... and a table.
    #[must_use]
    pub fn table(mut self, table: Table) -> Self {
        self.parts.push(Part::Table(table));
        self
    }

    /// The lines, as a screen shows them.
    pub fn print(&self, look: Look) -> Vec<String> {
        let mut lines = Vec::new();
        for part in &self.parts {
            match part {
                Part::Line(text) => wrap(text, look.columns, &mut lines),
                Part::Title(text) => {
                    let rule = "_".repeat(look.columns.min(83).saturating_sub(text.len() + 2) / 2);
                    lines.push(format!("{rule} {text} {rule}"));
                }
                Part::Pairs(pairs) if look.format => {
                    for two in pairs.chunks(2) {
                        let text: Vec<String> = two.iter().map(pair).collect();
                        let width = look.columns / 2;
                        let line = match text.as_slice() {
                            [left, right] => format!("{left:<width$}{right}"),
                            other => other.concat(),
                        };
                        wrap(&line, look.columns, &mut lines);
                    }
                }
                Part::Pairs(pairs) => {
                    for two in pairs {
                        wrap(&pair(two), look.columns, &mut lines);
                    }
                }
                Part::Table(table) => table.print(&mut lines),
            }
        }
        lines
    }
}

fn pair((key, value): &(String, String)) -> String {
    format!("{key}: {value}").trim_end().to_owned()
}

/// Breaks a line wherever the screen ends.
fn wrap(text: &str, columns: usize, lines: &mut Vec<String>) {
    let all: Vec<char> = text.chars().collect();
    if all.is_empty() {
        lines.push(String::new());
    }
    lines.extend(all.chunks(columns.max(1)).map(|part| part.iter().collect::<String>()));
}

impl Table {
    fn print(&self, lines: &mut Vec<String>) {
        let line = |cells: Vec<String>| {
            let padded =
                cells.iter().zip(&self.columns).map(|(cell, (_, width))| format!("{cell:<width$}"));
            padded.collect::<Vec<_>>().join(" ").trim_end().to_owned()
        };
        lines.push(line(self.columns.iter().map(|(head, _)| (*head).to_owned()).collect()));
        lines.push(line(self.columns.iter().map(|(_, width)| "-".repeat(*width)).collect()));
        for row in &self.rows {
            let mut rest: Vec<&str> = row.iter().map(String::as_str).collect();
            let mut first = true;
            while first || rest.iter().any(|cell| !cell.is_empty()) {
                let mut cells = Vec::new();
                for (cell, (_, width)) in rest.iter_mut().zip(&self.columns) {
                    let indent = if first || cell.is_empty() { 0 } else { self.indent };
                    let at = cell.len().min(width.saturating_sub(indent).max(1));
                    let (now, later) = cell.split_at_checked(at).unwrap_or((cell, ""));
                    cells.push(format!("{}{now}", " ".repeat(indent)));
                    *cell = later;
                }
                lines.push(line(cells));
                first = false;
            }
        }
    }
}

/// A size as the array writes it: `1GB`, `1.01GB`, `102405MB`.
pub fn size(bytes: u64, megabytes: bool) -> String {
    let unit = |shift: u32, name: &str| {
        let hundredths = (u128::from(bytes) * 100).div_ceil(1 << shift);
        match (hundredths / 100, hundredths % 100) {
            (whole, 0) => format!("{whole}{name}"),
            (whole, part) if part % 10 == 0 => format!("{whole}.{}{name}", part / 10),
            (whole, part) => format!("{whole}.{part:02}{name}"),
        }
    };
    match bytes {
        _ if megabytes || bytes < 1 << 30 => unit(20, "MB"),
        _ if bytes < 1 << 40 => unit(30, "GB"),
        _ => unit(40, "TB"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails so")]
mod tests {
    use super::*;
    use crate::equallogic::command::{self, Command, Grant, Target, Wrong};

    const PLAIN: Look = Look { columns: 80, format: false, megabytes: true };

    #[test]
    fn pairs_and_tables_wrap_as_screens_do() {
        let name = "iqn.1993-08.org.debian:01:2227dab76162";
        let table = Table {
            columns: vec![("ID", 3), ("Initiator", 29), ("Ipaddress", 15), ("AuthMethod", 10)],
            indent: 3,
            rows: vec![vec!["1".into(), name.into(), "*.*.*.*".into(), "none".into()]],
        };
        let lines = Page::default().table(table).print(PLAIN);
        assert_eq!(lines[2], "1   iqn.1993-08.org.debian:01:222 *.*.*.*         none");
        assert_eq!(lines[3], "       7dab76162");
        let page = Page::default().pairs([("Name", "x".repeat(100)), ("Size", "15MB".to_owned())]);
        let lines = page.print(PLAIN);
        assert_eq!((lines.len(), lines[0].len(), lines[1].len()), (3, 80, 26));
        let two = page.print(Look { format: true, columns: 255, megabytes: true });
        assert!(two[0].starts_with("Name: x") && two[0].ends_with("Size: 15MB"));
    }

    #[test]
    fn sizes_are_rounded_up_as_text() {
        assert_eq!(size(1 << 30, false), "1GB");
        assert_eq!(size(1_084_479_242, false), "1.01GB");
        assert_eq!(size(102_405 << 20, true), "102405MB");
        assert_eq!(size(3 << 39, false), "1.5TB");
        assert_eq!(
            (size(0, false), size((1 << 20) + 1, false)),
            ("0MB".to_owned(), "1.01MB".to_owned())
        );
        assert_eq!(command::size("1.5GB"), Some(3 << 29));
        assert_eq!(
            (command::size("15"), command::size("1X"), command::size("GB")),
            (Some(15 << 20), None, None)
        );
    }

    #[test]
    fn commands_are_understood() {
        let read = |line: &str| Command::read(line).unwrap();
        let web = Target { volume: "web".into(), snapshot: None };
        assert_eq!(read("  "), Command::Empty);
        assert_eq!(read("volume show"), Command::ListVolumes);
        assert_eq!(read("volume show web"), Command::Show(web.clone()));
        assert_eq!(read("volume select web show"), Command::Show(web.clone()));
        assert_eq!(
            read("volume select web description 'a \"b\"'"),
            Command::Describe(web.clone(), "a \"b\"".into())
        );
        let grant =
            Grant { initiator: Some("iqn.a".into()), address: None, chap: Some("u".into()) };
        assert_eq!(
            read("volume select web access create initiator iqn.a authmethod chap username u"),
            Command::Grant(web, grant)
        );
        let snapshot = Target { volume: "web".into(), snapshot: Some("s".into()) };
        assert_eq!(read("volume select web snapshot select s restore"), Command::Restore(snapshot));
        assert_eq!(Command::read("reboot"), Err(Wrong::Unknown));
        assert_eq!(Command::read("volume select web reboot"), Err(Wrong::Invalid("reboot".into())));
        assert_eq!(Command::read("volume show web now"), Err(Wrong::Invalid("now".into())));
        assert_eq!(Command::read("volume create web"), Err(Wrong::Missing("size".into())));
    }
}
