//! What a run starts from.

use std::path::{Path, PathBuf};

/// The folder to write seeds to, when the run was told one.
pub fn wanted() -> Option<PathBuf> {
    std::env::var_os("DATAPATH_FUZZ_SEEDS").map(PathBuf::from)
}

/// Writes seeds.
pub fn write(folder: &Path, seeds: &[Vec<u8>]) {
    let _ = std::fs::create_dir_all(folder);
    for (number, seed) in seeds.iter().enumerate() {
        let _ = std::fs::write(folder.join(format!("seed-{number:02}")), seed);
    }
}
