//! What carries the protocol: sockets, plain or encrypted, and for tests anything that is like one.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::uri::Address;

/// Wanted room in the kernel for what was sent and not yet fetched, bytes: several of the largest
/// requests that clients send when they copy (256 KiB), so that neither side waits for the other.
const BUFFER: usize = 2 << 20;

/// Bytes of a path that fit into the address of a unix socket (`sun_path`, without its last zero).
const UNIX_PATH: usize = 107;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 256;

/// A stream of bytes in both directions. One thread at a time receives; several may send, each
/// call's bytes stay together only under a lock of the callers.
pub trait Wire: Send + Sync {
    /// Fills the front of `into` with what is there, at least one byte; waits for it. 0 is the
    /// end. [`io::ErrorKind::WouldBlock`]: nothing came in the time of
    /// [`Wire::set_receive_timeout`].
    fn receive(&self, into: &mut [u8]) -> io::Result<usize>;

    /// As [`Wire::receive`], into `first` until it is full, then into `second`.
    fn receive_two(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
        let _ = second;
        self.receive(first)
    }

    /// Sends all of `first` and `second`. [`io::ErrorKind::TimedOut`]: the other side has fetched
    /// nothing for the time of [`Wire::set_send_timeout`].
    fn send(&self, first: &[u8], second: &[u8]) -> io::Result<()>;

    /// Time that a receive waits; none is forever.
    fn set_receive_timeout(&self, time: Option<Duration>) -> io::Result<()>;

    /// Time that a send waits without any progress.
    fn set_send_timeout(&self, time: Option<Duration>) -> io::Result<()>;

    /// Ends both directions; wakes whoever waits.
    fn close(&self);

    /// The socket, where bytes can be taken from it and given to it as they are.
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    /// In the file system.
    Unix(UnixStream),
    /// In the network.
    Tcp(TcpStream),
}

impl Socket {
    /// Connects, in the given time. Names of hosts are resolved by the system, in its own time.
    pub fn connect(address: &Address, time: Duration) -> io::Result<Self> {
        let socket = match address {
            Address::Unix(path) => Self::Unix(connect_unix(path, time)?),
            Address::Tcp(host, port) => Self::Tcp(connect_tcp(host, *port, time)?),
        };
        socket.prepare();
        Ok(socket)
    }

    /// Sets what makes it fast. Whatever is refused is done without.
    pub fn prepare(&self) {
        match self {
            Self::Unix(_) => {
                if sockopt::set_socket_send_buffer_size_force(self, BUFFER).is_err() {
                    let _ = sockopt::set_socket_send_buffer_size(self, BUFFER);
                }
            }
            // The kernel sizes its buffers by itself.
            Self::Tcp(socket) => {
                let _ = socket.set_nodelay(true);
                let _ = sockopt::set_socket_keepalive(self, true);
            }
        }
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(socket) => (&*socket).write_vectored(parts),
            Self::Tcp(socket) => (&*socket).write_vectored(parts),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(socket) => socket.as_fd(),
            Self::Tcp(socket) => socket.as_fd(),
        }
    }
}

impl Wire for Socket {
    fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        retry(|| match self {
            Self::Unix(socket) => (&*socket).read(into),
            Self::Tcp(socket) => (&*socket).read(into),
        })
    }

    fn receive_two(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
        let mut parts = [IoSliceMut::new(first), IoSliceMut::new(second)];
        retry(|| match self {
            Self::Unix(socket) => (&*socket).read_vectored(&mut parts),
            Self::Tcp(socket) => (&*socket).read_vectored(&mut parts),
        })
    }

    fn send(&self, first: &[u8], second: &[u8]) -> io::Result<()> {
        let (mut first, mut second) = (first, second);
        while !first.is_empty() || !second.is_empty() {
            let written = retry(|| self.write(&[IoSlice::new(first), IoSlice::new(second)]));
            let written = written.map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
                _ => error,
            })?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let of_first = written.min(first.len());
            first = first.split_at(of_first).1;
            second = second.split_at((written - of_first).min(second.len())).1;
        }
        Ok(())
    }

    fn set_receive_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(self, Timeout::Recv, time.map(at_least))?)
    }

    fn set_send_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(self, Timeout::Send, time.map(at_least))?)
    }

    fn close(&self) {
        let _ = rustix::net::shutdown(self, rustix::net::Shutdown::Both);
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

/// Receives until `into` is full, before a point in time.
pub fn receive_all(wire: &dyn Wire, into: &mut [u8], until: Instant) -> io::Result<()> {
    let mut rest = into;
    while !rest.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        wire.set_receive_timeout(Some(left))?;
        match wire.receive(rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => rest = rest.split_at_mut(count).1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Listens on a new socket in the file system, whatever the length of its path. Something that is
/// there already is an error of kind [`io::ErrorKind::AddrInUse`].
pub fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    let socket = unix_socket()?;
    with_short_path(path, |address| Ok(rustix::net::bind(&socket, address)?))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Listens on the first of a name's addresses that can be had.
pub fn listen_tcp(host: &str, port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((host, port))
}

fn unix_socket() -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    Ok(rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?)
}

fn connect_unix(path: &Path, time: Duration) -> io::Result<UnixStream> {
    let socket = unix_socket()?;
    // A listener with a full backlog is waited for, by this time.
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(at_least(time)))?;
    with_short_path(path, |address| match rustix::net::connect(&socket, address) {
        Err(rustix::io::Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
        other => Ok(other?),
    })?;
    Ok(UnixStream::from(socket))
}

/// A path that is too long for a socket's address is reached through the descriptor of its folder.
fn with_short_path(
    path: &Path,
    then: impl FnOnce(&SocketAddrUnix) -> io::Result<()>,
) -> io::Result<()> {
    if path.as_os_str().len() <= UNIX_PATH {
        return then(&SocketAddrUnix::new(path)?);
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&folder);
    let short = Path::new("/proc/self/fd").join(number.to_string()).join(name);
    then(&SocketAddrUnix::new(&short)?)
}

fn connect_tcp(host: &str, port: u16, time: Duration) -> io::Result<TcpStream> {
    let until = Instant::now() + time;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in (host, port).to_socket_addrs()? {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// No time at all would mean forever.
fn at_least(time: Duration) -> Duration {
    time.max(Duration::from_millis(1))
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
