//! The data path: an iSCSI target (RFC 7143) that serves what the array's objects map, to those whom
//! they let, with the identity that the vendor's units have.
//!
//! What it does not have: digests, error recovery beyond a new login, several connections a session,
//! mutual CHAP, persistent reservations.

mod login;
mod pdu;
mod scsi;
mod session;
mod vpd;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::core::{Array, Export, Vendor};

/// The portal of an array. It ends when this is dropped.
#[derive(Debug)]
pub struct Targets {
    /// Where it listens.
    pub address: SocketAddr,
    _tasks: JoinSet<()>,
}

/// Serves the LUNs of an array.
pub async fn serve(
    listen: SocketAddr,
    array: Array,
    vendor: Arc<dyn Vendor>,
) -> io::Result<Targets> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    array.set_portal(address);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            // Small answers must not wait for others.
            let _ = stream.set_nodelay(true);
            let portal = stream.local_addr().unwrap_or(address);
            let view = Luns { array: array.clone(), vendor: vendor.clone(), seen: None };
            connections.spawn(async move {
                // An initiator that goes away, or does not know the protocol, is no matter.
                let _ = session::run(stream, portal, view).await;
            });
        }
    });
    Ok(Targets { address, _tasks: tasks })
}

/// What the array's objects map, looked up anew after each change.
struct Luns {
    array: Array,
    vendor: Arc<dyn Vendor>,
    seen: Option<(u64, Arc<Vec<Export>>)>,
}

impl Luns {
    fn all(&mut self) -> Arc<Vec<Export>> {
        let now = self.array.changes();
        if let Some((then, exports)) = &self.seen
            && *then == now
        {
            return exports.clone();
        }
        let exports = Arc::new(self.vendor.exports(&self.array.current()));
        self.seen = Some((now, exports.clone()));
        exports
    }

    /// The LUNs of a target that an initiator is let to.
    fn of(&mut self, target: &str, initiator: &str) -> Vec<Export> {
        let all = self.all();
        let own = all.iter().filter(|export| export.target.eq_ignore_ascii_case(target));
        let mut own: Vec<Export> = own.filter(|e| e.who.lets(initiator)).cloned().collect();
        own.sort_by_key(|export| export.lun);
        own
    }
}
