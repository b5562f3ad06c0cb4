//! How many requests each operation takes: the table in the driver's document.

use plugin_sdk::Result;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::run;

use crate::life::attaches;
use crate::sr::Sr;
use crate::vendor::Vendor;
use crate::wishes::{
    MIB, attach, clone, create, destroy, detach, rename, resize, revert, snapshot,
};

/// An operation and the calls that it took.
type Row = (&'static str, Vec<String>);

/// Counts the requests of each operation in a session that is open, and looks for a row
/// `| operation | number |` in the driver's document.
pub fn as_documented<V: Vendor>() {
    let rows = run(async {
        let mut sr = Sr::<V>::new().await?;
        V::steady(&sr.simulated);
        let rows = table(&mut sr).await?;
        sr.driver.close().await;
        Ok(rows)
    })
    .unwrap();
    let rows = rows.into_iter();
    let rows = rows.map(|(what, calls)| (format!("| {what} | {} |", calls.len()), calls));
    let missing: Vec<_> = rows.filter(|(row, _)| !V::DOCUMENT.contains(row)).collect();
    assert!(missing.is_empty(), "not in the document: {missing:#?}");
}

async fn table<V: Vendor>(sr: &mut Sr<V>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    macro_rules! row {
        ($what:literal, $request:expr) => {
            sr.until_done($request).await?;
            let asked = sr.asked.iter().filter(|asked| !V::FACTS.begins(asked));
            rows.push(($what, asked.map(|asked| asked.call.clone()).collect()));
        };
    }
    row!("sr create", SrCreate::default());
    row!("sr attach", SrAttach {});
    row!("vdi create", create(1, MIB));
    row!("vdi update", rename(1, "root"));
    row!("vdi snapshot", snapshot(1, 2));
    row!("vdi clone of a snapshot", clone(2, 3));
    row!("vdi clone of a disk", clone(1, 4));
    row!("vdi resize", resize(1, 40 * MIB));
    row!("sr scan", SrScan::default());
    row!("sr stat", SrStat {});
    if attaches::<V>() {
        row!("map", attach(4, AttachMode::ReadWrite));
        row!("unmap", detach(4));
    }
    row!("vdi destroy of a clone of a disk", destroy(4));
    row!("vdi destroy of a clone of a snapshot", destroy(3));
    row!("vdi revert", revert(1, 2));
    row!("vdi destroy of a snapshot", destroy(2));
    row!("vdi destroy", destroy(1));
    row!("sr detach", SrDetach {});
    row!("sr destroy", SrDestroy {});
    Ok(rows)
}
