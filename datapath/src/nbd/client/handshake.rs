//! From a socket to an export.

use std::io;
use std::time::Instant;

use super::super::protocol::{
    ContextRequest, Fields, InfoRequest, MAGIC, MAX_PAYLOAD, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    encode_option, handshake_flag, info, option, option_reply,
};
use super::super::uri::{Address, Uri};
use super::super::wire::{Socket, Wire, receive_all};
use super::{ClientError, Facts, Kind, Options, Result};

/// The longest reply to an option that is read, bytes.
const LONGEST: u32 = 64 * 1024;
/// The most replies to one option.
const MOST: usize = 1024;

/// A server that is being asked.
struct Talk<'a> {
    wire: &'a dyn Wire,
    until: Instant,
}

/// How an option was answered.
struct Replies {
    /// Kinds and data, all but the last.
    items: Vec<(u32, Vec<u8>)>,
    /// Of [`option_reply`]: ACK or an error.
    end: u32,
    /// What the server says to an error.
    text: String,
}

pub(super) fn connect(uri: &Uri, options: &Options) -> Result<(Box<dyn Wire>, Facts)> {
    let until = Instant::now() + options.timeout;
    let lost = |error: &io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Kind::TimedOut,
            _ => Kind::Disconnected,
        };
        ClientError::new(kind, format!("{uri}: {error}"))
    };
    let socket = Socket::connect(&uri.address, options.timeout).map_err(|error| lost(&error))?;
    socket.set_send_timeout(Some(options.timeout)).map_err(|error| lost(&error))?;
    let fixed = Talk { wire: &socket, until }.greeting(uri)?;
    let wire: Box<dyn Wire> = if uri.tls {
        let Some(tls) = &options.tls else {
            return Err(ClientError::new(Kind::Refused, format!("{uri}: no certificate is given")));
        };
        let replies = Talk { wire: &socket, until }.ask(option::STARTTLS, &[])?;
        if replies.end != option_reply::ACK {
            return Err(refused(uri, "TLS", &replies));
        }
        let host = match (&options.tls_name, &uri.address) {
            (Some(name), _) => name.as_str(),
            (None, Address::Tcp(host, _)) => host.as_str(),
            (None, Address::Unix(_)) => "localhost",
        };
        Box::new(tls.connect(socket, host, until).map_err(|error| lost(&error))?)
    } else {
        Box::new(socket)
    };
    let talk = Talk { wire: wire.as_ref(), until };
    let facts = talk.choose(uri, options, fixed)?;
    Ok((wire, facts))
}

pub(super) fn over_wire(
    wire: Box<dyn Wire>,
    name: &str,
    options: &Options,
) -> Result<(Box<dyn Wire>, Facts)> {
    let uri = Uri::unix("", name);
    let talk = Talk { wire: wire.as_ref(), until: Instant::now() + options.timeout };
    let no_zeroes = talk.greeting(&uri)?;
    let facts = talk.choose(&uri, options, no_zeroes)?;
    Ok((wire, facts))
}

fn refused(uri: &Uri, what: &str, replies: &Replies) -> ClientError {
    let reason = match replies.end {
        option_reply::ERR_TLS_REQD => "the server wants TLS",
        option_reply::ERR_UNKNOWN => "the server has no export of that name",
        option_reply::ERR_UNSUP => "the server does not know that",
        _ => "the server refuses",
    };
    let text = if replies.text.is_empty() { String::new() } else { format!(" ({})", replies.text) };
    ClientError::new(Kind::Refused, format!("{uri}: {what}: {reason}{text}"))
}

fn nonsense(what: &str) -> ClientError {
    ClientError::new(Kind::Protocol, format!("the server's handshake is not NBD: {what}"))
}

impl Talk<'_> {
    fn broken(error: &io::Error) -> ClientError {
        let kind = match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Kind::TimedOut,
            _ => Kind::Disconnected,
        };
        ClientError::new(kind, format!("the handshake with the server: {error}"))
    }

    fn receive(&self, into: &mut [u8]) -> Result<()> {
        receive_all(self.wire, into, self.until).map_err(|error| Self::broken(&error))
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        self.wire.send(bytes, &[]).map_err(|error| Self::broken(&error))
    }

    /// The server's first words and our answer. Whether 124 zeros are left out.
    fn greeting(&self, uri: &Uri) -> Result<bool> {
        let mut words = [0; 18];
        self.receive(&mut words)?;
        let mut fields = Fields(&words);
        if fields.u64() != Some(MAGIC) {
            return Err(nonsense("it begins with another number"));
        }
        if fields.u64() != Some(OPTION_MAGIC) {
            let what = format!("{uri}: the server speaks only the oldest form of the protocol");
            return Err(ClientError::new(Kind::Refused, what));
        }
        let flags = fields.u16().unwrap_or(0);
        let known = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        self.send(&u32::from(flags & known).to_be_bytes())?;
        if flags & handshake_flag::FIXED_NEWSTYLE == 0 {
            let what = format!("{uri}: the server does not answer options");
            return Err(ClientError::new(Kind::Refused, what));
        }
        Ok(flags & handshake_flag::NO_ZEROES != 0)
    }

    fn ask(&self, option: u32, data: &[u8]) -> Result<Replies> {
        self.send(&encode_option(option, data))?;
        let mut items = Vec::new();
        while items.len() < MOST {
            let mut head = [0; 20];
            self.receive(&mut head)?;
            let mut fields = Fields(&head);
            let (magic, about) = (fields.u64(), fields.u32());
            let (kind, length) = (fields.u32().unwrap_or(0), fields.u32().unwrap_or(0));
            if magic != Some(OPTION_REPLY_MAGIC) || about != Some(option) || length > LONGEST {
                return Err(nonsense("a reply to an option"));
            }
            let mut data = vec![0; length as usize];
            self.receive(&mut data)?;
            if kind == option_reply::ACK || kind & option_reply::ERROR != 0 {
                let text = String::from_utf8_lossy(&data).into_owned();
                return Ok(Replies { items, end: kind, text });
            }
            items.push((kind, data));
        }
        Err(nonsense("replies without end"))
    }

    fn choose(&self, uri: &Uri, options: &Options, no_zeroes: bool) -> Result<Facts> {
        let mut facts = Facts {
            size: 0,
            flags: 0,
            structured: false,
            least_block: 1,
            preferred_block: 4096,
            largest_block: MAX_PAYLOAD,
            contexts: Vec::new(),
        };
        facts.structured = self.ask(option::STRUCTURED_REPLY, &[])?.end == option_reply::ACK;
        if facts.structured && !options.contexts.is_empty() {
            let (name, queries) = (uri.name.clone(), options.contexts.clone());
            let data = ContextRequest { name, queries }.encode();
            let replies = self.ask(option::SET_META_CONTEXT, &data)?;
            if replies.end == option_reply::ACK {
                facts.contexts = replies.items.iter().filter_map(context).collect();
            }
        }
        let wanted = vec![info::BLOCK_SIZE];
        let data = InfoRequest { name: uri.name.clone(), wanted }.encode();
        let replies = self.ask(option::GO, &data)?;
        match replies.end {
            option_reply::ACK => {
                let mut told = false;
                for (_, data) in replies.items.iter().filter(|item| item.0 == option_reply::INFO) {
                    told |= facts.learn(data).ok_or_else(|| nonsense("a fact of the export"))?;
                }
                if !told {
                    return Err(nonsense("the size is missing"));
                }
            }
            option_reply::ERR_UNSUP => self.old_way(uri, no_zeroes, &mut facts)?,
            _ => return Err(refused(uri, "export", &replies)),
        }
        let (least, largest) = (facts.least_block, facts.largest_block);
        if !least.is_power_of_two() || largest < least {
            return Err(nonsense("the block sizes"));
        }
        Ok(facts)
    }

    fn old_way(&self, uri: &Uri, no_zeroes: bool, facts: &mut Facts) -> Result<()> {
        self.send(&encode_option(option::EXPORT_NAME, uri.name.as_bytes()))?;
        let mut answer = [0; 10];
        self.receive(&mut answer).map_err(|error| match error.kind {
            Kind::Disconnected => {
                let what = format!("{uri}: the server has no export of that name");
                ClientError::new(Kind::Refused, what)
            }
            _ => error,
        })?;
        let mut fields = Fields(&answer);
        facts.size = fields.u64().unwrap_or(0);
        facts.flags = fields.u16().unwrap_or(0);
        if !no_zeroes {
            self.receive(&mut [0; 124])?;
        }
        Ok(())
    }
}

fn context(item: &(u32, Vec<u8>)) -> Option<(u32, String)> {
    let mut fields = Fields(&item.1);
    let id = fields.u32().filter(|_| item.0 == option_reply::META_CONTEXT)?;
    Some((id, String::from_utf8(fields.0.to_vec()).ok()?))
}

impl Facts {
    /// Takes in a fact; whether it was the size. None: it is malformed.
    fn learn(&mut self, data: &[u8]) -> Option<bool> {
        let mut fields = Fields(data);
        match fields.u16()? {
            info::EXPORT => {
                self.size = fields.u64()?;
                self.flags = fields.u16()?;
                Some(true)
            }
            info::BLOCK_SIZE => {
                self.least_block = fields.u32()?;
                self.preferred_block = fields.u32()?;
                self.largest_block = fields.u32()?;
                Some(false)
            }
            _ => Some(false),
        }
    }
}
