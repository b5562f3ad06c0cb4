//! One shell: a command goes in, its reply comes out.

use std::time::{Duration, Instant};

use array_kit::outcome::{Class, Failure, Outcome};
use array_kit::session::Slot;
use futures_util::FutureExt as _;
use plugin_sdk::Cx;
use plugin_sdk::tokio::task::unconstrained;
use plugin_sdk::tokio::time::timeout;
use russh::client::Msg;
use russh::{Channel, ChannelMsg};

use super::ssh::{Connection, too_many};
use crate::cli::reply::Reply;
use crate::cli::screen::{Screen, Seen};
use crate::cli::verdict::judge;

/// After this much silence behind a prompt, the empty command that was sent ahead is sent again.
const THROWN_AWAY: Duration = Duration::from_millis(400);

/// How often, and how many pages are asked for.
const AGAIN: u32 = 4;
/// See [`AGAIN`].
const PAGES: u32 = 20_000;

/// What each session is told first, before it is used. Those that not all releases know may fail.
pub const SETTINGS: &[(&str, bool)] = &[
    ("stty columns 255", false),
    ("cli-settings confirmation off", true),
    ("cli-settings paging off", true),
    ("cli-settings events off", true),
    ("cli-settings formatoutput off", true),
    ("cli-settings displayinMB on", false),
    ("cli-settings reprintBadInput off", false),
    ("stty hardwrap off", false),
];

/// A shell that is ready for a command.
pub struct Shell {
    connection: Connection,
    channel: Channel<Msg>,
    screen: Screen,
    /// Whether the array throws away what is typed ahead.
    waits: bool,
    /// The right to this session; given back when the array knows that it has ended.
    slot: Slot,
}

/// Why there is no reply. The shell is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The command did not leave.
    Unsent,
    /// The array ended the session before the reply was whole.
    Ended,
    /// Nothing came for too long.
    Silent,
    /// What came was no reply.
    Garbled,
    /// The call ended.
    Stopped,
}

impl Shell {
    /// Opens a shell and sets it up.
    pub async fn open(
        cx: &Cx,
        connection: Connection,
        slot: Slot,
        quiet: Duration,
    ) -> Outcome<Self> {
        let channel = connection.shell(cx).await?;
        let screen = Screen::new();
        let mut shell = Self { connection, channel, screen, waits: false, slot };
        match shell.set_up(cx, quiet).await {
            Ok(()) => Ok(shell),
            Err(failure) => {
                shell.close().await;
                Err(failure)
            }
        }
    }

    async fn set_up(&mut self, cx: &Cx, quiet: Duration) -> Outcome<()> {
        // The empty command makes the prompt come twice, by which it is recognised.
        let banner = match self.send("\r").await {
            Ok(()) => self.reply(cx, quiet).await,
            Err(lost) => Err(lost),
        };
        if let Err(lost) = banner {
            let said = self.screen.text().to_ascii_lowercase();
            if lost == Lost::Ended && (said.contains("session") || said.trim().is_empty()) {
                return Err(too_many());
            }
            return Err(not_begun(cx, lost));
        }
        for (setting, needed) in SETTINGS {
            let text = self.run(cx, setting, quiet).await.map_err(|lost| not_begun(cx, lost))?;
            taken(setting, *needed, Reply::read(&text, setting))?;
        }
        let text = self.run(cx, SHOW, quiet).await.map_err(|lost| not_begun(cx, lost))?;
        match still_on(&Reply::read(&text, SHOW)) {
            None => Ok(()),
            Some(setting) => Err(Failure::new(Class::Unsupported)
                .fact(format!("the array keeps its command-line setting {setting} on"))
                .hint("look at cli-settings show on the array: replies could not be told apart")
                .legacy(170)),
        }
    }

    /// Sends a command and waits for its reply: the text before the prompts. `quiet` is how long
    /// nothing may come.
    pub async fn run(&mut self, cx: &Cx, command: &str, quiet: Duration) -> Result<String, Lost> {
        let ahead = if self.waits { "\r" } else { "\r\r" };
        self.screen.clear();
        self.send(&format!("{command}{ahead}")).await?;
        self.reply(cx, quiet).await
    }

    /// Whether it can be used: the session lives, and nothing came that belongs to an earlier reply.
    pub fn is_ready(&mut self) -> bool {
        if self.connection.is_closed() {
            return false;
        }
        // What has come already, without waiting for more: a timer of no time would take a
        // millisecond, for each command.
        while let Some(message) = unconstrained(self.channel.wait()).now_or_never() {
            match message {
                Some(ChannelMsg::Data { data }) => {
                    self.screen.push(&data);
                }
                None
                | Some(ChannelMsg::Eof | ChannelMsg::Close | ChannelMsg::ExitStatus { .. }) => {
                    return false;
                }
                Some(_) => {}
            }
        }
        !self.screen.clear()
    }

    /// The fingerprint of the array's key.
    pub fn fingerprint(&self) -> &str {
        &self.connection.fingerprint
    }

    /// Ends the session; its slot is free when the array knows.
    pub async fn close(self) {
        let Self { connection, slot, .. } = self;
        connection.close().await;
        drop(slot);
    }

    async fn send(&self, text: &str) -> Result<(), Lost> {
        let sent = self.channel.data_bytes(text.as_bytes().to_vec());
        match timeout(Duration::from_secs(10), sent).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Lost::Unsent),
        }
    }

    async fn reply(&mut self, cx: &Cx, quiet: Duration) -> Result<String, Lost> {
        let (mut pages, mut again) = (0, 0);
        let mut last = Instant::now();
        loop {
            let left = quiet.saturating_sub(last.elapsed()).min(cx.remaining());
            if left.is_zero() {
                return Err(if cx.remaining().is_zero() { Lost::Stopped } else { Lost::Silent });
            }
            let waiting = self.screen.is_waiting() && again < AGAIN;
            let pause = if !waiting {
                left
            } else if self.waits && again == 0 {
                Duration::ZERO
            } else {
                left.min(THROWN_AWAY)
            };
            let message = match timeout(pause, self.channel.wait()).await {
                Ok(message) => message,
                Err(_) if waiting => {
                    self.waits |= again == 0 && !pause.is_zero();
                    again += 1;
                    self.send("\r").await?;
                    continue;
                }
                Err(_) => continue,
            };
            let data = match message {
                Some(ChannelMsg::Data { data }) => data,
                None | Some(ChannelMsg::Eof | ChannelMsg::Close) => return Err(Lost::Ended),
                Some(_) => continue,
            };
            last = Instant::now();
            match self.screen.push(&data) {
                Seen::More => {}
                Seen::Whole(text) => return Ok(text),
                Seen::TooLong => return Err(Lost::Garbled),
                Seen::Pager => {
                    pages += 1;
                    if pages > PAGES {
                        return Err(Lost::Garbled);
                    }
                    self.send(" ").await?;
                }
            }
        }
    }
}

/// Whether a setting was taken, or the session can do without it. A group that is busy says so here as
/// anywhere else; what it does not know, its firmware is too old for.
fn taken(setting: &str, needed: bool, reply: Reply) -> Outcome<()> {
    let Err(failure) = judge("setting", reply) else { return Ok(()) };
    let is_old = matches!(failure.class, Class::Unknown | Class::Invalid | Class::Unsupported);
    match failure.class {
        Class::Busy => Err(failure),
        _ if !needed => Ok(()),
        _ if is_old => Err(failure
            .reclassed(Class::Unsupported)
            .fact(format!("the array does not take {setting:?}"))
            .hint("its firmware is older than what this driver knows")
            .legacy(170)),
        _ => Err(failure),
    }
}

/// What asks for the settings.
const SHOW: &str = "cli-settings show";

/// The setting that is on and must not be, if the answer can be understood.
fn still_on(reply: &Reply) -> Option<&'static str> {
    let is_on = |name: &&&str| {
        reply.lines.iter().any(|line| {
            let words = || line.split([' ', ':', '=']).filter(|word| !word.is_empty());
            words().next().is_some_and(|first| first.eq_ignore_ascii_case(name))
                && words().next_back().is_some_and(|last| last.eq_ignore_ascii_case("on"))
        })
    };
    ["confirmation", "paging", "events", "formatoutput"].iter().find(is_on).copied()
}

/// The failure of a session that did not begin: nothing was done.
fn not_begun(cx: &Cx, lost: Lost) -> Failure {
    match (lost, cx.check()) {
        (Lost::Stopped, Err(error)) => error.into(),
        (Lost::Ended | Lost::Unsent, _) => Failure::new(Class::Unreachable)
            .fact("the array ended the session while it was set up")
            .legacy(176),
        (Lost::Silent | Lost::Stopped, _) => Failure::new(Class::Unreachable)
            .fact("the array shows no prompt")
            .hint("look whether target is a PS group's address, and log in by hand")
            .legacy(171),
        (Lost::Garbled, _) => {
            Failure::new(Class::Unreachable).fact("what answers is no command line").legacy(174)
        }
    }
}

#[cfg(test)]
mod tests {
    use plugin_sdk::model::Kind;

    use super::*;

    #[test]
    fn a_setting_that_is_refused_is_no_old_firmware_for_certain() {
        let class = |needed: bool, words: &str| {
            let reply = Reply::read(&format!("% Error - {words}\n"), "paging");
            taken("paging", needed, reply).map_err(|failure| failure.class)
        };
        for (words, needed, optional) in [
            ("The group is busy: try again later.", Err(Class::Busy), Err(Class::Busy)),
            ("Maximum number of sessions reached.", Err(Class::Busy), Err(Class::Busy)),
            ("Permission denied.", Err(Class::Denied), Ok(())),
            ("Bad command", Err(Class::Unsupported), Ok(())),
            ("Not supported.", Err(Class::Unsupported), Ok(())),
            ("Something new.", Err(Class::Unsupported), Ok(())),
        ] {
            assert_eq!((class(true, words), class(false, words)), (needed, optional), "{words}");
        }
        let old = Reply::read("% Error - Bad command\n", "paging");
        let failure = taken("paging", true, old).unwrap_err();
        let said = "the array does not take \"paging\" (the array says: Bad command)";
        assert_eq!(failure.to_string(), said);
        let error = plugin_sdk::Error::from(failure);
        assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::Unsupported, 170));
        let hint = "its firmware is older than what this driver knows";
        assert_eq!(error.hint.as_deref(), Some(hint));
        assert!(taken("paging", true, Reply::default()).is_ok());
    }

    #[test]
    fn settings_are_read_back_if_they_can_be_understood() {
        let show = |text: &str| still_on(&Reply::read(text, SHOW));
        assert_eq!(
            show("____ CLI Settings ____\nconfirmation: off\npaging: off\nevents: off\n"),
            None
        );
        assert_eq!(show("confirmation   off\nEvents         on\n"), Some("events"));
        assert_eq!(show("displayinMB: on\nidlelogout: on\n"), None);
        assert_eq!(show("% Error - bad command\n"), None);
    }
}
