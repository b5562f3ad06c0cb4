//! An export, mounted, and work on it in bounded time.

use std::time::{Duration, Instant};

use host_kit::mount::{self, Ended, Threads, nfs};
use plugin_sdk::model::{Changed, Kind};
use plugin_sdk::{Cx, Error, Result, Utf8Path, Utf8PathBuf};

use crate::config::Server;

/// Of the time of a call, what is kept to find out why it was not enough: the answer has to be there
/// before the caller gives up.
const RESERVE: Duration = Duration::from_secs(2);

/// How long a server may be away when a call begins: a restart of its service.
const PATIENCE: Duration = Duration::from_secs(5);

/// Threads of one SR, those that hang among them.
const THREADS: usize = 16;

/// Names the folder for sockets and mounts, `/run/sm` otherwise.
const VARIABLE: &str = "SM_RUN_DIR";

/// Where exports are mounted on this host.
pub(crate) fn base() -> Utf8PathBuf {
    let named = std::env::var(VARIABLE).ok().map(Utf8PathBuf::from);
    let run = named.filter(|path| path.is_absolute()).unwrap_or_else(|| "/run/sm".into());
    run.join("nfs")
}

/// An export and where it is mounted.
#[derive(Debug)]
pub(crate) struct Place {
    server: Server,
    source: String,
    target: Utf8PathBuf,
    threads: Threads,
}

impl Place {
    pub(crate) fn new(server: Server, path: &str, target: Utf8PathBuf) -> Self {
        let source = nfs::source(&server.name, path);
        Self { server, source, target, threads: Threads::new(THREADS) }
    }

    pub(crate) fn target(&self) -> &Utf8Path {
        &self.target
    }

    /// Asks the server for nothing. `unreachable` if it does not answer.
    pub(crate) async fn answers(&self, cx: &Cx) -> Result<()> {
        let time = PATIENCE.min(cx.remaining() / 2);
        self.answers_within(cx, time).await
    }

    async fn answers_within(&self, cx: &Cx, time: Duration) -> Result<()> {
        if !self.server.tcp {
            return Ok(());
        }
        let Server { name, port, .. } = &self.server;
        nfs::answers(cx, &self.threads, name, *port, Instant::now() + time).await
    }

    /// Mounts the export if it is not: `created`. Looks at the kernel's list only.
    pub(crate) async fn reach(&self, cx: &Cx) -> Result<Changed> {
        if self.is_mounted()? {
            return Ok(Changed::Already);
        }
        let cx = &cx.within(cx.remaining().saturating_sub(reserve(cx)));
        let mounted =
            mount::attach(cx, "mount.nfs", &self.source, &self.target, &self.server.options).await;
        match mounted {
            Ok(output) if output.status == 0 => Ok(Changed::Created),
            // Somebody else was faster, or so it looks.
            _ if self.is_mounted()? => Ok(Changed::Already),
            Ok(output) => {
                let _ = std::fs::remove_dir(&self.target);
                Err(nfs::refusal(&self.server.name, &self.source, &output.stderr))
            }
            Err(error) if error.kind == Kind::DeadlineExceeded => {
                Err(nfs::dead(&self.server.name, "it did not answer the mount in time"))
            }
            Err(error) if error.kind == Kind::Unsupported => {
                Err(error.hint("the package is nfs-common on Debian, nfs-utils elsewhere"))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether our export is mounted; an error if something else is.
    fn is_mounted(&self) -> Result<bool> {
        let Some(found) = mount::at(self.target.as_std_path())? else { return Ok(false) };
        let is_nfs = matches!(found.kind.as_str(), "nfs" | "nfs4");
        let source = found.source.to_string_lossy();
        let wanted = self.source.trim_end_matches('/');
        if is_nfs && source.trim_end_matches('/') == wanted {
            return Ok(true);
        }
        Err(Error::new(
            Kind::InUse,
            format!("{} holds another mount: {source}, not {}", self.target, self.source),
        )
        .legacy(75)
        .hint("was the device configuration changed? smctl sr detach, then sr attach"))
    }

    /// Does work on what is mounted, and leaves it behind when the time is over.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        cx: &Cx,
        work: impl FnOnce(&Cx) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let reserve = reserve(cx);
        let until = cx.deadline().checked_sub(reserve).unwrap_or_else(Instant::now);
        let result = match self.threads.run(cx, until, work).await? {
            Ended::Done(Err(error)) if is_doubtful(&error) => Err(error),
            Ended::Done(result) => return result,
            Ended::Left => Err(Error::new(
                if cx.is_cancelled() { Kind::Cancelled } else { Kind::DeadlineExceeded },
                format!("{} on {} did not end in time", cx.operation(), self.source),
            )
            .hint("it goes on by itself; the same operation repeated finds what was done")),
        };
        // Of the two that may be the reason, the server can be asked. Not with the call's own
        // cancel: whoever gave up wants to know why, too.
        match self.answers_within(&cx.shielded(), reserve / 2).await {
            Err(dead) if dead.kind == Kind::Unreachable => {
                let what = result.as_ref().err().map(|error| error.message.clone());
                Err(dead.context("operation", cx.operation()).backend(what.unwrap_or_default()))
            }
            _ => result,
        }
    }

    /// Ends the mount.
    pub(crate) async fn let_go(&self, cx: &Cx) -> Result<Changed> {
        mount::detach(cx, &self.threads, &self.target).await
    }
}

fn reserve(cx: &Cx) -> Duration {
    RESERVE.min(cx.remaining() / 5)
}

/// An error that a server which does not answer makes as well: of a soft mount, "input/output
/// error".
fn is_doubtful(error: &Error) -> bool {
    matches!(error.kind, Kind::Internal | Kind::DeadlineExceeded | Kind::Busy { .. })
}
