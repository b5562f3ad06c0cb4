//! `cargo xtask lint`: what must hold before a change is looked at.

use std::process::ExitCode;
use std::time::Instant;

use crate::docs;
use crate::failure::Result;
use crate::matrix;
use crate::project::{cargo, root, target};

pub(crate) fn run() -> Result<ExitCode> {
    let mut failed = Vec::new();
    let mut step = |name: &'static str, work: &mut dyn FnMut() -> Result<bool>| {
        let start = Instant::now();
        let good = work()?;
        let word = if good { "ok" } else { "FAILED" };
        println!("lint: {name} ... {word} ({:.1} s)", start.elapsed().as_secs_f64());
        if !good {
            failed.push(name);
        }
        Ok(())
    };
    step("cargo fmt", &mut || Ok(cargo().args(["fmt", "--all", "--check"]).show()?.success()))?;
    step("clippy", &mut || {
        let words = [
            "clippy",
            "--quiet",
            "--keep-going",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        Ok(cargo().args(words).show()?.success())
    })?;
    for folder in ["vhd/fuzz", "datapath/fuzz"] {
        step(folder, &mut || {
            // A workspace of its own, which the two above do not see.
            let there = |words: &[&str]| cargo().args(words).directory(&root().join(folder));
            let clippy = ["clippy", "--quiet", "--lib", "--bins", "--", "-D", "warnings"];
            Ok(there(&["fmt", "--check"]).show()?.success()
                && there(&clippy).env("CARGO_TARGET_DIR", target().join("fuzz")).show()?.success())
        })?;
    }
    step("docs/operations.md", &mut || docs::is_current())?;
    step("docs/drivers/matrix.md", &mut || matrix::is_current())?;
    step("rustdoc", &mut || {
        let words = ["doc", "--quiet", "--workspace", "--no-deps"];
        Ok(cargo().args(words).env("RUSTDOCFLAGS", "-D warnings").show()?.success())
    })?;
    if failed.is_empty() {
        println!("lint: all is well");
        return Ok(ExitCode::SUCCESS);
    }
    println!("lint: failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}
