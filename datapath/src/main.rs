//! `sm-datapath`: the process that serves one disk.
#![forbid(unsafe_code)]

fn main() {
    eprintln!("sm-datapath: nothing to serve yet");
    std::process::exit(2);
}
