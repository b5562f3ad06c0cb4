//! Which processor a guest is on while it runs.
//!
//! A guest stays on one, with all of its processes: each system call in it is a hand-over between two
//! processes of the machine. But where it begins is chosen without knowledge of who works when: of
//! two guests that have much to do one may wait for the other beside a processor that is idle. So the
//! supervisor of each guest looks every now and then, and moves its own.

use std::fs;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Between two looks, at least; half as much again at random, so that two supervisors that see the
/// same do not do the same.
const PAUSE: Duration = Duration::from_secs(1);

/// A processor is full from so many thousandths of the time on.
const FULL: u64 = 900;
/// Others are in the way if they have so many thousandths more of the processor here than there.
const MORE: u64 = 200;

/// Ticks of the processors and of the guest, at some instant.
#[derive(Clone, Debug)]
struct Sample {
    /// Of each processor: busy, and all.
    processors: Vec<(u64, u64)>,
    guest: u64,
}

/// Keeps a guest on a processor.
#[derive(Debug)]
pub struct Balance {
    here: usize,
    /// Those that it may be on.
    allowed: Vec<usize>,
    before: Option<Sample>,
    next: Instant,
}

impl Balance {
    /// Puts this process on a processor, and with it what it starts.
    pub fn begin(processor: usize) -> io::Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let allowed = (0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number)).collect();
        sched_setaffinity(None, &only(processor))?;
        Ok(Self { here: processor, allowed, before: None, next: Instant::now() + pause() })
    }

    /// How long nothing is to be done.
    pub fn rest(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Looks, and moves the guest if that is better for it. `/proc` must be that of this process'
    /// own namespace, in which there is nothing but the guest.
    pub fn look(&mut self) -> io::Result<()> {
        self.next = Instant::now() + pause();
        let now = sample()?;
        let Some(before) = self.before.replace(now.clone()) else { return Ok(()) };
        if let Some(there) = better(self.here, &self.allowed, &before, &now) {
            // Twice: what one that has not moved yet starts meanwhile is here.
            for _ in 0..2 {
                each_task(|task| {
                    // One that has just ended.
                    let _ = sched_setaffinity(Some(task), &only(there));
                })?;
            }
            self.here = there;
            self.before = None;
        }
        Ok(())
    }
}

fn only(processor: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(processor);
    set
}

fn pause() -> Duration {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    PAUSE + Duration::from_nanos(u64::from(clock.subsec_nanos()) % (PAUSE.as_nanos() as u64 / 2))
}

/// The processor on which others leave more to the guest than here.
fn better(here: usize, allowed: &[usize], before: &Sample, now: &Sample) -> Option<usize> {
    // Thousandths of the time between.
    let part = |number: usize, ticks: u64| {
        let (all, all_then) = (now.processors.get(number)?.1, before.processors.get(number)?.1);
        ticks.saturating_mul(1000).checked_div(all.checked_sub(all_then)?)
    };
    let busy = |number: usize| {
        let (then, now) = (before.processors.get(number)?.0, now.processors.get(number)?.0);
        part(number, now.checked_sub(then)?)
    };
    let guest = part(here, now.guest.saturating_sub(before.guest))?;
    let others = busy(here)?.saturating_sub(guest);
    let there = allowed.iter().filter(|number| **number != here);
    let there = there.filter_map(|number| Some((busy(*number)?, *number)));
    let (busy_there, number) = there.min()?;
    (busy(here)? >= FULL && busy_there + MORE < others).then_some(number)
}

fn sample() -> io::Result<Sample> {
    let processors = processors(&fs::read_to_string("/proc/stat")?);
    let mut guest = 0;
    each_process(|process| {
        if let Ok(text) = fs::read_to_string(format!("/proc/{process}/stat")) {
            guest += ticks(&text);
        }
    })?;
    Ok(Sample { processors, guest })
}

/// `cpu0 user nice system idle iowait irq softirq steal ...` (proc_stat(5)).
fn processors(stat: &str) -> Vec<(u64, u64)> {
    let lines = stat.lines().filter_map(|line| line.strip_prefix("cpu"));
    let mut processors = Vec::new();
    for line in lines {
        let mut words = line.split(' ');
        let Some(Ok(number)) = words.next().map(str::parse::<usize>) else { continue };
        let ticks: Vec<u64> = words.take(8).filter_map(|word| word.parse().ok()).collect();
        let all: u64 = ticks.iter().sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        processors.resize(processors.len().max(number + 1), (0, 0));
        if let Some(place) = processors.get_mut(number) {
            *place = (all - idle, all);
        }
    }
    processors
}

/// A process' own ticks, and those of the children that it has waited for (proc_pid_stat(5)).
fn ticks(stat: &str) -> u64 {
    // The name, in brackets, may hold anything.
    let Some((_, words)) = stat.rsplit_once(')') else { return 0 };
    words.split_whitespace().skip(11).take(4).filter_map(|word| word.parse::<u64>().ok()).sum()
}

/// Every process of the namespace but its first, which is this one.
fn each_process(mut each: impl FnMut(i32)) -> io::Result<()> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(number) = number.filter(|number| *number != 1) {
            each(number);
        }
    }
    Ok(())
}

/// Every thread of these processes.
fn each_task(each: impl Fn(Pid)) -> io::Result<()> {
    each_process(|process| {
        let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return };
        for entry in tasks.flatten() {
            let number = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            if let Some(task) = number.and_then(Pid::from_raw) {
                each(task);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(processors: [u64; 2], guest: u64, all: u64) -> Sample {
        Sample { processors: processors.map(|busy| (busy, all)).to_vec(), guest }
    }

    #[test]
    fn a_guest_moves_to_where_others_leave_it_more() {
        let before = sample([0, 0], 0, 0);
        for (busy, guest, expected) in [
            // Two share this one, the other one is idle.
            ([100, 10], 50, Some(1)),
            // All of this one is the guest's.
            ([100, 10], 100, None),
            // There as many are in the way.
            ([100, 100], 50, None),
            ([100, 40], 50, None),
            // It waits for nobody.
            ([60, 0], 20, None),
        ] {
            let now = sample(busy, guest, 100);
            assert_eq!(better(0, &[0, 1], &before, &now), expected, "{busy:?} {guest}");
            assert_eq!(better(0, &[0], &before, &now), None, "nowhere to go");
        }
    }

    #[test]
    fn the_kernels_words_are_read() {
        let stat = "cpu  9 9 9 9\ncpu0 10 1 5 80 4 0 1 2 0 0\ncpu1 1 1 1 1 1 1 1 1 9 9\nintr 7\n";
        assert_eq!(processors(stat), [(19, 103), (6, 8)]);
        let stat = "28519 (a) b) S 1 2 3 4 5 6 7 8 9 10 600 35 7 8 20 0 3";
        assert_eq!(ticks(stat), 650);
    }
}
