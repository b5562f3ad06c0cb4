//! Seven sessions, whoever wants them.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use array_matrix::wishes::SR;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::TestHost;

use crate::support::{Driver, Fixture, MIB, counts, create, run};

/// What the processes have in common.
const ARRAY: &str = "TEST_EQUALLOGIC_ARRAY";

/// Makes volumes, ten at once, and removes them.
async fn work(driver: &plugin_sdk::testing::Opened<Driver>) -> Result<()> {
    let running: Vec<_> = (0..10).map(|n| driver.call(create(n, MIB)).start()).collect();
    for one in running {
        one.await?;
    }
    Ok(())
}

/// One of the other processes of the test below.
#[test]
fn another_process() {
    let Ok(config) = std::env::var(ARRAY) else { return };
    let config: Vec<(String, String)> = serde_json::from_str(&config).unwrap();
    let pairs: Vec<(&str, &str)> = config.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    run(async {
        let driver = TestHost::new().open::<Driver>(SrUuid::random(), &pairs).await?;
        work(&driver).await
    })
    .unwrap();
}

/// The array itself would take any number here, so what is counted is what the hosts' processes keep to.
#[test]
fn all_processes_together_have_seven_sessions() {
    run(async {
        let fixture = Fixture::new();
        fixture
            .group
            .array
            .set(|settings| {
                settings.sessions = None;
                settings.latency = 20;
            })
            .unwrap();
        let config = serde_json::to_string(&fixture.config()).unwrap();
        let others: Vec<_> = (0..3)
            .map(|_| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "sessions::another_process"])
                    .env(ARRAY, &config)
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        let driver = fixture.open(&TestHost::new()).await?;
        work(&driver).await?;
        for mut other in others {
            assert!(other.wait().unwrap().success(), "another process failed");
        }
        let peak = fixture.simulated.array.sessions().peak();
        let made = counts(&fixture.simulated)["volume.create"];
        println!("{made} volumes by four processes, {peak} sessions at most");
        assert!((5..=7).contains(&peak), "{peak} sessions");
        assert_eq!(made, 40);
        Ok(())
    })
    .unwrap();
}

/// The group refuses more sessions than it allows, because other hosts have them: that passes.
#[test]
fn sessions_of_others_are_waited_for() {
    run(async {
        let fixture = Fixture::new();
        let others: Vec<_> =
            (0..7).map(|_| fixture.simulated.array.sessions().open("somebody").unwrap()).collect();
        let config = fixture.config();
        let pairs: Vec<(&str, &str)> = config.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let array = fixture.simulated.array.clone();
        let leaves = std::thread::spawn(move || {
            // Until somebody has been refused: then it is waited for.
            let end = Instant::now() + Duration::from_secs(20);
            while !array.requests().counts().contains_key("session.refused") {
                assert!(Instant::now() < end, "nobody was refused");
                std::thread::yield_now();
            }
            for token in others {
                array.sessions().close(&token);
            }
        });
        let opened = TestHost::new().open::<Driver>(SR, &pairs).await;
        leaves.join().unwrap();
        opened?.call(SrCreate::default()).await?;
        Ok(())
    })
    .unwrap();
}

/// A group that is busy while a session begins is asked again, and never said to be too old.
#[test]
fn a_group_that_is_busy_while_a_session_begins_is_waited_for() {
    use array_sim::core::{Effect, Fault};
    run(async {
        let fixture = Fixture::new();
        let faults = fixture.simulated.array.faults();
        let busy = |times: u64| {
            let effect = Effect::Refuse { status: 503, retry_after: None, body: None };
            faults.add(Fault { call: "settings".to_owned(), after: 0, times, effect });
        };
        busy(2);
        let driver = fixture.open(&TestHost::new()).await?;
        assert!(faults.left().is_empty(), "it was busy");
        driver.close().await;
        busy(0);
        let error = fixture.open(&TestHost::new()).await.map(drop).unwrap_err();
        assert!(matches!(error.kind, Kind::Busy { .. }), "{error}");
        let words = error.backend.as_deref().unwrap_or_default();
        assert!(words.contains("The group is busy: try again later."), "{error:?}");
        faults.clear();
        Ok(())
    })
    .unwrap();
}

/// An idle session ends on the array; nobody notices.
#[test]
fn an_idle_session_is_replaced() {
    run(async {
        let mut sr = Fixture::new().sr().await?;
        sr.until_done(SrCreate::default()).await?;
        for n in 0..3 {
            sr.simulated.array.clock().advance(3_600_000);
            sr.until_done(create(n, MIB)).await?;
        }
        sr.holds(&[0, 1, 2], "after three hours").await?;
        assert_eq!(sr.repeated, 0);
        Ok(())
    })
    .unwrap();
}

/// Sixteen wishes at once, over seven sessions: the figures are printed, for who wants to compare.
#[test]
fn many_at_once_use_all_sessions() {
    run(async {
        let fixture = Fixture::new();
        fixture.simulated.array.set(|settings| settings.latency = 20).unwrap();
        let driver = fixture.open(&TestHost::new()).await?;
        let one = Instant::now();
        for n in 0..4 {
            driver.call(create(n, MIB)).await?;
        }
        let one = one.elapsed() / 4;
        let all = Instant::now();
        let running: Vec<_> = (10..58).map(|n| driver.call(create(n, MIB)).start()).collect();
        for wish in running {
            wish.await?;
        }
        let all = all.elapsed() / 48;
        println!("one at a time: {one:?} each; 48 at once: {all:?} each");
        assert_eq!(fixture.simulated.array.sessions().peak(), 7);
        Ok(())
    })
    .unwrap();
}

/// A slow line, and one that says nonsense for a while.
#[test]
fn a_reading_command_is_asked_again_until_it_is_understood() {
    use array_sim::core::Effect;
    run(async {
        let mut fixture = Fixture::new();
        fixture.extra.push(("reply-timeout", "1".into()));
        let mut sr = fixture.sr().await?;
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(create(1, MIB)).await?;
        for effect in [
            Effect::Garbage,
            Effect::LoginPage,
            Effect::SlowDrip { milliseconds: 1 },
            Effect::HalfBody,
            Effect::Silence { milliseconds: 1500 },
            Effect::Delay { milliseconds: 50 },
        ] {
            for call in ["volume.list", "volume.show"] {
                println!("{call}: {effect:?}");
                sr.simulated.fault(call, 0, effect.clone());
                sr.holds(&[1], "a listing is whole").await?;
            }
        }
        assert!(sr.simulated.array.faults().left().is_empty());
        Ok(())
    })
    .unwrap();
}
