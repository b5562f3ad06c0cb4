//! Login sessions.
//!
//! [`Session`] is one session that many share: a token, a cookie, a WebSocket. Eight tasks that find
//! it ended make one new login. [`Slots`] caps how many sessions all processes of this host have
//! together, for arrays that allow seven.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use plugin_sdk::model::{Error, Kind, Result};
use plugin_sdk::tokio::sync::Mutex;
use plugin_sdk::{Cx, tokio};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::outcome::{Class, Failure, Outcome};
use crate::retry::wait;

/// How to log in at a vendor's array.
pub trait Login: Send + Sync + 'static {
    /// What a session is: a token, or a connection.
    type Ticket: Clone + Send + Sync + 'static;

    /// Logs in. [`Class::Denied`] is final: nobody asks again with the same password, because
    /// arrays lock an account after a few.
    fn login(&self, cx: &Cx) -> impl Future<Output = Outcome<Self::Ticket>> + Send;

    /// Logs out. That the session has ended already is success.
    fn logout(&self, cx: &Cx, ticket: Self::Ticket) -> impl Future<Output = Outcome<()>> + Send {
        let _ = (cx, ticket);
        std::future::ready(Ok(()))
    }
}

/// A session that many share. Clones are the same session.
pub struct Session<L: Login>(Arc<Shared<L>>);

struct Shared<L: Login> {
    login: L,
    state: Arc<Mutex<State<L::Ticket>>>,
}

struct State<T> {
    ticket: Option<T>,
    /// Counts the logins.
    generation: u64,
    /// Counts the tickets: who was refused with an older one takes the newer one.
    version: u64,
    /// The array has refused our credentials.
    denied: Option<Failure>,
}

/// A ticket and which login it is from.
#[derive(Clone, Debug)]
pub struct Ticket<T> {
    /// What goes with each request.
    pub ticket: T,
    generation: u64,
    version: u64,
}

impl<L: Login> Clone for Session<L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L: Login> Session<L> {
    /// A session that begins when it is first needed.
    pub fn new(login: L) -> Self {
        let state = State { ticket: None, generation: 0, version: 0, denied: None };
        Self(Arc::new(Shared { login, state: Arc::new(Mutex::new(state)) }))
    }

    /// How it logs in.
    pub fn login(&self) -> &L {
        &self.0.login
    }

    /// The ticket of now; logs in if there is none.
    pub async fn ticket(&self, cx: &Cx) -> Outcome<Ticket<L::Ticket>> {
        self.fresh(cx, None).await
    }

    /// The array has refused `old`: a newer one. Whoever comes first logs in, the others wait for
    /// that.
    pub async fn renew(&self, cx: &Cx, old: &Ticket<L::Ticket>) -> Outcome<Ticket<L::Ticket>> {
        self.fresh(cx, Some(old.version)).await
    }

    async fn fresh(&self, cx: &Cx, refused: Option<u64>) -> Outcome<Ticket<L::Ticket>> {
        let mut state = tokio::select! {
            biased;
            state = Arc::clone(&self.0.state).lock_owned() => state,
            () = cx.cancelled() => return Err(stopped(cx)),
            () = tokio::time::sleep(cx.remaining()) => return Err(stopped(cx)),
        };
        if let Some(denied) = &state.denied {
            return Err(denied.clone());
        }
        if refused == Some(state.version) {
            state.ticket = None;
        }
        if let Some(ticket) = &state.ticket {
            let (generation, version) = (state.generation, state.version);
            return Ok(Ticket { ticket: ticket.clone(), generation, version });
        }
        // On a task of its own: a caller that goes away must not leave a session on the array that
        // nobody knows of.
        let (shared, cx) = (Arc::clone(&self.0), cx.clone());
        let login = tokio::spawn(async move {
            match shared.login.login(&cx).await {
                Ok(ticket) => {
                    state.generation += 1;
                    state.version += 1;
                    state.ticket = Some(ticket.clone());
                    let (generation, version) = (state.generation, state.version);
                    Ok(Ticket { ticket, generation, version })
                }
                Err(failure) => {
                    if failure.class == Class::Denied {
                        state.denied = Some(failure.clone());
                    }
                    Err(failure)
                }
            }
        });
        login.await.map_err(|_| Failure::new(Class::Own).fact("the login was lost"))?
    }

    /// An answer brought a newer ticket for the same session (a CSRF token). Forgotten if there was
    /// another login meanwhile.
    pub async fn learn(&self, old: &Ticket<L::Ticket>, new: L::Ticket) {
        let mut state = self.0.state.lock().await;
        if state.generation == old.generation && state.ticket.is_some() {
            state.ticket = Some(new);
            state.version += 1;
        }
    }

    /// Whether the array has refused our credentials: the driver must be opened anew.
    pub fn is_denied(&self) -> bool {
        self.0.state.try_lock().is_ok_and(|state| state.denied.is_some())
    }

    /// Logs out, if anybody has logged in. What goes wrong is of no consequence: the array ends
    /// idle sessions by itself.
    pub async fn close(&self, cx: &Cx) {
        let ticket = self.0.state.lock().await.ticket.take();
        if let Some(ticket) = ticket
            && let Err(failure) = self.0.login.logout(cx, ticket).await
        {
            plugin_sdk::tracing::info!("the logout failed: {failure}");
        }
    }
}

/// The failure of a login: one that is refused is a wrong password, whatever else its code means.
pub(crate) fn refused(failure: Failure) -> Failure {
    match failure.class {
        Class::Expired | Class::Denied => failure
            .reclassed(Class::Denied)
            .fact("the array does not accept user and password")
            .hint("correct the credentials; they are not tried again, so that nothing is locked"),
        _ => failure,
    }
}

fn stopped(cx: &Cx) -> Failure {
    match cx.check() {
        Err(error) => error.into(),
        Ok(()) => Failure::new(Class::Busy).fact("another request is logging in, and not done"),
    }
}

/// At most so many sessions at one array, over all processes of this host: a lock file for each.
/// The kernel gives a slot back with the process that held it.
#[derive(Clone, Debug)]
pub struct Slots {
    directory: PathBuf,
    array: String,
    count: u32,
}

/// The right to one session, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    _file: std::fs::File,
    number: u32,
}

impl Slot {
    /// Which of the slots.
    pub fn number(&self) -> u32 {
        self.number
    }
}

/// The first and the longest pause between two looks for a free slot: a lock of another process
/// tells nobody when it goes.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

impl Slots {
    /// `count` slots of an array, as lock files in a directory that all processes share. The array
    /// is named by its address; whatever is no letter or digit becomes `-`. Error kind `config` if
    /// the directory cannot be made.
    pub fn new(directory: &Path, array: &str, count: u32) -> Result<Self> {
        std::fs::create_dir_all(directory).map_err(|error| {
            let path = directory.display();
            Error::config(format!("the directory of session locks, {path}, cannot be made"))
                .source(&error)
        })?;
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let array = array.chars().map(plain).collect();
        Ok(Self { directory: directory.to_owned(), array, count: count.max(1) })
    }

    /// A free slot. Error kind `busy` when the call's time is over.
    pub async fn acquire(&self, cx: &Cx) -> Outcome<Slot> {
        let mut pause = LOOK.0;
        loop {
            if let Some(slot) = self.try_acquire()? {
                return Ok(slot);
            }
            if cx.remaining() <= pause {
                cx.check()?;
                return Err(Failure::new(Class::Busy)
                    .fact(format!("all {} sessions of the array are in use", self.count))
                    .hint("they are other operations of this host: try again when they are done"));
            }
            wait(cx, pause).await?;
            pause = (pause * 2).min(LOOK.1);
        }
    }

    /// A free slot, if there is one now.
    pub fn try_acquire(&self) -> Result<Option<Slot>> {
        for number in 0..self.count {
            let path = self.directory.join(format!("{}.{number}.session", self.array));
            // Never removed: a new file of the same name would be another lock.
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o666))
                .map_err(|error| lock_error(&path, error))?;
            let file = std::fs::File::from(file);
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Slot { _file: file, number })),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(lock_error(&path, error)),
            }
        }
        Ok(None)
    }
}

fn lock_error(path: &Path, error: rustix::io::Errno) -> Error {
    Error::new(
        Kind::Config { missing: Vec::new(), candidates: Vec::new() },
        format!("the session lock {} cannot be taken", path.display()),
    )
    .source(&std::io::Error::from(error))
}
