//! The disk of this process for other hosts: NBD over TCP, with TLS.
//!
//! Off unless it is asked for. Clients must show a certificate of a known authority; without TLS
//! anybody who reaches the port may write, so that is had on a loopback address only, and only by
//! whoever says so. A process that is started again listens to nobody: whoever has asked for it
//! asks again.
//!
//! Why not another listener of the server on the socket: that one never ends, and this one does,
//! with all who came by it.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::protocol::{Failure, FailureKind};
use super::served::Served;
use crate::export::Exports;
use crate::nbd::tls::{Identity, TlsClient, TlsServer};
use crate::nbd::uri::{Address, Uri};
use crate::nbd::{Limits, Listener, Server};

/// How long clients may take to leave.
const LEAVE: Duration = Duration::from_secs(10);

/// Files in PEM form: who we are, and by whom the other side must be vouched for. Absolute paths;
/// what is in them is read by this process, and never said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Our certificate, and those between it and an authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities that the other side's certificate must come from.
    pub authority: PathBuf,
}

/// What a [`listen`](super::protocol::Command::Listen) says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// Number of a host, and a port; port 0 is any that is free.
    pub address: SocketAddr,
    /// For TLS. Without, the address must be a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
}

/// How other hosts reach the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteStatus {
    /// Where it is listened, with the port that was found.
    pub address: SocketAddr,
    /// What clients are given.
    pub uri: String,
    /// Whether clients must show certificates.
    pub tls: bool,
    /// Connections that came by it.
    #[serde(default)]
    pub connections: u64,
}

impl Credentials {
    fn identity(&self) -> Identity<'_> {
        Identity { certificates: &self.certificate, key: &self.key, authorities: &self.authority }
    }

    /// For a client.
    pub(super) fn client(&self) -> Result<TlsClient, Failure> {
        TlsClient::load(self.identity()).map_err(|error| invalid(error.to_string()))
    }

    fn server(&self) -> Result<TlsServer, Failure> {
        TlsServer::load(self.identity()).map_err(|error| invalid(error.to_string()))
    }
}

fn invalid(text: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Invalid, text)
}

/// The listener of a process, if it has one.
#[derive(Default)]
pub(super) struct Remote(Mutex<Option<Open>>);

struct Open {
    server: Server,
    asked: Listen,
    address: SocketAddr,
}

impl Open {
    fn status(&self, name: &str) -> RemoteStatus {
        let tls = self.asked.credentials.is_some();
        RemoteStatus {
            address: self.address,
            uri: uri(self.address, name, tls).to_string(),
            tls,
            connections: self.server.connections().len() as u64,
        }
    }
}

/// What clients are given. All addresses of a host are its name.
fn uri(address: SocketAddr, name: &str, tls: bool) -> Uri {
    let ip = address.ip();
    let host = if ip.is_unspecified() {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    } else {
        ip.to_string()
    };
    Uri { address: Address::Tcp(host, address.port()), name: name.to_owned(), tls }
}

impl Remote {
    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets clients of `server` come over the network. Asked for again, it says what there is.
    pub(super) fn listen(
        &self,
        asked: &Listen,
        name: &str,
        server: impl FnOnce() -> Server,
    ) -> Result<RemoteStatus, Failure> {
        let mut open = self.open();
        if let Some(open) = open.as_ref() {
            let same = asked.address == open.asked.address || asked.address == open.address;
            if same && asked.credentials == open.asked.credentials {
                return Ok(open.status(name));
            }
            let text = format!("the disk is served at {} already", open.address);
            return Err(Failure::new(FailureKind::InUse, text));
        }
        let Listen { address, credentials } = asked;
        let tls = credentials.as_ref().map(Credentials::server).transpose()?;
        if tls.is_none() && !address.ip().is_loopback() {
            return Err(invalid(format!(
                "{address} is no loopback address: without TLS everybody there could write"
            )));
        }
        let failed = |error: std::io::Error| {
            let kind = match error.kind() {
                std::io::ErrorKind::AddrInUse => FailureKind::InUse,
                _ => FailureKind::Invalid,
            };
            Failure::new(kind, format!("{address}: {error}"))
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let found = listener.local_addr().map_err(failed)?;
        let server = server();
        server.serve(Listener::Tcp(listener, tls)).map_err(failed)?;
        tracing::info!(address = %found, "serves other hosts");
        let new = Open { server, asked: asked.clone(), address: found };
        Ok(open.insert(new).status(name))
    }

    /// Ends it, with the connections that came by it.
    pub(super) fn end(&self) {
        if let Some(open) = self.open().take()
            && !open.server.stop(LEAVE)
        {
            tracing::warn!(address = %open.address, "a client does not leave");
        }
    }

    /// How it is.
    pub(super) fn status(&self, name: &str) -> Option<RemoteStatus> {
        self.open().as_ref().map(|open| open.status(name))
    }

    /// Its server.
    pub(super) fn server(&self) -> Option<Server> {
        self.open().as_ref().map(|open| open.server.clone())
    }

    /// Whether somebody who connects there comes to us.
    pub(super) fn is_at(&self, target: SocketAddr) -> bool {
        self.open().as_ref().is_some_and(|open| leads_to(open.address, target))
    }
}

impl Served {
    /// Serves the disk to other hosts.
    pub(super) fn serve_others(&self, asked: &Listen) -> Result<RemoteStatus, Failure> {
        let gone = || Failure::new(FailureKind::Other, "the process ends");
        let disks = self.me.get().and_then(Weak::upgrade).ok_or_else(gone)?;
        let server = || Server::new(disks as Arc<dyn Exports>, Limits::default());
        self.remote.listen(asked, &self.place.name(), server)
    }
}

/// Whether a connection to `target` ends at somebody of this host who listens at `ours`.
fn leads_to(ours: SocketAddr, target: SocketAddr) -> bool {
    if ours.port() != target.port() {
        return false;
    }
    if !ours.ip().is_unspecified() {
        return ours.ip() == target.ip();
    }
    // The kernel tells from which address it would go there; to one of its own it goes from that.
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let from = std::net::UdpSocket::bind(any)
        .and_then(|socket| socket.connect(target).and_then(|()| socket.local_addr()));
    target.ip().is_loopback() || from.is_ok_and(|from| from.ip() == target.ip())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails so")]

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_target_is_ours_if_it_leads_to_our_listener() {
        assert!(leads_to(at("127.0.0.1:5"), at("127.0.0.1:5")));
        assert!(!leads_to(at("127.0.0.1:5"), at("127.0.0.1:6")));
        assert!(!leads_to(at("127.0.0.1:5"), at("127.0.0.2:5")));
        assert!(leads_to(at("0.0.0.0:5"), at("127.0.0.1:5")));
        assert!(!leads_to(at("0.0.0.0:5"), at("192.0.2.1:5")), "a network of no host");
    }

    #[test]
    fn what_clients_are_given_says_host_port_and_name() {
        assert_eq!(uri(at("127.0.0.1:5"), "d", true).to_string(), "nbds://127.0.0.1:5/d");
        assert_eq!(uri(at("[::1]:5"), "d", false).to_string(), "nbd://[::1]:5/d");
        assert!(!uri(at("0.0.0.0:5"), "d", true).to_string().contains("0.0.0.0"));
    }
}
