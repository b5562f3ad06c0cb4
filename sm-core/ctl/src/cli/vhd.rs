//! `smctl vhd ...`

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use sm_model::Bytes;

/// What can be done with VHD files that belong to no SR.
#[derive(Debug, Subcommand)]
pub(crate) enum VhdCommand {
    /// Show what a file is, and what is odd about it
    #[command(after_help = "Example: smctl vhd info disk.vhd --chain")]
    Info {
        /// The VHD file
        file: PathBuf,
        /// Show every image it is based on, too
        #[arg(long)]
        chain: bool,
        #[command(flatten)]
        parents: ParentArgs,
    },
    /// Examine the structure of a file and of all it is based on
    ///
    /// The exit status is 0 if it is sound, 1 if a finding has the severity error, and 18 if the
    /// worst one is a warning.
    #[command(after_help = "Example: smctl vhd check disk.vhd")]
    Check {
        /// The VHD file
        file: PathBuf,
        #[command(flatten)]
        parents: ParentArgs,
    },
    /// Put footers and batmap in order; data is never written
    ///
    /// Refused if somebody has a lock on the file, and if the damage is beyond this.
    #[command(after_help = "Example: smctl vhd repair disk.vhd --dry-run")]
    Repair {
        /// The VHD file
        file: PathBuf,
        /// Only say which bytes would be written
        #[arg(long)]
        dry_run: bool,
    },
    /// Make an empty VHD
    #[command(after_help = "Prints the UUID.\n\n\
                            Example: smctl vhd create disk.vhd --size 10GiB")]
    Create(CreateArgs),
    /// Write the content of a file in another format
    ///
    /// A chain becomes one image. A VHD is only what is said to be one, by --from or by a name in
    /// .vhd or .avhd: a raw disk's content is its guest's, who can make it look like a VHD.
    #[command(after_help = "Example: smctl vhd convert disk.vhd disk.raw --to raw")]
    Convert(ConvertArgs),
    /// List what changed between two images of a chain
    ///
    /// The first image is an ancestor of the second, or the other way round, or both are based on
    /// a third. By default the tables are compared: what was written may hold what it held before.
    #[command(after_help = "Example: smctl vhd diff monday.vhd tuesday.vhd")]
    Diff {
        /// The one VHD file
        #[arg(value_name = "FILE")]
        left: PathBuf,
        /// The other VHD file
        #[arg(value_name = "FILE")]
        right: PathBuf,
        /// Read and compare the data; then the images need not be related
        #[arg(long)]
        content: bool,
        #[command(flatten)]
        parents: ParentArgs,
    },
}

/// Where parents are looked for.
#[derive(Args, Debug)]
pub(crate) struct ParentArgs {
    /// Where parents are looked for by UUID; the file's own directory if absent
    #[arg(long, value_name = "DIR")]
    pub(crate) parents: Option<PathBuf>,
    /// The raw file that an image with the null UUID as parent is based on
    #[arg(long, value_name = "FILE")]
    pub(crate) raw_parent: Option<PathBuf>,
}

/// What `create` takes.
#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    /// The file to make
    pub(crate) file: PathBuf,
    /// Size of the disk, such as 10GiB, rounded up to 2MiB; that of the parent if absent
    #[arg(long, allow_hyphen_values = true, required_unless_present = "parent")]
    pub(crate) size: Option<Bytes>,
    /// All space at once: the disk's bytes and a footer
    #[arg(long, conflicts_with = "parent")]
    pub(crate) fixed: bool,
    /// The image to be based on, in the same directory; it must not be written from then on
    #[arg(long, value_name = "FILE")]
    pub(crate) parent: Option<PathBuf>,
    /// Bytes per block; 2MiB is the only size that is written
    #[arg(long, value_name = "SIZE", default_value = "2MiB")]
    pub(crate) block_size: Bytes,
}

/// What `convert` takes.
#[derive(Args, Debug)]
pub(crate) struct ConvertArgs {
    /// The file to read
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// The file to write
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Format to write
    #[arg(long, value_name = "FORMAT")]
    pub(crate) to: Target,
    /// Format of IN; by its name if absent: .vhd, .avhd, .raw, .img
    #[arg(long, value_name = "FORMAT")]
    pub(crate) from: Option<Source>,
    /// Replace OUT if it exists
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) parents: ParentArgs,
}

/// What can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// The disk's bytes
    Raw,
    /// A VHD with all its space
    Fixed,
    /// A VHD that grows
    #[value(alias = "vhd")]
    Dynamic,
}

/// What can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Source {
    /// The disk's bytes
    Raw,
    /// A VHD of any type
    Vhd,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(words: &[&str]) -> Result<VhdCommand, clap::Error> {
        match Cli::try_parse_from(["smctl", "vhd"].iter().chain(words))?.command {
            Command::Vhd(command) => Ok(command),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_size_is_needed_unless_a_parent_has_one() {
        assert!(parse(&["create", "a"]).is_err());
        assert!(parse(&["create", "a", "--parent", "b"]).is_ok());
        assert!(parse(&["create", "a", "--size", "1G", "--fixed"]).is_ok());
        assert!(parse(&["create", "a", "--parent", "b", "--fixed"]).is_err());
        let error = parse(&["create", "a", "--size", "-1"]).unwrap_err().to_string();
        assert!(error.contains("must not be negative"), "{error}");
    }

    #[test]
    fn vhd_is_another_word_for_dynamic() {
        let Ok(VhdCommand::Convert(args)) = parse(&["convert", "a", "b", "--to", "vhd"]) else {
            panic!()
        };
        assert_eq!(args.to, Target::Dynamic);
    }
}
