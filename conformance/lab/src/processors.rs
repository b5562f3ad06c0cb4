//! Which processor each guest begins on.
//!
//! A guest is on one at a time ([`crate::balance`]), so it is the lab's work to use all of them: the
//! guests of a lab take turns, and a lab begins where the fewest labs of this process do. Tests that
//! run at the same time, each with one guest, have a processor each; of several
//! pairs of a server and a host, the hosts, which have more to do, are not all on the same one.

use std::sync::{Mutex, PoisonError};

use rustix::thread::sched_getaffinity;

/// How many labs begin at each of the processors.
static BEGUN: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// The turns that the guests of a lab take.
pub(crate) struct Turns {
    processors: Vec<usize>,
    first: usize,
}

impl Turns {
    /// For a new lab.
    pub(crate) fn begin() -> Self {
        let processors = processors();
        // Processes that run at the same time begin at different ones.
        let start = std::process::id() as usize;
        let mut begun = BEGUN.lock().unwrap_or_else(PoisonError::into_inner);
        let places = processors.len().max(begun.len());
        begun.resize(places, 0);
        let places = (start..start + processors.len()).map(|place| place % processors.len());
        let first = places.min_by_key(|place| begun.get(*place).copied()).unwrap_or(0);
        if let Some(labs) = begun.get_mut(first) {
            *labs += 1;
        }
        Self { processors, first }
    }

    /// That of a guest; guests count from 1.
    pub(crate) fn processor(&self, guest: u8) -> usize {
        let turn = self.first + usize::from(guest).saturating_sub(1);
        self.processors.get(turn % self.processors.len()).copied().unwrap_or(0)
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        let mut begun = BEGUN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(labs) = begun.get_mut(self.first) {
            *labs = labs.saturating_sub(1);
        }
    }
}

/// The processors that this process may use.
fn processors() -> Vec<usize> {
    let set = sched_getaffinity(None).ok();
    let listed = (0..1024).filter(|number| set.as_ref().is_some_and(|set| set.is_set(*number)));
    let listed: Vec<usize> = listed.collect();
    if listed.is_empty() { vec![0] } else { listed }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The only test of this process that makes any.
    #[test]
    fn labs_begin_where_the_fewest_do_and_guests_take_turns() {
        let count = processors().len();
        let labs: Vec<Turns> = (0..count).map(|_| Turns::begin()).collect();
        let mut first: Vec<usize> = labs.iter().map(|lab| lab.processor(1)).collect();
        first.sort_unstable();
        assert_eq!(first, processors(), "each processor has one lab");
        let mut guests: Vec<usize> = (1..=count).map(|n| labs[0].processor(n as u8)).collect();
        guests.sort_unstable();
        assert_eq!(guests, processors(), "each processor has one guest of the lab");

        // The place of one that has ended is the next one's.
        let mut labs = labs;
        let ended = labs.swap_remove(count / 2).processor(1);
        assert_eq!(Turns::begin().processor(1), ended);
    }
}
