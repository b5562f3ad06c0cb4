//! The corpus, in directories; and a small chain.

use std::path::{Path, PathBuf};

use crate::common::Spec;
pub(crate) use crate::common::cases::{Case, Expected, corpus};

/// Writes the files of a case into a directory; answers the one that is judged, and the raw file
/// that it is based on, which only a person can name.
pub(crate) fn write(case: &Case, dir: &Path) -> (PathBuf, Option<PathBuf>) {
    let paths: Vec<PathBuf> =
        case.files.iter().map(|(name, content)| content.write(&dir.join(name))).collect();
    let raw = paths.iter().skip(1).find(|path| path.extension().is_none_or(|name| name != "vhd"));
    (paths[0].clone(), raw.cloned())
}

/// Whether the file itself, or its chain, must be refused.
pub(crate) fn must_refuse(case: &Case) -> bool {
    matches!(case.expected, Expected::Refused(_) | Expected::ChainRefused(_))
}

/// Bytes that a test may hold in memory; a few cases are sparse files of terabytes.
pub(crate) fn is_small(case: &Case) -> bool {
    case.files[0].1.length < 64 << 20
}

pub(crate) fn base() -> Spec {
    Spec::default().full(0, 1).full(1, 2).full(2, 3)
}

pub(crate) fn child() -> Spec {
    let mut half = vec![0; 512];
    half[0] = 0xf0;
    Spec { uuid: 2, blocks: vec![(1, half, 0x42)], ..Spec::default() }.child_of(&base(), "base.vhd")
}

pub(crate) fn leaf() -> Spec {
    let spec = Spec { uuid: 3, blocks: vec![(2, vec![0xaa; 512], 0x43)], ..Spec::default() };
    spec.child_of(&child(), "child.vhd")
}
