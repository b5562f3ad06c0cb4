//! Steps, each a line with its time; and `smctl` as a user types it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::failure::{Doing, Result};
use crate::tool::{Printed, Tool, quoted};

/// Where `smctl` is typed.
pub(crate) trait Terminal {
    /// What stands before a command.
    fn prompt(&self) -> String;

    /// Runs `smctl` with these words, which must work.
    fn smctl(&self, words: &[&str]) -> Result<Printed>;
}

/// The program, in a folder, with its own state.
pub(super) struct Smctl {
    program: PathBuf,
    state: PathBuf,
    directory: PathBuf,
}

impl Smctl {
    pub(super) fn new(product: &Path, state: &Path, directory: &Path) -> Self {
        let (state, directory) = (state.to_owned(), directory.to_owned());
        Self { program: product.join("smctl"), state, directory }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What a user's environment would say once stands here in the environment, so that the
    /// commands read as in the manual.
    fn tool(&self, words: &[&str]) -> Tool {
        Tool::new(&self.program)
            .args(words)
            .env("SMCTL_STATE_DIR", &self.state)
            .env("SM_RUN_DIR", self.state.with_file_name("run"))
            .env("LC_ALL", "C.UTF-8")
            .directory(&self.directory)
    }
}

impl Terminal for Smctl {
    fn prompt(&self) -> String {
        "$".to_owned()
    }

    fn smctl(&self, words: &[&str]) -> Result<Printed> {
        self.tool(words).run()
    }
}

/// What has been done so far.
#[derive(Default)]
pub(crate) struct Steps {
    commands: usize,
    checks: usize,
    busy: Duration,
    titles: usize,
}

impl Steps {
    pub(crate) fn title(&mut self, title: &str) {
        self.titles += 1;
        println!("\n{}. {title}", self.titles);
    }

    /// Types a command, shows what it prints, and answers it.
    pub(crate) fn type_in(&mut self, terminal: &impl Terminal, words: &[&str]) -> Result<String> {
        self.commands += 1;
        let command = words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        let mut answer = String::new();
        self.timed(&format!("{} smctl {command}", terminal.prompt()), || {
            let printed = terminal.smctl(words)?;
            answer = printed.stdout;
            Ok(printed.stderr.lines().last().unwrap_or_default().to_owned())
        })?;
        // A document is for programs.
        if !words.contains(&"--json") {
            answer.lines().for_each(|line| println!("                     {line}"));
        }
        Ok(answer)
    }

    /// Types a command that answers a document.
    pub(crate) fn type_in_json(
        &mut self,
        terminal: &impl Terminal,
        words: &[&str],
    ) -> Result<Value> {
        let answer = self.type_in(terminal, words)?;
        serde_json::from_str(&answer).doing(|| format!("read the JSON of {}", words.join(" ")))
    }

    /// Something that others do: a check, if it says so.
    pub(crate) fn step<T>(&mut self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut answer = None;
        self.checks += usize::from(what.starts_with("check"));
        self.timed(what, || {
            answer = Some(work()?);
            Ok(String::new())
        })?;
        answer.ok_or_else(|| crate::failure::Failure::new(format!("{what}: no answer")))
    }

    /// A step that has something to say.
    pub(crate) fn step_said(
        &mut self,
        what: &str,
        work: impl FnOnce() -> Result<String>,
    ) -> Result<()> {
        self.checks += usize::from(what.starts_with("check"));
        self.timed(what, work)
    }

    fn timed(&mut self, what: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
        let start = Instant::now();
        let outcome = work();
        let took = start.elapsed();
        self.busy += took;
        let (word, said) = match &outcome {
            Ok(said) if said.is_empty() => ("ok", String::new()),
            Ok(said) => ("ok", format!("  ({said})")),
            Err(_) => ("FAILED", String::new()),
        };
        println!("  {word:<6} {:>6} ms  {what}{said}", took.as_millis());
        outcome.map(drop)
    }

    /// Says how the demo went.
    pub(crate) fn end(&self, outcome: Result<()>) -> Result<ExitCode> {
        let (how, summary) =
            (if outcome.is_ok() { "passed:" } else { "FAILED after" }, self.summary());
        println!("\ndemo {how} {summary}");
        outcome.map(|()| ExitCode::SUCCESS)
    }

    fn summary(&self) -> String {
        format!(
            "{} commands of smctl and {} checks by other tools in {:.1} s",
            self.commands,
            self.checks,
            self.busy.as_secs_f64()
        )
    }
}
