//! What can go wrong, in words an operator can act on.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// Shorthand used throughout the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every failure of this crate. `Display` is one sentence; an I/O error keeps its cause as
/// `source`, and [`Error::reason`] prints both.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {action} failed", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done, as a verb.
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The file is not a VHD we can trust; nothing was changed.
    #[error("{}: {fault}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What exactly is wrong with it.
        fault: Fault,
    },
    /// One of the two footers is missing: readable, but not writable until repaired.
    #[error("{}: {missing} is missing, the image needs a repair before it can be written", .path.display())]
    NeedsRepair {
        /// The file.
        path: PathBuf,
        /// Which footer: "the footer at the end" or "the footer copy at offset 0".
        missing: &'static str,
    },
    /// A write to something opened for reading.
    #[error("{}: opened read-only", .path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// A sync of the image has failed while it was in use: what was written before it may be lost,
    /// and the system does not say what. Nothing is written before the image is opened again.
    #[error("{}: an earlier sync failed, the image must be opened again", .path.display())]
    Unsynced {
        /// The file.
        path: PathBuf,
    },
    /// Notes of new metadata, left by a process that died, that are not of this image.
    #[error("{}: the notes in {} are of another image, {owner}", .path.display(), .notes.display())]
    OtherNotes {
        /// The image.
        path: PathBuf,
        /// The file of notes.
        notes: PathBuf,
        /// Footer UUID of the image that they are of.
        owner: Uuid,
    },
    /// Notes of new metadata that do not go together with what the image holds.
    #[error("{}: the notes in {} do not fit: {what}", .path.display(), .notes.display())]
    BadNotes {
        /// The image.
        path: PathBuf,
        /// The file of notes.
        notes: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// A log of changed blocks that is none, or is cut off.
    #[error("{}: {what}", .path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// An access that does not lie within the disk.
    #[error("{}: access at {offset} of {length} bytes is outside the disk of {size} bytes", .path.display())]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// Bytes.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Bytes.
        size: u64,
    },
    /// A write of part of a sector to a differencing image opened without its parents, which hold
    /// the rest of that sector.
    #[error("{}: write at {offset} of {length} bytes covers part of a sector whose rest is in the parent", .path.display())]
    Unaligned {
        /// The file.
        path: PathBuf,
        /// Bytes.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// The next block would start beyond sector 0xffff_fffe, the last a block table can express.
    #[error("{}: the file is at the 2 TiB limit of the format", .path.display())]
    FileFull {
        /// The file.
        path: PathBuf,
    },
    /// Somebody has the disk open.
    #[error("disk {uuid} is open: {holder}")]
    InUse {
        /// The disk.
        uuid: Uuid,
        /// Who has it open.
        holder: String,
    },
    /// The logical volume has no room for what is to be written; it must be made longer first.
    #[error("{}: needs a volume of {needed} bytes", .path.display())]
    VolumeFull {
        /// The volume.
        path: PathBuf,
        /// Bytes that the volume must have at least.
        needed: u64,
    },
    /// A disk larger than the format allows.
    #[error("a disk of {requested} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Bytes asked for.
        requested: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// A resize to less than the present size.
    #[error("the disk has {from} bytes and cannot shrink to {to}")]
    Shrink {
        /// Bytes now.
        from: u64,
        /// Bytes asked for.
        to: u64,
    },
    /// The image has no parent, or is not of a type that the call applies to.
    #[error("{}: {what}", .path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
    },
    /// The parent's identity is not the one its child recorded.
    #[error("{}: expects the parent {expected}, but {} is {found}", .child.display(), .parent.display())]
    ParentMismatch {
        /// The child's file.
        child: PathBuf,
        /// The file offered as its parent.
        parent: PathBuf,
        /// Footer UUID the child recorded; all zero means a raw file.
        expected: Uuid,
        /// What the offered file is.
        found: String,
    },
    /// A child must be at least as large as its parent.
    #[error("{}: has {child_size} bytes, fewer than its parent's {parent_size}", .child.display())]
    ParentLarger {
        /// The child's file.
        child: PathBuf,
        /// Bytes.
        child_size: u64,
        /// Bytes.
        parent_size: u64,
    },
    /// The list of files does not end in an image without a parent.
    #[error("{}: its parent {parent} is missing from the chain", .path.display())]
    ChainIncomplete {
        /// The last file given.
        path: PathBuf,
        /// Footer UUID of the missing parent.
        parent: Uuid,
    },
    /// The same file twice in one chain.
    #[error("{}: occurs twice in its own chain", .path.display())]
    Cycle {
        /// The file.
        path: PathBuf,
    },
    /// A copy was stopped by its progress callback.
    #[error("stopped after {done} bytes")]
    Stopped {
        /// Bytes done.
        done: u64,
    },
    /// A stream ended before the disk it was to fill, or held more.
    #[error("the stream has {got} bytes where the disk has {expected}")]
    StreamLength {
        /// Bytes seen, at least.
        got: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// Another process holds the directory's lock.
    #[error("{}: locked by {holder}, waited {waited_ms} ms", .path.display())]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// What the holder wrote into the lock file, e.g. `pid 1234`.
        holder: String,
        /// Milliseconds.
        waited_ms: u64,
    },
    /// Whoever the store was opened for is shut out of it: others have what it had open.
    #[error("{}: this host is shut out", .mark.display())]
    ShutOut {
        /// The file that says so.
        mark: PathBuf,
    },
    /// The guard passed in locks another directory.
    #[error("the lock held is of {}, not of {}", .held.display(), .wanted.display())]
    WrongLock {
        /// Directory that is locked.
        held: PathBuf,
        /// Directory to be changed.
        wanted: PathBuf,
    },
    /// No such disk.
    #[error("disk {uuid} does not exist in {}", .dir.display())]
    NotFound {
        /// The disk.
        uuid: Uuid,
        /// The directory searched.
        dir: PathBuf,
    },
    /// The name is taken by something else.
    #[error("disk {uuid} already exists and {difference}")]
    Exists {
        /// The disk.
        uuid: Uuid,
        /// In what it differs from what was asked for.
        difference: String,
    },
    /// The disk is damaged and was left alone.
    #[error("disk {uuid} is quarantined: {reason}")]
    Quarantined {
        /// The disk.
        uuid: Uuid,
        /// Why.
        reason: String,
    },
    /// The node is a base copy, which only its children use.
    #[error("{uuid} is a base copy, not a disk")]
    NotALeaf {
        /// The node.
        uuid: Uuid,
    },
    /// One more level would exceed the limit that XenServer's tools set.
    #[error("disk {uuid} has a chain of {depth} images, the limit is {limit}: coalesce it first")]
    ChainTooLong {
        /// The disk.
        uuid: Uuid,
        /// Images from the leaf to the root.
        depth: usize,
        /// The limit.
        limit: usize,
    },
    /// The file system cannot share blocks between files and the caller forbade a copy.
    #[error(
        "disk {uuid} is raw and the file system cannot clone files; a full copy was not allowed"
    )]
    CopyNotAllowed {
        /// The disk.
        uuid: Uuid,
    },
    /// Two disks that must have the same format do not.
    #[error("disks {left} and {right} have different formats")]
    FormatsDiffer {
        /// One disk.
        left: Uuid,
        /// The other.
        right: Uuid,
    },
    /// Our own directory was written by a newer version, or is damaged.
    #[error("{}: {what}", .path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl Error {
    /// An [`Error::Io`] about `path`; for stores of other kinds as well.
    pub fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), action, source }
    }

    pub(crate) fn format(path: &Path) -> impl FnOnce(Fault) -> Self {
        move |fault| Self::Format { path: path.to_owned(), fault }
    }

    /// The operating system's error number, when it was the one that refused.
    pub fn os_error(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The storage is full: no space, quota exceeded, or the format's own 2 TiB limit.
    pub fn is_no_space(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            Self::FileFull { .. } | Self::VolumeFull { .. } => true,
            Self::Io { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded),
            _ => false,
        }
    }

    /// The file or disk is not there.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// What is stored is damaged, as opposed to unreachable or full.
    pub fn is_corrupt(&self) -> bool {
        matches!(
            self,
            Self::Format { .. }
                | Self::Log { .. }
                | Self::NeedsRepair { .. }
                | Self::ParentMismatch { .. }
                | Self::ParentLarger { .. }
                | Self::ChainIncomplete { .. }
                | Self::Cycle { .. }
                | Self::Quarantined { .. }
                | Self::Store { .. }
        )
    }

    /// Someone else is busy with the same thing; try again later.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }

    /// The sentence and its cause in one line.
    pub fn reason(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// What is wrong with the bytes of an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Not a regular file (or block device): a directory, FIFO, socket.
    #[error("is not a regular file")]
    NotAFile,
    /// Too short for a footer.
    #[error("has {0} bytes, too few for a VHD")]
    TooShort(u64),
    /// Neither place holds a footer's cookie.
    #[error("has no VHD footer: the end starts with {end:?}, offset 0 with {start:?}")]
    NoFooter {
        /// The first 8 bytes where the end footer should be.
        end: String,
        /// The first 8 bytes of the file.
        start: String,
    },
    /// The footer's checksum is wrong.
    #[error("footer checksum is {stored:#010x}, computed {computed:#010x}")]
    FooterChecksum {
        /// As written.
        stored: u32,
        /// As it should be.
        computed: u32,
    },
    /// The cookie blktap writes while it resizes an image.
    #[error("a resize of this image by another tool was interrupted (footer cookie v_poison)")]
    Poisoned,
    /// The two footers are both valid and of different images.
    #[error("footer at the end is of {end}, the copy at offset 0 of {copy}")]
    FootersDisagree {
        /// UUID and type at the end.
        end: String,
        /// UUID and type at offset 0.
        copy: String,
    },
    /// Footer version.
    #[error("format version is {0:#010x}, only 0x00010000 is known")]
    FooterVersion(u32),
    /// Disk type.
    #[error("disk type is {0}, known are 2 (fixed), 3 (dynamic), 4 (differencing)")]
    DiskType(u32),
    /// Virtual size of zero.
    #[error("virtual size is 0")]
    SizeZero,
    /// Virtual size above the limit.
    #[error("virtual size is {0} bytes, above the limit of 2040 GiB")]
    SizeTooLarge(u64),
    /// Virtual size is not whole sectors.
    #[error("virtual size is {0} bytes, not a multiple of 512")]
    SizeNotSectors(u64),
    /// A fixed image whose data is cut off.
    #[error("fixed image holds {stored} bytes of its {size}")]
    FixedTooShort {
        /// Bytes before the footer.
        stored: u64,
        /// Virtual size, bytes.
        size: u64,
    },
    /// Where the footer says the header is.
    #[error("dynamic header is at {0}, outside the file or not on a sector boundary")]
    HeaderOffset(u64),
    /// Header cookie.
    #[error("dynamic header cookie is {0:?}, expected \"cxsparse\"")]
    HeaderCookie(String),
    /// Header checksum.
    #[error("dynamic header checksum is {stored:#010x}, computed {computed:#010x}")]
    HeaderChecksum {
        /// As written.
        stored: u32,
        /// As it should be.
        computed: u32,
    },
    /// Header version.
    #[error("dynamic header version is {0:#010x}, only 0x00010000 is known")]
    HeaderVersion(u32),
    /// The header points at a further structure, which the format does not define.
    #[error("dynamic header names a next record at {0:#x}, the format defines none")]
    NextRecord(u64),
    /// Block size.
    #[error("block size is {0} bytes, must be a power of two from 512 to 268435456")]
    BlockSize(u32),
    /// Fewer table entries than blocks.
    #[error("block table has {entries} entries, the disk needs {needed}")]
    TableTooSmall {
        /// Entries.
        entries: u32,
        /// Blocks of the disk.
        needed: u64,
    },
    /// A table larger than we hold in memory.
    #[error("block table of the disk takes {0} bytes, the limit is 67108864")]
    TableTooLarge(u64),
    /// Table offset not on a sector.
    #[error("block table is at {0}, not on a sector boundary")]
    TableUnaligned(u64),
    /// Table outside the file.
    #[error(
        "block table at {offset} with {entries} entries reaches beyond the file of {file} bytes"
    )]
    TableOutside {
        /// Byte offset.
        offset: u64,
        /// Entries.
        entries: u32,
        /// Bytes.
        file: u64,
    },
    /// Two metadata areas overlap.
    #[error("{left} and {right} overlap")]
    MetadataOverlap {
        /// One area.
        left: &'static str,
        /// The other.
        right: &'static str,
    },
    /// A block lies on metadata.
    #[error("block {block} at sector {sector} lies on {area}")]
    BlockOnMetadata {
        /// Index in the block table.
        block: u32,
        /// Sector number.
        sector: u32,
        /// What it lies on.
        area: &'static str,
    },
    /// A block reaches beyond the end.
    #[error("block {block} at sector {sector} reaches beyond the end of the data at byte {end}")]
    BlockOutside {
        /// Index in the block table.
        block: u32,
        /// Sector number.
        sector: u32,
        /// Byte where blocks must end.
        end: u64,
    },
    /// Two blocks share bytes.
    #[error("blocks {first} (sector {first_sector}) and {second} (sector {second_sector}) overlap")]
    BlocksOverlap {
        /// Index in the block table.
        first: u32,
        /// Sector number.
        first_sector: u32,
        /// Index in the block table.
        second: u32,
        /// Sector number.
        second_sector: u32,
    },
    /// A parent locator with an impossible place.
    #[error(
        "parent locator {code:?} at {offset} with {length} bytes is outside the file of {file} bytes or longer than 65536"
    )]
    Locator {
        /// Platform code.
        code: String,
        /// Byte offset.
        offset: u64,
        /// Bytes.
        length: u32,
        /// Bytes in the file.
        file: u64,
    },
    /// A differencing image that names itself.
    #[error("names itself as its parent")]
    OwnParent,
    /// Entries above the disk's size that are not free, found when growing.
    #[error("block table entry {0} beyond the end of the disk is in use")]
    TableTail(u32),
}
