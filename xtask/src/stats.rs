//! `cargo xtask stats`: how large the drivers are, without their tests.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::failure::{Doing, Result};
use crate::project;

/// Most lines of code that a driver of these arrays has: what is more belongs into the array kit. The
/// others speak two APIs (`truenas`) or a command line over SSH (`equallogic`), or work on this host.
const BAR: usize = 700;
const BELOW_BAR: [&str; 3] = ["ontap", "powerstore", "purestorage"];

/// Lines of a source file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    /// Neither empty nor a comment.
    code: usize,
    /// Documentation and comments.
    comments: usize,
}

pub(crate) fn run() -> Result<ExitCode> {
    let drivers = project::root().join("drivers");
    let mut names: Vec<PathBuf> = folder(&drivers)?;
    names.retain(|path| path.join("src").is_dir());
    println!("{:<14} {:>6} {:>9} {:>6} {:>5}", "driver", "code", "comments", "files", "bar");
    let mut above = Vec::new();
    for path in names {
        let mut files = Vec::new();
        sources(&path.join("src"), &mut files)?;
        let mut total = Count::default();
        for file in &files {
            let text =
                std::fs::read_to_string(file).doing(|| format!("read {}", file.display()))?;
            let count = count(&text);
            total.code += count.code;
            total.comments += count.comments;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let has_bar = BELOW_BAR.contains(&name.as_str());
        let bar = if has_bar { BAR.to_string() } else { "-".to_owned() };
        println!("{name:<14} {:>6} {:>9} {:>6} {bar:>5}", total.code, total.comments, files.len());
        if has_bar && total.code > BAR {
            above.push(name);
        }
    }
    println!("Lines below src/ without modules of tests; empty ones count nowhere.");
    if above.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("above the bar: {}; move what others have alike into array-kit", above.join(", "));
    Ok(ExitCode::FAILURE)
}

/// What is in a folder, by name.
pub(crate) fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    let doing = || format!("read {}", path.display());
    let mut all = Vec::new();
    for entry in std::fs::read_dir(path).doing(doing)? {
        all.push(entry.doing(doing)?.path());
    }
    all.sort();
    Ok(all)
}

fn sources(path: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in folder(path)? {
        if entry.is_dir() {
            sources(&entry, into)?;
        } else if entry.extension().is_some_and(|one| one == "rs") {
            into.push(entry);
        }
    }
    Ok(())
}

/// Up to the module of tests, which stands at the end of a file.
fn count(text: &str) -> Count {
    let mut count = Count::default();
    for line in text.lines().take_while(|line| *line != "#[cfg(test)]").map(str::trim) {
        match line {
            "" => {}
            _ if line.starts_with("//") => count.comments += 1,
            _ => count.code += 1,
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_lines_comments_and_tests_are_no_code() {
        let text = "//! a\n\nfn a() {\n    // why\n    b();\n}\n\n#[cfg(test)]\nmod tests {\n}\n";
        assert_eq!(count(text), Count { code: 3, comments: 2 });
    }
}
