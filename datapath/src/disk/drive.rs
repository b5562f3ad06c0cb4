//! A disk that is in use: what clients ask for, and what is changed underneath.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use super::chain::{Chain, Way};
use super::gate::{Gate, NotClosed, Pass, Shut};
use super::limit::{Limiter, Limits};
use super::paused::{Paused, Prepared};
use super::plan::Plan;
use super::publisher::Publisher;
use super::stats::{Kind, Meter, Stats};
use super::watch::{Change, Ticket, Watcher, WatcherId, Watchers};
use crate::error::{Errno, Error, Result};
use crate::export::{Ended, Export, Extent, Mapped, Transfer, Zeroes};

/// Flushes before a pause, and how long the last one takes where the storage is quicker than those
/// who write.
const FLUSHES: usize = 8;
const SHORT: Duration = Duration::from_millis(3);

/// Why a disk is let go of.
const SHUT_OUT: &str = "this host is shut out of the storage";

/// How a disk is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where new metadata is noted until it is in the image, so that a death of this process loses
    /// nothing that was answered: the beginning of a path in a directory that lives in memory. The
    /// device and inode numbers of the leaf are appended, since each image has notes of its own;
    /// the file is made when it is not there, and removed when what it says is in the image for
    /// good. Whoever opens the same image after a death must say the same path. Without it, a
    /// death loses what was not flushed, as a power cut does.
    pub pending: Option<PathBuf>,
    /// Data goes past the system's page cache where the storage takes that.
    pub direct: bool,
    /// New metadata is in the image, and durable, after this long at the latest.
    pub publish_after: Duration,
    /// Bytes of bitmaps and indexes that are kept in memory, beyond what is not yet in the image.
    pub memory: usize,
    /// A file that is there when the disk is another host's: then it is not opened for writing, and one
    /// that is open is let go of within [`Options::publish_after`], with nothing more written to it.
    pub shut_out: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pending: None,
            direct: false,
            publish_after: Duration::from_secs(5),
            memory: 12 << 20,
            shut_out: None,
        }
    }
}

/// What is exchanged while the gate is closed.
pub(super) struct Underneath {
    /// None while the files are closed, which they are only in a pause.
    chain: Option<Arc<Chain>>,
    /// Of the chain; while there is none, of the last one.
    plan: Plan,
    size: u64,
    leaf_id: (u64, u64),
    pub(super) watchers: Watchers,
}

impl Underneath {
    fn new(chain: Arc<Chain>) -> Self {
        let (plan, size, leaf_id) = (chain.plan().clone(), chain.size(), chain.leaf_id());
        Self { chain: Some(chain), plan, size, leaf_id, watchers: Watchers::default() }
    }

    pub(super) fn chain(&self) -> Result<&Arc<Chain>> {
        self.chain.as_ref().ok_or_else(|| Error::new(Errno::Shutdown, "the files are closed"))
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The files that are open; none in a pause that has closed them.
    pub(super) fn open_chain(&self) -> Option<&Arc<Chain>> {
        self.chain.as_ref()
    }

    pub(super) fn set_chain(&mut self, chain: Option<Arc<Chain>>) {
        if let Some(chain) = &chain {
            let grown = chain.size() != self.size;
            self.plan.clone_from(chain.plan());
            (self.size, self.leaf_id) = (chain.size(), chain.leaf_id());
            if grown {
                self.watchers.resized(self.size);
            }
        }
        self.chain = chain;
    }
}

/// A disk in use. See the module.
pub struct Drive {
    pub(super) gate: Gate,
    underneath: RwLock<Underneath>,
    meter: Meter,
    limiter: Limiter,
    pub(super) options: Options,
    pub(super) read_only: bool,
    pub(super) publisher: Publisher,
    /// It is another host's.
    given_up: AtomicBool,
}

impl Drive {
    /// Opens the files of a plan. For writing, the leaf is locked against other processes that
    /// serve it, what a process that died has left in `options.pending` is put into it, and a
    /// footer that a power cut took from its end is restored.
    pub fn open(plan: &Plan, options: Options) -> Result<Arc<Self>> {
        if !plan.read_only && is_there(options.shut_out.as_deref()) {
            return Err(Error::new(
                Errno::NotPermitted,
                format!("{SHUT_OUT}, the disk stays closed"),
            ));
        }
        let chain = Arc::new(Chain::open(plan, &options, None)?);
        chain.begin(&options)?;
        let drive = Arc::new(Self {
            gate: Gate::new(),
            underneath: RwLock::new(Underneath::new(chain)),
            meter: Meter::new(),
            limiter: Limiter::default(),
            options,
            read_only: plan.read_only,
            publisher: Publisher::default(),
            given_up: AtomicBool::new(false),
        });
        if !plan.read_only {
            drive.publisher.start(&drive, drive.options.publish_after)?;
        }
        Ok(drive)
    }

    pub(super) fn underneath(&self) -> RwLockReadGuard<'_, Underneath> {
        self.underneath.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn underneath_to_change(&self) -> RwLockWriteGuard<'_, Underneath> {
        self.underneath.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan that is served now.
    pub fn plan(&self) -> Plan {
        self.underneath().plan.clone()
    }

    /// Device and inode number of the leaf that is open.
    pub fn leaf_id(&self) -> (u64, u64) {
        self.underneath().leaf_id
    }

    /// Whether data goes past the system's page cache.
    pub fn is_direct(&self) -> bool {
        self.underneath().chain().is_ok_and(|chain| chain.is_direct())
    }

    /// What clients have asked for since the disk was opened.
    pub fn stats(&self) -> Stats {
        self.meter.read()
    }

    /// The limits that hold.
    pub fn limits(&self) -> Limits {
        self.limiter.get()
    }

    /// Sets limits, from the next request on; who waits for an old one goes on at once.
    pub fn set_limits(&self, limits: Limits) {
        self.limiter.set(limits);
    }

    /// Opens the files of another plan, without stopping anybody. Files that are in use already are
    /// taken as they are, where nobody can have changed them.
    pub fn prepare(&self, plan: &Plan) -> Result<Prepared> {
        let (chain, size) = {
            let underneath = self.underneath();
            (underneath.chain.clone(), underneath.size)
        };
        if plan.read_only != self.read_only {
            return Err(Error::new(
                Errno::Invalid,
                "a disk stays read-only, or writable, as long as it is open",
            ));
        }
        let new = Chain::open(plan, &self.options, chain.as_deref())?;
        if new.size() < size {
            let what = format!("a disk of {size} bytes cannot become one of {}", new.size());
            return Err(Error::new(Errno::Invalid, what));
        }
        Ok(Prepared::new(new))
    }

    /// Makes durable what was answered, again and again, until that takes next to no time: each
    /// time there is only what was written during the one before. Then the flush in a pause that
    /// follows is short, too. Gives that up at the deadline, and when it does not get shorter.
    pub fn flush_until_short(&self, deadline: Instant) -> Result<()> {
        for _ in 0..FLUSHES {
            let begin = Instant::now();
            Export::flush(self)?;
            if begin.elapsed() < SHORT || Instant::now() >= deadline {
                break;
            }
        }
        Ok(())
    }

    /// Stops taking requests, waits for those under way, and makes all that was answered durable.
    /// Fails at the deadline, and the disk goes on as before.
    pub fn pause(self: &Arc<Self>, deadline: Instant) -> Result<Paused> {
        self.close_gate(deadline)?;
        let paused = Paused::of(self.clone());
        if !self.read_only {
            self.underneath().chain()?.flush()?;
        }
        Ok(paused)
    }

    pub(super) fn close_gate(&self, deadline: Instant) -> Result<()> {
        self.gate.close(deadline).map_err(|error| match error {
            NotClosed::Taken => Error::new(Errno::Io, "the disk is paused by somebody else"),
            NotClosed::Busy(inside) => {
                Error::new(Errno::Io, format!("{inside} requests did not end in time"))
            }
            NotClosed::Shut => shut(),
        })
    }

    /// From the next request on a watcher sees every change. Waits until requests under way have
    /// ended.
    pub fn add_watcher(&self, watcher: Arc<dyn Watcher>, deadline: Instant) -> Result<WatcherId> {
        self.close_gate(deadline)?;
        let id = self.underneath_to_change().watchers.add(watcher);
        self.gate.open();
        Ok(id)
    }

    /// When this returns, the watcher is not called any more. One that is not there is no error.
    pub fn remove_watcher(&self, id: WatcherId, deadline: Instant) -> Result<()> {
        self.close_gate(deadline)?;
        self.underneath_to_change().watchers.remove(id);
        self.gate.open();
        Ok(())
    }

    /// As [`Export::read`], for work of our own: not counted and not limited.
    pub fn read_aside(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let _pass = self.enter()?;
        self.underneath().chain()?.read(offset, buf)
    }

    /// What of a range the leaf itself has, for somebody who merges it: lengths in order that
    /// cover the range, and whether the leaf has it or leaves it to the files below.
    pub fn held_by_leaf(&self, offset: u64, length: u64) -> Result<Vec<(u64, bool)>> {
        let _pass = self.enter()?;
        self.underneath().chain()?.held_by_leaf(offset, length)
    }

    /// As [`Export::write`], for work of our own: not counted, not limited, not watched.
    pub fn write_aside(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let _pass = self.enter()?;
        self.writable()?;
        let underneath = self.underneath();
        let chain = underneath.chain()?;
        chain.write(offset, buf)?;
        self.mind_memory(chain);
        Ok(())
    }

    /// As [`Export::write_zeroes`], for work of our own: not counted, not limited, not watched.
    pub fn zero_aside(&self, offset: u64, length: u64, keep_space: bool) -> Result<()> {
        let _pass = self.enter()?;
        self.writable()?;
        let underneath = self.underneath();
        let chain = underneath.chain()?;
        chain.zero(offset, length, keep_space)?;
        self.mind_memory(chain);
        Ok(())
    }

    /// Ends it: requests under way end, later ones are refused, all is published and durable, the
    /// space that was reserved behind the last block is given back, and the leaf is unlocked. Fails
    /// at the deadline with requests still under way, and the disk goes on as before; after any
    /// other failure it stays closed.
    pub fn close(&self, deadline: Instant) -> Result<()> {
        self.limiter.set(Limits::default());
        if !self.read_only && self.mind_shut_out() {
            self.publisher.stop();
            return Ok(());
        }
        if self.underneath().chain.is_none() {
            // Whoever has closed the files has made all durable, and nobody wrote since.
            self.gate.shut();
            self.publisher.stop();
            return Ok(());
        }
        self.close_gate(deadline)?;
        self.gate.shut();
        self.publisher.stop();
        if self.read_only { Ok(()) } else { self.underneath().chain()?.close() }
    }

    /// Whether the disk was let go of because it is another host's.
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    /// Lets go of a disk that is another host's: requests are refused from here on, nothing more is
    /// written, also none of what is not published, and the leaf is unlocked. It is tried again later
    /// while requests do not end, or somebody has the disk paused. Whether there is nothing more to do.
    pub(super) fn mind_shut_out(&self) -> bool {
        if self.is_given_up() {
            return true;
        }
        if !is_there(self.options.shut_out.as_deref()) {
            return false;
        }
        if let Err(error) = self.close_gate(Instant::now() + self.options.publish_after) {
            tracing::error!(%error, "{SHUT_OUT}, and the disk is not let go of yet");
            // Another thread may have been faster.
            return self.is_given_up();
        }
        self.given_up.store(true, Ordering::Release);
        self.gate.shut();
        if let Some(chain) = self.underneath().open_chain() {
            chain.leave();
        }
        tracing::error!("{SHUT_OUT}; the disk is another host's, its requests are refused");
        true
    }

    fn enter(&self) -> Result<Pass<'_>> {
        self.gate.enter().map_err(|Shut| shut())
    }

    fn writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::new(Errno::NotPermitted, "the disk is read-only"));
        }
        Ok(())
    }

    /// Runs a request inside the gate and counts it.
    fn request<T>(
        &self,
        kind: Kind,
        bytes: u64,
        run: impl FnOnce(&Underneath) -> Result<T>,
    ) -> Result<T> {
        if kind != Kind::Flush {
            self.limiter.wait(bytes);
        }
        let start = Instant::now();
        let pass = self.enter()?;
        let result = run(&self.underneath());
        drop(pass);
        self.meter.count(kind, bytes, start.elapsed(), result.is_ok());
        result
    }

    /// Changes the disk with its watchers told.
    fn change(
        &self,
        underneath: &Underneath,
        change: &Change<'_>,
        durable: bool,
        run: impl FnOnce(&Chain) -> Result<()>,
    ) -> Result<()> {
        self.writable()?;
        let (chain, watchers) = (underneath.chain()?, &underneath.watchers);
        let result = if watchers.all.is_empty() {
            run(chain)
        } else {
            watchers.touched(change.offset(), change.length());
            let whole = || watchers.all.iter().filter(|(_, watcher)| !watcher.only_ranges());
            let tickets: Vec<Ticket> = whole().map(|(_, watcher)| watcher.before(change)).collect();
            let result = run(chain);
            for ((_, watcher), ticket) in whole().zip(tickets) {
                watcher.after(change, ticket, result.is_ok());
            }
            result
        };
        self.mind_memory(chain);
        result?;
        if durable { flush(underneath) } else { Ok(()) }
    }

    /// Puts new metadata into the leaf, unless the disk is paused: a pause has done that, and
    /// nothing is to be written during it.
    pub(super) fn publish(&self) -> Result<()> {
        let Some(pass) = self.gate.try_enter() else { return Ok(()) };
        let chain = self.underneath().chain()?.clone();
        let result = chain.publish();
        drop(pass);
        result
    }

    /// Has metadata published early when there is much of it.
    fn mind_memory(&self, chain: &Chain) {
        if chain.wants_publishing() {
            self.publisher.wake();
        }
    }

    fn map(&self, offset: u64, length: u64, write: bool) -> Mapped {
        // A limit may make it wait, and writing what is refused must say why.
        if self.limiter.is_on() {
            return Mapped::NotSimple;
        }
        self.transfer(offset, length, write, Way::PastTheCache)
    }

    /// A request, or a part of one, as transfers by somebody else.
    fn transfer(&self, offset: u64, length: u64, write: bool, way: Way) -> Mapped {
        if write && self.read_only {
            return Mapped::NotSimple;
        }
        let Some(pass) = self.gate.try_enter() else { return Mapped::Closed };
        let underneath = self.underneath();
        if write && underneath.watchers.whole {
            return Mapped::NotSimple;
        }
        let chain = underneath.chain().ok();
        let Some((pieces, chain_held)) =
            chain.and_then(|chain| chain.transfer(offset, length, write, way))
        else {
            return Mapped::NotSimple;
        };
        if write {
            underneath.watchers.touched(offset, length);
        }
        // Dropped in this order: when the gate is passed, all else is over.
        Mapped::Transfer(Transfer { pieces, held: Box::new((chain_held, pass)) })
    }
}

fn flush(underneath: &Underneath) -> Result<()> {
    underneath.chain()?.flush()?;
    underneath.watchers.all.iter().try_for_each(|(_, watcher)| watcher.flushed())
}

/// Whether a file is there. What cannot be asked for is not known to be there.
fn is_there(file: Option<&Path>) -> bool {
    file.is_some_and(|file| file.symlink_metadata().is_ok())
}

fn shut() -> Error {
    Error::new(Errno::Shutdown, "the disk is closed")
}

impl Export for Drive {
    fn size(&self) -> u64 {
        self.underneath().size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.request(Kind::Read, buf.len() as u64, |under| under.chain()?.read(offset, buf))
    }

    fn write(&self, offset: u64, buf: &[u8], durable: bool) -> Result<()> {
        self.request(Kind::Write, buf.len() as u64, |under| {
            let change = Change::Data { offset, bytes: buf };
            self.change(under, &change, durable, |chain| chain.write(offset, buf))
        })
    }

    fn flush(&self) -> Result<()> {
        self.request(Kind::Flush, 0, |under| if self.read_only { Ok(()) } else { flush(under) })
    }

    fn trim(&self, offset: u64, length: u64, durable: bool) -> Result<()> {
        self.request(Kind::Trim, length, |under| {
            let change = Change::Zeroes { offset, length, keep_space: false };
            self.change(under, &change, durable, |chain| chain.zero(offset, length, false))
        })
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroes) -> Result<()> {
        self.request(Kind::Zeroes, length, |under| {
            let keep_space = how.keep_space;
            if how.only_if_fast && (keep_space || !under.chain()?.zeroes_are_fast()) {
                let what = "zeros are not faster than data here";
                return Err(Error::new(Errno::NotSupported, what));
            }
            let change = Change::Zeroes { offset, length, keep_space };
            self.change(under, &change, how.durable, |chain| chain.zero(offset, length, keep_space))
        })
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
        into: &mut Vec<Extent>,
    ) -> Result<()> {
        let _pass = self.enter()?;
        self.underneath().chain()?.extents(offset, length, limit, into)
    }

    fn map_read(&self, offset: u64, length: u64) -> Mapped {
        self.map(offset, length, false)
    }

    fn map_write(&self, offset: u64, length: u64) -> Mapped {
        self.map(offset, length, true)
    }

    fn admit(&self, bytes: u64) {
        self.limiter.wait(bytes);
    }

    fn read_part(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_aside(offset, buf)
    }

    fn write_part(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let _pass = self.enter()?;
        let change = Change::Data { offset, bytes: buf };
        self.change(&self.underneath(), &change, false, |chain| chain.write(offset, buf))
    }

    fn place_part(&self, offset: u64, length: u64, write: bool) -> Option<Transfer> {
        match self.transfer(offset, length, write, Way::ByTheCache) {
            Mapped::Transfer(transfer) => Some(transfer),
            Mapped::NotSimple | Mapped::Closed => None,
        }
    }

    fn count(&self, ended: &Ended) {
        let kind = if ended.write { Kind::Write } else { Kind::Read };
        self.meter.count(kind, ended.bytes, ended.took, ended.good);
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        self.publisher.stop();
    }
}
