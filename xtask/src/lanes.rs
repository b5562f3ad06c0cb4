//! The test programs of all packages, two at a time.
//!
//! One after the other, as `cargo test` runs programs, they leave a good part of two processors
//! unused: a test often waits, for a guest or for a disk. So there are two lanes, and whichever is
//! free takes the next program. Those that boot guests come first: beside each other they wait less
//! for a processor than beside what computes without a pause, and how long the lab takes can be told.
//! A program's lines are kept until it ends: those of two never mix.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

/// How many programs run at the same time.
const LANES: usize = 2;

/// What has been run.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Whether all programs have ended well.
    pub(crate) good: bool,
    /// From the start of the first program that boots guests to the end of the last one.
    pub(crate) lab: Duration,
}

/// Programs that are to be run. Whichever lane is free takes the next.
#[derive(Debug)]
struct Queue {
    /// Those that boot guests come first.
    programs: Vec<Program>,
    next: AtomicUsize,
    end: Instant,
    bad: AtomicBool,
    /// When the last program that boots guests has ended, so far.
    lab: Mutex<Option<Instant>>,
}

/// Builds all test programs and runs them until `end`. Each line goes to `each` as if `cargo test`
/// had said it. A lane that has no more programs does what is left: `rest`, which tells lines of its
/// own.
pub(crate) fn run(
    end: Instant,
    each: impl FnMut(&str) + Send,
    rest: impl Fn(&dyn Fn(&[String])) + Sync,
) -> Result<Ran> {
    let words = ["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"];
    let printed = cargo().args(words).run()?;
    let queue = Queue::new(programs(&printed.stdout), end);
    if queue.programs.is_empty() {
        return Err(Failure::new("cargo has built no test programs"));
    }
    let each = Mutex::new(each);
    let say = |lines: &[String]| tell(&each, lines);
    let began = Instant::now();
    let whole = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES)
            .map(|_| {
                scope.spawn(|| {
                    queue.work(&each);
                    rest(&say);
                })
            })
            .collect();
        // All are waited for, whatever comes of one.
        lanes.into_iter().filter_map(|lane| lane.join().err()).count() == 0
    });
    let lab = *queue.lab.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = lab.map_or(Duration::ZERO, |ended| ended.duration_since(began));
    Ok(Ran { good: whole && !queue.bad.into_inner(), lab })
}

impl Queue {
    fn new(mut programs: Vec<Program>, end: Instant) -> Self {
        programs.sort_by_key(|program| !program.boots_guests());
        let (next, bad, lab) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
        Self { programs, next, end, bad, lab }
    }

    /// Runs programs until none is left that nobody runs.
    fn work(&self, each: &Mutex<impl FnMut(&str)>) {
        while let Some(program) = self.programs.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            println!("started: {} {}", program.folder.display(), program.title);
            let left = self.end.saturating_duration_since(Instant::now());
            let (lines, good) = program.run(left.min(ONE));
            if !good {
                self.bad.store(true, Ordering::Relaxed);
            }
            if program.boots_guests() {
                let mut lab = self.lab.lock().unwrap_or_else(PoisonError::into_inner);
                *lab = Some(Instant::now());
            }
            tell(each, &lines);
        }
    }
}

impl Program {
    fn boots_guests(&self) -> bool {
        IN_GUESTS.contains(&self.target.as_str())
    }

    /// What it has said, and whether it has ended well.
    fn run(&self, deadline: Duration) -> (Vec<String>, bool) {
        let mut lines = vec![format!("     Running {}", self.title)];
        let status = Tool::new(&self.path)
            .directory(&self.folder)
            .deadline(deadline)
            .lines(|line| lines.push(line.to_owned()));
        let complaint = match status {
            Ok(status) if status.success() => return (lines, true),
            Ok(status) => format!("{} ended with {status}", self.title),
            Err(failure) => failure.to_string(),
        };
        lines.push(complaint);
        (lines, false)
    }
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

    fn named(target: &str, path: &str) -> Program {
        let (target, title) = (target.to_owned(), path.to_owned());
        Program { folder: "/".into(), target, title, path: path.into() }
    }

    #[test]
    fn a_program_that_fails_is_told_and_the_next_one_runs() {
        let mut said = Vec::new();
        let each = Mutex::new(|line: &str| said.push(line.to_owned()));
        let programs = vec![named("one", "/bin/false"), named("two", "/bin/true")];
        let queue = Queue::new(programs, Instant::now() + ONE);
        queue.work(&each);
        assert!(queue.bad.into_inner());
        assert_eq!(*queue.lab.lock().unwrap(), None, "neither boots guests");
        assert_eq!(
            said,
            [
                "     Running /bin/false",
                "/bin/false ended with exit status: 1",
                "     Running /bin/true"
            ]
        );
    }

    #[test]
    fn programs_that_boot_guests_come_first_and_are_timed() {
        let mut said = Vec::new();
        let each = Mutex::new(|line: &str| said.push(line.trim().to_owned()));
        let programs = vec![named("vhd", "/bin/echo"), named("lab", "/bin/true")];
        let queue = Queue::new(programs, Instant::now() + ONE);
        queue.work(&each);
        assert!(queue.lab.lock().unwrap().is_some() && !queue.bad.into_inner());
        assert_eq!(said, ["Running /bin/true", "Running /bin/echo", ""]);
    }
}
