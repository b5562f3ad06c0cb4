//! Starts the process that runs a driver, with as few rights as it needs.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{OnceLock, mpsc};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    Resource, Rlimit, Signal, getpid, getppid, set_parent_process_death_signal, setrlimit,
};
use sm_model::Manifest;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::LoadError;
use crate::open::ChildOptions;

/// Name of the program.
const PROGRAM: &str = "sm-driver-host";

/// Names the program's path where it is not beside this one.
const VARIABLE: &str = "SM_DRIVER_HOST";

/// Finds the program: what was given, else the environment, else beside this program or in the
/// directory above (where cargo puts programs, seen from a test).
pub(crate) fn locate(given: Option<&Path>) -> Result<PathBuf, LoadError> {
    let mut candidates: Vec<PathBuf> = Vec::new();
    if let Some(path) = given {
        candidates.push(path.to_owned());
    } else if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        candidates.push(path.into());
    } else if let Ok(executable) = std::env::current_exe() {
        candidates.extend(executable.ancestors().skip(1).take(2).map(|place| place.join(PROGRAM)));
    }
    if let Some(found) = candidates.iter().find(|path| path.is_file()) {
        return Ok(found.clone());
    }
    let searched = candidates.iter().map(|path| path.display().to_string()).collect();
    Err(LoadError::NoDriverHost { searched })
}

/// A started process and our end of its socket.
pub(crate) struct Started {
    pub(crate) child: Child,
    pub(crate) socket: UnixStream,
}

/// What to start.
pub(crate) struct Program<'a> {
    pub(crate) path: &'a Path,
    /// The driver's private copy, open for reading.
    pub(crate) library: &'a File,
    pub(crate) manifest: &'a Manifest,
    pub(crate) options: &'a ChildOptions,
    /// Whether it is the first child of its port.
    pub(crate) first: bool,
}

/// Starts the process.
pub(crate) async fn start(handle: &Handle, program: Program<'_>) -> Result<Started, LoadError> {
    let failed = |source| LoadError::Spawn {
        driver: program.manifest.name.clone(),
        program: program.path.to_owned(),
        source,
    };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    // By descriptor, not by path: the child may not have the right to walk to the file, and what
    // it maps is the file that was verified, for as long as the port lives.
    let library = program.library.try_clone().map_err(failed)?;

    let mut command = Command::new(program.path);
    command
        .arg("--driver")
        .arg(&program.manifest.name)
        .arg("--fd")
        .arg(theirs.as_raw_fd().to_string())
        .arg("--library")
        .arg(library.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    command.envs(program.options.environment.iter().map(|(name, value)| (name, value)));
    if program.first {
        command.envs(program.options.first_environment.iter().map(|(name, value)| (name, value)));
    }
    if let Some((user, group)) = program.options.run_as
        && !program.manifest.needs_root
        && rustix::process::geteuid().is_root()
    {
        command.uid(user).gid(group); // Without a word on further groups, std drops them.
    }
    confine(&mut command, [theirs.into(), library.into()], program.options.memory_limit);
    let child = spawn(handle, command).await.map_err(failed)?;
    Ok(Started { child, socket: ours })
}

/// What the new process does to itself between fork and exec, after its change of user.
fn confine(command: &mut Command, inherited: [OwnedFd; 2], memory_limit: Option<u64>) {
    let parent = getpid();
    let prepare = move || -> io::Result<()> {
        // Their own numbers are kept. Moving them to fixed ones (3, 4) could overwrite the pipe
        // on which std reports a failing exec.
        for descriptor in &inherited {
            fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(parent) {
            // The parent died before the line above.
            return Err(rustix::io::Errno::SRCH.into());
        }
        if let Some(bytes) = memory_limit {
            setrlimit(Resource::As, Rlimit { current: Some(bytes), maximum: Some(bytes) })?;
        }
        rustix::thread::set_no_new_privs(true)?;
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe things may happen. These are direct
    // system calls on values that exist already; nothing allocates, locks or panics.
    unsafe { command.pre_exec(prepare) };
}

struct Job {
    command: Command,
    handle: Handle,
    done: oneshot::Sender<io::Result<Child>>,
}

/// Forks on a thread that lives as long as this process does: the death signal of a child is sent
/// when the *thread* that forked it ends, and the threads of a runtime come and go.
async fn spawn(handle: &Handle, command: Command) -> io::Result<Child> {
    static FORKER: OnceLock<Option<mpsc::Sender<Job>>> = OnceLock::new();
    let forker = FORKER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("sm-forker".into())
            .spawn(move || {
                for mut job in jobs {
                    let _context = job.handle.enter();
                    let _ = job.done.send(job.command.spawn());
                }
            })
            .ok()
            .map(|_| sender)
    });
    let gone = || io::Error::other("the thread that starts processes is not there");
    let (done, result) = oneshot::channel();
    let job = Job { command, handle: handle.clone(), done };
    forker.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
    result.await.map_err(|_| gone())?
}
