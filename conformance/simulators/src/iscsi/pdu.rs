//! Protocol data units: a header of 48 bytes and a segment of data.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Most bytes of a segment that an initiator may send: what the login says.
pub(super) const SEGMENT: usize = 256 << 10;

/// A unit.
#[derive(Clone, Debug)]
pub(super) struct Pdu {
    pub(super) header: [u8; 48],
    pub(super) data: Vec<u8>,
}

impl Pdu {
    pub(super) fn new(opcode: u8, flags: u8) -> Self {
        let mut header = [0; 48];
        header[0] = opcode;
        header[1] = flags;
        Self { header, data: Vec::new() }
    }

    /// Without the bit that says "at once".
    pub(super) fn opcode(&self) -> u8 {
        self.header[0] & 0x3f
    }

    pub(super) fn is_immediate(&self) -> bool {
        self.header[0] & 0x40 != 0
    }

    pub(super) fn flags(&self) -> u8 {
        self.header[1]
    }

    pub(super) fn word(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.header[at..at + 4]);
        u32::from_be_bytes(bytes)
    }

    pub(super) fn set(&mut self, at: usize, word: u32) {
        self.header[at..at + 4].copy_from_slice(&word.to_be_bytes());
    }

    pub(super) fn copy(&mut self, from: &Self, at: std::ops::Range<usize>) {
        self.header[at.clone()].copy_from_slice(&from.header[at]);
    }

    /// Keys and values of a login or text.
    pub(super) fn text(&self) -> Vec<(String, String)> {
        let pairs = self.data.split(|byte| *byte == 0);
        pairs
            .filter_map(|pair| {
                let text = String::from_utf8_lossy(pair);
                let (key, value) = text.split_once('=')?;
                Some((key.to_owned(), value.to_owned()))
            })
            .collect()
    }

    pub(super) fn set_text(&mut self, pairs: &[(String, String)]) {
        self.data = pairs.iter().flat_map(|(k, v)| format!("{k}={v}\0").into_bytes()).collect();
    }

    pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut header = [0; 48];
        stream.read_exact(&mut header).await?;
        let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        if length > SEGMENT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a segment that is too long"));
        }
        let mut more = vec![0; usize::from(header[4]) * 4];
        stream.read_exact(&mut more).await?;
        let mut data = vec![0; length.next_multiple_of(4)];
        stream.read_exact(&mut data).await?;
        data.truncate(length);
        Ok(Self { header, data })
    }

    pub(super) async fn write(mut self, stream: &mut TcpStream) -> io::Result<()> {
        let length = u32::try_from(self.data.len()).unwrap_or(0).to_be_bytes();
        self.header[5..8].copy_from_slice(&length[1..]);
        let mut bytes = self.header.to_vec();
        bytes.append(&mut self.data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        stream.write_all(&bytes).await
    }
}
