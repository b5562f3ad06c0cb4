//! `sm-freezer`: holds a guest at rest while its snapshots are taken, and lets it go on.
//!
//! Started by the storage manager, see `freezer` of the library; not for people.

#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::io::stdin().is_terminal() {
        eprintln!("sm-freezer is started by the storage manager: see smctl vm-snapshot --help");
        return ExitCode::from(2);
    }
    match sm_quiesce::freezer::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sm-freezer: {error}");
            ExitCode::FAILURE
        }
    }
}
