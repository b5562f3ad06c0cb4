//! What a driver's process asks of the kernel, seen and disturbed from outside by `strace`.
//!
//! `strace` is attached when a call is about to be made and goes when it has ended, so that what it counts
//! is that call. With `-f` it follows the threads, and the programs that the driver runs. It counts each
//! system call of each thread by itself: "the third `pwrite64`" is that of any thread that comes so far.
//!
//! # Why not ...
//!
//! - **`ptrace` by ourselves**: unsafe code for what a tool does that is in every distribution.
//! - **a library that is loaded before the driver**: it does not see a program that is linked statically,
//!   nor a call that is no function of the C library.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::verdict::{Stop, Verdict};

/// How long it may take to attach, and to let go.
const SOON: Duration = Duration::from_secs(20);

/// What a call does to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Does {
    /// Puts data, or its place, on the storage.
    Write,
    /// Waits until it is there.
    Sync,
    /// Takes from the storage, or asks an array, device-mapper or the kernel for a change.
    Other,
}

/// How a call says what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Descriptor,
    Name,
}

/// Calls that change a backend.
const CALLS: &[(&str, Does, By)] = &[
    ("write", Does::Write, By::Descriptor),
    ("writev", Does::Write, By::Descriptor),
    ("pwrite64", Does::Write, By::Descriptor),
    ("pwritev", Does::Write, By::Descriptor),
    ("pwritev2", Does::Write, By::Descriptor),
    ("fallocate", Does::Write, By::Descriptor),
    ("ftruncate", Does::Write, By::Descriptor),
    ("truncate", Does::Write, By::Name),
    ("copy_file_range", Does::Write, By::Descriptor),
    ("openat", Does::Write, By::Name),
    ("mkdir", Does::Write, By::Name),
    ("mkdirat", Does::Write, By::Name),
    ("symlink", Does::Write, By::Name),
    ("symlinkat", Does::Write, By::Name),
    ("link", Does::Write, By::Name),
    ("linkat", Does::Write, By::Name),
    ("rename", Does::Write, By::Name),
    ("renameat", Does::Write, By::Name),
    ("renameat2", Does::Write, By::Name),
    ("fsync", Does::Sync, By::Descriptor),
    ("fdatasync", Does::Sync, By::Descriptor),
    ("syncfs", Does::Sync, By::Descriptor),
    ("sync_file_range", Does::Sync, By::Descriptor),
    ("unlink", Does::Other, By::Name),
    ("unlinkat", Does::Other, By::Name),
    ("rmdir", Does::Other, By::Name),
    ("sendto", Does::Other, By::Descriptor),
    ("sendmsg", Does::Other, By::Descriptor),
    ("ioctl", Does::Other, By::Descriptor),
    ("mount", Does::Other, By::Name),
    ("umount2", Does::Other, By::Name),
];

/// A system call that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// The thread that made it.
    thread: u32,
    pub(crate) call: String,
    /// The file, device or socket that it was about.
    pub(crate) target: String,
    /// Which one it was of this call in this thread, from 1; and of those with this target.
    nth: usize,
    nth_there: usize,
    /// It was not carried out, and answered an error instead.
    pub(crate) injected: bool,
}

impl Event {
    /// Whether it was about a file, a folder or a device.
    pub(crate) fn is_of_a_file(&self) -> bool {
        const OTHERS: [&str; 5] = ["/proc/", "/sys/", "/dev/null", "/dev/tty", "/dev/pts"];
        self.target.starts_with('/') && !OTHERS.iter().any(|other| self.target.starts_with(other))
    }

    /// What it does; nothing of a call that is not followed.
    pub(crate) fn does(&self) -> Option<Does> {
        CALLS.iter().find(|(name, ..)| *name == self.call).map(|(_, does, _)| *does)
    }

    /// Whether it was about the network, or about the host's line to the driver.
    fn is_of_a_socket(&self) -> bool {
        self.target.starts_with("socket:")
    }
}

/// Where to disturb: a system call, and which one of a thread.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    call: String,
    nth: usize,
    /// Of those only that are about this file.
    only: Option<String>,
}

impl Point {
    /// The point in another run of the operation, which makes files of other names.
    pub(crate) fn renamed(&self, names: impl Iterator<Item = (String, String)>) -> Self {
        let mut point = self.clone();
        if let Some(only) = &mut point.only {
            for (old, new) in names {
                *only = only.replace(&old, &new);
            }
        }
        point
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} of a thread", self.call, self.nth)?;
        self.only.as_ref().map_or(Ok(()), |only| write!(f, " in {only}"))
    }
}

/// The points at which files or devices were changed, and those at which something was sent.
///
/// Where all threads that come so far do the like, the number says enough, whatever the file is called
/// next time. Else one writes to a file what is another's word to its neighbour, and the file is named.
pub(crate) fn points(events: &[Event], what: &[Does]) -> (Vec<Point>, Vec<Point>) {
    let is_asked = |event: &&Event| event.does().is_some_and(|does| what.contains(&does));
    let events = || events.iter().filter(is_asked);
    let mut all = BTreeMap::new();
    for event in events() {
        let (file, socket) = all.entry((&event.call, event.nth)).or_insert((true, true));
        *file &= event.is_of_a_file();
        *socket &= event.is_of_a_socket();
    }
    let (mut files, mut sockets) = (BTreeSet::new(), BTreeSet::new());
    for event in events() {
        let mut point = Point { call: event.call.clone(), nth: event.nth, only: None };
        match all.get(&(&event.call, event.nth)) {
            Some((true, _)) => _ = files.insert(point),
            Some((_, true)) => _ = sockets.insert(point),
            _ if event.is_of_a_file() => {
                (point.nth, point.only) = (event.nth_there, Some(event.target.clone()));
                files.insert(point);
            }
            _ => {}
        }
    }
    (files.into_iter().collect(), sockets.into_iter().collect())
}

/// What is done at a point.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Harm {
    /// The process is killed before the call.
    Kill,
    /// The call is not carried out, and answers this error.
    Error(&'static str),
}

/// `strace`, attached to a process.
pub(crate) struct Trace {
    child: Child,
    log: PathBuf,
}

impl Trace {
    /// Attaches to all threads of a process, and disturbs it where that is asked for.
    pub(crate) fn attach(
        process: u32,
        log: PathBuf,
        harm: Option<(&Point, Harm)>,
    ) -> Verdict<Self> {
        // The question mark: not every processor's kernel has all of them.
        let calls: Vec<String> = CALLS.iter().map(|(call, ..)| format!("?{call}")).collect();
        let mut command = Command::new("strace");
        // No word of what is written: it may be a secret.
        command.args(["-f", "-y", "-qq", "-s", "0", "-e", "signal=none"]);
        command.arg("-e").arg(format!("trace={}", calls.join(",")));
        if let Some((Point { call, nth, only }, harm)) = harm {
            let what = match harm {
                Harm::Kill => "signal=KILL".to_owned(),
                Harm::Error(error) => format!("error={error}"),
            };
            command.arg("-e").arg(format!("inject={call}:{what}:when={nth}"));
            if let Some(path) = only {
                command.arg("-P").arg(path);
            }
        }
        command.arg("-o").arg(&log).arg("-p").arg(process.to_string()).env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| {
            Stop::NotTestable(format!(
                "strace cannot be run: {error}; install it (Debian's package strace)"
            ))
        })?;
        let mut trace = Self { child, log };
        let until = Instant::now() + SOON;
        while !is_traced(process) {
            if let Ok(Some(_)) = trace.child.try_wait() {
                return Err(trace.cannot());
            }
            if Instant::now() >= until {
                return Err(Stop::NotTestable(format!(
                    "strace has not attached to process {process} within {} s",
                    SOON.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(trace)
    }

    fn cannot(&mut self) -> Stop {
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut said);
        }
        Stop::NotTestable(format!(
            "strace cannot attach to the driver: {}; run as root, or as the driver's user with the \
             sysctl kernel.yama.ptrace_scope at 0",
            said.trim().lines().last().unwrap_or_default()
        ))
    }

    /// Lets go; what was done meanwhile.
    pub(crate) fn end(self) -> Verdict<Vec<Event>> {
        Ok(parse(&self.text()?))
    }

    /// Lets go; what was done meanwhile, in the words of strace.
    pub(crate) fn text(mut self) -> Verdict<String> {
        self.let_go();
        let text = fs::read_to_string(&self.log);
        text.map_err(|error| Stop::NotTestable(format!("the log of strace: {error}")))
    }

    fn let_go(&mut self) {
        let process = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let until = Instant::now() + SOON;
        if let (Ok(None), Some(process)) = (self.child.try_wait(), process) {
            let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
        }
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= until {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Whether all threads of a process have a tracer.
fn is_traced(process: u32) -> bool {
    let Ok(tasks) = fs::read_dir(Path::new("/proc").join(process.to_string()).join("task")) else {
        return false;
    };
    let mut threads = 0;
    for task in tasks.flatten() {
        // One that has ended meanwhile does nothing any more.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        threads += 1;
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
        if tracer.is_none_or(|tracer| tracer.trim() == "0") {
            return false;
        }
    }
    threads > 0
}

/// The log's lines: `12 fsync(3</a/file>) = 0`, or in two parts where another thread came between.
fn parse(log: &str) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let mut counts: BTreeMap<(u32, &str), usize> = BTreeMap::new();
    let mut there: BTreeMap<(u32, &str, String), usize> = BTreeMap::new();
    for line in log.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let (Ok(thread), rest) = (thread.parse::<u32>(), rest.trim_start()) else { continue };
        let injected = rest.ends_with("(INJECTED)");
        if rest.starts_with("<...") {
            let begun = events.iter_mut().rfind(|event| event.thread == thread);
            if let Some(event) = begun {
                event.injected |= injected;
            }
            continue;
        }
        let Some((call, words)) = rest.split_once('(') else { continue };
        let nth = counts.entry((thread, call)).or_default();
        *nth += 1;
        let target = target(call, words);
        let nth_there = there.entry((thread, call, target.clone())).or_default();
        *nth_there += 1;
        let (nth, nth_there) = (*nth, *nth_there);
        events.push(Event { thread, call: call.to_owned(), target, nth, nth_there, injected });
    }
    events
}

/// What a call is about. An `openat` that makes nothing is about nothing, as is an `ioctl` that is not
/// device-mapper's or a clone's.
fn target(call: &str, words: &str) -> String {
    let descriptor = words.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    let descriptor = descriptor.map_or("", |(path, _)| path);
    let changes = match call {
        "openat" => words.contains("O_CREAT"),
        "ioctl" => words.contains("DM_") || words.contains("FICLONE"),
        _ => true,
    };
    if !changes {
        return String::new();
    }
    if !CALLS.iter().any(|(name, _, by)| *name == call && *by == By::Name) {
        return descriptor.to_owned();
    }
    // The last text is the name that is made, where there are two.
    let name = words.rsplit('"').nth(1).unwrap_or_default();
    if name.starts_with('/') { name.to_owned() } else { format!("{descriptor}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_counts_its_calls_for_itself() {
        let log = "\
            11 openat(AT_FDCWD</>, \"/a/x.new\", O_WRONLY|O_CREAT|O_CLOEXEC, 0666) = 3</a/x.new>\n\
            11 pwrite64(3</a/x.new>, \"\"..., 512, 0) = 512\n\
            12 pwrite64(4</a/y>, \"\"..., 512, 0 <unfinished ...>\n\
            11 pwrite64(3</a/x.new>, \"\"..., 512, 512) = 512\n\
            12 <... pwrite64 resumed>) = -1 EIO (Input/output error) (INJECTED)\n\
            11 write(5<socket:[77]>, \"\"..., 9) = 9\n\
            12 write(6<anon_inode:[eventfd]>, \"\"..., 8) = 8\n\
            11 renameat(AT_FDCWD</a>, \"x.new\", AT_FDCWD</a>, \"x\") = 0\n\
            12 openat(AT_FDCWD</>, \"/a/y\", O_RDONLY) = 4</a/y>\n\
            12 write(7</a/z>, \"\"..., 8) = 8\n\
            11 +++ exited with 0 +++\n";
        let events = parse(log);
        let told: Vec<String> = events
            .iter()
            .map(|e| format!("{} {}{} {} {}", e.thread, e.call, e.nth, e.target, e.injected))
            .collect();
        assert_eq!(
            told,
            [
                "11 openat1 /a/x.new false",
                "11 pwrite641 /a/x.new false",
                "12 pwrite641 /a/y true",
                "11 pwrite642 /a/x.new false",
                "11 write1 socket:[77] false",
                "12 write1 anon_inode:[eventfd] false",
                "11 renameat1 /a/x false",
                "12 openat1  false",
                "12 write2 /a/z false",
            ]
        );
        let (files, sockets) = points(&events[..8], &[Does::Write]);
        let told = |points: Vec<Point>| points.iter().map(ToString::to_string).collect::<Vec<_>>();
        // What is a socket in one thread and something else in another one is neither.
        assert_eq!(sockets, []);
        assert_eq!(
            told(files),
            [
                "openat 1 of a thread in /a/x.new",
                "pwrite64 1 of a thread",
                "pwrite64 2 of a thread",
                "renameat 1 of a thread",
            ]
        );
        let (files, _) = points(&events, &[Does::Write]);
        assert_eq!(told(files).last().map(String::as_str), Some("write 2 of a thread"));
        let point = Point { call: "write".into(), nth: 1, only: Some("/a/one.new".into()) };
        let next = point.renamed([("one".to_owned(), "two".to_owned())].into_iter());
        assert_eq!(next.to_string(), "write 1 of a thread in /a/two.new");
    }
}
