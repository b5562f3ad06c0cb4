//! Replies as bytes.

use super::handshake::Agreed;
use super::protocol::{
    CHUNK_LENGTH, Chunk, Request, SIMPLE_REPLY_LENGTH, chunk, command, simple_reply,
};
use crate::error::Errno;

/// Bytes before the data of a read.
pub(super) fn head_length(structured: bool) -> usize {
    if structured { CHUNK_LENGTH + 8 } else { SIMPLE_REPLY_LENGTH }
}

/// The most bytes before the data of a read.
pub(super) const HEAD: usize = CHUNK_LENGTH + 8;

/// Writes what stands before the data of a read; `into` is [`head_length`] long.
pub(super) fn data_head(
    into: &mut [u8],
    structured: bool,
    cookie: u64,
    offset: u64,
    length: usize,
    last: bool,
) {
    if structured {
        let flags = if last { chunk::DONE } else { 0 };
        let kind = chunk::OFFSET_DATA;
        let head = Chunk { flags, kind, cookie, length: length as u32 + 8 }.encode();
        let (first, second) = into.split_at_mut(CHUNK_LENGTH);
        first.copy_from_slice(&head);
        second.copy_from_slice(&offset.to_be_bytes());
    } else {
        into.copy_from_slice(&simple_reply(cookie, 0));
    }
}

/// A chunk that stands for zeros.
pub(super) fn hole(cookie: u64, offset: u64, length: usize, last: bool) -> [u8; CHUNK_LENGTH + 12] {
    let mut bytes = [0; CHUNK_LENGTH + 12];
    let flags = if last { chunk::DONE } else { 0 };
    let head = Chunk { flags, kind: chunk::OFFSET_HOLE, cookie, length: 12 };
    bytes[..CHUNK_LENGTH].copy_from_slice(&head.encode());
    bytes[CHUNK_LENGTH..CHUNK_LENGTH + 8].copy_from_slice(&offset.to_be_bytes());
    bytes[CHUNK_LENGTH + 8..].copy_from_slice(&(length as u32).to_be_bytes());
    bytes
}

/// The reply to a request that has failed. What the storage says is not for the client: it names
/// files of this host.
pub(super) fn error(
    agreed: &Agreed,
    request: &Request,
    errno: Errno,
    why: &str,
    add: impl FnOnce(&[u8]),
) {
    let in_chunks = matches!(request.command, command::READ | command::BLOCK_STATUS);
    if !(agreed.structured && in_chunks) {
        add(&simple_reply(request.cookie, errno as u32));
        return;
    }
    let mut bytes = [0; CHUNK_LENGTH + 6 + 64];
    let why = why.as_bytes().get(..why.len().min(64)).unwrap_or_default();
    let length = 6 + why.len();
    let (flags, kind) = (chunk::DONE, chunk::ERROR);
    let head = Chunk { flags, kind, cookie: request.cookie, length: length as u32 };
    bytes[..CHUNK_LENGTH].copy_from_slice(&head.encode());
    bytes[CHUNK_LENGTH..CHUNK_LENGTH + 4].copy_from_slice(&(errno as u32).to_be_bytes());
    bytes[CHUNK_LENGTH + 4..CHUNK_LENGTH + 6].copy_from_slice(&(why.len() as u16).to_be_bytes());
    if let Some(place) = bytes.get_mut(CHUNK_LENGTH + 6..CHUNK_LENGTH + length) {
        place.copy_from_slice(why);
    }
    add(bytes.get(..CHUNK_LENGTH + length).unwrap_or_default());
}

/// Whether there is nothing but zeros; looks no further than the first other byte.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}
