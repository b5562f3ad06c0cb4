//! What happens to a call: errors, panics, cancel, deadline, and a host that gives up.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use plugin_sdk::prelude::*;
use plugin_sdk::testing::{self, Opened, TestHost};
use serde_json::json;
use tokio::time::sleep;

/// A driver whose behaviour is chosen by the name in the request.
struct Odd {
    ended: AtomicU32,
    dropped: Arc<AtomicBool>,
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

device_config! {
    struct Config {
        password: Option<Secret>,
        behaviour: String = "good",
    }
}

impl Driver for Odd {
    type Config = Config;
    const MANIFEST: Manifest = manifest! {
        name: "odd",
        title: "",
        operations: [sr_probe, sr_create, sr_update, sr_scan, sr_stat, vdi_create, vdi_update,
            vdi_snapshot],
    };

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        assert_eq!(cx.sr(), None);
        let password = config.get::<Secret>("password")?.map(|p| p.reveal().to_owned());
        let complete = password.as_deref() == Some("rosebud");
        Ok(SrProbed { items: vec![ProbeItem { complete, ..ProbeItem::default() }] })
    }

    async fn open(config: Config, _: SrUuid, cx: &Cx) -> Result<Self> {
        assert_eq!(cx.operation(), "open");
        match config.behaviour.as_str() {
            "panic" => panic!("no array"),
            "auth" => return Err(Error::new(Kind::Auth, "wrong password")),
            _ => {}
        }
        if let Some(password) = config.password {
            assert_eq!(password.reveal(), "rosebud");
        }
        Ok(Self { ended: AtomicU32::new(0), dropped: Arc::default() })
    }

    async fn sr_create(&self, cx: &Cx, request: SrCreate) -> Result<SrCreated> {
        match request.name.as_str() {
            "panic" => panic!("array said {}", "no"),
            "kv" => {
                let before: Option<u32> = cx.kv().get("n").await?;
                cx.kv().put("n", &(before.unwrap_or(0) + 1)).await?;
                cx.kv().put("m", &7).await?;
                assert_eq!(cx.kv().list::<u32>("m").await?["m"], 7);
                cx.kv().remove("m").await?;
            }
            "echo" => {
                cx.progress(250, &cx.operation_id().to_string());
                cx.metric("seconds", 1.5, &[("array", "a")]);
                assert_eq!(cx.host().0, "test");
            }
            _ => {}
        }
        Ok(SrCreated { changed: Changed::Created, device_config: cx.device_config().clone() })
    }

    /// Mutating and slow.
    async fn sr_update(&self, cx: &Cx, request: SrUpdate) -> Result<SrDone> {
        let _dropped = SetOnDrop(Arc::clone(&self.dropped));
        match request.name.as_deref() {
            Some("obedient") => {
                cx.progress(0, "started");
                cx.cancelled().await;
                cx.check()?;
            }
            Some("shielded") => {
                cx.progress(0, "started");
                cx.cancelled().await;
                let cx = cx.shielded();
                cx.check()?;
                assert!(cx.remaining() > Duration::from_secs(20));
            }
            _ => sleep(Duration::from_millis(150)).await,
        }
        self.ended.fetch_add(1, Ordering::SeqCst);
        Ok(SrDone { changed: Changed::Modified })
    }

    /// Reading, and it never looks at the context.
    async fn sr_scan(&self, cx: &Cx, _: SrScan) -> Result<SrScanned> {
        let _dropped = SetOnDrop(Arc::clone(&self.dropped));
        cx.progress(0, "started");
        sleep(Duration::from_secs(3600)).await;
        Ok(SrScanned::default())
    }

    /// Tells what happened so far.
    async fn sr_stat(&self, _: &Cx, _: SrStat) -> Result<SrInfo> {
        let message = format!("{}", self.ended.load(Ordering::SeqCst));
        let dropped = self.dropped.load(Ordering::SeqCst);
        Err(Error::busy(message).context("dropped", dropped))
    }

    async fn vdi_create(&self, cx: &Cx, request: VdiCreate) -> Result<VdiDone> {
        let name = request.name.clone();
        cx.blocking(move |cx| match name.as_str() {
            "panic" => panic!("on a thread"),
            "until cancelled" => loop {
                cx.progress(1, "started");
                cx.check()?;
                std::thread::sleep(Duration::from_millis(2));
            },
            _ => Ok(VdiDone { changed: Changed::Created, vdi: new_vdi(request, ImageFormat::Raw) }),
        })
        .await
    }

    fn health(&self) -> SessionHealth {
        assert!(self.ended.load(Ordering::SeqCst) < 100, "sick");
        SessionHealth::Degraded
    }

    async fn close(&self, cx: &Cx) {
        cx.metric("closed", 1.0, &[]);
    }
}

async fn opened() -> Result<Opened<Odd>> {
    testing::open::<Odd>(SrUuid::random(), &[]).await
}

fn named(name: &str) -> SrCreate {
    SrCreate { name: name.to_owned(), ..SrCreate::default() }
}

fn update(name: &str) -> SrUpdate {
    SrUpdate { name: Some(name.to_owned()), description: None }
}

fn disk(name: &str) -> VdiCreate {
    serde_json::from_value(json!({ "uuid": VdiUuid::random(), "virtual_size": 1, "name": name }))
        .unwrap()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "still not: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What `sr_stat` of this driver says: calls that ended well, and whether one was dropped.
async fn tally(driver: &Opened<Odd>) -> (String, String) {
    let error = driver.call(SrStat {}).await.unwrap_err();
    (error.message.clone(), error.context["dropped"].clone())
}

#[test]
fn a_panic_is_an_error_that_says_where_and_the_driver_goes_on() -> Result<()> {
    testing::run(async {
        let driver = opened().await?;
        let error = driver.call(named("panic")).await.unwrap_err();
        assert_eq!(error.kind, Kind::Internal);
        assert_eq!(error.message, "driver panicked: array said no");
        assert!(error.context["location"].starts_with("plugin-sdk/tests/calls.rs:"), "{error:?}");
        assert_eq!(error.operation.as_deref(), Some("sr_create"));

        let error = driver.call(disk("panic")).await.unwrap_err();
        assert_eq!(error.message, "driver panicked: on a thread");
        assert!(error.context.contains_key("location"));

        assert_eq!(driver.call(named("")).await?.changed, Changed::Created);
        let logged = driver.host().logs();
        assert!(logged.iter().any(|log| log.message == "driver panicked: array said no"));
        Ok(())
    })
}

#[test]
fn open_fails_with_what_the_driver_says() {
    testing::run(async {
        for (behaviour, message) in
            [("panic", "driver panicked: no array"), ("auth", "wrong password")]
        {
            let config = [("behaviour", behaviour)];
            let error = testing::open::<Odd>(SrUuid::random(), &config).await.err().unwrap();
            assert_eq!(error.message, message);
            assert_eq!(error.operation.as_deref(), Some("open"));
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn what_the_driver_does_not_know_is_unsupported() -> Result<()> {
    testing::run(async {
        let driver = opened().await?;
        let error = driver.call(VdiTree {}).await.unwrap_err();
        assert_eq!((&error.kind, error.legacy_code()), (&Kind::Unsupported, 38));
        assert_eq!(error.message, "the driver odd does not support vdi_tree");
        // Listed in the manifest, and not written.
        let request = VdiSnapshot { snapshots: vec![], time: 0 };
        assert_eq!(driver.call(request).await.unwrap_err().kind, Kind::Unsupported);
        let error = driver.call_raw("vdi_teleport", "{}").await.unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported);
        assert_eq!(error.message, "the driver odd does not know the operation \"vdi_teleport\"");
        Ok(())
    })
}

#[test]
fn a_request_that_cannot_be_read_is_refused_by_the_name_of_its_field() -> Result<()> {
    testing::run(async {
        let driver = opened().await?;
        for (request, message, cause) in [
            (r#"{"virtual_size":1}"#, "", "missing field `uuid`"),
            (r#"{"uuid":"x","virtual_size":1}"#, ", field uuid", "UUID parsing failed"),
            (
                r#"{"uuid":"00000000-0000-0000-0000-000000000000","virtual_size":1,"keys":{"a":1}}"#,
                ", field keys.a",
                "expected a string",
            ),
            ("[", "", "EOF"),
        ] {
            let error = driver.call_raw("vdi_create", request).await.unwrap_err();
            assert_eq!(error.kind, Kind::Internal);
            assert_eq!(error.message, format!("the request of vdi_create cannot be read{message}"));
            assert!(error.causes[0].contains(cause), "{error:?}");
        }
        Ok(())
    })
}

#[test]
fn an_error_names_what_it_is_about() -> Result<()> {
    testing::run(async {
        let sr = SrUuid::random();
        let driver = testing::open::<Odd>(sr, &[]).await?;
        let request = disk("panic");
        let vdi = request.uuid.to_string();
        let error = driver.call(request).await.unwrap_err();
        assert_eq!(error.context["sr"], sr.to_string());
        assert_eq!(error.context["vdi"], vdi);
        assert_eq!(error.context["driver"], "odd");
        Ok(())
    })
}

#[test]
fn a_context_carries_what_the_host_sent_and_reports_back() -> Result<()> {
    testing::run(async {
        let driver = opened().await?;
        let id = OperationId::random();
        let call = driver.call(named("echo")).operation_id(id).start();
        let number = call.id();
        call.await?;
        let progress = driver.host().progress();
        assert_eq!((progress[0].call, progress[0].permille), (number, 250));
        assert_eq!(progress[0].stage, id.to_string());
        assert_eq!(driver.host().metrics(), [("seconds".to_owned(), 1.5)]);
        Ok(())
    })
}

#[test]
fn state_is_kept_by_the_host() -> Result<()> {
    testing::run(async {
        let driver = opened().await?;
        driver.call(named("kv")).await?;
        driver.call(named("kv")).await?;
        assert_eq!(driver.host().kv().into_iter().collect::<Vec<_>>(), [("n".into(), json!(2))]);
        Ok(())
    })
}

#[test]
fn secrets_are_resolved_before_the_driver_sees_them_and_stay_references_outside() -> Result<()> {
    testing::run(async {
        let host = TestHost::new().secret("secret://array/password", "rosebud");
        let config = [("password", "secret://array/password")];
        let driver = host.open::<Odd>(SrUuid::random(), &config).await?;
        let made = driver.call(named("")).await?;
        assert_eq!(made.device_config["password"], "secret://array/password");
        assert!(host.probe::<Odd>(&config).await?.items[0].complete);
        assert!(host.probe::<Odd>(&[("password", "rosebud")]).await?.items[0].complete);

        let error = testing::open::<Odd>(SrUuid::random(), &config).await.err().unwrap();
        assert_eq!(error.kind, Kind::NotFound);
        assert_eq!(error.context["key"], "password");
        Ok(())
    })
}

#[test]
fn a_mutating_call_ends_itself_when_it_is_cancelled() -> Result<()> {
    testing::run(async {
        let driver = opened().await?;
        let call = driver.call(update("obedient")).start();
        wait_until("started", || !driver.host().progress().is_empty());
        call.cancel();
        assert_eq!(call.await.unwrap_err().kind, Kind::Cancelled);
        assert_eq!(tally(&driver).await.0, "0");

        let call = driver.call(update("shielded")).start();
        wait_until("started", || driver.host().progress().len() == 2);
        call.cancel();
        call.await?;
        assert_eq!(tally(&driver).await.0, "1");
        Ok(())
    })
}

#[test]
fn a_reading_call_is_dropped_at_cancel_and_at_the_deadline() -> Result<()> {
    testing::run(async {
        let driver = opened().await?;
        let call = driver.call(SrScan::default()).start();
        wait_until("started", || !driver.host().progress().is_empty());
        call.cancel();
        assert_eq!(call.await.unwrap_err().kind, Kind::Cancelled);
        assert_eq!(tally(&driver).await.1, "true");

        let driver = opened().await?;
        let call = driver.call(SrScan::default()).budget(Duration::from_millis(50));
        assert_eq!(call.await.unwrap_err().kind, Kind::DeadlineExceeded);
        assert_eq!(tally(&driver).await.1, "true");
        Ok(())
    })
}

#[test]
fn a_call_without_time_is_refused_before_the_driver_sees_it() -> Result<()> {
    testing::run(async {
        let driver = opened().await?;
        let error = driver.call(update("slow")).budget(Duration::ZERO).await.unwrap_err();
        assert_eq!(error.kind, Kind::DeadlineExceeded);
        assert_eq!(tally(&driver).await, ("0".to_owned(), "false".to_owned()));
        Ok(())
    })
}

/// Law: the future of a mutating call may be dropped by the host, its work goes on.
#[test]
fn a_host_that_gives_up_aborts_reading_and_not_changing() -> Result<()> {
    testing::run(async {
        let driver = opened().await?;
        drop(driver.call(update("slow")).start());
        sleep_until_ended(&driver, "1").await;

        let driver = opened().await?;
        let call = driver.call(SrScan::default()).start();
        wait_until("started", || !driver.host().progress().is_empty());
        drop(call);
        while tally(&driver).await.1 != "true" {}
        Ok(())
    })
}

async fn sleep_until_ended(driver: &Opened<Odd>, count: &str) {
    let start = Instant::now();
    while tally(driver).await.0 != count {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn blocking_work_has_the_context_at_hand() -> Result<()> {
    testing::run(async {
        let driver = opened().await?;
        assert_eq!(driver.call(disk("")).await?.changed, Changed::Created);
        let call = driver.call(disk("until cancelled")).start();
        wait_until("started", || !driver.host().progress().is_empty());
        call.cancel();
        assert_eq!(call.await.unwrap_err().kind, Kind::Cancelled);
        let call = driver.call(disk("until cancelled")).budget(Duration::from_millis(30));
        assert_eq!(call.await.unwrap_err().kind, Kind::DeadlineExceeded);
        Ok(())
    })
}

/// Law: no code of the driver, its destructor included, runs on a thread of the host.
#[test]
fn the_driver_is_dropped_on_its_own_runtime() -> Result<()> {
    static DROPPED_ON: std::sync::Mutex<Option<String>> = std::sync::Mutex::new(None);

    struct Fragile;
    impl Drop for Fragile {
        fn drop(&mut self) {
            *DROPPED_ON.lock().unwrap() = std::thread::current().name().map(str::to_owned);
            tokio::runtime::Handle::current(); // Panics where there is no runtime.
            panic!("and now this");
        }
    }
    impl Driver for Fragile {
        type Config = ();
        const MANIFEST: Manifest = manifest! { name: "fragile", title: "", operations: [] };

        async fn open((): (), _: SrUuid, _: &Cx) -> Result<Self> {
            Ok(Self)
        }
    }
    drop(testing::run(testing::open::<Fragile>(SrUuid::random(), &[]))?);
    wait_until("dropped", || DROPPED_ON.lock().unwrap().is_some());
    assert_eq!(DROPPED_ON.lock().unwrap().as_deref(), Some("drv-fragile"));
    Ok(())
}

#[test]
fn blocking_work_that_finds_no_thread_ends_at_the_deadline() -> Result<()> {
    testing::run(TestHost::new().with_cx(Duration::from_secs(60), |cx| async move {
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(std::sync::Mutex::new(wait));
        let stuck = Arc::new(AtomicU32::new(0));
        let mut tasks = Vec::new();
        for _ in 0..16 {
            let (cx, wait, stuck) = (cx.clone(), Arc::clone(&wait), Arc::clone(&stuck));
            tasks.push(tokio::spawn(async move {
                let work = move |_: &Cx| {
                    stuck.fetch_add(1, Ordering::SeqCst);
                    assert!(wait.lock().unwrap().recv().is_err());
                    Ok(())
                };
                cx.blocking(work).await
            }));
        }
        while stuck.load(Ordering::SeqCst) < 16 {
            sleep(Duration::from_millis(1)).await;
        }
        let late = cx.within(Duration::from_millis(30)).blocking(|_| Ok(())).await.unwrap_err();
        assert_eq!(late.kind, Kind::DeadlineExceeded);
        assert_eq!(late.hint.as_deref(), Some("all threads for blocking work were busy"));
        drop(release);
        for task in tasks {
            task.await.unwrap()?;
        }
        cx.blocking(|_| Ok(())).await
    }))
}

#[test]
fn close_waits_for_what_runs_and_ends_the_session() -> Result<()> {
    testing::run(async {
        let driver = opened().await?;
        assert_eq!(driver.health(), SessionHealth::Degraded);
        let call = driver.call(update("slow")).start();
        driver.close().await;
        assert_eq!(driver.host().metrics(), [("closed".to_owned(), 1.0)]);
        assert_eq!(call.await?.changed, Changed::Modified);
        let error = driver.call(SrStat {}).await.unwrap_err();
        assert_eq!(error.message, "the session is closed");
        Ok(())
    })
}

/// Law: a driver's futures find a reactor whoever polls them; this thread has no runtime.
#[test]
fn timers_and_sockets_work_when_a_bare_thread_polls() -> Result<()> {
    assert!(tokio::runtime::Handle::try_current().is_err());
    testing::run(async {
        let driver = opened().await?;
        driver.call(update("slow")).await?; // Sleeps on tokio's timer.
        Ok(())
    })
}
