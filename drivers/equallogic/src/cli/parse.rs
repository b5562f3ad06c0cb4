//! `Key: value` texts and tables.
//!
//! Screens are narrow: a value that is too long goes on in the next line, and a cell of a table in
//! the same column of the next lines. With 255 columns that happens to long initiators still.

use std::collections::BTreeMap;

use array_kit::size::parse_text;
use plugin_sdk::model::Bytes;

/// A text of lines `Key: value`, as `volume select NAME show` answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details(BTreeMap<String, String>);

impl Details {
    /// Reads it. What stands after the first table in it (access records, snapshots) is not looked at.
    pub fn read(lines: &[String]) -> Self {
        let mut details = BTreeMap::new();
        let mut last: Option<String> = None;
        let mut titles = 0;
        for line in lines {
            if is_rule(line) {
                // `____ Volume Information ____` begins; another title begins something else.
                titles += 1;
                if titles > 1 && !details.is_empty() {
                    break;
                }
                continue;
            }
            match key(line) {
                Some((name, value)) => {
                    let name = name.to_ascii_lowercase();
                    details.entry(name.clone()).or_insert_with(|| value.trim().to_owned());
                    last = Some(name);
                }
                None => {
                    if let Some(value) = last.as_ref().and_then(|name| details.get_mut(name)) {
                        value.push_str(line.trim());
                    }
                }
            }
        }
        Self(details)
    }

    /// The value of a key, in any case; `None` where it is absent or empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(&key.to_ascii_lowercase()).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The value as a size. `100% (1.01GB)` is the size in parentheses.
    pub fn size(&self, key: &str) -> Option<Bytes> {
        let text = self.get(key)?;
        let inner = text.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
        parse_text(inner.map_or(text, |(inner, _)| inner))
    }

    /// The value as a number.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }

    /// Whether nothing was understood.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The key and value of a line. Keys are words: a value that was wrapped within a name with a colon
/// (`iqn.2001-05.com.equallogic:0-8a...`) is none.
fn key(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once(':')?;
    let words = name.starts_with(|c: char| c.is_ascii_uppercase() || c == 'i')
        && name.len() <= 40
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b' ' | b'-' | b'/' | b'_'));
    (words && (value.is_empty() || value.starts_with(' '))).then_some((name.trim(), value))
}

/// Whether a line is a title, or the rule below the heads of a table.
fn is_rule(line: &str) -> bool {
    let line = line.trim();
    line.starts_with("___") || (!line.is_empty() && line.bytes().all(|b| b == b'-' || b == b' '))
}

/// A table: rows of cells, by the rule below its heads or, without one, by words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The heads, in lower case.
    pub heads: Vec<String>,
    /// The rows; each has as many cells as there are columns, or as it has words.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Reads a table. `begins` tells from its first word whether a line begins a row; what does not,
    /// goes on with the row before.
    pub fn read(lines: &[String], begins: impl Fn(&str) -> bool) -> Self {
        let rule = lines.iter().position(|line| is_columns(line));
        let (columns, heads, body) = match rule {
            Some(at) => {
                let columns = columns(lines.get(at).map_or("", String::as_str));
                let above = at.checked_sub(1).and_then(|above| lines.get(above));
                let heads = above.map_or_else(Vec::new, |line| cells(line, &columns));
                (columns, heads, lines.get(at + 1..).unwrap_or_default())
            }
            None => (Vec::new(), Vec::new(), lines),
        };
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut starts: Vec<usize> = columns.clone();
        for line in body.iter().filter(|line| !is_rule(line)) {
            let indented = line.starts_with(' ');
            let first = line.split_whitespace().next().unwrap_or_default();
            if !indented && begins(first) {
                if columns.is_empty() {
                    starts = words(line).map(|(at, _)| at).collect();
                }
                rows.push(cells(line, &starts));
            } else if let Some(row) = rows.last_mut() {
                for (at, word) in words(line) {
                    let column = starts.iter().rposition(|start| *start <= at).unwrap_or(0);
                    if let Some(cell) = row.get_mut(column) {
                        cell.push_str(word);
                    }
                }
            }
        }
        let heads = heads.iter().map(|head| head.to_ascii_lowercase()).collect();
        Self { heads, rows }
    }

    /// The line that shows that this is no table at all: nothing in it was understood, and it is
    /// neither empty nor says that there is nothing (`No snapshots.`).
    fn stranger(&self, lines: &[String], head: &str, understood: bool) -> Option<String> {
        let heads = || self.heads.iter().any(|one| one.starts_with(head));
        let none = |line: &String| line.trim_start().to_ascii_lowercase().starts_with("no ");
        if understood || heads() || lines.iter().any(none) {
            return None;
        }
        lines.first().cloned()
    }

    /// The column whose head begins so, else the `usual` one.
    pub fn column(&self, head: &str, usual: usize) -> usize {
        self.heads.iter().position(|one| one.starts_with(head)).unwrap_or(usual)
    }
}

fn is_columns(line: &str) -> bool {
    let line = line.trim();
    line.len() > 3 && line.contains("--") && line.bytes().all(|b| b == b'-' || b == b' ')
}

/// Where the columns begin.
fn columns(rule: &str) -> Vec<usize> {
    words(rule).map(|(at, _)| at).collect()
}

/// The words of a line, with the places where they begin.
fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    line.split(' ').filter_map(move |word| {
        let begin = at;
        at += word.len() + 1;
        (!word.is_empty()).then_some((begin, word))
    })
}

/// The cells of a line by the columns' beginnings. A word belongs to the column that begins last
/// before it; one that is too long pushes the others to the right, and then each word is a cell.
fn cells(line: &str, columns: &[usize]) -> Vec<String> {
    let all: Vec<(usize, &str)> = words(line).collect();
    let mut cells = vec![String::new(); columns.len().max(1)];
    let mut pushed = columns.is_empty();
    for (at, word) in &all {
        let column = columns.iter().rposition(|start| start <= at).unwrap_or(0);
        // It reaches into the next column: the rule does not hold for this line.
        if columns.get(column + 1).is_some_and(|next| at + word.len() > *next) {
            pushed = true;
        }
        if let Some(cell) = cells.get_mut(column) {
            if !cell.is_empty() {
                cell.push(' ');
            }
            cell.push_str(word);
        }
    }
    if pushed { all.into_iter().map(|(_, word)| word.to_owned()).collect() } else { cells }
}

/// A line of `volume show`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeRow {
    /// Its name.
    pub name: String,
    /// Its size, as the text has it.
    pub size: Option<Bytes>,
    /// Whether that is the size itself: in whole megabytes, of which pages are made. Other units are
    /// rounded.
    pub exact: bool,
    /// How many snapshots it has; `None` where that was not understood.
    pub snapshots: Option<u64>,
    /// `online`, `offline`, or what is wrong.
    pub status: String,
}

impl VolumeRow {
    /// Whether the row says how it is, so that nobody need ask.
    pub fn is_plain(&self) -> bool {
        self.exact && ["online", "offline"].iter().any(|s| self.status.eq_ignore_ascii_case(s))
    }
}

/// Reads `volume show`. An error is a line that may be a volume of ours and cannot be read: a listing
/// that leaves it out would lose a disk.
pub fn volumes(lines: &[String]) -> Result<Vec<VolumeRow>, String> {
    let table = Table::read(lines, |_| true);
    let (size, snapshots, status) =
        (table.column("size", 1), table.column("snapshots", 2), table.column("status", 3));
    let mut found = Vec::new();
    for row in &table.rows {
        let cell = |n: usize| row.get(n).map_or("", String::as_str);
        // A line of words that is no row: `No volumes found`, a title.
        if row.len() < 4 || parse_text(cell(size)).is_none() {
            if cell(0).starts_with("sm") && cell(0).len() > 3 {
                return Err(row.join(" "));
            }
            continue;
        }
        found.push(VolumeRow {
            name: cell(0).to_owned(),
            size: parse_text(cell(size)),
            exact: cell(size).strip_suffix("MB").is_some_and(|digits| {
                !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
            }),
            snapshots: cell(snapshots).parse().ok(),
            status: cell(status).to_owned(),
        });
    }
    table.stranger(lines, "name", !found.is_empty()).map_or(Ok(found), Err)
}

/// Reads `volume select NAME snapshot show`: the names. An error is a line of something else: what is
/// taken for no snapshots may be removed with them.
pub fn snapshots(lines: &[String]) -> Result<Vec<String>, String> {
    let table = Table::read(lines, |_| true);
    let fits = |row: &&Vec<String>| {
        let states = ["online", "offline", "read-write", "read-only"];
        row.len() >= 3 && row.iter().skip(1).any(|cell| states.iter().any(|s| cell.starts_with(s)))
    };
    let found: Vec<String> =
        table.rows.iter().filter(fits).filter_map(|row| row.first().cloned()).collect();
    table.stranger(lines, "name", !found.is_empty()).map_or(Ok(found), Err)
}

/// A record of who may reach a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRecord {
    /// Its number.
    pub id: u64,
    /// The initiator's qualified name; `*` or empty is anybody.
    pub initiator: String,
    /// Whatever else it says: addresses, CHAP user, what it applies to.
    pub rest: Vec<String>,
}

/// Reads `access show`. A row is a line that begins with a number; another line goes on with the
/// initiator, whichever number of lines that takes. An error is a line of something else.
pub fn access(lines: &[String]) -> Result<Vec<AccessRecord>, String> {
    let table = Table::read(lines, |first| first.parse::<u64>().is_ok());
    let initiator = table.column("initiator", 1).max(1);
    let record = |row: &Vec<String>| {
        let id = row.first()?.split_whitespace().next()?.parse().ok()?;
        let name = row.get(initiator)?.clone();
        let rest = row.iter().enumerate().filter(|(n, _)| *n != 0 && *n != initiator);
        Some(AccessRecord {
            id,
            initiator: name,
            rest: rest.map(|(_, cell)| cell.clone()).collect(),
        })
    };
    let found: Vec<AccessRecord> = table.rows.iter().filter_map(record).collect();
    table.stranger(lines, "id", !found.is_empty()).map_or(Ok(found), Err)
}

/// A pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolRow {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size: Bytes,
    /// What is free.
    pub free: Bytes,
}

/// Reads `pool show`. Beside the name only sizes matter: the first is the capacity, the second
/// what is free.
pub fn pools(lines: &[String]) -> Vec<PoolRow> {
    let table = Table::read(lines, |_| true);
    let mut pools = Vec::new();
    for row in &table.rows {
        let is_size = |cell: &&String| cell.ends_with('B') && parse_text(cell).is_some();
        let mut sizes = row.iter().skip(1).filter(is_size).filter_map(|cell| parse_text(cell));
        if let (Some(name), Some(size), Some(free)) = (row.first(), sizes.next(), sizes.next()) {
            pools.push(PoolRow { name: name.clone(), size, free });
        }
    }
    pools
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
    }

    /// The text of `volume select NAME show`, as users have published it; the target's name wrapped.
    const SHOW: &str = "\
_______________________________ Volume Information ________________________________
Name: volume-74cf9c04-4543-47ae-a937-a9b7c6c921e7
Size: 1GB
VolReserve: 1.01GB
VolReserveInUse: 0MB
iSCSI Alias: volume-74cf9c04-4543-47ae-a937-a9b7c6c921e7
iSCSI Name: iqn.2001-05.com.equallogic:0-8a0906-19f91850c-067000000b4532c1-vol
ume-74cf9c04-4543-47ae-a937-a9b7c6c921e7
ActualMembers: 1
Snap-Depletion: delete-oldest
Description:
Snap-Reserve: 100%
Snap-Reserve-Avail: 100% (1.01GB)
Status: online
Connections: 0
Snapshots: 3
_______________________________ Access Records ________________________________
ID  Initiator                     Ipaddress       AuthMethod UserName   Apply-To
Name: not-this
";

    #[test]
    fn the_text_of_a_volume_is_read() {
        let details = Details::read(&lines(SHOW));
        assert_eq!(details.get("name"), Some("volume-74cf9c04-4543-47ae-a937-a9b7c6c921e7"));
        assert_eq!(
            details.get("iscsi name"),
            Some(
                "iqn.2001-05.com.equallogic:0-8a0906-19f91850c-067000000b4532c1-volume-74cf9c04-4543-47ae-a937-a9b7c6c921e7"
            )
        );
        assert_eq!(details.size("Size"), Some(Bytes(1 << 30)));
        assert_eq!(details.size("Snap-Reserve-Avail"), Some(Bytes(1_084_479_243)));
        assert_eq!((details.get("description"), details.number("snapshots")), (None, Some(3)));
        assert_eq!(details.number("connections"), Some(0));
    }

    #[test]
    fn volumes_are_read_wrapped_and_not() {
        let wrapped = lines(
            "Name            Size       Snapshots Status  Permission Connections TP\n\
             --------------- ---------- --------- ------- ---------- ----------- -\n\
             payroll         10GB       0         online  read-write 2           N\n\
             smv-bmfqwcyrcer 102405MB   12        offline read-write 0           Y\n\
             \x20 agmztireegorgm\n\
             \x20 q-6193\n\
             nightly         5.5TB      1         online  read-only  0           N\n",
        );
        let rows = volumes(&wrapped).unwrap();
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["payroll", "smv-bmfqwcyrceragmztireegorgmq-6193", "nightly"]);
        assert_eq!(rows[1].size, Some(Bytes(102_405 << 20)));
        assert_eq!((rows[1].snapshots, rows[1].status.as_str()), (Some(12), "offline"));
        // A name that is wider than its column pushes the rest to the right.
        let wide = lines(
            "Name            Size       Snapshots Status  Permission Connections TP\n\
             --------------- ---------- --------- ------- ---------- ----------- -\n\
             smv-bmfqwcyrceragmztireegorgmq-6193 15MB 0 online read-write 0 Y\n",
        );
        assert_eq!(volumes(&wide).unwrap()[0].name, "smv-bmfqwcyrceragmztireegorgmq-6193");
        assert_eq!(volumes(&wide).unwrap()[0].size, Some(Bytes(15 << 20)));
        let bare = lines("payroll 10GB 0 online read-write 2 N\nNo more volumes.\n");
        assert_eq!(volumes(&bare).unwrap().len(), 1);
        assert_eq!(volumes(&lines("No volumes found.")), Ok(Vec::new()));
        let cut = volumes(&lines("payroll 10GB 0 online read-write 2 N\nsmv-bmfq\n"));
        assert_eq!(cut, Err("smv-bmfq".to_owned()));
    }

    #[test]
    fn access_records_are_read_by_their_numbers() {
        let wrapped = lines(
            "ID  Initiator                     Ipaddress       AuthMethod UserName   Apply-To\n\
             --- ----------------------------- --------------- ---------- ---------- --------\n\
             1   iqn.1993-08.org.debian:01:222 *.*.*.*         none                  both\n\
             \x20      7dab76162\n\
             2   iqn.2004-01.example:h2        *.*.*.*         chap       vms        both\n",
        );
        let records = access(&wrapped).unwrap();
        let found: Vec<_> = records.iter().map(|r| (r.id, r.initiator.as_str())).collect();
        assert_eq!(
            found,
            [(1, "iqn.1993-08.org.debian:01:2227dab76162"), (2, "iqn.2004-01.example:h2")]
        );
        // Without heads and rule, and with an odd number of lines for each.
        let bare = lines(
            "1   iqn.1993-08.org.debian:01:222 *.*.*.*       none        both\n\
             \x20      7dab76162\n\
             12  iqn.a *.*.*.* none both\n",
        );
        let records = access(&bare).unwrap();
        assert_eq!((records[1].id, records[1].initiator.as_str()), (12, "iqn.a"));
        assert_eq!(records[0].initiator, "iqn.1993-08.org.debian:01:2227dab76162");
        assert_eq!(access(&lines("No access records.")), Ok(Vec::new()));
        assert_eq!(access(&lines("<html>")), Err("<html>".to_owned()));
    }

    #[test]
    fn snapshots_and_pools_are_read() {
        let taken = lines(
            "Name                 Permission Status      Connections\n\
             -------------------- ---------- ----------- -----------\n\
             web-2009-06-10-12:00 read-write offline     0\n\
             \x20 :00.1.1\n\
             sms-1                read-write online      2\n",
        );
        assert_eq!(snapshots(&taken).unwrap(), ["web-2009-06-10-12:00:00.1.1", "sms-1"]);
        assert_eq!(snapshots(&lines("No snapshots.")), Ok(Vec::new()));
        assert_eq!(snapshots(&lines("")), Ok(Vec::new()));
        assert_eq!(snapshots(&lines("@@ Segm")), Err("@@ Segm".to_owned()));
        let shown = lines(
            "Name                 Default Members Volumes Capacity   FreeSpace\n\
             -------------------- ------- ------- ------- ---------- ----------\n\
             default              true    1       100     111GB      11GB\n\
             fast                 false   1       0       1536.0MB   1.5GB\n",
        );
        let pools = pools(&shown);
        assert_eq!((pools[0].name.as_str(), pools[0].size), ("default", Bytes(111 << 30)));
        assert_eq!((pools[1].free, pools.len()), (Bytes(1536 << 20), 2));
    }

    proptest! {
        #[test]
        fn any_lines_are_read(lines in prop::collection::vec(prop_oneof![
            ".{0,60}", "[-_ ]{0,20}", "[0-9]{1,3} +iqn[.a-z0-9]{0,40} .{0,30}",
            "[A-Z][a-z]{0,8}: .{0,20}", " {1,8}[a-zé]{0,9}",
        ], 0..20)) {
            let _ = (Details::read(&lines), volumes(&lines), access(&lines));
            let _ = (snapshots(&lines), pools(&lines));
        }
    }
}
