//! What drivers of real storage add to the commands that they need, in guests with kernels of their own.
//!
//! Run by `cargo xtask bench lab`, which builds everything for release first. This program starts itself
//! once more in the guest: there an operation is done by the storage manager, in one process with the
//! driver, and then the commands that it ran are run bare, one after the other, each in turn. Both are
//! of the same guest and the same minute, so their ratio says something and their times do not.

mod inside;
#[path = "../control/machine.rs"]
mod machine;
#[expect(dead_code, reason = "its other users have bars below, and amounts")]
#[path = "../vhd/table.rs"]
mod table;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use lab::kit::iscsi::{Initiator, Lun, Target};
use lab::kit::{self, lvm, multipath, nfs, udev};
use lab::{Guest, Lab};
use serde_json::Value;
use table::{Bar, Row, Table};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MIB: u64 = 1 << 20;
const IQN: &str = "iqn.2026-01.org.example.lab:bench";
/// Rounds for an attach over iSCSI, at most: one takes seconds, and its time has no bar.
const FEW: usize = 6;
/// Most time for a part.
const PART: Duration = Duration::from_secs(20 * 60);
/// Of the bare commands' time to ours: we take at most a tenth more.
const TENTH: Option<Bar> = Some(Bar::Ratio(0.91));

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.first().map(String::as_str) {
        Some(inside::WORD) => inside::run(&arguments).map(|()| true),
        _ => run(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench lab: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &[String]) -> Result<bool> {
    let value = |name: &str| {
        let at = arguments.iter().position(|word| word == name)?;
        arguments.get(at + 1).cloned()
    };
    let Some(product) = value("--product").map(PathBuf::from) else {
        // `cargo bench` and `cargo test --benches` come here.
        println!("run it with: cargo xtask bench lab");
        return Ok(true);
    };
    let only = value("--only");
    let chosen = |part: &str| only.as_deref().is_none_or(|only| only == part);
    let rounds = if arguments.iter().any(|word| word == "--quick") { 3 } else { 15 };
    let bench = Bench { product, rounds };
    let mut table = Table::default();
    if chosen("lvm") {
        bench.lvm(&mut table)?;
    }
    if chosen("nfs") {
        bench.nfs(&mut table)?;
    }
    if chosen("lvmoiscsi") {
        bench.lvmoiscsi(&mut table)?;
    }
    if arguments.iter().any(|word| word == "--json") {
        println!("{}", table.json());
    } else {
        println!("{}\n", machine::describe(&bench.product));
        print!("{}", table.text());
    }
    Ok(table.all_ok())
}

struct Bench {
    product: PathBuf,
    rounds: usize,
}

impl Bench {
    /// What this program says when it runs in a guest.
    fn ask(&self, guest: &Guest, part: &str, config: &[String]) -> Result<Value> {
        let rounds = if part == "lvmoiscsi" { self.rounds.min(FEW) } else { self.rounds };
        let program = std::env::current_exe()?;
        let text = |path: &Path| path.display().to_string();
        let mut words = vec![text(&program), inside::WORD.into(), part.into()];
        words.extend([text(&self.product), rounds.to_string()]);
        words.extend(config.iter().cloned());
        let call = guest.command(words.iter().map(String::as_str)).deadline(PART);
        Ok(serde_json::from_str(&call.check()?)?)
    }

    /// LVM on a disk of the guest: no udev, no network.
    fn lvm(&self, table: &mut Table) -> Result<()> {
        let lab = Lab::new()?;
        let disk = lab.disk("disk", 2048 * MIB)?;
        let guest = lab.guest("host").memory(512).disk(&disk).boot()?;
        lvm::prepare(&guest)?;
        let said = self.ask(&guest, "lvm", &["device=/dev/ubda".to_owned()])?;
        overhead(
            table,
            &said,
            "create",
            "lvm: create of a thin VDI",
            "its LVM commands, bare",
            TENTH,
        )?;
        overhead(
            table,
            &said,
            "snapshot",
            "lvm: snapshot of a thin VDI",
            "its LVM commands, bare",
            TENTH,
        )?;
        overhead(table, &said, "scan", "lvm: scan of 1,000 VDIs", "its LVM command, bare", TENTH)?;
        count(table, &said, "snapshot", "lvm: snapshot of a thin VDI", inside::changes, 1.0)?;
        count(table, &said, "scan", "lvm: scan of 1,000 VDIs", |_| true, 1.0)
    }

    /// NFS from another guest.
    fn nfs(&self, table: &mut Table) -> Result<()> {
        let lab = Lab::new()?;
        let network = lab.network()?;
        let guest = |name| lab.guest(name).network(&network);
        let [nas, host] = lab.boot([guest("nas"), guest("host").memory(512)])?;
        kit::xfs(&nas, "/srv/nfs.img", Some(512 * MIB), "/srv/nfs")?;
        let _server = nfs::Server::start(&nas, "/srv/nfs")?;
        host.load(&["nfsv4"])?;
        let server = format!("server={}", nas.address(&network)?);
        let said = self.ask(&host, "nfs", &[server, "serverpath=/".to_owned()])?;
        overhead(table, &said, "attach", "nfs: attach of an SR", "its mount, bare", TENTH)
    }

    /// A LUN over two portals.
    fn lvmoiscsi(&self, table: &mut Table) -> Result<()> {
        let lab = Lab::new()?;
        let networks = [lab.network()?, lab.network()?];
        let guest = |name| lab.guest(name).network(&networks[0]).network(&networks[1]);
        let [nas, host] = lab.boot([guest("nas"), guest("host").memory(512)])?;
        let portals = [nas.address(&networks[0])?, nas.address(&networks[1])?];
        let mut target = Target::start(&nas, IQN, &portals)?;
        let lun = Lun { number: 1, on: "/srv/lun".into(), bytes: 512 * MIB, serial: 0xbe01 };
        target.add(&lun)?;
        target.allow(&Initiator::name_of(&host))?;
        udev::start(&host)?;
        Initiator::start(&host)?;
        lvm::prepare_with_udev(&host)?;
        multipath::start(&host)?;
        let config = [
            format!("target={},{}", portals[0], portals[1]),
            format!("targetIQN={IQN}"),
            format!("SCSIid={}", lun.scsi_id()),
        ];
        let said = self.ask(&host, "lvmoiscsi", &config)?;
        let name = "lvmoiscsi: attach of a VDI, its session up";
        count(table, &said, "attach", name, |_| true, 5.0)?;
        // It holds leases on the LUN for it, and starts a data path.
        overhead(table, &said, "attach", name, "its LVM commands, bare", None)
    }
}

fn figures(said: &Value, operation: &str, what: &str) -> Result<Vec<f64>> {
    let all = said[operation][what].as_array();
    let all = all.ok_or_else(|| format!("the guest told no {what} of {operation}: {said}"))?;
    Ok(all.iter().filter_map(Value::as_f64).collect())
}

/// A row of times, beside those of the bare commands.
fn overhead(
    table: &mut Table,
    said: &Value,
    operation: &str,
    name: &str,
    peer: &'static str,
    bar: Option<Bar>,
) -> Result<()> {
    let (ours, bare) = (figures(said, operation, "ours")?, figures(said, operation, "bare")?);
    let words: Vec<&str> = said[operation]["commands"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    table.push(Row {
        name: name.to_owned(),
        unit: "ms",
        ours,
        peer: Some((bare, peer)),
        bar,
        note: words.join(", "),
    });
    Ok(())
}

/// A row of how many commands there were.
fn count(
    table: &mut Table,
    said: &Value,
    operation: &str,
    name: &str,
    which: impl Fn(&str) -> bool,
    most: f64,
) -> Result<()> {
    let words = said[operation]["commands"].as_array().ok_or("the guest told no commands")?;
    let count = words.iter().filter_map(Value::as_str).filter(|word| which(word)).count();
    table.push(Row {
        name: format!("{name}, commands"),
        unit: "",
        ours: vec![f64::from(u32::try_from(count)?)],
        peer: None,
        bar: Some(Bar::Most(most)),
        note: String::new(),
    });
    Ok(())
}
