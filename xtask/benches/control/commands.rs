//! `smctl` as whole processes: what a script, or a toolstack that calls a command, pays.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use sm_core::Placement;

use crate::cost::{self, Cost, median};
use crate::table::{Row, Table};
use crate::{PLACEMENTS, Result, Setting};

/// Runs of each command.
const TIMES: usize = 21;

/// Processor time of one command, in milliseconds, started as it is by default: the file driver
/// then runs in process. A child process is a choice, with its price beside it.
const BAR: f64 = 10.0;

const SIZE: &str = "10GiB";

/// What is measured: its name, the peer's, and what was recorded of XenServer's driver.
const OPERATIONS: [(&str, &str, &str); 3] = [
    ("create", "qemu-img create -f vpc", "SMAPIv1 FileSR 200-230 ms CPU, recorded elsewhere"),
    (
        "snapshot",
        "qemu-img create -f qcow2 -b",
        "SMAPIv1 FileSR 250-270 ms CPU, recorded elsewhere",
    ),
    ("clone", "qemu-img create -f qcow2 -b", "SMAPIv1 FileSR 230-260 ms CPU, recorded elsewhere"),
];

pub(crate) fn measure(setting: &Setting, table: &mut Table) -> Result<()> {
    for placement in PLACEMENTS {
        let mut ours: [Vec<Cost>; 3] = Default::default();
        let mut peers: [Vec<Cost>; 3] = Default::default();
        let run = Run::new(setting, placement)?;
        for n in 0..setting.often(TIMES) {
            // A disk of its own for each: a chain that grows would make each slower than the last.
            let name = format!("disk-{n}");
            let (cost, disk) = run.smctl(&["vdi", "create", "--name", &name, "--size", SIZE])?;
            ours[0].push(cost);
            peers[0].push(run.qemu_img(&["-f", "vpc"], &format!("{n}.vhd"))?);
            ours[1].push(run.smctl(&["vdi", "snapshot", &disk, "--name", "s"])?.0);
            peers[1].push(run.qemu_based(n, "snapshot")?);
            ours[2].push(run.smctl(&["vdi", "clone", &disk, "--name", &format!("c-{n}")])?.0);
            peers[2].push(run.qemu_based(n, "clone")?);
        }
        for (n, (operation, peer, note)) in OPERATIONS.into_iter().enumerate() {
            let figure =
                |costs: &[Cost], of: fn(&Cost) -> f64| median(costs.iter().map(of).collect());
            let how = match placement {
                Placement::InProcess => "by default (in process)",
                Placement::Child => "--isolation child",
            };
            let name = |what: &str| format!("smctl vdi {operation}, {how}: {what}");
            table.push(Row {
                name: name("CPU"),
                unit: "ms".to_owned(),
                ours: figure(&ours[n], |cost| cost.cpu),
                peer: Some((figure(&peers[n], |cost| cost.cpu), peer.to_owned())),
                bar: (placement == Placement::InProcess).then_some(BAR),
                note: note.to_owned(),
            });
            table.push(Row {
                name: name("wall"),
                unit: "ms".to_owned(),
                ours: figure(&ours[n], |cost| cost.wall),
                peer: Some((figure(&peers[n], |cost| cost.wall), peer.to_owned())),
                note: "ours has synced the image and its folder, the peer has not".to_owned(),
                ..Row::default()
            });
        }
    }
    Ok(())
}

/// One SR, one way to run its driver.
struct Run {
    smctl: PathBuf,
    state: PathBuf,
    folder: PathBuf,
    isolation: &'static str,
}

impl Run {
    fn new(setting: &Setting, placement: Placement) -> Result<Self> {
        let isolation = match placement {
            Placement::InProcess => "auto",
            Placement::Child => "child",
        };
        let folder = setting.folder(isolation)?;
        let run = Self { smctl: setting.smctl(), state: folder.join("state"), folder, isolation };
        let location = format!("location={}", run.folder.display());
        run.smctl(&["sr", "create", "--driver", "file", "--name", "bench", &location])?;
        Ok(run)
    }

    /// Runs it; answers the first line it prints, too.
    fn smctl(&self, words: &[&str]) -> Result<(Cost, String)> {
        let environment = [
            ("SMCTL_STATE_DIR", self.state.as_os_str()),
            ("SMCTL_ISOLATION", OsStr::new(self.isolation)),
        ];
        let (cost, text) = cost::run(&self.smctl, words, &environment)?;
        Ok((cost, text.lines().next().unwrap_or_default().to_owned()))
    }

    fn qemu_img(&self, words: &[&str], name: &str) -> Result<Cost> {
        let file = self.folder.join(name);
        let mut all = vec![OsStr::new("create"), OsStr::new("-q")];
        all.extend(words.iter().map(OsStr::new));
        all.extend([file.as_os_str(), OsStr::new("10G")]);
        Ok(cost::run(Path::new("qemu-img"), &all, &[])?.0)
    }

    fn qemu_based(&self, n: usize, what: &str) -> Result<Cost> {
        let base = self.folder.join(format!("{n}.vhd"));
        let base = base.to_str().ok_or("a path is not UTF-8")?;
        let words = ["-f", "qcow2", "-b", base, "-F", "vpc"];
        self.qemu_img(&words, &format!("{n}-{what}.qcow2"))
    }
}
