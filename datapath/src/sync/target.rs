//! Where the content goes, and where it comes from.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Change, Drive};
use crate::error::{Errno, Error, Result};
use crate::export::{Export, Extent, Transfer, Zeroes};
use crate::nbd::client::{Client, ClientError, Kind, Options as ClientOptions, Pending};
use crate::nbd::protocol::export_flag;
use crate::nbd::uri::Uri;

/// What a range of the source is to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// Anything.
    Data,
    /// Zeros.
    Zeros,
    /// Nothing that the target lacks: left alone.
    Same,
}

/// A range of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes.
    pub range: Range<u64>,
    /// What it is.
    pub kind: PieceKind,
}

/// A disk that is copied while it is written.
pub trait Source: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;

    /// Appends what a range holds, in order and without gaps.
    fn pieces(&self, range: Range<u64>, into: &mut Vec<Piece>) -> Result<()>;

    /// Parts of it are none of the target's business: [`PieceKind::Same`]. Then each piece is
    /// looked at before it is copied, and not only what is known to be zeros.
    fn is_partial(&self) -> bool {
        false
    }

    /// Fills `buf` from `offset`.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// A range as transfers from files through the page cache, for a target that takes it from
    /// there; none where it has to be read. Never waits.
    fn place(&self, _offset: u64, _length: u64) -> Option<Transfer> {
        None
    }
}

/// Extents asked for at a time.
const EXTENTS: usize = 1024;

impl Source for Drive {
    fn size(&self) -> u64 {
        Export::size(self)
    }

    fn pieces(&self, range: Range<u64>, into: &mut Vec<Piece>) -> Result<()> {
        let mut at = range.start;
        let mut extents: Vec<Extent> = Vec::new();
        while at < range.end {
            extents.clear();
            self.extents(at, range.end - at, EXTENTS, &mut extents)?;
            let before = at;
            for extent in &extents {
                let kind = if extent.zero { PieceKind::Zeros } else { PieceKind::Data };
                let end = (at + extent.length).min(range.end);
                into.push(Piece { range: at..end, kind });
                at = end;
            }
            if at == before {
                return Err(Error::new(Errno::Io, "the disk does not say what it holds"));
            }
        }
        Ok(())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_aside(offset, buf)
    }

    fn place(&self, offset: u64, length: u64) -> Option<Transfer> {
        self.place_part(offset, length, false)
    }
}

/// Why the target does not have something.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    /// For people.
    pub what: String,
    /// What was answered before and not made durable may be gone as well: the connection has ended,
    /// and nobody knows why.
    pub lost: bool,
    /// Trying again is in vain.
    pub permanent: bool,
}

impl Failure {
    /// A failure that trying again does not mend.
    pub fn permanent(what: impl Into<String>) -> Self {
        Self { what: what.into(), lost: false, permanent: true }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let lost = matches!(error.kind, Kind::Disconnected | Kind::TimedOut | Kind::Protocol);
        let permanent = matches!(
            error.kind,
            Kind::Server(Errno::NotPermitted | Errno::Invalid | Errno::NotSupported)
                | Kind::Invalid
                | Kind::Unsupported
        );
        Self { what: error.what, lost, permanent }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let permanent = matches!(
            error.errno,
            Errno::NotPermitted
                | Errno::Invalid
                | Errno::NotSupported
                | Errno::Shutdown
                // Waiting for somebody to make room here takes no space, and ends sooner said.
                | Errno::NoSpace
        );
        Self { what: error.what, lost: false, permanent }
    }
}

/// A change of the guest that is on its way.
pub enum Sent {
    /// The target has it.
    Done,
    /// The target has it when this returns well; called by another thread.
    Waiting(Box<dyn FnOnce() -> Result<(), Failure> + Send>),
}

/// A disk that gets the content of another. Called by many threads at once; what overlaps in place
/// does not overlap in time.
pub trait Target: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;

    /// Bytes; every request begins and ends on a multiple of it, or at the end of the disk.
    fn least_block(&self) -> u64;

    /// Reads as zeros wherever nothing has been written yet.
    fn is_blank(&self) -> bool;

    /// Writes a part of the copy.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure>;

    /// Whether [`Target::write_from`] may work.
    fn takes_files(&self) -> bool {
        false
    }

    /// Writes a part of the copy that is in files. What they hold is taken from them at any moment
    /// until this returns: a part of what a guest writes meanwhile may reach the target. False: it
    /// has to be read and written in the ordinary way.
    fn write_from(&self, _offset: u64, _transfer: Transfer) -> Result<bool, Failure> {
        Ok(false)
    }

    /// Makes a range zero.
    fn zero(&self, offset: u64, length: u64) -> Result<(), Failure>;

    /// Writes what a guest has just written to the source. Returns soon: the guest waits.
    fn forward(&self, change: &Change<'_>) -> Result<Sent, Failure>;

    /// Makes durable what was answered.
    fn flush(&self) -> Result<(), Failure>;

    /// Fills `buf` from `offset`, to compare.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure>;

    /// After a failure: comes back to a state in which trying again makes sense. Answers whether
    /// this is a new connection: what was answered before and not made durable may be gone, and
    /// requests that failed before may still be done by somebody now.
    fn renew(&self) -> Result<bool, Failure>;

    /// Requests under way fail soon, and so do later ones.
    fn abandon(&self);
}

/// The connections to a target. The second one carries what guests write, so that it does not wait
/// behind large pieces of the copy; a server that does not say that its connections agree gets one.
/// With a third one, for the copy, too, a guest keeps less, and the copy is hardly faster.
#[derive(Clone)]
struct Links {
    copy: Client,
    guest: Client,
}

/// A disk behind NBD.
pub struct NbdTarget {
    uri: Uri,
    options: ClientOptions,
    blank: bool,
    size: u64,
    least_block: u64,
    links: Mutex<Links>,
}

impl NbdTarget {
    /// Connects. `blank`: the caller knows that the disk reads as zeros.
    pub fn connect(uri: Uri, options: ClientOptions, blank: bool) -> Result<Self, Failure> {
        let links = Links::connect(&uri, &options)?;
        let facts = links.copy.facts();
        let (size, least_block) = (facts.size, u64::from(facts.least_block).max(1));
        if links.copy.can(export_flag::READ_ONLY) {
            return Err(Failure::permanent(format!("{uri}: the server lets nobody write")));
        }
        Ok(Self { uri, options, blank, size, least_block, links: Mutex::new(links) })
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy(&self) -> Client {
        self.links().copy.clone()
    }

    fn guest(&self) -> Client {
        self.links().guest.clone()
    }
}

impl Links {
    fn connect(uri: &Uri, options: &ClientOptions) -> Result<Self, Failure> {
        let copy = Client::connect(uri, options)?;
        let agree = copy.can(export_flag::CAN_MULTI_CONN);
        let guest = if agree { Client::connect(uri, options)? } else { copy.clone() };
        Ok(Self { copy, guest })
    }
}

/// Zeros as the copy wants them: with holes, where the target has them.
const HOLES: Zeroes = Zeroes { keep_space: false, only_if_fast: false, durable: false };

impl Target for NbdTarget {
    fn size(&self) -> u64 {
        self.size
    }

    fn least_block(&self) -> u64 {
        self.least_block
    }

    fn is_blank(&self) -> bool {
        self.blank
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.copy().write(offset, bytes, false)?)
    }

    fn takes_files(&self) -> bool {
        self.copy().takes_files()
    }

    fn write_from(&self, offset: u64, transfer: Transfer) -> Result<bool, Failure> {
        Ok(self.copy().write_from(offset, transfer)?)
    }

    fn zero(&self, offset: u64, length: u64) -> Result<(), Failure> {
        Ok(self.copy().write_zeroes(offset, length, HOLES)?)
    }

    fn forward(&self, change: &Change<'_>) -> Result<Sent, Failure> {
        let guest = self.guest();
        match *change {
            Change::Data { offset, bytes } => {
                let mut at = offset;
                let mut parts: Vec<Pending> = Vec::with_capacity(1);
                for part in bytes.chunks(guest.largest()) {
                    parts.push(guest.start_write_later(at, part)?);
                    at += part.len() as u64;
                }
                Ok(Sent::Waiting(Box::new(move || {
                    // All of them: one that is dropped could arrive later than the next write.
                    let ends: Vec<_> = parts.into_iter().map(Pending::wait).collect();
                    ends.into_iter().collect::<Result<(), _>>().map_err(Failure::from)
                })))
            }
            Change::Zeroes { offset, length, keep_space } => {
                let how = Zeroes { keep_space, ..HOLES };
                let zero = move || Ok(guest.write_zeroes(offset, length, how)?);
                Ok(Sent::Waiting(Box::new(zero)))
            }
        }
    }

    fn flush(&self) -> Result<(), Failure> {
        // One flush covers both: the second connection is there only if the server says so.
        Ok(self.copy().flush()?)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        Ok(self.copy().read(offset, buf)?)
    }

    fn renew(&self) -> Result<bool, Failure> {
        let old = self.links().clone();
        if old.copy.is_connected() && old.guest.is_connected() {
            return Ok(false);
        }
        old.copy.close();
        old.guest.close();
        let new = Links::connect(&self.uri, &self.options)?;
        let facts = new.copy.facts();
        if facts.size != self.size || u64::from(facts.least_block).max(1) != self.least_block {
            let what = format!("{}: another disk is there now: {} bytes", self.uri, facts.size);
            return Err(Failure::permanent(what));
        }
        *self.links() = new;
        Ok(true)
    }

    fn abandon(&self) {
        let links = self.links();
        links.copy.close();
        links.guest.close();
    }
}

/// A disk of this process: the parent of a leaf, or another image.
pub struct LocalTarget {
    drive: Arc<Drive>,
    blank: bool,
}

impl LocalTarget {
    /// `blank`: the caller knows that the disk reads as zeros.
    pub fn new(drive: Arc<Drive>, blank: bool) -> Self {
        Self { drive, blank }
    }
}

impl Target for LocalTarget {
    fn size(&self) -> u64 {
        Export::size(&*self.drive)
    }

    fn least_block(&self) -> u64 {
        1
    }

    fn is_blank(&self) -> bool {
        self.blank
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.drive.write_aside(offset, bytes)?)
    }

    fn zero(&self, offset: u64, length: u64) -> Result<(), Failure> {
        Ok(self.drive.zero_aside(offset, length, false)?)
    }

    fn forward(&self, change: &Change<'_>) -> Result<Sent, Failure> {
        match *change {
            Change::Data { offset, bytes } => self.drive.write_aside(offset, bytes)?,
            Change::Zeroes { offset, length, keep_space } => {
                self.drive.zero_aside(offset, length, keep_space)?;
            }
        }
        Ok(Sent::Done)
    }

    fn flush(&self) -> Result<(), Failure> {
        Ok(Export::flush(&*self.drive)?)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        Ok(self.drive.read_aside(offset, buf)?)
    }

    fn renew(&self) -> Result<bool, Failure> {
        Ok(false)
    }

    fn abandon(&self) {}
}
