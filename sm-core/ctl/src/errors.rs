//! What is said when something fails, and the exit status it ends with.

use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::{Value, json};
use sm_model::sr::ProbeItem;
use sm_model::{Error, Kind};

use crate::output::{Style, escape};
use crate::session::Retry;

/// The exit status. The numbers are part of the interface: scripts branch on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u8);

impl Status {
    pub(crate) const OK: Self = Self(0);
    pub(crate) const USAGE: Self = Self(2);
    pub(crate) const CORRUPT: Self = Self(13);
    pub(crate) const UNKNOWN: Self = Self(17);
    /// As a shell reports a process that SIGINT ended.
    pub(crate) const INTERRUPTED: Self = Self(130);

    /// The status of a class of error.
    pub(crate) fn of(kind: &Kind) -> Self {
        Self(match kind {
            Kind::Internal => 1,
            Kind::NotFound => 3,
            Kind::Exists => 4,
            Kind::InUse => 5,
            Kind::NoSpace => 6,
            Kind::Limit => 7,
            Kind::Busy { .. } => 8,
            Kind::Config { .. } => 9,
            Kind::Auth => 10,
            Kind::Unreachable => 11,
            Kind::Fenced => 12,
            Kind::Corrupt => Self::CORRUPT.0,
            Kind::Unsupported => 14,
            Kind::Cancelled => 15,
            Kind::DeadlineExceeded => 16,
            Kind::Unknown => Self::UNKNOWN.0,
        })
    }
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line makes no sense.
    Usage {
        /// The fact.
        message: String,
        /// The next step.
        hint: Option<String>,
    },
    /// The storage manager says no.
    Model(Error),
}

/// The result of a command.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A command line that makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: None }
    }

    /// With the next step.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        match self {
            Self::Usage { message, .. } => Self::Usage { message, hint: Some(hint.into()) },
            Self::Model(error) => Self::Model(error.hint(hint)),
        }
    }

    /// The exit status.
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Usage { .. } => Status::USAGE,
            Self::Model(error) => Status::of(&error.kind),
        }
    }

    /// Whether nobody knows if it was done.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self, Self::Model(error) if error.kind == Kind::Unknown)
    }

    /// The document of `--json`.
    fn document(&self, retry: Option<&Retry>) -> Value {
        let error = match self {
            Self::Usage { message, hint } => {
                // What follows the fact is for people.
                let fact = message.split("\n\n").next().unwrap_or_default().trim_end();
                let mut error = json!({"kind": "usage", "message": fact, "retry": "permanent"});
                if let Some(hint) = hint {
                    error["hint"] = json!(hint);
                }
                error
            }
            Self::Model(error) => serde_json::to_value(error).unwrap_or_else(
                |problem| json!({"kind": "internal", "message": problem.to_string()}),
            ),
        };
        let mut document = json!({"error": error, "exit_status": self.status().0});
        if let Some(retry) = retry {
            document["operation_id"] = json!(retry.operation_id());
            if self.is_unknown() {
                document["retry_command"] = json!(retry.command());
            }
        }
        document
    }

    /// The text for people.
    fn text(&self, style: Style, verbose: bool, retry: Option<&Retry>) -> String {
        let mut text = String::new();
        let mut hints: Vec<String> = Vec::new();
        match self {
            Self::Usage { message, hint } => {
                let _ = writeln!(text, "{} {}", style.error("smctl:"), message.trim_end());
                hints.extend(hint.clone());
            }
            Self::Model(error) => {
                let _ = writeln!(text, "{} {}", style.error("smctl:"), visible(&error.to_string()));
                if let Kind::Config { candidates, .. } = &error.kind {
                    text.push_str(&candidates_text(candidates));
                }
                if verbose {
                    details(&mut text, error);
                }
                hints.extend(error.hint.as_deref().map(visible));
            }
        }
        if self.is_unknown()
            && let Some(retry) = retry
        {
            hints.push(format!("the operation id is {}", retry.operation_id()));
            hints.push(format!("to ask for the same again: {}", retry.command()));
        }
        if !hints.is_empty() {
            text.push('\n');
        }
        for hint in hints {
            let _ = writeln!(text, "{} {hint}", style.hint("hint:"));
        }
        text
    }

    /// Says it on stderr.
    pub(crate) fn report(&self, style: Style, json: bool, verbose: bool, retry: Option<&Retry>) {
        let text = if json {
            format!("{}\n", self.document(retry))
        } else {
            self.text(style, verbose, retry)
        };
        // Nobody is left to tell if stderr is closed.
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Model(error)
    }
}

/// An error of the operating system about a file.
pub(crate) fn file_error(path: impl std::fmt::Display, error: std::io::Error) -> Failure {
    let words = error.to_string();
    let mut error = Error::from(error);
    error.message = format!("{path}: {words}");
    Failure::Model(error)
}

/// Messages can repeat a name that somebody chose: it must not steer the terminal.
fn visible(text: &str) -> String {
    text.split('\n')
        .map(|line| {
            if line.chars().any(crate::output::is_unsafe) { escape(line) } else { line.to_owned() }
        })
        .collect::<Vec<_>>()
        .join("\n      ")
}

fn details(text: &mut String, error: &Error) {
    for cause in &error.causes {
        let _ = writeln!(text, "caused by: {}", visible(cause));
    }
    if let Some(operation) = &error.operation {
        let _ = writeln!(text, "operation: {operation}");
    }
    for (key, value) in &error.context {
        let _ = writeln!(text, "{key}: {}", visible(value));
    }
    if let Some(legacy) = &error.legacy {
        let _ = writeln!(text, "SR_BACKEND_FAILURE_{}: {}", legacy.code, visible(&legacy.text));
    }
}

/// What could be filled in, one candidate a line.
fn candidates_text(candidates: &[ProbeItem]) -> String {
    if candidates.is_empty() {
        return String::new();
    }
    let mut text = String::from("\nwhat can be added:\n");
    for item in candidates {
        let mut words: Vec<String> = item
            .configuration
            .iter()
            .map(|(key, value)| crate::shell::quote(&format!("{key}={value}")))
            .collect();
        if !item.extra_info.is_empty() {
            let info: Vec<String> = item
                .extra_info
                .iter()
                .map(|(key, value)| format!("{}: {}", escape(key), escape(value)))
                .collect();
            words.push(format!(" # {}", info.join(", ")));
        }
        let _ = writeln!(text, "  {}", words.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_the_fact_then_a_blank_line_then_the_next_step() {
        let failure = Failure::from(Error::not_found("there is no SR \"x\"").hint("look again"));
        assert_eq!(
            failure.text(Style::plain(), false, None),
            "smctl: there is no SR \"x\"\n\nhint: look again\n"
        );
        assert_eq!(failure.status(), Status(3));
    }

    #[test]
    fn causes_and_context_come_with_verbose() {
        let error = Error::internal("m").legacy(200).context("path", "/x");
        let text = Failure::from(error).text(Style::plain(), true, None);
        assert_eq!(text, "smctl: m\npath: /x\nSR_BACKEND_FAILURE_200: General IO error\n");
    }

    #[test]
    fn an_unknown_outcome_names_the_id_and_the_retry() {
        let id = "00000000-0000-0000-0000-000000000001";
        let argv = ["smctl", "vdi", "destroy", "a b"].map(String::from).to_vec();
        let retry = Retry::new(argv, id.parse().unwrap());
        let failure = Failure::from(Error::new(Kind::Unknown, "no answer"));
        assert_eq!(
            failure.text(Style::plain(), false, Some(&retry)),
            format!(
                "smctl: no answer\n\nhint: the operation id is {id}\n\
                 hint: to ask for the same again: \
                 smctl --operation-id={id} vdi destroy 'a b'\n"
            )
        );
        let document = failure.document(Some(&retry));
        assert_eq!(document["exit_status"], 17);
        assert_eq!(document["operation_id"], id);
        assert_eq!(document["error"]["kind"], "unknown");
    }

    #[test]
    fn candidates_are_ready_to_paste() {
        let item = ProbeItem {
            configuration: [("serverpath".to_owned(), "/my exports".to_owned())].into(),
            extra_info: [("access".to_owned(), "*".to_owned())].into(),
            ..ProbeItem::default()
        };
        assert_eq!(
            candidates_text(&[item]),
            "\nwhat can be added:\n  'serverpath=/my exports'  # access: *\n"
        );
    }

    #[test]
    fn a_message_cannot_steer_the_terminal() {
        let failure = Failure::from(Error::not_found("no \u{1b}[2J"));
        assert_eq!(failure.text(Style::plain(), false, None), "smctl: no \\u{1b}[2J\n");
    }

    #[test]
    fn every_kind_has_a_status_of_its_own() {
        let config = Kind::Config { missing: vec![], candidates: vec![] };
        let busy = Kind::Busy { retry_after_ms: None };
        let kinds = [
            Kind::Internal,
            Kind::NotFound,
            Kind::Exists,
            Kind::InUse,
            Kind::NoSpace,
            Kind::Limit,
            busy,
            config,
            Kind::Auth,
            Kind::Unreachable,
            Kind::Fenced,
            Kind::Corrupt,
            Kind::Unsupported,
            Kind::Cancelled,
            Kind::DeadlineExceeded,
            Kind::Unknown,
        ];
        let mut seen: Vec<u8> = kinds.iter().map(|kind| Status::of(kind).0).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), kinds.len());
        assert!(!seen.contains(&Status::OK.0) && !seen.contains(&Status::USAGE.0));
    }
}
