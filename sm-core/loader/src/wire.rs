//! Payloads of [`frames`](crate::frame). Whatever is read here comes from the other process and
//! is believed nothing.

use serde::{Deserialize, Serialize};
use sm_abi::CallContext;
use sm_model::host::OpenRequest;

use crate::frame::{FrameError, Kind, encode};

/// A payload that is not what its kind says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame whose payload is not that of {kind:?}: {why}")]
pub struct BadPayload {
    /// The kind of the frame.
    pub kind: Kind,
    /// What is wrong.
    pub why: String,
}

fn bad(kind: Kind, why: impl std::fmt::Display) -> BadPayload {
    BadPayload { kind, why: format!("{why}") }
}

/// First frame of a child, once its driver is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::frame::PROTOCOL`].
    pub protocol: u32,
    /// Name of the driver it has loaded.
    pub driver: String,
}

/// Opens the driver.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Open {
    /// The level above which log events are dropped.
    pub level: u8,
    /// The request.
    pub request: OpenRequest,
}

/// The request of an [`Open`], as the driver gets it.
pub fn open_request(open: &Open) -> Result<Vec<u8>, sm_model::Error> {
    serde_json::to_vec(&open.request).map_err(|error| {
        sm_model::Error::internal("the open request cannot be written as JSON").source(&error)
    })
}

/// A log event of a call; the frame's id is the call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// A level of `sm_abi::LogLevel`.
    pub level: u8,
    /// Module of the driver.
    pub target: String,
    /// The text.
    pub message: String,
    /// A JSON object.
    pub fields: String,
}

/// A measured value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// What was measured.
    pub name: String,
    /// The value.
    pub value: f64,
    /// A JSON object.
    pub labels: String,
}

/// Reads a JSON payload.
pub fn json<'a, T: Deserialize<'a>>(kind: Kind, payload: &'a [u8]) -> Result<T, BadPayload> {
    serde_json::from_slice(payload).map_err(|error| bad(kind, error))
}

/// Writes a frame with a JSON payload. A value that is no JSON (a metric that is not a number)
/// becomes `null`, which the reader refuses.
pub fn json_frame<T: Serialize>(kind: Kind, id: u64, value: &T) -> Result<Vec<u8>, FrameError> {
    let json = serde_json::to_vec(value).unwrap_or_else(|_| b"null".to_vec());
    encode(kind, id, &[&json])
}

/// What stands before the request in a call: the context as eight integers (trace and operation
/// id take two each) and the operation's name.
#[derive(Clone, Debug)]
pub struct CallHead<'a> {
    /// The context; its `call_id` is the frame's id.
    pub context: CallContext,
    /// Name of the operation.
    pub operation: &'a str,
}

/// Integers of a [`CallContext`] beside the call's id.
const CONTEXT_WORDS: usize = 8;

impl<'a> CallHead<'a> {
    /// Writes the call.
    pub fn frame(&self, request: &[u8]) -> Result<Vec<u8>, FrameError> {
        let c = &self.context;
        let words: [u64; CONTEXT_WORDS] = [
            c.trace_id[0],
            c.trace_id[1],
            c.span_id,
            c.budget_ms,
            c.operation_id[0],
            c.operation_id[1],
            c.fence_epoch,
            c.flags,
        ];
        let mut head = [0; CONTEXT_WORDS * 8];
        for (bytes, word) in head.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let length = name_length(self.operation)?;
        encode(Kind::Call, c.call_id, &[&head, &length, self.operation.as_bytes(), request])
    }

    /// Reads a call: its head and its request.
    pub fn parse(id: u64, payload: &'a [u8]) -> Result<(Self, &'a [u8]), BadPayload> {
        let short = || bad(Kind::Call, "too short");
        let mut rest = payload;
        let mut word = || -> Result<u64, BadPayload> {
            let (bytes, after) = rest.split_first_chunk::<8>().ok_or_else(short)?;
            rest = after;
            Ok(u64::from_le_bytes(*bytes))
        };
        let context = CallContext {
            call_id: id,
            trace_id: [word()?, word()?],
            span_id: word()?,
            budget_ms: word()?,
            operation_id: [word()?, word()?],
            fence_epoch: word()?,
            flags: word()?,
        };
        let (operation, request) = name(Kind::Call, rest)?;
        Ok((Self { context, operation }, request))
    }
}

/// Writes a request to a service.
pub fn request_frame(
    id: u64,
    call: u64,
    service: &str,
    request: &[u8],
) -> Result<Vec<u8>, FrameError> {
    let length = name_length(service)?;
    encode(Kind::Request, id, &[&call.to_le_bytes(), &length, service.as_bytes(), request])
}

/// Reads a request to a service: call, service, request.
pub fn parse_request(payload: &[u8]) -> Result<(u64, &str, &[u8]), BadPayload> {
    let (call, rest) =
        payload.split_first_chunk::<8>().ok_or_else(|| bad(Kind::Request, "too short"))?;
    let (service, request) = name(Kind::Request, rest)?;
    Ok((u64::from_le_bytes(*call), service, request))
}

/// Writes the answer to a request.
pub fn request_reply_frame(
    id: u64,
    answer: &Result<Vec<u8>, Vec<u8>>,
) -> Result<Vec<u8>, FrameError> {
    let (failed, json) = match answer {
        Ok(json) => (0, json),
        Err(json) => (1, json),
    };
    encode(Kind::RequestReply, id, &[&[failed], json])
}

/// Reads the answer to a request.
pub fn parse_request_reply(payload: &[u8]) -> Result<Result<Vec<u8>, Vec<u8>>, BadPayload> {
    match payload.split_first() {
        Some((0, json)) => Ok(Ok(json.to_vec())),
        Some((1, json)) => Ok(Err(json.to_vec())),
        _ => Err(bad(Kind::RequestReply, "neither a reply nor an error")),
    }
}

/// Reads how far a call is: permille and stage.
pub fn parse_progress(payload: &[u8]) -> Result<(u32, &str), BadPayload> {
    let (permille, stage) =
        payload.split_first_chunk::<4>().ok_or_else(|| bad(Kind::Progress, "too short"))?;
    let stage = std::str::from_utf8(stage).map_err(|error| bad(Kind::Progress, error))?;
    Ok((u32::from_le_bytes(*permille), stage))
}

/// Reads a health.
pub fn parse_health(payload: &[u8]) -> Result<u32, BadPayload> {
    let bytes = payload.try_into().map_err(|_| bad(Kind::Health, "not four bytes"))?;
    Ok(u32::from_le_bytes(bytes))
}

/// Reads the milliseconds of a close.
pub fn parse_close(payload: &[u8]) -> Result<u64, BadPayload> {
    let bytes = payload.try_into().map_err(|_| bad(Kind::Close, "not eight bytes"))?;
    Ok(u64::from_le_bytes(bytes))
}

fn name_length(name: &str) -> Result<[u8; 2], FrameError> {
    let length = u16::try_from(name.len()).map_err(|_| FrameError::Length(name.len()))?;
    Ok(length.to_le_bytes())
}

fn name(kind: Kind, bytes: &[u8]) -> Result<(&str, &[u8]), BadPayload> {
    let (length, rest) = bytes.split_first_chunk::<2>().ok_or_else(|| bad(kind, "too short"))?;
    let (name, rest) = rest
        .split_at_checked(usize::from(u16::from_le_bytes(*length)))
        .ok_or_else(|| bad(kind, "too short"))?;
    let name = std::str::from_utf8(name).map_err(|error| bad(kind, error))?;
    Ok((name, rest))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::frame::Decoder;

    fn payload(bytes: &[u8]) -> (u64, Vec<u8>) {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        let frame = decoder.next_frame().unwrap().unwrap();
        (frame.id, frame.payload)
    }

    proptest! {
        #[test]
        fn a_call_is_read_as_it_was_written(
            words in any::<[u64; 9]>(), operation in "[a-z_]{0,20}", request in vec(any::<u8>(), 0..99)
        ) {
            let context = CallContext {
                call_id: words[0],
                trace_id: [words[1], words[2]],
                span_id: words[3],
                budget_ms: words[4],
                operation_id: [words[5], words[6]],
                fence_epoch: words[7],
                flags: words[8],
            };
            let head = CallHead { context, operation: &operation };
            let (id, bytes) = payload(&head.frame(&request).unwrap());
            let (read, rest) = CallHead::parse(id, &bytes).unwrap();
            prop_assert_eq!(format!("{:?}", read.context), format!("{context:?}"));
            prop_assert_eq!(read.operation, operation);
            prop_assert_eq!(rest, request);
        }

        #[test]
        fn a_request_is_read_as_it_was_written(
            id in any::<u64>(), call in any::<u64>(), service in "[a-z.]{0,20}",
            request in vec(any::<u8>(), 0..99),
        ) {
            let (read, bytes) = payload(&request_frame(id, call, &service, &request).unwrap());
            prop_assert_eq!(read, id);
            prop_assert_eq!(parse_request(&bytes), Ok((call, service.as_str(), &request[..])));
        }

        #[test]
        fn hostile_payloads_are_refused_not_obeyed(bytes in vec(any::<u8>(), 0..200)) {
            let _ = CallHead::parse(1, &bytes);
            let _ = parse_request(&bytes);
            let _ = parse_request_reply(&bytes);
            let _ = parse_progress(&bytes);
            let _ = parse_health(&bytes);
            let _ = parse_close(&bytes);
            let _ = json::<Open>(Kind::Open, &bytes);
            let _ = json::<Log>(Kind::Log, &bytes);
        }
    }
}
