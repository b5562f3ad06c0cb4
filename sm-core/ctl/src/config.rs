//! `key=value` words, and secrets that do not stand among them.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use sm_model::{DeviceConfig, Error, Kind, Manifest};

use crate::errors::{Failure, Result, file_error};
use crate::session::Session;

/// Reads `KEY=VALUE` words.
pub(crate) fn pairs(words: &[String]) -> Result<BTreeMap<String, String>> {
    let mut pairs = BTreeMap::new();
    for word in words {
        let (key, value) =
            word.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
                Failure::usage(format!("{:?} is not KEY=VALUE", crate::output::escape(word)))
            })?;
        if pairs.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(Failure::usage(format!("the key {key} is given twice")));
        }
    }
    Ok(pairs)
}

/// Device-config words as typed: `key=value`, or `device-config:key=value` as in xe.
pub(crate) fn device_config(words: &[String]) -> Result<DeviceConfig> {
    let plain: Vec<String> = words
        .iter()
        .map(|word| word.strip_prefix("device-config:").unwrap_or(word).to_owned())
        .collect();
    pairs(&plain)
}

/// Replaces `@FILE` and `-` in the keys that the driver declares secret by the text they stand
/// for. Other keys may begin with `@`.
pub(crate) async fn fetch_secrets(
    session: &Session,
    manifest: &Manifest,
    config: &mut DeviceConfig,
) -> Result<()> {
    for (key, value) in config {
        if !manifest.field(key).is_some_and(|field| field.secret) {
            continue;
        }
        if let Some(path) = value.strip_prefix('@') {
            let text = std::fs::read_to_string(path).map_err(|error| file_error(path, error))?;
            without_line_end(&text).clone_into(value);
        } else if value == "-" {
            let prompt = format!("{key}: ");
            // The thread may wait for a line for ever; a cancel does not wait for the thread.
            let reader = tokio::task::spawn_blocking(move || read_secret(&prompt));
            *value = tokio::select! {
                read = reader => read
                    .map_err(|error| Error::internal("reading the secret failed").source(&error))??,
                () = session.op.cancel.cancelled() => return Err(cancelled().into()),
            };
        } else {
            session.hide(value);
        }
    }
    Ok(())
}

fn cancelled() -> Error {
    Error::new(Kind::Cancelled, "the caller cancelled")
}

fn without_line_end(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

/// A line of stdin; at a terminal with a prompt, and not shown.
fn read_secret(prompt: &str) -> sm_model::Result<String> {
    let stdin = std::io::stdin();
    let hidden = if stdin.is_terminal() {
        std::io::stderr().write_all(prompt.as_bytes())?;
        Some(Hidden::new()?)
    } else {
        None
    };
    let mut lock = stdin.lock();
    let mut line = Vec::new();
    if hidden.is_some() {
        read_typed(&mut lock, &mut line)?;
        let _ = std::io::stderr().write_all(b"\n");
    } else {
        lock.read_until(b'\n', &mut line)?;
    }
    if line.is_empty() {
        return Err(Error::config("standard input ended before the secret"));
    }
    if line.last() == Some(&INTERRUPT) {
        return Err(cancelled());
    }
    let text = String::from_utf8(line)
        .map_err(|_| Error::config("the secret on standard input is not UTF-8"))?;
    Ok(without_line_end(&text).to_owned())
}

/// Ctrl-C as a character.
const INTERRUPT: u8 = 3;

/// A line from a terminal in the state of [`Hidden`].
fn read_typed(terminal: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<()> {
    loop {
        let typed = terminal.fill_buf()?;
        let count = typed.len();
        line.extend_from_slice(typed);
        terminal.consume(count);
        if count == 0 || matches!(line.last(), Some(&(b'\n' | INTERRUPT))) {
            return Ok(());
        }
    }
}

/// The terminal without echo, until dropped. Ctrl-C ends the line instead of this process, which
/// would leave the terminal silent.
struct Hidden(Termios);

impl Hidden {
    fn new() -> std::io::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        // With ISIG off Ctrl-C is an ordinary character; as VEOL it ends the line.
        silent.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn both_forms_of_a_key_are_read() {
        let config =
            device_config(&words(&["location=/a=b", "device-config:server=x", "empty="])).unwrap();
        assert_eq!(config["location"], "/a=b");
        assert_eq!(config["server"], "x");
        assert_eq!(config["empty"], "");
    }

    #[test]
    fn a_word_without_key_is_refused() {
        for (word, message) in [
            ("location", "\"location\" is not KEY=VALUE"),
            ("=x", "\"=x\" is not KEY=VALUE"),
            ("", "\"\" is not KEY=VALUE"),
        ] {
            let Err(Failure::Usage { message: said, .. }) = pairs(&words(&[word])) else {
                panic!()
            };
            assert_eq!(said, message);
        }
        assert!(pairs(&words(&["a=1", "a=2"])).is_err());
    }

    #[test]
    fn only_the_last_line_end_is_taken_off() {
        for (text, secret) in [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a ")] {
            assert_eq!(without_line_end(text), secret);
        }
    }

    #[test]
    fn what_is_typed_ends_with_the_line_or_with_an_interrupt() {
        for (typed, line) in [
            (&b"secret\n"[..], &b"secret\n"[..]),
            (b"sec\x03", b"sec\x03"),
            (b"without an end", b"without an end"),
            (b"", b""),
        ] {
            let mut read = Vec::new();
            read_typed(&mut std::io::BufReader::with_capacity(3, typed), &mut read).unwrap();
            assert_eq!(read, line);
        }
    }
}
