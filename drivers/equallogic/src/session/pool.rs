//! The sessions of this process with one array.
//!
//! A group allows seven sessions at its command line, whoever opens them. So a session is a slot
//! among seven lock files that all processes of the host share, an idle one is kept for two seconds
//! only, and whoever finds all taken waits for one as long as his call lasts. What other hosts and
//! people hold is not known here; the array's own refusal is a reason to try again.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use array_kit::outcome::{Class, Failure, Outcome};
use array_kit::recorder::{Entry, Recorder, Redactor};
use array_kit::retry::{Chance, Effect, RetryPolicy};
use array_kit::session::Slots;
use plugin_sdk::tokio::sync::Semaphore;
use plugin_sdk::{Cx, Result, tokio};

use super::shell::{Lost, Shell};
use super::ssh::{Address, Connection, HostKey};
use crate::cli::command::Command;
use crate::cli::reply::Reply;
use crate::cli::verdict;

/// How long a session is kept that nobody uses.
const IDLE: Duration = Duration::from_secs(2);

/// How sessions are had.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the array is reached.
    pub address: Address,
    /// Which key it must show.
    pub host_key: HostKey,
    /// How many sessions all processes of this host may have.
    pub sessions: u32,
    /// How long an array may be silent within a reply.
    pub quiet: Duration,
    /// How often to try again.
    pub retry: RetryPolicy,
}

/// The sessions. Clones are the same ones.
#[derive(Clone)]
pub struct Sessions(Arc<Shared>);

struct Shared {
    options: Options,
    slots: Slots,
    permits: Semaphore,
    idle: Mutex<Vec<(Instant, Shell)>>,
    /// The array has refused our credentials, or its key is not the right one.
    denied: Mutex<Option<Failure>>,
    /// The fingerprint of the first connection, for those that follow.
    fingerprint: Mutex<Option<String>>,
    recorder: Recorder,
    chance: Chance,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    /// Sessions that begin when they are needed; `directory` holds the locks.
    pub fn new(options: Options, directory: &Path) -> Result<Self> {
        let place = format!("{}-{}", options.address.host, options.address.port);
        let slots = Slots::new(directory, &place, options.sessions)?;
        let redactor = Redactor::default();
        redactor.learn(&options.address.password);
        Ok(Self(Arc::new(Shared {
            permits: Semaphore::new(options.sessions.max(1) as usize),
            options,
            slots,
            idle: Mutex::default(),
            denied: Mutex::default(),
            fingerprint: Mutex::default(),
            recorder: Recorder::new(redactor),
            chance: Chance::default(),
        })))
    }

    /// What was asked.
    pub fn recorder(&self) -> &Recorder {
        &self.0.recorder
    }

    /// Whether the array has refused us for good.
    pub fn is_denied(&self) -> bool {
        lock(&self.0.denied).is_some()
    }

    /// The fingerprint of the array's key, once there was a connection.
    pub fn fingerprint(&self) -> Option<String> {
        lock(&self.0.fingerprint).clone()
    }

    /// How many can be used at once.
    pub fn at_once(&self) -> usize {
        self.0.options.sessions.max(1) as usize
    }

    /// Sends a command and answers its reply; a refusal is a failure. What reads is tried again
    /// when its reply is lost, what changes something only when it did not leave or the array says
    /// that it did nothing.
    pub async fn run(&self, cx: &Cx, command: &Command) -> Outcome<Reply> {
        self.ask(cx, command, Ok).await
    }

    /// As [`Self::run`], with what the reply says. One that says nothing that can be understood is
    /// asked for again like one that was lost.
    pub async fn ask<T: Send>(
        &self,
        cx: &Cx,
        command: &Command,
        read: impl Fn(Reply) -> Outcome<T> + Send + Sync,
    ) -> Outcome<T> {
        let (shared, read) = (&self.0, &read);
        let work = || async move { read(shared.once(cx, command).await?) };
        let mut reply = shared.options.retry.run(cx, &shared.chance, command.effect, work).await;
        if let Err(failure) = &mut reply {
            let scrub = |text: String| shared.recorder.redactor().scrub(&text);
            failure.words = failure.words.take().map(scrub);
        }
        reply
    }

    /// Ends all sessions that nobody uses.
    pub async fn close(&self) {
        let idle = std::mem::take(&mut *lock(&self.0.idle));
        for (_, shell) in idle {
            shell.close().await;
        }
    }
}

impl Shared {
    async fn once(self: &Arc<Self>, cx: &Cx, command: &Command) -> Outcome<Reply> {
        if let Some(denied) = lock(&self.denied).clone() {
            return Err(denied);
        }
        let permit = tokio::select! {
            biased;
            permit = self.permits.acquire() => permit.map_err(|_| Failure::new(Class::Own))?,
            error = ended(cx) => return Err(error.into()),
        };
        let mut shell = self.shell(cx).await?;
        let started = (SystemTime::now(), Instant::now());
        let run = shell.run(cx, &command.text, self.options.quiet);
        let answer = match command.effect {
            // What was sent is waited for, also after a cancel: else nobody knows what became of it.
            Effect::Changes => run.await,
            Effect::Reads => tokio::select! {
                biased;
                () = cx.cancelled() => Err(Lost::Stopped),
                answer = run => answer,
            },
        };
        let outcome = match answer {
            Ok(text) => {
                self.keep(shell);
                let outcome = verdict::judge(command.operation, Reply::read(&text, &command.text));
                self.record(command, started, text.len(), outcome.as_ref().err());
                outcome
            }
            Err(lost) => {
                // The array learns that the session has ended, and then the slot is free.
                tokio::spawn(shell.close());
                let failure = failure(cx, command.effect, lost);
                self.record(command, started, 0, Some(&failure));
                Err(failure)
            }
        };
        drop(permit);
        outcome
    }

    /// An idle shell, or a new one.
    async fn shell(self: &Arc<Self>, cx: &Cx) -> Outcome<Shell> {
        loop {
            let idle = lock(&self.idle).pop();
            let Some((_, mut shell)) = idle else { break };
            if shell.is_ready() {
                return Ok(shell);
            }
            shell.close().await;
        }
        let slot = self.slots.acquire(cx).await.map_err(|failure| failure.legacy(164))?;
        let opened = async {
            let connection =
                Connection::open(cx, &self.options.address, &self.options.host_key).await?;
            Shell::open(cx, connection, slot, self.options.quiet).await
        };
        match opened.await {
            Ok(shell) => {
                *lock(&self.fingerprint) = Some(shell.fingerprint().to_owned());
                Ok(shell)
            }
            Err(failure) => {
                if failure.class == Class::Denied {
                    *lock(&self.denied) = Some(failure.clone());
                }
                Err(failure)
            }
        }
    }

    /// Keeps a shell for who comes next, for a while.
    fn keep(self: &Arc<Self>, shell: Shell) {
        lock(&self.idle).push((Instant::now(), shell));
        let shared = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(IDLE).await;
            let Some(shared) = shared.upgrade() else { return };
            let old = {
                let mut idle = lock(&shared.idle);
                let (old, young): (Vec<_>, Vec<_>) =
                    idle.drain(..).partition(|(since, _)| since.elapsed() >= IDLE);
                *idle = young;
                old
            };
            for (_, shell) in old {
                shell.close().await;
            }
        });
    }

    fn record(
        &self,
        command: &Command,
        (started, since): (SystemTime, Instant),
        received: usize,
        failure: Option<&Failure>,
    ) {
        // What people call their disks is not for logs.
        let path = match command.text.split_once(" description ") {
            Some((before, _)) => format!("{before} description ..."),
            None => command.text.clone(),
        };
        self.recorder.record(Entry {
            operation: command.operation,
            method: "CLI",
            path,
            status: None,
            outcome: failure.map(|failure| format!("{:?}", failure.class)),
            started,
            took: since.elapsed(),
            sent: command.text.len(),
            received,
        });
    }
}

/// Waits until the call is over.
async fn ended(cx: &Cx) -> plugin_sdk::Error {
    tokio::select! {
        () = cx.cancelled() => {}
        () = tokio::time::sleep(cx.remaining()) => {}
    }
    match cx.check() {
        Err(error) => error,
        Ok(()) => plugin_sdk::Error::busy("all sessions of this process with the array are in use"),
    }
}

/// What a lost reply means.
fn failure(cx: &Cx, effect: Effect, lost: Lost) -> Failure {
    if lost == Lost::Unsent {
        return Failure::new(Class::Unreachable)
            .fact("the session ended before the command was sent")
            .legacy(176);
    }
    if effect == Effect::Reads
        && let Err(error) = cx.check()
    {
        return error.into();
    }
    let class = match effect {
        Effect::Changes => Class::Unknown,
        Effect::Reads if lost == Lost::Garbled => Class::Garbled,
        Effect::Reads => Class::Unreachable,
    };
    let failure = Failure::new(class);
    match lost {
        Lost::Ended => {
            failure.fact("the array ended the session in the middle of a reply").legacy(176)
        }
        Lost::Garbled => failure.fact("the array's reply has no end").legacy(174),
        _ => failure.fact("the array fell silent in the middle of a reply").legacy(176),
    }
}
