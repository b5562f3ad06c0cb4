//! Several wishes at once, through the core, on a simulated array.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use array_kit::driver::Offload;
use array_sim::core::{Effect, Fault, Options};
use array_sim::truenas::{PASSWORD, TrueNas, USER};
use array_sim::{Plan, Simulator};
use camino::Utf8Path;
use futures_util::future::join_all;
use plugin_sdk::export::root_module;
use plugin_sdk::tokio;
use sm_core::model::Bytes;
use sm_core::{NewSr, NewVdi, Op, Sr, StaticDriver, StorageManager};
use sm_driver_truenas::TrueNasProduct;

/// How many wishes there are: fewer than an array carries out of one connection at a time.
const WISHES: usize = 8;

async fn site(folder: &Path) -> (Simulator, Sr) {
    let options = Options { pools: vec![("tank".to_owned(), 1 << 40)], ..Options::default() };
    let plan = Plan { options, tls: true, ..Plan::default() };
    let simulator =
        Simulator::start(Arc::new(TrueNas), &folder.join("array"), &plan).await.unwrap();
    let pin = simulator.certificate().unwrap().fingerprint().unwrap();
    let module = root_module::<Offload<TrueNasProduct>>();
    let manifest = serde_json::from_str(module.manifest()().as_str()).unwrap();
    let driver = StaticDriver { manifest, module };
    let state = folder.join("state");
    let manager = StorageManager::builder(Utf8Path::from_path(&state).unwrap())
        .static_driver(driver)
        .open()
        .await
        .unwrap();
    let url = simulator.url();
    let config = [
        ("target", url.as_str()),
        ("pool", "tank"),
        ("username", USER),
        ("password", PASSWORD),
        ("fingerprint", &pin),
        ("initiator", "iqn.1993-08.org.debian:01:222"),
    ];
    let device_config: BTreeMap<_, _> =
        config.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let new = NewSr { driver: "truenas".into(), device_config, ..NewSr::default() };
    let record = manager.sr_create(&Op::new(), new).await.unwrap();
    let sr = manager.sr(&record.uuid.to_string()).unwrap();
    (simulator, sr)
}

fn wish(n: usize) -> NewVdi {
    let size = Bytes((n as u64 + 1) << 20);
    NewVdi { name: format!("disk {n}"), virtual_size: size, ..NewVdi::default() }
}

/// Each creation is held at the array until all of them are there: nothing in the core or the kit
/// has one wait for another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creations_are_at_the_array_at_the_same_time_and_each_gets_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (simulator, sr) = site(folder.path()).await;
    let held = Effect::Delay { milliseconds: 3000 };
    let call = "pool.dataset.create".to_owned();
    simulator.array.faults().add(Fault { call, after: 0, times: 0, effect: held });
    simulator.array.requests().clear();
    let wishes: Vec<Op> = (0..WISHES).map(|_| Op::new()).collect();
    let create = |(n, op)| {
        let sr = &sr;
        async move { sr.vdi_create(op, wish(n)).await.unwrap().vdi }
    };
    let made = join_all(wishes.iter().enumerate().map(create)).await;
    let asked = simulator.array.requests().all();
    let most = asked.iter().map(|one| one.others).max();
    assert_eq!((asked.len(), most), (WISHES, Some(WISHES - 1)), "{asked:#?}");
    for (n, vdi) in made.iter().enumerate() {
        let wished = wish(n);
        assert_eq!((&vdi.name, vdi.uuid), (&wished.name, wishes[n].id.vdi(0)));
        assert_eq!(vdi.virtual_size, wished.virtual_size);
    }
    // Each answer is recorded under its own wish: a repetition asks nobody.
    simulator.array.requests().clear();
    let again = join_all(wishes.iter().enumerate().map(create)).await;
    assert_eq!(again, made);
    assert_eq!(simulator.array.requests().all().len(), 0);
    let scan = sr.scan(&Op::new()).await.unwrap();
    assert_eq!((scan.recovered.completed.len(), scan.recovered.undone.len()), (0, 0));
    let listed: BTreeSet<_> = scan.vdis.iter().map(|vdi| vdi.uuid).collect();
    assert_eq!(listed, made.iter().map(|vdi| vdi.uuid).collect());
}

/// A caller that repeats itself before the first answer: the second waits for the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_wish_that_is_told_several_times_at_once_is_one_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (simulator, sr) = site(folder.path()).await;
    simulator.array.requests().clear();
    let op = Op::new();
    let create = || async { sr.vdi_create(&op, wish(0)).await.unwrap() };
    let made = join_all((0..WISHES).map(|_| create())).await;
    assert!(made.iter().all(|one| *one == made[0]), "{made:#?}");
    let calls = simulator.array.requests().counts();
    assert_eq!(calls, BTreeMap::from([("pool.dataset.create".to_owned(), 1)]));
    assert_eq!(sr.vdis(&Op::new()).await.unwrap().len(), 1);
}
