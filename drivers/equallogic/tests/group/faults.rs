//! Every changing command goes wrong in every way: afterwards there is one object or none, the wish
//! that is repeated succeeds, nothing of ours is left, and nobody else's volume is touched.

use std::sync::atomic::{AtomicUsize, Ordering};

use array_sim::core::Effect;
use plugin_sdk::Result;

use crate::life::life;
use crate::support::{Fixture, Sr, run};

/// The commands that change something, and how many of a kind a life has at least. All of them lose
/// their reply in turn; the other troubles befall the first of each kind.
const CHANGES: &[(&str, u64)] = &[
    ("volume.create", 3),
    ("volume.describe", 4),
    ("volume.resize", 1),
    ("volume.clone", 1),
    ("snapshot.clone", 1),
    ("snapshot.create", 1),
    ("snapshot.rename", 1),
    ("snapshot.describe", 1),
    ("snapshot.restore", 1),
    ("volume.offline", 2),
    ("volume.online", 1),
    ("access.create", 2),
    ("access.delete", 2),
    ("snapshot.online", 1),
    ("snapshot.offline", 1),
    ("snapshot.delete", 2),
    ("volume.delete", 3),
];

fn every_change(what: &str, effect: &Effect, restart: bool) {
    let all = *effect == Effect::DropReply && !restart;
    let times = |times: u64| if all { times } else { 1 };
    let work: Vec<(&str, u64)> = CHANGES
        .iter()
        .flat_map(|(call, most)| (0..times(*most)).map(move |n| (*call, n)))
        .collect();
    // Each has a group of its own.
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some((call, after)) = work.get(next.fetch_add(1, Ordering::SeqCst)) {
                    println!("{what}: {call} number {after}");
                    let outcome = run(one(call, *after, effect.clone(), restart));
                    outcome.unwrap_or_else(|error| panic!("{what}: {call} {after}: {error}"));
                }
            });
        }
    });
}

async fn one(call: &str, after: u64, effect: Effect, restart: bool) -> Result<()> {
    let fixture = Fixture::new();
    fixture.fault(call, after, effect);
    let mut sr = Sr::new(fixture).await?;
    let group = std::sync::Arc::clone(&sr.fixture.group);
    let restarter = restart.then(|| crate::support::restart_at_fault(&group));
    life(&mut sr).await?;
    drop(restarter);
    let left = sr.fixture.group.array.faults().left();
    assert!(left.is_empty(), "it did not come to that: {left:?}");
    sr.driver.close().await;
    Ok(())
}

#[test]
fn a_lost_command_is_sent_again() {
    every_change("lost", &Effect::DropRequest, false);
}

#[test]
fn a_lost_reply_is_looked_up() {
    every_change("reply lost", &Effect::DropReply, false);
}

#[test]
fn half_a_reply_is_none() {
    every_change("cut", &Effect::HalfBody, false);
}

#[test]
fn a_session_that_ended_is_begun_anew() {
    every_change("session", &Effect::EndSession, false);
}

#[test]
fn a_busy_group_is_asked_again() {
    every_change("busy", &Effect::Refuse { status: 503, retry_after: None, body: None }, false);
}

#[test]
fn a_refusal_after_the_fact_is_looked_up() {
    every_change("failed after", &Effect::FailAfter { status: 500 }, false);
}

#[test]
fn an_array_that_restarts_has_what_it_said_it_has() {
    every_change("restart", &Effect::DropReply, true);
}
