//! Numbers and layouts of the NBD protocol, without any input or output.
//!
//! Source: the protocol description of the NBD project (`doc/proto.md`). All integers are
//! big-endian. What is not here (extended headers, resizing, payloads of block status requests) is
//! not spoken.

/// First word of a server, `NBDMAGIC`.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of a server with options, and first word of each option, `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Bytes of a request without its payload.
pub const REQUEST_LENGTH: usize = 28;
/// Bytes of a simple reply without its payload.
pub const SIMPLE_REPLY_LENGTH: usize = 16;
/// Bytes of the head of a chunk.
pub const CHUNK_LENGTH: usize = 20;

/// The largest read or write that is served, bytes: what clients take for granted when they have
/// not asked for block sizes.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// The longest name of an export, and the longest query for a context, bytes.
pub const MAX_NAME: usize = 4096;

/// Handshake flags of the server; the client's answer uses the same bits.
pub mod handshake_flag {
    /// Errors of options are answered, not punished.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// The 124 zeros after `NBD_OPT_EXPORT_NAME` are left out.
    pub const NO_ZEROES: u16 = 2;
}

/// `NBD_FLAG_*`: what an export can do.
pub mod export_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1;
    /// Writing is refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `NBD_CMD_FLUSH`.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// `NBD_CMD_FLAG_FUA`.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `NBD_CMD_TRIM`.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `NBD_CMD_WRITE_ZEROES`.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// `NBD_CMD_FLAG_DF`.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers all, and all see the same.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `NBD_CMD_CACHE`.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// `NBD_CMD_FLAG_FAST_ZERO`.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// `NBD_OPT_*`: what a client asks before it uses an export.
pub mod option {
    /// Use an export; the old way.
    pub const EXPORT_NAME: u32 = 1;
    /// Leave.
    pub const ABORT: u32 = 2;
    /// Names of all exports.
    pub const LIST: u32 = 3;
    /// Encrypt what follows.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Use an export.
    pub const GO: u32 = 7;
    /// Answer reads in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// What contexts there are.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Contexts that block status is to answer for.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// `NBD_REP_*`: answers to options.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// A name of an export.
    pub const SERVER: u32 = 2;
    /// A fact of an export.
    pub const INFO: u32 = 3;
    /// A context.
    pub const META_CONTEXT: u32 = 4;
    /// Set in every error.
    pub const ERROR: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// The option is malformed, or comes at the wrong time.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// Encrypt first.
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    /// No export has that name.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// Ask for the block sizes first.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR | 8;
    /// The option is too long.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// `NBD_INFO_*`: kinds of facts.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// The name the server uses.
    pub const NAME: u16 = 1;
    /// Text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Least, preferred and largest block.
    pub const BLOCK_SIZE: u16 = 3;
}

/// `NBD_CMD_*`: requests.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the payload follows.
    pub const WRITE: u16 = 1;
    /// Leave; there is no reply.
    pub const DISC: u16 = 2;
    /// Make durable.
    pub const FLUSH: u16 = 3;
    /// Give space back.
    pub const TRIM: u16 = 4;
    /// Will be read soon.
    pub const CACHE: u16 = 5;
    /// Write zeros.
    pub const WRITE_ZEROES: u16 = 6;
    /// What is where.
    pub const BLOCK_STATUS: u16 = 7;
}

/// `NBD_CMD_FLAG_*`.
pub mod command_flag {
    /// Durable before it is answered.
    pub const FUA: u16 = 1;
    /// Zeros that keep their space.
    pub const NO_HOLE: u16 = 1 << 1;
    /// A read is answered in one piece.
    pub const DF: u16 = 1 << 2;
    /// One extent is enough.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zeros only when that is faster than writing them.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Chunks of structured replies.
pub mod chunk {
    /// In the flags: the last one of its reply.
    pub const DONE: u16 = 1;
    /// Nothing.
    pub const NONE: u16 = 0;
    /// Data at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeros at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of a context.
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in the types of errors.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// The request has failed.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// The request has failed at an offset.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// Bits of `base:allocation`.
pub mod state {
    /// Takes no space.
    pub const HOLE: u32 = 1;
    /// Reads as zeros.
    pub const ZERO: u32 = 2;
}

/// The context that tells holes and zeros.
pub const CONTEXT_ALLOCATION: &str = "base:allocation";
/// The contexts that tell changes begin so; the rest is the name of a bitmap.
pub const CONTEXT_BITMAP: &str = "qemu:dirty-bitmap:";
/// Bit of those contexts: it has changed.
pub const STATE_DIRTY: u32 = 1;

/// A request without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// `NBD_CMD_FLAG_*`.
    pub flags: u16,
    /// `NBD_CMD_*`.
    pub command: u16,
    /// The client's name for the request; the reply bears it.
    pub cookie: u64,
    /// Bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl Request {
    /// Reads a request. None: it does not begin as one.
    pub fn parse(bytes: &[u8; REQUEST_LENGTH]) -> Option<Self> {
        let mut from = Fields(bytes);
        if from.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: from.u16()?,
            command: from.u16()?,
            cookie: from.u64()?,
            offset: from.u64()?,
            length: from.u32()?,
        })
    }

    /// The bytes of a request.
    pub fn encode(&self) -> [u8; REQUEST_LENGTH] {
        let mut bytes = [0; REQUEST_LENGTH];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Whether the flag is set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A simple reply without its payload; `error` 0 is success.
pub fn simple_reply(cookie: u64, error: u32) -> [u8; SIMPLE_REPLY_LENGTH] {
    let mut bytes = [0; SIMPLE_REPLY_LENGTH];
    bytes[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The head of a chunk of a structured reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// [`chunk::DONE`] or 0.
    pub flags: u16,
    /// One of [`chunk`].
    pub kind: u16,
    /// Of the request.
    pub cookie: u64,
    /// Bytes that follow.
    pub length: u32,
}

impl Chunk {
    /// The bytes of the head.
    pub fn encode(&self) -> [u8; CHUNK_LENGTH] {
        let mut bytes = [0; CHUNK_LENGTH];
        bytes[0..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// An option without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHead {
    /// One of [`option`], or one that is not known here.
    pub option: u32,
    /// Bytes that follow.
    pub length: u32,
}

impl OptionHead {
    /// Bytes of it.
    pub const LENGTH: usize = 16;

    /// Reads the head of an option. None: it does not begin as one.
    pub fn parse(bytes: &[u8; Self::LENGTH]) -> Option<Self> {
        let mut from = Fields(bytes);
        if from.u64()? != OPTION_MAGIC {
            return None;
        }
        Some(Self { option: from.u32()?, length: from.u32()? })
    }
}

/// An option with its data.
pub fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(OptionHead::LENGTH + data.len());
    bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// Appends a reply to an option.
pub fn push_option_reply(into: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    into.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    into.extend_from_slice(&option.to_be_bytes());
    into.extend_from_slice(&kind.to_be_bytes());
    into.extend_from_slice(&(data.len() as u32).to_be_bytes());
    into.extend_from_slice(data);
}

/// What `NBD_OPT_INFO` and `NBD_OPT_GO` ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoRequest {
    /// The export.
    pub name: String,
    /// Facts that are wanted, of [`info`].
    pub wanted: Vec<u16>,
}

impl InfoRequest {
    /// Reads the data of the option. None: it is malformed.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut from = Fields(bytes);
        let name = from.text()?;
        let count = from.u16()?;
        let wanted = (0..count).map(|_| from.u16()).collect::<Option<Vec<_>>>()?;
        from.is_empty().then_some(Self { name, wanted })
    }

    /// The data of the option.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_text(&mut bytes, &self.name);
        bytes.extend_from_slice(&(self.wanted.len() as u16).to_be_bytes());
        for kind in &self.wanted {
            bytes.extend_from_slice(&kind.to_be_bytes());
        }
        bytes
    }
}

/// What the options about contexts ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextRequest {
    /// The export.
    pub name: String,
    /// Names of contexts, or of groups of them.
    pub queries: Vec<String>,
}

impl ContextRequest {
    /// Reads the data of the option. None: it is malformed.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut from = Fields(bytes);
        let name = from.text()?;
        let count = from.u32()?;
        // Each query takes four bytes at least: what is claimed beyond that is not allocated.
        if count as usize > bytes.len() / 4 {
            return None;
        }
        let queries = (0..count).map(|_| from.text()).collect::<Option<Vec<_>>>()?;
        from.is_empty().then_some(Self { name, queries })
    }

    /// The data of the option.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_text(&mut bytes, &self.name);
        bytes.extend_from_slice(&(self.queries.len() as u32).to_be_bytes());
        for query in &self.queries {
            push_text(&mut bytes, query);
        }
        bytes
    }
}

/// Takes integers from the front of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    /// The next `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    /// A length and as many bytes of UTF-8, no more than [`MAX_NAME`].
    pub fn text(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        if length > MAX_NAME {
            return None;
        }
        self.bytes(length).and_then(|bytes| std::str::from_utf8(bytes).ok()).map(str::to_owned)
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn push_text(into: &mut Vec<u8>, text: &str) {
    into.extend_from_slice(&(text.len() as u32).to_be_bytes());
    into.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::{ContextRequest, Fields, InfoRequest, MAX_NAME, REQUEST_LENGTH, Request};

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let request =
            Request { flags: 0x1f, command: 7, cookie: 1 << 63, offset: u64::MAX, length: 513 };
        assert_eq!(Request::parse(&request.encode()), Some(request));
        for byte in 0..4 {
            let mut bytes = request.encode();
            bytes[byte] ^= 1;
            assert_eq!(Request::parse(&bytes), None, "byte {byte} of the magic was changed");
        }
        assert_eq!(Request::parse(&[0; REQUEST_LENGTH]), None);
    }

    #[test]
    fn options_with_too_little_or_too_much_are_refused() {
        let go = InfoRequest { name: "disk".to_owned(), wanted: vec![0, 3] };
        let bytes = go.encode();
        assert_eq!(InfoRequest::parse(&bytes), Some(go));
        for length in 0..bytes.len() {
            assert_eq!(InfoRequest::parse(&bytes[..length]), None, "of {length} bytes");
        }
        assert_eq!(InfoRequest::parse(&[bytes.as_slice(), &[0]].concat()), None);

        let set = ContextRequest { name: String::new(), queries: vec!["base:".to_owned()] };
        let bytes = set.encode();
        assert_eq!(ContextRequest::parse(&bytes), Some(set));
        for length in 0..bytes.len() {
            assert_eq!(ContextRequest::parse(&bytes[..length]), None, "of {length} bytes");
        }
    }

    #[test]
    fn a_claimed_count_of_queries_is_not_believed() {
        let bytes = [&[0; 4][..], &u32::MAX.to_be_bytes(), &[0; 64]].concat();
        assert_eq!(ContextRequest::parse(&bytes), None);
    }

    #[test]
    fn names_are_bounded_utf8() {
        let text = |length: usize, byte: u8| {
            [&(length as u32).to_be_bytes()[..], &vec![byte; length]].concat()
        };
        assert_eq!(Fields(&text(MAX_NAME, b'a')).text().map(|name| name.len()), Some(MAX_NAME));
        assert_eq!(Fields(&text(MAX_NAME + 1, b'a')).text(), None);
        assert_eq!(Fields(&text(2, 0xff)).text(), None);
    }
}
