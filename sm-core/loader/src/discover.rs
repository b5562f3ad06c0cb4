//! Finds drivers in directories.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::LoadError;
use crate::inspect::{Inspection, inspect};

/// What is wrong with one file of a driver directory.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// The file is no driver, or not one for this host.
    #[error(transparent)]
    Refused(#[from] LoadError),
    /// A directory cannot be listed.
    #[error("the driver directory {path} cannot be listed: {source}", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// Another file has the same name in its manifest. The first of them is used.
    #[error(
        "{path} is a second driver of the name {name}; {used} is used",
        path = path.display(), used = used.display()
    )]
    Duplicate {
        /// The name in both manifests.
        name: String,
        /// The file that is not used.
        path: PathBuf,
        /// The file that is.
        used: PathBuf,
    },
}

impl From<DiscoverError> for sm_model::Error {
    fn from(error: DiscoverError) -> Self {
        let text = error.to_string();
        match error {
            DiscoverError::Refused(error) => error.into(),
            DiscoverError::Directory { source, .. } => {
                let kind = Self::from(source).kind.clone();
                Self::new(kind, text).hint("check the path and its permissions")
            }
            DiscoverError::Duplicate { .. } => {
                Self::new(sm_model::error::Kind::Exists, text).hint("remove one of the two files")
            }
        }
    }
}

/// Inspects every `*.so` of the directories, in their order and by file name within each. A
/// driver's name is that in its manifest, whatever its file is called. A directory that does not
/// exist holds no drivers.
pub fn discover<P: AsRef<Path>>(
    directories: impl IntoIterator<Item = P>,
) -> Vec<Result<Inspection, DiscoverError>> {
    let mut found = Vec::new();
    let mut used: HashMap<String, PathBuf> = HashMap::new();
    for directory in directories {
        let paths = match list(directory.as_ref()) {
            Ok(paths) => paths,
            Err(error) => {
                found.push(Err(error));
                continue;
            }
        };
        for path in paths {
            found.push(inspect(&path).map_err(DiscoverError::from).and_then(|inspection| {
                let name = inspection.manifest.name.clone();
                if let Some(first) = used.get(&name) {
                    return Err(DiscoverError::Duplicate { name, path, used: first.clone() });
                }
                used.insert(name, path);
                Ok(inspection)
            }));
        }
    }
    found
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, DiscoverError> {
    let fail = |source| DiscoverError::Directory { path: directory.to_owned(), source };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|extension| extension == "so") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
