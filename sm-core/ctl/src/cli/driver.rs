//! `smctl driver ...`

use camino::Utf8PathBuf;
use clap::Subcommand;

/// What can be done with drivers.
#[derive(Debug, Subcommand)]
pub(crate) enum DriverCommand {
    /// List the drivers found
    #[command(after_help = "Example: smctl driver list")]
    List,
    /// Show what a driver can do and which device-config keys it takes
    #[command(after_help = "Example: smctl driver info file")]
    Info {
        /// The driver's name
        name: String,
    },
    /// Show the manifest of a file, without running any code of it
    #[command(after_help = "Example: smctl driver inspect ./libacme.so")]
    Inspect {
        /// The shared library
        #[arg(value_name = "FILE.so")]
        file: Utf8PathBuf,
    },
}
