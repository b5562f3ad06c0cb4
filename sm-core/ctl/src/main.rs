//! `smctl`, the command line of the storage manager.
//!
//! | module | what it does |
//! |---|---|
//! | [`cli`] | what can be typed |
//! | [`session`] | opens the storage manager; what is meant by a name; signals |
//! | [`driver`], [`sr`], [`vdi`], [`attach`], [`transfer`], [`maintain`], [`mirror`], [`quiesce`], [`job`], [`mod@vhd`], [`pages`] | the commands |
//! | [`config`], [`shell`] | `key=value` words and secrets; words for a shell |
//! | [`output`], [`tree`], [`progress`], [`errors`] | what is printed, and the exit status |

#![forbid(unsafe_code)]

mod attach;
mod cbt;
mod cli;
mod config;
mod driver;
mod errors;
mod group;
mod host;
mod job;
mod legacy_xml;
mod maintain;
mod mirror;
mod output;
mod pages;
mod progress;
mod quiesce;
mod run;
mod session;
mod shell;
mod sr;
mod trace;
mod transfer;
mod tree;
mod vdi;
mod vhd;

fn main() -> std::process::ExitCode {
    run::run()
}
