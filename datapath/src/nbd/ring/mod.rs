//! The requests of one connection, for a disk whose requests are transfers: many at a time.
//!
//! The thread never waits for anything but the ring: not for the client to fetch replies, not for
//! the rest of a payload, not at a disk that is being changed. It holds transfers in flight, and
//! whoever changes the disk waits for those. Requests that are more than transfers are for other
//! threads. Only when there is nothing else at all, a single request is done at once, which is the
//! quickest for a client that sends one after the other.

mod carried;
mod outgoing;
mod transfers;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::{RecvFlags, recv};

use super::buffer::{Buffer, Input, Output, PIECE, Payload};
use super::context::Found;
use super::inbox::{Inbox, Message};
use super::link::{Kind, Link};
use super::perform;
use super::protocol::{REQUEST_LENGTH, Request, command};
use super::reply;
use super::request::Action;
use super::session::End;
use super::workers::{Job, Workers};
use crate::export::{Mapped, Transfer};
use carried::Carried;
use outgoing::Outgoing;
use transfers::{Event, Purpose, Transfers};

/// Writes up to this are kept with their request until they are there as a whole, bytes.
const SMALL: usize = 64 * 1024;

/// The longest read that is made of transfers as a whole, bytes.
const LONG: usize = 2 << 20;

/// Replies that may wait for the client before no more requests are taken, bytes.
const BACKLOG: usize = 1 << 20;

/// How often a connection that waits for its client is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Descriptors that are watched.
const INPUT: u64 = 0;
/// (1 is the socket again, for sending.)
const BELL: u64 = 2;

/// A long write that is being received.
struct Incoming {
    number: usize,
    buffer: Option<Buffer>,
    /// Bytes of the piece that have come, and what it will have.
    have: usize,
    piece: usize,
    /// Where the piece goes, and bytes of the request from there on.
    offset: u64,
    left: usize,
}

/// What can be done about the next request.
enum Next {
    Go,
    /// More of it must come, or something must end first.
    Wait,
}

/// The thread of a connection.
pub(super) struct RingSession {
    link: Arc<Link>,
    input: Input,
    found: Found,
    /// For what is done at once.
    out: Output,
    transfers: Transfers,
    outgoing: Outgoing,
    carried: Vec<Option<Carried>>,
    vacant: Vec<usize>,
    incoming: Option<Incoming>,
    /// Payload to be thrown away, and the reply for then.
    refused: Option<(Request, Action, usize)>,
    inbox: Arc<Inbox>,
    workers: Workers,
    /// Requests and parts that other threads have.
    given: usize,
    /// Something is in the inbox.
    rung: bool,
    watched: [bool; 3],
    /// The last receive has left nothing.
    drained: bool,
    /// The client has said all it will.
    ended: bool,
    /// When something last went to, or came from, the client.
    progress: Instant,
    stall: Duration,
    left: bool,
}

impl RingSession {
    /// None: there is no ring to be had.
    pub(super) fn new(link: &Arc<Link>, stall: Duration) -> io::Result<Self> {
        let transfers = Transfers::new()?;
        let inbox = Arc::new(Inbox::new()?);
        let workers = Workers::new(Arc::clone(link), Some(Arc::clone(&inbox)));
        Ok(Self {
            link: Arc::clone(link),
            input: Input::new(),
            found: Found::default(),
            out: Output::new(None),
            transfers,
            outgoing: Outgoing::default(),
            carried: Vec::new(),
            vacant: Vec::new(),
            incoming: None,
            refused: None,
            inbox,
            workers,
            given: 0,
            rung: false,
            watched: [false; 3],
            drained: false,
            ended: false,
            progress: Instant::now(),
            stall,
            left: false,
        })
    }

    /// Serves until the client leaves; begins with what has come already.
    pub(super) fn run(mut self, input: Input) -> End {
        self.input = input;
        let end = self.requests().unwrap_or_else(|end| end);
        self.inbox.close();
        end
    }

    fn requests(&mut self) -> Result<End, End> {
        let mut events = Vec::new();
        loop {
            while !self.left && self.step()? {}
            if self.rung && self.outgoing.length() < BACKLOG {
                self.open_inbox();
                continue;
            }
            let full = self.outgoing.length() >= BACKLOG;
            self.send()?;
            if full && self.outgoing.length() < BACKLOG {
                continue;
            }
            if self.is_quiet() && (self.left || self.ended) {
                return Ok(if self.left { End::Left } else { End::Gone });
            }
            if !self.drained && self.wants_input() && self.receive()? {
                continue;
            }
            if self.is_idle() {
                self.next_request()?;
                continue;
            }
            self.watch();
            self.wait()?;
            self.transfers.reap(&mut events);
            for event in events.drain(..) {
                self.event(event)?;
            }
        }
    }

    /// Nothing is being done, and nothing waits to be sent.
    fn is_quiet(&self) -> bool {
        self.transfers.count() == 0 && self.given == 0 && self.outgoing.is_empty()
    }

    /// There is nothing at all to do before the next request comes.
    fn is_idle(&self) -> bool {
        self.is_quiet()
            && self.input.length() == 0
            && self.incoming.is_none()
            && self.refused.is_none()
    }

    /// Waits for the next request without the ring, which is the shorter way: nothing is held, and
    /// nothing else can happen.
    fn next_request(&mut self) -> Result<(), End> {
        self.transfers.rest();
        match self.link.wire.receive(self.input.room()) {
            Ok(0) => self.ended = true,
            Ok(count) => {
                self.input.came(count);
                self.drained = true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        self.progress = Instant::now();
        Ok(())
    }

    fn wants_input(&self) -> bool {
        if self.left || self.ended {
            return false;
        }
        match &self.incoming {
            Some(incoming) => incoming.buffer.is_some() && incoming.have < incoming.piece,
            None => self.outgoing.length() < BACKLOG && self.input.length() < SMALL * 2,
        }
    }

    fn watch(&mut self) {
        let wanted = [self.wants_input(), !self.outgoing.is_empty(), !self.rung];
        let flags = [PollFlags::IN, PollFlags::OUT, PollFlags::IN];
        for (number, ((watched, wanted), flags)) in
            self.watched.iter_mut().zip(wanted).zip(flags).enumerate()
        {
            if *watched || !wanted {
                continue;
            }
            let descriptor = if number == BELL as usize {
                self.inbox.bell()
            } else if let Some(socket) = self.link.wire.socket() {
                socket
            } else {
                continue;
            };
            self.transfers.watch(descriptor, flags.bits(), number as u64);
            *watched = true;
        }
    }

    fn wait(&mut self) -> Result<(), End> {
        let in_request =
            self.incoming.is_some() || self.refused.is_some() || self.input.length() > 0;
        let of_client = !self.outgoing.is_empty() || (in_request && self.is_quiet());
        if of_client && self.progress.elapsed() >= self.stall {
            return Err(End::Stalled);
        }
        if !of_client {
            self.progress = Instant::now();
        }
        let time = of_client.then(|| LOOK.min(self.stall));
        self.transfers.wait(time).map_err(End::Broken)
    }

    fn send(&mut self) -> Result<(), End> {
        let Some(socket) = self.link.wire.socket() else { return Ok(()) };
        let before = self.outgoing.length();
        self.outgoing.send(socket, &mut self.transfers)?;
        if self.outgoing.length() < before {
            self.progress = Instant::now();
        }
        Ok(())
    }

    /// Receives what is there. False: nothing is.
    fn receive(&mut self) -> Result<bool, End> {
        let Self { link, input, incoming, .. } = self;
        let Some(socket) = link.wire.socket() else { return Ok(false) };
        let room = match incoming {
            Some(Incoming { buffer: Some(buffer), have, piece, .. }) => {
                buffer.data(*piece).get_mut(*have..).unwrap_or_default()
            }
            _ => input.room(),
        };
        let wanted = room.len();
        let count = match recv(socket, room, RecvFlags::DONTWAIT) {
            Ok((0, _)) => {
                if self.incoming.is_some() || self.refused.is_some() {
                    return Err(End::Gone);
                }
                self.ended = true;
                return Ok(true);
            }
            Ok((count, _)) => count,
            Err(rustix::io::Errno::AGAIN) => {
                self.drained = true;
                return Ok(false);
            }
            Err(rustix::io::Errno::INTR) => return Ok(true),
            Err(error) => return Err(io::Error::from(error).into()),
        };
        self.progress = Instant::now();
        self.drained = count < wanted;
        match &mut self.incoming {
            Some(incoming) => incoming.have += count,
            None => self.input.came(count),
        }
        Ok(true)
    }

    fn open_inbox(&mut self) {
        self.rung = false;
        for message in self.inbox.take() {
            match message {
                Message::Reply(bytes) => self.outgoing.add(&bytes),
                Message::Part(number, error, payload) => {
                    if let Payload::Lent(buffer, _) = payload {
                        self.transfers.give_back(buffer);
                    }
                    self.part_done(number, error);
                }
                Message::Done => self.given -= 1,
            }
        }
    }

    fn event(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Ready(number) => {
                self.rung |= number == BELL;
                self.drained &= number != INPUT;
                if let Some(watched) = self.watched.get_mut(number as usize) {
                    *watched = false;
                }
            }
            Event::Done { purpose, buffer, failed } => self.done(purpose, buffer, failed)?,
        }
        Ok(())
    }

    /// Does something about what has come. False: nothing can be done.
    fn step(&mut self) -> Result<bool, End> {
        if self.incoming.is_some() {
            return self.more_payload();
        }
        if let Some((request, action, left)) = self.refused {
            let rest = left - self.input.skip(left);
            if rest > 0 {
                self.refused = Some((request, action, rest));
                return Ok(false);
            }
            self.refused = None;
            self.refuse(&request, action);
            return Ok(true);
        }
        if self.outgoing.length() >= BACKLOG || !self.workers.has_room() {
            return Ok(false);
        }
        let Some(head) = self.input.head() else { return Ok(false) };
        let Some(request) = Request::parse(head) else { return Err(End::Nonsense) };
        let action = Action::of(&request, &self.link.agreed);
        let next = match action {
            Action::Leave => {
                self.left = true;
                Next::Go
            }
            Action::Refuse(..) => {
                self.input.skip(REQUEST_LENGTH);
                let carries = request.command == command::WRITE;
                let length = if carries { request.length as usize } else { 0 };
                self.refused = Some((request, action, length));
                Next::Go
            }
            Action::Read { whole } => self.read(&request, action, whole)?,
            Action::Write { durable } => self.write(&request, action, durable)?,
            _ => {
                self.input.skip(REQUEST_LENGTH);
                self.at_once_or_give(&request, action, 0)?;
                Next::Go
            }
        };
        Ok(matches!(next, Next::Go))
    }

    fn refuse(&mut self, request: &Request, action: Action) {
        let Action::Refuse(errno, why) = action else { return };
        let outgoing = &mut self.outgoing;
        reply::error(&self.link.agreed, request, errno, why, |bytes| outgoing.add(bytes));
    }

    /// There is nothing but the request at the front, of `taken` bytes.
    fn is_alone(&self, taken: usize) -> bool {
        self.input.length() <= taken && self.is_quiet()
    }

    /// A request whose head is gone, with `payload` bytes behind it, that is not for the ring.
    fn at_once_or_give(
        &mut self,
        request: &Request,
        action: Action,
        payload: usize,
    ) -> Result<(), End> {
        let kind = perform::kind(action);
        let slow = kind == Kind::Durable && self.link.pace.is_slow(kind);
        self.link.gauge.add();
        if self.is_alone(payload) && !slow {
            let Self { link, input, out, found, .. } = self;
            let bytes = input.peek(payload).unwrap_or_default();
            let began = Instant::now();
            let done = perform::perform(link, request, action, bytes, found, out);
            link.gauge.remove();
            link.pace.add(kind, began.elapsed(), request.length as usize);
            done.and_then(|()| out.send(link))?;
            self.progress = Instant::now();
            input.skip(payload);
            return Ok(());
        }
        let bytes = self.input.peek(payload).unwrap_or_default().to_vec();
        self.input.skip(payload);
        self.give(request, action, bytes)
    }

    fn give(&mut self, request: &Request, action: Action, payload: Vec<u8>) -> Result<(), End> {
        let payload = Payload::Bytes(payload);
        let job = Job { request: *request, action, payload, part_of: None };
        self.given += 1;
        Ok(self.workers.give_now(job)?)
    }

    /// A part of the carried write of that number, with its memory.
    fn give_part(&mut self, part: &Request, buffer: Buffer, number: usize) -> Result<(), End> {
        self.link.gauge.add();
        self.given += 1;
        let payload = Payload::Lent(buffer, part.length as usize);
        let action = Action::Write { durable: false };
        Ok(self.workers.give_now(Job { request: *part, action, payload, part_of: Some(number) })?)
    }

    fn read(&mut self, request: &Request, action: Action, whole: bool) -> Result<Next, End> {
        let length = request.length as usize;
        let structured = self.link.agreed.structured;
        if length > PIECE && (whole || !structured) {
            // It is sent by this thread, in one piece, when nothing else is to be sent.
            if !self.is_quiet() {
                return Ok(Next::Wait);
            }
            self.input.skip(REQUEST_LENGTH);
            let Self { link, out, found, .. } = self;
            perform::perform(link, request, action, &[], found, out)?;
            out.send(link)?;
            self.progress = Instant::now();
            return Ok(Next::Go);
        }
        if self.is_alone(REQUEST_LENGTH) && length <= SMALL {
            self.input.skip(REQUEST_LENGTH);
            self.at_once_or_give(request, action, 0)?;
            return Ok(Next::Go);
        }
        if length > LONG {
            self.input.skip(REQUEST_LENGTH);
            self.link.gauge.add();
            self.give(request, action, Vec::new())?;
            return Ok(Next::Go);
        }
        if !self.transfers.has_room(length.div_ceil(PIECE)) && self.transfers.count() > 0 {
            return Ok(Next::Wait);
        }
        let export = Arc::clone(&self.link.agreed.export);
        let mut parts: Vec<(u64, usize, Buffer, Transfer)> = Vec::new();
        let mut done = 0;
        while done < length {
            let count = PIECE.min(length - done);
            let offset = request.offset + done as u64;
            let mapped = export.map_read(offset, count as u64);
            let Mapped::Transfer(transfer) = mapped else { break };
            let Some(buffer) = self.transfers.buffer(count) else { break };
            parts.push((offset, count, buffer, transfer));
            done += count;
        }
        self.input.skip(REQUEST_LENGTH);
        self.link.gauge.add();
        if done < length {
            for (_, _, buffer, transfer) in parts {
                drop(transfer);
                self.transfers.give_back(buffer);
            }
            self.give(request, action, Vec::new())?;
            return Ok(Next::Go);
        }
        let left = parts.len();
        let number = self.carry(Carried::new(request, action, left));
        for (offset, length, buffer, transfer) in parts {
            let purpose = Purpose { request: number, offset, length, write: false };
            self.transfers.start(purpose, buffer, transfer);
        }
        Ok(Next::Go)
    }

    fn write(&mut self, request: &Request, action: Action, durable: bool) -> Result<Next, End> {
        let length = request.length as usize;
        let taken = REQUEST_LENGTH + length;
        if length > SMALL {
            self.input.skip(REQUEST_LENGTH);
            self.link.gauge.add();
            let carried = Carried { whole: false, ..Carried::new(request, action, 0) };
            let number = self.carry(carried);
            let (buffer, have, piece) = (None, 0, PIECE.min(length));
            let offset = request.offset;
            self.incoming = Some(Incoming { number, buffer, have, piece, offset, left: length });
            return Ok(Next::Go);
        }
        if self.input.length() < taken {
            return Ok(Next::Wait);
        }
        if durable || self.is_alone(taken) {
            self.input.skip(REQUEST_LENGTH);
            self.at_once_or_give(request, action, length)?;
            return Ok(Next::Go);
        }
        let buffer = self.transfers.buffer(length);
        if buffer.is_none() && self.transfers.count() > 0 {
            return Ok(Next::Wait);
        }
        let mapped = self.link.agreed.export.map_write(request.offset, u64::from(request.length));
        self.link.gauge.add();
        let bytes = self.input.peek(taken).unwrap_or_default();
        let payload = bytes.get(REQUEST_LENGTH..).unwrap_or_default();
        let (Mapped::Transfer(transfer), Some(mut buffer)) = (mapped, buffer) else {
            let payload = payload.to_vec();
            self.input.skip(taken);
            self.give(request, action, payload)?;
            return Ok(Next::Go);
        };
        buffer.data(length).copy_from_slice(payload);
        self.input.skip(taken);
        let number = self.carry(Carried::new(request, action, 1));
        let purpose = Purpose { request: number, offset: request.offset, length, write: true };
        self.transfers.start(purpose, buffer, transfer);
        Ok(Next::Go)
    }

    /// Goes on with a long write. False: more must come, or something must end first.
    fn more_payload(&mut self) -> Result<bool, End> {
        let Some(incoming) = &mut self.incoming else { return Ok(true) };
        if incoming.buffer.is_none() {
            incoming.buffer = self.transfers.buffer(incoming.piece);
        }
        let Some(buffer) = &mut incoming.buffer else { return Ok(false) };
        let rest = buffer.data(incoming.piece).get_mut(incoming.have..).unwrap_or_default();
        incoming.have += self.input.move_to(rest);
        if incoming.have < incoming.piece {
            return Ok(false);
        }
        if !self.workers.has_room() {
            return Ok(false);
        }
        let Some(buffer) = incoming.buffer.take() else { return Ok(false) };
        let (number, offset, length) = (incoming.number, incoming.offset, incoming.piece);
        incoming.offset += length as u64;
        incoming.left -= length;
        incoming.have = 0;
        incoming.piece = PIECE.min(incoming.left);
        let last = incoming.left == 0;
        if last {
            self.incoming = None;
        }
        let Some(carried) = self.carried.get_mut(number).and_then(Option::as_mut) else {
            return Ok(true);
        };
        carried.left += 1;
        carried.whole = last;
        match self.link.agreed.export.map_write(offset, length as u64) {
            Mapped::Transfer(transfer) => {
                let purpose = Purpose { request: number, offset, length, write: true };
                self.transfers.start(purpose, buffer, transfer);
            }
            Mapped::NotSimple | Mapped::Closed => {
                let request = Request { offset, length: length as u32, ..carried.request };
                self.give_part(&request, buffer, number)?;
            }
        }
        Ok(true)
    }
}
