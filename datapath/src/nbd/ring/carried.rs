//! Requests under way, and what becomes of them when their transfers end.

use std::time::Instant;

use super::RingSession;
use super::transfers::Purpose;
use crate::error::Errno;
use crate::export::Ended;
use crate::nbd::buffer::Buffer;
use crate::nbd::protocol::{Request, simple_reply};
use crate::nbd::reply;
use crate::nbd::request::Action;
use crate::nbd::session::End;

/// A request that is more than one transfer, or being received.
pub(super) struct Carried {
    pub(super) request: Request,
    pub(super) action: Action,
    /// Transfers and parts that are not done.
    pub(super) left: usize,
    /// There will be no more of them.
    pub(super) whole: bool,
    pub(super) error: Option<Errno>,
    /// When it began, and bytes that were transferred here: for the statistics. Other threads count
    /// what they do themselves.
    pub(super) began: Instant,
    pub(super) transferred: u64,
}

impl Carried {
    /// So many parts, and no more.
    pub(super) fn new(request: &Request, action: Action, left: usize) -> Self {
        let (error, began, transferred) = (None, Instant::now(), 0);
        Self { request: *request, action, left, whole: true, error, began, transferred }
    }
}

impl RingSession {
    pub(super) fn carry(&mut self, carried: Carried) -> usize {
        if let Some(number) = self.vacant.pop() {
            if let Some(place) = self.carried.get_mut(number) {
                *place = Some(carried);
            }
            return number;
        }
        self.carried.push(Some(carried));
        self.carried.len() - 1
    }

    fn uncarry(&mut self, number: usize) -> Option<Carried> {
        let carried = self.carried.get_mut(number)?.take()?;
        self.vacant.push(number);
        Some(carried)
    }

    fn count(&self, carried: &Carried, good: bool) {
        let Carried { action, began, transferred: bytes, .. } = *carried;
        if bytes > 0 {
            let write = matches!(action, Action::Write { .. });
            let took = began.elapsed();
            self.link.agreed.export.count(&Ended { write, bytes, took, good });
        }
    }

    /// A transfer is done.
    pub(super) fn done(
        &mut self,
        purpose: Purpose,
        mut buffer: Buffer,
        failed: bool,
    ) -> Result<(), End> {
        let Purpose { request: number, offset, length, write } = purpose;
        let Some(carried) = self.carried.get_mut(number).and_then(Option::as_mut) else {
            self.transfers.give_back(buffer);
            return Ok(());
        };
        let request = carried.request;
        if failed && length == request.length as usize {
            // Asked for in the ordinary way, it says what is wrong, or works.
            let action = carried.action;
            let payload = if write { buffer.data(length).to_vec() } else { Vec::new() };
            self.uncarry(number);
            self.transfers.give_back(buffer);
            return self.give(&request, action, payload);
        }
        if failed && write {
            let request = Request { offset, length: length as u32, ..request };
            return self.give_part(&request, buffer, number);
        }
        if !failed {
            carried.transferred += length as u64;
        }
        if write || failed {
            self.transfers.give_back(buffer);
            self.part_done(number, failed.then_some(Errno::Io));
            return Ok(());
        }
        carried.left -= 1;
        let last = carried.left == 0;
        if let Some(errno) = carried.error {
            self.transfers.give_back(buffer);
            if last {
                self.end(number, Some(errno));
            }
            return Ok(());
        }
        let structured = self.link.agreed.structured;
        if structured && length >= 4096 && reply::is_zero(buffer.data(length)) {
            self.outgoing.add(&reply::hole(request.cookie, offset, length, last));
            self.transfers.give_back(buffer);
        } else {
            let head = reply::head_length(structured);
            let place = buffer.with_head(head, 0);
            reply::data_head(place, structured, request.cookie, offset, length, last);
            self.outgoing.add_data(buffer, head, length);
        }
        if last && let Some(carried) = self.uncarry(number) {
            self.link.gauge.remove();
            self.count(&carried, true);
        }
        Ok(())
    }

    /// A part of a write is done, or one of a read has failed.
    pub(super) fn part_done(&mut self, number: usize, error: Option<Errno>) {
        let Some(carried) = self.carried.get_mut(number).and_then(Option::as_mut) else { return };
        carried.left -= 1;
        carried.error = carried.error.or(error);
        if carried.left == 0 && carried.whole {
            let error = carried.error;
            self.end(number, error);
        }
    }

    /// The reply to a carried request that brings no data, or has failed.
    fn end(&mut self, number: usize, error: Option<Errno>) {
        let Some(carried) = self.uncarry(number) else { return };
        self.count(&carried, error.is_none());
        let Carried { request, action, .. } = carried;
        if error.is_none() && action == (Action::Write { durable: true }) {
            // The parts are written; what makes them durable has the reply.
            if self.give(&request, Action::Flush, Vec::new()).is_ok() {
                return;
            }
        }
        self.link.gauge.remove();
        match error {
            None => self.outgoing.add(&simple_reply(request.cookie, 0)),
            Some(errno) => {
                let outgoing = &mut self.outgoing;
                reply::error(&self.link.agreed, &request, errno, "", |bytes| outgoing.add(bytes));
            }
        }
    }
}
