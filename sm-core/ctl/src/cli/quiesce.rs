//! `smctl vm-snapshot`, `smctl snapshot-group ...`

use std::time::Duration;

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};

use super::parse_duration;

/// `smctl vm-snapshot`.
#[derive(Debug, Args)]
#[command(
    override_usage = "smctl vm-snapshot --disk <VDI>... --agent <PATH> [OPTIONS]\n       \
                      smctl vm-snapshot --disk <VDI>... --xenstore <DOMID> [OPTIONS]\n       \
                      smctl vm-snapshot --disk <VDI>... --exec <PRE,POST> [OPTIONS]",
    after_help = "Prints the id of the set. All snapshots are kept, or none.\n\n\
                  Example:\n  smctl vm-snapshot --disk system --disk data \\\n    \
                  --agent /run/vm1/qga.sock --name nightly"
)]
pub(crate) struct VmSnapshotArgs {
    /// UUID, its first characters, or name of a disk, or SR/VDI; may be repeated
    #[arg(long = "disk", required = true, value_name = "VDI")]
    pub(crate) disks: Vec<String>,
    /// Bring the guest to rest by its QEMU guest agent, at this socket
    #[arg(long, value_name = "PATH", conflicts_with_all = ["xenstore", "exec"])]
    pub(crate) agent: Option<Utf8PathBuf>,
    /// Of the guest's file systems only this one; may be repeated
    #[arg(long = "mount", value_name = "PATH", requires = "agent")]
    pub(crate) mounts: Vec<String>,
    /// Bring the Windows guest in this domain to rest by its VSS provider
    #[arg(long, value_name = "DOMID", conflicts_with = "exec")]
    pub(crate) xenstore: Option<u32>,
    /// Where the XenStore listens
    #[arg(
        long,
        value_name = "PATH",
        requires = "xenstore",
        default_value = sm_core::quiesce::xenstore::DEFAULT_SOCKET
    )]
    pub(crate) xenstore_socket: Utf8PathBuf,
    /// Bring the guest to rest by a program, and let it go on by another
    ///
    /// Each is a program and its arguments, separated by blanks; no shell reads them. The second
    /// one is run whatever the first one says. SM_QUIESCE, SM_SNAPSHOT_SET and SM_SNAPSHOT_RESULT
    /// tell them what happens.
    #[arg(long, value_name = "PRE,POST")]
    pub(crate) exec: Option<String>,
    /// Take the snapshots also where the guest cannot be brought to rest, or where they are not of
    /// one point in time, and mark them as such
    #[arg(long)]
    pub(crate) allow_crash_consistent: bool,
    /// How long the guest may be at rest; Windows takes no more than 10s
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub(crate) window: Duration,
    /// How long the guest may take to come to rest
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub(crate) freeze_timeout: Duration,
    /// Name of each snapshot; that of its disk if absent
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Description of the snapshots
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) description: String,
    /// Keep this file with the set: the backup document of a requester of your own
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata: Option<Utf8PathBuf>,
}

/// What can be done with sets of snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotGroupCommand {
    /// List the sets in all SRs that are attached on this host
    #[command(after_help = "Example: smctl snapshot-group list")]
    List,
    /// Show one set
    #[command(after_help = "Example: smctl snapshot-group show 5f2c --metadata writers.xml")]
    Show {
        #[command(flatten)]
        set: SetSelector,
        /// Write the document that is kept with it to this new file
        #[arg(long, value_name = "FILE")]
        metadata: Option<Utf8PathBuf>,
    },
    /// Put all disks of a set back to their snapshots
    ///
    /// Nothing is changed unless all snapshots are there and no disk is attached.
    #[command(after_help = "Example: smctl snapshot-group revert 5f2c")]
    Revert(SetSelector),
    /// Destroy all snapshots of a set
    #[command(after_help = "Example: smctl snapshot-group destroy 5f2c")]
    Destroy(SetSelector),
    /// Make the snapshots of a set reachable on this host, whichever host took them
    ///
    /// The SR must be known here (`smctl sr introduce`).
    #[command(after_help = "Example: smctl snapshot-group present 5f2c")]
    Present {
        #[command(flatten)]
        set: SetSelector,
        /// As clones that can be written; else for reading only
        #[arg(long)]
        writable: bool,
        #[command(flatten)]
        datapath: super::vdi::Datapath,
    },
    /// End what `present` began; clones are destroyed with what was written to them
    #[command(after_help = "Example: smctl snapshot-group withdraw 5f2c")]
    Withdraw {
        #[command(flatten)]
        set: SetSelector,
        #[command(flatten)]
        datapath: super::vdi::Datapath,
    },
}

/// Which set.
#[derive(Args, Debug)]
pub(crate) struct SetSelector {
    /// Id of the set or its first characters, or the UUID of one of its snapshots
    pub(crate) set: String,
}
