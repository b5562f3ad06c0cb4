//! A driver in a child process: whatever it does costs the calls in flight, and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod loader_support;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use loader_support::{
    AMPLE, Bench, bench, bench_with, call, eventually, fixture, is_alive, is_there, mutate,
    open_request, read, tell, wait,
};
use sm_loader::{
    CancelFlag, DriverPort, HostServices, NoServices, Placement, PortHealth, RestartPolicy,
};
use sm_model::error::{Kind, Retry};
use sm_model::{Error, Operation, Result};
use tracing_subscriber::layer::{Context, SubscriberExt};

fn port(bench: &Bench) -> Arc<dyn DriverPort> {
    bench.open(fixture("panicky"), Placement::Child).unwrap()
}

fn pid(port: &dyn DriverPort) -> u32 {
    read(port, "pid").unwrap().parse().unwrap()
}

/// The command costs its own call, with this in the message; the next call works.
fn costs_one_call(bench: &Bench, command: &str, signal: Option<&str>, words: &str) {
    let port = port(bench);
    let first = pid(port.as_ref());
    let error = mutate(port.as_ref(), command).unwrap_err();
    assert_eq!(error.kind, Kind::Unknown, "{error}");
    assert_eq!(error.operation.as_deref(), Some("vdi_create"));
    assert_eq!(error.context.get("signal").map(String::as_str), signal, "{error}");
    assert_eq!(
        error.message,
        format!("the process of the driver fixture-panicky died of {words} during vdi_create")
    );
    assert_ne!(pid(port.as_ref()), first, "the next call works, in another process");
    assert!(!is_there(first), "the first one is reaped");

    // The second death in a row waits a little; a reading call may be repeated.
    let error = read(port.as_ref(), command).unwrap_err();
    assert_eq!((&error.kind, error.retry), (&Kind::Unreachable, Retry::Temporary), "{error}");
    wait(port.close(AMPLE));
}

#[test]
fn a_segmentation_fault_costs_one_call() {
    costs_one_call(&bench(), "segv", Some("11"), "SIGSEGV (signal 11)");
}

#[test]
fn an_abort_costs_one_call() {
    costs_one_call(&bench(), "abort", Some("6"), "SIGABRT (signal 6)");
}

#[test]
fn an_exit_costs_one_call() {
    costs_one_call(&bench(), "exit", None, "exit status 3");
}

#[test]
fn a_stack_overflow_costs_one_call() {
    let bench = bench();
    costs_one_call(&bench, "overflow", Some("6"), "SIGABRT (signal 6)");
    let error = mutate(port(&bench).as_ref(), "overflow").unwrap_err();
    assert!(error.context["stderr"].contains("stack"), "{:?}", error.context);
}

#[test]
fn a_leak_ends_at_the_memory_limit_and_costs_one_call() {
    let bench = bench_with(|options| options.child.memory_limit = Some(512 << 20));
    costs_one_call(&bench, "leak", Some("6"), "SIGABRT (signal 6)");
    let error = mutate(port(&bench).as_ref(), "leak").unwrap_err();
    assert!(error.context["stderr"].contains("memory allocation of"), "{:?}", error.context);
}

#[test]
fn an_unguarded_panic_is_an_error_and_the_child_lives() {
    let port = port(&bench());
    let first = pid(port.as_ref());
    let error = mutate(port.as_ref(), "panic").unwrap_err();
    assert_eq!(error.kind, Kind::Internal);
    assert_eq!(error.message, "the driver fixture-panicky panicked");
    assert_eq!(pid(port.as_ref()), first);
}

#[test]
fn a_hang_past_deadline_and_grace_costs_the_child() {
    // One hangs in its future, one on the thread that everything in the child runs on.
    for command in ["hang", "block"] {
        let port = port(&bench());
        let first = pid(port.as_ref());
        let mut late = call(Operation::VdiCreate);
        late.deadline = Instant::now() + Duration::from_millis(50);
        let error = tell(port.as_ref(), late, command).unwrap_err();
        assert_eq!(error.kind, Kind::Unknown);
        assert_eq!(
            error.message,
            "the driver fixture-panicky did not answer vdi_create within 200 ms after its deadline"
        );
        assert!(!is_there(first), "it was killed and reaped before the answer");
        let mut late = call(Operation::SrScan);
        late.deadline = Instant::now() + Duration::from_millis(50);
        let error = tell(port.as_ref(), late, command).unwrap_err();
        assert_eq!(error.kind, Kind::DeadlineExceeded, "{error:?}");
    }
}

#[test]
fn a_hang_costs_the_calls_beside_it_too() {
    let port = port(&bench());
    let beside = {
        let port = Arc::clone(&port);
        std::thread::spawn(move || read(port.as_ref(), "hang"))
    };
    let mut late = call(Operation::VdiCreate);
    late.deadline = Instant::now() + Duration::from_millis(50);
    tell(port.as_ref(), late, "hang").unwrap_err();
    let error = beside.join().unwrap().unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable);
    assert_eq!(
        error.message,
        "the process of the driver fixture-panicky died of not answering vdi_create during sr_scan"
    );
}

#[test]
fn a_cancelled_call_answers_within_the_grace() {
    for placement in [Placement::Child, Placement::InProcess] {
        let bench = bench_with(|options| options.grace = AMPLE);
        let port = bench.open(fixture("panicky"), placement).unwrap();
        let mut cancelled = call(Operation::VdiCreate);
        let flag = CancelFlag::default();
        cancelled.cancel = flag.clone();
        let answer = {
            let port = Arc::clone(&port);
            std::thread::spawn(move || tell(port.as_ref(), cancelled, "until-cancel"))
        };
        std::thread::sleep(Duration::from_millis(20));
        assert!(!answer.is_finished());
        flag.cancel();
        assert_eq!(answer.join().unwrap().unwrap(), "cancelled, and the host says true");
    }
}

#[test]
fn in_process_a_hang_poisons_the_port_until_it_answers() {
    let bench = bench();
    let port = bench.open(fixture("panicky"), Placement::InProcess).unwrap();
    let file = bench.state.path().join("go");
    let command = format!("until-file {}", file.display());
    for (operation, kind) in
        [(Operation::VdiCreate, Kind::Unknown), (Operation::SrScan, Kind::Cancelled)]
    {
        assert_eq!(port.health(), PortHealth::Ok);
        let cancelled = call(operation);
        cancelled.cancel.cancel();
        let error = tell(port.as_ref(), cancelled, &command).unwrap_err();
        assert_eq!(error.kind, kind);
        assert_eq!(port.health(), PortHealth::Poisoned);
        std::fs::write(&file, "").unwrap();
        eventually("the late answer", || port.health() == PortHealth::Ok);
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn a_mutation_whose_caller_goes_away_is_driven_to_its_end() {
    for placement in [Placement::InProcess, Placement::Child] {
        let bench = bench();
        let port = bench.open(fixture("panicky"), placement).unwrap();
        let file = bench.state.path().join("go");
        let told = Arc::new(Mutex::new(None));
        let mut abandoned = call(Operation::VdiCreate);
        let sink = Arc::clone(&told);
        abandoned.progress = Some(Arc::new(move |permille, stage: &str| {
            *sink.lock().unwrap() = Some((permille, stage.to_owned()));
        }));
        {
            let command = format!("until-file {}", file.display());
            let mut future = Box::pin(port.call(abandoned, command.into_bytes()));
            let polled = wait(std::future::poll_fn(|context| {
                std::task::Poll::Ready(future.as_mut().poll(context))
            }));
            assert!(polled.is_pending());
        }
        // Closing waits for what still runs.
        let closing = {
            let port = Arc::clone(&port);
            std::thread::spawn(move || wait(port.close(AMPLE)))
        };
        if placement == Placement::InProcess {
            std::thread::sleep(Duration::from_millis(50));
            assert!(!closing.is_finished(), "the abandoned call is not forgotten");
        }
        std::fs::write(&file, "").unwrap();
        closing.join().unwrap();
        assert!(read(port.as_ref(), "echo").is_err(), "a closed session takes no calls");
    }
}

#[test]
fn a_slow_call_does_not_block_a_fast_one() {
    for placement in [Placement::Child, Placement::InProcess] {
        let bench = bench();
        let port = bench.open(fixture("panicky"), placement).unwrap();
        let file = bench.state.path().join("go");
        let (done, order) = mpsc::channel();
        let slow = {
            let (port, done) = (Arc::clone(&port), done.clone());
            let command = format!("until-file {}", file.display());
            std::thread::spawn(move || {
                let answer = mutate(port.as_ref(), &command).unwrap();
                done.send(answer).unwrap();
            })
        };
        for _ in 0..3 {
            done.send(read(port.as_ref(), "echo fast").unwrap()).unwrap();
        }
        std::fs::write(&file, "").unwrap(); // Only now may the slow one end.
        slow.join().unwrap();
        drop(done);
        assert_eq!(
            order.into_iter().collect::<Vec<_>>(),
            ["fast", "fast", "fast", "the file is there"]
        );
    }
}

#[test]
fn a_thousand_calls_at_a_time_get_their_own_answers() {
    let port = port(&bench());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..1000_u32 {
            let port = Arc::clone(&port);
            calls.spawn(async move {
                // Some are longer than a socket's buffer.
                let text = format!("{n} {}", "x".repeat((n as usize % 7) * 40_000));
                let request = format!("echo {text}").into_bytes();
                let reply = port.call(call(Operation::VdiCreate), request).await.unwrap();
                assert!(reply == text.as_bytes(), "call {n}");
            });
        }
        calls.join_all().await;
    });
}

#[test]
fn an_answer_longer_than_a_frame_is_an_error_of_that_call() {
    let port = port(&bench());
    let first = pid(port.as_ref());
    assert_eq!(read(port.as_ref(), &format!("long {}", 60 << 20)).unwrap().len(), 60 << 20);
    let error = read(port.as_ref(), &format!("long {}", 64 << 20)).unwrap_err();
    assert_eq!(error.kind, Kind::Limit);
    let long = format!("echo {}", "x".repeat(64 << 20));
    assert_eq!(read(port.as_ref(), &long).unwrap_err().kind, Kind::Limit);
    assert_eq!(pid(port.as_ref()), first);
}

#[test]
fn after_too_many_deaths_the_circuit_is_open_for_a_while() {
    let policy = RestartPolicy {
        backoff_min: Duration::from_millis(1),
        backoff_max: AMPLE,
        deaths: 3,
        window: Duration::from_secs(600),
    };
    let bench = bench_with(|options| options.child.restart = policy);
    let port = port(&bench);
    for _ in 0..3 {
        assert_eq!(mutate(port.as_ref(), "segv").unwrap_err().kind, Kind::Unknown);
    }
    assert_eq!(port.health(), PortHealth::Tripped);
    let error = mutate(port.as_ref(), "echo").unwrap_err();
    let Kind::Busy { retry_after_ms: Some(wait_ms) } = error.kind else { panic!("{error}") };
    assert!(wait_ms > 500_000 && wait_ms <= 600_000);
    assert!(
        error.message.starts_with(
            "the process of the driver fixture-panicky has died 3 times within 600 s, the last \
             time of SIGSEGV (signal 11); it is not started again for "
        ),
        "{error}"
    );
}

#[test]
fn a_closed_circuit_opens_again_when_the_deaths_are_old() {
    let policy = RestartPolicy {
        backoff_min: Duration::from_millis(1),
        backoff_max: AMPLE,
        deaths: 1,
        window: Duration::from_millis(300),
    };
    let bench = bench_with(|options| options.child.restart = policy);
    let port = port(&bench);
    mutate(port.as_ref(), "segv").unwrap_err();
    assert!(matches!(mutate(port.as_ref(), "echo").unwrap_err().kind, Kind::Busy { .. }));
    eventually("the next start", || mutate(port.as_ref(), "echo back").is_ok());
}

#[test]
fn a_backoff_longer_than_the_deadline_is_not_waited_for() {
    let policy = RestartPolicy { backoff_min: AMPLE, ..RestartPolicy::default() };
    let bench = bench_with(|options| options.child.restart = policy);
    let port = port(&bench);
    mutate(port.as_ref(), "segv").unwrap_err();
    mutate(port.as_ref(), "segv").unwrap_err();
    let mut short = call(Operation::VdiCreate);
    short.deadline = Instant::now() + AMPLE / 2;
    let begun = Instant::now();
    let error = tell(port.as_ref(), short, "echo").unwrap_err();
    assert!(matches!(error.kind, Kind::Busy { retry_after_ms: Some(_) }), "{error}");
    assert!(begun.elapsed() < AMPLE / 2);
}

#[test]
fn closing_or_dropping_a_port_leaves_no_process() {
    let bench = bench();
    for close in [true, false] {
        let port = port(&bench);
        let child = pid(port.as_ref());
        let command: u32 = mutate(port.as_ref(), "fork").unwrap().parse().unwrap();
        assert!(is_alive(child) && is_alive(command));
        if close {
            wait(port.close(AMPLE));
            assert!(!is_there(child), "close returns when the child is reaped");
        }
        drop(port);
        eventually("the child is reaped", || !is_there(child));
        eventually("so is what it started", || !is_alive(command));
    }
}

#[test]
fn a_child_that_hangs_is_closed_in_time() {
    let port = port(&bench());
    let child = pid(port.as_ref());
    let hanging = {
        let port = Arc::clone(&port);
        std::thread::spawn(move || mutate(port.as_ref(), "block"))
    };
    eventually("the hang", || read_is_stuck(port.as_ref()));
    wait(port.close(Duration::from_millis(100)));
    assert!(!is_there(child));
    assert_eq!(hanging.join().unwrap().unwrap_err().kind, Kind::Unknown);
}

/// A call that has not answered after a while; it is given up.
fn read_is_stuck(port: &dyn DriverPort) -> bool {
    let mut future = Box::pin(port.call(call(Operation::SrScan), b"echo".to_vec()));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(100) {
        let waker = std::task::Waker::noop();
        if future.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_ready() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// The other half of the next test: a host that is killed. It prints its child's number.
#[test]
#[ignore = "run by kill_9_of_the_host_leaves_no_child"]
fn host_that_is_killed() {
    let Some(command) = std::env::var_os("LOADER_TEST_COMMAND") else { return };
    let bench = bench();
    let port = port(&bench);
    println!("child {}", pid(port.as_ref()));
    let _ = mutate(port.as_ref(), command.to_str().unwrap());
}

#[test]
fn kill_9_of_the_host_leaves_no_child() {
    use std::io::{BufRead, BufReader};
    for command in ["hang", "block"] {
        let mut host = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "host_that_is_killed", "--ignored", "--nocapture"])
            .env("LOADER_TEST_COMMAND", command)
            .env("SM_DRIVER_HOST", loader_support::driver_host())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(host.stdout.take().unwrap()).lines();
        let child: u32 = lines
            .map(Result::unwrap_or_default)
            .find_map(|line| line.split_once("child ").map(|(_, pid)| pid.parse().unwrap()))
            .unwrap();
        assert!(is_alive(child));
        host.kill().unwrap();
        host.wait().unwrap();
        eventually("the child is gone", || !is_alive(child));
    }
}

#[test]
fn a_child_outlives_the_thread_and_the_runtime_it_was_opened_on() {
    let bench = bench();
    let port = std::thread::scope(|scope| {
        let opened = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
            runtime.block_on(async {
                let services = Arc::new(NoServices);
                let path = fixture("panicky");
                bench.loader.open(path, Placement::Child, open_request(), services, AMPLE).await
            })
        });
        opened.join().unwrap().unwrap()
    });
    let first = pid(port.as_ref());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(pid(port.as_ref()), first);
}

#[test]
fn a_child_has_few_rights() {
    let bench = bench();
    let port = port(&bench);
    if rustix::process::geteuid().is_root() {
        assert_eq!(read(port.as_ref(), "user").unwrap(), "65534");
    }
    assert_eq!(read(port.as_ref(), "confined").unwrap(), "1 500");
    let root = bench_with(|options| options.child.run_as = None);
    let port = self::port(&root);
    let ours = rustix::process::geteuid().as_raw().to_string();
    assert_eq!(read(port.as_ref(), "user").unwrap(), ours);
}

#[test]
fn only_the_first_child_gets_the_first_environment() {
    // `SM_STEP_KILL` and the like: a successor that died at the same step would repair nothing.
    let bench = bench_with(|options| {
        options.child.first_environment = vec![("RUST_BACKTRACE".into(), "first".into())];
    });
    let port = port(&bench);
    let environment = |port: &dyn DriverPort| {
        std::fs::read_to_string(format!("/proc/{}/environ", pid(port))).unwrap()
    };
    assert!(environment(port.as_ref()).contains("RUST_BACKTRACE=first"));
    mutate(port.as_ref(), "segv").unwrap_err();
    assert!(!environment(port.as_ref()).contains("RUST_BACKTRACE=first"));
}

#[test]
fn the_program_that_is_not_there_is_told_with_where_it_was_looked_for() {
    let bench = bench_with(|options| options.driver_host = Some(PathBuf::from("/nowhere/host")));
    let error = bench.refusal(fixture("panicky"), Placement::Child);
    assert_eq!(error.message, "the program sm-driver-host was not found; looked at /nowhere/host");
    assert!(error.hint.as_deref().unwrap().contains("SM_DRIVER_HOST"));
}

struct Services(mpsc::Sender<String>);

#[async_trait]
impl HostServices for Services {
    fn names(&self) -> &[&str] {
        &["kv"]
    }

    async fn request(&self, service: &str, request: Vec<u8>) -> Result<Vec<u8>> {
        tokio::time::sleep(Duration::from_millis(1)).await; // A service may use its runtime.
        match service {
            "kv.get" => Ok([b"value of ".to_vec(), request].concat()),
            _ => Err(Error::not_found("no such key").hint("put it first")),
        }
    }

    fn metric(&self, name: &str, value: f64, labels: &str) {
        let _ = self.0.send(format!("{name} {value} {labels}"));
    }
}

#[test]
fn services_metrics_progress_and_logs_reach_the_host_the_same_way() {
    for placement in [Placement::InProcess, Placement::Child] {
        install_log();
        let (metrics, measured) = mpsc::channel();
        let bench = bench();
        let port = wait(bench.loader.open(
            fixture("panicky"),
            placement,
            open_request(),
            Arc::new(Services(metrics)),
            AMPLE,
        ))
        .unwrap();
        assert_eq!(mutate(port.as_ref(), "service kv.get key").unwrap(), "value of key");
        let error = mutate(port.as_ref(), "service kv.put key").unwrap_err();
        assert_eq!((&error.kind, error.hint.as_deref()), (&Kind::NotFound, Some("put it first")));
        let error = mutate(port.as_ref(), "service secret.get key").unwrap_err();
        assert_eq!(error.message, "this host has no service secret.get");
        assert_eq!(error.kind, Kind::Unsupported);

        let progress = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&progress);
        let mut logging = call(Operation::VdiCreate);
        logging.progress = Some(Arc::new(move |permille, stage: &str| {
            sink.lock().unwrap().push(format!("{permille} {stage}"));
        }));
        let words = format!("words in {placement:?}");
        let span = tracing::info_span!("the span of the call");
        span.in_scope(|| tell(port.as_ref(), logging, &format!("log {words}")).unwrap());
        assert_eq!(*progress.lock().unwrap(), ["500 half"]);
        assert_eq!(measured.try_recv().unwrap(), r#"fixture.metric 1.5 {"unit":"none"}"#);
        let logged = logged(&words);
        let levels: Vec<&str> = logged.iter().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(levels, ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"]);
        for line in logged {
            assert!(line.contains("target=driver"), "{line}");
            assert!(line.contains("span=the span of the call"), "{line}");
            assert!(line.contains("driver=\"fixture-panicky\""), "{line}");
            assert!(line.contains("op=\"vdi_create\""), "{line}");
            assert!(line.contains("target=\"fixture::module\""), "{line}");
            assert!(line.contains(r#"fields="{\"key\":\"value\"}""#), "{line}");
        }
    }
}

#[test]
fn what_a_driver_prints_is_logged_line_by_line() {
    install_log();
    let port = port(&bench());
    mutate(port.as_ref(), "print a line of output").unwrap();
    eventually("both streams", || logged("a line of output").len() == 2);
    for line in logged("a line of output") {
        assert!(line.starts_with("WARN target=driver"), "{line}");
    }
}

static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn logged(words: &str) -> Vec<String> {
    LOG.lock().unwrap().iter().filter(|line| line.contains(words)).cloned().collect()
}

/// Collects the events of this process.
fn install_log() {
    struct Collect;
    impl<S> tracing_subscriber::Layer<S> for Collect
    where
        S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    {
        fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
            struct Fields(String);
            impl tracing::field::Visit for Fields {
                fn record_debug(
                    &mut self,
                    field: &tracing::field::Field,
                    value: &dyn std::fmt::Debug,
                ) {
                    use std::fmt::Write;
                    write!(self.0, " {field}={value:?}").unwrap();
                }
            }
            let mut fields = Fields(String::new());
            event.record(&mut fields);
            let span = context.event_span(event).map_or("", |span| span.name());
            let (level, target) = (event.metadata().level(), event.metadata().target());
            let line = format!("{level} target={target} span={span}{}", fields.0);
            LOG.lock().unwrap().push(line);
        }
    }
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let subscriber = tracing_subscriber::registry().with(Collect);
        tracing::subscriber::set_global_default(subscriber).unwrap();
    });
}
