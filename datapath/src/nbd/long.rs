//! Long writes: they go to the disk in parts, as they come.
//!
//! A client sends the next part while one is written, so neither waits for the other. Where the
//! disk says that a part goes to one place of a file and changes nothing else, it goes there from
//! the socket by a pipe ([`super::pipe`]).

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::buffer::{Aligned, Input, PIECE};
use super::chance::Chance;
use super::link::Link;
use super::pipe::{Came, Pipe, wait_readable};
use super::protocol::Request;
use super::session::End;
use crate::error::Result;
use crate::export::{Ended, Export, Piece};

/// Parts end at a multiple of this on the disk: none of them is a part of a page or of a sector.
const UNIT: u64 = 4096;

/// A part has so many bytes, if there are as many to come: each costs its calls.
const ENOUGH: usize = 64 * 1024;

/// What long writes of one connection need.
#[derive(Default)]
pub(super) struct Long {
    memory: Option<Aligned>,
    chance: Chance,
}

/// A write that is being done.
struct Write<'a> {
    export: &'a dyn Export,
    /// Where the next part goes, and bytes from there on.
    at: u64,
    left: usize,
    /// After an error the rest is received all the same: the next request stands behind it.
    done: Result<()>,
    /// Time that the disk has taken.
    took: Duration,
}

impl Write<'_> {
    /// How much of `have` bytes can be written now.
    fn part(&self, have: usize, wanted: usize) -> usize {
        if have == self.left {
            return have;
        }
        let part = have.saturating_sub(((self.at + have as u64) % UNIT) as usize);
        if part < wanted { 0 } else { part }
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.done.is_ok() && !bytes.is_empty() {
            let begin = Instant::now();
            self.done = self.export.write_part(self.at, bytes);
            self.took += begin.elapsed();
        }
        self.went(bytes.len());
    }

    fn went(&mut self, count: usize) {
        self.at += count as u64;
        self.left -= count;
    }
}

impl Long {
    /// Does a write whose head is gone from `input`. The inner result is for the client.
    pub(super) fn write(
        &mut self,
        link: &Link,
        (input, pipe): (&mut Input, Option<&mut Pipe>),
        (request, durable): (&Request, bool),
        stall: Duration,
    ) -> std::result::Result<Result<()>, End> {
        let export = link.agreed.export.as_ref();
        let left = request.length as usize;
        export.admit(u64::from(request.length));
        let (done, took) = (Ok(()), Duration::ZERO);
        let mut write = Write { export, at: request.offset, left, done, took };
        // What has come already is written from where it is.
        let have = input.length().min(left);
        let part = write.part(have, 1);
        write.write(input.peek(part).unwrap_or_default());
        input.skip(part);
        let mut rest = have - part;
        if let Some(pipe) = pipe
            && rest == 0
            && write.left > 0
            && self.chance.is_now()
        {
            rest = self.by_pipe(link, &mut write, pipe, stall)?;
        } else {
            let memory = self.memory().get_mut(..rest).unwrap_or_default();
            input.move_to(memory);
        }
        self.by_memory(link, &mut write, rest)?;
        if durable {
            write.done = write.done.and_then(|()| export.flush());
        }
        let (bytes, took, good) = (u64::from(request.length), write.took, write.done.is_ok());
        export.count(&Ended { write: true, bytes, took, good });
        Ok(write.done)
    }

    fn memory(&mut self) -> &mut [u8] {
        self.memory.get_or_insert_with(|| Aligned::new(PIECE)).get()
    }

    /// Until all is done, or it does not go on in this way: then so many bytes are in memory.
    fn by_pipe(
        &mut self,
        link: &Link,
        write: &mut Write<'_>,
        pipe: &mut Pipe,
        stall: Duration,
    ) -> std::result::Result<usize, End> {
        let Some(socket) = link.wire.socket() else { return Ok(0) };
        while write.left > 0 {
            let most = write.left.min(PIECE);
            let came = pipe.receive(socket, most - pipe.length())?;
            match came {
                Came::Bytes(_) | Came::Full => {}
                Came::End => return Err(End::Gone),
                Came::Nothing if wait_readable(socket, stall)? => continue,
                Came::Nothing => return Err(End::Stalled),
            }
            let all = came == Came::Full || pipe.length() == most;
            let part = write.part(pipe.length(), if all { 1 } else { ENOUGH });
            if part == 0 && !all {
                continue;
            }
            let begin = Instant::now();
            let done = to_its_place(write, pipe, part);
            write.took += begin.elapsed();
            write.went(done);
            if done < part || part == 0 {
                // Done in the ordinary way, it works, or says what is wrong.
                let have = pipe.length();
                pipe.read_into(self.memory().get_mut(..have).unwrap_or_default())?;
                return Ok(have);
            }
        }
        self.chance.was_good();
        Ok(0)
    }

    /// Does the rest of a write, of which so many bytes are in memory.
    fn by_memory(
        &mut self,
        link: &Link,
        write: &mut Write<'_>,
        have: usize,
    ) -> std::result::Result<(), End> {
        let memory = self.memory.get_or_insert_with(|| Aligned::new(PIECE)).get();
        let mut have = have;
        while write.left > 0 {
            let most = write.left.min(PIECE);
            if have < most {
                let room = memory.get_mut(have..most).unwrap_or_default();
                have += match link.wire.receive(room) {
                    Ok(0) => return Err(End::Gone),
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Err(End::Stalled);
                    }
                    Err(error) => return Err(error.into()),
                };
            }
            let part = write.part(have, if have == most { 1 } else { ENOUGH });
            write.write(memory.get(..part).unwrap_or_default());
            memory.copy_within(part..have, 0);
            have -= part;
        }
        Ok(())
    }
}

/// Writes the first bytes of a pipe, if they have one place; how many.
fn to_its_place(write: &Write<'_>, pipe: &mut Pipe, part: usize) -> usize {
    let place = write.export.place_part(write.at, part as u64, true);
    let Some(transfer) = place else { return 0 };
    match &transfer.pieces[..] {
        [Piece { place: Some((file, at)), .. }] => pipe.write_to_file(file.as_fd(), *at, part),
        _ => 0,
    }
}
