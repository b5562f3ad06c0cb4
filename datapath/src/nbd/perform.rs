//! One request, done by the thread that calls, and its reply.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::buffer::{Output, PIECE};
use super::context::Found;
use super::link::{Kind, Link};
use super::protocol::{CHUNK_LENGTH, Chunk, Request, chunk, simple_reply};
use super::reply::{self, HEAD, head_length, is_zero};
use super::request::Action;
use crate::error::{Errno, Error, Result};
use crate::export::Ended;

/// Reads from this on go from the files to the socket by themselves, where they can, bytes: with
/// shorter ones the calls cost more than the copies that they save.
const LONG: usize = 32 * 1024;

/// Extents in one reply, for each context.
const EXTENTS: usize = 4096;

/// Reads beyond a piece that must be whole before a byte of them is sent; so many at a time in the
/// process, since each takes up to 32 MiB.
const WHOLE: usize = 2;

/// How many there are.
static WHOLE_NOW: AtomicUsize = AtomicUsize::new(0);

/// Leave to hold one whole read in memory.
struct Leave;

impl Leave {
    fn take() -> Option<Self> {
        let less = |now| (now < WHOLE).then_some(now + 1);
        let taken = WHOLE_NOW.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        taken.is_ok().then(|| Self)
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        WHOLE_NOW.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Which kind a request is, by the time it takes.
pub(super) fn kind(action: Action) -> Kind {
    match action {
        Action::Read { .. } => Kind::Read,
        Action::Write { durable: false } => Kind::Write,
        Action::Flush
        | Action::Write { durable: true }
        | Action::Trim { durable: true }
        | Action::Zeroes(crate::export::Zeroes { durable: true, .. }) => Kind::Durable,
        Action::Trim { .. } | Action::Zeroes(_) => Kind::Space,
        Action::Leave | Action::Cache | Action::Status { .. } | Action::Refuse(..) => Kind::Other,
    }
}

/// Does a request and adds its reply. An error ends the connection.
pub(super) fn perform(
    link: &Link,
    request: &Request,
    action: Action,
    payload: &[u8],
    found: &mut Found,
    out: &mut Output,
) -> io::Result<()> {
    let export = &link.agreed.export;
    let (offset, length) = (request.offset, u64::from(request.length));
    let done = match action {
        Action::Read { whole } => return read(link, request, whole, out),
        Action::Status { one } => return status(link, request, one, found, out),
        Action::Refuse(errno, why) => return refuse(link, request, errno, why, out),
        Action::Write { durable } => export.write(offset, payload, durable),
        Action::Flush => export.flush(),
        Action::Trim { durable } => export.trim(offset, length, durable),
        Action::Zeroes(how) => export.write_zeroes(offset, length, how),
        Action::Cache => export.cache(offset, length),
        Action::Leave => return Ok(()),
    };
    answer(link, request, done, out)
}

/// The reply to a request that brings nothing back.
pub(super) fn answer(
    link: &Link,
    request: &Request,
    done: Result<()>,
    out: &mut Output,
) -> io::Result<()> {
    match done {
        Ok(()) => out.add(link, &simple_reply(request.cookie, 0)),
        Err(error) => failed(link, request, &error, out),
    }
}

fn failed(link: &Link, request: &Request, error: &Error, out: &mut Output) -> io::Result<()> {
    // That something is not fast is an answer, not a failure.
    if error.errno != Errno::NotSupported {
        link.log(error);
    }
    refuse(link, request, error.errno, "", out)
}

fn refuse(
    link: &Link,
    request: &Request,
    errno: Errno,
    why: &str,
    out: &mut Output,
) -> io::Result<()> {
    let mut added = Ok(());
    reply::error(&link.agreed, request, errno, why, |bytes| added = out.add(link, bytes));
    added
}

fn read(link: &Link, request: &Request, whole: bool, out: &mut Output) -> io::Result<()> {
    let (export, length) = (&link.agreed.export, request.length as usize);
    if length > PIECE && (whole || !link.agreed.structured) {
        return read_whole(link, request, out);
    }
    if length < LONG {
        let read = |offset, data: &mut [u8]| export.read(offset, data);
        return read_piece(link, request, (request.offset, length, true), read, out).map(drop);
    }
    export.admit(request.length.into());
    let (mut done, mut good, mut took) = (0, true, Duration::ZERO);
    while done < length && good {
        let count = PIECE.min(length - done);
        let place = (request.offset + done as u64, count, done + count == length);
        let begin = Instant::now();
        if fill_pipe(link, request, place, out) {
            took += begin.elapsed();
            out.send_pipe(link)?;
        } else {
            let read = |offset, data: &mut [u8]| {
                let read = export.read_part(offset, data);
                took += begin.elapsed();
                read
            };
            good = read_piece(link, request, place, read, out)?;
            if !place.2 {
                // The other side begins with it while the next one is read.
                out.send(link)?;
            }
        }
        done += count;
    }
    export.count(&Ended { write: false, bytes: request.length.into(), took, good });
    Ok(())
}

/// Fills the pipe with a part of a reply, its head before it. False: it must be read.
fn fill_pipe(
    link: &Link,
    request: &Request,
    (offset, length, last): (u64, usize, bool),
    out: &mut Output,
) -> bool {
    if link.wire.socket().is_none() {
        return false;
    }
    let Some(pipe) = out.pipe() else { return false };
    let place = link.agreed.export.place_part(offset, length as u64, false);
    let Some(transfer) = place else { return false };
    let structured = link.agreed.structured;
    let mut head = [0; HEAD];
    let head = head.get_mut(..head_length(structured)).unwrap_or_default();
    reply::data_head(head, structured, request.cookie, offset, length, last);
    let filled = pipe.take(head, &transfer).is_ok();
    if !filled {
        out.drop_pipe();
    }
    filled
}

/// Reads a part of a reply, or all of it. Whether it went well; if not, the error is in the reply,
/// and the reply at its end.
fn read_piece(
    link: &Link,
    request: &Request,
    (offset, length, last): (u64, usize, bool),
    read: impl FnOnce(u64, &mut [u8]) -> Result<()>,
    out: &mut Output,
) -> io::Result<bool> {
    let structured = link.agreed.structured;
    let before = head_length(structured);
    let room = out.room(link, before + length)?;
    let (head, data) = room.split_at_mut(before);
    if let Err(error) = read(offset, data) {
        failed(link, request, &error, out)?;
        return Ok(false);
    }
    if structured && length >= 4096 && is_zero(data) {
        out.add(link, &reply::hole(request.cookie, offset, length, last))?;
    } else {
        reply::data_head(head, structured, request.cookie, offset, length, last);
        out.keep(before + length);
    }
    Ok(true)
}

/// A read beyond a piece whose reply has one head, which says that all is well. Only for the thread
/// of the connection, and with nothing waiting in an inbox.
fn read_whole(link: &Link, request: &Request, out: &mut Output) -> io::Result<()> {
    let structured = link.agreed.structured;
    let (offset, length) = (request.offset, request.length as usize);
    let mut head = [0; HEAD];
    let head = head.get_mut(..head_length(structured)).unwrap_or_default();
    reply::data_head(head, structured, request.cookie, offset, length, true);
    let export = &link.agreed.export;
    if let Some(_leave) = Leave::take() {
        let mut data = vec![0; length];
        if let Err(error) = export.read(offset, &mut data) {
            return failed(link, request, &error, out);
        }
        out.send(link)?;
        return link.send(head, &data);
    }
    if structured {
        return refuse(link, request, Errno::Overflow, "too much for one chunk just now", out);
    }
    out.send(link)?;
    // Replies of other threads would stand in the middle of this one.
    let _turn = link.turn();
    link.wire.send(head, &[])?;
    let mut done = 0;
    while done < length {
        let count = PIECE.min(length - done);
        let data = out.room(link, count)?;
        if let Err(error) = export.read(offset + done as u64, data) {
            link.log(&error);
            // The head has said that all is well: there is no other way to take it back.
            return Err(io::Error::other("a read has failed after its reply had begun"));
        }
        link.wire.send(data, &[])?;
        done += count;
    }
    Ok(())
}

fn status(
    link: &Link,
    request: &Request,
    one: bool,
    found: &mut Found,
    out: &mut Output,
) -> io::Result<()> {
    let (export, contexts) = (&link.agreed.export, &link.agreed.contexts);
    let limit = if one { 1 } else { EXTENTS };
    for (index, (id, context)) in contexts.iter().enumerate() {
        let (offset, length) = (request.offset, u64::from(request.length));
        let asked = context.ask(export.as_ref(), offset, length, limit, found);
        found.words.retain(|word| word.0 > 0);
        if let Err(error) = asked {
            return failed(link, request, &error, out);
        }
        if found.words.is_empty() {
            let error = Error::new(Errno::Io, format!("nothing is known of {length} at {offset}"));
            return failed(link, request, &error, out);
        }
        let flags = if index + 1 == contexts.len() { chunk::DONE } else { 0 };
        let body = 4 + 8 * found.words.len();
        let cookie = request.cookie;
        let head = Chunk { flags, kind: chunk::BLOCK_STATUS, cookie, length: body as u32 };
        let room = out.room(link, CHUNK_LENGTH + body)?;
        let words = found.words.iter().flat_map(|word| [word.0, word.1]);
        let numbers = std::iter::once(*id).chain(words).flat_map(u32::to_be_bytes);
        for (place, byte) in room.iter_mut().zip(head.encode().into_iter().chain(numbers)) {
            *place = byte;
        }
        out.keep(CHUNK_LENGTH + body);
    }
    Ok(())
}
