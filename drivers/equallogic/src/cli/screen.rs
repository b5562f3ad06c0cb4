//! Where a reply ends.
//!
//! The prompt is the group's name and `> `; within an object it has the object's name in
//! parentheses. It is learned at the login, not configured. A text in a reply may look like it, so
//! one prompt ends nothing: with each command an empty one is sent, and the end is a prompt, then
//! nothing but line ends, then a prompt again. An array that throws away what was typed ahead shows
//! one prompt and falls silent; then the empty command is [sent again](Screen::is_waiting).

/// What comes back is given up at this size: a listing of 10,000 volumes takes 2 MiB.
pub const LONGEST: usize = 16 << 20;

/// How much of the end is looked at for the prompt.
const TAIL: usize = 1024;

/// How a screen is after what came last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// More is to come.
    More,
    /// The array waits for a key, because it pages.
    Pager,
    /// The reply is whole: this, without the prompts.
    Whole(String),
    /// It is longer than any reply.
    TooLong,
}

/// What has come since the last command.
#[derive(Clone, Debug, Default)]
pub struct Screen {
    prompt: Option<String>,
    buffer: Vec<u8>,
    /// Where the last pager ended, so that each is answered once.
    paged: usize,
}

impl Screen {
    /// A screen of an array whose prompt is not known.
    pub fn new() -> Self {
        Self::default()
    }

    /// The prompt, without what an object adds to it.
    pub fn prompt(&self) -> Option<&str> {
        self.prompt.as_deref()
    }

    /// Forgets what has come, before a command. Answers whether there was more than prompts: then
    /// it belongs to an earlier reply, and this session cannot be trusted any more.
    pub fn clear(&mut self) -> bool {
        let text = plain(&self.buffer);
        self.buffer.clear();
        self.paged = 0;
        let mut rest = text.trim();
        if let Some(prompt) = &self.prompt {
            while let Some(shorter) = rest.strip_suffix(prompt.trim_end()) {
                rest = shorter.trim();
            }
        }
        !rest.is_empty() && super::reply::lines(rest).next().is_some()
    }

    /// Adds what came.
    pub fn push(&mut self, bytes: &[u8]) -> Seen {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() > LONGEST {
            return Seen::TooLong;
        }
        // Only the end decides, so that a long reply in small pieces is not looked at again and
        // again from its beginning.
        let from = self.buffer.len().saturating_sub(TAIL);
        let tail = plain(self.buffer.get(from..).unwrap_or_default());
        if let Some(prompt) = &self.prompt {
            if twice(&tail, prompt).is_none() {
                return self.pager(&tail);
            }
            let text = plain(&self.buffer);
            let Some(rest) = twice(&text, prompt).map(str::to_owned) else { return Seen::More };
            self.buffer.clear();
            self.paged = 0;
            return Seen::Whole(rest);
        }
        let last = last_line(&tail);
        if let Some(prompt) = as_prompt(last).map(str::to_owned)
            && twice(&tail, &prompt).is_some()
        {
            let text = plain(&self.buffer);
            let banner = twice(&text, &prompt).unwrap_or_default().to_owned();
            self.prompt = Some(prompt);
            self.buffer.clear();
            self.paged = 0;
            return Seen::Whole(banner);
        }
        self.pager(&tail)
    }

    /// Whether the array shows one prompt, and so may wait for a command that it threw away.
    pub fn is_waiting(&self) -> bool {
        let from = self.buffer.len().saturating_sub(TAIL);
        let tail = plain(self.buffer.get(from..).unwrap_or_default());
        as_prompt(last_line(&tail))
            .is_some_and(|found| self.prompt.as_deref().is_none_or(|p| p == found))
    }

    /// What has come so far, for an error.
    pub fn text(&self) -> String {
        plain(&self.buffer)
    }

    fn pager(&mut self, tail: &str) -> Seen {
        if self.buffer.len() > self.paged && is_pager(last_line(tail)) {
            self.paged = self.buffer.len();
            return Seen::Pager;
        }
        Seen::More
    }
}

/// The text without control sequences, with `\n` at line ends.
pub fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\r' => {
                // `\r\n`, and the `\r\r\n` of a terminal that adds its own.
                while rest.next_if_eq(&'\r').is_some() {}
                rest.next_if_eq(&'\n');
                plain.push('\n');
            }
            '\n' => {
                rest.next_if_eq(&'\r');
                plain.push('\n');
            }
            '\u{8}' | '\u{7f}' => {
                if !plain.ends_with('\n') {
                    plain.pop();
                }
            }
            // ECMA-48: ESC [ parameters, then one letter.
            '\u{1b}' if rest.next_if_eq(&'[').is_some() => {
                while rest.next_if(|c| !('@'..='~').contains(c)).is_some() {}
                rest.next();
            }
            '\t' => plain.push(' '),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain
}

/// The text before two prompts, if it ends with that.
fn twice<'a>(text: &'a str, prompt: &str) -> Option<&'a str> {
    let once = without_prompt(text, prompt)?;
    let mut rest = without_prompt(once.trim_end_matches('\n'), prompt)?;
    // Each time the empty command was sent again there is one more.
    while let Some(shorter) = without_prompt(rest.trim_end_matches('\n'), prompt) {
        rest = shorter;
    }
    Some(rest)
}

/// The text before a prompt that begins a line, or that follows another prompt.
fn without_prompt<'a>(text: &'a str, prompt: &str) -> Option<&'a str> {
    let rest = text.strip_suffix(prompt)?;
    (rest.is_empty() || rest.ends_with('\n') || rest.ends_with(prompt)).then_some(rest)
}

fn last_line(text: &str) -> &str {
    text.rsplit('\n').next().unwrap_or_default()
}

/// The prompt that a line is, or that stands last in it: without echo, a second prompt follows the
/// first on the same line.
fn as_prompt(line: &str) -> Option<&str> {
    let name = line.strip_suffix("> ")?;
    let first = name.find("> ").map_or(line, |at| line.get(at + 2..).unwrap_or_default());
    let name = first.strip_suffix("> ")?;
    // A group's name: letters, digits and hyphens, 54 at most (Group Manager's own limit).
    let fits = (1..=54).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    fits.then_some(first)
}

/// What a pager shows; other releases have other words.
pub(super) fn is_pager(line: &str) -> bool {
    let line = line.trim().to_ascii_lowercase();
    (line.starts_with("--") && line.contains("more") && line.len() < 80)
        || line.starts_with("press any key")
        || (line.starts_with("press ") && line.contains("to continue"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn learned() -> Screen {
        let mut screen = Screen::new();
        let banner = b"\r\n   Welcome to Group Manager\r\n\r\n   Copyright 2001-2014 Dell Inc.\r\n\r\n\r\ngrp1> \r\ngrp1> ";
        assert!(matches!(screen.push(banner), Seen::Whole(text) if text.contains("Welcome")));
        assert_eq!(screen.prompt(), Some("grp1> "));
        assert!(!screen.clear());
        screen
    }

    /// Byte by byte as well as at once, with and without echo.
    #[test]
    fn a_reply_ends_with_two_prompts_however_it_is_cut() {
        for (came, expected) in [
            ("whoami\r\ngrpadmin\r\ngrp1> \r\ngrp1> ", "whoami\ngrpadmin\n"),
            ("grpadmin\r\ngrp1> grp1> ", "grpadmin\n"),
            ("grpadmin\n\rgrp1> \n\rgrp1> ", "grpadmin\n"),
            ("whoami\r\n\r\ngrpadmin\r\ngrp1> grp1> ", "whoami\n\ngrpadmin\n"),
            ("grp1> grp1> ", ""),
            // The empty command was sent again.
            ("grpadmin\r\ngrp1> \r\ngrp1> \r\ngrp1> ", "grpadmin\n"),
            ("\x1b[2Jgrpadmin\x1b[0m\r\r\ngrp1> \r\ngrp1> ", "grpadmin\n"),
        ] {
            let mut screen = learned();
            assert_eq!(screen.push(came.as_bytes()), Seen::Whole(expected.to_owned()), "{came:?}");
            let mut screen = learned();
            for (n, byte) in came.bytes().enumerate() {
                match screen.push(&[byte]) {
                    Seen::Whole(text) => {
                        assert_eq!(text, expected, "{came:?} at {n}");
                        // More prompts may follow; they are no reply.
                        let rest = came.get(n + 1..).unwrap();
                        assert_eq!(rest.replace("grp1> ", "").trim(), "", "{came:?} at {n}");
                        break;
                    }
                    seen => assert_eq!(seen, Seen::More, "{came:?} at {n}"),
                }
            }
        }
    }

    /// A description that says what a prompt says, also at the end of a packet.
    #[test]
    fn what_looks_like_a_prompt_ends_nothing() {
        let mut screen = learned();
        assert_eq!(screen.push(b"Description: grp1> \r\ngrp1> "), Seen::More);
        assert!(screen.is_waiting());
        assert_eq!(screen.push(b" more of it\r\nSize: 1GB\r\n"), Seen::More);
        assert!(!screen.is_waiting());
        assert_eq!(screen.push(b"other> \r\nother> "), Seen::More);
        let whole = "Description: grp1> \ngrp1>  more of it\nSize: 1GB\nother> \nother> \n";
        assert_eq!(screen.push(b"\r\ngrp1> \r\ngrp1> "), Seen::Whole(whole.to_owned()));
    }

    /// The prompt of whichever group answers is learned; a banner that looks like one is not it.
    #[test]
    fn the_prompt_is_learned_from_what_comes_twice() {
        let mut screen = Screen::new();
        assert_eq!(screen.push(b"read this> \r\nnobody> "), Seen::More);
        assert_eq!(screen.push(b"\r\nPS-Group-7> "), Seen::More);
        assert!(screen.is_waiting());
        assert!(matches!(screen.push(b"\r\nPS-Group-7> "), Seen::Whole(_)));
        assert_eq!(screen.prompt(), Some("PS-Group-7> "));
        let mut silent = Screen::new();
        assert!(matches!(silent.push(b"banner\r\na> a> "), Seen::Whole(_)));
        assert_eq!(silent.prompt(), Some("a> "));
    }

    #[test]
    fn each_page_is_asked_for_once() {
        let mut screen = learned();
        assert_eq!(screen.push(b"line 1\r\n-- More -- "), Seen::Pager);
        assert_eq!(screen.push(b"\r\nline 2\r\n"), Seen::More);
        assert_eq!(screen.push(b"Press any key to continue (Q to quit)"), Seen::Pager);
        assert_eq!(screen.push(b""), Seen::More);
        assert!(matches!(screen.push(b"\r\ngrp1> \r\ngrp1> "), Seen::Whole(_)));
    }

    #[test]
    fn what_comes_late_shows() {
        let mut screen = learned();
        screen.push(b"\r\ngrp1> ");
        assert!(!screen.clear(), "a prompt is nothing");
        screen.push(b"Snapshot name is V-1.\r\ngrp1> ");
        assert!(screen.clear());
        let event = b"\r\nnetmgtd:1700722419.77:rcc_util.c:1024:INFO:25.2.9:CLI: Login to account\r\ngrp1> ";
        screen.push(event);
        assert!(!screen.clear(), "an event is no late reply");
        let mut endless = learned();
        assert_eq!(endless.push(&vec![b'x'; LONGEST + 1]), Seen::TooLong);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(pieces in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                Just(b"grp1> ".to_vec()), Just(b"\r\n".to_vec()), Just(b"\x1b[".to_vec()),
                Just(b"--More--".to_vec()), Just("é".as_bytes().to_vec()),
            ], 0..40))
        {
            for mut screen in [learned(), Screen::new()] {
                for piece in &pieces {
                    let _ = screen.push(piece);
                    let _ = screen.is_waiting();
                }
                let _ = screen.clear();
            }
        }
    }
}
