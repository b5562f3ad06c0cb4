//! Two programs of whoever runs the guest: one that brings it to rest, one that lets it go on.
//!
//! Each gets its argument vector, no shell, an environment of `PATH`, `LC_ALL` and what is named
//! below, and a process group of its own that ends with its deadline. The second one is run
//! whatever the first one says, and again if nobody knows whether it was.
//!
//! | variable | value |
//! |---|---|
//! | `SM_QUIESCE` | `freeze`, `thaw` |
//! | `SM_SNAPSHOT_SET` | the set's UUID |
//! | `SM_SNAPSHOT_RESULT` | of a thaw: `taken`, `failed` |

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use sm_model::{Error, Kind, Result, VdiUuid};
use uuid::Uuid;

use crate::quiescer::{Consistency, Frozen, Outcome, Quiescer, REFUSED, Ready, Thawed};

/// Where programs are looked for that are not named by a path.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Between the request to end and the end by force.
const GRACE: Duration = Duration::from_secs(2);

/// How much of what a program has said an error repeats, in bytes from its end.
const TAIL: u64 = 2000;

/// A guest behind two programs.
#[derive(Debug)]
pub struct Hook {
    before: Vec<String>,
    after: Vec<String>,
    set: Uuid,
}

impl Hook {
    /// These programs with their arguments; one that is empty is not run.
    pub fn new(before: &[String], after: &[String], set: Uuid) -> Self {
        Self { before: before.to_vec(), after: after.to_vec(), set }
    }

    fn run(&self, argv: &[String], variables: &[(&str, &str)], until: Instant) -> Result<()> {
        let Some((program, arguments)) = argv.split_first() else { return Ok(()) };
        let failed = |error: std::io::Error| {
            Error::new(REFUSED, format!("the hook {program} cannot be run")).source(&error)
        };
        // What it says goes to no file system: it may have frozen them.
        let said = rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC)
            .map_err(|error| failed(error.into()))?;
        let mut said = File::from(said);
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            .env("SM_SNAPSHOT_SET", self.set.to_string())
            .envs(variables.iter().copied())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(said.try_clone().map_err(failed)?)
            .stderr(said.try_clone().map_err(failed)?)
            .spawn();
        let mut child = child.map_err(failed)?;
        let status = wait(&mut child, until).map_err(failed)?;
        let error = match status {
            Some(status) if status.success() => return Ok(()),
            Some(status) => Error::new(REFUSED, format!("the hook {program} ended with {status}")),
            None => {
                let text = format!("the hook {program} did not end in time and was stopped");
                Error::new(Kind::DeadlineExceeded, text)
            }
        };
        let words = tail(&mut said);
        Err(if words.is_empty() { error } else { error.backend(words) })
    }
}

impl Quiescer for Hook {
    fn prepare(&mut self, _: Instant) -> Result<Ready> {
        let system = self.before.join(" ");
        // What the programs reach is the word of whoever wrote them.
        Ok(Ready { level: Consistency::Application, system })
    }

    fn freeze(&mut self, _: &[VdiUuid], until: Instant) -> Result<Frozen> {
        self.run(&self.before, &[("SM_QUIESCE", "freeze")], until)?;
        Ok(Frozen { count: 1 })
    }

    fn thaw(&mut self, outcome: &Outcome, until: Instant) -> Result<Thawed> {
        let result = if *outcome == Outcome::Failed { "failed" } else { "taken" };
        let variables = [("SM_QUIESCE", "thaw"), ("SM_SNAPSHOT_RESULT", result)];
        self.run(&self.after, &variables, until)?;
        Ok(Thawed { count: 1, document: None })
    }

    fn rescue(&mut self, until: Instant) -> Result<bool> {
        // A program cannot be asked whether its guest is at rest.
        self.thaw(&Outcome::Failed, until)?;
        Ok(true)
    }
}

/// Waits until the program has ended; at the deadline its whole group is ended, and none answered.
fn wait(child: &mut Child, until: Instant) -> std::io::Result<Option<ExitStatus>> {
    let handle = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    if ends(&handle, until)? {
        return child.wait().map(Some);
    }
    // Not reaped yet, so the number is nobody else's.
    let group = Pid::from_child(child);
    let _ = rustix::process::kill_process_group(group, Signal::TERM);
    let _ = ends(&handle, Instant::now() + GRACE)?;
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
    // One that waits for a dead disk cannot be killed: it is left to the kernel.
    if ends(&handle, Instant::now() + GRACE)? {
        child.wait()?;
    }
    Ok(None)
}

fn ends(handle: &impl std::os::fd::AsFd, until: Instant) -> std::io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut watched = [PollFd::new(handle, PollFlags::IN)];
        match rustix::event::poll(&mut watched, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(count) => return Ok(count > 0),
        }
    }
}

fn tail(said: &mut File) -> String {
    let length = said.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = Vec::new();
    let start = std::io::SeekFrom::Start(length.saturating_sub(TAIL));
    if said.seek(start).is_ok() {
        let _ = said.take(TAIL).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn a_hook_is_no_shell_and_is_told_what_happens() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a b; $HOME");
        let name = file.to_str().unwrap();
        let script = "echo \"$SM_QUIESCE $SM_SNAPSHOT_RESULT $SM_SNAPSHOT_SET\" >> \"$0\"";
        let argv = words(&["sh", "-c", script, name]);
        let mut hook = Hook::new(&argv, &argv, Uuid::nil());
        assert_eq!(hook.prepare(soon()).unwrap().level, Consistency::Application);
        hook.freeze(&[], soon()).unwrap();
        hook.thaw(&Outcome::Taken(Vec::new()), soon()).unwrap();
        assert!(hook.rescue(soon()).unwrap());
        let set = Uuid::nil();
        assert_eq!(
            std::fs::read_to_string(&file).unwrap(),
            format!("freeze  {set}\nthaw taken {set}\nthaw failed {set}\n")
        );
    }

    #[test]
    fn a_hook_that_fails_is_told_by_its_words() {
        let argv = words(&["sh", "-c", "echo out; echo why >&2; exit 3"]);
        let mut hook = Hook::new(&argv, &[], Uuid::nil());
        let error = hook.freeze(&[], soon()).unwrap_err();
        assert_eq!(error.message, "the hook sh ended with exit status: 3");
        assert_eq!(error.backend.as_deref(), Some("out\nwhy"));
        assert!(hook.thaw(&Outcome::Failed, soon()).is_ok(), "no program, nothing to run");
        let mut hook = Hook::new(&words(&["/no/such/hook"]), &[], Uuid::nil());
        let error = hook.freeze(&[], soon()).unwrap_err();
        assert_eq!(error.message, "the hook /no/such/hook cannot be run");
    }

    #[test]
    fn a_hook_that_hangs_ends_with_all_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = "trap '' TERM; sleep 600 & echo $! > \"$0\"; wait; wait; sleep 600";
        let argv = words(&["sh", "-c", script, file.to_str().unwrap()]);
        let mut hook = Hook::new(&argv, &[], Uuid::nil());
        let error = hook.freeze(&[], Instant::now() + Duration::from_millis(300)).unwrap_err();
        assert_eq!(error.kind, Kind::DeadlineExceeded);
        assert_eq!(error.message, "the hook sh did not end in time and was stopped");
        let pid: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        let until = soon();
        // It is gone, or a zombie that somebody else has to reap.
        let alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        while alive() && Instant::now() < until {
            std::thread::yield_now();
        }
        assert!(!alive(), "{pid} is still there");
    }
}
