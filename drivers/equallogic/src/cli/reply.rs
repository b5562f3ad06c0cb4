//! The lines of a reply.

use super::screen::is_pager;

/// A reply of the array to one command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Its lines, without echo, events, pagers and empty ones.
    pub lines: Vec<String>,
    /// Its refusal in the array's words, if it is one.
    pub refusal: Option<String>,
}

impl Reply {
    /// Reads a reply to `command`.
    pub fn read(text: &str, command: &str) -> Self {
        let lines: Vec<String> = lines(without_echo(text, command)).map(str::to_owned).collect();
        let refusal = refusal(&lines);
        Self { lines, refusal }
    }

    /// The whole, for people.
    pub fn text(&self) -> String {
        self.lines.join(" ")
    }

    /// What follows a phrase on the line that has it, without the full stop: `iSCSI target name is
    /// IQN.`. Where the screen was too narrow the line goes on in the next ones.
    pub fn after(&self, phrase: &str) -> Option<String> {
        let phrase = phrase.to_ascii_lowercase();
        let (at, rest) = self.lines.iter().enumerate().find_map(|(n, line)| {
            let start = line.to_ascii_lowercase().find(&phrase)?;
            Some((n, line.get(start + phrase.len()..)?))
        })?;
        let mut found = rest.trim().to_owned();
        for line in self.lines.get(at + 1..).unwrap_or_default() {
            let part = line.trim();
            if found.ends_with('.') || part.contains(' ') {
                break;
            }
            found.push_str(part);
        }
        let found = found.split_whitespace().next()?.trim_end_matches('.').to_owned();
        (!found.is_empty()).then_some(found)
    }
}

/// The lines that say something.
pub(super) fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n')
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !is_event(line) && !is_pager(line))
}

/// The text after the echo of the command. The terminal may have wrapped it anywhere.
fn without_echo<'a>(text: &'a str, command: &str) -> &'a str {
    let mut rest = text.trim_start_matches(['\n', ' ']);
    for wanted in command.chars().filter(|c| !c.is_whitespace()) {
        let trimmed = rest.trim_start();
        match trimmed.strip_prefix(wanted) {
            Some(shorter) => rest = shorter,
            None => return text,
        }
    }
    // Else the command is the beginning of a word: no echo.
    if rest.is_empty() || rest.starts_with(char::is_whitespace) { rest } else { text }
}

/// Whether a line is an event that the array shows between others:
/// `netmgtd:1700722419.77:rcc_util.c:1024:INFO:25.2.9:CLI: Login to account ...`.
fn is_event(line: &str) -> bool {
    let mut parts = line.trim_start().splitn(7, ':');
    let mut part = || parts.next().unwrap_or_default();
    let (process, time, file, number, level, code) =
        (part(), part(), part(), part(), part(), part());
    let digits =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    !process.is_empty()
        && !process.contains(' ')
        && digits(time)
        && !file.contains(' ')
        && digits(number)
        && matches!(level, "INFO" | "AUDIT" | "WARNING" | "ERROR" | "FATAL")
        && digits(code)
}

/// The refusal in a reply: a line that begins with `% Error` or `Error:`, and what follows it; or a
/// question, which was answered with an empty line and so with no.
fn refusal(lines: &[String]) -> Option<String> {
    let mut said: Option<String> = None;
    for line in lines {
        let line = line.trim();
        let begins =
            ["% Error", "Error:", "%Error"].iter().find_map(|word| line.strip_prefix(word));
        match (begins, &mut said) {
            (Some(rest), None) => {
                said = Some(rest.trim_start_matches([' ', '-', ':']).trim().to_owned());
            }
            (None, Some(said)) => {
                said.push(' ');
                said.push_str(line);
            }
            _ => {}
        }
    }
    let question = |line: &&String| {
        let line = line.trim().to_ascii_lowercase();
        line.ends_with("[n]") || line.contains("(y/n)") || line.contains("(yes | no")
    };
    said.or_else(|| lines.iter().find(question).map(|line| format!("{ASKED} {}", line.trim())))
}

/// What stands before the words of a question.
pub const ASKED: &str = "the array asked for a confirmation:";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Reply {
        Reply::read(text, "volume select web snapshot create-now")
    }

    #[test]
    fn echo_events_and_pagers_are_no_lines() {
        let expected =
            vec!["Snapshot creation succeeded.".to_owned(), "Snapshot name is web-1.".to_owned()];
        for text in [
            "Snapshot creation succeeded.\nSnapshot name is web-1.\n",
            "volume select web snapshot create-now\nSnapshot creation succeeded.\nSnapshot name is web-1.\n",
            "\nvolume select web snapsh\not create-now\n\nSnapshot creation succeeded.\nSnapshot name is web-1.\n",
            "Snapshot creation succeeded.\n\
             vm:1700722419.77:vm.cc:112:INFO:8.2.1:Volume web: snapshot taken\n\
             -- More --\nSnapshot name is web-1.\n",
        ] {
            let reply = read(text);
            assert_eq!(reply.lines, expected, "{text:?}");
            assert_eq!(reply.refusal, None);
            assert_eq!(reply.after("snapshot name is"), Some("web-1".to_owned()));
        }
    }

    /// A reply may begin with words that its command begins with.
    #[test]
    fn what_is_no_echo_stays() {
        let reply = Reply::read("volume show\nvolume shown\n", "volume show");
        assert_eq!(reply.lines, ["volume shown"]);
        let reply = Reply::read("volume shown\n", "volume show");
        assert_eq!(reply.lines, ["volume shown"]);
        let reply = Reply::read("", "volume show");
        assert_eq!(reply, Reply::default());
    }

    #[test]
    fn names_are_read_over_line_ends() {
        let text = "Volume creation succeeded.\niSCSI target name is iqn.2001-05.com.equallogic:0-8a0906-83bcb3\n401-16e0002fd0a46f3d-web.\n";
        let iqn = "iqn.2001-05.com.equallogic:0-8a0906-83bcb3401-16e0002fd0a46f3d-web";
        assert_eq!(read(text).after("iSCSI target name is"), Some(iqn.to_owned()));
        assert_eq!(read("Snapshot name is .\n").after("Snapshot name is"), None);
        assert_eq!(read("Snapshot name is\n").after("Snapshot name is"), None);
    }

    #[test]
    fn refusals_are_found() {
        for (text, words) in [
            ("% Error - Volume web does not exist.\n", "Volume web does not exist."),
            ("Error: bad command\n", "bad command"),
            ("% Error\n - no space\n", " - no space"),
            ("some line\n% Error - a\n b\n% Error - c\n", "a b"),
        ] {
            assert_eq!(read(text).refusal.as_deref(), Some(words), "{text:?}");
        }
        let asked = read("Are you sure you want to delete web? (y/n) [n]\n");
        assert_eq!(
            asked.refusal.as_deref(),
            Some(
                "the array asked for a confirmation: Are you sure you want to delete web? (y/n) [n]"
            )
        );
        assert_eq!(read("Description: no Error: here\n").refusal, None);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(?s).{0,200}", command in "[a-z \"]{0,30}") {
            let reply = Reply::read(&text, &command);
            let _ = (reply.after("name is"), reply.text());
        }
    }
}
