//! Other programs: by argument vector, with a deadline, with nothing on stdin.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use crate::failure::{Doing, Failure, Result};

/// Time for a program that does one small thing.
const SHORT: Duration = Duration::from_secs(120);

/// A program to run.
pub(crate) struct Tool {
    command: Command,
    name: String,
    deadline: Duration,
}

/// What a program that succeeded has printed.
pub(crate) struct Printed {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Tool {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        let name = Path::new(program).file_name().unwrap_or(program);
        let mut command = Command::new(program);
        lab::forget_package(&mut command);
        // A question at a prompt would wait for ever where nobody sits.
        command.stdin(Stdio::null());
        Self { command, name: name.to_string_lossy().into_owned(), deadline: SHORT }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn directory(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    pub(crate) fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The command as a person would type it.
    pub(crate) fn text(&self) -> String {
        let words = self.command.get_args().map(|arg| quoted(&arg.to_string_lossy()));
        std::iter::once(self.name.clone()).chain(words).collect::<Vec<_>>().join(" ")
    }

    /// Runs it with both outputs captured. Another exit status than 0 is a failure.
    pub(crate) fn run(mut self) -> Result<Printed> {
        let text = self.text();
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn()?;
        let stdout = drain(child.stdout.take());
        let stderr = drain(child.stderr.take());
        let status = self.wait(&mut child)?;
        let printed = Printed {
            stdout: stdout.join().unwrap_or_default(),
            stderr: stderr.join().unwrap_or_default(),
        };
        if status.success() {
            return Ok(printed);
        }
        let said = if printed.stderr.trim().is_empty() { printed.stdout } else { printed.stderr };
        Err(Failure::new(format!("{text} ended with {status}")).cause(said))
    }

    /// Runs it with its outputs where ours go, and says how it ended.
    pub(crate) fn show(mut self) -> Result<ExitStatus> {
        let mut child = self.spawn()?;
        self.wait(&mut child)
    }

    /// Runs it with both outputs in one stream, in the order they were written, and hands on each
    /// line as it comes.
    pub(crate) fn lines(mut self, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
        let (read, write) = std::io::pipe().doing(|| "make a pipe".to_owned())?;
        self.command.stdout(write.try_clone().doing(|| "share a pipe".to_owned())?).stderr(write);
        let mut child = self.spawn()?;
        // The command keeps ends of the pipe open; without this the stream would never end.
        self.command.stdout(Stdio::null()).stderr(Stdio::null());
        let text = self.text();
        let deadline = self.deadline;
        let (send, lines) = std::sync::mpsc::channel::<String>();
        // On its own, because reading a pipe has no deadline. It ends with the stream.
        thread::spawn(move || {
            let mut read = BufReader::new(read);
            let mut line = Vec::new();
            while read.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                if send.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
        let end = Instant::now() + deadline;
        loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => each(&line),
                Err(RecvTimeoutError::Disconnected) => {
                    return child.wait().doing(|| format!("wait for {text}"));
                }
                Err(RecvTimeoutError::Timeout) => {
                    // Cargo alone would leave the test that hangs behind.
                    kill_family(Pid::from_child(&child));
                    let _ = child.wait();
                    return Err(late_failure(&text, deadline));
                }
            }
        }
    }

    fn spawn(&mut self) -> Result<Child> {
        self.command.spawn().map_err(|error| {
            let failure = Failure::new(format!("{} cannot be run", self.name)).cause(&error);
            if error.kind() == std::io::ErrorKind::NotFound {
                failure.hint("cargo xtask setup installs what is missing")
            } else {
                failure
            }
        })
    }

    /// Waits until the child ends, or ends it at the deadline.
    fn wait(&self, child: &mut Child) -> Result<ExitStatus> {
        let text = self.text();
        let doing = || format!("wait for {text}");
        let end = Instant::now() + self.deadline;
        let handle = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())
            .doing(doing)?;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let mut watched = [PollFd::new(&handle, PollFlags::IN)];
            match rustix::event::poll(&mut watched, Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).doing(doing),
                Ok(0) => {
                    // It may have ended by itself in this very moment.
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(late_failure(&text, self.deadline));
                }
                Ok(_) => return child.wait().doing(doing),
            }
        }
    }
}

/// Ends a process and all that descend from it. The parents first: they would start more.
fn kill_family(pid: Pid) {
    let children = children(pid);
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    children.into_iter().for_each(kill_family);
}

fn children(pid: Pid) -> Vec<Pid> {
    let pid = pid.as_raw_nonzero();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let numbers: Vec<String> = lists.flat_map(|list| words(&list)).collect();
    numbers.iter().filter_map(|number| Pid::from_raw(number.parse().ok()?)).collect()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn late_failure(text: &str, deadline: Duration) -> Failure {
    Failure::new(format!("{text} did not end within {} s and was stopped", deadline.as_secs()))
}

fn drain(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What came before an error is better than nothing.
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A word as a shell would need it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%_+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Where a program is in `PATH`, the system's directories included: the tools of file systems are
/// in `/usr/sbin`, which is not in everybody's.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path: OsString = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_prints_is_captured_and_its_failure_told() {
        let printed = Tool::new("sh").args(["-c", "echo out; echo err >&2"]).run().unwrap();
        assert_eq!((printed.stdout.as_str(), printed.stderr.as_str()), ("out\n", "err\n"));
        let failure = Tool::new("sh").args(["-c", "echo no >&2; exit 3"]).run().err().unwrap();
        assert_eq!(
            failure.to_string(),
            "sh -c 'echo no >&2; exit 3' ended with exit status: 3\n  because: no"
        );
    }

    #[test]
    fn both_streams_come_in_the_order_they_were_written() {
        let mut lines = Vec::new();
        let script = "echo 1; echo 2 >&2; echo 3; exit 1";
        let status = Tool::new("sh").args(["-c", script]).lines(|line| lines.push(line.to_owned()));
        assert_eq!(lines, ["1", "2", "3"]);
        assert_eq!(status.unwrap().code(), Some(1));
    }

    #[test]
    fn a_program_that_hangs_is_stopped() {
        for hang in [
            Tool::new("sleep").arg("60").deadline(Duration::from_millis(20)).run().err(),
            Tool::new("sleep").arg("60").deadline(Duration::from_millis(20)).lines(|_| ()).err(),
        ] {
            assert!(hang.unwrap().to_string().contains("sleep 60 did not end within"));
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let failure = Tool::new("no-such-program").run().err().unwrap().to_string();
        assert!(failure.contains("no-such-program cannot be run"), "{failure}");
        assert!(failure.contains("cargo xtask setup"), "{failure}");
    }
}
