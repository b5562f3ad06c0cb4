//! Lists: whole however long they are, and of no harm where they lag behind.

use array_kit::driver::Product as _;
use array_sim::core::{Effect, Fault};
use plugin_sdk::Result;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::run;

use crate::sr::Sr;
use crate::vendor::Vendor;
use crate::wishes::{MIB, SR, clone, create, destroy, rename, resize, snapshot, vdi};

/// VDIs in the long list.
const MANY: u32 = 2500;

/// Both at once, because the second one mostly waits.
pub fn whole_and_late<V: Vendor>() {
    std::thread::scope(|scope| {
        scope.spawn(|| run(late::<V>()).unwrap());
        run(whole::<V>()).unwrap();
    });
}

/// As many VDIs as take several pages of any array, beside what is somebody else's.
async fn whole<V: Vendor>() -> Result<()> {
    let mut sr = Sr::<V>::new().await?;
    sr.until_done(SrCreate::default()).await?;
    sr.until_done(SrAttach {}).await?;
    sr.until_done(create(0, MIB)).await?;
    let array = sr.simulated.array.clone();
    array.change(|change| (1..MANY).try_for_each(|n| V::copy(change, SR, vdi(0), vdi(n)))).unwrap();
    for (most, when) in [(V::FACTS.first_scan, "first"), (V::FACTS.scan, "second")] {
        array.requests().clear();
        let listed = sr.listed().await?;
        let mut all = array.requests().all();
        all.retain(|asked| !V::FACTS.begins(asked));
        let (asked, most) = (all.len() as u64, most(u64::from(MANY)));
        println!("{}: {asked} requests for the {when} list", V::LIBRARY);
        assert_eq!(listed.len(), MANY as usize, "{when}");
        assert!((0..MANY).all(|n| listed.contains_key(&vdi(n))));
        let ill: Vec<_> = listed.values().filter(|vdi| vdi.health != Health::Ok).take(3).collect();
        assert!(ill.is_empty(), "{ill:?}");
        assert!(asked <= most, "{when}: {asked} requests, {most} are allowed");
    }
    sr.driver.close().await;
    Ok(())
}

/// Reads show for a while what was before a change, and the answers of changes get lost. Whatever is
/// asked for succeeds at once, and exists once.
async fn late<V: Vendor>() -> Result<()> {
    let lag = V::FACTS.stale;
    let bound = V::Product::SETTLE.stale.as_millis() as u64;
    assert!(
        bound >= lag,
        "the driver expects lists that lag {bound} ms, and they may lag {lag} ms"
    );
    let mut sr = Sr::<V, true>::new().await?;
    sr.until_done(SrCreate::default()).await?;
    sr.until_done(SrAttach {}).await?;
    sr.until_done(create(1, 30 * MIB)).await?;
    sr.until_done(snapshot(1, 2)).await?;
    sr.until_done(clone(1, 3)).await?;
    // The last three, and of each the call that makes the object.
    let makes: Vec<String> =
        sr.learned.iter().rev().take(3).filter_map(|calls| calls.first().cloned()).collect();
    let array = sr.simulated.array.clone();
    array.set(|settings| settings.stale = lag).unwrap();

    // What was made a moment ago is there for whoever made it.
    sr.driver.call(create(4, 30 * MIB)).await?;
    sr.driver.call(clone(1, 6)).await?;
    // These wait until they see it, so they do at once.
    let renamed = sr.driver.call(rename(4, "web")).start();
    let removed = sr.driver.call(destroy(6)).start();
    renamed.await?;
    removed.await?;

    for call in makes {
        array.faults().add(Fault { call, after: 0, times: 1, effect: Effect::DropReply });
    }
    let created = sr.driver.call(create(7, 30 * MIB)).start();
    let caught = sr.driver.call(snapshot(1, 8)).start();
    let cloned = sr.driver.call(clone(1, 9)).start();
    let grown = sr.driver.call(resize(4, 60 * MIB)).start();
    created.await?;
    caught.await?;
    cloned.await?;
    grown.await?;
    sr.driver.call(snapshot(4, 5)).await?;
    assert_eq!(array.faults().left(), [], "it did not come to that");

    array.set(|settings| settings.stale = 0).unwrap();
    // What was to be seen late is forgotten with this.
    sr.simulated.restart();
    let listed = sr.holds(&[1, 2, 3, 4, 5, 7, 8, 9], "when lists are true again").await?;
    let four = &listed[&vdi(4)];
    assert_eq!((four.name.as_str(), four.virtual_size.0), ("web", V::FACTS.size(60 * MIB)));
    sr.driver.close().await;
    Ok(())
}
