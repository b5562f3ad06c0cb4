//! Encryption of connections between hosts, with certificates on both sides.
//!
//! Why not keys that both sides share (PSK): rustls, which has no unsafe C behind its protocol, does
//! not speak them. A pair of certificates from a private authority serves the same end.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};

use super::wire::{Socket, Wire};

/// Encrypted bytes fetched at once: the largest record and its head.
const RECORD: usize = 16 * 1024 + 256;

/// Files in PEM form: who we are, and by whom the other side must be vouched for.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Our certificate, and those between it and an authority, in that order.
    pub certificates: &'a Path,
    /// The key of our certificate.
    pub key: &'a Path,
    /// The authorities that the other side's certificate must come from.
    pub authorities: &'a Path,
}

/// Why encryption cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// What a server needs to encrypt. Clients must show a certificate of a known authority.
#[derive(Clone)]
pub struct TlsServer(Arc<ServerConfig>);

/// What a client needs to encrypt.
#[derive(Clone)]
pub struct TlsClient(Arc<ClientConfig>);

impl TlsServer {
    /// Reads the files.
    pub fn load(identity: Identity<'_>) -> Result<Self, TlsError> {
        let roots = Arc::new(authorities(identity.authorities)?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| TlsError(format!("the authorities cannot be used: {error}")))?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(identity.certificates)?, key(identity.key)?)
            .map_err(|error| unusable(&error))?;
        Ok(Self(Arc::new(config)))
    }

    pub(super) fn accept(&self, socket: Socket, until: Instant) -> io::Result<Encrypted> {
        let connection = ServerConnection::new(Arc::clone(&self.0)).map_err(io::Error::other)?;
        Encrypted::shake_hands(socket, connection.into(), until)
    }
}

impl TlsClient {
    /// Reads the files.
    pub fn load(identity: Identity<'_>) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?
            .with_root_certificates(authorities(identity.authorities)?)
            .with_client_auth_cert(certificates(identity.certificates)?, key(identity.key)?)
            .map_err(|error| unusable(&error))?;
        Ok(Self(Arc::new(config)))
    }

    pub(super) fn connect(
        &self,
        socket: Socket,
        host: &str,
        until: Instant,
    ) -> io::Result<Encrypted> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connection =
            ClientConnection::new(Arc::clone(&self.0), name).map_err(io::Error::other)?;
        Encrypted::shake_hands(socket, connection.into(), until)
    }
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsServer")
    }
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsClient")
    }
}

fn unusable(error: &rustls::Error) -> TlsError {
    TlsError(format!("the certificate or its key cannot be used: {error}"))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |error: &dyn fmt::Display| TlsError(format!("{}: {error}", path.display()));
    let found = CertificateDer::pem_file_iter(path)
        .map_err(|error| bad(&error))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(&error))?;
    if found.is_empty() { Err(bad(&"no certificate is in it")) } else { Ok(found) }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| TlsError(format!("{}: {error}", path.display())))
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError(format!("{}: {error}", path.display())))?;
    }
    Ok(roots)
}

/// An encrypted connection.
///
/// Locks are taken in the order `sending`, `state`, and `state` is never held during a call that
/// can wait: a thread that sends and one that receives do not hinder each other.
pub(super) struct Encrypted {
    socket: Socket,
    state: Mutex<Connection>,
    /// Encrypted bytes on their way out. Held until they are out: records stay in order.
    sending: Mutex<Vec<u8>>,
    /// Encrypted bytes that were fetched and not yet looked at.
    fetched: Mutex<Fetched>,
}

struct Fetched {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Encrypted {
    fn shake_hands(socket: Socket, connection: Connection, until: Instant) -> io::Result<Self> {
        let encrypted = Self {
            socket,
            state: Mutex::new(connection),
            sending: Mutex::new(Vec::new()),
            fetched: Mutex::new(Fetched { bytes: vec![0; RECORD].into(), start: 0, end: 0 }),
        };
        let result = loop {
            if let Err(error) = encrypted.send_pending() {
                break Err(error);
            }
            if !lock(&encrypted.state).is_handshaking() {
                break Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Err(io::ErrorKind::TimedOut.into());
            }
            encrypted.socket.set_receive_timeout(Some(left))?;
            encrypted.socket.set_send_timeout(Some(left))?;
            match encrypted.take(&mut []) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => break Err(error),
            }
        };
        // The other side is told why, when it can be.
        let _ = encrypted.send_pending();
        result.map(|()| encrypted)
    }

    /// Decrypts what was fetched, or fetches something first; one step. Some(0): the end.
    fn take(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let mut fetched = lock(&self.fetched);
        let Fetched { bytes, start, end } = &mut *fetched;
        if start == end {
            let count = self.socket.receive(bytes)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            (*start, *end) = (0, count);
        }
        let mut state = lock(&self.state);
        let mut rest = bytes.get(*start..*end).unwrap_or_default();
        let before = rest.len();
        state.read_tls(&mut rest)?;
        *start += before - rest.len();
        let processed = state.process_new_packets().map_err(io::Error::other);
        let wants_write = state.wants_write();
        let read = if into.is_empty() { None } else { Some(state.reader().read(into)) };
        drop(state);
        drop(fetched);
        if wants_write {
            self.send_pending()?;
        }
        processed?;
        match read {
            None => Ok(None),
            Some(Ok(count)) => Ok(Some(count)),
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Some(Err(error)) => Err(error),
        }
    }

    fn send_pending(&self) -> io::Result<()> {
        let mut out = lock(&self.sending);
        out.clear();
        {
            let mut state = lock(&self.state);
            while state.wants_write() {
                state.write_tls(&mut *out)?;
            }
        }
        self.socket.send(&out, &[])
    }
}

impl Wire for Encrypted {
    fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        match lock(&self.state).reader().read(into) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
        loop {
            if let Some(count) = self.take(into)? {
                return Ok(count);
            }
        }
    }

    fn send(&self, first: &[u8], second: &[u8]) -> io::Result<()> {
        let mut out = lock(&self.sending);
        for mut part in [first, second] {
            while !part.is_empty() {
                out.clear();
                {
                    let mut state = lock(&self.state);
                    let count = state.writer().write(part)?;
                    part = part.split_at(count).1;
                    while state.wants_write() {
                        state.write_tls(&mut *out)?;
                    }
                }
                self.socket.send(&out, &[])?;
            }
        }
        Ok(())
    }

    fn set_receive_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        self.socket.set_receive_timeout(time)
    }

    fn set_send_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        self.socket.set_send_timeout(time)
    }

    fn close(&self) {
        self.socket.close();
    }
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        // Said so that the other side knows that nothing was cut off; it may be gone.
        lock(&self.state).send_close_notify();
        let _ = self.socket.set_send_timeout(Some(Duration::from_millis(100)));
        let _ = self.send_pending();
    }
}
