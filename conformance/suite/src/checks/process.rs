//! What the driver's process takes of the host.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sm_model::AttachMode::ReadOnly;
use sm_model::sr::{SrAttach, SrStat};
use sm_model::vdi::VdiStat;

use super::{Check, DISKS, Setup};
use crate::inventory::{Spent, processes, resident, spent};
use crate::strace::Trace;
use crate::verdict::{Stop, Verdict, must};
use crate::world::World;

/// How long a driver is left alone.
const IDLE: Duration = Duration::from_secs(2);

/// The processor time that it may take then: 5 % of one.
const WORK: Duration = Duration::from_millis(100);

/// How often its threads may wake up then: 50 times in a second.
const WAKEUPS: u64 = 100;

/// Calls before its memory is looked at for the first time: what is kept once has been made.
const WARM: usize = 50;

/// Calls until it is looked at again.
const CALLS: usize = 400;

/// The longest that these go on, where a call takes long.
const LONGEST: Duration = Duration::from_secs(10);

/// What they may leave in memory, in bytes.
const GROWTH: u64 = 4 << 20;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "R05",
        needs: DISKS,
        sentences: &["DRV-PROC-5"],
        explain: "For two seconds nobody calls the driver, which has an SR attached and a disk. Its \
            process and those that it has started may use 100 ms of a processor and wake up a \
            hundred times: a driver waits for what is to happen, it does not look again and again.",
        setup: Setup::Sr,
        run: |world| {
            world.create("kept")?;
            let driver = world.port()?.process_id().ok_or_else(unseen)?;
            let all = || {
                let below = processes(driver).into_iter().map(|(pid, _)| pid);
                below.chain([driver]).filter_map(spent).collect::<Vec<_>>()
            };
            let before = all();
            std::thread::sleep(IDLE);
            let sum = |all: &[Spent]| {
                all.iter().fold((Duration::ZERO, 0), |(time, wakeups), spent| {
                    (time + spent.time, wakeups + spent.wakeups)
                })
            };
            let ((busy, woken), (busy_before, woken_before)) = (sum(&all()), sum(&before));
            let (busy, woken) =
                (busy.saturating_sub(busy_before), woken.saturating_sub(woken_before));
            must(busy <= WORK && woken <= WAKEUPS, || {
                format!(
                    "in 2 s without a call it worked {} ms and woke up {woken} times",
                    busy.as_millis()
                )
            })
        },
    },
    Check {
        id: "R06",
        needs: DISKS.and(&["vdi_stat", "sr_stat"]),
        sentences: &["DRV-PROC-6"],
        explain: "After fifty calls that only ask, four hundred more (or as many as come in 10 s) \
            may leave at most 4 MiB in the memory of the driver's process: it runs for months.",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("asked")?.uuid;
            let driver = world.port()?.process_id().ok_or_else(unseen)?;
            for _ in 0..WARM / 2 {
                ask(world, vdi)?;
            }
            let before = resident(driver).ok_or_else(unseen)?;
            let (began, mut calls) = (Instant::now(), 0);
            while calls < CALLS && began.elapsed() < LONGEST {
                ask(world, vdi)?;
                calls += 2;
            }
            let after = resident(driver).ok_or_else(unseen)?;
            must(after <= before + GROWTH, || {
                format!("{calls} calls that only ask left {} bytes in memory", after - before)
            })
        },
    },
    Check {
        id: "Q06",
        needs: DISKS,
        sentences: &["DRV-SEC-4"],
        explain: "Under strace the SR is attached, a disk made, attached, listed and destroyed, and \
            snapshotted and cloned where that is quick. What the driver, or a program that it runs, \
            makes in a folder in which others may make files too, such as /tmp, must be new \
            (`O_EXCL`: a link that somebody has laid there is not followed) and for its user only. \
            The backend's folder does not count.",
        setup: Setup::Sr,
        run: |world| {
            let driver = world.port()?.process_id().ok_or_else(unseen)?;
            let umask = umask(driver).ok_or_else(unseen)?;
            let trace = Trace::attach(driver, world.bench.scratch.join("files"), None)?;
            let done = some_of_all(world);
            let text = trace.text()?;
            done?;
            let own: Vec<PathBuf> =
                [world.bench.directory(), world.bench.images()].into_iter().flatten().collect();
            let open = |path: &Path| {
                let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
                let folder = folder.filter(|folder| !own.iter().any(|own| folder.starts_with(own)));
                let facts = folder.and_then(|folder| folder.metadata().ok());
                facts.is_some_and(|facts| facts.permissions().mode() & 0o002 != 0)
            };
            let made = text.lines().filter_map(made);
            let bad = made.filter(|made| open(&made.path)).find(|made| {
                let others = made.mode & !umask & 0o077;
                !made.new || others != 0
            });
            must(bad.is_none(), || {
                let Some(Made { path, new, mode }) = bad else { return String::new() };
                let (path, mode) = (path.display(), mode & !umask);
                let how = if new { "" } else { ", whatever was there" };
                format!("{path} is made with mode {mode:o}{how}, where anybody may make files")
            })
        },
    },
];

/// A bit of everything, as a host does.
fn some_of_all(world: &mut World<'_>) -> Verdict {
    world.call(SrAttach {})?;
    let vdi = world.create("seen")?.uuid;
    if world.can_use_data() {
        let disk = world.open(vdi, ReadOnly)?;
        world.shut(vdi, disk)?;
    }
    if world.bench.config.suite.slow.is_none() {
        if world.can("vdi_snapshot") {
            world.snapshot(vdi)?;
        }
        if world.can("vdi_clone") {
            world.clone(vdi)?;
        }
    }
    world.list()?;
    world.destroy(vdi)
}

/// A file that was made, or might have been if it had not been there.
struct Made {
    path: PathBuf,
    new: bool,
    mode: u32,
}

/// What a line of strace tells of one: `7 openat(AT_FDCWD</>, "/tmp/x", O_WRONLY|O_CREAT, 0666) = 3</tmp/x>`.
fn made(line: &str) -> Option<Made> {
    let (_, words) = line.split_once(" openat(")?;
    let (folder, rest) = words.split_once(">, \"")?;
    let (name, rest) = rest.split_once("\", ")?;
    let (flags, rest) = rest.split_once(", ")?;
    let digits = rest.split(|end: char| !end.is_ascii_digit()).next()?;
    let makes = flags.split('|').any(|flag| flag == "O_CREAT") && !rest.contains("= -1 ");
    let folder = folder.split_once('<').map_or("", |(_, path)| path);
    makes.then_some(Made {
        path: Path::new(folder).join(name),
        new: flags.split('|').any(|flag| flag == "O_EXCL"),
        mode: u32::from_str_radix(digits, 8).ok()?,
    })
}

fn umask(process: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let digits = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(digits.trim(), 8).ok()
}

/// What nobody has looked at is not said to hold.
fn unseen() -> Stop {
    Stop::NotTestable("the driver's process is not seen in /proc".into())
}

fn ask(world: &mut World<'_>, vdi: sm_model::VdiUuid) -> Verdict {
    world.call(VdiStat::of(vdi))?;
    world.call(SrStat {})?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_is_made_and_for_whom() {
        let told = |line: &str| {
            made(line).map(|made| (made.path.display().to_string(), made.new, made.mode))
        };
        let line = |flags| format!("7 openat(AT_FDCWD</root>, \"x\", {flags}, 0640) = 3</root/x>");
        let path = || "/root/x".to_owned();
        assert_eq!(told(&line("O_WRONLY|O_CREAT|O_CLOEXEC")), Some((path(), false, 0o640)));
        assert_eq!(told(&line("O_WRONLY|O_CREAT|O_EXCL")), Some((path(), true, 0o640)));
        let absolute = "7 openat(5</root>, \"/tmp/y\", O_RDWR|O_CREAT, 0600 <unfinished ...>";
        assert_eq!(told(absolute), Some(("/tmp/y".to_owned(), false, 0o600)));
        let there = "7 openat(AT_FDCWD</>, \"/tmp/y\", O_RDWR|O_CREAT|O_EXCL, 0600) = -1 EEXIST (File exists)";
        for other in [
            there,
            "7 openat(AT_FDCWD</>, \"/tmp/y\", O_RDONLY|O_CLOEXEC) = 3</tmp/y>",
            "7 write(3</x>, \"\"..., 4) = 4",
        ] {
            assert_eq!(told(other), None, "{other}");
        }
    }
}
