//! A client: another disk, reached through NBD.
//!
//! ```no_run
//! use datapath::nbd::client::{Client, Options};
//!
//! let uri = "nbd+unix:///disk?socket=/run/nbd".parse()?;
//! let client = Client::connect(&uri, &Options::default())?;
//! // From many threads at a time, or by one that starts several before it waits:
//! let first = client.start_write(0, &[1; 4096], false)?;
//! let second = client.start_write(4096, &[2; 4096], false)?;
//! first.wait()?;
//! second.wait()?;
//! client.flush()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Everything has a deadline. A request that was not answered in time ends the connection, since
//! nobody could tell to which state a late answer belongs: the other requests in flight fail too,
//! and each of them may have been done, or may still be done, by the server.
//!
//! Why no thread of its own: whoever waits for an answer fetches answers, also those of others,
//! until its own is there. That saves two changes of thread for each request, which are most of
//! the latency of a small one.

mod handshake;
mod replies;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::protocol::{self, MAX_PAYLOAD, Request, command, command_flag, export_flag, state};
use super::tls::TlsClient;
use super::uri::Uri;
use super::wire::Wire;
use crate::error::Errno;
use crate::export::{Changed, Extent, Transfer, Zeroes};
use replies::{Link, Wanted};

/// Bytes that one request without payload names at most: the field has 32 bits, and this is a
/// multiple of every block size.
const LONGEST_RANGE: u64 = 1 << 30;

/// Longer writes are not put aside for later, bytes: that takes a copy.
const SMALL: usize = 16 << 10;

/// How to connect.
#[derive(Clone, Debug)]
pub struct Options {
    /// Time for each request, and for the handshake as a whole.
    pub timeout: Duration,
    /// Contexts that block status is asked for; those that the server does not have are left out.
    pub contexts: Vec<String>,
    /// Who we are, for addresses with TLS.
    pub tls: Option<TlsClient>,
    /// For the certificate of the server, where it is not the host of the address.
    pub tls_name: Option<String>,
}

impl Default for Options {
    /// 30 seconds; `base:allocation`.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            contexts: vec![protocol::CONTEXT_ALLOCATION.to_owned()],
            tls: None,
            tls_name: None,
        }
    }
}

/// Why something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nobody could be reached, or the connection has ended. Whether a request that was in flight
    /// was done is not known.
    Disconnected,
    /// No answer in time; the connection has been ended. Whether it was done, or will be, is not
    /// known.
    TimedOut,
    /// The server has answered a request with this error. The connection goes on.
    Server(Errno),
    /// The server has no such export, or wants something (TLS) that was not offered.
    Refused,
    /// What the server says is not NBD; the connection has been ended.
    Protocol,
    /// The server does not offer this. Nothing was sent.
    Unsupported,
    /// The range is empty, not within the disk, or too long for one request. Nothing was sent.
    Invalid,
}

/// What failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}")]
pub struct ClientError {
    /// For programs.
    pub kind: Kind,
    /// For people.
    pub what: String,
}

impl ClientError {
    fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into() }
    }
}

/// Shorthand.
pub type Result<T, E = ClientError> = std::result::Result<T, E>;

/// What the server has said of itself and of the export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Bytes.
    pub size: u64,
    /// `NBD_FLAG_*`, see [`export_flag`].
    pub flags: u16,
    /// Reads are answered in chunks.
    pub structured: bool,
    /// Bytes: everything must be a multiple of it.
    pub least_block: u32,
    /// Bytes: what is fast.
    pub preferred_block: u32,
    /// Bytes: the most that one read or write may carry.
    pub largest_block: u32,
    /// Contexts that are available: the server's number, the name.
    pub contexts: Vec<(u32, String)>,
}

/// A connection to an export. A clone is the same connection. It ends when the last clone, and the
/// last [`Pending`], is gone.
#[derive(Clone)]
pub struct Client {
    link: Arc<Link>,
    facts: Arc<Facts>,
    timeout: Duration,
}

/// A request that was sent. Dropped without waiting, its answer is thrown away when it comes.
#[must_use = "nobody learns whether it was done"]
pub struct Pending {
    link: Arc<Link>,
    cookie: u64,
    until: Instant,
}

impl Pending {
    /// Waits for the answer, by the deadline that began when the request was started.
    pub fn wait(self) -> Result<()> {
        self.link.wait(self.cookie, self.until).map(|_| ())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.link.abandon(self.cookie);
    }
}

impl Client {
    /// Connects and chooses the export.
    pub fn connect(uri: &Uri, options: &Options) -> Result<Self> {
        let (wire, facts) = handshake::connect(uri, options)?;
        Self::over(wire, facts, options.timeout)
    }

    /// Chooses the export `name` of a server that is reached already, without TLS.
    pub fn over_wire(wire: Box<dyn Wire>, name: &str, options: &Options) -> Result<Self> {
        let (wire, facts) = handshake::over_wire(wire, name, options)?;
        Self::over(wire, facts, options.timeout)
    }

    fn over(wire: Box<dyn Wire>, facts: Facts, timeout: Duration) -> Result<Self> {
        // The deadline of each request is looked at so often: setting it before each receive would
        // double the system calls.
        let look = (timeout / 16).clamp(Duration::from_millis(5), Duration::from_millis(500));
        let sets = wire.set_send_timeout(Some(timeout)).and(wire.set_receive_timeout(Some(look)));
        sets.map_err(|error| ClientError::new(Kind::Disconnected, error.to_string()))?;
        let contexts = facts.contexts.iter().map(|(id, _)| *id).collect();
        let link = Arc::new(Link::new(wire, facts.structured, contexts));
        Ok(Self { link, facts: Arc::new(facts), timeout })
    }

    /// What the server has said.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Bytes of the disk, as they were at the start of the connection.
    pub fn size(&self) -> u64 {
        self.facts.size
    }

    /// Whether all of these [`export_flag`]s are set.
    pub fn can(&self, flags: u16) -> bool {
        self.facts.flags & flags == flags
    }

    /// The most that one [`Client::start_write`] may carry, bytes.
    pub fn largest(&self) -> usize {
        self.facts.largest_block.min(MAX_PAYLOAD) as usize
    }

    /// Whether the connection still stands, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.link.failure().is_none()
    }

    /// Ends the connection at once; whoever waits gets [`Kind::Disconnected`].
    pub fn close(&self) {
        self.link.fail(&ClientError::new(Kind::Disconnected, "the connection was closed here"));
    }

    /// Fills `buf` from `offset`. Long reads are split.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.within(offset, buf.len() as u64)?;
        let mut offset = offset;
        for part in buf.chunks_mut(self.largest()) {
            let (command, flags) = (command::READ, 0);
            let wanted = Wanted::Data { offset, buffer: vec![0; part.len()] };
            let pending = self.start(command, flags, offset, part.len() as u64, &[], wanted)?;
            let answer = self.link.wait(pending.cookie, pending.until)?;
            part.copy_from_slice(&answer.data);
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Writes `bytes` at `offset`; with `durable`, durable when it returns (as far as the server
    /// can, see [`Client::flush`]). Long writes are split.
    pub fn write(&self, offset: u64, bytes: &[u8], durable: bool) -> Result<()> {
        self.within(offset, bytes.len() as u64)?;
        let with_flag = durable && self.can(export_flag::SEND_FUA);
        let mut offset = offset;
        for part in bytes.chunks(self.largest()) {
            self.start_write(offset, part, with_flag)?.wait()?;
            offset += part.len() as u64;
        }
        if durable && !with_flag { self.flush() } else { Ok(()) }
    }

    /// Sends a write and returns; [`Pending::wait`] waits for it. [`Kind::Invalid`] beyond
    /// [`Client::largest`], [`Kind::Unsupported`] when it is to be durable and the server has no
    /// flag for that.
    pub fn start_write(&self, offset: u64, bytes: &[u8], durable: bool) -> Result<Pending> {
        self.within(offset, bytes.len() as u64)?;
        self.writable()?;
        if bytes.len() > self.largest() {
            return Err(ClientError::new(Kind::Invalid, "the write is too long for one request"));
        }
        if durable {
            self.need(export_flag::SEND_FUA, "durable writes")?;
        }
        let flags = if durable { command_flag::FUA } else { 0 };
        self.start(command::WRITE, flags, offset, bytes.len() as u64, bytes, Wanted::Nothing)
    }

    /// As [`Client::start_write`], not durable, but the request goes out together with others: when
    /// much has gathered, or at the latest when somebody waits for any answer. One that nobody ever
    /// waits for may not be sent.
    pub fn start_write_later(&self, offset: u64, bytes: &[u8]) -> Result<Pending> {
        if bytes.len() > SMALL.min(self.largest()) {
            return self.start_write(offset, bytes, false);
        }
        self.within(offset, bytes.len() as u64)?;
        self.writable()?;
        let until = Instant::now() + self.timeout;
        let (flags, command, length) = (0, command::WRITE, bytes.len() as u32);
        let request = Request { flags, command, cookie: 0, offset, length };
        let cookie = self.link.send_later(request, bytes)?;
        Ok(Pending { link: Arc::clone(&self.link), cookie, until })
    }

    /// Whether [`Client::write_from`] may work: bytes can go into the connection as they are.
    pub fn takes_files(&self) -> bool {
        self.link.takes_files()
    }

    /// Writes what a read of a disk transfers from files in the page cache, without its coming by
    /// the memory of this process. What the files hold is taken from them at any moment until this
    /// returns. False: that does not work now, and nothing was sent.
    pub fn write_from(&self, offset: u64, transfer: Transfer) -> Result<bool> {
        let length = transfer.pieces.last().map_or(0, |piece| piece.part.end);
        self.within(offset, length as u64)?;
        self.writable()?;
        if length > self.largest() {
            return Ok(false);
        }
        let until = Instant::now() + self.timeout;
        let (flags, command, length) = (0, command::WRITE, length as u32);
        let request = Request { flags, command, cookie: 0, offset, length };
        let Some(cookie) = self.link.send_from(request, transfer)? else { return Ok(false) };
        Pending { link: Arc::clone(&self.link), cookie, until }.wait()?;
        Ok(true)
    }

    /// Makes a range read as zeros. A server that cannot by itself is sent zeros, unless it was
    /// to be fast: then [`Errno::NotSupported`], as a server would answer.
    pub fn write_zeroes(&self, offset: u64, length: u64, how: Zeroes) -> Result<()> {
        self.within(offset, length)?;
        self.writable()?;
        let by_itself = self.can(export_flag::SEND_WRITE_ZEROES);
        if how.only_if_fast && !(by_itself && self.can(export_flag::SEND_FAST_ZERO)) {
            let what = "the server cannot say whether it has fast zeros";
            return Err(ClientError::new(Kind::Server(Errno::NotSupported), what));
        }
        let with_flag = how.durable && self.can(export_flag::SEND_FUA);
        if by_itself {
            let flags = flag(how.keep_space, command_flag::NO_HOLE)
                | flag(how.only_if_fast, command_flag::FAST_ZERO)
                | flag(with_flag, command_flag::FUA);
            self.in_parts(command::WRITE_ZEROES, flags, offset, length)?;
        } else {
            let zeros = vec![0; (length.min(1 << 20) as usize).min(self.largest())];
            let (mut offset, mut left) = (offset, length);
            while left > 0 {
                let part = zeros.get(..left.min(zeros.len() as u64) as usize).unwrap_or(&zeros);
                self.start_write(offset, part, with_flag)?.wait()?;
                offset += part.len() as u64;
                left -= part.len() as u64;
            }
        }
        if how.durable && !with_flag { self.flush() } else { Ok(()) }
    }

    /// Says that a range is not needed. A server that does not care is not told. What the range
    /// reads as afterwards is the server's choice.
    pub fn trim(&self, offset: u64, length: u64) -> Result<()> {
        self.within(offset, length)?;
        self.writable()?;
        if self.can(export_flag::SEND_TRIM) {
            self.in_parts(command::TRIM, 0, offset, length)?;
        }
        Ok(())
    }

    /// Makes durable what was answered before. A server without the flag promises nothing, and
    /// nothing is sent: see [`Client::can`] with [`export_flag::SEND_FLUSH`].
    pub fn flush(&self) -> Result<()> {
        if !self.can(export_flag::SEND_FLUSH) {
            return Ok(());
        }
        self.start(command::FLUSH, 0, 0, 0, &[], Wanted::Nothing)?.wait()
    }

    /// What a range holds, in order and without gaps; neighbours may be alike. A server that does
    /// not tell is taken to have data everywhere.
    pub fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        self.within(offset, length)?;
        if self.context(protocol::CONTEXT_ALLOCATION).is_none() {
            return Ok(vec![Extent { length, hole: false, zero: false }]);
        }
        let found = self.block_status(protocol::CONTEXT_ALLOCATION, offset, length)?;
        let extent = |(length, flags): (u64, u32)| Extent {
            length,
            hole: flags & state::HOLE != 0,
            zero: flags & state::ZERO != 0,
        };
        Ok(found.into_iter().map(extent).collect())
    }

    /// What of a range has changed, by a bitmap of the server (its name without
    /// [`protocol::CONTEXT_BITMAP`]), which must be among [`Options::contexts`].
    pub fn changed(&self, bitmap: &str, offset: u64, length: u64) -> Result<Vec<Changed>> {
        let context = format!("{}{bitmap}", protocol::CONTEXT_BITMAP);
        let found = self.block_status(&context, offset, length)?;
        let change = |(length, flags): (u64, u32)| Changed {
            length,
            dirty: flags & protocol::STATE_DIRTY != 0,
        };
        Ok(found.into_iter().map(change).collect())
    }

    /// Lengths and flags of a context for a range, in order and without gaps.
    /// [`Kind::Unsupported`]: the server does not have the context.
    pub fn block_status(&self, context: &str, offset: u64, length: u64) -> Result<Vec<(u64, u32)>> {
        self.within(offset, length)?;
        let Some(id) = self.context(context) else {
            let what = format!("the server does not have the context {context}");
            return Err(ClientError::new(Kind::Unsupported, what));
        };
        let (mut offset, mut left) = (offset, length);
        let mut all: Vec<(u64, u32)> = Vec::new();
        while left > 0 {
            let part = left.min(LONGEST_RANGE);
            let command = command::BLOCK_STATUS;
            let pending = self.start(command, 0, offset, part, &[], Wanted::Extents)?;
            let answer = self.link.wait(pending.cookie, pending.until)?;
            let before = left;
            for (length, flags) in answer.extents.iter().filter(|found| found.0 == id).map(|f| f.1)
            {
                // The last one may go further than was asked.
                let length = u64::from(length).min(left);
                if length > 0 {
                    all.push((length, flags));
                }
                left -= length;
                offset += length;
            }
            if left == before {
                let error = ClientError::new(Kind::Protocol, "block status without any extent");
                self.link.fail(&error);
                return Err(error);
            }
        }
        Ok(all)
    }

    fn context(&self, name: &str) -> Option<u32> {
        self.facts.contexts.iter().find(|(_, other)| other == name).map(|(id, _)| *id)
    }

    fn in_parts(&self, command: u16, flags: u16, offset: u64, length: u64) -> Result<()> {
        let (mut offset, mut left) = (offset, length);
        while left > 0 {
            let part = left.min(LONGEST_RANGE);
            self.start(command, flags, offset, part, &[], Wanted::Nothing)?.wait()?;
            offset += part;
            left -= part;
        }
        Ok(())
    }

    fn start(
        &self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u64,
        payload: &[u8],
        wanted: Wanted,
    ) -> Result<Pending> {
        let until = Instant::now() + self.timeout;
        let request = Request { flags, command, cookie: 0, offset, length: length as u32 };
        let cookie = self.link.send(request, payload, wanted)?;
        Ok(Pending { link: Arc::clone(&self.link), cookie, until })
    }

    fn within(&self, offset: u64, length: u64) -> Result<()> {
        let end = offset.checked_add(length);
        if length > 0 && end.is_some_and(|end| end <= self.facts.size) {
            return Ok(());
        }
        let size = self.facts.size;
        let what = format!("{length} bytes at {offset} are not a range of a disk of {size}");
        Err(ClientError::new(Kind::Invalid, what))
    }

    fn writable(&self) -> Result<()> {
        if self.can(export_flag::READ_ONLY) {
            return Err(ClientError::new(Kind::Unsupported, "the server lets nobody write"));
        }
        Ok(())
    }

    fn need(&self, flag: u16, what: &str) -> Result<()> {
        if self.can(flag) {
            return Ok(());
        }
        Err(ClientError::new(Kind::Unsupported, format!("the server has no {what}")))
    }
}

fn flag(set: bool, flag: u16) -> u16 {
    if set { flag } else { 0 }
}
