//! The test programs of all packages, two at a time.
//!
//! Tests in guests mostly wait for a guest, and most others compute; one after the other, as
//! `cargo test` runs programs, they leave half of two processors unused. So there are two lanes,
//! one for each sort; the one that has come to its end first goes on with what is left for both. A
//! program's lines are kept until it ends: those of two never mix.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::project::cargo;
use crate::tool::Tool;

/// Names of the test targets that boot guests.
const IN_GUESTS: [&str; 2] = ["lab", "kernels"];

/// The longest that one program may take.
const ONE: Duration = Duration::from_secs(20 * 60);

/// A test program that cargo has built.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    /// Where its package is: tests run there.
    folder: PathBuf,
    /// Its name among cargo's targets, and what is said of it as cargo does.
    target: String,
    title: String,
    path: PathBuf,
}

/// Builds all test programs and runs them until `end`. Each line goes to `each` as if `cargo test`
/// had said it. A lane that has no more programs does what is left: `rest`, which tells lines of its
/// own. Answers whether all programs have ended well.
pub(crate) fn run(
    end: Instant,
    each: impl FnMut(&str) + Send,
    rest: impl Fn(&dyn Fn(&[String])) + Sync,
) -> Result<bool> {
    let words = ["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"];
    let printed = cargo().args(words).run()?;
    let (guests, others): (Vec<_>, Vec<_>) = programs(&printed.stdout)
        .into_iter()
        .partition(|program| IN_GUESTS.contains(&program.target.as_str()));
    if others.is_empty() {
        return Err(Failure::new("cargo has built no test programs"));
    }
    let each = Mutex::new(each);
    let say = |lines: &[String]| tell(&each, lines);
    Ok(std::thread::scope(|scope| {
        let lanes = [guests, others]
            .map(|programs| {
                scope.spawn(|| {
                    let good = lane(programs, end, &each);
                    rest(&say);
                    good
                })
            })
            .map(std::thread::ScopedJoinHandle::join);
        lanes.into_iter().all(|good| good.unwrap_or(false))
    }))
}

fn lane(programs: Vec<Program>, end: Instant, each: &Mutex<impl FnMut(&str)>) -> bool {
    let mut good = true;
    for program in programs {
        println!("started: {} {}", program.folder.display(), program.title);
        let mut lines = vec![format!("     Running {}", program.title)];
        let left = end.saturating_duration_since(Instant::now());
        let status = Tool::new(&program.path)
            .directory(&program.folder)
            .deadline(left.min(ONE))
            .lines(|line| lines.push(line.to_owned()));
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => {
                lines.push(format!("{} ended with {status}", program.title));
                good = false;
            }
            Err(failure) => {
                lines.push(failure.to_string());
                good = false;
            }
        }
        tell(each, &lines);
    }
    good
}

/// Lines that belong together.
fn tell(each: &Mutex<impl FnMut(&str)>, lines: &[String]) {
    let mut each = each.lock().unwrap_or_else(PoisonError::into_inner);
    for line in lines {
        each(line);
    }
}

/// What cargo has said of the programs that it built, in the order of their packages.
fn programs(messages: &str) -> Vec<Program> {
    let mut programs: Vec<Program> = messages.lines().filter_map(program).collect();
    programs.sort_by(|one, other| (&one.folder, &one.title).cmp(&(&other.folder, &other.title)));
    programs
}

fn program(line: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(line).ok()?;
    if !message.pointer("/profile/test")?.as_bool()? {
        return None;
    }
    let text = |pointer: &str| message.pointer(pointer).and_then(Value::as_str);
    let path = PathBuf::from(text("/executable")?);
    let folder = Path::new(text("/manifest_path")?).parent()?.to_owned();
    let source = Path::new(text("/target/src_path")?);
    let source = source.strip_prefix(&folder).unwrap_or(source).display();
    let unit = if text("/target/kind/0")? == "test" { "" } else { "unittests " };
    let title = format!("{unit}{source} ({})", path.display());
    Some(Program { folder, target: text("/target/name")?.to_owned(), title, path })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn test_programs_are_found_among_what_cargo_says() {
        let message = |kind: &str, name: &str, source: &str, test: bool, program: Value| {
            json!({
                "reason": "compiler-artifact", "manifest_path": "/r/vhd/Cargo.toml",
                "target": {"kind": [kind], "name": name, "src_path": source},
                "profile": {"test": test}, "executable": program,
            })
            .to_string()
        };
        let messages = [
            message("test", "lab", "/r/vhd/tests/lab/main.rs", true, json!("/t/lab-2")),
            message("lib", "vhd", "/r/vhd/src/lib.rs", true, json!("/t/vhd-1")),
            message("lib", "vhd", "/r/vhd/src/lib.rs", false, Value::Null),
            message("bin", "tool", "/r/vhd/src/main.rs", false, json!("/t/tool")),
            json!({"reason": "build-finished", "success": true}).to_string(),
            "not a message".to_owned(),
        ];
        let found = programs(&messages.join("\n"));
        let titles: Vec<_> = found.iter().map(|program| program.title.as_str()).collect();
        assert_eq!(titles, ["tests/lab/main.rs (/t/lab-2)", "unittests src/lib.rs (/t/vhd-1)"]);
        assert!(found.iter().all(|program| program.folder == Path::new("/r/vhd")));
    }

    #[test]
    fn a_program_that_fails_is_told_and_the_next_one_runs() {
        let program = |path: &str| Program {
            folder: "/".into(),
            target: path.to_owned(),
            title: path.to_owned(),
            path: path.into(),
        };
        let mut said = Vec::new();
        let each = Mutex::new(|line: &str| said.push(line.to_owned()));
        let end = Instant::now() + ONE;
        assert!(!lane(vec![program("/bin/false"), program("/bin/true")], end, &each));
        assert_eq!(
            said,
            [
                "     Running /bin/false",
                "/bin/false ended with exit status: 1",
                "     Running /bin/true"
            ]
        );
    }
}
