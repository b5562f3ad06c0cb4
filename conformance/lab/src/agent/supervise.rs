//! On the machine: one process for each guest, first of a process namespace of its own.
//!
//! When it ends, the kernel ends everything in the namespace. It ends when the guest does, when it
//! is told to, and when its socket closes, which is what happens when the runner dies in any way.
//! So no guest outlives its runner, and nothing is ever ended by name.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use lab::balance::Balance;
use lab::wire::Spec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recv, recvmsg};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// More than a guest has network cards and lines.
const DESCRIPTORS: usize = 32;

pub(crate) fn run(spec: &Path) -> ExitCode {
    match supervise(spec) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The runner reads it where the guest's console goes.
            eprintln!("lab: the guest cannot be started: {error}");
            ExitCode::FAILURE
        }
    }
}

fn supervise(spec: &Path) -> io::Result<()> {
    let spec: Spec = serde_json::from_slice(&std::fs::read(spec)?)?;
    let control = rustix::stdio::stdin();
    let descriptors = descriptors()?;
    let memory = spec.folder.join("memory");
    shut_the_machine(&spec, &memory)?;
    // One processor for the guest's kernel and its processes: each system call in the guest is a
    // hand-over between two processes of the machine, twice as fast if they are on the same one.
    let mut balance = Balance::begin(spec.processor)?;

    let mut words = spec.command.iter().map(|word| {
        descriptors.iter().enumerate().fold(word.clone(), |word, (index, descriptor)| {
            word.replace(&format!("{{{index}}}"), &descriptor.as_raw_fd().to_string())
        })
    });
    let program = words.next().ok_or_else(|| io::Error::other("no program is named"))?;
    let mut guest = Command::new(program)
        .args(words)
        .env_clear()
        .env("TMPDIR", &memory)
        .stdin(Stdio::null())
        .spawn()?;
    drop(descriptors);
    let pid = Pid::from_child(&guest);
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let mut watched =
            [PollFd::new(&ended, PollFlags::IN), PollFd::new(&control, PollFlags::IN)];
        let rest = Timespec::try_from(balance.rest()).map_err(io::Error::other)?;
        match poll(&mut watched, Some(&rest)) {
            Err(rustix::io::Errno::INTR) => continue,
            // It runs on wherever it is.
            Ok(0) => {
                let _ = balance.look();
                continue;
            }
            result => result?,
        };
        let [ended, order] = watched;
        if !ended.revents().is_empty() {
            break;
        }
        if !order.revents().is_empty() {
            let mut letter = [0_u8; 1];
            match recv(control, &mut letter, RecvFlags::empty()) {
                Ok((_, 1)) if letter == *b"p" => kill_process(pid, Signal::STOP)?,
                Ok((_, 1)) if letter == *b"r" => kill_process(pid, Signal::CONT)?,
                _ => break,
            }
        }
    }
    let _ = guest.kill();
    let _ = guest.wait();
    Ok(())
}

/// The guest's ends of its line and cards. They come without the close-on-exec flag, for the
/// kernel of the guest.
fn descriptors() -> io::Result<Vec<OwnedFd>> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0_u8; 8];
    recvmsg(
        rustix::stdio::stdin(),
        &mut [IoSliceMut::new(&mut word)],
        &mut control,
        RecvFlags::empty(),
    )?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    Ok(rights.flatten().collect())
}

/// Makes all of the machine read-only in this namespace, except what the guest may write. Without
/// it, root in the guest could mount the machine's root and write it.
fn shut_the_machine(spec: &Spec, memory: &Path) -> io::Result<()> {
    // The guest's memory is a file in a file system of its own: /dev/shm of a container is often
    // too small, and a full one kills the guest without a word.
    std::fs::create_dir_all(memory)?;
    let size = format!("size={}m,mode=700", spec.memory + 64);
    let size = std::ffi::CString::new(size).map_err(io::Error::other)?;
    mount("memory", memory, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, size.as_c_str())?;
    for path in &spec.writable {
        mount_bind(path, path)
            .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
    }
    for (point, flags) in mounts()? {
        if point == memory || spec.writable.contains(&point) {
            continue;
        }
        let flags = flags | MountFlags::BIND | MountFlags::RDONLY;
        match mount_remount(&point, flags, c"") {
            // Covered by another mount, so nobody can reach it.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) | Ok(()) => {}
            Err(error) => {
                let what = format!("{} does not become read-only: {error}", point.display());
                return Err(io::Error::other(what));
            }
        }
    }
    Ok(())
}

/// Every mount of this namespace, with the flags that stay.
fn mounts() -> io::Result<Vec<(PathBuf, MountFlags)>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mounts = text.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(4);
        let (point, options) = (fields.next()?, fields.next()?);
        let flags = options.split(',').fold(MountFlags::empty(), |flags, option| match option {
            "nosuid" => flags | MountFlags::NOSUID,
            "nodev" => flags | MountFlags::NODEV,
            "noexec" => flags | MountFlags::NOEXEC,
            "noatime" => flags | MountFlags::NOATIME,
            "nodiratime" => flags | MountFlags::NODIRATIME,
            "relatime" => flags | MountFlags::RELATIME,
            _ => flags,
        });
        Some((unescaped(point).into(), flags))
    });
    Ok(mounts.collect())
}

/// The kernel writes blanks and backslashes in octal.
fn unescaped(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}
