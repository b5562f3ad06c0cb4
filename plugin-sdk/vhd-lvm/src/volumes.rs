//! What the store asks of LVM, behind a trait: tests count the commands, and cut between any two.

use std::path::{Path, PathBuf};

use host_kit::lvm::{Group, Lvm};
use plugin_sdk::model::Kind;
use plugin_sdk::{Cx, Error, Result, tokio};

/// A volume group. Each call but [`Volumes::device`] and [`Volumes::disk`] is one command.
pub trait Volumes: Send + Sync {
    /// All that is in the group.
    fn group(&self) -> Result<Group>;

    /// Makes a linear volume, inactive.
    fn create(&self, name: &str, bytes: u64) -> Result<()>;

    /// Renames a volume; the new name is free.
    fn rename(&self, from: &str, to: &str) -> Result<()>;

    /// Removes the volume of that identity. Error kind `in_use` if it is open.
    fn remove(&self, id: &str) -> Result<()>;

    /// Gives a volume another size.
    fn resize(&self, name: &str, bytes: u64, shorter: bool) -> Result<()>;

    /// Lets a volume be written, or not.
    fn permit(&self, name: &str, write: bool) -> Result<()>;

    /// Makes devices of volumes.
    fn activate(&self, names: &[&str]) -> Result<()>;

    /// Takes the devices of volumes away. Error kind `in_use` if one is open.
    fn deactivate(&self, names: &[&str]) -> Result<()>;

    /// The device of an active volume.
    fn device(&self, name: &str) -> PathBuf;

    /// A device of the group, by LVM's name of it.
    fn disk(&self, name: &str) -> PathBuf;

    /// Whether the group's devices are files, which are read and written through the cache.
    fn cached(&self) -> bool {
        false
    }
}

/// The real thing, in one call of a driver; its methods are for a thread that may block.
pub(crate) struct Commands {
    pub(crate) lvm: Lvm,
    pub(crate) cx: Cx,
    pub(crate) group: String,
}

impl Commands {
    fn change(&self, command: &str, words: &[&str]) -> Result<()> {
        wait(self.lvm.change(&self.cx, command, words))
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.group)
    }

    fn paths(&self, words: &[&str], names: &[&str]) -> Vec<String> {
        let words = words.iter().map(|word| (*word).to_owned());
        words.chain(names.iter().map(|name| self.path(name))).collect()
    }
}

/// Drives a future on a thread that may block.
pub(crate) fn wait<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Handle::try_current()
        .map_err(|error| Error::internal("this thread has no runtime").source(&error))?;
    runtime.block_on(future)
}

fn slices(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

impl Volumes for Commands {
    fn group(&self) -> Result<Group> {
        let report = wait(self.lvm.report(&self.cx))?;
        let group = report.groups.into_iter().find(|group| group.name == self.group);
        let group = group.ok_or_else(|| {
            Error::not_found(format!("there is no group {} on {}", self.group, self.lvm.devices()))
                .legacy(47)
                .hint("smctl sr probe shows which SRs there are on a device")
        })?;
        if group.missing > 0 {
            let message = format!("{} devices of {} are missing", group.missing, self.group);
            return Err(Error::new(Kind::Unreachable, message).legacy(47));
        }
        Ok(group)
    }

    fn create(&self, name: &str, bytes: u64) -> Result<()> {
        let size = format!("{bytes}b");
        let words = [
            "--type",
            "linear",
            "--size",
            &size,
            "--name",
            name,
            "--activate",
            "n",
            "--wipesignatures",
            "n",
            "--zero",
            "n",
            &self.group,
        ];
        self.change("lvcreate", &words)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.change("lvrename", &[&self.group, from, to])
    }

    fn remove(&self, id: &str) -> Result<()> {
        self.change("lvremove", &["--select", &format!("lv_uuid={id}"), &self.group])
    }

    fn resize(&self, name: &str, bytes: u64, shorter: bool) -> Result<()> {
        let (size, path) = (format!("{bytes}b"), self.path(name));
        if shorter {
            return self.change("lvreduce", &["--force", "--size", &size, &path]);
        }
        self.change("lvextend", &["--size", &size, &path])
    }

    fn permit(&self, name: &str, write: bool) -> Result<()> {
        let permission = if write { "rw" } else { "r" };
        self.change("lvchange", &["--permission", permission, &self.path(name)])
    }

    fn activate(&self, names: &[&str]) -> Result<()> {
        let words = self.paths(&["--activate", "y", "--ignoreactivationskip"], names);
        self.change("lvchange", &slices(&words))
    }

    fn deactivate(&self, names: &[&str]) -> Result<()> {
        let words = self.paths(&["--activate", "n"], names);
        self.change("lvchange", &slices(&words))
    }

    fn device(&self, name: &str) -> PathBuf {
        Path::new("/dev").join(&self.group).join(name)
    }

    fn disk(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }
}
