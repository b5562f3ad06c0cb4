//! `smctl vdi mirror ...` and `smctl vdi serve`

use std::net::SocketAddr;

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};
use sm_model::Bytes;

use super::vdi::VdiSelector;

/// What can be done with the mirror of a VDI.
#[derive(Debug, Subcommand)]
pub(crate) enum MirrorCommand {
    /// Begin to copy a VDI that is attached to another place
    ///
    /// The address is that of an NBD export which can be written and is at least as large:
    /// nbd+unix:///NAME?socket=PATH, nbd://HOST:PORT/NAME, or with TLS nbds://HOST:PORT/NAME. What
    /// it holds is overwritten.
    #[command(after_help = "Example:\n  smctl vdi mirror start disk1 nbds://host2:10809/disk1 \
                      --wait \\\n    --certificate c.pem --key k.pem --authority ca.pem")]
    Start {
        #[command(flatten)]
        vdi: VdiSelector,
        /// The address of the target
        uri: String,
        /// Bytes per second of the copy, such as 100MiB
        #[arg(long, value_name = "SIZE")]
        rate: Option<Bytes>,
        /// Stay until it can be switched to; Ctrl-C ends the waiting only
        #[arg(long)]
        wait: bool,
        /// The name in the certificate of the server, if not its host
        #[arg(long, value_name = "NAME")]
        server_name: Option<String>,
        #[command(flatten)]
        files: Files,
    },
    /// Tell how far the mirror of a VDI is, or where the VDI went
    #[command(after_help = "Example: smctl vdi mirror status disk1 --wait")]
    Status {
        #[command(flatten)]
        vdi: VdiSelector,
        /// Stay until it can be switched to; Ctrl-C ends the waiting only
        #[arg(long)]
        wait: bool,
    },
    /// Limit the copy; without a limit, lift it
    #[command(after_help = "Example: smctl vdi mirror rate disk1 50MiB")]
    Rate {
        #[command(flatten)]
        vdi: VdiSelector,
        /// Bytes per second, such as 100MiB
        rate: Option<Bytes>,
    },
    /// Have the target be the disk: this VDI ends
    ///
    /// Its clients are sent away, nothing writes it any more, and it cannot be attached again.
    #[command(after_help = "Example: smctl vdi mirror switch disk1 --verify")]
    Switch {
        #[command(flatten)]
        vdi: VdiSelector,
        /// Compare every byte of both first; requests wait for so long
        #[arg(long)]
        verify: bool,
    },
    /// End the mirror; the VDI goes on, and the target is of no use
    #[command(after_help = "Example: smctl vdi mirror cancel disk1")]
    Cancel(VdiSelector),
    /// Forget that a VDI went elsewhere: what it held then can be attached again
    ///
    /// For whoever knows that the disk there is not used.
    #[command(after_help = "Example: smctl vdi mirror forget disk1")]
    Forget(VdiSelector),
}

/// Files in PEM form, for TLS. They are read by the data path, and their content is never printed.
#[derive(Args, Debug)]
pub(crate) struct Files {
    /// File with our certificate
    #[arg(long, value_name = "FILE", requires_all = ["key", "authority"])]
    pub(crate) certificate: Option<Utf8PathBuf>,
    /// File with its key
    #[arg(long, value_name = "FILE", requires_all = ["certificate", "authority"])]
    pub(crate) key: Option<Utf8PathBuf>,
    /// File with the authority of the other side's certificate
    #[arg(long, value_name = "FILE", requires_all = ["certificate", "key"])]
    pub(crate) authority: Option<Utf8PathBuf>,
}

/// How a VDI is served to other hosts.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["listen", "stop"])))]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) vdi: VdiSelector,
    /// Number of this host and port; port 0 is any that is free
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) files: Files,
    /// Without TLS; on a loopback address only
    #[arg(long, conflicts_with = "certificate")]
    pub(crate) plain: bool,
    /// Serve it to other hosts no more, and send their clients away
    #[arg(long, conflicts_with_all = ["certificate", "plain"])]
    pub(crate) stop: bool,
}
