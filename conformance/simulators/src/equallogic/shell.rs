//! One session at the command line.

use std::sync::Arc;
use std::time::Duration;

use russh::ChannelId;
use russh::server::Handle;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use super::command::{Command, Wrong};
use super::execute::{self, COPYING, Copy, Refusal};
use super::screen::{Look, Page};
use super::server::Line;
use crate::core::{Array, Effect, Settings, Volume};

/// How the command line of a group behaves where nobody knows for certain, from the settings'
/// `vendor`: `group`, `echo`, `typeahead` (false: what is typed during a command is thrown away),
/// `stray_events` (events are shown although they are off), `clone_waits` (the prompt comes when the
/// clone is whole).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Habits {
    group: String,
    echo: bool,
    typeahead: bool,
    stray_events: bool,
    clone_waits: bool,
}

impl Habits {
    /// Those of the settings.
    pub(super) fn of(settings: &Settings) -> Self {
        let flag = |name: &str, usual: bool| {
            settings.vendor.get(name).and_then(Value::as_bool).unwrap_or(usual)
        };
        let group = settings.vendor.get("group").and_then(Value::as_str).unwrap_or("PS-Group");
        Self {
            group: group.to_owned(),
            echo: flag("echo", true),
            typeahead: flag("typeahead", true),
            stray_events: flag("stray_events", false),
            clone_waits: flag("clone_waits", false),
        }
    }
}

/// What a session has set.
#[derive(Clone, Copy, Debug)]
struct Own {
    look: Look,
    paging: bool,
    confirmation: bool,
    events: bool,
}

/// Lines that fit on a screen.
const SCREEN: usize = 24;

/// A session.
pub(super) struct Shell {
    pub(super) array: Array,
    pub(super) habits: Habits,
    pub(super) output: Handle,
    pub(super) id: ChannelId,
    pub(super) line: Arc<Line>,
    pub(super) user: String,
}

/// What comes in, by lines and keys.
struct Input {
    source: UnboundedReceiver<Vec<u8>>,
    bytes: std::collections::VecDeque<u8>,
    /// A line that is not whole yet: who waits for it may stop waiting.
    begun: Vec<u8>,
}

impl Input {
    async fn byte(&mut self) -> Option<u8> {
        loop {
            if let Some(byte) = self.bytes.pop_front() {
                return Some(byte);
            }
            self.bytes.extend(self.source.recv().await?);
        }
    }

    /// A line, ended by `\r`, `\n` or both.
    async fn line(&mut self) -> Option<String> {
        loop {
            match self.byte().await? {
                end @ (b'\r' | b'\n') => {
                    if end == b'\r' && self.bytes.front() == Some(&b'\n') {
                        self.bytes.pop_front();
                    }
                    let line = std::mem::take(&mut self.begun);
                    return Some(String::from_utf8_lossy(&line).into_owned());
                }
                byte if self.begun.len() < 4096 => self.begun.push(byte),
                _ => {}
            }
        }
    }

    fn throw_away(&mut self) {
        self.bytes.clear();
        self.begun.clear();
        while self.source.try_recv().is_ok() {}
    }
}

/// The session is over.
struct Over;

impl Shell {
    pub(super) async fn run(mut self, source: UnboundedReceiver<Vec<u8>>) {
        let Ok(token) = self.array.sessions().open(&self.user) else {
            let requests = self.array.requests();
            let number = requests.begin(self.array.clock().now(), "session.refused", "");
            requests.end(number, 0, None);
            let words = "% Error - Maximum number of sessions reached.";
            let _ = self.write(&format!("\r\n{words}\r\n")).await;
            self.end().await;
            return;
        };
        let (bytes, begun) = (std::collections::VecDeque::new(), Vec::new());
        let mut input = Input { source, bytes, begun };
        let _ = self.serve(&token, &mut input).await;
        self.array.sessions().close(&token);
        self.end().await;
    }

    /// Ends the connection in good order.
    async fn end(&self) {
        let _ = self.output.eof(self.id).await;
        let _ = self.output.close(self.id).await;
        // What is on its way gets there: the client hangs up, or is cut a moment later.
        let reason = russh::Disconnect::ByApplication;
        let _ = self.output.disconnect(reason, String::new(), String::new()).await;
    }

    async fn write(&self, text: &str) -> Result<(), Over> {
        self.output.data(self.id, text.as_bytes().to_vec()).await.map_err(|_| Over)
    }

    async fn serve(&mut self, token: &str, input: &mut Input) -> Result<(), Over> {
        let look = Look { columns: 80, format: true, megabytes: false };
        let mut own = Own { look, paging: true, confirmation: true, events: true };
        self.write("\r\n           Welcome to Group Manager\r\n\r\n").await?;
        self.write("        Copyright 2001-2014 Dell Inc.\r\n\r\n\r\n").await?;
        loop {
            self.write(&format!("{}> ", self.habits.group)).await?;
            let Some(line) = self.next_line(token, input).await else { return Err(Over) };
            if self.habits.echo {
                self.write(&format!("{line}\r\n")).await?;
            }
            if self.array.sessions().touch(token).is_none() {
                self.write("\r\nYou have been logged out: the session was idle.\r\n").await?;
                return Err(Over);
            }
            self.command(&mut own, token, input, &line).await?;
            if !self.habits.typeahead && !line.is_empty() {
                input.throw_away();
            }
        }
    }

    /// The next line, or nothing where the session ended meanwhile.
    async fn next_line(&self, token: &str, input: &mut Input) -> Option<String> {
        loop {
            tokio::select! {
                line = input.line() => return line,
                // The array's clock may have been set.
                () = tokio::time::sleep(Duration::from_millis(20)) => {
                    if input.bytes.is_empty() && !self.array.sessions().is_open(token) {
                        let _ = self.write("\r\nThe session has ended.\r\n").await;
                        return None;
                    }
                }
            }
        }
    }

    async fn command(
        &mut self,
        own: &mut Own,
        token: &str,
        input: &mut Input,
        line: &str,
    ) -> Result<(), Over> {
        let command = match Command::read(line) {
            Ok(Command::Empty) => return Ok(()),
            Ok(Command::Logout) => return Err(Over),
            Ok(command) => command,
            Err(wrong) => return self.print(own, input, &wrong_page(&wrong)).await,
        };
        if own.confirmation
            && let Some(question) = command.asks()
        {
            self.write(&format!("{question} (y/n) [n]")).await?;
            let answer = input.line().await.ok_or(Over)?;
            self.write("\r\n").await?;
            if !answer.trim().eq_ignore_ascii_case("y") {
                return Ok(());
            }
        }
        let (call, array) = (command.call(), self.array.clone());
        let number = array.requests().begin(array.clock().now(), call, line);
        let effect = array.faults().hit(&[call, line]);
        let latency = array.settings().latency;
        if latency > 0 {
            tokio::time::sleep(Duration::from_millis(latency)).await;
        }
        let outcome = self.under(own, token, input, &command, effect.as_ref()).await;
        let status = if outcome.is_ok() { 200 } else { 0 };
        array.requests().end(number, status, effect.map(|effect| format!("{effect:?}")));
        outcome
    }

    /// Carries a command out under what the script says of it.
    async fn under(
        &mut self,
        own: &mut Own,
        token: &str,
        input: &mut Input,
        command: &Command,
        effect: Option<&Effect>,
    ) -> Result<(), Over> {
        let pause = |milliseconds: &u64| tokio::time::sleep(Duration::from_millis(*milliseconds));
        match effect {
            Some(Effect::DropRequest) => {
                self.line.cut();
                return Err(Over);
            }
            Some(Effect::DieBefore) => die(),
            Some(Effect::EndSession) => {
                self.array.sessions().close(token);
                self.write("\r\nThe session has ended.\r\n").await?;
                return Err(Over);
            }
            Some(Effect::Refuse { body, .. }) => {
                let busy = "The group is busy: try again later.";
                let page = Page::refusal(body.as_deref().unwrap_or(busy));
                return self.print(own, input, &page).await;
            }
            Some(Effect::LoginPage) => {
                return self.write("<html><body>Group Manager</body></html>\r\n").await;
            }
            Some(Effect::Stale { milliseconds }) => self.array.freeze_reads(*milliseconds),
            Some(Effect::Delay { milliseconds }) => pause(milliseconds).await,
            _ => {}
        }
        let page = match self.execute(own, command, effect).await {
            Ok(page) => page,
            Err(Refusal(words)) => Page::refusal(words),
        };
        match effect {
            Some(Effect::DropReply | Effect::Reset) => {
                self.line.cut();
                Err(Over)
            }
            Some(Effect::DieAfter) => die(),
            Some(Effect::Silence { milliseconds }) => {
                pause(milliseconds).await;
                self.line.cut();
                Err(Over)
            }
            Some(Effect::HalfBody) => {
                let text = self.lines(own, &page).join("\r\n");
                let half: String = text.chars().take(text.chars().count() / 2).collect();
                self.write(&half).await?;
                // Until it is on its way: what is cut at once is not half, but nothing.
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.line.cut();
                Err(Over)
            }
            Some(Effect::SlowDrip { milliseconds }) => {
                for c in (self.lines(own, &page).join("\r\n") + "\r\n").chars() {
                    self.write(&c.to_string()).await?;
                    pause(milliseconds).await;
                }
                Ok(())
            }
            Some(Effect::Garbage) => self.write("\u{7}@@\u{1b}[0;31m%%% \u{0}\u{fffd}; Segm").await,
            Some(Effect::FailAfter { .. }) => {
                self.print(own, input, &Page::refusal("The operation did not end well.")).await
            }
            _ => self.print(own, input, &page).await,
        }
    }

    async fn execute(
        &mut self,
        own: &mut Own,
        command: &Command,
        effect: Option<&Effect>,
    ) -> Result<Page, Refusal> {
        match command {
            Command::Setting(name, on) => {
                match name.to_ascii_lowercase().as_str() {
                    "confirmation" => own.confirmation = *on,
                    "paging" => own.paging = *on,
                    "events" => own.events = *on,
                    "formatoutput" => own.look.format = *on,
                    "displayinmb" => own.look.megabytes = *on,
                    "reprintbadinput" | "idlelogout" => {}
                    _ => return Err(Refusal("Bad command.".to_owned())),
                }
                return Ok(Page::default());
            }
            Command::Columns(columns) => {
                own.look.columns = *columns;
                return Ok(Page::default());
            }
            Command::ShowSettings => {
                let word = |on: bool| if on { "on" } else { "off" };
                let pairs = [
                    ("confirmation", own.confirmation),
                    ("events", own.events),
                    ("formatoutput", own.look.format),
                    ("paging", own.paging),
                    ("displayinMB", own.look.megabytes),
                ];
                let pairs = pairs.map(|(name, on)| (name, word(on)));
                return Ok(Page::default().title("CLI Settings").pairs(pairs));
            }
            Command::WhoAmI => return Ok(Page::line(self.user.clone())),
            Command::ShowGroup => {
                let settings = self.array.settings();
                let address = settings.vendor.get("address").and_then(Value::as_str);
                return Ok(Page::default().title("Group Information").pairs([
                    ("Name", self.habits.group.clone()),
                    ("Group-Ipaddress", address.unwrap_or("127.0.0.1").to_owned()),
                    ("Total-Volumes", self.array.view().count::<Volume>().to_string()),
                ]));
            }
            _ => {}
        }
        let (array, command) = (self.array.clone(), command.clone());
        let megabytes = own.look.megabytes;
        let done =
            tokio::task::spawn_blocking(move || execute::execute(&array, &command, megabytes));
        let done = done.await.map_err(|_| Refusal("Internal error.".to_owned()))??;
        if let Some(copy) = done.copy {
            let fails = matches!(effect, Some(Effect::JobFails { .. } | Effect::JobLost));
            let array = self.array.clone();
            let copying = tokio::task::spawn_blocking(move || fill(&array, &copy, fails));
            if self.habits.clone_waits {
                let _ = copying.await;
            }
        }
        Ok(done.page)
    }

    /// The lines of a page, with events between them where they are shown.
    fn lines(&self, own: &Own, page: &Page) -> Vec<String> {
        let mut lines = page.print(own.look);
        if own.events || self.habits.stray_events {
            let seconds = self.array.clock().now() / 1000;
            let event = format!(
                "netmgtd:{seconds}.77:rcc_util.c:1032:AUDIT:25.7.0:CLI: Login to account {}.",
                self.user
            );
            lines.insert(lines.len() / 2, event);
        }
        lines
    }

    async fn print(&self, own: &Own, input: &mut Input, page: &Page) -> Result<(), Over> {
        for (n, line) in self.lines(own, page).iter().enumerate() {
            if own.paging && n > 0 && n % SCREEN == 0 {
                self.write("-- More -- ").await?;
                if matches!(input.byte().await, None | Some(b'q')) {
                    return self.write("\r\n").await;
                }
                self.write("\r           \r\n").await?;
            }
            self.write(&format!("{line}\r\n")).await?;
        }
        Ok(())
    }
}

fn wrong_page(wrong: &Wrong) -> Page {
    match wrong {
        Wrong::Unknown => Page::refusal("Bad command."),
        Wrong::Missing(after) => Page::refusal(format!("Missing value after {after}.")),
        Wrong::Invalid(word) => Page::refusal(format!("Invalid value: {word}.")),
    }
}

/// Fills a clone with the used pages of its source: as long as the settings' `job` says, if that is
/// longer than it takes.
fn fill(array: &Array, copy: &Copy, fails: bool) {
    let whole = Duration::from_millis(array.settings().job);
    let started = std::time::Instant::now();
    let copied = array.copy_pages(&copy.from, &copy.to, |done, all| {
        let parts = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let due = whole.saturating_mul(parts(done)).checked_div(parts(all)).unwrap_or(whole);
        std::thread::sleep(due.saturating_sub(started.elapsed()));
    });
    std::thread::sleep(whole.saturating_sub(started.elapsed()));
    let ended = array.change(|change| {
        let Ok(mut volume) = change.volume(&copy.to) else { return Ok(()) };
        if volume.attributes.get(COPYING).and_then(Value::as_u64) != Some(copy.number) {
            return Ok(()); // Another one of that name.
        }
        if copied.is_err() || fails {
            volume.attributes.insert(COPYING.to_owned(), Value::from(0));
        } else {
            volume.attributes.remove(COPYING);
        }
        change.put::<_, Refusal>(&copy.to, &volume)
    });
    drop(ended); // What cannot be kept shows at the next change.
}

/// The simulator is gone, as a machine without power.
fn die() -> ! {
    let own = rustix::process::getpid();
    let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}
