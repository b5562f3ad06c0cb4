//! `smctl vhd diff`

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};
use sm_model::{Bytes, Error, Kind};
use vhd::diff::{Diff, Range, Relation};
use vhd::folder::Parents;

use super::convert::{Stop, permille};
use super::errors::failure;
use super::shown;
use crate::cli::Global;
use crate::errors::{Failure, Result};
use crate::output::{Align, Report, Style, Table};
use crate::progress::Progress;

/// Ranges that are kept to be printed.
const MOST: usize = 1 << 22;

pub(super) fn diff(
    files: [&PathBuf; 2],
    content: bool,
    parents: Parents<'_>,
    global: &Global,
    style: Style,
) -> Result<Report> {
    let [left, right] = files;
    let diff = Diff::open(left, right, parents).map_err(failure)?;
    if diff.relation == Relation::Unrelated && !content {
        let message = format!("{} and {} are based on no common image", shown(left), shown(right));
        return Err(Error::unsupported(message).hint("--content reads and compares them").into());
    }
    let mut ranges: Vec<Range> = Vec::new();
    let mut full = false;
    let mut keep = |range: Range| {
        full = ranges.len() >= MOST;
        if full {
            return Err(vhd::Error::Stopped { done: range.offset });
        }
        ranges.push(range);
        Ok(())
    };
    let stop = Stop::start(global.timeout);
    let result = if content {
        let progress = Progress::start(global.json);
        let sink = progress.sink();
        let result = diff.content(
            &mut |done, total| {
                sink(permille(done, total), "comparing");
                if stop.is_over() { Err(vhd::Error::Stopped { done }) } else { Ok(()) }
            },
            &mut keep,
        );
        progress.finish();
        result
    } else {
        diff.metadata(&mut keep)
    };
    if let Err(error) = result {
        if full {
            return Err(too_many());
        }
        return Err(stop.blame(error, global.timeout));
    }
    let bytes: u64 = ranges.iter().map(|range| range.length).sum();
    let relation = match diff.relation {
        Relation::Same => "same",
        Relation::Ancestor => "ancestor",
        Relation::Descendant => "descendant",
        Relation::Common => "common_ancestor",
        Relation::Unrelated => "unrelated",
    };
    let extents: Vec<Value> = if global.json {
        ranges.iter().map(|r| json!({"offset": r.offset, "length": r.length})).collect()
    } else {
        Vec::new()
    };
    let document = json!({
        "left": left.to_string_lossy(),
        "right": right.to_string_lossy(),
        "relation": relation,
        "ancestor": diff.ancestor.as_ref().map(|path| path.to_string_lossy()),
        "left_size": diff.left_size,
        "right_size": diff.right_size,
        "content": content,
        "bytes": bytes,
        "extents": extents,
    });
    let mut note = match (content, ranges.len()) {
        (_, 0) => "no difference".to_owned(),
        (true, count) => format!("{} in {count} ranges differ", Bytes(bytes)),
        (false, count) => format!("{} in {count} ranges were written", Bytes(bytes)),
    };
    if diff.left_size != diff.right_size {
        let (left, right) = (Bytes(diff.left_size), Bytes(diff.right_size));
        let _ = write!(note, "; the sizes are {left} and {right}");
    }
    Ok(Report::new(global.json, &document, || {
        let mut table = Table::new(&[("OFFSET", Align::Right), ("LENGTH", Align::Right)]);
        for range in &ranges {
            table.row([range.offset.to_string(), range.length.to_string()]);
        }
        table.render(style)
    })
    .note(global.json, note))
}

fn too_many() -> Failure {
    Error::new(Kind::Limit, format!("more than {MOST} ranges differ"))
        .hint("the images have little in common: compare them as a whole")
        .into()
}
