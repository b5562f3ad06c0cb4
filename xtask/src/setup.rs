//! `cargo xtask setup`: the system packages that demo and tests need, and the fuzzer.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::failure::{Failure, Result};
use crate::lab;
use crate::project::{BUILD, cargo};
use crate::tool::{self, Tool};

/// Time for the package manager, which may have to load from a slow mirror.
const INSTALL: Duration = Duration::from_secs(10 * 60);

/// A package, a file that is there when it is installed, and what it is for.
struct Package {
    name: &'static str,
    program: &'static str,
    purpose: &'static str,
}

const PACKAGES: &[Package] = &[
    Package {
        name: "qemu-utils",
        program: "qemu-img",
        purpose: "reads and writes the images we write and read",
    },
    Package {
        name: "libvhdi-utils",
        program: "vhdiinfo",
        purpose: "reads VHD images, differencing ones too",
    },
    Package {
        name: "e2fsprogs",
        program: "mkfs.ext4",
        purpose: "makes and checks file systems inside disks",
    },
    Package {
        name: "strace",
        program: "strace",
        purpose: "kills a process at a chosen system call, and tells what is synced when",
    },
    Package {
        name: "fio",
        program: "fio",
        purpose: "loads a server of disks and verifies what it reads back",
    },
    Package {
        name: "nbdkit",
        program: "nbdkit",
        purpose: "serves disks beside ours: a measure, and a target that fails on demand",
    },
    Package {
        name: "libnbd-bin",
        program: "nbdinfo",
        purpose: "clients of our server: nbdinfo, nbdcopy",
    },
    Package {
        name: "python3-libnbd",
        program: "/usr/bin/nbdsh",
        purpose: "a client of our server that tells the error of each request",
    },
    Package {
        name: "nbd-client",
        program: "nbd-client",
        purpose: "the kernel's client of our server",
    },
    Package {
        name: "libiscsi-bin",
        program: "iscsi-inq",
        purpose: "an initiator in user space, and its test suite, for the LUNs of simulated arrays",
    },
    Package {
        name: "chromium-driver",
        program: "chromedriver",
        purpose: "a browser, which shows and prints the pages of the conformance suite",
    },
    Package {
        name: "poppler-utils",
        program: "pdftotext",
        purpose: "reads what the browser has printed",
    },
    Package { name: "g++", program: "c++", purpose: "compiles the fuzzer's engine" },
    Package {
        name: "rustc-web",
        program: "/usr/bin/rustc",
        purpose: "a second compiler release, for drivers that another one has built",
    },
];

/// cargo-fuzz, which no system packages; this release is known to work with a stable compiler.
const FUZZER: &[&str] = &["install", "cargo-fuzz", "--version", "0.13.2", "--locked"];

/// Packages that cannot be beside `rustc-web`. Whoever has one of them keeps it.
const RIVALS: &[&str] = &["rustc", "rustc-mozilla", "rustup"];

pub(crate) fn run(check: bool) -> Result<ExitCode> {
    let missing = missing();
    let fuzzer = has_fuzzer();
    let guests = lab::packages::are_there();
    let purpose = "feeds the readers of images what nobody thought of";
    if check {
        for package in &missing {
            println!("{:<15} is missing: {}", package.name, package.purpose);
        }
        if !missing.is_empty() {
            println!("to install: {}", command(&missing));
        }
        if !fuzzer {
            println!("{:<15} is missing: {purpose}", "cargo-fuzz");
            println!("to install: cargo {}", FUZZER.join(" "));
        }
        if !guests {
            println!("{:<15} is missing: kernel and programs of guests; not installed", "lab");
            println!("to unpack: cargo xtask setup");
        }
    } else {
        if !missing.is_empty() {
            install(&missing)?;
        }
        ensure_fuzzer()?;
        lab::packages::ensure()?;
    }
    if !check || (missing.is_empty() && fuzzer && guests) {
        for package in PACKAGES {
            println!("{:<15} is there: {}", package.name, package.purpose);
        }
        println!("{:<15} is there: {purpose}", "cargo-fuzz");
        println!("{:<15} is there: kernel and programs of guests", "lab");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

/// Installs cargo-fuzz where it is missing.
pub(crate) fn ensure_fuzzer() -> Result<()> {
    if has_fuzzer() {
        return Ok(());
    }
    println!("installing: cargo-fuzz");
    // Its many lines would drown what the caller has to say; the last of them tell why.
    cargo().args(FUZZER).arg("--quiet").deadline(BUILD).run().map(drop)
}

/// Asked of cargo, which looks in its own folder of programs, too.
fn has_fuzzer() -> bool {
    cargo().args(["fuzz", "--version"]).run().is_ok()
}

/// What the other commands do first: installs what is missing, or says what is.
pub(crate) fn ensure() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

fn missing() -> Vec<&'static Package> {
    PACKAGES.iter().filter(|package| !is_there(package)).collect()
}

/// By the package manager's record where there is one, else by the program: on another system,
/// or built by hand, the tool is as good.
fn is_there(package: &Package) -> bool {
    let is_file = |program: &str| match program.strip_prefix('/') {
        Some(_) => Path::new(program).is_file(),
        None => tool::find(program).is_some(),
    };
    installed(package.name) || is_file(package.program)
}

fn installed(package: &str) -> bool {
    Tool::new("dpkg-query")
        .args(["--show", "--showformat", "${db:Status-Status}", package])
        .run()
        .is_ok_and(|printed| printed.stdout == "installed")
}

fn command(packages: &[&Package]) -> String {
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    format!("apt-get install -y --no-install-recommends {}", names.join(" "))
}

fn install(packages: &[&Package]) -> Result<()> {
    let what: Vec<&str> = packages.iter().map(|package| package.name).collect();
    let missing = format!("missing on this machine: {}", what.join(", "));
    if tool::find("apt-get").is_none() {
        let programs: Vec<&str> = packages.iter().map(|package| package.program).collect();
        return Err(Failure::new(missing).hint(format!(
            "this is no Debian: install what brings these programs: {}",
            programs.join(", ")
        )));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(missing).hint(format!("as root: {}", command(packages))));
    }
    let compiler = packages.iter().any(|package| package.name == "rustc-web");
    if let Some(rival) = RIVALS.iter().find(|rival| compiler && installed(rival)) {
        return Err(Failure::new(format!(
            "{missing}; {rival} is installed and excludes rustc-web"
        ))
        .hint("install a second toolchain with: rustup toolchain install 1.90"));
    }
    let before = which_compiler();
    println!("installing: {}", what.join(", "));
    apt(["update", "--quiet=2"])?;
    // Nothing that is installed may go away for a test.
    let mut words = vec!["install", "--yes", "--no-remove", "--no-install-recommends", "--quiet=2"];
    words.extend(&what);
    apt(words)?;
    let still: Vec<&str> =
        packages.iter().filter(|package| !is_there(package)).map(|package| package.name).collect();
    if !still.is_empty() {
        return Err(Failure::new(format!("still missing after the install: {}", still.join(", "))));
    }
    let after = which_compiler();
    if before != after {
        let name = |path: Option<PathBuf>| path.map_or("none".into(), |p| p.display().to_string());
        return Err(Failure::new(format!(
            "rustc in PATH was {} and is {} now",
            name(before),
            name(after)
        ))
        .hint("put the folder of your own toolchain before /usr/bin in PATH"));
    }
    Ok(())
}

fn apt<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<()> {
    Tool::new("apt-get")
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .deadline(INSTALL)
        .run()
        .map(drop)
}

/// The compiler that a user's own commands get: `rustc-web` must not come before it.
fn which_compiler() -> Option<PathBuf> {
    tool::find("rustc")
}
