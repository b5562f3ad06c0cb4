//! Words as a shell reads them, for commands that are ready to paste.

use std::fmt::Write as _;

/// One word, quoted if a shell would take it apart.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%_+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    if word.chars().any(crate::output::is_unsafe) {
        return ansi_c(word);
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A whole command.
pub(crate) fn join<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// `$'...'`, which bash, zsh and ksh read: the only form in which a line feed or an escape can be
/// shown and pasted. Bytes in octal, which all of them understand alike.
fn ansi_c(word: &str) -> String {
    let mut text = String::from("$'");
    let mut buffer = [0; 4];
    for c in word.chars() {
        match c {
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '\'' => text.push_str("\\'"),
            '\\' => text.push_str("\\\\"),
            c if crate::output::is_unsafe(c) => {
                for byte in c.encode_utf8(&mut buffer).bytes() {
                    let _ = write!(text, "\\{byte:03o}");
                }
            }
            c => text.push(c),
        }
    }
    text.push('\'');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_from_a_shell_as_they_were() {
        let words = ["", "plain", "a b", "it's", "$HOME", "a\nb", "\u{1b}[2J", "tab\t'\\", "é"];
        for word in words {
            let script = format!("printf %s {}", quote(word));
            let output = match std::process::Command::new("bash").args(["-c", &script]).output() {
                Ok(output) => output,
                // No bash here: nothing to compare with.
                Err(_) => return,
            };
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word, "{script}");
        }
    }

    #[test]
    fn what_needs_no_quotes_gets_none() {
        assert_eq!(join(["smctl", "location=/srv/x", "a b"]), "smctl location=/srv/x 'a b'");
    }
}
