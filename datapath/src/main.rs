//! `sm-datapath`: the process that serves one disk.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    datapath::control::process::main(std::env::args_os().skip(1))
}
