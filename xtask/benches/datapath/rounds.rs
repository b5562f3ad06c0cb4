//! Rounds: all who serve a load, one right after the other, again and again.

use std::path::Path;
use std::time::Duration;

use crate::fio::{Figures, Load};
use crate::peers::{Cache, Peer};
use crate::table::{Bar, Row, Table, median};
use crate::{Result, Setting};

/// Rounds that count.
const ROUNDS: usize = 5;

/// Where the images are and how they are opened.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) folder: &'a Path,
    /// Bytes of the disk.
    pub(crate) size: u64,
    pub(crate) cache: Cache,
    /// The image is made anew, and empty, for every run.
    pub(crate) fresh: bool,
}

/// What a load came to with each server, in all rounds.
pub(crate) struct Series(Vec<(Peer, Vec<Figures>)>);

/// A figure of a load.
#[derive(Clone, Copy)]
pub(crate) enum What {
    /// Requests.
    Requests,
    /// Bytes.
    Bytes,
    /// The server's processor time for a request.
    Processor,
    /// The time that one request in 100 exceeds.
    Slowest,
}

impl What {
    fn of(self, figures: &Figures) -> f64 {
        match self {
            Self::Requests => figures.iops / 1e3,
            Self::Bytes => figures.rate,
            Self::Processor => figures.cpu,
            Self::Slowest => figures.p99,
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Requests => "1000/s",
            Self::Bytes => "GB/s",
            Self::Processor => "us",
            Self::Slowest => "ms",
        }
    }

    fn more_is_better(self) -> bool {
        matches!(self, Self::Requests | Self::Bytes)
    }

    /// What is added to the name of the load.
    fn words(self) -> &'static str {
        match self {
            Self::Requests | Self::Bytes => "",
            Self::Processor => ", processor time of the server for each",
            Self::Slowest => ", 99 of 100 take at most",
        }
    }
}

/// Runs a load with each of the peers, in turns. The first round warms up and does not count.
pub(crate) fn rounds(
    setting: &Setting,
    place: Place<'_>,
    load: Load,
    peers: &[Peer],
) -> Result<Series> {
    let mut all: Vec<(Peer, Vec<Figures>)> = peers.iter().map(|peer| (*peer, Vec::new())).collect();
    for round in 0..=setting.rounds(ROUNDS) {
        // Another one is the first in each round: nobody always comes after the same.
        all.rotate_left(1);
        for (peer, figures) in &mut all {
            if place.fresh {
                peer.kind.empty(place.folder, place.size)?;
            }
            let served = peer.serve(setting, place.folder, place.size, place.cache)?;
            let time = if round == 0 { Duration::from_millis(200) } else { setting.time() };
            let result = load.run(setting, &served.server, &served.uri, place.size, time)?;
            served.server.stop()?;
            if place.cache == Cache::Direct && load.kind == "randread" && result.stored < 0.9 {
                return Err(format!("{} has not read with O_DIRECT", peer.name).into());
            }
            if round > 0 {
                figures.push(result);
            }
        }
    }
    Ok(Series(all))
}

impl Series {
    fn of(&self, peer: Peer, what: What) -> Vec<f64> {
        let found = self.0.iter().find(|(other, _)| *other == peer);
        found
            .map(|(_, figures)| figures.iter().map(|one| what.of(one)).collect())
            .unwrap_or_default()
    }

    /// The best of some, by the median.
    fn best(&self, peers: &[Peer], what: What) -> Option<(Vec<f64>, &'static str)> {
        let all = peers.iter().map(|peer| (self.of(*peer, what), peer.name));
        let better = |(a, _): &(Vec<f64>, _), (b, _): &(Vec<f64>, _)| {
            let order = median(a).total_cmp(&median(b));
            if what.more_is_better() { order } else { order.reverse() }
        };
        all.max_by(better)
    }

    /// A row: one of ours against the best of some others.
    pub(crate) fn row(
        &self,
        table: &mut Table,
        load: &str,
        (ours, peers): (Peer, &[Peer]),
        (what, bar): (What, Option<Bar>),
        note: &str,
    ) {
        table.push(Row {
            name: format!("{load}, {}{}", ours.name, what.words()),
            unit: what.unit(),
            ours: self.of(ours, what),
            peer: self.best(peers, what),
            bar,
            note: note.to_owned(),
        });
    }
}
