//! The requests of one connection.
//!
//! One receive brings as many requests as there are; their replies leave together, when the last of
//! them is done, when much waits, or when the first has waited a while. So a client that keeps
//! sixteen requests in flight costs two system calls for many of them.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::buffer::{Input, Output, PIECE, Payload};
#[cfg(feature = "ring")]
use super::chance::Chance;
use super::context::Found;
use super::link::{Kind, Link};
use super::long::Long;
use super::perform::{self, kind};
use super::protocol::{REQUEST_LENGTH, Request};
use super::request::Action;
use super::server::Limits;
use super::workers::{Job, Workers};
#[cfg(feature = "ring")]
use crate::export::Mapped;

/// Writes up to this are kept with their request until they are there as a whole, bytes.
const SMALL: usize = 64 * 1024;

/// Replies that are sent without looking for more requests, bytes.
const MUCH: usize = 128 * 1024;

/// The longest that a reply waits for others.
const WHILE: Duration = Duration::from_micros(200);

/// How a session ends.
#[derive(Debug)]
pub(super) enum End {
    /// As the protocol wants it.
    Left,
    /// The connection has ended between requests.
    Gone,
    /// It is not NBD.
    Nonsense,
    /// In the middle of a request nothing came for too long.
    Stalled,
    /// The connection has failed.
    Broken(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Stalled,
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::UnexpectedEof => Self::Gone,
            _ => Self::Broken(error),
        }
    }
}

/// The thread of a connection.
pub(super) struct Session {
    link: Arc<Link>,
    input: Input,
    out: Output,
    found: Found,
    long: Long,
    /// The request before was a long write: the next one's payload is not to come with its head.
    was_long: bool,
    workers: Option<Workers>,
    stall: Duration,
    #[cfg(feature = "ring")]
    ring: Ring,
}

/// Whether a ring is worth trying.
#[cfg(feature = "ring")]
struct Ring {
    /// There is none to be had.
    none: bool,
    chance: Chance,
}

/// What comes after a request.
enum Next {
    /// The next one.
    Go,
    /// The same one, by the ring.
    #[cfg(feature = "ring")]
    Ring,
    /// Its rest is not there yet.
    Wait,
}

impl Session {
    /// Receiving ends in the time of the limits already.
    pub(super) fn new(link: Arc<Link>, limits: &Limits) -> Self {
        Self {
            link,
            input: Input::new(),
            out: Output::with_pipe(),
            found: Found::default(),
            long: Long::default(),
            was_long: false,
            workers: None,
            stall: limits.stall,
            #[cfg(feature = "ring")]
            ring: Ring { none: !limits.ring, chance: Chance::default() },
        }
    }

    /// Serves until the client leaves.
    pub(super) fn run(mut self) -> End {
        loop {
            match self.requests() {
                Ok(Some(end)) | Err(end) => return end,
                Ok(None) => {}
            }
            #[cfg(feature = "ring")]
            match super::ring::RingSession::new(&self.link, self.stall) {
                Ok(ring) => return ring.run(self.input),
                Err(error) => {
                    tracing::debug!("no ring: {error}");
                    self.ring.none = true;
                }
            }
        }
    }

    /// None: a ring is wanted, and nothing is being done.
    fn requests(&mut self) -> Result<Option<End>, End> {
        loop {
            while let Some(head) = self.input.head() {
                let Some(request) = Request::parse(head) else { return Err(End::Nonsense) };
                let action = Action::of(&request, &self.link.agreed);
                if action == Action::Leave {
                    self.out.send(&self.link)?;
                    return Ok(Some(End::Left));
                }
                match self.one(&request, action)? {
                    Next::Go => {}
                    Next::Wait => break,
                    #[cfg(feature = "ring")]
                    Next::Ring => {
                        self.out.send(&self.link)?;
                        return Ok(None);
                    }
                }
            }
            self.out.send(&self.link)?;
            if !self.fill()? {
                return Ok(Some(End::Gone));
            }
        }
    }

    /// Receives more requests. False: there are no more.
    fn fill(&mut self) -> Result<bool, End> {
        let only_head = std::mem::take(&mut self.was_long) && self.input.length() == 0;
        let most = if only_head { REQUEST_LENGTH } else { usize::MAX };
        loop {
            let room = self.input.room();
            let most = most.min(room.len());
            match self.link.wire.receive(room.get_mut(..most).unwrap_or_default()) {
                Ok(0) if self.input.length() == 0 => return Ok(false),
                Ok(0) => return Err(End::Gone),
                Ok(count) => {
                    self.input.came(count);
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Between requests a client may be silent as long as it likes.
                    if self.input.length() > 0 {
                        return Err(End::Stalled);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn one(&mut self, request: &Request, action: Action) -> Result<Next, End> {
        let length = request.length as usize;
        let carries = request.command == super::protocol::command::WRITE;
        #[cfg(feature = "ring")]
        if self.is_for_ring(request, action) {
            return Ok(Next::Ring);
        }
        match action {
            Action::Write { .. } if self.input.length() >= REQUEST_LENGTH + length => {}
            Action::Write { .. } if length <= SMALL => return Ok(Next::Wait),
            Action::Write { durable } => {
                self.input.skip(REQUEST_LENGTH);
                self.out.send(&self.link)?;
                self.link.gauge.add();
                let Self { link, input, out, long, stall, .. } = self;
                let done = long.write(link, (input, out.pipe()), (request, durable), *stall);
                self.link.gauge.remove();
                perform::answer(&self.link, request, done?, &mut self.out)?;
                self.was_long = true;
                return Ok(Next::Go);
            }
            Action::Refuse(..) if carries => {
                self.input.skip(REQUEST_LENGTH);
                self.drain(length)?;
                let Self { link, found, out, .. } = self;
                perform::perform(link, request, action, &[], found, out)?;
                return Ok(Next::Go);
            }
            _ => {}
        }
        let taken = REQUEST_LENGTH + if carries { length } else { 0 };
        let kind = kind(action);
        self.link.gauge.add();
        if self.is_for_workers(kind, length, taken) {
            let bytes = self.input.peek(taken).unwrap_or_default();
            let payload = bytes.get(REQUEST_LENGTH..).unwrap_or_default().to_vec();
            let payload = Payload::Bytes(payload);
            self.input.skip(taken);
            // What is done already need not wait for what is slow.
            self.out.send(&self.link)?;
            let link = &self.link;
            let workers = self.workers.get_or_insert_with(|| Workers::new(Arc::clone(link), None));
            workers.give(Job { request: *request, action, payload, part_of: None })?;
            return Ok(Next::Go);
        }
        if kind == Kind::Durable {
            self.out.send(&self.link)?;
        }
        let Self { link, input, out, found, .. } = self;
        let bytes = input.peek(taken).unwrap_or_default();
        let payload = bytes.get(REQUEST_LENGTH..).unwrap_or_default();
        let began = Instant::now();
        let done = perform::perform(link, request, action, payload, found, out);
        let now = Instant::now();
        link.gauge.remove();
        link.pace.add(kind, now - began, length);
        done?;
        input.skip(taken);
        out.stamp(now);
        let waited = out.since().is_some_and(|since| now - since > WHILE);
        if out.length() >= MUCH || waited {
            out.send(link)?;
        }
        Ok(Next::Go)
    }

    /// Whether a ring should go on from here: there is more than one request, or a long one, and
    /// the disk says that it is nothing but transfers.
    #[cfg(feature = "ring")]
    fn is_for_ring(&mut self, request: &Request, action: Action) -> bool {
        let write = match action {
            Action::Read { .. } => false,
            Action::Write { durable: false } => true,
            _ => return false,
        };
        let length = request.length as usize;
        let taken = REQUEST_LENGTH + if write { length } else { 0 };
        let more = self.input.length() >= taken + REQUEST_LENGTH || length > PIECE;
        let busy = self.workers.as_ref().is_some_and(|workers| workers.busy() > 0);
        if !more
            || busy
            || self.link.wire.socket().is_none()
            || self.ring.none
            || !self.ring.chance.is_now()
        {
            return false;
        }
        let (export, length) = (&self.link.agreed.export, length.min(PIECE) as u64);
        let mapped = if write {
            export.map_write(request.offset, length)
        } else {
            export.map_read(request.offset, length)
        };
        matches!(mapped, Mapped::Transfer(_))
    }

    /// Whether a request had better be done by another thread: it will take a while, and there is
    /// something else to do meanwhile, or, after a flush, soon will be.
    fn is_for_workers(&self, kind: Kind, length: usize, taken: usize) -> bool {
        if kind == Kind::Other || length > PIECE || !self.link.pace.is_slow(kind) {
            return false;
        }
        kind == Kind::Durable
            || self.input.length() >= taken + REQUEST_LENGTH
            || self.workers.as_ref().is_some_and(|workers| workers.busy() > 0)
    }

    /// Receives a payload that nobody wants.
    fn drain(&mut self, length: usize) -> Result<(), End> {
        let mut left = length - self.input.skip(length);
        if left > 0 {
            self.out.send(&self.link)?;
        }
        while left > 0 {
            match self.link.wire.receive(self.input.room()) {
                Ok(0) => return Err(End::Gone),
                Ok(count) => {
                    self.input.came(count);
                    left -= self.input.skip(left);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(End::Stalled);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
