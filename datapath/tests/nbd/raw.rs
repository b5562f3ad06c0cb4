//! A client that says whatever it is told to.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use datapath::nbd::protocol::{
    ContextRequest, Fields, InfoRequest, OPTION_REPLY_MAGIC, Request, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC, chunk, command, encode_option, option, option_reply,
};

use super::place::PATIENCE;

pub(crate) struct Raw(pub(crate) UnixStream);

/// A reply, or a chunk of one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple { cookie: u64, error: u32 },
    Chunk { cookie: u64, kind: u16, last: bool, body: Vec<u8> },
}

impl Reply {
    /// The number of the error; 0 for none.
    pub(crate) fn error(&self) -> u32 {
        match self {
            Self::Simple { error, .. } => *error,
            Self::Chunk { kind, body, .. } if kind & chunk::ERROR_BIT != 0 => {
                Fields(body).u32().unwrap()
            }
            Self::Chunk { .. } => 0,
        }
    }
}

impl Raw {
    /// Connects; the first words are exchanged.
    pub(crate) fn connect(socket: &Path) -> Self {
        let mut raw = Self::silent(socket);
        raw.take(18);
        raw.give(&3_u32.to_be_bytes());
        raw
    }

    /// Connects and says nothing.
    pub(crate) fn silent(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    /// Connects and chooses an export.
    pub(crate) fn using(socket: &Path, name: &str, structured: bool, contexts: &[&str]) -> Self {
        let mut raw = Self::connect(socket);
        if structured {
            assert_eq!(raw.ask(option::STRUCTURED_REPLY, &[]).0, option_reply::ACK);
        }
        if !contexts.is_empty() {
            let queries = contexts.iter().map(|&query| query.to_owned()).collect();
            let data = ContextRequest { name: name.to_owned(), queries }.encode();
            assert_eq!(raw.ask(option::SET_META_CONTEXT, &data).0, option_reply::ACK);
        }
        assert_eq!(raw.go(name).0, option_reply::ACK);
        raw
    }

    pub(crate) fn go(&mut self, name: &str) -> (u32, Vec<(u32, Vec<u8>)>) {
        let data = InfoRequest { name: name.to_owned(), wanted: vec![] }.encode();
        self.ask(option::GO, &data)
    }

    pub(crate) fn give(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(crate) fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The server has closed the connection, whatever it said before.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = [0; 4096];
        loop {
            match self.0.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Sends an option; the kind of its last reply, and those before.
    pub(crate) fn ask(&mut self, option: u32, data: &[u8]) -> (u32, Vec<(u32, Vec<u8>)>) {
        self.give(&encode_option(option, data));
        self.answers(option)
    }

    pub(crate) fn answers(&mut self, option: u32) -> (u32, Vec<(u32, Vec<u8>)>) {
        let mut items = Vec::new();
        loop {
            let head = self.take(20);
            let mut fields = Fields(&head);
            assert_eq!(fields.u64(), Some(OPTION_REPLY_MAGIC));
            assert_eq!(fields.u32(), Some(option));
            let (kind, length) = (fields.u32().unwrap(), fields.u32().unwrap());
            let data = self.take(length as usize);
            if kind == option_reply::ACK || kind & option_reply::ERROR != 0 {
                return (kind, items);
            }
            items.push((kind, data));
        }
    }

    /// Sends a request; its cookie is the offset.
    pub(crate) fn request(&mut self, command: u16, flags: u16, offset: u64, length: u32) {
        self.give(&Request { flags, command, cookie: offset, offset, length }.encode());
    }

    /// A reply that is not the data of a simple read.
    pub(crate) fn reply(&mut self) -> Reply {
        let start = self.take(4);
        match Fields(&start).u32() {
            Some(SIMPLE_REPLY_MAGIC) => {
                let rest = self.take(12);
                let mut fields = Fields(&rest);
                let error = fields.u32().unwrap();
                Reply::Simple { cookie: fields.u64().unwrap(), error }
            }
            Some(STRUCTURED_REPLY_MAGIC) => {
                let rest = self.take(16);
                let mut fields = Fields(&rest);
                let (flags, kind) = (fields.u16().unwrap(), fields.u16().unwrap());
                let (cookie, length) = (fields.u64().unwrap(), fields.u32().unwrap());
                let body = self.take(length as usize);
                Reply::Chunk { cookie, kind, last: flags & chunk::DONE != 0, body }
            }
            other => panic!("{other:?} begins no reply"),
        }
    }

    /// The number of the error that a request is answered with.
    pub(crate) fn error_of(&mut self, command: u16, flags: u16, offset: u64, length: u32) -> u32 {
        self.request(command, flags, offset, length);
        self.reply().error()
    }

    /// The connection does what it should.
    pub(crate) fn works(&mut self) {
        self.request(command::FLUSH, 0, 0, 0);
        assert_eq!(self.reply(), Reply::Simple { cookie: 0, error: 0 });
    }
}
