//! `cargo xtask`: what is done with this repository, beside compiling it.
//!
//! | module | command |
//! |---|---|
//! | [`setup`] | the system packages that the others need |
//! | [`demo`] | the main job on a real disk image, through `smctl` |
//! | [`mod@test`] | all tests, with one line of totals |
//! | [`fuzz`] | the fuzz targets, for a bounded time |
//! | [`lint`] | formatting, clippy, documentation |
//! | [`docs`], [`matrix`] | what is generated from the model, from the drivers and from `smctl` |
//! | [`stats`] | how large the drivers are |
//! | [`mod@lab`] | guests with real kernels |
//! | [`mod@conformance`] | the drivers of this repository, held to the contract |
//! | [`mod@bench`] | the measured figures |

#![forbid(unsafe_code)]

mod bench;
mod conformance;
mod demo;
mod docs;
mod failure;
mod fuzz;
mod lab;
mod lanes;
mod lint;
mod matrix;
mod operations;
mod project;
mod setup;
mod stats;
mod test;
mod tool;

use std::process::ExitCode;

use failure::{Failure, Result};

const USAGE: &str = "\
cargo xtask setup [--check]            install what demo and tests need
cargo xtask demo [--release]           the main job on a real disk image, checked with other tools
cargo xtask demo --array equallogic    thin disk, clone, snapshot, revert by a simulated array
cargo xtask test [ARGUMENTS]           all tests; arguments go to `cargo test`
cargo xtask fuzz [TARGET] [--seconds N]
                                       the fuzz targets of vhd, 60 s in all if not said otherwise
cargo xtask lab run [--memory MIB] [--disk FILE] [--share FOLDER] [--module NAME] [--seconds N]
                [--keep-logs] -- COMMAND
                                       a command in a guest with a kernel of its own
cargo xtask lab check [--keep-logs]    which features of the kernel work in guests here
cargo xtask lab demo                   a NAS and a host: NFS and iSCSI SRs, snapshots, a dead path
cargo xtask lint                       formatting, clippy, generated documents, rustdoc
cargo xtask conformance [--check] [--part K/N] [--driver NAME [--only CHECKS]...]
                                       all checks of the contract on all drivers, most in guests
cargo xtask docs [--check]             write docs/operations.md, docs/drivers/matrix.md, and the
                                       manual pages of smctl
cargo xtask stats                      lines of each driver, without tests
cargo xtask bench control [--json] [--quick] [--only commands|calls|scan|load]
                                       cost of the control path, peers measured in the same run
cargo xtask bench vhd [--json] [--quick] [--only merge|snapshot|check|convert]
                                       cost of work on images, peers measured in the same run
cargo xtask bench datapath [--json] [--quick] [--only random|sequential|mixed|first|chain|disk|
                            attach|memory|snapshot|coalesce|mirror]
                                       cost of serving disks, peers measured in the same run
cargo xtask bench arrays [--json] [--quick] [--only operations|list|clone|parallel]
                                       requests and time of drivers of arrays, on simulated ones
cargo xtask bench quiesce [--json] [--quick] [--only group|single|vhd]
                                       how long a guest is at rest for a snapshot of its disks
cargo xtask bench lab [--json] [--quick] [--only lvm|nfs|lvmoiscsi]
                                       what drivers add to the commands they need, in guests";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["setup", options @ ..] => setup::run(flag(options, "--check")?),
        ["demo", options @ ..] => demo::run(options),
        ["test", rest @ ..] => test::run(rest),
        ["fuzz", rest @ ..] => fuzz::run(rest),
        ["lab", rest @ ..] => lab::run(rest),
        ["lint"] => lint::run(),
        ["conformance", rest @ ..] => conformance::run(rest),
        ["stats"] => stats::run(),
        ["docs", options @ ..] => docs::run(flag(options, "--check")?),
        ["bench", "control", rest @ ..] => bench::control(rest),
        ["bench", "vhd", rest @ ..] => bench::vhd(rest),
        ["bench", "datapath", rest @ ..] => bench::datapath(rest),
        ["bench", "arrays", rest @ ..] => bench::arrays(rest),
        ["bench", "quiesce", rest @ ..] => bench::quiesce(rest),
        ["bench", "lab", rest @ ..] => bench::lab(rest),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        other => Err(unknown(&other.join(" "))),
    }
}

/// Whether the only option there can be is given.
fn flag(options: &[&str], name: &str) -> Result<bool> {
    match options {
        [] => Ok(false),
        [option] if *option == name => Ok(true),
        other => Err(unknown(&other.join(" "))),
    }
}

fn unknown(words: &str) -> Failure {
    Failure::new(format!("{words:?} is not understood")).hint(USAGE)
}
