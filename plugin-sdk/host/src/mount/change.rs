//! Mounting and unmounting, in bounded time.

use std::path::Path;
use std::time::Duration;

use plugin_sdk::command::Output;
use plugin_sdk::model::{Changed, Kind};
use plugin_sdk::{Cx, Error, Result, Utf8Path, tracing};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::table;
use super::threads::{Ended, Threads};

/// Time for an unmount that has to write out what is left; then the name is given up at once, and
/// the kernel goes on by itself.
const UNMOUNT: Duration = Duration::from_secs(10);

/// Runs a program that mounts (`mount.nfs`), and makes the mount point before. The program is killed
/// at the call's deadline; what it says with another exit status than 0 is the caller's to type.
///
/// Nothing may be mounted there: whether it is, [`super::at`] tells, without touching it.
pub async fn attach(
    cx: &Cx,
    program: &str,
    source: &str,
    target: &Utf8Path,
    options: &str,
) -> Result<Output> {
    std::fs::create_dir_all(target).map_err(|error| {
        Error::internal(format!("the mount point {target} cannot be made")).source(&error)
    })?;
    cx.command(program).args([source, target.as_str(), "-o", options]).output().await
}

/// Unmounts what is at a path, and removes the mount point. Nothing there: `already`.
///
/// What is mounted is not looked at, so that a server that does not answer does no harm. If the
/// kernel cannot write out what is left within 10 s, the mount loses its name all the same, and
/// the kernel ends it when it can.
///
/// Errors: `in_use` if a file is open there.
pub async fn detach(cx: &Cx, threads: &Threads, target: &Utf8Path) -> Result<Changed> {
    if table::at(target.as_std_path())?.is_none() {
        // Of a mount that did not come to be.
        let _ = std::fs::remove_dir(target);
        return Ok(Changed::Already);
    }
    let unmount = async |flags| {
        let path = target.to_owned();
        let until = std::time::Instant::now() + UNMOUNT;
        let work = move |_: &Cx| Ok(rustix::mount::unmount(path.as_std_path(), flags));
        // The undoing of something: whether the caller still wants it is not asked.
        threads.run(&cx.shielded(), until, work).await
    };
    match unmount(UnmountFlags::NOFOLLOW).await? {
        Ended::Done(Ok(Err(Errno::BUSY))) => {
            return Err(Error::new(
                Kind::InUse,
                format!("{target} is in use: a file in it is open"),
            )
            .legacy(74)
            .hint(format!("fuser -vm {target} shows by whom")));
        }
        Ended::Done(Ok(Err(errno))) if is_there(target.as_std_path())? => {
            let cause = std::io::Error::from(errno);
            return Err(
                Error::internal(format!("{target} cannot be unmounted: {cause}")).legacy(74)
            );
        }
        Ended::Done(Ok(_)) => {}
        Ended::Done(Err(error)) => return Err(error),
        Ended::Left => tracing::warn!(%target, "the unmount goes on without us"),
    }
    if is_there(target.as_std_path())? {
        unmount(UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).await?;
    }
    if is_there(target.as_std_path())? {
        return Err(Error::new(Kind::Unreachable, format!("{target} could not be unmounted"))
            .legacy(74)
            .hint("its server does not answer; try again when it does"));
    }
    if let Err(error) = std::fs::remove_dir(target) {
        tracing::debug!(%target, %error, "the mount point stays");
    }
    Ok(Changed::Modified)
}

fn is_there(target: &Path) -> Result<bool> {
    Ok(table::at(target)?.is_some())
}
