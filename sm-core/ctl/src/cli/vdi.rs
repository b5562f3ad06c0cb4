//! `smctl vdi ...`

use camino::Utf8PathBuf;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use sm_core::Checksum;
use sm_model::vdi::VdiType;
use sm_model::{Bytes, ImageFormat, VdiUuid};

use super::mirror::{MirrorCommand, ServeArgs};

/// The data path that `attach` and `detach` mean unless told otherwise.
pub(crate) const DATAPATH: &str = "smctl";

/// `smctl vdi`: the SR is said once for all its commands.
#[derive(Debug, Args)]
pub(crate) struct VdiArgs {
    /// SR of the VDI: UUID, its first characters, or name; not needed if there is only one
    #[arg(long, global = true, env = "SMCTL_SR", hide_env_values = true)]
    pub(crate) sr: Option<String>,
    #[command(subcommand)]
    pub(crate) command: VdiCommand,
}

/// What can be done with VDIs.
#[derive(Debug, Subcommand)]
pub(crate) enum VdiCommand {
    /// Make an empty VDI
    #[command(
        after_help = "Prints the UUID.\n\nExample: smctl vdi create --name disk1 --size 10GiB"
    )]
    Create {
        /// Name of the VDI
        #[arg(long)]
        name: String,
        /// Size the guest sees, such as 10GiB
        #[arg(long, allow_hyphen_values = true)]
        size: Bytes,
        #[command(flatten)]
        new: New,
        /// Format on the backend; the driver's choice if absent
        #[arg(long, value_parser = format_parser())]
        format: Option<ImageFormat>,
    },
    /// List the VDIs of an SR
    #[command(after_help = "Example: smctl vdi list --sr images")]
    List {
        /// Only those that are attached on this host
        #[arg(long)]
        attached: bool,
    },
    /// Show one VDI
    #[command(after_help = "Example: smctl vdi show disk1")]
    Show(VdiSelector),
    /// Adopt an image that already lies on the backend
    #[command(after_help = "Prints the UUID.\n\nExample:\n  smctl vdi introduce \
                      8d0c9f0e-0a3b-4a8e-b1c5-0d9c6b7a5e4f --name disk1")]
    Introduce {
        /// UUID the image is stored under
        uuid: VdiUuid,
        /// Name of the VDI
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
        /// Description of the VDI
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        description: String,
        /// What it is for
        #[arg(long = "type", value_name = "TYPE", default_value = "user", value_parser = type_parser())]
        vdi_type: VdiType,
        /// A key of your own; may be repeated
        #[arg(long = "key", value_name = "KEY=VALUE")]
        keys: Vec<String>,
    },
    /// Take a snapshot; of several VDIs, at one point in time
    #[command(after_help = "Prints the UUIDs, in the order of the VDIs.\n\n\
                            Example: smctl vdi snapshot disk1 --name 'before upgrade'")]
    Snapshot {
        /// UUID, its first characters, or name of each VDI
        #[arg(required = true, value_name = "VDI")]
        vdis: Vec<String>,
        /// Name of the snapshot; that of the VDI if absent
        #[arg(long)]
        name: Option<String>,
        /// Description of the snapshot
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        description: String,
        /// Keep this file with them: they become a set of `smctl snapshot-group`
        #[arg(long, value_name = "FILE")]
        metadata: Option<Utf8PathBuf>,
    },
    /// Make a writable VDI from a VDI or a snapshot, sharing its data
    #[command(after_help = "Prints the UUID.\n\nExample: smctl vdi clone disk1 --name disk2")]
    Clone {
        #[command(flatten)]
        vdi: VdiSelector,
        /// Name of the clone
        #[arg(long)]
        name: String,
        /// Description of the clone
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        description: String,
    },
    /// Put a VDI back to a snapshot of it
    ///
    /// The VDI keeps its UUID, name and keys; the snapshot stays. What was written since is lost.
    #[command(after_help = "Example: smctl vdi revert disk1 'before upgrade'")]
    Revert {
        #[command(flatten)]
        vdi: VdiSelector,
        /// UUID, its first characters, or name of the snapshot
        snapshot: String,
    },
    /// Make a VDI larger
    #[command(after_help = "Example: smctl vdi resize disk1 20GiB")]
    Resize {
        #[command(flatten)]
        vdi: VdiSelector,
        /// The new size, such as 20GiB
        #[arg(allow_hyphen_values = true)]
        size: Bytes,
    },
    /// Change the name of a VDI
    #[command(after_help = "Example: smctl vdi rename disk1 'web server'")]
    Rename {
        #[command(flatten)]
        vdi: VdiSelector,
        /// The new name, kept as it is
        #[arg(allow_hyphen_values = true)]
        name: String,
    },
    /// Change description, type, keys or protection of a VDI
    #[command(
        override_usage = "smctl vdi set [OPTIONS] <VDI>",
        after_help = "At least one change is needed.\n\n\
                      Example: smctl vdi set disk1 --key owner=web --read-only true"
    )]
    Set {
        #[command(flatten)]
        vdi: VdiSelector,
        #[command(flatten)]
        change: Change,
    },
    /// Remove a VDI and its data
    #[command(after_help = "Example: smctl vdi destroy disk1")]
    Destroy(VdiSelector),
    /// Make a VDI reachable on this host and allow I/O; print how to reach it
    ///
    /// A VHD is served as a network block device by a process of its own, which goes on when smctl
    /// ends; a raw disk is its file.
    #[command(after_help = "Example: smctl vdi attach disk1 --read-only")]
    Attach {
        #[command(flatten)]
        vdi: VdiSelector,
        #[command(flatten)]
        how: How,
        #[command(flatten)]
        datapath: Datapath,
    },
    /// End I/O and the reachability
    #[command(after_help = "Example: smctl vdi detach disk1")]
    Detach {
        #[command(flatten)]
        vdi: VdiSelector,
        #[command(flatten)]
        datapath: Datapath,
    },
    /// Limit what a VDI may be asked for in a second; without options, show its limits
    ///
    /// The limits are kept with the VDI. The storage holds them for every host where it can; else the
    /// VDI's data path does wherever it is attached. They replace those before.
    #[command(after_help = "Example: smctl vdi qos disk1 --operations 500 --bytes 50MiB")]
    Qos {
        #[command(flatten)]
        vdi: VdiSelector,
        #[command(flatten)]
        limits: QosArgs,
    },
    /// Limit what an attached VDI may do in a second, until it is detached; without options, lift the
    /// limits
    ///
    /// For limits that stay: `smctl vdi qos`. A raw disk has no process that could limit it.
    #[command(after_help = "Example: smctl vdi limit disk1 --operations 500 --bytes 50MiB")]
    Limit {
        #[command(flatten)]
        vdi: VdiSelector,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Stop the requests of attached VDIs, of several at one point in time, until Ctrl-C
    ///
    /// All that was answered is on the storage meanwhile, for a snapshot that something else takes:
    /// of the file system or the array below. Programs that use the VDIs wait. They go on when this
    /// command ends, however it ends.
    #[command(after_help = "Example: smctl vdi pause data logs")]
    Pause {
        /// UUID, its first characters, or name of each VDI
        #[arg(required = true, value_name = "VDI")]
        vdis: Vec<String>,
    },
    /// Make a VDI with the content of a file or of stdin
    #[command(after_help = "Prints the UUID. This is a job: see `smctl job`.\n\n\
                            Example: smctl vdi import disk.vhd --name disk1")]
    Import {
        /// The file, or - for stdin (raw bytes)
        #[arg(value_name = "FILE|-")]
        file: Utf8PathBuf,
        /// Name of the VDI
        #[arg(long)]
        name: String,
        /// Format of the file; if absent, found out by looking into it
        #[arg(long, value_parser = format_parser())]
        format: Option<ImageFormat>,
        /// Size of the VDI; that of the content if absent
        #[arg(long, allow_hyphen_values = true)]
        size: Option<Bytes>,
        /// The checksum that the content must have, as sha256sum of its raw bytes
        #[arg(long, value_name = "sha256:HEX")]
        checksum: Option<Checksum>,
        /// Read back what was written, and compare
        #[arg(long)]
        verify: bool,
        #[command(flatten)]
        new: New,
    },
    /// Write the content of a VDI to a file
    #[command(after_help = "This is a job: see `smctl job`.\n\n\
                            Example: smctl vdi export disk1 disk1.vhd")]
    Export {
        #[command(flatten)]
        vdi: VdiSelector,
        /// The file to write
        file: Utf8PathBuf,
        /// Format of the file; if absent, raw for a name that ends in .raw or .img, else vhd
        #[arg(long, value_parser = format_parser())]
        format: Option<ImageFormat>,
        /// Replace the file if it exists
        #[arg(long)]
        force: bool,
        /// Print the checksum of the content: sha256sum of its raw bytes, whatever the format
        #[arg(long)]
        checksum: bool,
        /// Read back what was written, and compare
        #[arg(long)]
        verify: bool,
    },
    /// Copy a VDI to an SR, another one or the same
    #[command(after_help = "Prints the UUID. This is a job: see `smctl job`.\n\n\
                            Example: smctl vdi copy disk1 --to backup")]
    Copy {
        #[command(flatten)]
        vdi: VdiSelector,
        /// The SR to copy to; that of the VDI if absent
        #[arg(long, value_name = "SR")]
        to: Option<String>,
        /// Name of the copy; that of the VDI if absent
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        new: New,
        /// Format on the backend; the driver's choice if absent
        #[arg(long, value_parser = format_parser())]
        format: Option<ImageFormat>,
        /// Print the checksum of the content: sha256sum of its raw bytes
        #[arg(long)]
        checksum: bool,
        /// Read back what was written, and compare
        #[arg(long)]
        verify: bool,
    },
    /// Give back the space of a VDI that holds zeros or nothing any more
    ///
    /// The content stays the same. Not while the VDI is attached for writing.
    #[command(after_help = "Example: smctl vdi reclaim disk1 --timeout 10m")]
    Reclaim(VdiSelector),
    /// Move an attached VDI to another place while it is used
    #[command(after_help = "Example: smctl vdi mirror status disk1")]
    Mirror {
        #[command(subcommand)]
        command: MirrorCommand,
    },
    /// Serve an attached VDI to other hosts, over TCP with TLS; print its address
    ///
    /// Clients must show a certificate of the authority. It ends with the last detach; a data path
    /// that was killed is reached at the same address when it is there again.
    #[command(
        override_usage = "smctl vdi serve <VDI> --listen <ADDRESS:PORT> [OPTIONS]\n       \
                          smctl vdi serve <VDI> --stop",
        after_help = "Example:\n  smctl vdi serve disk1 --listen 192.0.2.1:10809 \\\n    \
                      --certificate c.pem --key k.pem --authority ca.pem"
    )]
    Serve(ServeArgs),
    /// Track which blocks of a VDI change, and ask which did
    #[command(after_help = "Example: smctl vdi cbt diff monday tuesday")]
    Cbt {
        #[command(subcommand)]
        command: CbtCommand,
    },
    /// Draw which images are based on which
    #[command(after_help = "Example: smctl vdi tree --sr images")]
    Tree {
        /// Draw with ASCII characters; so it is anyway unless the locale is UTF-8
        #[arg(long)]
        ascii: bool,
    },
    /// Examine the structure of a VDI and of all it is based on
    ///
    /// The exit status is 13 if data is lost or at risk.
    #[command(after_help = "Example: smctl vdi check disk1")]
    Check(VdiSelector),
}

/// What can be done about changed blocks.
#[derive(Debug, Subcommand)]
pub(crate) enum CbtCommand {
    /// Track which blocks change from now on, also while the VDI is attached
    #[command(after_help = "Example: smctl vdi cbt enable disk1")]
    Enable(VdiSelector),
    /// Track changes no longer, and forget which there were since the last snapshot
    #[command(after_help = "Example: smctl vdi cbt disable disk1")]
    Disable(VdiSelector),
    /// Tell which blocks changed from a snapshot to a later one, or to the VDI itself
    ///
    /// A block that differs is always among them. Where it is not known what changed, everything
    /// counts as changed, and why is told.
    #[command(after_help = "Example: smctl vdi cbt diff monday tuesday")]
    Diff {
        /// UUID, its first characters, or name of the snapshot to begin with
        from: String,
        /// UUID, its first characters, or name of the later snapshot, or of the VDI
        to: String,
        /// Print the bitmap as XenServer's API has it: base64, a bit for each 64 KiB, the most
        /// significant bit first
        #[arg(long)]
        bitmap: bool,
    },
}

/// Which VDI.
#[derive(Args, Debug)]
pub(crate) struct VdiSelector {
    /// UUID, its first characters, or name of the VDI
    pub(crate) vdi: String,
}

/// What the commands that make a VDI have in common.
#[derive(Args, Debug)]
pub(crate) struct New {
    /// Description of the VDI
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) description: String,
    /// UUID of the VDI; follows from the operation id if absent
    #[arg(long)]
    pub(crate) uuid: Option<VdiUuid>,
    /// What it is for
    #[arg(long = "type", value_name = "TYPE", default_value = "user", value_parser = type_parser())]
    pub(crate) vdi_type: VdiType,
    /// Several may write to it at once
    #[arg(long)]
    pub(crate) sharable: bool,
    /// A key of your own; may be repeated
    #[arg(long = "key", value_name = "KEY=VALUE")]
    pub(crate) keys: Vec<String>,
}

/// What `set` changes.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub(crate) struct Change {
    /// The new description
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// What it is for
    #[arg(long = "type", value_name = "TYPE", value_parser = type_parser())]
    pub(crate) vdi_type: Option<VdiType>,
    /// Whether it may never be written
    #[arg(long, value_name = "true|false", action = clap::ArgAction::Set)]
    pub(crate) read_only: Option<bool>,
    /// Set a key of your own; may be repeated
    #[arg(long = "key", value_name = "KEY=VALUE")]
    pub(crate) keys: Vec<String>,
    /// Remove a key of your own; may be repeated
    #[arg(long, value_name = "KEY")]
    pub(crate) remove_key: Vec<String>,
}

/// How a VDI is attached.
#[derive(Args, Debug)]
pub(crate) struct How {
    /// For reading only; else for reading and writing
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Do not allow I/O yet
    #[arg(long)]
    pub(crate) no_activate: bool,
    /// Stay until Ctrl-C, and detach it then
    #[arg(long)]
    pub(crate) wait: bool,
    /// Let clients ask what changed since this snapshot, by the bitmap qemu:dirty-bitmap:UUID
    #[arg(long, value_name = "SNAPSHOT", requires = "read_only")]
    pub(crate) changed_since: Option<String>,
}

/// What a VDI may be asked for in a second.
#[derive(Args, Debug)]
pub(crate) struct QosArgs {
    /// Requests per second
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) operations: Option<u64>,
    /// Bytes per second, such as 50MiB
    #[arg(long, value_name = "SIZE")]
    pub(crate) bytes: Option<Bytes>,
    /// How many seconds' worth may come at once after a rest; the storage's choice if absent
    #[arg(long, value_name = "SECONDS")]
    pub(crate) burst_seconds: Option<u64>,
    /// Lift all limits
    #[arg(long, conflicts_with_all = ["operations", "bytes", "burst_seconds"])]
    pub(crate) none: bool,
}

/// What an attached VDI may do in a second.
#[derive(Args, Debug)]
pub(crate) struct LimitArgs {
    /// Requests per second
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) operations: Option<u64>,
    /// Bytes per second, such as 50MiB
    #[arg(long, value_name = "SIZE")]
    pub(crate) bytes: Option<Bytes>,
    /// How many seconds' worth may come at once after a rest
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    pub(crate) burst_seconds: u64,
}

/// Which data path.
#[derive(Args, Debug)]
pub(crate) struct Datapath {
    /// Name of the data path, if several on this host use the VDI
    #[arg(long, value_name = "NAME", default_value = DATAPATH)]
    pub(crate) datapath: String,
}

/// A parser whose values clap can list in help and completions.
fn format_parser() -> impl TypedValueParser<Value = ImageFormat> {
    PossibleValuesParser::new(["raw", "vhd"]).try_map(|text| text.parse())
}

/// The model's types of VDI, by their names in JSON.
fn type_parser() -> impl TypedValueParser<Value = VdiType> {
    PossibleValuesParser::new([
        "user",
        "system",
        "ephemeral",
        "suspend",
        "crashdump",
        "ha_statefile",
        "metadata",
        "redo_log",
        "rrd",
        "pvs_cache",
        "cbt_metadata",
    ])
    .try_map(|text| serde_json::from_value(serde_json::Value::String(text)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::{Cli, Command};

    use super::*;

    fn parse(words: &[&str]) -> Result<VdiCommand, clap::Error> {
        let all = ["smctl", "vdi"].iter().chain(words);
        match Cli::try_parse_from(all)?.command {
            Command::Vdi(args) => Ok(args.command),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_name_may_begin_with_a_dash() {
        for words in [&["rename", "d", "-rf"][..], &["rename", "d", "--", "--json"]] {
            let Ok(VdiCommand::Rename { name, .. }) = parse(words) else { panic!("{words:?}") };
            assert_eq!(name, words[words.len() - 1]);
        }
        let Ok(VdiCommand::Create { name, .. }) = parse(&["create", "--name=-rf", "--size=1"])
        else {
            panic!()
        };
        assert_eq!(name, "-rf");
        let Ok(VdiCommand::Show(vdi)) = parse(&["show", "--", "-rf"]) else { panic!() };
        assert_eq!(vdi.vdi, "-rf");
    }

    #[test]
    fn a_negative_size_reaches_the_reader_of_sizes() {
        for words in [
            &["create", "--name", "a", "--size", "-1"][..],
            &["resize", "a", "-1"],
            &["import", "-", "--name", "a", "--size", "-1"],
        ] {
            let error = parse(words).unwrap_err().to_string();
            assert!(error.contains("\"-1\" is not a size: it must not be negative"), "{error}");
        }
    }

    #[test]
    fn every_type_of_the_list_is_one_of_the_model() {
        for text in ["user", "ha_statefile", "cbt_metadata", "pvs_cache"] {
            assert!(parse(&["create", "--name=a", "--size=1", "--type", text]).is_ok(), "{text}");
        }
        assert!(parse(&["create", "--name=a", "--size=1", "--type", "floppy"]).is_err());
    }

    #[test]
    fn set_and_update_need_something_to_change() {
        assert!(parse(&["set", "a"]).is_err());
        assert!(parse(&["set", "a", "--read-only", "true"]).is_ok());
    }
}
