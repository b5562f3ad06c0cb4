//! Bytes that go between a socket and a file without coming by the memory of this process.
//!
//! A pipe holds the pages of what was received, or of what a file has in the page cache; nothing
//! is copied into it, and once out of it: a write costs one copy here instead of two, and a read
//! none.
//!
//! What is in the pipe of a read is the file's pages, not their content: a write to the same place
//! that comes before the client has fetched the reply may show in it. To the client the two run at
//! the same time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::export::Transfer;

/// Wanted room: the kernel counts pages, or parts of pages, and takes each for 4096 bytes. The most
/// that it gives to users without privileges.
const ROOM: usize = 1 << 20;

/// Pages, or parts of them, of a file that go into the pipe at once, at most.
const PAGES: usize = ROOM / PAGE;

const PAGE: usize = 4096;

/// A pipe, and what is in it.
pub(super) struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    length: usize,
}

/// What a socket has brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// So many bytes.
    Bytes(usize),
    /// The other side has ended.
    End,
    /// Nothing yet.
    Nothing,
    /// The pipe takes no more, though it has few bytes: they came in many pieces.
    Full,
}

impl Pipe {
    pub(super) fn new() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC)?;
        if fcntl_setpipe_size(&into, ROOM)? < ROOM {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Self { out, into, length: 0 })
    }

    /// Bytes in it.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Takes what has been received, at most so many bytes. Does not wait.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>, most: usize) -> io::Result<Came> {
        loop {
            match splice(socket, None, &self.into, None, most, SpliceFlags::NONBLOCK) {
                Ok(0) => return Ok(Came::End),
                Ok(count) => {
                    self.length += count;
                    return Ok(Came::Bytes(count));
                }
                Err(Errno::AGAIN) if self.length > 0 && self.is_full()? => return Ok(Came::Full),
                Err(Errno::AGAIN) => return Ok(Came::Nothing),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn is_full(&self) -> io::Result<bool> {
        Ok(!is_ready(self.into.as_fd(), PollFlags::OUT, Duration::ZERO)?)
    }

    /// Writes the first bytes to a file; how many it has taken. Fewer: the file takes no more, or
    /// not in this way.
    pub(super) fn write_to_file(&mut self, file: BorrowedFd<'_>, at: u64, count: usize) -> usize {
        let (mut at, mut done) = (at, 0);
        while done < count {
            match splice(&self.out, None, file, Some(&mut at), count - done, SpliceFlags::empty()) {
                Ok(0) => break,
                Ok(more) => done += more,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        self.length -= done;
        done
    }

    /// Takes bytes out.
    pub(super) fn read_into(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut rest = into;
        while !rest.is_empty() {
            match rustix::io::read(&self.out, &mut *rest) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.length -= count;
                    rest = rest.split_at_mut(count).1;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Takes `head` and what a read transfers. After an error the pipe holds a part of it.
    pub(super) fn take(&mut self, head: &[u8], transfer: &Transfer) -> io::Result<()> {
        let pages = |length: usize| length / PAGE + 2;
        let pieces = transfer.pieces.iter();
        if 1 + pieces.map(|piece| pages(piece.part.len())).sum::<usize>() > PAGES {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        // So few bytes fit into an empty pipe at once.
        self.length += rustix::io::write(&self.into, head)?;
        for piece in &transfer.pieces {
            let Some((file, at)) = &piece.place else {
                return Err(io::ErrorKind::Unsupported.into());
            };
            let (mut at, mut left) = (*at, piece.part.len());
            while left > 0 {
                let flags = SpliceFlags::NONBLOCK;
                match splice(file.as_ref(), Some(&mut at), &self.into, None, left, flags) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => {
                        self.length += count;
                        left -= count;
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Sends all that is in it. [`io::ErrorKind::TimedOut`] as of [`super::wire::Wire::send`].
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while self.length > 0 {
            match splice(&self.out, None, socket, None, self.length, SpliceFlags::empty()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.length -= count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Waits until something can be received; whether it can.
pub(super) fn wait_readable(socket: BorrowedFd<'_>, time: Duration) -> io::Result<bool> {
    is_ready(socket, PollFlags::IN, time)
}

fn is_ready(what: BorrowedFd<'_>, flags: PollFlags, time: Duration) -> io::Result<bool> {
    let until = std::time::Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::from_borrowed_fd(what, flags)], Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::FileExt as _;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::time::Duration;

    use super::{Came, PAGES, Pipe, wait_readable};
    use crate::export::{Piece, Transfer};

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 31 % 251) as u8).collect()
    }

    #[test]
    fn what_a_socket_brings_goes_to_a_file_and_to_memory() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let (file, sent) = (tempfile::tempfile().unwrap(), bytes(70_000));
        let mut pipe = Pipe::new().unwrap();
        assert_eq!(pipe.receive(server.as_fd(), 10).unwrap(), Came::Nothing);
        assert!(!wait_readable(server.as_fd(), Duration::ZERO).unwrap());
        client.write_all(&sent).unwrap();
        assert!(wait_readable(server.as_fd(), Duration::from_secs(20)).unwrap());
        while pipe.length() < sent.len() {
            let came = pipe.receive(server.as_fd(), sent.len() - pipe.length()).unwrap();
            assert!(matches!(came, Came::Bytes(_)), "{came:?}");
        }
        assert_eq!(pipe.write_to_file(file.as_fd(), 1000, 50_001), 50_001);
        let mut rest = vec![0; sent.len() - 50_001];
        pipe.read_into(&mut rest).unwrap();
        assert_eq!(pipe.length(), 0);
        let mut written = vec![0; 50_001];
        file.read_exact_at(&mut written, 1000).unwrap();
        assert!(written == sent[..50_001] && rest == sent[50_001..]);
        drop(client);
        assert_eq!(pipe.receive(server.as_fd(), 10).unwrap(), Came::End);
    }

    #[test]
    fn a_pipe_of_many_small_pieces_is_full_and_does_not_wait() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut pipe = Pipe::new().unwrap();
        for index in 0..=PAGES {
            client.write_all(&[index as u8]).unwrap();
        }
        let mut came = Came::Nothing;
        while came != Came::Full {
            came = pipe.receive(server.as_fd(), 1 << 20).unwrap();
            assert!(matches!(came, Came::Bytes(_) | Came::Full), "{came:?}");
        }
        assert_eq!(pipe.length(), PAGES);
        let mut all = vec![0; PAGES];
        pipe.read_into(&mut all).unwrap();
        assert!(all.iter().enumerate().all(|(index, byte)| *byte == index as u8));
    }

    #[test]
    fn pieces_of_files_are_sent_behind_their_head_and_an_end_of_a_file_is_an_error() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let content = bytes(100_000);
        let mut one = tempfile::tempfile().unwrap();
        one.write_all(&content).unwrap();
        let one = Arc::new(one);
        let read = |pieces: &[(&Arc<File>, u64, usize)]| {
            let mut at = 0;
            let piece = |&(file, place, length): &(&Arc<File>, u64, usize)| {
                at += length;
                Piece { part: at - length..at, place: Some((Arc::clone(file), place)) }
            };
            Transfer { pieces: pieces.iter().map(piece).collect(), held: Box::new(()) }
        };
        let mut pipe = Pipe::new().unwrap();
        pipe.take(b"head", &read(&[(&one, 50_001, 40_000), (&one, 0, 30)])).unwrap();
        pipe.send(server.as_fd()).unwrap();
        let mut got = vec![0; 4 + 40_030];
        client.read_exact(&mut got).unwrap();
        assert!(&got[..4] == b"head" && got[4..40_004] == content[50_001..90_001]);
        assert!(got[40_004..] == content[..30]);

        assert!(pipe.take(b"head", &read(&[(&one, 99_000, 2000)])).is_err());
        let large = read(&[(&one, 0, 2 << 20)]);
        assert!(Pipe::new().unwrap().take(b"head", &large).is_err(), "more than fits");
    }

    #[test]
    fn a_file_that_takes_no_more_leaves_the_rest_in_the_pipe() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(&bytes(5000)).unwrap();
        let mut pipe = Pipe::new().unwrap();
        assert_eq!(pipe.receive(server.as_fd(), 5000).unwrap(), Came::Bytes(5000));
        // Opened for reading only.
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(pipe.write_to_file(File::open(file.path()).unwrap().as_fd(), 0, 5000), 0);
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert_eq!(pipe.write_to_file(full.as_fd(), 0, 5000), 0);
        let mut all = vec![0; 5000];
        pipe.read_into(&mut all).unwrap();
        assert!(all == bytes(5000));
    }
}
