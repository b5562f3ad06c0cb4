//! Why a command failed, in sentences.

use std::fmt;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    sentence: String,
    cause: Option<String>,
    hint: Option<String>,
}

/// The result of a step.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), cause: None, hint: None }
    }

    /// What a lower level said, word for word.
    pub(crate) fn cause(mut self, cause: impl fmt::Display) -> Self {
        let cause = cause.to_string().trim_end().to_owned();
        self.cause = (!cause.is_empty()).then_some(cause);
        self
    }

    /// What can be done about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)?;
        for (label, text) in [("because", &self.cause), ("hint", &self.hint)] {
            if let Some(text) = text {
                write!(f, "\n  {label}: {}", text.replace('\n', "\n  "))?;
            }
        }
        Ok(())
    }
}

/// Adds what was being done to an error of the system.
pub(crate) trait Doing<T> {
    /// `what` completes "cannot ...".
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Failure::new(format!("cannot {}", what())).cause(error))
    }
}
