//! Room for what comes in and what goes out. Allocated once for a connection, and by the kernel
//! only as far as it is touched.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::inbox::{Inbox, Message};
use super::link::Link;
use super::pipe::Pipe;
use super::protocol::REQUEST_LENGTH;
use super::reply::HEAD;

/// What direct transfers want their memory to be a multiple of, bytes.
pub(super) const ALIGNMENT: usize = 4096;

/// The most that is transferred in one call, bytes. Longer requests are done in pieces: a piece
/// stays in the processor's cache between the disk and the socket.
pub(super) const PIECE: usize = 256 * 1024;

/// Room for requests, bytes: a whole piece, and small ones before it.
const INPUT: usize = PIECE + 16 * 1024;

/// Room for replies, bytes.
const OUTPUT: usize = PIECE + 64 * 1024;

/// Memory that begins at a multiple of [`ALIGNMENT`].
pub(super) struct Aligned {
    bytes: Box<[u8]>,
    start: usize,
}

impl Aligned {
    pub(super) fn new(length: usize) -> Self {
        let bytes: Box<[u8]> = vec![0; length + ALIGNMENT].into();
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { bytes, start }
    }

    pub(super) fn get(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..).unwrap_or_default()
    }
}

/// Memory for one transfer.
#[cfg(feature = "ring")]
pub(super) struct Buffer {
    pub(super) memory: Aligned,
    /// Which of the sizes that there are.
    pub(super) class: usize,
}

#[cfg(feature = "ring")]
impl Buffer {
    /// The data.
    pub(super) fn data(&mut self, length: usize) -> &mut [u8] {
        self.memory.get().get_mut(ALIGNMENT..ALIGNMENT + length).unwrap_or_default()
    }

    /// The data and what is in front of it.
    pub(super) fn with_head(&mut self, head: usize, length: usize) -> &mut [u8] {
        self.memory.get().get_mut(ALIGNMENT - head..ALIGNMENT + length).unwrap_or_default()
    }
}

/// What a write brings, for another thread.
pub(super) enum Payload {
    Bytes(Vec<u8>),
    /// So many bytes in memory for transfers, which goes back there.
    #[cfg(feature = "ring")]
    Lent(Buffer, usize),
}

impl Payload {
    pub(super) fn bytes(&mut self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            #[cfg(feature = "ring")]
            Self::Lent(buffer, length) => buffer.data(*length),
        }
    }

    pub(super) fn length(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            #[cfg(feature = "ring")]
            Self::Lent(_, length) => *length,
        }
    }
}

/// Requests as they come.
pub(super) struct Input {
    memory: Aligned,
    start: usize,
    end: usize,
}

/// Where the first request goes: its payload is then aligned.
const FIRST: usize = ALIGNMENT - REQUEST_LENGTH;

impl Input {
    pub(super) fn new() -> Self {
        Self { memory: Aligned::new(FIRST + INPUT), start: FIRST, end: FIRST }
    }

    pub(super) fn length(&self) -> usize {
        self.end - self.start
    }

    /// The first bytes, when there are as many.
    pub(super) fn peek(&mut self, length: usize) -> Option<&[u8]> {
        let (start, end) = (self.start, self.end);
        self.memory.get().get(start..end)?.get(..length)
    }

    /// The first request without its payload, when it is there.
    pub(super) fn head(&mut self) -> Option<&[u8; REQUEST_LENGTH]> {
        self.peek(REQUEST_LENGTH)?.first_chunk()
    }

    /// Throws away the first bytes, as many as there are.
    pub(super) fn skip(&mut self, length: usize) -> usize {
        let count = length.min(self.length());
        self.start += count;
        count
    }

    /// Moves the first bytes into a buffer, as many as there are and fit.
    pub(super) fn move_to(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.length());
        if let (Some(from), Some(into)) = (self.peek(count), into.get_mut(..count)) {
            into.copy_from_slice(from);
        }
        self.skip(count)
    }

    /// Room behind what is there; at least for the largest request that is kept here as a whole.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let (start, end) = (self.start, self.end);
        if start == end {
            (self.start, self.end) = (FIRST, FIRST);
        } else if start > FIRST {
            self.memory.get().copy_within(start..end, FIRST);
            (self.start, self.end) = (FIRST, FIRST + end - start);
        }
        let end = self.end;
        self.memory.get().get_mut(end..).unwrap_or_default()
    }

    /// So many bytes of [`Input::room`] have come.
    pub(super) fn came(&mut self, count: usize) {
        self.end += count;
    }
}

/// Room for replies of a thread that has not had a longer one, bytes: most threads never have.
const FEW: usize = 4096;

/// Replies as they go.
pub(super) struct Output {
    memory: Aligned,
    /// Bytes of replies that fit.
    size: usize,
    end: usize,
    /// When the first of those that wait was put in.
    since: Option<Instant>,
    /// Where they go; none: to the client.
    inbox: Option<Arc<Inbox>>,
    /// Whether there may be a pipe.
    pipes: bool,
    pipe: Option<Pipe>,
}

/// Where the first reply goes: the data of a read is then aligned.
const BEGIN: usize = ALIGNMENT - HEAD;

impl Output {
    pub(super) fn new(inbox: Option<Arc<Inbox>>) -> Self {
        let (memory, size) = (Aligned::new(BEGIN + FEW), FEW);
        Self { memory, size, end: BEGIN, since: None, inbox, pipes: false, pipe: None }
    }

    /// Of a thread that may have a pipe.
    pub(super) fn with_pipe() -> Self {
        let (memory, size) = (Aligned::new(BEGIN + OUTPUT), OUTPUT);
        Self { memory, size, pipes: true, ..Self::new(None) }
    }

    /// A pipe, where there may be one and one can be had.
    pub(super) fn pipe(&mut self) -> Option<&mut Pipe> {
        if self.pipes && self.pipe.is_none() {
            self.pipe = Pipe::new().ok();
            self.pipes = self.pipe.is_some();
        }
        self.pipe.as_mut()
    }

    /// Throws away what is in the pipe.
    pub(super) fn drop_pipe(&mut self) {
        self.pipe = None;
    }

    /// Sends what is there, and then what is in the pipe.
    pub(super) fn send_pipe(&mut self, link: &Link) -> io::Result<()> {
        self.send(link)?;
        let (Some(pipe), Some(socket)) = (&mut self.pipe, link.wire.socket()) else {
            return Ok(());
        };
        let _turn = link.turn();
        pipe.send(socket)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.end == BEGIN
    }

    /// Bytes that wait.
    pub(super) fn length(&self) -> usize {
        self.end - BEGIN
    }

    /// When the oldest reply that waits was put in.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// A point of time is told to replies that have none.
    pub(super) fn stamp(&mut self, now: Instant) {
        if !self.is_empty() {
            self.since.get_or_insert(now);
        }
    }

    /// Room for a reply, no more than a piece and its head. What is there is sent when it takes
    /// the room. Nothing is added before [`Output::keep`].
    pub(super) fn room(&mut self, link: &Link, length: usize) -> io::Result<&mut [u8]> {
        if BEGIN + self.size - self.end < length {
            self.send(link)?;
        }
        if self.size < length {
            (self.memory, self.size) = (Aligned::new(BEGIN + OUTPUT), OUTPUT);
        }
        let end = self.end;
        self.memory
            .get()
            .get_mut(end..end + length)
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// So many bytes of the room are a reply.
    pub(super) fn keep(&mut self, length: usize) {
        self.end += length;
    }

    pub(super) fn add(&mut self, link: &Link, bytes: &[u8]) -> io::Result<()> {
        self.room(link, bytes.len())?.copy_from_slice(bytes);
        self.keep(bytes.len());
        Ok(())
    }

    /// Sends what is there.
    pub(super) fn send(&mut self, link: &Link) -> io::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let end = self.end;
        (self.end, self.since) = (BEGIN, None);
        let bytes = self.memory.get().get(BEGIN..end).unwrap_or_default();
        match &self.inbox {
            None => link.send(bytes, &[])?,
            Some(inbox) => inbox.put(Message::Reply(bytes.to_vec())),
        }
        Ok(())
    }
}
