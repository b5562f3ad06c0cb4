//! The kernel's NBD client.

use std::time::Duration;

use crate::error::Result;
use crate::guest::Guest;

/// Connects `/dev/nbd<number>` to a server on a Unix socket of the same guest.
pub fn connect(guest: &Guest, socket: &str, number: u32) -> Result<String> {
    guest.load(&["nbd"])?;
    guest.wait_for("a socket", Duration::from_secs(20), |guest| {
        let there = guest.run(["test", "-S", socket])?.status == 0;
        Ok(if there { Ok(()) } else { Err(format!("no {socket}")) })
    })?;
    let device = format!("/dev/nbd{number}");
    guest.check(["nbd-client", "-unix", socket, &device])?;
    Ok(device)
}

/// Disconnects it.
pub fn disconnect(guest: &Guest, device: &str) -> Result<()> {
    guest.check(["nbd-client", "-d", device]).map(drop)
}
