//! Loading a driver, and starting its process again.

use std::path::Path;
use std::time::{Duration, Instant};

use sm_core::Placement;
use sm_core::model::vdi::VdiStat;
use sm_core::model::{Operation, OperationId};
use sm_loader::port::{self, Call, DriverPort};
use uuid::Uuid;

use crate::calls::open;
use crate::cost::{self, median, milliseconds};
use crate::scan::children;
use crate::table::{Row, Table};
use crate::{Result, Setting, utf8};

const TIMES: usize = 21;

const BUDGET: Duration = Duration::from_secs(10);

pub(crate) async fn measure(setting: &Setting, table: &mut Table) -> Result<()> {
    table.push(Row {
        name: "load a driver: inspect, verify, stage (warm), dlopen, open; in process".to_owned(),
        unit: "ms".to_owned(),
        ours: in_process(setting)?,
        bar: Some(10.0),
        note: "each in a process of its own: a library is mapped once".to_owned(),
        ..Row::default()
    });
    let state = setting.folder("load")?;
    let mut taken = Vec::new();
    for _ in 0..setting.often(TIMES) {
        let start = Instant::now();
        let port = open(setting, &setting.noop_driver(), Placement::Child, &state).await?;
        ask(port.as_ref()).await?;
        taken.push(milliseconds(start.elapsed()));
        port.close(BUDGET).await;
    }
    table.push(Row {
        name: "load a driver into a child process, to its first answer".to_owned(),
        unit: "ms".to_owned(),
        ours: median(taken),
        bar: Some(20.0),
        ..Row::default()
    });
    table.push(Row {
        name: "driver process killed (SIGKILL), to the first answer of a new one".to_owned(),
        unit: "ms".to_owned(),
        ours: respawn(setting, &state).await?,
        bar: Some(20.0),
        ..Row::default()
    });
    Ok(())
}

/// A port for each, because the second death of one port's child is answered with patience.
async fn respawn(setting: &Setting, state: &Path) -> Result<f64> {
    let mut taken = Vec::new();
    for _ in 0..setting.often(TIMES) {
        let port = open(setting, &setting.noop_driver(), Placement::Child, state).await?;
        ask(port.as_ref()).await?;
        let all = children(&std::process::id().to_string());
        let [child] = all.as_slice() else {
            return Err(format!("there should be one child process, there are {all:?}").into());
        };
        let child = rustix::process::Pid::from_raw(child.parse()?).ok_or("no process 0")?;
        let start = Instant::now();
        rustix::process::kill_process(child, rustix::process::Signal::KILL)?;
        // Calls that meet the death fail, as they should; what counts is when one succeeds.
        while ask(port.as_ref()).await.is_err() {
            if start.elapsed() > BUDGET {
                return Err("the driver process did not come back".into());
            }
            tokio::task::yield_now().await;
        }
        taken.push(milliseconds(start.elapsed()));
        port.close(BUDGET).await;
    }
    Ok(median(taken))
}

async fn ask(port: &dyn DriverPort) -> Result<()> {
    let call = Call::new(Operation::VdiStat, OperationId::random(), BUDGET);
    port::call(port, call, &VdiStat::of(Uuid::from_u128(1).into())).await?;
    Ok(())
}

/// This program again, once for each load; it prints the time in microseconds.
fn in_process(setting: &Setting) -> Result<f64> {
    let state = setting.folder("load")?;
    let driver = setting.noop_driver();
    let words = ["--load-once", utf8(&driver)?.as_str(), "--state", utf8(&state)?.as_str()];
    let program = std::env::current_exe()?;
    // The first has to copy the file; that is cold, and done once for each version of a driver.
    cost::run(&program, &words, &[])?;
    let mut taken = Vec::new();
    for _ in 0..setting.often(TIMES) {
        let (_, text) = cost::run(&program, &words, &[])?;
        taken.push(text.trim().parse::<f64>()? / 1e3);
    }
    Ok(median(taken))
}

/// What the program started by [`in_process`] does.
pub(crate) fn once(driver: &Path, state: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let setting = Setting { product: state.into(), work: state.into(), quick: false, only: None };
    let time = runtime.block_on(async {
        let start = Instant::now();
        let port = open(&setting, driver, Placement::InProcess, state).await?;
        let time = start.elapsed();
        port.close(BUDGET).await;
        Ok::<_, Box<dyn std::error::Error>>(time)
    })?;
    println!("{}", time.as_micros());
    Ok(())
}
