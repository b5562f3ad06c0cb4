//! Requests in flight and their answers.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Instant;

use super::super::pipe::Pipe;
use super::super::protocol::{
    CHUNK_LENGTH, Fields, MAX_PAYLOAD, Request, SIMPLE_REPLY_LENGTH, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC, chunk, command,
};
use super::super::wire::Wire;
use super::{ClientError, Kind, Result};
use crate::error::Errno;
use crate::export::Transfer;

/// Requests that are to be sent with later ones are sent when they have so many bytes.
const MUCH: usize = 256 * 1024;

/// Pipes that are kept for later writes from files.
const PIPES: usize = 8;

/// Bytes fetched at once: answers of many small requests.
const INPUT: usize = 64 * 1024;

/// The longest chunk that is not data, bytes: what a server says of extents and errors. Servers
/// have been seen to answer a million extents in 8 MiB.
const LONGEST: u32 = 16 << 20;

/// What an answer brings.
pub(super) enum Wanted {
    Nothing,
    /// Data of a read at `offset`.
    Data {
        offset: u64,
        buffer: Vec<u8>,
    },
    Extents,
}

/// What has come.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) data: Vec<u8>,
    /// Number of the context, then length and flags.
    pub(super) extents: Vec<(u32, (u32, u32))>,
}

struct Slot {
    wanted: Wanted,
    answer: Answer,
    /// Bytes of the buffer that have come.
    covered: usize,
    error: Option<(Errno, String)>,
    done: bool,
    /// Nobody waits for it any more.
    abandoned: bool,
}

impl Slot {
    fn new(wanted: Wanted) -> Self {
        let (answer, covered, error) = (Answer::default(), 0, None);
        Self { wanted, answer, covered, error, done: false, abandoned: false }
    }
}

struct State {
    next: u64,
    slots: HashMap<u64, Slot>,
    /// Somebody fetches answers.
    fetching: bool,
    /// Who sleeps until which answer is there, or until nobody fetches. Woken one by one: to wake
    /// all of them for each answer would cost more than all else. Whoever wakes one takes it out;
    /// whoever ends fetching wakes one to go on with it, if there is one.
    sleepers: Vec<(u64, Thread)>,
    failure: Option<ClientError>,
}

impl State {
    /// Wakes who sleeps for an answer, if somebody does.
    fn wake(&mut self, cookie: u64) {
        if let Some(index) = self.sleepers.iter().position(|sleeper| sleeper.0 == cookie) {
            self.sleepers.swap_remove(index).1.unpark();
        }
    }

    /// Wakes one to fetch answers: the one whose answer comes first, most likely.
    fn wake_next(&mut self) {
        if let Some(cookie) = self.sleepers.iter().map(|sleeper| sleeper.0).min() {
            self.wake(cookie);
        }
    }
}

struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// One connection.
///
/// Locks: `sending` is held while a request goes out and `input` while answers come in; `state` and
/// `later` only for moments, also inside of these, and nothing is taken inside of them.
pub(super) struct Link {
    wire: Box<dyn Wire>,
    structured: bool,
    contexts: Vec<u32>,
    /// Memory that is empty, for the next time that `later` is sent.
    sending: Mutex<Vec<u8>>,
    /// Requests that go out with the next one that goes, or when somebody waits for an answer.
    later: Mutex<Vec<u8>>,
    input: Mutex<Input>,
    state: Mutex<State>,
    pipes: Mutex<Vec<Pipe>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nonsense(what: &str) -> ClientError {
    ClientError::new(Kind::Protocol, format!("the server's answer is not NBD: {what}"))
}

fn errno(number: u32) -> Errno {
    match number {
        1 | 30 => Errno::NotPermitted,
        12 => Errno::NoMemory,
        22 => Errno::Invalid,
        28 | 122 => Errno::NoSpace,
        75 => Errno::Overflow,
        95 => Errno::NotSupported,
        108 => Errno::Shutdown,
        _ => Errno::Io,
    }
}

impl Link {
    pub(super) fn new(wire: Box<dyn Wire>, structured: bool, contexts: Vec<u32>) -> Self {
        let slots = HashMap::new();
        Self {
            wire,
            structured,
            contexts,
            sending: Mutex::default(),
            later: Mutex::default(),
            input: Mutex::new(Input { bytes: vec![0; INPUT].into(), start: 0, end: 0 }),
            state: Mutex::new(State {
                next: 1,
                slots,
                fetching: false,
                sleepers: Vec::new(),
                failure: None,
            }),
            pipes: Mutex::default(),
        }
    }

    /// Whether it takes bytes from files: see [`Link::send_from`].
    pub(super) fn takes_files(&self) -> bool {
        self.wire.socket().is_some()
    }

    pub(super) fn failure(&self) -> Option<ClientError> {
        lock(&self.state).failure.clone()
    }

    /// Ends the connection for everybody; the first reason is the one that is told.
    pub(super) fn fail(&self, error: &ClientError) {
        let sleepers = {
            let mut state = lock(&self.state);
            state.failure.get_or_insert_with(|| error.clone());
            std::mem::take(&mut state.sleepers)
        };
        self.wire.close();
        for (_, thread) in &sleepers {
            thread.unpark();
        }
    }

    /// A place for the answer to a request that is about to be sent.
    fn promise(&self, wanted: Wanted) -> Result<u64> {
        let mut state = lock(&self.state);
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        let cookie = state.next;
        state.next += 1;
        state.slots.insert(cookie, Slot::new(wanted));
        Ok(cookie)
    }

    /// What came of sending the request of a cookie.
    fn sent(&self, cookie: u64, sent: io::Result<()>) -> Result<u64> {
        let Err(error) = sent else { return Ok(cookie) };
        let error = Self::broken(&error);
        self.fail(&error);
        lock(&self.state).slots.remove(&cookie);
        Err(self.failure().unwrap_or(error))
    }

    /// Sends a request; the answer is waited for by the cookie that is returned.
    pub(super) fn send(&self, request: Request, payload: &[u8], wanted: Wanted) -> Result<u64> {
        let cookie = self.promise(wanted)?;
        let head = Request { cookie, ..request }.encode();
        let sent = {
            let _turn = lock(&self.sending);
            self.wire.send(&head, payload)
        };
        self.sent(cookie, sent)
    }

    /// As [`Link::send`], but together with others: at the latest when somebody waits for any answer.
    pub(super) fn send_later(&self, request: Request, payload: &[u8]) -> Result<u64> {
        let cookie = self.promise(Wanted::Nothing)?;
        let head = Request { cookie, ..request }.encode();
        let much = {
            let mut later = lock(&self.later);
            later.extend_from_slice(&head);
            later.extend_from_slice(payload);
            later.len() >= MUCH
        };
        if much { self.sent(cookie, self.send_gathered()) } else { Ok(cookie) }
    }

    /// Sends what was to be sent later.
    fn send_gathered(&self) -> io::Result<()> {
        if lock(&self.later).is_empty() {
            return Ok(());
        }
        let mut sending = lock(&self.sending);
        // Whoever gathers more meanwhile does not wait for the other side.
        std::mem::swap(&mut *sending, &mut *lock(&self.later));
        let sent = self.wire.send(&sending, &[]);
        sending.clear();
        sent
    }

    /// Sends a request whose payload goes from files to the socket by itself; none where that does
    /// not work, and nothing was sent. What the files hold may be taken from them until the answer
    /// has come.
    pub(super) fn send_from(&self, request: Request, transfer: Transfer) -> Result<Option<u64>> {
        let Some(socket) = self.wire.socket() else { return Ok(None) };
        let kept = lock(&self.pipes).pop();
        let Some(mut pipe) = kept.or_else(|| Pipe::new().ok()) else { return Ok(None) };
        let cookie = self.promise(Wanted::Nothing)?;
        let head = Request { cookie, ..request }.encode();
        if pipe.take(&head, &transfer).is_err() {
            // The pipe may hold a part of it, and goes.
            lock(&self.state).slots.remove(&cookie);
            return Ok(None);
        }
        // The disk may be changed underneath while this waits for the other side.
        drop(transfer);
        let sent = {
            let _turn = lock(&self.sending);
            pipe.send(socket)
        };
        let sent = self.sent(cookie, sent)?;
        let mut pipes = lock(&self.pipes);
        if pipes.len() < PIPES {
            pipes.push(pipe);
        }
        Ok(Some(sent))
    }

    /// Waits for an answer, and fetches those of others meanwhile when nobody else does.
    pub(super) fn wait(&self, cookie: u64, until: Instant) -> Result<Answer> {
        let mut gathered = false;
        let mut state = lock(&self.state);
        loop {
            let Some(slot) = state.slots.get_mut(&cookie) else {
                return Err(nonsense("an answer was waited for twice"));
            };
            if slot.done {
                let slot = state.slots.remove(&cookie);
                drop(state);
                return slot.map_or_else(|| Err(nonsense("no slot")), Slot::result);
            }
            if let Some(failure) = state.failure.clone() {
                state.slots.remove(&cookie);
                return Err(failure);
            }
            if state.fetching {
                if !std::mem::replace(&mut gathered, true) {
                    drop(state);
                    if let Err(error) = self.send_gathered() {
                        self.fail(&Self::broken(&error));
                    }
                    state = lock(&self.state);
                    continue;
                }
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    drop(state);
                    self.fail(&ClientError::new(Kind::TimedOut, "no answer in time"));
                    state = lock(&self.state);
                    continue;
                }
                state.sleepers.push((cookie, std::thread::current()));
                drop(state);
                std::thread::park_timeout(left);
                state = lock(&self.state);
                state.sleepers.retain(|sleeper| sleeper.0 != cookie);
                continue;
            }
            state.fetching = true;
            drop(state);
            let gathered = self.send_gathered().map_err(|error| Self::broken(&error));
            let fetched = gathered.and_then(|()| self.fetch(cookie, until));
            state = lock(&self.state);
            state.fetching = false;
            if let Err(error) = fetched {
                drop(state);
                self.fail(&error);
                state = lock(&self.state);
            } else {
                state.wake_next();
            }
        }
    }

    /// Nobody will wait for this one.
    pub(super) fn abandon(&self, cookie: u64) {
        let mut state = lock(&self.state);
        let Some(slot) = state.slots.get_mut(&cookie) else { return };
        if slot.done {
            state.slots.remove(&cookie);
        } else {
            slot.abandoned = true;
        }
    }

    fn broken(error: &io::Error) -> ClientError {
        let kind = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Kind::TimedOut,
            _ => Kind::Disconnected,
        };
        ClientError::new(kind, format!("the connection to the server: {error}"))
    }

    /// Takes in answers until that of `cookie` is whole, and others that have come with it.
    fn fetch(&self, cookie: u64, until: Instant) -> Result<()> {
        let mut input = lock(&self.input);
        let is_done = || lock(&self.state).slots.get(&cookie).is_none_or(|slot| slot.done);
        let mut done = false;
        while !done || self.has_answer(&input) {
            self.one(&mut input, until)?;
            done = done || is_done();
        }
        Ok(())
    }

    /// Whether an answer that brings nothing more is there as a whole.
    fn has_answer(&self, input: &Input) -> bool {
        let here = input.bytes.get(input.start..input.end).unwrap_or_default();
        let Some(head) = here.get(..SIMPLE_REPLY_LENGTH) else { return false };
        let mut fields = Fields(head);
        let magic = fields.u32();
        let (_error, cookie) = (fields.u32(), fields.u64().unwrap_or(0));
        let nothing = |slot: &Slot| matches!(slot.wanted, Wanted::Nothing);
        magic == Some(SIMPLE_REPLY_MAGIC)
            && lock(&self.state).slots.get(&cookie).is_some_and(nothing)
    }

    /// Takes in one reply, or one chunk of one.
    fn one(&self, input: &mut Input, until: Instant) -> Result<()> {
        let mut head = [0; CHUNK_LENGTH];
        let (start, rest) = head.split_at_mut(SIMPLE_REPLY_LENGTH);
        self.take(input, start, until)?;
        let mut fields = Fields(start);
        let (magic, second) = (fields.u32(), fields.u32().unwrap_or(0));
        let cookie = fields.u64().unwrap_or(0);
        match magic {
            Some(SIMPLE_REPLY_MAGIC) => {
                let error = (second != 0).then(|| (errno(second), String::new()));
                let mut slot = self.slot(cookie)?;
                if let (Wanted::Data { buffer, .. }, None) = (&mut slot.wanted, &error) {
                    if self.structured {
                        return Err(nonsense("a read was answered by a simple reply"));
                    }
                    self.take(input, buffer, until)?;
                    slot.covered = buffer.len();
                }
                slot.error = error;
                self.put_back(cookie, slot, true);
            }
            Some(STRUCTURED_REPLY_MAGIC) if self.structured => {
                self.take(input, rest, until)?;
                let length = Fields(rest).u32().unwrap_or(0);
                let (flags, kind) = ((second >> 16) as u16, second as u16);
                let mut slot = self.slot(cookie)?;
                self.chunk(input, kind, length, &mut slot, until)?;
                self.put_back(cookie, slot, flags & chunk::DONE != 0);
            }
            _ => return Err(nonsense("it begins with another number")),
        }
        Ok(())
    }

    fn chunk(
        &self,
        input: &mut Input,
        kind: u16,
        length: u32,
        slot: &mut Slot,
        until: Instant,
    ) -> Result<()> {
        if length > LONGEST.max(MAX_PAYLOAD + 8) {
            return Err(nonsense("a chunk is too long"));
        }
        match (kind, &mut slot.wanted) {
            (chunk::NONE, _) if length == 0 => Ok(()),
            (chunk::OFFSET_DATA, Wanted::Data { offset, buffer }) if length > 8 => {
                let mut at = [0; 8];
                self.take(input, &mut at, until)?;
                let part = part(buffer, *offset, u64::from_be_bytes(at), length - 8)?;
                slot.covered += part.len();
                self.take(input, part, until)
            }
            (chunk::OFFSET_HOLE, Wanted::Data { offset, buffer }) if length == 12 => {
                let mut body = [0; 12];
                self.take(input, &mut body, until)?;
                let mut fields = Fields(&body);
                let (at, count) = (fields.u64().unwrap_or(0), fields.u32().unwrap_or(0));
                let part = part(buffer, *offset, at, count)?;
                slot.covered += part.len();
                part.fill(0);
                Ok(())
            }
            (chunk::BLOCK_STATUS, Wanted::Extents) if length >= 12 && length % 8 == 4 => {
                let mut body = vec![0; length as usize];
                self.take(input, &mut body, until)?;
                let mut fields = Fields(&body);
                let context = fields.u32().unwrap_or(0);
                if !self.contexts.contains(&context) {
                    return Err(nonsense("block status of a context that was not asked for"));
                }
                while let (Some(length), Some(flags)) = (fields.u32(), fields.u32()) {
                    slot.answer.extents.push((context, (length, flags)));
                }
                Ok(())
            }
            (kind, _) if kind & chunk::ERROR_BIT != 0 && length >= 6 => {
                let mut body = vec![0; length.min(LONGEST) as usize];
                self.take(input, &mut body, until)?;
                let mut fields = Fields(&body);
                let number = fields.u32().unwrap_or(0);
                let text = usize::from(fields.u16().unwrap_or(0));
                let text = fields.bytes(text).ok_or_else(|| nonsense("a cut error"))?;
                let text = String::from_utf8_lossy(text).into_owned();
                slot.error.get_or_insert((errno(number), text));
                Ok(())
            }
            _ => Err(nonsense("a chunk that does not fit the request")),
        }
    }

    /// The slot of a cookie is taken out while it is filled: the lock is not held meanwhile, and
    /// whoever waits for it finds an empty one.
    fn slot(&self, cookie: u64) -> Result<Slot> {
        let mut state = lock(&self.state);
        let slot = state.slots.get_mut(&cookie).filter(|slot| !slot.done);
        let slot = slot.ok_or_else(|| nonsense("it is to no request"))?;
        Ok(Slot {
            wanted: std::mem::replace(&mut slot.wanted, Wanted::Nothing),
            answer: std::mem::take(&mut slot.answer),
            covered: slot.covered,
            error: slot.error.take(),
            done: false,
            abandoned: false,
        })
    }

    fn put_back(&self, cookie: u64, filled: Slot, done: bool) {
        let mut state = lock(&self.state);
        let Some(slot) = state.slots.get_mut(&cookie) else { return };
        let abandoned = slot.abandoned;
        *slot = Slot { done, abandoned, ..filled };
        if done && abandoned {
            state.slots.remove(&cookie);
        } else if done {
            state.wake(cookie);
        }
    }

    /// Fills `into` from what was fetched, then from the connection.
    fn take(&self, input: &mut Input, into: &mut [u8], until: Instant) -> Result<()> {
        let Input { bytes, start, end } = input;
        let here = into.len().min(*end - *start);
        let (head, mut rest) = into.split_at_mut(here);
        head.copy_from_slice(bytes.get(*start..*start + here).unwrap_or_default());
        *start += here;
        while !rest.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ClientError::new(Kind::TimedOut, "no answer in time"));
            }
            let wanted = rest.len();
            match self.wire.receive_two(rest, bytes) {
                Ok(0) => {
                    let what = "the server has ended the connection";
                    return Err(ClientError::new(Kind::Disconnected, what));
                }
                Ok(count) => {
                    rest = rest.split_at_mut(count.min(wanted)).1;
                    (*start, *end) = (0, count.saturating_sub(wanted));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(Self::broken(&error)),
            }
        }
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Said so that the server need not take it for a broken connection; there is no reply.
        if self.failure().is_none() {
            let (flags, cookie, offset, length) = (0, 0, 0, 0);
            let request = Request { flags, command: command::DISC, cookie, offset, length };
            let _ = self.wire.send(&request.encode(), &[]);
        }
        self.wire.close();
    }
}

impl Slot {
    fn result(self) -> Result<Answer> {
        if let Some((errno, text)) = self.error {
            let what = if text.is_empty() {
                format!("the server has failed: {errno}")
            } else {
                format!("the server has failed: {errno}: {text}")
            };
            return Err(ClientError::new(Kind::Server(errno), what));
        }
        let mut answer = self.answer;
        if let Wanted::Data { buffer, .. } = self.wanted {
            if self.covered != buffer.len() {
                return Err(nonsense("parts of a read are missing"));
            }
            answer.data = buffer;
        }
        Ok(answer)
    }
}

/// The part of a read's buffer that a chunk fills.
fn part(buffer: &mut [u8], offset: u64, at: u64, length: u32) -> Result<&mut [u8]> {
    let start = at.checked_sub(offset).and_then(|start| usize::try_from(start).ok());
    start
        .and_then(|start| Some(start..start.checked_add(length as usize)?))
        .and_then(|range| buffer.get_mut(range))
        .filter(|part| !part.is_empty())
        .ok_or_else(|| nonsense("a chunk beyond the read"))
}
