//! A VHD writer that shares no code with the crate, for files good and bad, and the tools that
//! read ours independently.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part of a shared file")]

use std::path::Path;
use std::process::Command;

pub mod build;
pub mod cases;

#[allow(unused_imports, reason = "each test uses its part of a shared file")]
pub use build::*;

/// Runs a tool that the tests need; the machine is not fit for them without it.
pub fn tool(package: &str, program: &str, args: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| {
        panic!("{program} cannot be run ({error}): install the package {package}")
    });
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.success(), text)
}

pub fn qemu_img(args: &[&str]) -> (bool, String) {
    tool("qemu-utils", "qemu-img", args)
}

pub fn vhdiinfo(path: &Path) -> (bool, String) {
    tool("libvhdi-utils", "vhdiinfo", &[path.to_str().unwrap()])
}

/// Names in the section of crash points of the running binary.
pub fn steps() -> Vec<String> {
    use object::{Object, ObjectSection};
    let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let section = file.section_by_name(sm_step::SECTION).expect("the binary has crash points");
    sm_step::names(section.data().unwrap())
}

/// A small deterministic generator; the seed is printed by whoever uses it.
pub struct Random(pub u64);

impl Random {
    pub fn new() -> Self {
        let seed = std::env::var("VHD_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
                as u64
        });
        println!("seed {seed} (set VHD_SEED to repeat)");
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
