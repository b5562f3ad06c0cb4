//! The kernel's NBD client.

use std::time::Duration;

use crate::error::Result;
use crate::guest::Guest;

/// Connects `/dev/nbd<number>` to a server on a Unix socket of the same guest, which may just be
/// starting: between the `bind` that makes the socket and the `listen` after it, a connection is
/// refused.
pub fn connect(guest: &Guest, socket: &str, number: u32) -> Result<String> {
    guest.load(&["nbd"])?;
    let device = format!("/dev/nbd{number}");
    guest.wait_for("a server of NBD", Duration::from_secs(40), |guest| {
        let output = guest.run(["nbd-client", "-unix", socket, &device])?;
        Ok(if output.status == 0 { Ok(()) } else { Err(output.errors()) })
    })?;
    Ok(device)
}

/// Disconnects it.
pub fn disconnect(guest: &Guest, device: &str) -> Result<()> {
    guest.check(["nbd-client", "-d", device]).map(drop)
}
