//! Errors of the image library in the words of the model.

use std::io;

use plugin_sdk::Error;
use plugin_sdk::model::{Bytes, Kind};

/// Largest VHD in the unit of SMAPI's message.
const MAX_MB: u64 = vhd::MAX_SIZE >> 20;

/// SMAPI's words for a size that a VHD cannot have.
pub(crate) fn size_limits() -> String {
    format!("VDI size must be between 1 MB and {MAX_MB} MB")
}

/// An error of the image library in the words of the model. One that a store got from elsewhere is
/// told as it was.
pub fn from_vhd(error: vhd::Error) -> Error {
    use vhd::Error as Vhd;
    if let Vhd::Io { source, .. } = &error
        && let Some(cause) = source.get_ref().and_then(|cause| cause.downcast_ref::<Error>())
    {
        return cause.clone();
    }
    let reason = error.reason();
    let plain = |kind| Error::new(kind, reason.clone());
    match error {
        Vhd::NotFound { uuid, .. } => {
            Error::not_found(format!("there is no VDI {uuid}")).legacy(144)
        }
        Vhd::Exists { .. } => plain(Kind::Exists).legacy(43),
        Vhd::TooLarge { requested, limit } if limit != vhd::MAX_SIZE => Error::new(
            Kind::Limit,
            format!("a VDI of {} is above the limit of {}", Bytes(requested), Bytes(limit)),
        )
        .legacy(79),
        Vhd::TooLarge { requested, limit } => Error::new(
            Kind::Limit,
            format!(
                "a VDI of {} is above the limit of {} of the VHD format",
                Bytes(requested),
                Bytes(limit)
            ),
        )
        .legacy_detail(79, &size_limits())
        .hint("a VDI of format raw has no such limit"),
        Vhd::Shrink { from, to } => Error::new(
            Kind::Limit,
            format!("the VDI has {} and cannot shrink to {}", Bytes(from), Bytes(to)),
        )
        .legacy_detail(79, "shrinking not allowed"),
        Vhd::ChainTooLong { .. } => plain(Kind::Limit).legacy(109).hint(
            "smctl sr maintain merges what can be merged; vdi copy makes a disk without a chain",
        ),
        Vhd::Quarantined { .. } => plain(Kind::Corrupt)
            .legacy(65)
            .hint("smctl vdi check says what is wrong; nothing touches the disk until then"),
        Vhd::NotALeaf { uuid } => {
            Error::new(Kind::InUse, format!("{uuid} is a base copy that other disks depend on"))
                .legacy(24)
        }
        Vhd::InUse { uuid, holder } => {
            Error::new(Kind::InUse, format!("VDI {uuid} is attached: {holder}")).legacy(24).hint(
                "smctl vdi list --attached shows what is attached on this host; detach it first",
            )
        }
        Vhd::CopyNotAllowed { .. } => plain(Kind::Unsupported).legacy(38),
        Vhd::FormatsDiffer { .. } => plain(Kind::Unsupported).legacy(66),
        Vhd::Busy { .. } => plain(Kind::Busy { retry_after_ms: None })
            .hint("another process works on the same SR; wait for it, or allow more time"),
        Vhd::ShutOut { ref mark } => crate::fence::refusal(mark),
        Vhd::Stopped { .. } => plain(Kind::Cancelled),
        ref other if other.is_no_space() => plain(Kind::NoSpace).legacy(44),
        ref other if other.is_not_found() => plain(Kind::NotFound),
        ref other if other.is_corrupt() => plain(Kind::Corrupt).legacy(65),
        Vhd::Io { ref source, .. } => place(plain(kind_of(source)), source),
        _ => plain(Kind::Internal),
    }
}

/// Whether the file system allows no changes at all.
pub(crate) fn is_read_only(error: &vhd::Error) -> bool {
    error.os_error() == Some(rustix::io::Errno::ROFS.raw_os_error())
}

/// The kind of an error of the system. A file system that gives up waiting is one that does not
/// answer.
fn kind_of(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::StaleNetworkFileHandle => Kind::Unreachable,
        _ => match error.raw_os_error() {
            Some(code) => Error::from(io::Error::from_raw_os_error(code)).kind.clone(),
            None => Error::from(io::Error::from(error.kind())).kind.clone(),
        },
    }
}

/// Says what to do where the device below fails, or where the place itself is gone: what its server knew
/// it by is another thing now, or none.
fn place(error: Error, cause: &io::Error) -> Error {
    if cause.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) {
        return error.legacy(200).hint("the kernel's log of this host says which device failed");
    }
    if cause.kind() != io::ErrorKind::StaleNetworkFileHandle {
        return error;
    }
    error.legacy(47).hint(
        "the server does not know it any more (stale handle): it was removed there, or its file \
         system was exchanged; when it is back, smctl sr detach and sr attach reach it anew",
    )
}

/// An error of a file operation of our own.
#[expect(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
pub fn from_io(cause: io::Error, path: &plugin_sdk::Utf8Path) -> Error {
    let error = Error::new(kind_of(&cause), format!("{path}: {cause}")).context("path", path);
    match error.kind {
        Kind::NoSpace => error.legacy(44),
        Kind::Auth => error.hint("the driver needs to read and write this directory").legacy(461),
        _ => place(error, &cause),
    }
}
