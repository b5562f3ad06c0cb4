//! Many at once, and an array that has too much to do.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use array_sim::core::Effect;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::run;

use crate::sr::Sr;
use crate::vendor::Vendor;
use crate::wishes::{MIB, create};

/// Threads, and what each asks for.
const THREADS: u32 = 8;
const EACH: u32 = 4;

/// Eight threads, whose session ends in the middle: each of them gets what it wants, and there is one
/// login more, or as many as the driver has sessions.
pub fn threads<V: Vendor>() {
    run(async {
        let mut sr = Sr::<V>::new().await?;
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(SrAttach {}).await?;
        let array = sr.simulated.array.clone();
        // So that they meet.
        array.set(|settings| settings.latency = 20).unwrap();
        array.requests().clear();
        let before = array.sessions().opened();
        let driver = &sr.driver;
        let began = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let array = &array;
                scope.spawn(move || {
                    for n in 0..EACH {
                        if (thread, n) == (0, EACH / 2) {
                            array.sessions().drop_all();
                        }
                        run(async { driver.call(create(thread * EACH + n, MIB)).await }).unwrap();
                    }
                });
            }
        });
        let (opened, most) =
            (array.sessions().opened() - before, (2 * V::FACTS.sessions).saturating_sub(1));
        let met = array.requests().all().iter().map(|asked| asked.others).max();
        println!(
            "{}: {} creates in {:.0?}, {opened} sessions opened, {met:?} others met",
            V::LIBRARY,
            THREADS * EACH,
            began.elapsed()
        );
        assert!(met > Some(0), "they never met");
        assert!(opened <= most, "{opened} sessions were opened, {most} are enough");
        let all: Vec<u32> = (0..THREADS * EACH).collect();
        sr.holds(&all, "after the threads").await?;
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}

/// `Retry-After` in both forms: nobody comes back before that.
pub fn when_it_said<V: Vendor>() {
    if !V::FACTS.retry_after {
        println!("{}: its refusals do not say when to come back", V::LIBRARY);
        return;
    }
    run(async {
        let mut sr = Sr::<V>::new().await?;
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(create(1, MIB)).await?;
        let call = sr.learned.last().and_then(|calls| calls.first()).cloned().unwrap();
        let array = sr.simulated.array.clone();
        let milliseconds = |time: SystemTime| {
            u64::try_from(time.duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
        };
        let date = SystemTime::now() + Duration::from_secs(3);
        // A date has whole seconds.
        let not_before = milliseconds(date) / 1000 * 1000;
        for (n, after) in [(2, "1".to_owned()), (3, httpdate::fmt_http_date(date))] {
            array.requests().clear();
            let effect =
                Effect::Refuse { status: 429, retry_after: Some(after.clone()), body: None };
            sr.simulated.fault(&call, 0, effect);
            sr.driver.call(create(n, MIB)).await?;
            let all = array.requests().all();
            let at: Vec<u64> =
                all.iter().filter(|one| one.call == call).map(|one| one.at).collect();
            assert_eq!(at.len(), 2, "{all:?}");
            let soonest = if n == 2 { at[0] + 1000 } else { not_before };
            assert!(at[1] >= soonest, "{after}: asked again {} ms early", soonest - at[1]);
        }
        sr.holds(&[1, 2, 3], "in the end").await?;
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}
