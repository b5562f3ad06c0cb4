//! Sessions that are capped over processes, pages, jobs and pace.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use array_kit::job::{self, Poll, State};
use array_kit::outcome::{Class, Failure, Outcome};
use array_kit::pages::{self, Page};
use array_kit::retry::{Chance, Effect, Gate, Pace, RetryPolicy};
use array_kit::session::{Slot, Slots};
use plugin_sdk::testing::{TestHost, run};
use plugin_sdk::{Cx, Error, Result, tokio};

fn with_cx<F>(budget: Duration, work: impl FnOnce(Cx) -> F + Send) -> TestHost
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let host = TestHost::new();
    run(host.with_cx(budget, work)).unwrap();
    host
}

const LIMIT: Duration = Duration::from_secs(30);

/// The other process of the test below: holds slots until its input ends.
#[test]
fn holder_of_slots() {
    let Ok(directory) = std::env::var("TEST_SLOTS") else { return };
    let slots = Slots::new(directory.as_ref(), "10.0.0.1", 7).unwrap();
    let held: Vec<_> = (0..4).map(|_| slots.try_acquire().unwrap().unwrap()).collect();
    println!("holding {}", held.len());
    std::io::stdin().lines().next();
}

/// Seven over all processes; what a killed one held comes back.
#[test]
fn sessions_are_capped_over_processes() {
    let directory = tempfile::tempdir().unwrap();
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder_of_slots", "--nocapture"])
        .env("TEST_SLOTS", directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().contains("holding 4") {}
    let slots = Slots::new(directory.path(), "10.0.0.1", 7).unwrap();
    let held: Vec<_> = std::iter::from_fn(|| slots.try_acquire().unwrap()).collect();
    let numbers: BTreeSet<u32> = held.iter().map(Slot::number).collect();
    assert_eq!((held.len(), numbers.len()), (3, 3));
    with_cx(Duration::from_millis(100), {
        let slots = slots.clone();
        |cx| async move {
            let failure = slots.acquire(&cx).await.map(|_| ()).unwrap_err();
            assert_eq!(failure.class, Class::Busy);
            assert_eq!(failure.to_string(), "all 7 sessions of the array are in use");
            Ok(())
        }
    });
    assert!(Slots::new(directory.path(), "10.0.0.2", 7).unwrap().try_acquire().unwrap().is_some());
    // Somebody waits while the other process dies.
    with_cx(LIMIT, {
        |cx| async move {
            let waiting = tokio::spawn(async move { slots.acquire(&cx).await.map(drop) });
            tokio::task::yield_now().await;
            other.kill().unwrap();
            other.wait().unwrap();
            waiting.await.unwrap().map_err(Error::from)
        }
    });
    drop(held);
}

fn page(items: Vec<u32>, next: Option<u64>, total: Option<u64>) -> Page<u32, u64> {
    Page { items, next, total }
}

#[test]
fn a_listing_is_whole_or_fails() {
    with_cx(LIMIT, |_| async move {
        // 2,500 objects in pages of 1000; an empty page with a next link is not the end.
        let fetch = |offset: u64| async move {
            let all: Vec<u32> = (0..2500).collect();
            if offset == 1000 {
                return Ok(page(vec![], Some(1001), Some(2500)));
            }
            let from = if offset == 1001 { 1000 } else { offset };
            let to = (from + 1000).min(2500);
            let next = (to < 2500).then_some(to);
            Ok(page(all[from as usize..to as usize].to_vec(), next, Some(2500)))
        };
        let all = pages::all("volumes", 0, fetch).await.map_err(Error::from)?;
        assert_eq!(all, (0..2500).collect::<Vec<_>>());

        let circle = |offset: u64| async move { Ok(page(vec![1], Some((offset + 1) % 3), None)) };
        let failure = pages::all("volumes", 0, circle).await.unwrap_err();
        assert_eq!(failure.class, Class::Garbled);
        assert_eq!(failure.to_string(), "the array lists volumes in a circle, after 3 objects");

        let short = |_| async move { Ok(page(vec![1, 2], None, Some(3))) };
        let failure = pages::all("volumes", 0, short).await.unwrap_err();
        assert_eq!(failure.to_string(), "the listing of volumes ended after 2 of 3 objects");

        // Something is removed between two pages: with an offset, one object would be left out.
        let first = AtomicBool::new(true);
        let shrinking = |offset: u64| {
            let total = if offset == 0 && first.swap(false, Ordering::SeqCst) { 4 } else { 3 };
            async move {
                Ok(if offset == 0 {
                    page(vec![1, 2], Some(2), Some(total))
                } else {
                    page(vec![3], None, Some(3))
                })
            }
        };
        let all = pages::all("volumes", 0, shrinking).await.map_err(Error::from)?;
        assert_eq!(all, [1, 2, 3]);
        let broken = |_| async move { Err::<Page<u32, u64>, _>(Failure::new(Class::Unreachable)) };
        assert_eq!(pages::all("volumes", 0, broken).await.unwrap_err().class, Class::Unreachable);
        Ok(())
    });
}

/// Each page begins with the last object of the one before, so a removal between two pages is seen
/// without a count.
#[test]
fn a_listing_by_offset_leaves_nothing_out_that_is_there_all_the_time() {
    with_cx(LIMIT, |_| async move {
        let names: Vec<String> = (0..25).map(|n| format!("v{n:02}")).collect();
        let (names, pages) = (&names, &AtomicU32::new(0));
        let page = |removed: Option<usize>, offset: usize| {
            let mut all = names.clone();
            if let Some(removed) = removed {
                all.remove(removed);
            }
            all.into_iter().skip(offset).take(10).collect::<Vec<_>>()
        };
        let quiet = |offset| {
            pages.fetch_add(1, Ordering::SeqCst);
            async move { Ok(page(None, offset)) }
        };
        let all = pages::by_offset("volumes", 10, |name: &String| name, quiet).await?;
        assert_eq!((all, pages.load(Ordering::SeqCst)), (names.clone(), 3));

        let asked = &AtomicU32::new(0);
        let shrinking = |offset| {
            // Removed after the first page.
            let removed = (asked.fetch_add(1, Ordering::SeqCst) > 0).then_some(3);
            async move { Ok(page(removed, offset)) }
        };
        let all = pages::by_offset("volumes", 10, |name: &String| name, shrinking).await?;
        assert!(names.iter().enumerate().all(|(n, name)| n == 3 || all.contains(name)), "{all:?}");
        assert_eq!((all.len(), all.contains(&names[3])), (24, false));

        // It never stands still.
        let moving = |offset| {
            let n = asked.fetch_add(1, Ordering::SeqCst);
            async move { Ok(page(n.is_multiple_of(2).then_some(3), offset)) }
        };
        let failure = pages::by_offset("volumes", 10, |name: &String| name, moving).await;
        assert_eq!(failure.unwrap_err().class, Class::Busy);
        Ok(())
    });
}

#[test]
fn content_range_is_read() {
    assert_eq!(pages::content_range("0-999/2100"), Some((0, 999, Some(2100))));
    assert_eq!(pages::content_range("items 1000-1999/*"), Some((1000, 1999, None)));
    for wrong in ["", "0-999", "9-0/5", "a-b/c", "0/5", "-1-2/3"] {
        assert_eq!(pages::content_range(wrong), None, "{wrong}");
    }
    assert_eq!(pages::offset_after(Some("0-999/2100")), (Some(1000), Some(2100)));
    assert_eq!(pages::offset_after(Some("2000-2099/2100")), (None, Some(2100)));
    assert_eq!(pages::offset_after(None), (None, None));
}

/// How a job ends, what there is then, and what is made of it.
async fn job(cx: &Cx, ends: Outcome<State>, there: bool) -> (Outcome<u32>, u32) {
    let (asks, undone) = (AtomicU32::new(0), AtomicU32::new(0));
    let poll = Poll { first: Duration::from_millis(2), longest: Duration::from_millis(5) };
    let outcome = job::wait_for(
        cx,
        "copying",
        poll,
        || {
            let n = asks.fetch_add(1, Ordering::SeqCst);
            let ends = ends.clone();
            async move {
                match n {
                    0 => Ok(State::Running { permille: Some(100) }),
                    1 => Err(Failure::new(Class::Unreachable)),
                    2 => Ok(State::Running { permille: Some(700) }),
                    _ => ends,
                }
            }
        },
        || async { Ok(there.then_some(7)) },
        |_| {
            undone.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }
        },
    )
    .await;
    (outcome, undone.load(Ordering::SeqCst))
}

#[test]
fn at_the_end_of_a_job_the_object_counts() {
    let host = with_cx(LIMIT, |cx| async move {
        let failed = || Ok(State::Failed(Failure::new(Class::NoSpace)));
        let not_found = || Err(Failure::new(Class::NotFound));
        let (outcome, undone) = job(&cx, Ok(State::Done), true).await;
        assert_eq!((outcome.unwrap(), undone), (7, 0));
        for vanished in [Ok(State::Vanished), not_found()] {
            assert_eq!(job(&cx, vanished, true).await.0.unwrap(), 7);
        }
        for lost in [Ok(State::Done), Ok(State::Vanished), not_found()] {
            assert_eq!(job(&cx, lost, false).await.0.unwrap_err().class, Class::Unknown);
        }
        let (outcome, undone) = job(&cx, failed(), false).await;
        assert_eq!((outcome.unwrap_err().class, undone), (Class::NoSpace, 0));
        // It failed after its object was there to see.
        let (outcome, undone) = job(&cx, failed(), true).await;
        assert_eq!((outcome.unwrap_err().class, undone), (Class::NoSpace, 1));
        let brief = cx.within(Duration::from_millis(30));
        let (outcome, _) = job(&brief, Ok(State::Running { permille: None }), false).await;
        let failure = outcome.unwrap_err();
        assert_eq!(failure.class, Class::Unknown);
        assert_eq!(
            failure.to_string(),
            "the array's job (copying) did not end within the time given"
        );
        Ok(())
    });
    let told: Vec<u32> = host.progress().iter().map(|told| told.permille).collect();
    assert_eq!(told, Vec::<u32>::new(), "outside of a call nobody listens");
}

#[test]
fn pauses_grow_and_are_spread() {
    for seed in [1, 7, 99] {
        println!("seed {seed}");
        let (policy, chance) = (RetryPolicy::default(), Chance::seeded(seed));
        for n in 1..40 {
            let whole = Duration::from_millis(250)
                .saturating_mul(1_u32.checked_shl(n - 1).unwrap_or(u32::MAX))
                .min(Duration::from_secs(30));
            let pause = policy.pause(n, &chance);
            assert!(pause >= whole / 2 && pause <= whole, "{n}: {pause:?} of {whole:?}");
        }
        let (a, b) = (Chance::seeded(seed), Chance::seeded(seed));
        assert!((0..100).all(|_| a.next().to_bits() == b.next().to_bits()));
        let some: BTreeSet<u64> = (0..100).map(|_| a.next().to_bits()).collect();
        assert_eq!(some.len(), 100);
    }
}

#[test]
fn tries_end_and_say_so() {
    with_cx(LIMIT, |cx| async move {
        let policy = RetryPolicy {
            tries: 3,
            first: Duration::from_millis(1),
            longest: Duration::from_millis(2),
        };
        let chance = Chance::seeded(5);
        for (class, effect, expected) in [
            (Class::Busy, Effect::Changes, 3),
            (Class::Unreachable, Effect::Changes, 3),
            (Class::Unknown, Effect::Changes, 1),
            (Class::Unknown, Effect::Reads, 3),
            (Class::Garbled, Effect::Reads, 3),
            (Class::NotFound, Effect::Reads, 1),
            (Class::Denied, Effect::Reads, 1),
        ] {
            let n = AtomicU32::new(0);
            let work = || {
                n.fetch_add(1, Ordering::SeqCst);
                async move { Err::<(), _>(Failure::new(class)) }
            };
            let failure = policy.run(&cx, &chance, effect, work).await.unwrap_err();
            assert_eq!(n.load(Ordering::SeqCst), expected, "{class:?} {effect:?}");
            assert_eq!(failure.tried.unwrap().0, expected);
        }
        Ok(())
    });
}

/// At most so many at once, and none while the array wants to be left alone, whoever was told.
#[test]
fn the_gate_keeps_the_pace() {
    with_cx(LIMIT, |cx| async move {
        let gate = Arc::new(Gate::new(Pace { at_once: 3, per_second: None }));
        let (inside, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let (gate, cx) = (Arc::clone(&gate), cx.clone());
                let (inside, most) = (Arc::clone(&inside), Arc::clone(&most));
                tokio::spawn(async move {
                    let _turn = gate.pass(&cx).await.unwrap();
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), 3);
        let started = Instant::now();
        gate.close_for(Duration::from_millis(80));
        drop(gate.pass(&cx).await.map_err(Error::from)?);
        assert!(started.elapsed() >= Duration::from_millis(80));
        gate.close_for(Duration::from_secs(3600));
        let failure = gate.pass(&cx).await.map(drop).unwrap_err();
        assert_eq!(failure.class, Class::Busy);
        assert!(failure.retry_after.unwrap() > Duration::from_secs(3500));

        // 20 in a second: a burst of a second's worth at most, the rest at the rate.
        let gate = Gate::new(Pace { at_once: 3, per_second: Some(20) });
        let started = Instant::now();
        for _ in 0..8 {
            drop(gate.pass(&cx).await.map_err(Error::from)?);
        }
        assert!(started.elapsed() >= Duration::from_millis(300));
        let _ = std::io::stdout().flush();
        Ok(())
    });
}
