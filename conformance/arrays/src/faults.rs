//! Each change goes wrong in each way: the wish that is repeated succeeds, there is one object or none,
//! nothing of ours is left, and nobody else's objects are touched.

use array_sim::core::Effect;
use plugin_sdk::Result;
use plugin_sdk::testing::run;

use crate::life::live;
use crate::sr::{Learned, Sr, Trouble};
use crate::vendor::Vendor;

/// The ways to go wrong, by name.
pub const WAYS: [&str; 12] = [
    "lost",
    "answer lost",
    "answer cut",
    "reset",
    "nonsense",
    "page for people",
    "failed after",
    "gateway",
    "busy",
    "too many",
    "session ended",
    "restarted",
];

fn effect(way: &str) -> Effect {
    let refuse = |status, retry_after: Option<&str>| Effect::Refuse {
        status,
        retry_after: retry_after.map(str::to_owned),
        body: None,
    };
    match way {
        "lost" => Effect::DropRequest,
        "answer lost" | "restarted" => Effect::DropReply,
        "answer cut" => Effect::HalfBody,
        "reset" => Effect::Reset,
        "nonsense" => Effect::Garbage,
        "page for people" => Effect::LoginPage,
        "failed after" => Effect::FailAfter { status: 500 },
        "gateway" => Effect::FailAfter { status: 504 },
        "busy" => refuse(503, None),
        "too many" => refuse(429, Some("0")),
        "session ended" => Effect::EndSession,
        other => panic!("{other} is no way to go wrong"),
    }
}

/// A life for each way, all at once: most of their time goes by waiting.
pub fn all<V: Vendor>() {
    for way in V::FACTS.cannot {
        assert!(WAYS.contains(way), "{way} is no way to go wrong");
    }
    let learned = run(async {
        let mut sr = Sr::<V>::new().await?;
        live(&mut sr).await?;
        Ok(sr.learned.clone())
    })
    .unwrap();
    let calls: usize = learned.iter().map(Vec::len).sum();
    println!("{}: {calls} changes in {} operations", V::LIBRARY, learned.len());
    assert!(calls > 20, "a life of so few changes? {learned:?}");
    std::thread::scope(|scope| {
        for way in WAYS.iter().filter(|way| !V::FACTS.cannot.contains(way)) {
            let learned = learned.clone();
            scope.spawn(move || {
                let outcome = run(one::<V>(way, learned));
                outcome.unwrap_or_else(|error| panic!("{way}: {error}"));
            });
        }
    });
}

async fn one<V: Vendor>(way: &'static str, mut learned: Learned) -> Result<()> {
    let began = std::time::Instant::now();
    let mut sr = Sr::<V>::new().await?;
    let restarts = way == "restarted";
    // One restart ends all sessions, so one is enough for an operation; and each pause of an array
    // that does not say when to come back takes a quarter of a second.
    if restarts || way == "busy" {
        for calls in &mut learned {
            calls.truncate(1);
        }
    }
    let due: usize = learned.iter().map(Vec::len).sum();
    sr.meets(Trouble { effect: effect(way), restarts, learned });
    live(&mut sr).await?;
    let (befallen, again, took) = (sr.befallen, sr.repeated, began.elapsed());
    println!("{way}: {befallen} of {due} befallen, {again} asked again, in {took:.1?}");
    // What comes after the trouble may find that there is nothing left to do.
    assert!(sr.befallen * 10 >= due * 9, "{way}: never sent: {:?}", sr.spared);
    sr.driver.close().await;
    Ok(())
}
