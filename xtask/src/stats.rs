//! `cargo xtask stats`: how large the drivers are, without their tests.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::failure::{Doing, Result};
use crate::project;

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
    println!("{:<14} {:>6} {:>9} {:>6}", "driver", "code", "comments", "files");
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
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        println!("{name:<14} {:>6} {:>9} {:>6}", total.code, total.comments, files.len());
    }
    println!("Lines below src/ without modules of tests; empty ones count nowhere.");
    Ok(ExitCode::SUCCESS)
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
