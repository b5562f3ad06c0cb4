//! The life of an SR.

use array_sim::core::Effect;
use plugin_sdk::prelude::*;

use crate::world::{MIB, World, vdi, with_folder};

pub(crate) fn create(n: u32, size: u64) -> VdiCreate {
    VdiCreate {
        uuid: vdi(n),
        name: format!("disk {n}"),
        description: "for a test".into(),
        virtual_size: Bytes(size),
        format: None,
        vdi_type: VdiType::default(),
        sharable: false,
        keys: [("owner".to_owned(), "me".to_owned())].into(),
        incomplete: false,
    }
}

pub(crate) fn snapshot(of: u32, n: u32) -> VdiSnapshot {
    let (name, description) = (format!("snapshot {n}"), String::new());
    let spec = SnapshotSpec { vdi: vdi(of), uuid: vdi(n), name, description };
    VdiSnapshot { snapshots: vec![spec], time: 1_700_000_000 }
}

pub(crate) fn clone(of: u32, n: u32) -> VdiClone {
    let name = format!("clone {n}");
    VdiClone { vdi: vdi(of), uuid: vdi(n), name, description: String::new() }
}

impl World {
    async fn holds(&self, expected: &[u32], when: &str) {
        let page = self.driver.call(SrScan::default()).await.unwrap();
        let mut listed: Vec<VdiUuid> = page.vdis.iter().map(|vdi| vdi.uuid).collect();
        listed.sort();
        let expected: Vec<VdiUuid> = expected.iter().map(|n| vdi(*n)).collect();
        assert_eq!(listed, expected, "{when}");
        for vdi in page.vdis {
            assert_eq!(vdi.health, Health::Ok, "{when}: {vdi:?}");
        }
    }
}

/// Everything a user does, with data and state checked at each step.
pub(crate) async fn life(w: &mut World) {
    let foreign = w.objects();
    w.until_done(1, SrCreate { name: "vms".into(), description: String::new() }).await;
    w.until_done(2, SrAttach {}).await;
    w.until_done(3, SrUpdate { name: Some("VMs".into()), description: None }).await;

    let made = w.until_done(10, create(1, 100 * MIB + 1)).await.vdi;
    assert_eq!(made.virtual_size, Bytes(100 * MIB + (16 << 10)));
    w.until_done(11, create(2, 700 * MIB)).await;
    w.holds(&[1, 2], "after creating").await;
    w.write(1, 11);
    let update = VdiUpdate {
        vdi: vdi(1),
        name: Some("root".into()),
        description: None,
        vdi_type: None,
        read_only: None,
        keys: [("owner".to_owned(), None)].into(),
        incomplete: None,
    };
    let updated = w.until_done(12, update).await.vdi;
    assert_eq!((updated.name.as_str(), updated.keys.len()), ("root", 0));

    let taken = w.until_done(13, snapshot(1, 3)).await.vdis.remove(0);
    assert!(taken.is_a_snapshot && taken.read_only);
    assert_eq!((taken.snapshot_of, taken.virtual_size), (Some(vdi(1)), made.virtual_size));
    w.write(1, 12);
    w.until_done(14, VdiRevert { vdi: vdi(1), snapshot: vdi(3) }).await;
    assert_eq!(w.byte(1), 11, "put back");
    w.write(1, 12);
    w.until_done(15, clone(3, 4)).await;
    w.until_done(16, clone(1, 5)).await;
    assert_eq!((w.byte(4), w.byte(5)), (11, 12));
    w.holds(&[1, 2, 3, 4, 5], "after cloning").await;
    w.write(4, 44);
    assert_eq!((w.byte(1), w.byte(5)), (12, 12), "nobody else has what is written to a clone");

    let grown = w.until_done(17, VdiResize { vdi: vdi(1), virtual_size: Bytes(150 * MIB) }).await;
    assert_eq!(grown.vdi.virtual_size, Bytes(150 * MIB));
    assert_eq!(w.byte(1), 12);
    // The hidden snapshot of the clone is newer.
    let error = w.driver.call(VdiRevert { vdi: vdi(1), snapshot: vdi(3) }).await.unwrap_err();
    assert_eq!(error.kind, Kind::InUse, "{error}");

    for n in [4, 1] {
        let attach = VdiAttach { vdi: vdi(n), mode: AttachMode::ReadWrite };
        let id = 20 + u64::from(n);
        assert_eq!(w.until_done(id, attach).await.access.len(), 1);
    }
    w.until_done(30, VdiDetach { vdi: vdi(4) }).await;
    w.until_done(31, VdiDetach { vdi: vdi(1) }).await;

    // Parents before children: snapshots and clones outlive their disk.
    w.until_done(40, VdiDestroy { vdi: vdi(1) }).await;
    w.holds(&[2, 3, 4, 5], "after the parent's end").await;
    assert_eq!((w.byte(4), w.byte(5)), (44, 12));
    for (n, left) in [(3, &[2, 4, 5][..]), (4, &[2, 5]), (5, &[2]), (2, &[])] {
        w.until_done(40 + u64::from(n), VdiDestroy { vdi: vdi(n) }).await;
        w.holds(left, "in the end").await;
    }
    w.until_done(50, SrDetach {}).await;
    w.until_done(51, SrDestroy {}).await;
    assert_eq!(w.objects(), foreign, "what is not ours, and nothing else");
    assert_eq!(w.state(), Vec::<String>::new(), "the ledger is closed");
}

fn lives(api: &'static str, effects: Vec<Option<Effect>>) {
    for effect in effects {
        println!("{api}, {effect:?}");
        with_folder(|folder| async move {
            let calm = effect.is_none();
            let mut world = World::new(&folder, api, effect).await;
            life(&mut world).await;
            assert!(!calm || world.repeated == 0, "no second try is needed");
            let befallen = world.befallen;
            assert!(calm == (befallen == 0) && (calm || befallen > 30), "{befallen} went wrong");
        });
    }
}

fn lost() -> Vec<Option<Effect>> {
    vec![
        Some(Effect::DropRequest),
        Some(Effect::DropReply),
        Some(Effect::HalfBody),
        Some(Effect::Garbage),
    ]
}

fn refused() -> Vec<Option<Effect>> {
    let refuse = |status, after: Option<&str>| {
        let retry_after = after.map(str::to_owned);
        Some(Effect::Refuse { status, retry_after, body: None })
    };
    vec![
        Some(Effect::FailAfter { status: 500 }),
        Some(Effect::FailAfter { status: 504 }),
        refuse(429, Some("0")),
        refuse(503, None),
        Some(Effect::EndSession),
    ]
}

#[test]
fn an_sr_lives_and_leaves_nothing_behind_over_rest() {
    lives("rest", vec![None]);
}

#[test]
fn an_sr_lives_and_leaves_nothing_behind_over_json_rpc() {
    lives("websocket", vec![None]);
}

#[test]
fn every_request_and_every_answer_may_be_lost_over_rest() {
    lives("rest", lost());
}

#[test]
fn every_request_and_every_answer_may_be_lost_over_json_rpc() {
    lives("websocket", lost());
}

#[test]
fn every_change_may_be_refused_or_fail_after_it_was_made_over_rest() {
    let mut effects = refused();
    effects.push(Some(Effect::Refuse { status: 401, retry_after: None, body: None }));
    lives("rest", effects);
}

#[test]
fn every_change_may_be_refused_or_fail_after_it_was_made_over_json_rpc() {
    lives("websocket", refused());
}
