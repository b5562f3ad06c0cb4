//! The load: `fio` through its NBD engine.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use serde_json::Value;

use crate::process::{Running, Scheduling, Server};
use crate::table::amount;
use crate::{Result, Setting};

/// Time for a load beyond that which it is told to take.
const SLACK: Duration = Duration::from_secs(60);

/// What `fio` is to do, for a time or for a number of bytes.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// `fio`'s word: `randread`, `randwrite`, `randrw`, `read`, `write`.
    pub(crate) kind: &'static str,
    /// Bytes of each request.
    pub(crate) block: u64,
    /// Requests in flight on each connection.
    pub(crate) depth: u32,
    /// Connections.
    pub(crate) connections: u32,
    /// A flush after each write.
    pub(crate) flush: bool,
    /// Bytes to transfer, each place once. Zero: for as long as a run takes.
    pub(crate) bytes: u64,
}

impl Load {
    pub(crate) const fn new(kind: &'static str, block: u64, depth: u32) -> Self {
        Self { kind, block, depth, connections: 1, flush: false, bytes: 0 }
    }

    pub(crate) fn command(
        self,
        setting: &Setting,
        uri: &str,
        size: u64,
        time: Duration,
    ) -> Command {
        let mut command = setting.scheduling.command("fio");
        command.args(["--name=load", "--ioengine=nbd", "--thread", "--output-format=json"]);
        command.arg(format!("--uri={uri}")).arg(format!("--rw={}", self.kind));
        command.arg(format!("--bs={}", self.block)).arg(format!("--iodepth={}", self.depth));
        command.arg(format!("--numjobs={}", self.connections)).arg("--group_reporting");
        command.arg(format!("--size={size}"));
        if self.kind == "randrw" {
            command.arg("--rwmixread=70");
        }
        if self.flush {
            command.arg("--fsync=1");
        }
        if self.bytes > 0 {
            command.arg(format!("--io_size={}", self.bytes));
        } else {
            // Without a map of what was done already, which would make later requests dearer.
            command.args(["--norandommap=1", "--randrepeat=0", "--time_based"]);
            command.arg(format!("--runtime={}ms", time.as_millis()));
        }
        command
    }

    /// Runs it against a server.
    pub(crate) fn run(
        self,
        setting: &Setting,
        server: &Server,
        uri: &str,
        size: u64,
        time: Duration,
    ) -> Result<Figures> {
        let mut command = self.command(setting, uri, size, time);
        let (busy, ours, cpu, stored, begin) = (
            machine_cpu()?,
            children_cpu()?,
            server.cpu()?,
            server.read_from_storage()?,
            Instant::now(),
        );
        let ended = Running::start(&mut command)?.end(time + SLACK)?;
        let cpu = server.cpu()?.saturating_sub(cpu);
        let wall = begin.elapsed();
        let ours = children_cpu()?.saturating_sub(ours) + cpu;
        let others = machine_cpu()?.saturating_sub(busy).saturating_sub(ours);
        setting.noise.add(others, wall);
        if !ended.status.success() {
            let said = ended.stderr + &ended.stdout;
            return Err(format!("fio against {uri}: {}: {}", ended.status, said.trim()).into());
        }
        Figures::read(&ended.stdout, cpu, server.read_from_storage()?.saturating_sub(stored))
    }
}

/// What came of a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Requests a second, flushes not counted.
    pub(crate) iops: f64,
    /// 10^9 bytes a second.
    pub(crate) rate: f64,
    /// Processor time of the server for a request, microseconds.
    pub(crate) cpu: f64,
    /// What 99 of 100 requests do not exceed, milliseconds.
    pub(crate) p99: f64,
    /// Bytes that the server has read from storage, for each byte read from it; what it finds in
    /// the page cache is not counted.
    pub(crate) stored: f64,
}

impl Figures {
    /// Reads what `fio` has printed; it says a word or two before the document.
    fn read(printed: &str, cpu: Duration, stored: u64) -> Result<Self> {
        let document = printed.find('{').map_or("", |at| &printed[at..]);
        let document: Value = serde_json::from_str(document)?;
        let job = document.pointer("/jobs/0").ok_or("fio reports no job")?;
        let number = |path: &str| job.pointer(path).and_then(Value::as_f64).unwrap_or(0.0);
        if number("/error") != 0.0 {
            return Err(format!("fio had error {}", number("/error")).into());
        }
        let both =
            |name: &str| number(&format!("/read/{name}")) + number(&format!("/write/{name}"));
        let requests = both("total_ios");
        if requests < 1.0 {
            return Err("fio has done nothing".into());
        }
        let p99 = |kind: &str| number(&format!("/{kind}/clat_ns/percentile/99.000000")) / 1e6;
        Ok(Self {
            iops: both("iops"),
            rate: both("bw_bytes") / 1e9,
            cpu: cpu.as_secs_f64() * 1e6 / requests,
            p99: p99("read").max(p99("write")),
            stored: amount(stored) / number("/read/io_bytes").max(1.0),
        })
    }
}

/// Reads the log of all requests: when each ended, since the epoch, and how long it took; both in
/// milliseconds.
pub(crate) fn requests(log: &Path) -> Result<Vec<(f64, f64)>> {
    let mut all = Vec::new();
    for line in std::fs::read_to_string(log)?.lines() {
        let mut words = line.split(',').map(str::trim);
        let (Some(at), Some(took)) = (words.next(), words.next()) else { continue };
        all.push((at.parse()?, took.parse::<f64>()? / 1e6));
    }
    Ok(all)
}

/// Processor time of the children that have ended.
fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let of = |time: nix::sys::time::TimeVal| {
        let (seconds, micros) = (time.tv_sec().max(0), time.tv_usec().max(0));
        Duration::from_micros(seconds.unsigned_abs() * 1_000_000 + micros.unsigned_abs())
    };
    Ok(of(usage.user_time()) + of(usage.system_time()))
}

/// Processor time that the whole machine has used; time that a hypervisor took away included.
fn machine_cpu() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().ok_or("/proc/stat is empty")?;
    // user nice system idle iowait irq softirq steal; guest time is part of user
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).map(str::parse).collect::<std::result::Result<_, _>>()?;
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at)).sum::<u64>();
    // The unit of this file is 1/100 s on every system: USER_HZ.
    Ok(Duration::from_millis(busy * 10))
}

/// How much others took of the machine meanwhile.
#[derive(Default)]
pub(crate) struct Noise(std::cell::RefCell<Vec<f64>>);

impl Noise {
    fn add(&self, others: Duration, wall: Duration) {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let all = wall.as_secs_f64() * f64::from(u32::try_from(cores).unwrap_or(1));
        self.0.borrow_mut().push(100.0 * others.as_secs_f64() / all);
    }

    /// In a sentence.
    pub(crate) fn describe(&self, scheduling: Scheduling) -> String {
        let figures = self.0.borrow();
        if figures.is_empty() {
            return format!("Server and client were scheduled {}.", scheduling.words());
        }
        let middle = crate::table::median(&figures);
        let most = figures.iter().copied().fold(0.0, f64::max);
        let verdict = if middle < 5.0 { "quiet" } else { "NOT QUIET: believe only ratios" };
        format!(
            "Server and client were scheduled {}. Others had {middle:.0} % of the processors \
             (median of {} loads, most {most:.0} %): {verdict}.",
            scheduling.words(),
            figures.len()
        )
    }
}
