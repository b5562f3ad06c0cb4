//! What hostile clients cost in memory. A process of its own: nothing else moves the figure.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    reason = "a test that finds something else than it wants ends there; it shares helpers"
)]

#[path = "nbd/disks.rs"]
mod disks;
#[path = "nbd/place.rs"]
mod place;
#[path = "nbd/raw.rs"]
mod raw;

use std::time::Duration;

use datapath::nbd::Limits;
use datapath::nbd::protocol::{Request, command};

use disks::{Disks, Memory, noise};
use place::{Place, until};
use raw::Raw;

const MIB: u64 = 1 << 20;

/// What this process has in memory, MiB.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096 / MIB
}

#[test]
fn clients_that_never_read_or_never_end_are_ended_and_take_little_memory() {
    let disks = Disks::default().add("", Memory::new(64 * MIB)).add("other", Memory::new(MIB));
    disks.get("").fill(&noise(3, 64 << 20));
    let limits = Limits { stall: Duration::from_millis(500), ..Limits::default() };
    let place = Place::with(disks, limits);
    let before = resident();
    for structured in [true, false] {
        let mut stalled: Vec<Raw> =
            (0..32).map(|_| Raw::using(&place.socket(), "", structured, &[])).collect();
        for raw in &mut stalled {
            (0..8).for_each(|_| raw.request(command::READ, 0, 0, 32 << 20));
        }
        // A client beside them is served.
        place.client("other").flush().unwrap();
        until("all of them are ended", || place.server.connections().is_empty());
        let grown = resident().saturating_sub(before);
        // 8 GiB were asked for. Each may have its buffers, and two of them a whole reply.
        assert!(grown < 96, "{grown} MiB for readers, chunks: {structured}");
    }
    let mut writers: Vec<Raw> =
        (0..32).map(|_| Raw::using(&place.socket(), "", true, &[])).collect();
    for raw in &mut writers {
        let (flags, cookie, offset, length) = (0, 1, 0, 32 << 20);
        let request = Request { flags, command: command::WRITE, cookie, offset, length };
        raw.give(&request.encode());
        raw.give(&vec![0; 300_000]);
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 96, "{grown} MiB for writers");
    until("all of them are ended", || place.server.connections().is_empty());
}
