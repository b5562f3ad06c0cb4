//! What can be typed: the options of every command, and the command for each noun.

use std::time::Duration;

use camino::Utf8PathBuf;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use uuid::Uuid;

pub(crate) mod driver;
pub(crate) mod group;
pub(crate) mod host;
pub(crate) mod job;
pub(crate) mod mirror;
pub(crate) mod quiesce;
pub(crate) mod sr;
pub(crate) mod vdi;
pub(crate) mod vhd;

/// Heading of the options that every command has.
const EVERYWHERE: &str = "Options of every command";

/// The text under `smctl --help`. The numbers are those of `errors::Status`.
const AFTER_HELP: &str = "\
Exit status:
   0  done                          9  config: the device configuration is
   1  internal: a defect of ours       not complete or not right
   2  usage: the command line      10  auth: credentials refused
   3  not_found                    11  unreachable: no answer
   4  exists; a name means several 12  fenced: this host lost its right
   5  in_use                       13  corrupt: the data is damaged
   6  no_space                     14  unsupported
   7  limit: size, count, length   15  cancelled
   8  busy: works, not now         16  deadline_exceeded
                                   17  unknown: it may have been done
 130  stopped by the second Ctrl-C

An SR, VDI or job is named by its UUID, by the first characters of the UUID
(four or more, if no other has them) or by its name. A name that begins with
a dash is written after `--`, or with `=`: --name=-rf.

Start here:
  smctl driver list
  smctl sr create --driver file --name images location=/srv/images
  smctl vdi create --name disk1 --size 10GiB
  smctl vdi list";

/// The storage manager: storage repositories (SR) and virtual disks (VDI).
#[derive(Debug, Parser)]
#[command(
    name = "smctl",
    version,
    max_term_width = 80,
    after_long_help = AFTER_HELP,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Where the catalog and the journal are kept
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "SMCTL_STATE_DIR",
        hide_env_values = true,
        default_value = "/var/lib/sm",
        help_heading = EVERYWHERE
    )]
    pub(crate) state_dir: Utf8PathBuf,

    /// Where drivers are looked for; may be repeated
    ///
    /// Without it: /usr/lib/sm/drivers, and what lies beside this program (../lib/sm/drivers for
    /// a program in a `bin` folder, else its own folder and the folder `drivers` in it). In the
    /// environment several folders are separated by colons.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "SMCTL_DRIVER_DIR",
        hide_env_values = true,
        value_delimiter = ':',
        help_heading = EVERYWHERE
    )]
    pub(crate) driver_dir: Vec<Utf8PathBuf>,

    /// A driver: its name, or a file to use beside those found
    ///
    /// A value that ends in `.so` or holds a slash is a file. A name is needed by `sr probe`,
    /// `sr create` and `sr introduce`; there a file alone is enough.
    #[arg(long, global = true, value_name = "NAME|FILE.so", help_heading = EVERYWHERE)]
    pub(crate) driver: Vec<String>,

    /// Run drivers in a process of their own, or in this one
    ///
    /// A process of its own takes rights and memory from a driver, and a crash of it ends in an
    /// error. For a driver that needs the rights of this user anyway it gains little in a command
    /// that is about to end, and costs 3 ms.
    #[arg(
        long,
        global = true,
        value_name = "WHERE",
        env = "SMCTL_ISOLATION",
        hide_env_values = true,
        default_value = "auto",
        help_heading = EVERYWHERE
    )]
    pub(crate) isolation: Isolation,

    /// Print one JSON document, errors too (on stderr)
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub(crate) json: bool,

    /// How long the operation may take [default: 60s; jobs: no limit]
    ///
    /// A number and ms, s, m or h; without a unit, seconds.
    #[arg(
        long,
        global = true,
        value_name = "TIME",
        value_parser = parse_duration,
        help_heading = EVERYWHERE
    )]
    pub(crate) timeout: Option<Duration>,

    /// Names this wish: a retry with the same id gets the same answer
    ///
    /// Chosen at random if absent. When the outcome of a command is unknown the error names the
    /// id and the command that asks again.
    #[arg(long, global = true, value_name = "UUID", help_heading = EVERYWHERE)]
    pub(crate) operation_id: Option<Uuid>,

    /// Say more on stderr: causes of errors and the log; repeat for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = EVERYWHERE)]
    pub(crate) verbose: u8,

    /// Print a line on stderr for each request to a storage array, without secrets
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub(crate) trace_requests: bool,

    /// Colour the output; NO_COLOR is respected
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        help_heading = EVERYWHERE
    )]
    pub(crate) color: ColorWhen,
}

/// Where a driver runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Isolation {
    /// In this process if the driver needs this user's rights, else in one of its own
    Auto,
    /// In a process of its own: a crash of the driver ends one call
    Child,
    /// In this process
    InProcess,
}

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorWhen {
    /// If the output is a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// A noun, and its verb.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Drivers: which there are and what they can do
    #[command(subcommand, arg_required_else_help = true)]
    Driver(driver::DriverCommand),
    /// Storage repositories
    #[command(subcommand, arg_required_else_help = true)]
    Sr(sr::SrCommand),
    /// Virtual disk images
    #[command(arg_required_else_help = true)]
    Vdi(vdi::VdiArgs),
    /// Consistency groups: VDIs whose snapshots are of one point in time
    #[command(arg_required_else_help = true)]
    Group(group::GroupArgs),
    /// Take snapshots of all disks of a VM, with its guest at rest
    #[command(arg_required_else_help = true)]
    VmSnapshot(quiesce::VmSnapshotArgs),
    /// Sets of snapshots: those that were taken together
    #[command(subcommand, arg_required_else_help = true)]
    SnapshotGroup(quiesce::SnapshotGroupCommand),
    /// Other hosts that share an SR
    #[command(subcommand, arg_required_else_help = true)]
    Host(host::HostCommand),
    /// Imports, exports, copies and maintenance, running and past
    #[command(subcommand, arg_required_else_help = true)]
    Job(job::JobCommand),
    /// VHD files that belong to no SR
    #[command(subcommand, arg_required_else_help = true)]
    Vhd(vhd::VhdCommand),
    /// Print the completions of a shell
    ///
    /// Bash: smctl completions bash > /etc/bash_completion.d/smctl
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, or write one page for each command
    Man {
        /// Folder to write the pages to
        #[arg(long, value_name = "DIR")]
        output: Option<Utf8PathBuf>,
    },
}

/// The definition for reading: the help of a verb shows its own options, and says where those of
/// every command stand. Twelve more options under each verb would hide the two that matter.
pub(crate) fn for_people() -> clap::Command {
    let mut command = Cli::command();
    // Only now do the options of every command reach the verbs.
    command.build();
    let nouns: Vec<String> =
        command.get_subcommands().map(|noun| noun.get_name().to_owned()).collect();
    for noun in nouns {
        command = command.mut_subcommand(noun, without_general_options);
    }
    command
}

fn without_general_options(command: clap::Command) -> clap::Command {
    let general = |arg: &clap::Arg| arg.get_help_heading() == Some(EVERYWHERE);
    let verbs: Vec<String> =
        command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    let mut after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    if !after.is_empty() {
        after.push_str("\n\n");
    }
    after.push_str("Options of every command (--json, --timeout, ...): smctl --help");
    let mut command =
        command.after_help(after).mut_args(|arg| if general(&arg) { arg.hide(true) } else { arg });
    for verb in verbs {
        command = command.mut_subcommand(verb, without_general_options);
    }
    command
}

/// Reads `60s`, `500ms`, `5m`, `2h`, `90`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let fail = |why: &str| format!("{text:?} is not a time: {why}");
    if number.is_empty() {
        return Err(fail("it must start with a whole number, such as 60s"));
    }
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(fail("the unit is none of ms, s, m, h")),
    };
    match number.parse::<u64>().ok().and_then(|n| n.checked_mul(milliseconds)) {
        Some(0) => Err(fail("it must be above zero")),
        // A year is beyond any wish and far below what a clock can add.
        Some(total) if total <= 366 * 24 * 3_600_000 => Ok(Duration::from_millis(total)),
        _ => Err(fail("it is above a year")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
        for_people().debug_assert();
    }

    #[test]
    fn times_are_read_or_refused_with_the_reason() {
        for (text, milliseconds) in
            [("60s", 60_000), ("500ms", 500), ("5m", 300_000), ("2h", 7_200_000), ("90", 90_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for (text, why) in [
            ("", "whole number"),
            ("s", "whole number"),
            ("1d", "the unit"),
            ("0s", "above zero"),
            ("-1s", "whole number"),
            ("99999999999999999999h", "above a year"),
            ("9999999h", "above a year"),
        ] {
            let error = parse_duration(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn the_options_of_every_command_stand_before_or_after_the_verb() {
        for line in [
            "smctl --json --sr x vdi list",
            "smctl --json vdi --sr x list",
            "smctl vdi list --sr x --json",
        ] {
            let parsed = Cli::try_parse_from(line.split(' '));
            // `--sr` belongs to `vdi`, not to everything.
            assert_eq!(parsed.is_ok(), !line.starts_with("smctl --json --sr"), "{line}");
        }
    }
}
