//! Guests: described, booted, killed, booted again.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;

use crate::call::{Call, Output};
use crate::disk::{Disk, plain};
use crate::error::{Doing, Error, Result};
use crate::lab::Inner as LabInner;
use crate::network::Network;
use crate::power::{Line, Power};
use crate::wire::{Kind, Request, Step};

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

pub(crate) struct Card {
    /// The guest's end, kept for its next boot.
    pub(crate) cable: OwnedFd,
    pub(crate) address: Ipv4Addr,
}

pub(crate) struct Inner {
    pub(crate) lab: Arc<LabInner>,
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) processor: usize,
    pub(crate) memory: u64,
    pub(crate) disks: Vec<Disk>,
    pub(crate) cards: Vec<Card>,
    _networks: Vec<Network>,
    pub(crate) shares: Vec<PathBuf>,
    pub(crate) modules: Vec<String>,
    pub(crate) folder: PathBuf,
    power: Mutex<Option<Power>>,
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
        if power.ends_within(POWER_OFF)? {
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
    fn switch_off(&self) {
        if let Some(mut power) = lock(&self.power).take() {
            power.cut();
        }
    }

    fn console(&self) -> String {
        let bytes = std::fs::read(self.folder.join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    pub(crate) fn last_lines(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines.iter().skip(lines.len().saturating_sub(LAST_LINES));
        last.flat_map(|line| ["  | ", line, "\n"]).collect()
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
