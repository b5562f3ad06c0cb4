//! Guests: described, booted, killed, booted again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::call::{Call, Output};
use crate::disk::{Disk, plain};
use crate::error::{Doing, Error, Result};
use crate::lab::Inner as LabInner;
use crate::machine;
use crate::network::Network;
use crate::wire::{self, Frame, Kind, Request, Spec, Step};

/// Time for a boot on a machine that is busy with other things.
const BOOT: Duration = Duration::from_secs(90);
/// Time for a guest to take a frame of its line. A paused one does not.
const TAKE: Duration = Duration::from_secs(20);
/// Time for a guest to write what it has in memory and switch off.
const POWER_OFF: Duration = Duration::from_secs(60);
/// Lines of a console that an error shows.
const LAST_LINES: usize = 40;

/// A guest to be.
pub struct Builder {
    lab: Arc<LabInner>,
    name: String,
    number: u8,
    processor: usize,
    memory: u64,
    disks: Vec<Disk>,
    networks: Vec<Network>,
    shares: Vec<PathBuf>,
    modules: Vec<String>,
}

impl Builder {
    pub(crate) fn new(lab: Arc<LabInner>, name: &str, number: u8, processor: usize) -> Self {
        Self {
            lab,
            name: name.to_owned(),
            number,
            processor,
            memory: 384,
            disks: Vec::new(),
            networks: Vec::new(),
            shares: Vec::new(),
            modules: Vec::new(),
        }
    }

    /// Its memory in MiB; 384 if nothing is said. What a guest changes in files beside its disks
    /// and shares is in there, too.
    #[must_use]
    pub fn memory(mut self, mebibytes: u64) -> Self {
        self.memory = mebibytes;
        self
    }

    /// One more disk: the first is `/dev/ubda`, the second `/dev/ubdb`, and so on.
    #[must_use]
    pub fn disk(mut self, disk: &Disk) -> Self {
        self.disks.push(disk.clone());
        self
    }

    /// One more network card: the first is `vec0`, the second `vec1`, and so on.
    #[must_use]
    pub fn network(mut self, network: &Network) -> Self {
        self.networks.push(network.clone());
        self
    }

    /// A folder of the machine that the guest may write, under the same path. All others it sees
    /// as they are, and its changes to them stay in its memory.
    #[must_use]
    pub fn share(mut self, folder: impl Into<PathBuf>) -> Self {
        self.shares.push(folder.into());
        self
    }

    /// Modules of the kernel that are loaded at boot.
    #[must_use]
    pub fn modules(mut self, names: &[&str]) -> Self {
        self.modules.extend(names.iter().map(|name| (*name).to_owned()));
        self
    }

    /// Boots it.
    pub fn boot(self) -> Result<Guest> {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || !self.name.chars().all(letters) {
            return Err(Error::Wrong(format!("{:?} is no host name", self.name)));
        }
        let folder = self.lab.folder.path().join(&self.name);
        std::fs::create_dir(&folder).doing(|| format!("make a place for guest {}", self.name))?;
        for share in &self.shares {
            plain(share)?;
        }
        let mut shares = vec![self.lab.share()];
        shares.extend(self.shares);
        let mut cards = Vec::new();
        for network in &self.networks {
            let address = Ipv4Addr::new(10, 9, network.number(), self.number);
            cards.push(Card { cable: network.port(self.number)?, address });
        }
        let guest = Guest {
            inner: Arc::new(Inner {
                lab: self.lab,
                name: self.name,
                number: self.number,
                processor: self.processor,
                memory: self.memory,
                disks: self.disks,
                cards,
                _networks: self.networks,
                shares,
                modules: self.modules,
                folder,
                power: Mutex::new(None),
            }),
        };
        guest.boot()?;
        Ok(guest)
    }
}

/// A guest: a host of its own, with its own kernel. Clones are the same guest.
#[derive(Clone)]
pub struct Guest {
    pub(crate) inner: Arc<Inner>,
}

struct Card {
    /// The guest's end, kept for its next boot.
    cable: OwnedFd,
    address: Ipv4Addr,
}

pub(crate) struct Inner {
    pub(crate) lab: Arc<LabInner>,
    pub(crate) name: String,
    number: u8,
    processor: usize,
    memory: u64,
    disks: Vec<Disk>,
    cards: Vec<Card>,
    _networks: Vec<Network>,
    shares: Vec<PathBuf>,
    modules: Vec<String>,
    folder: PathBuf,
    power: Mutex<Option<Power>>,
}

/// What there is while a guest is on.
struct Power {
    supervisor: Child,
    /// Orders to the supervisor. When it closes, the guest ends.
    control: OwnedFd,
    line: Line,
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

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guest {
    /// Its host name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its address on a network that it is plugged into.
    pub fn address(&self, network: &Network) -> Result<Ipv4Addr> {
        let card =
            self.inner.cards.iter().find(|card| card.address.octets()[2] == network.number());
        let none = || Error::Wrong(format!("{} has no card in that network", self.inner.name));
        card.map(|card| card.address).ok_or_else(none)
    }

    pub(crate) fn number(&self) -> u8 {
        self.inner.number
    }

    /// Switches it on, with the same disks, cards and shares. What it had changed elsewhere is
    /// gone: its root is the machine's again.
    pub fn boot(&self) -> Result<()> {
        if self.is_on() {
            return Err(Error::Wrong(format!("{} is on", self.inner.name)));
        }
        let mut power = lock(&self.inner.power);
        *power = Some(self.inner.switch_on()?);
        Ok(())
    }

    /// Cuts its power: every process of it ends in the middle of what it does. See [`Disk`] for
    /// what is on the disks then.
    pub fn kill(&self) {
        self.inner.switch_off();
    }

    /// Cuts its power, and boots it on the same disks.
    pub fn reboot(&self) -> Result<()> {
        self.kill();
        self.boot()
    }

    /// Lets it write what it has in memory, then switches it off. Nothing is unmounted.
    pub fn power_off(&self) -> Result<()> {
        let mut power = lock(&self.inner.power).take().ok_or_else(|| self.off())?;
        let doing = || "switching off".to_owned();
        power.line.put(Kind::PowerOff, 0, &[]).map_err(|_| self.gone(doing()))?;
        if ends_within(&mut power.supervisor, POWER_OFF)? {
            return Ok(());
        }
        power.cut();
        Err(self.late(doing(), POWER_OFF, String::new()))
    }

    /// Freezes it: its processors stop, and to others it is a host that no longer answers.
    pub fn pause(&self) -> Result<()> {
        self.order(b"p")
    }

    /// Lets it go on after [`Guest::pause`], as if no time had gone by.
    pub fn resume(&self) -> Result<()> {
        self.order(b"r")
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        let mut power = lock(&self.inner.power);
        power.as_mut().is_some_and(|power| matches!(power.supervisor.try_wait(), Ok(None)))
    }

    /// What it has said on its console, at all of its boots.
    pub fn console(&self) -> String {
        self.inner.console()
    }

    fn order(&self, letter: &[u8]) -> Result<()> {
        let power = lock(&self.inner.power);
        let power = power.as_ref().ok_or_else(|| self.off())?;
        rustix::net::send(&power.control, letter, SendFlags::NOSIGNAL)
            .doing(|| format!("give orders to {}", self.inner.name))
            .map(drop)
    }

    pub(crate) fn off(&self) -> Error {
        Error::Off { guest: self.inner.name.clone() }
    }

    pub(crate) fn gone(&self, doing: String) -> Error {
        self.inner.lab.keep();
        Error::Gone { guest: self.inner.name.clone(), doing, console: self.inner.last_lines() }
    }

    pub(crate) fn late(&self, doing: String, after: Duration, said: String) -> Error {
        self.inner.lab.keep();
        Error::Late { guest: self.inner.name.clone(), doing, after, said }
    }

    pub(crate) fn line(&self) -> Result<Line> {
        let power = lock(&self.inner.power);
        power.as_ref().map(|power| power.line.clone()).ok_or_else(|| self.off())
    }

    /// A command to be described and run; the first word is the program.
    pub fn command<W: Into<String>>(&self, argv: impl IntoIterator<Item = W>) -> Call<'_> {
        Call::new(self, argv.into_iter().map(Into::into).collect())
    }

    /// Runs a command, whatever its exit status.
    pub fn run<W: Into<String>>(&self, argv: impl IntoIterator<Item = W>) -> Result<Output> {
        self.command(argv).run()
    }

    /// Runs a command that must succeed, and answers what it printed, without blanks at the ends.
    pub fn check<W: Into<String>>(&self, argv: impl IntoIterator<Item = W>) -> Result<String> {
        self.command(argv).check()
    }

    /// Does small things in the guest, one after the other, at the cost of one call.
    pub fn steps(&self, steps: Vec<Step>) -> Result<()> {
        let what = format!("{} steps", steps.len());
        Call::ask(self, &Request::Steps(steps), what)
    }

    /// Loads modules of the kernel.
    pub fn load(&self, modules: &[&str]) -> Result<()> {
        self.steps(modules.iter().map(|name| Step::Module((*name).to_owned())).collect())
    }

    /// Writes a small file in the guest.
    pub fn write(&self, path: impl Into<PathBuf>, text: impl Into<String>) -> Result<()> {
        self.steps(vec![Step::Write(path.into(), text.into())])
    }

    /// The content of a file of the guest.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let output = self.run(["cat".to_owned(), path.as_ref().display().to_string()])?;
        output.success().map(|output| output.stdout)
    }

    /// Copies a file of the machine into the guest. Programs need no copy: the guest sees the
    /// files of the machine under their own paths.
    pub fn copy_in(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref().display().to_string());
        let passing = self.passing();
        let doing = || format!("copy {}", from.display());
        std::fs::copy(from, &passing).doing(doing)?;
        let copied = self.check(["cp", "--sparse=always", &passing.display().to_string(), &to]);
        std::fs::remove_file(&passing).doing(doing)?;
        copied.map(drop)
    }

    /// Copies a file of the guest to the machine.
    pub fn copy_out(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let from = from.as_ref().display().to_string();
        let passing = self.passing();
        self.check(["cp", "--sparse=always", &from, &passing.display().to_string()])?;
        let doing = || format!("copy {from}");
        std::fs::copy(&passing, to).doing(doing)?;
        std::fs::remove_file(&passing).doing(doing)
    }

    fn passing(&self) -> PathBuf {
        let number = self.inner.lab.requests.fetch_add(1, Ordering::Relaxed);
        self.inner.lab.share().join(format!("copy-{number}"))
    }

    /// Waits until something is so: asks again and again, until `deadline` is over.
    ///
    /// # Errors
    /// [`Error::Late`] with `what` and the last answer; errors of `ask` at once.
    pub fn wait_for<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut ask: impl FnMut(&Self) -> Result<std::result::Result<T, String>>,
    ) -> Result<T> {
        let end = Instant::now() + deadline;
        loop {
            match ask(self)? {
                Ok(answer) => return Ok(answer),
                Err(said) if Instant::now() > end => {
                    let said = format!("; last seen: {said}");
                    return Err(self.late(what.to_owned(), deadline, said));
                }
                // Each question is a process in the guest; this leaves it time for its own work.
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Inner {
    fn switch_on(&self) -> Result<Power> {
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
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--"])
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

    fn switch_off(&self) {
        if let Some(mut power) = lock(&self.power).take() {
            power.cut();
        }
    }

    fn console(&self) -> String {
        let bytes = std::fs::read(self.folder.join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    fn last_lines(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines.iter().skip(lines.len().saturating_sub(LAST_LINES));
        last.flat_map(|line| ["  | ", line, "\n"]).collect()
    }
}

impl Power {
    fn cut(&mut self) {
        // Any letter that is no other order ends the guest, and the kernel all of its processes.
        let _ = rustix::net::send(&self.control, b"k", SendFlags::NOSIGNAL);
        let _ = self.supervisor.wait();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if thread::panicking() {
            self.lab.keep();
        }
        self.switch_off();
    }
}

fn line(ours: &UnixStream) -> std::io::Result<Line> {
    let to = ours.try_clone()?;
    to.set_write_timeout(Some(TAKE))?;
    Ok(Line { to: Arc::new(Mutex::new((to, channel().1))), calls: Arc::default() })
}

fn ends_within(child: &mut Child, time: Duration) -> Result<bool> {
    let doing = || "wait for a guest".to_owned();
    let handle: File = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).doing(doing)?.into();
    let timeout = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)).doing(doing)? > 0;
    if ended {
        child.wait().doing(doing)?;
    }
    Ok(ended)
}
