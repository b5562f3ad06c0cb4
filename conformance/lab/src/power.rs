//! Switching a guest on, and the line to its agent.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Doing, Error, Result};
use crate::guest::{Inner, lock};
use crate::machine;
use crate::wire::{self, Frame, Kind, Spec};

/// Time for a boot on a machine that is busy with other things.
const BOOT: Duration = Duration::from_secs(90);
/// Time for a guest to take a frame of its line. A paused one does not.
const TAKE: Duration = Duration::from_secs(20);

/// What there is while a guest is on.
pub(crate) struct Power {
    pub(crate) supervisor: Child,
    /// Orders to the supervisor. When it closes, the guest ends.
    pub(crate) control: OwnedFd,
    pub(crate) line: Line,
}

/// The line to the agent in a guest.
#[derive(Clone)]
pub(crate) struct Line {
    to: Arc<Mutex<(UnixStream, Receiver<()>)>>,
    pub(crate) calls: Arc<Mutex<HashMap<u32, Sender<Frame>>>>,
}

impl Line {
    /// Sends a frame and waits until the guest has it; see [`wire`].
    pub(crate) fn put(&self, kind: Kind, call: u32, data: &[u8]) -> std::io::Result<()> {
        let mut line = lock(&self.to);
        wire::send(&mut line.0, kind, call, data)?;
        line.1.recv_timeout(TAKE).map_err(std::io::Error::other)
    }
}

impl Inner {
    pub(crate) fn switch_on(&self) -> Result<Power> {
        let machine = &self.lab.machine;
        if let Some(free) = machine::free_memory().filter(|free| *free < self.memory) {
            return Err(Error::Boot {
                guest: self.name.clone(),
                reason: format!("it needs {} MiB of memory, {free} are free", self.memory),
                console: String::new(),
            });
        }
        let doing = || format!("start {}", self.name);
        let (ours, theirs) = UnixStream::pair().doing(doing)?;
        theirs.set_nonblocking(true).doing(doing)?;
        let spec = self.folder.join("spec");
        let text = serde_json::to_vec(&self.spec()).map_err(std::io::Error::from).doing(doing)?;
        std::fs::write(&spec, text).doing(doing)?;
        let console =
            OpenOptions::new().create(true).append(true).open(self.folder.join("console"));
        let console = console.doing(doing)?;
        let (control, orders) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .doing(doing)?;
        // A process namespace, so that all of the guest ends with its supervisor; a mount
        // namespace, so that the supervisor can make the machine read-only.
        let supervisor = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--pid", "--mount-proc", "--fork"])
            .args(["--kill-child", "--"])
            .arg(&machine.agent)
            .arg("supervise")
            .arg(&spec)
            .stdin(Stdio::from(orders))
            .stdout(Stdio::from(console.try_clone().doing(doing)?))
            .stderr(Stdio::from(console))
            .spawn()
            .doing(doing)?;
        let cables = self.cards.iter().map(|card| card.cable.as_fd());
        let descriptors: Vec<_> = std::iter::once(theirs.as_fd()).chain(cables).collect();
        let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        if !rights.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(Error::Wrong(format!("{} has too many network cards", self.name)));
        }
        sendmsg(&control, &[IoSlice::new(b"go")], &mut rights, SendFlags::NOSIGNAL).doing(doing)?;
        drop(theirs);
        let mut power = Power { supervisor, control, line: line(&ours).doing(doing)? };
        match Self::ready(ours, &power.line) {
            Ok(()) => Ok(power),
            Err(reason) => {
                power.cut();
                self.lab.keep();
                let console = self.last_lines();
                Err(Error::Boot { guest: self.name.clone(), reason, console })
            }
        }
    }

    /// Waits until the agent answers, then hands on what it says to the calls.
    fn ready(mut from: UnixStream, line: &Line) -> std::result::Result<(), String> {
        let words = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::WouldBlock => format!("no answer within {} s", BOOT.as_secs()),
            std::io::ErrorKind::UnexpectedEof => "it ended".to_owned(),
            _ => error.to_string(),
        };
        from.set_read_timeout(Some(BOOT)).map_err(words)?;
        let frame = wire::receive(&mut from).map_err(words)?;
        if frame.kind != Kind::Ready || frame.data != wire::identity().as_bytes() {
            return Err("its agent was built from other sources".to_owned());
        }
        from.set_read_timeout(None).map_err(words)?;
        let taken = {
            let (sender, taken) = channel();
            lock(&line.to).1 = taken;
            sender
        };
        let calls = Arc::clone(&line.calls);
        thread::spawn(move || {
            while let Ok(frame) = wire::receive(&mut from) {
                if frame.kind == Kind::Taken {
                    let _ = taken.send(());
                } else if frame.kind == Kind::Ready {
                    // It has booted again by itself, after a panic for instance: what ran is gone.
                    lock(&calls).clear();
                } else if let Some(call) = lock(&calls).get(&frame.call) {
                    let _ = call.send(frame);
                }
            }
            // Whoever still waits sees the end of his channel.
            lock(&calls).clear();
        });
        Ok(())
    }

    fn spec(&self) -> Spec {
        let machine = &self.lab.machine;
        let text = |path: &Path| path.display().to_string();
        let mut command = vec![
            text(&machine.kernel),
            format!("mem={}M", self.memory),
            format!("umid={}", self.name),
            format!("uml_dir={}", text(&self.folder)),
        ];
        let words = [
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            "selinux=0",
            "quiet",
            // A kernel that panics ends, and does not hang.
            "panic=-1",
            // Most of a boot would be a race of algorithms for RAID 6, which nobody uses here, and
            // memory for compressed pages, which a guest without swap space never has. The second
            // has another name in later kernels; one that is not there is no error.
            "initcall_blacklist=raid6_select_algo,init_zswap,zswap_init",
            "cryptomgr.notests",
            // The 512 devices of terminals as they once were: a third of the rest of a boot, and
            // LVM looks at every device there is.
            "pty.legacy_count=0",
            "con=null",
            "con0=null,fd:1",
            "ssl=null",
            "ssl0=fd:{0},fd:{0}",
        ];
        command.extend(words.map(str::to_owned));
        for (index, card) in self.cards.iter().enumerate() {
            let [_, _, network, guest] = card.address.octets();
            let mac = format!("0e:1a:b0:00:{network:02x}:{guest:02x}");
            let descriptor = index + 1;
            command.push(format!("vec{index}:transport=fd,fd={{{descriptor}}},vec=1,mac={mac}"));
        }
        for (index, disk) in self.disks.iter().enumerate() {
            command.push(format!("ubd{index}={}", text(disk.path())));
        }
        command.push(format!("init={}", text(&machine.agent)));
        command.push(format!("LAB_FOLDER={}", text(&self.folder)));
        let disks = self.disks.iter().map(|disk| disk.path().to_owned());
        let writable =
            [self.folder.clone()].into_iter().chain(self.shares.iter().cloned()).chain(disks);
        Spec {
            name: self.name.clone(),
            command,
            processor: self.processor,
            folder: self.folder.clone(),
            memory: self.memory,
            writable: writable.collect(),
            shares: self.shares.clone(),
            tools: machine.tools.clone(),
            modules: machine.modules.clone(),
            load: self.modules.clone(),
            addresses: self.cards.iter().map(|card| card.address).collect(),
        }
    }
}

impl Power {
    /// Ends the guest at once.
    pub(crate) fn cut(&mut self) {
        // Any letter that is no other order ends the guest, and the kernel all of its processes.
        let _ = rustix::net::send(&self.control, b"k", SendFlags::NOSIGNAL);
        let _ = self.supervisor.wait();
    }

    /// Whether it ends by itself within that time.
    pub(crate) fn ends_within(&mut self, time: Duration) -> Result<bool> {
        let doing = || "wait for a guest".to_owned();
        let pid = Pid::from_child(&self.supervisor);
        let handle = pidfd_open(pid, PidfdFlags::empty()).doing(doing)?;
        let timeout = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: 0 };
        let mut watched = [PollFd::new(&handle, PollFlags::IN)];
        let ended = poll(&mut watched, Some(&timeout)).doing(doing)? > 0;
        if ended {
            self.supervisor.wait().doing(doing)?;
        }
        Ok(ended)
    }
}

fn line(ours: &UnixStream) -> std::io::Result<Line> {
    let to = ours.try_clone()?;
    to.set_write_timeout(Some(TAKE))?;
    Ok(Line { to: Arc::new(Mutex::new((to, channel().1))), calls: Arc::default() })
}
