//! How many requests each operation takes: the table in `docs/drivers/truenas.md`.

use plugin_sdk::prelude::*;

use crate::story::{clone, create, snapshot};
use crate::world::{MIB, World, vdi, with_folder};

async fn table(w: &mut World) -> Vec<(&'static str, Vec<String>)> {
    let mut rows = Vec::new();
    macro_rules! row {
        ($what:literal, $id:expr, $request:expr) => {
            w.until_done($id, $request).await;
            rows.push(($what, w.asked.clone()));
        };
    }
    row!("sr create", 1, SrCreate::default());
    row!("sr attach", 2, SrAttach {});
    row!("vdi create", 10, create(1, MIB));
    row!("vdi snapshot", 11, snapshot(1, 2));
    row!("vdi clone of a snapshot", 12, clone(2, 3));
    row!("vdi clone of a disk", 13, clone(1, 4));
    row!("vdi resize", 14, VdiResize { vdi: vdi(1), virtual_size: Bytes(2 * MIB) });
    row!("sr scan", 15, SrScan::default());
    row!("sr stat", 16, SrStat {});
    let attach = VdiAttach { vdi: vdi(4), mode: AttachMode::ReadWrite };
    row!("map", 17, attach);
    row!("unmap", 18, VdiDetach { vdi: vdi(4) });
    row!("vdi destroy of a clone of a disk", 19, VdiDestroy { vdi: vdi(4) });
    row!("vdi destroy of a clone of a snapshot", 20, VdiDestroy { vdi: vdi(3) });
    row!("vdi revert", 21, VdiRevert { vdi: vdi(1), snapshot: vdi(2) });
    row!("vdi destroy of a snapshot", 22, VdiDestroy { vdi: vdi(2) });
    row!("vdi destroy", 23, VdiDestroy { vdi: vdi(1) });
    row!("sr detach", 24, SrDetach {});
    row!("sr destroy", 25, SrDestroy {});
    rows
}

#[test]
fn each_operation_takes_the_requests_of_the_table() {
    let document = include_str!("../../../../docs/drivers/truenas.md");
    for api in ["rest", "websocket"] {
        with_folder(|folder| async move {
            let mut world = World::new(&folder, api, None).await;
            let rows = table(&mut world).await.into_iter();
            let rows = rows.map(|(what, calls)| (format!("| {what} | {} |", calls.len()), calls));
            let missing: Vec<_> = rows.filter(|(row, _)| !document.contains(row)).collect();
            assert!(missing.is_empty(), "{api}: not in the document: {missing:#?}");
        });
    }
}
