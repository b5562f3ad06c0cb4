//! The frames between a host and a driver's process; bytes in, frames out, no I/O.
//!
//! ```text
//! u32 length of what follows | u8 kind | u64 id | payload        integers are little-endian
//! ```
//!
//! The id is the number of the call or of the request that the frame belongs to, 0 where there is
//! none. Payloads of calls and replies are the very bytes that cross the binary interface.

/// Largest frame, in bytes behind the length. A longer one is a protocol error.
pub const MAX_FRAME: usize = 64 << 20;

/// Bytes of kind and id.
const HEAD: usize = 9;

/// Version of the frames and their payloads. Both sides are installed together; a child of
/// another version is refused.
pub const PROTOCOL: u32 = 1;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $kind:ident = $code:literal,)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[doc = $doc])* $kind = $code,)*
        }

        impl Kind {
            /// All kinds.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$kind),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// Child to host, first: [`crate::wire::Hello`].
    Hello = 1,
    /// Host to child: [`crate::wire::Open`].
    Open = 2,
    /// Child to host: the driver is open. No payload.
    Opened = 3,
    /// Host to child: [`crate::wire::CallHead`] and the request.
    Call = 4,
    /// Child to host: the reply to a call.
    Reply = 5,
    /// Child to host: the error of a call, or of loading and opening (id 0).
    Error = 6,
    /// Host to child: the call should end early. No payload.
    Cancel = 7,
    /// Child to host: [`crate::wire::Log`].
    Log = 8,
    /// Host to child: one byte, the level above which log events are dropped.
    Level = 9,
    /// Child to host: u32 permille and the stage's name.
    Progress = 10,
    /// Child to host: [`crate::wire::Metric`].
    Metric = 11,
    /// Child to host: u64 call, u16 length of the service's name, name, request. The id is the
    /// request's own.
    Request = 12,
    /// Host to child: one byte, 0 for a reply and 1 for an error, and its JSON.
    RequestReply = 13,
    /// Host to child: asks for the health. Child to host: u32.
    Health = 14,
    /// Host to child: u64 milliseconds to end the session in.
    Close = 15,
    /// Child to host: the session is ended, and the process with it. No payload.
    Closed = 16,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// What it belongs to.
    pub id: u64,
    /// Its content.
    pub payload: Vec<u8>,
}

/// Bytes that are no frames. There is no way to find the next frame after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Too long, or too short for kind and id.
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// A kind of no version we know.
    #[error("a frame of kind {0}")]
    Kind(u8),
}

/// Writes one frame whose payload is the concatenation of `parts`.
pub fn encode(kind: Kind, id: u64, parts: &[&[u8]]) -> Result<Vec<u8>, FrameError> {
    let payload: usize = parts.iter().map(|part| part.len()).sum();
    let length = HEAD + payload;
    let Some(prefix) = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME) else {
        return Err(FrameError::Length(length));
    };
    let mut bytes = Vec::with_capacity(4 + length);
    bytes.extend_from_slice(&prefix.to_le_bytes());
    bytes.push(kind as u8);
    bytes.extend_from_slice(&id.to_le_bytes());
    for part in parts {
        bytes.extend_from_slice(part);
    }
    Ok(bytes)
}

/// Finds the frames in a stream of bytes.
///
/// Memory grows with what was received, never with what a length field promises.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Where the next frame begins.
    start: usize,
}

impl Decoder {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start >= self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next complete frame.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = self.bytes.get(self.start..).unwrap_or_default();
        let Some((prefix, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*prefix) as usize;
        if !(HEAD..=MAX_FRAME).contains(&length) {
            return Err(FrameError::Length(length));
        }
        // The kind is looked at as soon as it is there: garbage is found before it is collected.
        let kind = match rest.first() {
            None => return Ok(None),
            Some(code) => Kind::from_code(*code).ok_or(FrameError::Kind(*code))?,
        };
        let Some(body) = rest.get(1..length) else { return Ok(None) };
        let Some((id, payload)) = body.split_first_chunk::<8>() else {
            return Err(FrameError::Length(length));
        };
        let frame = Frame { kind, id: u64::from_le_bytes(*id), payload: payload.to_vec() };
        self.start += 4 + length;
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
            // One large answer must not hold its memory for the life of the session.
            self.bytes.shrink_to(64 << 10);
        }
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn frame() -> impl Strategy<Value = Frame> {
        (proptest::sample::select(Kind::ALL), any::<u64>(), vec(any::<u8>(), 0..300))
            .prop_map(|(kind, id, payload)| Frame { kind, id, payload })
    }

    fn drain(decoder: &mut Decoder) -> Result<Vec<Frame>, FrameError> {
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            frames in vec(frame(), 0..8),
            cut in 1_usize..64,
        ) {
            let mut bytes = Vec::new();
            for frame in &frames {
                bytes.extend(encode(frame.kind, frame.id, &[&frame.payload]).unwrap());
            }
            let mut decoder = Decoder::default();
            let mut read = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                read.extend(drain(&mut decoder).unwrap());
            }
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn any_bytes_end_in_frames_or_an_error(bytes in vec(any::<u8>(), 0..600)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            let _ = drain(&mut decoder);
            prop_assert!(decoder.bytes.capacity() <= 64 << 10);
        }
    }

    #[test]
    fn a_length_that_promises_too_much_is_refused_before_anything_is_stored() {
        for length in [0, 8, MAX_FRAME as u32 + 1, u32::MAX] {
            let mut decoder = Decoder::default();
            decoder.push(&length.to_le_bytes());
            assert_eq!(decoder.next_frame(), Err(FrameError::Length(length as usize)));
        }
    }

    #[test]
    fn the_largest_length_reserves_nothing() {
        let mut decoder = Decoder::default();
        decoder.push(&(MAX_FRAME as u32).to_le_bytes());
        decoder.push(&[Kind::Call as u8]);
        assert_eq!(decoder.next_frame(), Ok(None));
        assert!(decoder.bytes.capacity() < 4096);
    }

    #[test]
    fn an_unknown_kind_is_refused_at_once() {
        let mut decoder = Decoder::default();
        decoder.push(&[200, 0, 0, 0, 99]);
        assert_eq!(decoder.next_frame(), Err(FrameError::Kind(99)));
    }

    #[test]
    fn a_frame_over_the_limit_is_not_written() {
        let payload = vec![0; MAX_FRAME];
        assert_eq!(encode(Kind::Reply, 1, &[&payload]), Err(FrameError::Length(MAX_FRAME + HEAD)));
    }
}
