//! Who needs a target on this host, so that the last one logs out.
//!
//! A file for each user below `/run/sm-iscsi/<target>/`; it is gone with the next boot, as the
//! sessions are. Sessions that were there before anybody of us came are marked, and never ended: the
//! host may have its root disk there.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use plugin_sdk::{Cx, Error, Result, tokio};

use super::names::{Iqn, Portal};
use super::session::sessions;

const FOLDER: &str = "/run/sm-iscsi";
/// Is the file of no user, since no UUID has that name.
const FOREIGN: &str = ".foreign";
const LOCK: &str = ".lock";
/// Between two tries, at most.
const PAUSE: Duration = Duration::from_millis(50);

/// The right to log in to a target, out of it, and to change who uses it; held until it is dropped
/// or its process ends.
#[derive(Debug)]
pub struct Held {
    _file: File,
    folder: PathBuf,
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::internal(format!("{} cannot be used", path.display())).source(error)
}

/// Waits for the right to work on a target.
pub async fn hold(cx: &Cx, iqn: &Iqn) -> Result<Held> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(held) = attempt(Path::new(FOLDER), iqn)? {
            return Ok(held);
        }
        cx.check().map_err(|error| {
            let lock = Path::new(FOLDER).join(iqn.as_str()).join(LOCK);
            let lock = lock.display();
            error.hint(format!("another process logs in to {iqn}, or out; it holds {lock}"))
        })?;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE);
    }
}

fn attempt(base: &Path, iqn: &Iqn) -> Result<Option<Held>> {
    let folder = base.join(iqn.as_str());
    std::fs::create_dir_all(&folder).map_err(|error| failed(&folder, &error))?;
    let path = folder.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| failed(&path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Held { _file: file, folder })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(failed(&path, &error)),
    }
}

impl Held {
    fn users(&self) -> impl Iterator<Item = String> {
        std::fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with('.'))
    }

    /// Notes that somebody needs the target, and by which portals it was known to be reached; before the
    /// first login.
    pub fn add(&self, user: &str, iqn: &Iqn, portals: &[Portal]) -> Result<()> {
        let foreign = self.folder.join(FOREIGN);
        if self.users().next().is_none() {
            let there = sessions().iter().any(|session| session.iqn == *iqn);
            // Nobody of us has it, and it is there.
            if there {
                std::fs::write(&foreign, "").map_err(|error| failed(&foreign, &error))?;
            } else {
                let _ = std::fs::remove_file(&foreign);
            }
        }
        let path = self.folder.join(user);
        let lines: Vec<String> = portals.iter().map(ToString::to_string).collect();
        let text = lines.join("\n");
        std::fs::write(&path, text).map_err(|error| failed(&path, &error))
    }

    /// Whether this user needs the target, nobody else does, and it was one of us who logged in:
    /// then it is to be logged out of, and the user [removed](Self::remove) after that, so that who is
    /// cut between the two comes back to it.
    pub fn is_last(&self, user: &str) -> bool {
        let users: Vec<String> = self.users().collect();
        users == [user] && !self.folder.join(FOREIGN).exists()
    }

    /// Notes that somebody does not need it any more. Whether to log out: nobody else needs it, and
    /// it was one of us who logged in.
    pub fn remove(&self, user: &str) -> Result<bool> {
        let path = self.folder.join(user);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(failed(&path, &error))
            }
            _ => Ok(self.users().next().is_none() && !self.folder.join(FOREIGN).exists()),
        }
    }
}

/// The targets that somebody needs, each with the portals that it was known to have.
pub fn of(user: &str) -> Vec<(String, Vec<Portal>)> {
    of_below(Path::new(FOLDER), user)
}

fn of_below(base: &Path, user: &str) -> Vec<(String, Vec<Portal>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        if let Ok(text) = std::fs::read_to_string(entry.path().join(user)) {
            let portals = text.lines().filter_map(|line| Portal::parse(line, super::names::PORT));
            found.push((entry.file_name().to_string_lossy().into_owned(), portals.collect()));
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use plugin_sdk::config::ConfigValue as _;

    use super::*;

    #[test]
    fn the_last_user_logs_out() {
        let folder = tempfile::tempdir().unwrap();
        let iqn = Iqn::parse("iqn.2026-01.org.example:none").unwrap();
        let held = attempt(folder.path(), &iqn).unwrap().unwrap();
        let portal = Portal::parse("[2001:db8::1]:3261", 1).unwrap();
        held.add("one", &iqn, std::slice::from_ref(&portal)).unwrap();
        held.add("one", &iqn, std::slice::from_ref(&portal)).unwrap();
        held.add("two", &iqn, &[]).unwrap();
        assert_eq!(of_below(folder.path(), "one"), [(iqn.to_string(), vec![portal])]);
        assert!(!held.is_last("one") && !held.is_last("two"));
        assert!(!held.remove("one").unwrap());
        assert!(held.is_last("two") && !held.is_last("one"));
        assert!(held.remove("two").unwrap());
        assert!(!held.is_last("two"));
        assert!(held.remove("two").unwrap());
        assert!(of_below(folder.path(), "two").is_empty());
        // Sessions that were there before.
        held.add("three", &iqn, &[]).unwrap();
        std::fs::write(folder.path().join(iqn.as_str()).join(FOREIGN), "").unwrap();
        assert!(!held.is_last("three"));
        assert!(!held.remove("three").unwrap());
    }

    #[test]
    fn one_works_on_a_target_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let iqn = Iqn::parse("iqn.2026-01.org.example:none").unwrap();
        let held = attempt(folder.path(), &iqn).unwrap().unwrap();
        assert!(attempt(folder.path(), &iqn).unwrap().is_none());
        let other = Iqn::parse("iqn.2026-01.org.example:other").unwrap();
        assert!(attempt(folder.path(), &other).unwrap().is_some());
        drop(held);
        assert!(attempt(folder.path(), &iqn).unwrap().is_some());
    }
}
