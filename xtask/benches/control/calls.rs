//! One call of an operation, with a driver that does nothing.
//!
//! Measured twice, each in a process of its own. On one core there is only the work of the call,
//! and that has a bar. On all cores the call wakes threads on others, and what it takes to wake an
//! idle core (more so a virtual one) is the machine's: the peers, which wake threads too, tell.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sm_core::model::host::OpenRequest;
use sm_core::model::vdi::{VdiStat, VdiUpdate};
use sm_core::model::{HostId, Operation, OperationId};
use sm_core::{NewSr, Op, Placement, Sr, StorageManager};
use sm_loader::port::{self, Call, DriverPort};
use sm_loader::{Loader, LoaderOptions, NoServices};
use uuid::Uuid;

use crate::cost::{self, median, microseconds};
use crate::table::{Row, Table};
use crate::{PLACEMENTS, Result, Setting, placed, utf8};

/// Calls, one after the other.
const TIMES: usize = 10_000;

/// Calls before the first that counts.
const WARM: usize = 200;

/// Calls that write the journal.
const JOURNALLED: usize = 200;

const BUDGET: Duration = Duration::from_secs(10);

/// This program again, once on one core and once on all.
pub(crate) fn measure(setting: &Setting, table: &mut Table) -> Result<()> {
    for cores in [Cores::One, Cores::All] {
        let program = std::env::current_exe()?;
        let mut words =
            vec!["--product", utf8(&setting.product)?.as_str(), "--calls", cores.name()];
        if setting.quick {
            words.push("--quick");
        }
        let (_, text) = cost::run(&program, &words, &[])?;
        for line in text.lines() {
            table.push(Row::from_line(line).ok_or("a part of the benchmark prints no figures")?);
        }
    }
    Ok(())
}

/// On which cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cores {
    One,
    All,
}

impl Cores {
    fn name(self) -> &'static str {
        match self {
            Self::One => "one core",
            Self::All => "all cores",
        }
    }
}

/// What the program started by [`measure`] does.
pub(crate) fn part(setting: &Setting, cores: &Path) -> Result<()> {
    let cores = if cores == Path::new(Cores::One.name()) { Cores::One } else { Cores::All };
    if cores == Cores::One {
        // Before any thread or child is made: all of them inherit it.
        let mut set = rustix::thread::CpuSet::new();
        let allowed = rustix::thread::sched_getaffinity(None)?;
        let last = (0..rustix::thread::CpuSet::MAX_CPU).rev().find(|n| allowed.is_set(*n));
        set.set(last.ok_or("no core")?);
        rustix::thread::sched_setaffinity(None, &set)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut table = Table::default();
    runtime.block_on(figures(setting, cores, &mut table))?;
    print!("{}", table.lines());
    Ok(())
}

async fn figures(setting: &Setting, cores: Cores, table: &mut Table) -> Result<()> {
    for placement in PLACEMENTS {
        // The peer first: its processes must be the only children.
        let (bar, peer) = match placement {
            Placement::InProcess => (10.0, (hop(setting).await?, "tokio::spawn and join")),
            Placement::Child => (100.0, (process(setting)?, "a process (/bin/true)")),
        };
        let port =
            open(setting, &setting.noop_driver(), placement, &setting.folder("port")?).await?;
        let times = setting.often(TIMES);
        let mut taken = Vec::with_capacity(times);
        for n in 0..WARM + times {
            let request = VdiStat::of(Uuid::from_u128(n as u128).into());
            let call = Call::new(Operation::VdiStat, OperationId::random(), BUDGET);
            let start = Instant::now();
            port::call(port.as_ref(), call, &request).await?;
            taken.push(microseconds(start.elapsed()));
        }
        table.push(Row {
            name: name("call of a driver that does nothing", placement, cores),
            unit: "us".to_owned(),
            ours: median(taken.split_off(WARM)),
            peer: Some((peer.0, peer.1.to_owned())),
            bar: (cores == Cores::One).then_some(bar),
            note: String::new(),
        });
        port.close(BUDGET).await;
    }
    for placement in PLACEMENTS {
        engine(setting, placement, cores, table).await?;
    }
    Ok(())
}

/// The same through the engine, with its locks, catalog and journal.
async fn engine(
    setting: &Setting,
    placement: Placement,
    cores: Cores,
    table: &mut Table,
) -> Result<()> {
    let sr = sr(setting, placement).await?;
    let vdi = Uuid::from_u128(1).into();
    let times = setting.often(TIMES / 2);
    let mut taken = Vec::with_capacity(times);
    for _ in 0..times {
        let start = Instant::now();
        sr.vdi(&Op::new(), "00000000-0000-0000-0000-000000000001").await?;
        taken.push(microseconds(start.elapsed()));
    }
    table.push(Row {
        name: name("the same through the engine, reading", placement, cores),
        unit: "us".to_owned(),
        ours: median(taken),
        ..Row::default()
    });
    let mut taken = Vec::new();
    for _ in 0..setting.often(JOURNALLED) {
        let request = VdiUpdate {
            vdi,
            name: Some("new".to_owned()),
            description: None,
            vdi_type: None,
            read_only: None,
            keys: std::collections::BTreeMap::new(),
            incomplete: None,
        };
        let start = Instant::now();
        sr.vdi_update(&Op::new(), request).await?;
        taken.push(microseconds(start.elapsed()));
    }
    table.push(Row {
        name: name("the same through the engine, changing", placement, cores),
        unit: "us".to_owned(),
        ours: median(taken),
        note: "intent and answer are written to the journal".to_owned(),
        ..Row::default()
    });
    Ok(())
}

fn name(what: &str, placement: Placement, cores: Cores) -> String {
    format!("{what}, {}, {}", placed(placement), cores.name())
}

async fn sr(setting: &Setting, placement: Placement) -> Result<Sr> {
    let state = setting.folder(&format!("engine {}", placed(placement)))?;
    let manager = StorageManager::builder(utf8(&state)?)
        .driver(utf8(&setting.noop_driver())?)
        .driver_host(utf8(&setting.driver_host())?)
        .placement(placement)
        .open()
        .await?;
    let new = NewSr { driver: "noop".into(), name: "noop".into(), ..NewSr::default() };
    let record = manager.sr_create(&Op::new(), new).await?;
    Ok(manager.sr(&record.uuid.to_string())?)
}

/// Opens a driver without configuration.
pub(crate) async fn open(
    setting: &Setting,
    driver: &Path,
    placement: Placement,
    state: &Path,
) -> Result<Arc<dyn DriverPort>> {
    let options =
        LoaderOptions { driver_host: Some(setting.driver_host()), ..LoaderOptions::new(state) };
    let request = request();
    Ok(Loader::new(options).open(driver, placement, request, Arc::new(NoServices), BUDGET).await?)
}

pub(crate) fn request() -> OpenRequest {
    OpenRequest {
        sr: Some(Uuid::from_u128(1).into()),
        device_config: std::collections::BTreeMap::new(),
        host: HostId("bench".to_owned()),
        installation: String::new(),
    }
}

/// What a hop to another task and back takes here and now.
async fn hop(setting: &Setting) -> Result<f64> {
    let mut taken = Vec::new();
    for n in 0..setting.often(TIMES) {
        let start = Instant::now();
        tokio::spawn(async move { std::hint::black_box(n) }).await?;
        taken.push(microseconds(start.elapsed()));
    }
    Ok(median(taken))
}

/// What a process that does nothing takes.
fn process(setting: &Setting) -> Result<f64> {
    let mut taken = Vec::new();
    for _ in 0..setting.often(200) {
        let words: [&str; 0] = [];
        taken.push(cost::run(Path::new("/bin/true"), &words, &[])?.0.wall * 1e3);
    }
    Ok(median(taken))
}
