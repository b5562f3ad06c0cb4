//! `smctl sr ...`

use std::time::Duration;

use clap::{Args, Subcommand};
use sm_model::{Bytes, SrUuid};

/// What all that take device-config keys say about them.
const KEYS: &str = "\
A secret need not stand on the command line, where others can read it:
  password=@FILE  takes it from the file, without the last line feed
  password=-      asks for it at the terminal, or reads a line of stdin
`device-config:KEY=VALUE`, as in xe, is accepted too. The keys of a driver:
smctl driver info NAME";

/// What can be done with SRs.
#[derive(Debug, Subcommand)]
pub(crate) enum SrCommand {
    /// Look for what the keys given leave open, and for SRs that exist
    ///
    /// Each line of the answer is the next command to type.
    #[command(
        override_usage = "smctl sr probe --driver <NAME|FILE.so> [OPTIONS] [KEY=VALUE]...",
        after_help = format!("Example: smctl sr probe --driver file location=/srv\n\n{KEYS}")
    )]
    Probe {
        /// How to reach the backend, as far as known
        #[arg(value_name = "KEY=VALUE")]
        config: Vec<String>,
        /// Answer with the XML of XenServer's drivers
        #[arg(long, conflicts_with = "json")]
        legacy_xml: bool,
    },
    /// Make an SR on a backend, and enter it in the catalog
    #[command(
        override_usage = "smctl sr create --driver <NAME|FILE.so> --name <NAME> [OPTIONS]\n\
                         \x20                       [KEY=VALUE]...",
        after_help = format!(
            "Prints the UUID.\n\n\
             Example: smctl sr create --driver file --name images location=/srv/images\n\n{KEYS}"
        )
    )]
    Create {
        /// Name of the SR
        #[arg(long)]
        name: String,
        #[command(flatten)]
        new: New,
        /// UUID of the SR; follows from the operation id if absent
        #[arg(long)]
        uuid: Option<SrUuid>,
    },
    /// Enter an SR that exists on a backend in the catalog
    #[command(
        override_usage = "smctl sr introduce --driver <NAME|FILE.so> --uuid <UUID> [OPTIONS]\n\
                         \x20                          [KEY=VALUE]...",
        after_help = format!(
            "Prints the UUID. Name and description are those the backend keeps.\
             \n\nExample:\n  smctl sr introduce --driver file \\\n    \
             --uuid 0d7f2d0e-5b1c-4b36-9f2e-8f5f1c1a2b3c location=/srv/images\n\n{KEYS}"
        )
    )]
    Introduce {
        /// UUID of the SR, as `sr probe` shows it
        #[arg(long)]
        uuid: SrUuid,
        /// How to reach the backend
        #[arg(value_name = "KEY=VALUE")]
        config: Vec<String>,
    },
    /// List the SRs of this installation
    #[command(after_help = "Example: smctl sr list")]
    List,
    /// Show one SR: configuration, space, health
    #[command(after_help = "Example: smctl sr show images")]
    Show(SrSelector),
    /// Make an SR usable on this host
    #[command(after_help = "Example: smctl sr attach images")]
    Attach(SrSelector),
    /// Let go of an SR on this host
    #[command(after_help = "Example: smctl sr detach images")]
    Detach(SrSelector),
    /// Finish or undo what a crash left half done, and list the VDIs
    #[command(after_help = "Example: smctl sr scan images")]
    Scan(SrSelector),
    /// Shorten chains, and remove base copies that nothing needs
    ///
    /// Works beside all other commands. A VDI that is attached is left as it is. However it ends,
    /// what was done stays done, and the next run goes on with the rest.
    #[command(after_help = "This is a job: see `smctl job`.\n\n\
                            Example: smctl sr maintain images --rate 100MiB --time 10m")]
    Maintain {
        #[command(flatten)]
        sr: SrSelector,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        budget: BudgetArgs,
    },
    /// Show how full and how healthy an SR is
    #[command(after_help = "Example: smctl sr stat images")]
    Stat(SrSelector),
    /// Change name or description, here and on the backend
    #[command(
        override_usage = "smctl sr update [--name <NAME>] [--description <TEXT>] <SR>",
        after_help = "Example: smctl sr update images --name 'golden images'"
    )]
    Update {
        #[command(flatten)]
        sr: SrSelector,
        #[command(flatten)]
        change: Change,
    },
    /// Remove an SR from the catalog; the backend and its disks stay
    #[command(after_help = "Example: smctl sr forget images")]
    Forget(SrSelector),
    /// Remove an SR from its backend; it must hold no VDI
    #[command(after_help = "Example: smctl sr destroy images")]
    Destroy(SrSelector),
}

/// What a new SR is, beside its name.
#[derive(Args, Debug)]
pub(crate) struct New {
    /// Description of the SR
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) description: String,
    /// How to reach the backend
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) config: Vec<String>,
}

/// What `update` changes.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub(crate) struct Change {
    /// The new name
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The new description
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
}

/// What maintenance may use.
#[derive(Args, Debug)]
pub(crate) struct BudgetArgs {
    /// Copy at most so much in a second, such as 100MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_rate, allow_hyphen_values = true)]
    pub(crate) rate: Option<Bytes>,
    /// End after this time, with what is done by then, such as 10m
    #[arg(long, value_name = "TIME", value_parser = super::parse_duration)]
    pub(crate) time: Option<Duration>,
    /// Use at most this part of one processor, such as 50%
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, allow_hyphen_values = true)]
    pub(crate) cpu: Option<u8>,
    /// Merge so many images at the same time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) parallel: Option<u32>,
}

/// Reads `100MiB` or `100MiB/s`.
fn parse_rate(text: &str) -> Result<Bytes, String> {
    let rate: Bytes =
        text.strip_suffix("/s").unwrap_or(text).parse().map_err(|error| format!("{error}"))?;
    if rate == Bytes(0) {
        return Err(format!("{text:?} is not a rate: it must be above zero"));
    }
    Ok(rate)
}

/// Reads `50%` or `50`.
fn parse_percent(text: &str) -> Result<u8, String> {
    match text.strip_suffix('%').unwrap_or(text).parse() {
        Ok(percent @ 1..=100) => Ok(percent),
        _ => Err(format!("{text:?} is not a part of a processor: say 1% to 100%")),
    }
}

/// Which SR.
#[derive(Args, Debug)]
pub(crate) struct SrSelector {
    /// UUID, its first characters, or name of the SR
    pub(crate) sr: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_read_or_refused_with_the_reason() {
        assert_eq!(parse_rate("100MiB"), Ok(Bytes::mib(100)));
        assert_eq!(parse_rate("100MiB/s"), Ok(Bytes::mib(100)));
        assert!(parse_rate("0").unwrap_err().contains("above zero"));
        assert!(parse_rate("-1").unwrap_err().contains("must not be negative"));
        assert_eq!((parse_percent("50%"), parse_percent("50")), (Ok(50), Ok(50)));
        for text in ["0", "101%", "-5", "half"] {
            assert!(parse_percent(text).unwrap_err().contains("1% to 100%"), "{text}");
        }
    }
}
