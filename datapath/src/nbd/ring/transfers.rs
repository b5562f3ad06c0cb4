//! Transfers between files and memory, many at a time, by the kernel's ring.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};

use crate::export::{Piece, Transfer};
use crate::nbd::buffer::{ALIGNMENT, Aligned, Buffer, PIECE};

/// Entries of the queue to the kernel; more are handed over in turns.
const ENTRIES: u32 = 128;

/// Completions that the kernel may keep before it holds some back.
const COMPLETIONS: u32 = 1024;

/// Memory that each connection may have for transfers, bytes: four pieces, or 64 and more of the
/// requests of a guest.
const OWN: usize = 4 * (PIECE + 2 * ALIGNMENT) + (256 << 10);

/// What all connections of the process may have beyond that, together, bytes: eight of the requests
/// that programs send when they copy.
const SHARED: usize = 8 << 20;

/// How much of it is taken.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Sizes of buffers, bytes of data. In front of the data is room for the head of a reply.
const CLASSES: [usize; 4] = [4 << 10, 16 << 10, 64 << 10, PIECE];

/// What marks a watched descriptor and not a transfer.
const WATCH: u64 = 1 << 63;

/// What a transfer is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Purpose {
    /// The number of the request.
    pub(super) request: usize,
    /// On the disk.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) length: usize,
    /// To the disk.
    pub(super) write: bool,
}

/// What has come out of the ring.
pub(super) enum Event {
    /// A transfer is done, or has failed: then nothing is known of its data.
    Done { purpose: Purpose, buffer: Buffer, failed: bool },
    /// A watched descriptor is ready.
    Ready(u64),
}

struct Operation {
    purpose: Purpose,
    buffer: Buffer,
    transfer: Transfer,
    /// Bytes of each piece that are done.
    progress: Vec<usize>,
    /// Pieces that the kernel has.
    pending: usize,
    failed: bool,
}

/// The ring of one thread.
///
/// Invariant: as long as the kernel has a piece of an operation, the operation, with its buffer and
/// its files, is in `operations` and the buffer is not touched.
pub(super) struct Transfers {
    ring: IoUring,
    operations: Vec<Option<Operation>>,
    vacant: Vec<usize>,
    /// Operations in flight.
    count: usize,
    free: [Vec<Buffer>; CLASSES.len()],
    /// Bytes of all buffers, used and free.
    memory: usize,
    /// Pieces that were done without the kernel, or must be given to it again.
    again: Vec<(usize, usize)>,
    finished: Vec<usize>,
}

impl Transfers {
    /// A ring, where the kernel lets this process have one that does what is needed.
    pub(super) fn new() -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS).dontfork();
        let quick = {
            let mut builder = builder.clone();
            builder.setup_single_issuer().setup_defer_taskrun();
            builder.build(ENTRIES)
        };
        // Kernels before 6.1 do not know these settings.
        let ring = quick.or_else(|_| builder.build(ENTRIES))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let codes = [opcode::Read::CODE, opcode::Write::CODE, opcode::PollAdd::CODE];
        if !codes.into_iter().all(|code| probe.is_supported(code))
            || !ring.params().is_feature_ext_arg()
        {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self {
            ring,
            operations: Vec::new(),
            vacant: Vec::new(),
            count: 0,
            free: Default::default(),
            memory: 0,
            again: Vec::new(),
            finished: Vec::new(),
        })
    }

    /// Operations in flight.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Memory for so much data, no more than a piece. None: wait until some is given back.
    pub(super) fn buffer(&mut self, length: usize) -> Option<Buffer> {
        let class = CLASSES.iter().position(|size| *size >= length)?;
        let size = |class: usize| CLASSES.get(class).map_or(0, |size| size + 2 * ALIGNMENT);
        if let Some(buffer) = self.free.get_mut(class)?.pop() {
            return Some(buffer);
        }
        // Free ones of other sizes make room.
        while !self.grow(size(class)) {
            let other = (0..CLASSES.len()).find(|other| {
                let free = self.free.get_mut(*other);
                free.and_then(Vec::pop).is_some()
            })?;
            self.shrink(size(other));
        }
        let length = CLASSES.get(class)? + ALIGNMENT;
        Some(Buffer { memory: Aligned::new(length), class })
    }

    /// Takes so much more memory, if it may.
    fn grow(&mut self, bytes: usize) -> bool {
        let more = shared(self.memory + bytes) - shared(self.memory);
        let take = |taken: usize| (taken + more <= SHARED).then_some(taken + more);
        let taken = TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        self.memory += if taken { bytes } else { 0 };
        taken
    }

    fn shrink(&mut self, bytes: usize) {
        let less = shared(self.memory) - shared(self.memory - bytes);
        self.memory -= bytes;
        TAKEN.fetch_sub(less, Ordering::Relaxed);
    }

    /// Whether there is memory for so many pieces, as it seems: others may be quicker.
    pub(super) fn has_room(&self, pieces: usize) -> bool {
        let free: usize = self.free.iter().zip(CLASSES).map(|(free, size)| free.len() * size).sum();
        let left = SHARED.saturating_sub(TAKEN.load(Ordering::Relaxed));
        let most = (self.memory + left).max(OWN);
        self.memory - free + pieces * (PIECE + 2 * ALIGNMENT) <= most
    }

    /// Nothing is under way: what others may need is given back.
    pub(super) fn rest(&mut self) {
        for (class, size) in CLASSES.into_iter().enumerate().rev() {
            while self.memory > OWN && self.free.get_mut(class).and_then(Vec::pop).is_some() {
                self.shrink(size + 2 * ALIGNMENT);
            }
        }
    }

    pub(super) fn give_back(&mut self, buffer: Buffer) {
        if let Some(free) = self.free.get_mut(buffer.class) {
            free.push(buffer);
        }
    }

    /// Starts a transfer.
    pub(super) fn start(&mut self, purpose: Purpose, buffer: Buffer, transfer: Transfer) {
        let pieces = transfer.pieces.len();
        let operation = Operation {
            purpose,
            buffer,
            transfer,
            progress: vec![0; pieces],
            pending: pieces,
            failed: false,
        };
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.operations.push(None);
            self.operations.len() - 1
        });
        if let Some(place) = self.operations.get_mut(index) {
            *place = Some(operation);
        }
        self.count += 1;
        if pieces == 0 {
            self.finished.push(index);
        }
        (0..pieces).for_each(|piece| self.again.push((index, piece)));
        self.hand_over();
    }

    /// Tells once when a descriptor is ready; `number` comes back in [`Event::Ready`].
    pub(super) fn watch(&mut self, descriptor: BorrowedFd<'_>, flags: u16, number: u64) {
        let entry = opcode::PollAdd::new(Fd(descriptor.as_raw_fd()), u32::from(flags)).build();
        self.push(&entry.user_data(WATCH | number));
    }

    /// Gives the kernel what is there and waits until something comes back, or for `time`. Not at
    /// all, when something is there already.
    pub(super) fn wait(&mut self, time: Option<Duration>) -> io::Result<()> {
        let want = usize::from(self.finished.is_empty());
        let time = time.map(Timespec::from);
        let mut arguments = SubmitArgs::new();
        if let Some(time) = &time {
            arguments = arguments.timespec(time);
        }
        match self.ring.submitter().submit_with_args(want, &arguments) {
            Ok(_) => Ok(()),
            Err(error)
                if [
                    libc_errno::ETIME,
                    libc_errno::EINTR,
                    libc_errno::EBUSY,
                    libc_errno::EAGAIN,
                ]
                .contains(&error.raw_os_error().unwrap_or(0)) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes out what has come back.
    pub(super) fn reap(&mut self, events: &mut Vec<Event>) {
        let mut results = [(0_u64, 0_i32); 64];
        loop {
            let mut count = 0;
            {
                let mut queue = self.ring.completion();
                for (place, entry) in results.iter_mut().zip(&mut queue) {
                    *place = (entry.user_data(), entry.result());
                    count += 1;
                }
            }
            for &(data, result) in results.iter().take(count) {
                if data & WATCH != 0 {
                    events.push(Event::Ready(data & !WATCH));
                } else {
                    self.piece_done((data >> 32) as usize, (data & 0xffff_ffff) as usize, result);
                }
            }
            if count < results.len() {
                break;
            }
        }
        self.hand_over();
        for index in std::mem::take(&mut self.finished) {
            let Some(operation) = self.operations.get_mut(index).and_then(Option::take) else {
                continue;
            };
            self.vacant.push(index);
            self.count -= 1;
            // What keeps the disk from changing is let go before anybody waits for anything.
            let Operation { purpose, buffer, transfer, failed, .. } = operation;
            drop(transfer);
            events.push(Event::Done { purpose, buffer, failed });
        }
    }

    fn piece_done(&mut self, index: usize, number: usize, result: i32) {
        let Some(operation) = self.operations.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let Some(progress) = operation.progress.get_mut(number) else { return };
        let Some(piece) = operation.transfer.pieces.get(number) else { return };
        let wanted = piece.part.len() - *progress;
        match usize::try_from(result) {
            Ok(count) if count >= wanted => {}
            Ok(count) if count > 0 => {
                *progress += count;
                self.again.push((index, number));
                return;
            }
            _ if [libc_errno::EINTR, libc_errno::EAGAIN].contains(&result.saturating_neg()) => {
                self.again.push((index, number));
                return;
            }
            // Or the file ends here.
            _ => operation.failed = true,
        }
        operation.pending -= 1;
        if operation.pending == 0 {
            self.finished.push(index);
        }
    }

    /// Gives pieces to the kernel.
    fn hand_over(&mut self) {
        while let Some((index, number)) = self.again.pop() {
            let Some(operation) = self.operations.get_mut(index).and_then(Option::as_mut) else {
                continue;
            };
            let Some(Piece { part, place }) = operation.transfer.pieces.get(number) else {
                continue;
            };
            let progress = operation.progress.get(number).copied().unwrap_or(0);
            // Out of its range it would fail below, and reach nothing.
            let memory = operation.buffer.data(part.end);
            let memory = memory.get_mut(part.start + progress..).unwrap_or_default();
            let Some((file, at)) = place else {
                memory.fill(0);
                operation.pending -= 1;
                if operation.pending == 0 {
                    self.finished.push(index);
                }
                continue;
            };
            let (descriptor, at) = (Fd(file.as_raw_fd()), at + progress as u64);
            let length = memory.len() as u32;
            let entry = if operation.purpose.write {
                opcode::Write::new(descriptor, memory.as_ptr(), length).offset(at).build()
            } else {
                opcode::Read::new(descriptor, memory.as_mut_ptr(), length).offset(at).build()
            };
            let data = (index as u64) << 32 | number as u64;
            self.push(&entry.user_data(data));
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: an entry of a transfer points into the buffer of an operation, which stays in
            // `operations`, unmoved on the heap and untouched, with its file, until the kernel has
            // answered (`piece_done`); `Drop` waits for that. An entry of a watch points nowhere.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full. The kernel takes all of it, or is short of memory for a moment.
            let _ = self.ring.submit();
        }
    }
}

/// What of so much memory is not a connection's own.
fn shared(memory: usize) -> usize {
    memory.saturating_sub(OWN)
}

impl Drop for Transfers {
    fn drop(&mut self) {
        let _shared = GivenBack(shared(self.memory));
        let mut events = Vec::new();
        while self.count > 0 {
            if self.wait(None).is_err() {
                // The kernel may still write into the buffers: they are never given back.
                std::mem::forget(std::mem::take(&mut self.operations));
                return;
            }
            self.reap(&mut events);
            events.clear();
        }
    }
}

/// Memory that others may have when this is dropped.
struct GivenBack(usize);

impl Drop for GivenBack {
    fn drop(&mut self) {
        TAKEN.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Numbers of the kernel's errors.
mod libc_errno {
    use rustix::io::Errno;

    pub(super) const ETIME: i32 = Errno::TIME.raw_os_error();
    pub(super) const EINTR: i32 = Errno::INTR.raw_os_error();
    pub(super) const EBUSY: i32 = Errno::BUSY.raw_os_error();
    pub(super) const EAGAIN: i32 = Errno::AGAIN.raw_os_error();
}
