//! Replies of other threads, for the one that sends everything of its connection.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::buffer::Payload;
use super::link::lock;
use crate::error::Errno;

/// Replies that may wait, bytes. Beyond it whoever brings one waits.
const MUCH: usize = 1 << 20;

/// What another thread has done.
pub(super) enum Message {
    /// A reply, or a part of one.
    Reply(Vec<u8>),
    /// A part of the long write of this number; what went wrong, and what was written.
    Part(usize, Option<Errno>, Payload),
    /// Nothing more comes of one job.
    Done,
}

#[derive(Default)]
struct State {
    messages: VecDeque<Message>,
    bytes: usize,
    closed: bool,
}

/// What waits to be sent.
pub(super) struct Inbox {
    state: Mutex<State>,
    less: Condvar,
    /// Readable when something is there.
    bell: OwnedFd,
}

impl Inbox {
    pub(super) fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { state: Mutex::default(), less: Condvar::new(), bell })
    }

    /// Readable when something has come since [`Inbox::take`].
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Adds a message. After the end it is thrown away: nobody would send it.
    pub(super) fn put(&self, message: Message) {
        let weight = if let Message::Reply(bytes) = &message { bytes.len() } else { 0 };
        let mut state = lock(&self.state);
        while !state.closed && state.bytes > MUCH && weight > 0 {
            state = self.less.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return;
        }
        state.bytes += weight;
        state.messages.push_back(message);
        drop(state);
        // It cannot be full: the counter has 64 bits.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// All that is there.
    pub(super) fn take(&self) -> VecDeque<Message> {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        let mut state = lock(&self.state);
        state.bytes = 0;
        let messages = std::mem::take(&mut state.messages);
        drop(state);
        self.less.notify_all();
        messages
    }

    /// Nobody will take anything any more.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.less.notify_all();
    }
}
