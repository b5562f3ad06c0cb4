//! `array-sim`: an array as a process.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use array_sim::equallogic::Group;
use array_sim::ontap::Ontap;
use array_sim::powerstore::PowerStore;
use array_sim::purestorage::PureStorage;
use array_sim::truenas::TrueNas;
use array_sim::{Plan, Simulator};

const USAGE: &str = "usage: array-sim VENDOR --state FOLDER [options]

  VENDOR             ontap, powerstore, purestorage, truenas, or equallogic (its command line is served by SSH)
  --state FOLDER     where its state is kept; made if it is not there
  --listen ADDRESS   management (default 127.0.0.1:0, any free port)
  --iscsi ADDRESS    LUNs (the same)
  --admin ADDRESS    the admin port (the same); it has no password
  --tls              management by TLS, with a certificate made in FOLDER
  --pool NAME=BYTES  a pool of a new array; may be repeated
  --page BYTES       the grain of its accounting (default 16384)
  --settings JSON    settings of a new array; docs/simulators.md lists them

Prints one line of JSON with its addresses, and runs until it is killed.";

type Failure = Box<dyn Error>;

struct Asked {
    vendor: String,
    state: PathBuf,
    plan: Plan,
}

fn parse(mut words: VecDeque<String>) -> Result<Asked, Failure> {
    let vendor = words.pop_front().ok_or("no vendor is named")?;
    let mut state = None;
    let mut plan = Plan::default();
    let mut pools = Vec::new();
    while let Some(option) = words.pop_front() {
        if option == "--tls" {
            plan.tls = true;
            continue;
        }
        let value = words.pop_front().ok_or_else(|| format!("{option} has no value"))?;
        match option.as_str() {
            "--state" => state = Some(PathBuf::from(value)),
            "--listen" => plan.listen = value.parse()?,
            "--iscsi" => plan.iscsi = value.parse()?,
            "--admin" => plan.admin = value.parse()?,
            "--page" => plan.options.page = value.parse()?,
            "--pool" => {
                let (name, bytes) = value.split_once('=').ok_or("--pool is NAME=BYTES")?;
                pools.push((name.to_owned(), bytes.parse()?));
            }
            "--settings" => plan.options.settings = serde_json::from_str(&value)?,
            other => return Err(format!("there is no option {other}").into()),
        }
    }
    if !pools.is_empty() {
        plan.options.pools = pools;
    }
    Ok(Asked { vendor, state: state.ok_or("--state is missing")?, plan })
}

async fn run(asked: Asked) -> Result<(), Failure> {
    match asked.vendor.as_str() {
        "truenas" => {
            let simulator = Simulator::start(Arc::new(TrueNas), &asked.state, &asked.plan).await?;
            serve(&simulator.describe()?).await
        }
        "powerstore" => {
            let web = Arc::new(PowerStore);
            let simulator = Simulator::start(web, &asked.state, &asked.plan).await?;
            serve(&simulator.describe()?).await
        }
        "purestorage" => {
            let web = Arc::new(PureStorage);
            let simulator = Simulator::start(web, &asked.state, &asked.plan).await?;
            serve(&simulator.describe()?).await
        }
        "ontap" => {
            let simulator = Simulator::start(Arc::new(Ontap), &asked.state, &asked.plan).await?;
            serve(&simulator.describe()?).await
        }
        "equallogic" => {
            let group = Group::start(&asked.state, &asked.plan).await?;
            serve(&group.describe()).await
        }
        other => Err(format!("there is no vendor {other}").into()),
    }
}

/// Says where everything is, and waits for the end.
async fn serve(description: &serde_json::Value) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{description}")?;
    out.flush()?;
    drop(out);
    tokio::signal::ctrl_c().await?;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let asked = parse(std::env::args().skip(1).collect());
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!("array-sim: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(asked).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("array-sim: {error}");
            ExitCode::FAILURE
        }
    }
}
