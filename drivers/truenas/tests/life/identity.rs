//! By what a host knows a VDI's LUN.

use std::collections::BTreeSet;

use array_matrix::wishes::{MIB, attach, clone, create, destroy, detach, resize, revert, snapshot};
use array_matrix::{Sr, Vendor};
use plugin_sdk::prelude::*;
use plugin_sdk::testing::run;

use crate::array::{Rest, WebSocket};

/// The NAA of a VDI's LUN while it is attached.
async fn naa<V: Vendor>(sr: &mut Sr<V>, n: u32) -> Result<String> {
    let volume = sr.volume(n);
    let of_it = |sr: &Sr<V>| {
        let all = sr.simulated.exports().into_iter().filter(|export| export.volume == volume);
        all.map(|export| export.identity.naa).collect::<Vec<_>>()
    };
    sr.until_done(attach(n, AttachMode::ReadWrite)).await?;
    let seen = of_it(sr);
    sr.until_done(detach(n)).await?;
    assert_eq!(of_it(sr), Vec::<String>::new(), "it is served to nobody");
    let [naa] = seen.as_slice() else { panic!("{seen:?}") };
    Ok(naa.clone())
}

fn extents<V: Vendor>(sr: &Sr<V>) -> usize {
    let objects = sr.simulated.objects();
    objects["truenas.extent"].as_object().map_or(0, serde_json::Map::len)
}

#[test]
fn a_disk_has_one_identity_for_its_life_and_a_clone_its_own() {
    one_each::<Rest>();
    one_each::<WebSocket>();
}

fn one_each<V: Vendor>() {
    run(async {
        let mut sr = Sr::<V>::new().await?;
        let foreign = extents(&sr);
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(SrAttach {}).await?;
        sr.until_done(create(1, MIB)).await?;
        let mut seen = BTreeSet::from([naa(&mut sr, 1).await?]);
        sr.until_done(snapshot(1, 2)).await?;
        sr.until_done(resize(1, 2 * MIB)).await?;
        seen.insert(naa(&mut sr, 1).await?);
        sr.until_done(revert(1, 2)).await?;
        seen.insert(naa(&mut sr, 1).await?);
        sr.until_done(clone(2, 3)).await?;
        sr.until_done(SrDetach {}).await?;
        sr.until_done(SrAttach {}).await?;
        seen.insert(naa(&mut sr, 1).await?);
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(!seen.contains(&naa(&mut sr, 3).await?));
        assert_eq!(extents(&sr), foreign + 2);
        for n in [3, 2, 1] {
            sr.until_done(destroy(n)).await?;
        }
        assert_eq!(extents(&sr), foreign, "they went with their disks");
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}
