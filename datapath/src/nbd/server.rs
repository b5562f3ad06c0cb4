//! Listens, and gives each connection a thread.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::handshake::{Handshake, Outcome};
use super::link::{Gauge, Link, lock};
use super::session::{End, Session};
use super::tls::TlsServer;
use super::wire::{Socket, Wire};
use super::workers::STACK;
use crate::export::Exports;

/// What clients may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time; more are accepted and closed at once.
    pub connections: usize,
    /// Time for the whole of a handshake.
    pub handshake: Duration,
    /// Time in which a client must fetch something of its replies, or send something of a request
    /// that it has begun. Between requests it may be silent for ever.
    pub stall: Duration,
    /// Transfers may go through the kernel's ring, where it has one and the disk is better for it.
    pub ring: bool,
}

impl Default for Limits {
    /// 512 connections, 30 seconds, 60 seconds, with a ring.
    fn default() -> Self {
        Self {
            connections: 512,
            handshake: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            ring: true,
        }
    }
}

/// Where clients come from.
#[derive(Debug)]
pub enum Listener {
    /// A socket in the file system; who may open it may use it.
    Unix(UnixListener),
    /// The network. Without TLS anybody who reaches it may read and write.
    Tcp(TcpListener, Option<TlsServer>),
}

/// One connection, for whoever asks what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The export; none during the handshake.
    pub export: Option<String>,
    /// Requests that are not answered yet.
    pub in_flight: usize,
    /// How long it has been there.
    pub age: Duration,
}

/// A server. A clone is the same server.
#[derive(Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

struct Inner {
    exports: Arc<dyn Exports>,
    limits: Limits,
    state: Mutex<State>,
    /// A thread has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    next: u64,
    connections: HashMap<u64, Arc<Entry>>,
    /// Ends of pipes: a listener's thread ends when its one is closed.
    listeners: HashMap<u64, UnixStream>,
    stopped: bool,
}

struct Entry {
    /// The connection's socket once more, to end it from outside.
    socket: OwnedFd,
    export: OnceLock<String>,
    gauge: Arc<Gauge>,
    since: Instant,
}

impl Entry {
    fn close(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

impl Server {
    /// A server of these exports that does not listen yet.
    pub fn new(exports: Arc<dyn Exports>, limits: Limits) -> Self {
        let (state, ended) = (Mutex::default(), Condvar::new());
        Self { inner: Arc::new(Inner { exports, limits, state, ended }) }
    }

    /// Accepts connections from now on, in a thread of its own.
    pub fn serve(&self, listener: Listener) -> io::Result<()> {
        listener.prepare()?;
        let (stop, wake) = UnixStream::pair()?;
        let id = {
            let mut state = lock(&self.inner.state);
            if state.stopped {
                return Err(io::Error::other("the server was stopped"));
            }
            let id = state.take_number();
            state.listeners.insert(id, stop);
            id
        };
        let inner = Arc::clone(&self.inner);
        let thread = std::thread::Builder::new().name("nbd-accept".to_owned());
        let spawned = thread.stack_size(STACK).spawn(move || {
            inner.accept(&listener, &wake);
            // First nobody can come any more, then it is said so.
            drop(listener);
            lock(&inner.state).listeners.remove(&id);
            inner.ended.notify_all();
        });
        if let Err(error) = spawned {
            lock(&self.inner.state).listeners.remove(&id);
            return Err(error);
        }
        Ok(())
    }

    /// All connections.
    pub fn connections(&self) -> Vec<Connection> {
        let state = lock(&self.inner.state);
        let look = |entry: &Arc<Entry>| Connection {
            export: entry.export.get().cloned(),
            in_flight: entry.gauge.get(),
            age: entry.since.elapsed(),
        };
        state.connections.values().map(look).collect()
    }

    /// Ends the connections to an export and waits until they are gone, each after the requests it
    /// is doing: whoever connects next sees the export as it is then. False: some are still there
    /// after `patience`.
    pub fn close_export(&self, name: &str, patience: Duration) -> bool {
        let of_export = |entry: &Entry| entry.export.get().is_some_and(|export| export == name);
        let state = lock(&self.inner.state);
        let closed: Vec<u64> = state
            .connections
            .iter()
            .filter(|(_, entry)| of_export(entry))
            .map(|(id, entry)| {
                entry.close();
                *id
            })
            .collect();
        drop(state);
        self.inner
            .wait(patience, |state| !closed.iter().any(|id| state.connections.contains_key(id)))
    }

    /// Listens no more, ends all connections, each after the requests it is doing, and waits until
    /// they are gone. False: some are still there after `patience`.
    pub fn stop(&self, patience: Duration) -> bool {
        {
            let mut state = lock(&self.inner.state);
            state.stopped = true;
            for pipe in state.listeners.values() {
                let _ = pipe.shutdown(std::net::Shutdown::Both);
            }
            state.connections.values().for_each(|entry| entry.close());
        }
        self.inner
            .wait(patience, |state| state.listeners.is_empty() && state.connections.is_empty())
    }
}

/// Serves one client over whatever carries it, without TLS, in the calling thread. Whether the
/// client behaved: it left as the protocol wants it, or between two requests.
pub fn serve_wire(wire: Box<dyn Wire>, exports: &dyn Exports, limits: &Limits) -> bool {
    let until = Instant::now() + limits.handshake;
    let negotiated = {
        let handshake = Handshake { wire: wire.as_ref(), exports, tls: false, until };
        handshake.greet().and_then(|greeted| match greeted {
            Some(no_zeroes) => handshake.negotiate(no_zeroes, false),
            None => Ok(Outcome::Left),
        })
    };
    match negotiated {
        Ok(Outcome::Use(agreed)) => {
            let link = Link::new(wire, agreed, Arc::default());
            let end = Session::new(Arc::new(link), limits).run();
            matches!(end, End::Left | End::Gone)
        }
        Ok(_) => true,
        Err(_) => false,
    }
}

impl State {
    fn take_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Inner {
    fn wait(&self, patience: Duration, done: impl Fn(&State) -> bool) -> bool {
        let state = lock(&self.state);
        let waiting = |state: &mut State| !done(state);
        let result = self.ended.wait_timeout_while(state, patience, waiting);
        !result.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn accept(self: &Arc<Self>, listener: &Listener, wake: &UnixStream) {
        let mut failures = 0_u64;
        loop {
            let mut watched = [
                PollFd::new(listener, PollFlags::IN),
                PollFd::new(wake, PollFlags::IN | PollFlags::HUP),
            ];
            match poll(&mut watched, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!("waiting for connections has failed: {error}");
                    return;
                }
            }
            let [_, stop] = watched;
            if !stop.revents().is_empty() {
                return;
            }
            let socket = match listener.accept() {
                Ok(socket) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => {
                    // Out of descriptors, or a client that has left already. The next look may do
                    // better, but not at once.
                    failures += 1;
                    if failures.is_power_of_two() {
                        tracing::warn!(failures, "a connection could not be accepted: {error}");
                    }
                    let mut stop = [PollFd::new(wake, PollFlags::IN | PollFlags::HUP)];
                    let _ = poll(&mut stop, Some(&PAUSE));
                    continue;
                }
            };
            let tls = match listener {
                Listener::Unix(_) => None,
                Listener::Tcp(_, tls) => tls.clone(),
            };
            if let Err(error) = self.start(socket, tls) {
                tracing::warn!("a connection could not be served: {error}");
            }
        }
    }

    fn start(self: &Arc<Self>, socket: Socket, tls: Option<TlsServer>) -> io::Result<()> {
        let again = rustix::io::fcntl_dupfd_cloexec(&socket, 0)?;
        let entry = Arc::new(Entry {
            socket: again,
            export: OnceLock::new(),
            gauge: Arc::default(),
            since: Instant::now(),
        });
        let id = {
            let mut state = lock(&self.state);
            if state.stopped || state.connections.len() >= self.limits.connections {
                return Err(io::Error::other("there are too many connections"));
            }
            let id = state.take_number();
            state.connections.insert(id, Arc::clone(&entry));
            id
        };
        let present = Present { inner: Arc::clone(self), id };
        let thread = std::thread::Builder::new().name("nbd-connection".to_owned());
        thread.stack_size(STACK).spawn(move || {
            let present = present;
            present.inner.serve(socket, tls.as_ref(), &entry);
            // The copy of the socket would keep the client from seeing the end.
            entry.close();
        })?;
        Ok(())
    }

    fn serve(&self, socket: Socket, tls: Option<&TlsServer>, entry: &Entry) {
        socket.prepare();
        let end = match self.shake_hands(socket, tls, entry) {
            Ok(Some(link)) => Session::new(Arc::new(link), &self.limits).run(),
            Ok(None) => End::Left,
            Err(error) => error.into(),
        };
        let export = entry.export.get();
        match end {
            End::Left | End::Gone => tracing::debug!(export, "a client has left"),
            End::Nonsense => tracing::info!(export, "a client does not speak NBD"),
            End::Stalled => tracing::info!(export, "a client has stalled"),
            End::Broken(error) => tracing::info!(export, "a connection has failed: {error}"),
        }
    }

    fn with<'a>(&'a self, wire: &'a dyn Wire, tls: bool, until: Instant) -> Handshake<'a> {
        Handshake { wire, exports: self.exports.as_ref(), tls, until }
    }

    /// None: the client has left.
    fn shake_hands(
        &self,
        socket: Socket,
        tls: Option<&TlsServer>,
        entry: &Entry,
    ) -> io::Result<Option<Link>> {
        let until = Instant::now() + self.limits.handshake;
        socket.set_send_timeout(Some(self.limits.handshake))?;
        let Some(no_zeroes) = self.with(&socket, tls.is_some(), until).greet()? else {
            return Ok(None);
        };
        let outcome = self.with(&socket, tls.is_some(), until).negotiate(no_zeroes, false)?;
        let (wire, outcome): (Box<dyn Wire>, _) = match (outcome, tls) {
            (Outcome::StartTls, Some(tls)) => {
                let encrypted = tls.accept(socket, until)?;
                let outcome = self.with(&encrypted, true, until).negotiate(no_zeroes, true)?;
                (Box::new(encrypted), outcome)
            }
            (outcome, _) => (Box::new(socket), outcome),
        };
        let Outcome::Use(agreed) = outcome else { return Ok(None) };
        let _ = entry.export.set(agreed.name.clone());
        if agreed.export.size() != agreed.size {
            // It has changed before this connection could be found by its name and closed.
            return Ok(None);
        }
        wire.set_receive_timeout(Some(self.limits.stall))?;
        wire.set_send_timeout(Some(self.limits.stall))?;
        Ok(Some(Link::new(wire, agreed, Arc::clone(&entry.gauge))))
    }
}

/// Between two tries to accept, when one has failed: 10 ms.
const PAUSE: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// A connection is counted as long as this is there.
struct Present {
    inner: Arc<Inner>,
    id: u64,
}

impl Drop for Present {
    fn drop(&mut self) {
        lock(&self.inner.state).connections.remove(&self.id);
        self.inner.ended.notify_all();
    }
}

impl Listener {
    fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Unix(listener) => listener.set_nonblocking(true),
            Self::Tcp(listener, _) => listener.set_nonblocking(true),
        }
    }

    /// Accepted sockets wait, whatever the listener does.
    fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Unix(listener) => Ok(Socket::Unix(listener.accept()?.0)),
            Self::Tcp(listener, _) => Ok(Socket::Tcp(listener.accept()?.0)),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener, _) => listener.as_fd(),
        }
    }
}
