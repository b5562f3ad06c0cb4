//! The programs and drivers of this workspace, built for tests.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where a program or driver of the workspace lies, for instance `smctl` or
/// `libsm_driver_file.so`. The first use in a process has cargo build what is not up to date:
/// cargo itself builds no binary of one package for the tests of another.
///
/// # Panics
/// If the build fails or does not make the file.
pub fn artefact(file: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let path = FOLDER.get_or_init(build).join(file);
    assert!(path.exists(), "{} was not built", path.display());
    path
}

#[expect(clippy::panic, reason = "a test cannot go on without what it tests")]
fn build() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    // <target>/<profile>/deps/<test>
    let folder = program.parent().and_then(Path::parent).unwrap_or(Path::new("."));
    let mut cargo = lab::cargo();
    // As `cargo xtask test` builds it all: another choice of packages would give what they share
    // other features, and everything would be compiled once more.
    cargo
        .args(["build", "--quiet", "--workspace", "--lib", "--bins", "--examples"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if folder.file_name().is_some_and(|name| name == "release") {
        cargo.arg("--release");
    }
    match cargo.output() {
        Ok(output) if output.status.success() => folder.to_owned(),
        Ok(output) => panic!("the build failed:\n{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => panic!("cargo does not run: {error}"),
    }
}
