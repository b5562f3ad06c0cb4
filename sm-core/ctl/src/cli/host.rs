//! `smctl host ...`

use clap::Subcommand;

/// What can be done with hosts that share SRs.
#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Shut another host out of the SRs that it shares with this one
    ///
    /// For a host that has lost its power, or hangs: its claims on VDIs end, so that others can attach
    /// them at once, and so does what it was in the middle of. Where the storage can (SCSI-3 persistent
    /// reservations), it refuses from then on what that host still writes. Where it cannot, the host
    /// must be off before, and stay off until its VDIs are detached: two writers destroy a disk.
    /// The host comes back by booting, or by detaching its VDIs and the SR, and `sr attach`.
    #[command(after_help = "Example: smctl host fence xen2 --yes")]
    Fence {
        /// Name of the host, as it stands in the error of an attach
        host: String,
        /// SR to shut it out of: UUID, its first characters, or name; may be repeated. All that are
        /// attached here if absent
        #[arg(long)]
        sr: Vec<String>,
        /// Do it; without this, what would be done is told
        #[arg(long)]
        yes: bool,
    },
}
