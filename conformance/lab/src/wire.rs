//! What the runner and the agent in a guest say to each other.
//!
//! Over the guest's serial line go frames: length (u32), kind (u8), call (u32), then the data. What
//! may be long, a request, goes through a file in the folder that both see: the terminal of
//! user-mode Linux stops for good once more than 4 KiB wait in it unread. For the same reason each
//! frame to the guest is acknowledged before the next is sent.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Longest piece of input in one frame to a guest; see above.
pub const PIECE: usize = 1024;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the guest: a [`Request`] lies in the file of this path.
    Ask = 1,
    /// To the guest: a piece of the command's standard input; an empty one is its end.
    Input = 2,
    /// To the guest: end the command and all of its process group.
    End = 3,
    /// To the guest: switch off in good order.
    PowerOff = 4,
    /// From the guest: it is up. The data is [`identity`].
    Ready = 10,
    /// From the guest: a piece of standard output.
    Output = 11,
    /// From the guest: a piece of standard error.
    Errors = 12,
    /// From the guest: the exit status, 128 and the signal if there was one.
    Exit = 13,
    /// From the guest: a frame has arrived.
    Taken = 14,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [
            Self::Ask,
            Self::Input,
            Self::End,
            Self::PowerOff,
            Self::Ready,
            Self::Output,
            Self::Errors,
            Self::Exit,
            Self::Taken,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Debug)]
pub struct Frame {
    /// What it says.
    pub kind: Kind,
    /// Which call it belongs to; 0 for none.
    pub call: u32,
    /// Its content.
    pub data: Vec<u8>,
}

/// Writes a frame, in one piece.
pub fn send(stream: &mut impl Write, kind: Kind, call: u32, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(9 + data.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.push(kind as u8);
    bytes.extend_from_slice(&call.to_le_bytes());
    bytes.extend_from_slice(data);
    stream.write_all(&bytes)?;
    stream.flush()
}

/// Reads a frame.
pub fn receive(stream: &mut impl Read) -> io::Result<Frame> {
    let mut head = [0_u8; 9];
    stream.read_exact(&mut head)?;
    let [l0, l1, l2, l3, kind, c0, c1, c2, c3] = head;
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let kind = Kind::of(kind).filter(|_| length <= 1 << 20).ok_or_else(|| {
        io::Error::other(format!("no frame begins with {head:02x?}: the line is out of step"))
    })?;
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data)?;
    Ok(Frame { kind, call: u32::from_le_bytes([c0, c1, c2, c3]), data })
}

/// What a guest is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Run a program.
    Run {
        /// Its name and arguments.
        argv: Vec<String>,
        /// Its environment, beside `PATH`, `HOME` and `LAB_GUEST`.
        env: Vec<(String, String)>,
        /// Its working directory.
        directory: PathBuf,
    },
    /// Small things, one after the other, without a process for each.
    Steps(Vec<Step>),
}

/// A small thing that the agent does itself.
#[derive(Debug, Serialize, Deserialize)]
pub enum Step {
    /// Make a directory, and those above it.
    Directory(PathBuf),
    /// Write a file, from its beginning, in one `write`, as files of the kernel want it.
    Write(PathBuf, String),
    /// Add to the end of a file.
    Append(PathBuf, String),
    /// Make a symbolic link at the second path that says the first.
    Link(PathBuf, PathBuf),
    /// Remove a file or an empty directory. One that is not there is fine.
    Remove(PathBuf),
    /// Load a module of the kernel, and what it needs.
    Module(String),
    /// Mount a file system.
    Mount {
        /// What is mounted.
        source: PathBuf,
        /// On which directory, which is made.
        target: PathBuf,
        /// The type of file system; `bind` shows a directory in a second place.
        kind: String,
        /// Options of the file system.
        options: String,
    },
}

/// What a guest is, in a file that both its supervisor and its init read.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Its host name.
    pub name: String,
    /// What it is started with, from the program of the kernel on. `{0}` is the number of the
    /// first descriptor that comes over the socket, and so on.
    pub command: Vec<String>,
    /// The processor it begins on.
    pub processor: usize,
    /// Its own folder on the machine.
    pub folder: PathBuf,
    /// Size of its memory in MiB.
    pub memory: u64,
    /// What it may write on the machine.
    pub writable: Vec<PathBuf>,
    /// Folders of the machine that it sees as they are, and may write.
    pub shares: Vec<PathBuf>,
    /// A folder with programs that the machine does not have, laid over its root.
    pub tools: Option<PathBuf>,
    /// The folder of the kernel's modules.
    pub modules: PathBuf,
    /// Modules to load at boot.
    pub load: Vec<String>,
    /// Address of each network card.
    pub addresses: Vec<std::net::Ipv4Addr>,
}

/// From which sources a program was built. A runner and an agent of different sources would
/// misunderstand each other.
pub fn identity() -> String {
    let sources = [
        include_str!("wire.rs"),
        include_str!("balance.rs"),
        include_str!("agent/main.rs"),
        include_str!("agent/init.rs"),
        include_str!("agent/serve.rs"),
        include_str!("agent/supervise.rs"),
        include_str!("agent/sweep.rs"),
    ];
    // FNV-1a: it need not withstand anybody.
    let hash =
        sources.iter().flat_map(|text| text.bytes()).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_as_it_was_sent() {
        let mut line = Vec::new();
        send(&mut line, Kind::Errors, 7, b"no").unwrap();
        let frame = receive(&mut line.as_slice()).unwrap();
        assert_eq!((frame.kind, frame.call, frame.data.as_slice()), (Kind::Errors, 7, &b"no"[..]));
    }

    #[test]
    fn noise_on_the_line_is_not_taken_for_a_frame() {
        let error = receive(&mut &b"Kernel panic"[..]).unwrap_err();
        assert!(error.to_string().contains("out of step"), "{error}");
    }
}
