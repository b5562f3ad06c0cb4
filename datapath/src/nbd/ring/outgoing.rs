//! Replies that wait for the client to fetch them, without anybody waiting for the client.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::transfers::Transfers;
use crate::nbd::buffer::Buffer;

/// Parts that are sent in one call; the kernel takes up to 1024.
const PARTS: usize = 128;

enum Part {
    Bytes(Vec<u8>),
    /// Head and data in the memory of a transfer.
    Data {
        buffer: Buffer,
        head: usize,
        length: usize,
    },
}

impl Part {
    fn bytes(&mut self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Data { buffer, head, length } => buffer.with_head(*head, *length),
        }
    }
}

/// What is to be sent, in this order.
#[derive(Default)]
pub(super) struct Outgoing {
    parts: VecDeque<Part>,
    /// Bytes of the first that are gone.
    gone: usize,
    /// Bytes of all.
    length: usize,
}

impl Outgoing {
    pub(super) fn length(&self) -> usize {
        self.length - self.gone
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.length += bytes.len();
        if let Some(Part::Bytes(last)) = self.parts.back_mut() {
            last.extend_from_slice(bytes);
        } else {
            self.parts.push_back(Part::Bytes(bytes.to_vec()));
        }
    }

    /// The data in a buffer, and its head, which is `head` bytes long and written already.
    pub(super) fn add_data(&mut self, buffer: Buffer, head: usize, length: usize) {
        self.length += head + length;
        self.parts.push_back(Part::Data { buffer, head, length });
    }

    /// Sends what the socket takes. False: it takes no more for now.
    pub(super) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        transfers: &mut Transfers,
    ) -> io::Result<bool> {
        while !self.parts.is_empty() {
            let gone = self.gone;
            let mut slices = Vec::with_capacity(self.parts.len().min(PARTS));
            for (index, part) in self.parts.iter_mut().take(PARTS).enumerate() {
                let skip = if index == 0 { gone } else { 0 };
                slices.push(IoSlice::new(part.bytes().get(skip..).unwrap_or_default()));
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = sendmsg(socket, &slices, &mut SendAncillaryBuffer::default(), flags);
            drop(slices);
            match sent {
                Ok(count) => self.went(count, transfers),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn went(&mut self, count: usize, transfers: &mut Transfers) {
        self.gone += count;
        while let Some(first) = self.parts.front_mut() {
            let length = first.bytes().len();
            if self.gone < length {
                return;
            }
            self.gone -= length;
            self.length -= length;
            if let Some(Part::Data { buffer, .. }) = self.parts.pop_front() {
                transfers.give_back(buffer);
            }
        }
    }
}
