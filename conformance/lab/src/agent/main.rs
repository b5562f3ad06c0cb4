//! The helper of the lab, beside its library.
//!
//! | started as | does |
//! |---|---|
//! | `lab-agent supervise SPEC` | on the machine: starts one guest, and ends it with the runner |
//! | `lab-agent sweep FOLDER` | on the machine: removes the folder of a lab whose runner has died |
//! | `lab-agent --identity` | says from which sources it was built |
//! | first process of a guest | makes the guest's root, then starts itself again as the next |
//! | `lab-agent serve` | in a guest: runs what comes over the serial line |

#![forbid(unsafe_code)]

mod init;
mod serve;
mod supervise;
mod sweep;

use std::process::ExitCode;

/// Set by the kernel of a guest from its command line; nothing else may start [`init`]. It is the
/// folder of the guest on the machine.
const FOLDER: &str = "LAB_FOLDER";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match (words.as_slice(), std::env::var(FOLDER)) {
        (["supervise", spec], _) => supervise::run(spec.as_ref()),
        (["sweep", folder], _) => sweep::run(folder.as_ref()),
        (["--identity"], _) => {
            println!("{}", lab::wire::identity());
            ExitCode::SUCCESS
        }
        (["serve"], Ok(_)) => serve::run(),
        (_, Ok(folder)) if std::process::id() == 1 => init::run(folder.as_ref()),
        _ => {
            eprintln!("lab-agent is started by the lab, not by hand");
            ExitCode::from(2)
        }
    }
}
