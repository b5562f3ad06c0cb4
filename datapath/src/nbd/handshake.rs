//! The server's side of the handshake: from a connection to an export and what was agreed on.
//!
//! Nothing is read beyond an option: what was sent in the clear before TLS begins is never taken
//! for something that was encrypted.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::context::{self, Context};
use super::protocol::{
    ContextRequest, InfoRequest, MAGIC, MAX_NAME, MAX_PAYLOAD, OPTION_MAGIC, OptionHead,
    export_flag, handshake_flag, info, option, option_reply, push_option_reply,
};
use super::wire::{Wire, receive_all};
use crate::export::{Export, Exports};

/// Options that one client may send: a client that lists hundreds of exports and describes each
/// needs as many; a flood ends here.
const OPTIONS: usize = 2048;
/// The longest option that is read, bytes.
const LONGEST: u32 = 64 * 1024;
/// The longest option that is skipped, bytes.
const SKIPPED: u32 = 1 << 20;

/// What client and server agree on before the first request.
pub struct Agreed {
    /// The disk.
    pub export: Arc<dyn Export>,
    /// Its name, as the client has given it.
    pub name: String,
    /// Bytes, as announced.
    pub size: u64,
    /// As announced.
    pub read_only: bool,
    /// Reads are answered in chunks.
    pub structured: bool,
    /// What block status answers for, by the number in the replies.
    pub contexts: Vec<(u32, Context)>,
    /// Offsets and lengths must be multiples of it, bytes.
    pub least_block: u32,
}

/// How a handshake ends.
pub enum Outcome {
    /// Requests follow.
    Use(Agreed),
    /// TLS follows, then options again.
    StartTls,
    /// The client has left, or is sent away.
    Left,
}

/// One client that negotiates.
pub struct Handshake<'a> {
    /// The connection.
    pub wire: &'a dyn Wire,
    /// What there is.
    pub exports: &'a dyn Exports,
    /// TLS can be had, and nothing else is done without it.
    pub tls: bool,
    /// When patience ends.
    pub until: Instant,
}

/// What a client has chosen so far.
#[derive(Default)]
struct Choice {
    structured: bool,
    /// Contexts, and the export they are for.
    contexts: Vec<(u32, Context)>,
    contexts_of: String,
}

impl Handshake<'_> {
    /// The first words of both sides. Whether the client goes without 124 zeros; none: it wants
    /// something that nobody knows, and is sent away.
    pub fn greet(&self) -> io::Result<Option<bool>> {
        let ours = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        let mut words = [0; 18];
        words[0..8].copy_from_slice(&MAGIC.to_be_bytes());
        words[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        words[16..18].copy_from_slice(&ours.to_be_bytes());
        self.wire.send(&words, &[])?;
        let mut answer = [0; 4];
        receive_all(self.wire, &mut answer, self.until)?;
        let flags = u32::from_be_bytes(answer);
        if flags & !u32::from(ours) != 0 {
            return Ok(None);
        }
        Ok(Some(flags & u32::from(handshake_flag::NO_ZEROES) != 0))
    }

    /// Answers options until the client has chosen. `encrypted`: TLS is on.
    pub fn negotiate(&self, no_zeroes: bool, encrypted: bool) -> io::Result<Outcome> {
        let mut choice = Choice::default();
        let mut data = Vec::new();
        let mut replies = Vec::new();
        for _ in 0..OPTIONS {
            let mut head = [0; OptionHead::LENGTH];
            receive_all(self.wire, &mut head, self.until)?;
            let Some(head) = OptionHead::parse(&head) else { return Ok(Outcome::Left) };
            replies.clear();
            if head.length > LONGEST {
                if head.length > SKIPPED || head.option == option::EXPORT_NAME {
                    return Ok(Outcome::Left);
                }
                self.skip(head.length)?;
                push_option_reply(&mut replies, head.option, option_reply::ERR_TOO_BIG, &[]);
                self.wire.send(&replies, &[])?;
                continue;
            }
            data.resize(head.length as usize, 0);
            receive_all(self.wire, &mut data, self.until)?;
            let outcome = if self.tls && !encrypted {
                Self::in_the_clear(head.option, &mut replies)
            } else {
                self.answer(head.option, &data, no_zeroes, &mut choice, &mut replies)
            };
            self.wire.send(&replies, &[])?;
            if let Some(outcome) = outcome {
                return Ok(outcome);
            }
        }
        Ok(Outcome::Left)
    }

    fn skip(&self, length: u32) -> io::Result<()> {
        let mut rest = length as usize;
        let mut sink = [0; 4096];
        while rest > 0 {
            let count = rest.min(sink.len());
            let (part, _) = sink.split_at_mut(count);
            receive_all(self.wire, part, self.until)?;
            rest -= count;
        }
        Ok(())
    }

    /// Options before TLS, where it is required.
    fn in_the_clear(option: u32, replies: &mut Vec<u8>) -> Option<Outcome> {
        match option {
            option::STARTTLS => {
                push_option_reply(replies, option, option_reply::ACK, &[]);
                Some(Outcome::StartTls)
            }
            option::ABORT => {
                push_option_reply(replies, option, option_reply::ACK, &[]);
                Some(Outcome::Left)
            }
            // It has no reply, so there is no way to say why.
            option::EXPORT_NAME => Some(Outcome::Left),
            _ => {
                push_option_reply(replies, option, option_reply::ERR_TLS_REQD, &[]);
                None
            }
        }
    }

    fn answer(
        &self,
        option: u32,
        data: &[u8],
        no_zeroes: bool,
        choice: &mut Choice,
        replies: &mut Vec<u8>,
    ) -> Option<Outcome> {
        let mut reply = |kind, data: &[u8]| push_option_reply(replies, option, kind, data);
        match option {
            option::EXPORT_NAME => {
                let name = std::str::from_utf8(data).ok().filter(|name| name.len() <= MAX_NAME);
                let Some(agreed) = name.and_then(|name| self.agree(name, choice)) else {
                    return Some(Outcome::Left);
                };
                replies.extend_from_slice(&agreed.size.to_be_bytes());
                replies.extend_from_slice(&agreed.flags().to_be_bytes());
                if !no_zeroes {
                    replies.extend_from_slice(&[0; 124]);
                }
                return Some(Outcome::Use(agreed));
            }
            option::ABORT => {
                reply(option_reply::ACK, &[]);
                return Some(Outcome::Left);
            }
            option::LIST if data.is_empty() => {
                for name in self.exports.names().iter().filter(|name| name.len() <= MAX_NAME) {
                    let length = (name.len() as u32).to_be_bytes();
                    let text = self.exports.find(name).and_then(|export| export.description());
                    let text = text.filter(|text| text.len() <= MAX_NAME).unwrap_or_default();
                    let data = [&length[..], name.as_bytes(), text.as_bytes()].concat();
                    reply(option_reply::SERVER, &data);
                }
                reply(option_reply::ACK, &[]);
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                choice.structured = true;
                reply(option_reply::ACK, &[]);
            }
            option::INFO | option::GO => {
                let Some(asked) = InfoRequest::parse(data) else {
                    reply(option_reply::ERR_INVALID, &[]);
                    return None;
                };
                let Some(agreed) = self.agree(&asked.name, choice) else {
                    reply(option_reply::ERR_UNKNOWN, &[]);
                    return None;
                };
                let told = asked.wanted.contains(&info::BLOCK_SIZE);
                if option == option::GO && agreed.least_block > 1 && !told {
                    reply(option_reply::ERR_BLOCK_SIZE_REQD, &[]);
                    return None;
                }
                agreed.describe(&asked.wanted, |fact| reply(option_reply::INFO, fact));
                reply(option_reply::ACK, &[]);
                return (option == option::GO).then_some(Outcome::Use(agreed));
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                let set = option == option::SET_META_CONTEXT;
                if set {
                    choice.contexts.clear();
                }
                let asked = ContextRequest::parse(data).filter(|_| choice.structured);
                let Some(asked) = asked else {
                    reply(option_reply::ERR_INVALID, &[]);
                    return None;
                };
                let Some(export) = self.exports.find(&asked.name) else {
                    reply(option_reply::ERR_UNKNOWN, &[]);
                    return None;
                };
                let found = context::select(&asked.queries, &export.bitmaps(), set);
                for (id, context) in &found {
                    // In a list the number means nothing.
                    let id = if set { *id } else { 0 };
                    let name = context.to_string();
                    reply(
                        option_reply::META_CONTEXT,
                        &[&id.to_be_bytes(), name.as_bytes()].concat(),
                    );
                }
                reply(option_reply::ACK, &[]);
                if set {
                    choice.contexts = found;
                    choice.contexts_of = asked.name;
                }
            }
            option::LIST | option::STRUCTURED_REPLY => reply(option_reply::ERR_INVALID, &[]),
            _ => reply(option_reply::ERR_UNSUP, &[]),
        }
        None
    }

    fn agree(&self, name: &str, choice: &Choice) -> Option<Agreed> {
        let export = self.exports.find(name)?;
        let contexts =
            if choice.contexts_of == name { choice.contexts.clone() } else { Vec::new() };
        Some(Agreed {
            name: name.to_owned(),
            size: export.size(),
            read_only: export.read_only(),
            structured: choice.structured,
            contexts,
            least_block: export.block_sizes().0.max(1),
            export,
        })
    }
}

impl Agreed {
    /// `NBD_FLAG_*` of the export.
    pub fn flags(&self) -> u16 {
        let mut flags = export_flag::HAS_FLAGS
            | export_flag::SEND_FLUSH
            | export_flag::SEND_FUA
            | export_flag::SEND_CACHE
            | export_flag::CAN_MULTI_CONN;
        if self.read_only {
            flags |= export_flag::READ_ONLY;
        } else {
            flags |= export_flag::SEND_TRIM
                | export_flag::SEND_WRITE_ZEROES
                | export_flag::SEND_FAST_ZERO;
        }
        if self.structured {
            flags |= export_flag::SEND_DF;
        }
        flags
    }

    fn describe(&self, wanted: &[u16], mut tell: impl FnMut(&[u8])) {
        let mut fact = |kind: u16, parts: &[&[u8]]| {
            tell(&[&kind.to_be_bytes()[..], &parts.concat()].concat());
        };
        fact(info::EXPORT, &[&self.size.to_be_bytes(), &self.flags().to_be_bytes()]);
        if wanted.contains(&info::NAME) {
            fact(info::NAME, &[self.name.as_bytes()]);
        }
        let text = self.export.description().filter(|text| text.len() <= MAX_NAME);
        if let Some(text) = text.filter(|_| wanted.contains(&info::DESCRIPTION)) {
            fact(info::DESCRIPTION, &[text.as_bytes()]);
        }
        if wanted.contains(&info::BLOCK_SIZE) {
            let (least, preferred) = self.export.block_sizes();
            let [least, preferred, most] =
                [least.max(1), preferred.max(1), MAX_PAYLOAD].map(u32::to_be_bytes);
            fact(info::BLOCK_SIZE, &[&least, &preferred, &most]);
        }
    }
}
