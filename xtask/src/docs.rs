//! `cargo xtask docs`: the documents that are made from code.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::failure::{Doing, Failure, Result};
use crate::matrix;
use crate::operations;
use crate::project::{self, Profile};
use crate::tool::Tool;

fn file() -> PathBuf {
    project::root().join("docs/operations.md")
}

pub(crate) fn run(check: bool) -> Result<ExitCode> {
    if check {
        let current = is_current()? & matrix::is_current()?;
        return Ok(if current { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let path = file();
    std::fs::write(&path, operations::document()?).doing(|| format!("write {}", path.display()))?;
    println!("docs/operations.md is written");
    let (path, text) = (matrix::file(), matrix::document()?);
    std::fs::write(&path, text).doing(|| format!("write {}", path.display()))?;
    println!("docs/drivers/matrix.md is written");
    let smctl = project::build_product(Profile::Dev)?.join("smctl");
    let printed =
        Tool::new(smctl).args(["man", "--output"]).arg(project::target().join("man")).run()?;
    print!("{}", printed.stdout);
    Ok(ExitCode::SUCCESS)
}

/// Whether the document in the repository is the one the code gives.
pub(crate) fn is_current() -> Result<bool> {
    let written = std::fs::read_to_string(file()).unwrap_or_default();
    let generated = operations::document()?;
    if written == generated {
        return Ok(true);
    }
    let line = written.lines().zip(generated.lines()).take_while(|(a, b)| a == b).count() + 1;
    let failure = Failure::new(format!(
        "docs/operations.md is not what the model says (first difference in line {line})"
    ));
    eprintln!("xtask: {}", failure.hint("cargo xtask docs writes it anew"));
    Ok(false)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_document_of_the_operations_is_current() {
        assert!(super::is_current().unwrap());
    }
}
