//! `smctl` in a guest.

use serde_json::Value;

use crate::call::Call;
use crate::error::{Error, Result};
use crate::guest::Guest;

/// `smctl` of a guest, with a state of its own there, gone with the guest's power.
pub struct Smctl<'a> {
    guest: &'a Guest,
    program: String,
}

impl<'a> Smctl<'a> {
    /// That program, just built; it finds its drivers beside it.
    pub fn new(guest: &'a Guest, program: impl Into<String>) -> Self {
        Self { guest, program: program.into() }
    }

    /// A command of it.
    pub fn call(&self, words: &[&str]) -> Call<'a> {
        let all = std::iter::once(self.program.as_str()).chain(words.iter().copied());
        self.guest
            .command(all)
            .env("SMCTL_STATE_DIR", "/var/tmp/sm/state")
            .env("SM_RUN_DIR", "/var/tmp/sm/run")
    }

    /// What a command says that must work.
    pub fn check(&self, words: &[&str]) -> Result<String> {
        self.call(words).check()
    }

    /// The document that a command answers with.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.check(&[words, &["--json"]].concat())?;
        serde_json::from_str(&text).map_err(|error| Error::Wrong(format!("{error}: {text}")))
    }

    /// The error that a command ends with.
    pub fn refused(&self, words: &[&str]) -> Result<Value> {
        let output = self.call(&[words, &["--json"]].concat()).run()?;
        let errors = output.errors();
        let last = errors.lines().position(|line| line.starts_with('{'));
        let json = last.map(|at| errors.lines().skip(at).collect::<Vec<_>>().join("\n"));
        match json.and_then(|json| serde_json::from_str(&json).ok()) {
            Some(value) if output.status != 0 => Ok(value),
            _ => Err(Error::Wrong(format!(
                "{words:?} ended with {}: {}\n{errors}",
                output.status,
                output.text()
            ))),
        }
    }
}
