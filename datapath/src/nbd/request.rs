//! What a request asks for, and whether it may.

use super::handshake::Agreed;
use super::protocol::{MAX_PAYLOAD, Request, command, command_flag};
use crate::error::Errno;
use crate::export::Zeroes;

/// A request that can be done, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Bytes; `whole`: in one chunk.
    Read {
        whole: bool,
    },
    /// Bytes follow.
    Write {
        durable: bool,
    },
    /// The client leaves.
    Leave,
    Flush,
    Trim {
        durable: bool,
    },
    Cache,
    Zeroes(Zeroes),
    /// Extents; `one` of each context is enough.
    Status {
        one: bool,
    },
    Refuse(Errno, &'static str),
}

impl Action {
    /// Judges a request by what was agreed on.
    pub(super) fn of(request: &Request, agreed: &Agreed) -> Self {
        Self::judge(request, agreed).unwrap_or_else(|(errno, why)| Self::Refuse(errno, why))
    }

    fn judge(request: &Request, agreed: &Agreed) -> Result<Self, (Errno, &'static str)> {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
        let durable = request.has(FUA);
        let (action, flags) = match request.command {
            command::READ => (Self::Read { whole: request.has(DF) }, FUA | DF),
            command::WRITE => (Self::Write { durable }, FUA),
            command::DISC => return Ok(Self::Leave),
            command::FLUSH => (Self::Flush, FUA),
            command::TRIM => (Self::Trim { durable }, FUA),
            command::CACHE => (Self::Cache, FUA),
            command::WRITE_ZEROES => {
                let keep_space = request.has(NO_HOLE);
                let only_if_fast = request.has(FAST_ZERO);
                (
                    Self::Zeroes(Zeroes { keep_space, only_if_fast, durable }),
                    FUA | NO_HOLE | FAST_ZERO,
                )
            }
            command::BLOCK_STATUS => (Self::Status { one: request.has(REQ_ONE) }, FUA | REQ_ONE),
            _ => return Err((Errno::Invalid, "the command is not known")),
        };
        if request.flags & !flags != 0 {
            return Err((Errno::Invalid, "a flag is not known, or does not fit the command"));
        }
        if action == Self::Flush {
            if request.offset != 0 || request.length != 0 {
                return Err((Errno::Invalid, "a flush has no range"));
            }
            return Ok(action);
        }
        let writes = matches!(action, Self::Write { .. } | Self::Trim { .. } | Self::Zeroes { .. });
        if writes && agreed.read_only {
            return Err((Errno::NotPermitted, "the export is read-only"));
        }
        let length = request.length;
        if length == 0 {
            return Err((Errno::Invalid, "the length is zero"));
        }
        if matches!(action, Self::Read { .. } | Self::Write { .. }) && length > MAX_PAYLOAD {
            return Err((Errno::Invalid, "more than 32 MiB in one request"));
        }
        let end = request.offset.checked_add(u64::from(length));
        if end.is_none_or(|end| end > agreed.size) {
            let fills = matches!(action, Self::Write { .. } | Self::Zeroes { .. });
            let errno = if fills { Errno::NoSpace } else { Errno::Invalid };
            return Err((errno, "the range goes past the end"));
        }
        let least = agreed.least_block;
        if !length.is_multiple_of(least) || !request.offset.is_multiple_of(u64::from(least)) {
            return Err((Errno::Invalid, "the range is not made of whole blocks"));
        }
        match action {
            Self::Read { whole: true } if !agreed.structured => {
                Err((Errno::Invalid, "replies in chunks were not agreed on"))
            }
            Self::Status { .. } if agreed.contexts.is_empty() => {
                Err((Errno::Invalid, "no context was chosen"))
            }
            _ => Ok(action),
        }
    }
}
