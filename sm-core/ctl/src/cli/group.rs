//! `smctl group ...`

use clap::{Args, Subcommand};

/// `smctl group`: the SR is said once for all its commands.
#[derive(Debug, Args)]
pub(crate) struct GroupArgs {
    /// SR of the group: UUID, its first characters, or name; not needed if there is only one
    #[arg(long, global = true, env = "SMCTL_SR", hide_env_values = true)]
    pub(crate) sr: Option<String>,
    #[command(subcommand)]
    pub(crate) command: GroupCommand,
}

/// What can be done with groups.
#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Make a group of VDIs whose snapshots are to be of one point in time
    #[command(after_help = "Example: smctl group create database data logs")]
    Create(Members),
    /// Put VDIs into a group
    #[command(after_help = "Example: smctl group add database archive")]
    Add(Members),
    /// Take VDIs out of a group
    #[command(after_help = "Example: smctl group remove database archive")]
    Remove(Members),
    /// List the groups of an SR
    #[command(after_help = "Example: smctl group list --sr images")]
    List,
    /// Take snapshots of all VDIs of a group, of one point in time: all of them, or none
    #[command(after_help = "Prints the UUIDs, in the order of the group.\n\n\
                      Example: smctl group snapshot database --name nightly")]
    Snapshot {
        /// Name of the group
        group: String,
        /// Name of the snapshots; those of their VDIs if absent
        #[arg(long)]
        name: Option<String>,
        /// Description of the snapshots
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        description: String,
    },
    /// End a group; its VDIs and their snapshots stay
    #[command(after_help = "Example: smctl group destroy database")]
    Destroy {
        /// Name of the group
        group: String,
    },
}

/// A group, and VDIs.
#[derive(Args, Debug)]
pub(crate) struct Members {
    /// Name of the group
    pub(crate) group: String,
    /// UUID, its first characters, or name of each VDI
    #[arg(required = true, value_name = "VDI")]
    pub(crate) vdis: Vec<String>,
}
