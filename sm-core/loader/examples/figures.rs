//! What loading and calling a driver costs here.
//!
//! ```text
//! cargo build --release -p sm-driver-host
//! cargo run --release -p sm-loader --example figures -- DRIVER.so...
//! ```
//!
//! The driver needs no configuration and answers `sr_scan`. The first column of numbers is the
//! median, the second the best. Beside a call through the port stands the same call made by hand
//! through the binary interface in the same run; their difference is what the port costs.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sm_loader::{
    Call, DriverPort, Loader, LoaderOptions, NoServices, Placement, ProcessPort, RestartPolicy,
    inspect,
};
use sm_model::host::OpenRequest;
use sm_model::{DeviceConfig, HostId, Operation, OperationId, Result, SrUuid};

const BUDGET: Duration = Duration::from_secs(60);

fn request() -> OpenRequest {
    OpenRequest {
        sr: Some(SrUuid::random()),
        device_config: DeviceConfig::new(),
        host: HostId("host".into()),
        installation: String::new(),
    }
}

/// Median and best of `times` runs, in microseconds.
fn measure(times: usize, mut run: impl FnMut()) -> (f64, f64) {
    let timed = (0..times).map(|_| {
        let begun = Instant::now();
        run();
        begun.elapsed()
    });
    median(timed.collect())
}

fn median(mut all: Vec<Duration>) -> (f64, f64) {
    all.sort();
    let microseconds = |place: usize| all.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e6);
    (microseconds(all.len() / 2), microseconds(0))
}

fn say(what: &str, (median, best): (f64, f64)) {
    println!("  {what:<52} {median:>10.2} {best:>10.2} us");
}

fn main() -> Result<()> {
    let drivers: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    for driver in drivers {
        figures(&driver)?;
    }
    Ok(())
}

fn figures(driver: &Path) -> Result<()> {
    let state = std::env::temp_dir().join(format!("sm-loader-figures-{}", std::process::id()));
    let mut options = LoaderOptions::new(&state);
    options.child.restart =
        RestartPolicy { deaths: 0, backoff_min: Duration::ZERO, ..RestartPolicy::default() };
    let loader = Loader::new(options);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    println!("{}", driver.display());

    say("inspect", measure(200, || drop(black_box(inspect(driver)))));
    let index = state.join("drivers");
    say(
        "stage, file not seen before",
        measure(10, || {
            let _ = std::fs::remove_dir_all(&index);
            drop(black_box(loader.stage(driver)));
        }),
    );
    say("stage, file known", measure(200, || drop(black_box(loader.stage(driver)))));
    say("load: stage, dlopen, layout", measure(1, || drop(black_box(loader.load(driver)))));
    say("load again", measure(100, || drop(black_box(loader.load(driver)))));

    let open = |placement| loader.open(driver, placement, request(), Arc::new(NoServices), BUDGET);
    let call = || Call::new(Operation::SrScan, OperationId::random(), BUDGET);
    for placement in [Placement::InProcess, Placement::Child] {
        say(
            &format!("open and close, {placement:?}"),
            measure(20, || {
                runtime.block_on(async {
                    if let Ok(port) = open(placement).await {
                        port.close(BUDGET).await;
                    }
                });
            }),
        );
        let port = runtime.block_on(open(placement))?;
        for operation in [Operation::SrScan, Operation::VdiStat] {
            say(
                &format!("call {operation}, {placement:?}"),
                runtime.block_on(async {
                    let mut all = Vec::new();
                    for _ in 0..5000 {
                        let begun = Instant::now();
                        let call = Call { operation, ..call() };
                        drop(black_box(port.call(call, b"{}".to_vec()).await));
                        all.push(begun.elapsed());
                    }
                    median(all)
                }),
            );
        }
        let many = |count: u32| {
            let begun = Instant::now();
            runtime.block_on(async {
                let mut calls = tokio::task::JoinSet::new();
                for _ in 0..count {
                    let (port, call) = (Arc::clone(&port), call());
                    calls.spawn(async move { port.call(call, b"{}".to_vec()).await });
                }
                calls.join_all().await;
            });
            begun.elapsed().as_secs_f64() * 1e6 / f64::from(count)
        };
        say(&format!("each of 1000 calls in flight, {placement:?}"), (many(1000), many(1000)));
    }

    let module = loader.load(driver)?;
    let by_hand = runtime.block_on(by_hand(module))?;
    say("call sr_scan by hand, no port", by_hand);
    respawn(driver, &loader, &runtime)?;
    let _ = std::fs::remove_dir_all(&state);
    Ok(())
}

/// The same call through the binary interface alone.
async fn by_hand(module: sm_loader::DriverModule_Ref) -> Result<(f64, f64)> {
    use sm_abi::Host_TO;
    use sm_abi::abi_stable::sabi_trait::TD_Opaque;
    let json = serde_json::to_vec(&request())
        .map_err(|error| sm_model::Error::internal("json").source(&error))?;
    let host = Host_TO::from_value(Deaf, TD_Opaque);
    let driver = module.open()(json.into(), host).await.into_result();
    let driver = driver.map_err(|json| sm_loader::ffi::from_json(&json, "driver"))?;
    let mut all = Vec::new();
    for n in 0..5000 {
        let begun = Instant::now();
        let context = sm_loader::ffi::context(n, OperationId::random(), 60_000);
        let request = b"{}".to_vec();
        drop(black_box(driver.call(context, "sr_scan".into(), request.into()).await));
        all.push(begun.elapsed());
    }
    Ok(median(all))
}

struct Deaf;

impl sm_abi::Host for Deaf {
    fn log(
        &self,
        _: u8,
        _: u64,
        _: sm_abi::abi_stable::std_types::RStr<'_>,
        _: sm_abi::abi_stable::std_types::RStr<'_>,
        _: sm_abi::abi_stable::std_types::RStr<'_>,
    ) {
    }
    fn progress(&self, _: u64, _: u32, _: sm_abi::abi_stable::std_types::RStr<'_>) {}
    fn is_cancelled(&self, _: u64) -> bool {
        false
    }
    fn metric(
        &self,
        _: sm_abi::abi_stable::std_types::RStr<'_>,
        _: f64,
        _: sm_abi::abi_stable::std_types::RStr<'_>,
    ) {
    }
    fn request(
        &self,
        _: u64,
        _: sm_abi::abi_stable::std_types::RString,
        _: sm_abi::Bytes,
    ) -> sm_abi::async_ffi::FfiFuture<sm_abi::Reply> {
        use sm_abi::async_ffi::FutureExt;
        async { sm_abi::Reply::RErr(sm_abi::Bytes::new()) }.into_ffi()
    }
}

/// From the death of a child to the first answer of its successor.
fn respawn(driver: &Path, loader: &Loader, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let port: ProcessPort =
        runtime.block_on(loader.open_child(driver, request(), Arc::new(NoServices), BUDGET))?;
    let figures = measure(20, || {
        if let Some(child) = port.process_id().and_then(|number| i32::try_from(number).ok())
            && let Some(child) = rustix::process::Pid::from_raw(child)
        {
            let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
        }
        // Calls that meet the dying child fail; the first answer counts.
        runtime.block_on(async {
            loop {
                let call = Call::new(Operation::SrScan, OperationId::random(), BUDGET);
                if port.call(call, b"{}".to_vec()).await.is_ok() {
                    return;
                }
            }
        });
    });
    say("kill -9 of the child to the next answer", figures);
    Ok(())
}
