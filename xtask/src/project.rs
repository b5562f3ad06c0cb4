//! Where things are, and building them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::failure::{Failure, Result};
use crate::tool::Tool;

/// Time for a build from nothing on a small machine.
pub(crate) const BUILD: Duration = Duration::from_secs(40 * 60);

/// The repository.
pub(crate) fn root() -> PathBuf {
    // This package lies in a folder of the root.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root().join(directory),
        None => root().join("target"),
    }
}

/// The cargo that runs us, in the repository.
pub(crate) fn cargo() -> Tool {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Tool::new(program).directory(&root()).deadline(BUILD)
}

/// Which way the product is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// Builds what a user of the product has: `smctl`, the child process, the file driver. Answers
/// the folder they are in.
pub(crate) fn build_product(profile: Profile) -> Result<PathBuf> {
    build(&["smctl", "sm-driver-host", "sm-driver-file", "datapath"], profile)
}

/// Builds libraries, programs and examples of all packages. Answers the folder they are in.
///
/// Tests of one package run programs and load libraries of others, which `cargo test` would not build.
/// All at once, so that dependencies get the features that the tests need, once.
pub(crate) fn build_all() -> Result<PathBuf> {
    let words = ["build", "--quiet", "--workspace", "--lib", "--bins", "--examples"];
    if !cargo().args(words).show()?.success() {
        return Err(Failure::new("the workspace does not build; cargo has said why"));
    }
    Ok(target().join("debug"))
}

/// Builds libraries and programs of packages. Answers the folder they are in.
pub(crate) fn build(packages: &[&str], profile: Profile) -> Result<PathBuf> {
    let mut cargo = cargo().args(["build", "--quiet", "--lib", "--bins"]);
    for package in packages {
        cargo = cargo.args(["--package", package]);
    }
    let folder = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            cargo = cargo.arg("--release");
            "release"
        }
    };
    if !cargo.show()?.success() {
        return Err(Failure::new("the product does not build; cargo has said why"));
    }
    Ok(target().join(folder))
}
