//! What is on disk is what there is: space from data, and nothing lost by `kill -9`.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use crate::common::{Nas, POOL, SIZE, ask, client};
use array_sim::core::{Array, Change, Depletion, NewVolume, Options, Trouble, WhenFull};
use serde_json::{Map, Value, json};

const PAGE: u64 = 16 << 10;

/// Bytes of a volume of the model.
const BYTES: u64 = 8 * PAGE;

fn array(folder: &Path, capacity: u64) -> Array {
    let options = Options { pools: vec![("p".to_owned(), capacity)], ..Options::default() };
    Array::open(folder, &options).unwrap()
}

fn change<T>(array: &Array, work: impl FnOnce(&mut Change<'_>) -> Result<T, Trouble>) -> T {
    array.change(work).unwrap()
}

fn used(array: &Array) -> u64 {
    array.space("p").unwrap().used
}

/// Bytes that the file system has given for layers.
fn on_disk(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder.join("layers")).unwrap();
    let data =
        files.map(|file| file.unwrap()).filter(|f| f.path().extension() == Some("data".as_ref()));
    data.map(|file| file.metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn a_snapshot_and_a_clone_cost_nothing_and_a_page_written_costs_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let array = array(folder.path(), 1 << 30);
    change(&array, |c| c.create_volume("v", NewVolume::thin("p", 1 << 20)));
    array.write("v", 0, &vec![1; 10 * PAGE as usize]).unwrap();
    assert_eq!(used(&array), 10 * PAGE);
    change(&array, |c| c.create_snapshot("v", "s", Map::new()));
    change(&array, |c| c.clone_volume("s", "c", NewVolume::thin("p", 1 << 20), true));
    assert_eq!(used(&array), 10 * PAGE);
    array.write("v", 5, &[2; 1]).unwrap();
    array.write("c", PAGE, &[3; 1]).unwrap();
    assert_eq!(used(&array), 12 * PAGE);
    assert_eq!(on_disk(folder.path()), 12 * PAGE);
    for (key, pages) in [("v", [1, 1]), ("s", [1, 1]), ("c", [1, 3])] {
        let firsts = [0, PAGE].map(|at| array.read(key, at, 1).unwrap()[0]);
        assert_eq!(firsts, pages, "{key}");
    }
    assert_eq!(array.read("v", 4, 3).unwrap(), [1, 2, 1]);
    array.unmap("c", 0, 1 << 20).unwrap();
    assert_eq!(used(&array), 11 * PAGE);
    assert_eq!(array.read("c", 0, 1).unwrap(), [0]);
    change(&array, |c| c.delete_volume("c"));
    change(&array, |c| c.delete_snapshot("s"));
    assert_eq!(used(&array), 10 * PAGE);
    assert_eq!(on_disk(folder.path()), 10 * PAGE);
    assert_eq!(array.read("v", 4, 3).unwrap(), [1, 2, 1]);
}

#[test]
fn layers_against_a_plain_model() {
    let seed: u64 = std::env::var("LAYERS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    println!("LAYERS_SEED={seed}");
    let mut state = seed;
    let mut random = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let folder = tempfile::tempdir().unwrap();
    let mut array = array(folder.path(), 1 << 30);
    let mut model: std::collections::BTreeMap<String, (bool, Vec<u8>)> =
        [("v0".to_owned(), (true, vec![0; BYTES as usize]))].into();
    change(&array, |c| c.create_volume("v0", NewVolume::thin("p", BYTES)));
    for step in 1..600_u64 {
        let keys: Vec<String> = model.keys().cloned().collect();
        let key = keys[random(keys.len() as u64) as usize].clone();
        let live = model[&key].0;
        let (offset, length) = (random(BYTES), random(3 * PAGE) + 1);
        let length = length.min(BYTES - offset);
        match random(8) {
            0..=2 if live => {
                let bytes = vec![step as u8; length as usize];
                array.write(&key, offset, &bytes).unwrap();
                let own = &mut model.get_mut(&key).unwrap().1;
                own[offset as usize..(offset + length) as usize].copy_from_slice(&bytes);
            }
            3 if live => {
                array.unmap(&key, offset, length).unwrap();
                let own = &mut model.get_mut(&key).unwrap().1;
                own[offset as usize..(offset + length) as usize].fill(0);
            }
            4 if live && model.len() < 12 => {
                let name = format!("s{step}");
                change(&array, |c| c.create_snapshot(&key, &name, Map::new()));
                let content = model[&key].1.clone();
                model.insert(name, (false, content));
            }
            5 if model.len() < 12 => {
                let name = format!("v{step}");
                change(&array, |c| c.clone_volume(&key, &name, NewVolume::thin("p", BYTES), false));
                let content = model[&key].1.clone();
                model.insert(name, (true, content));
            }
            6 if model.len() > 3 => {
                change(
                    &array,
                    |c| if live { c.delete_volume(&key) } else { c.delete_snapshot(&key) },
                );
                model.remove(&key);
            }
            7 if step % 5 == 0 => {
                drop(array);
                array = self::array(folder.path(), 1 << 30);
            }
            _ => {}
        }
        for (key, (_, content)) in &model {
            assert!(
                array.read(key, 0, BYTES as usize).unwrap() == *content,
                "{key} at step {step}"
            );
        }
    }
    for (key, (live, _)) in &model {
        change(&array, |c| if *live { c.delete_volume(key) } else { c.delete_snapshot(key) });
    }
    assert_eq!((used(&array), on_disk(folder.path())), (0, 0));
}

#[test]
fn a_copy_takes_the_used_pages_only_and_of_one_moment() {
    let folder = tempfile::tempdir().unwrap();
    let array = array(folder.path(), 64 << 20);
    change(&array, |c| c.create_volume("v", NewVolume::thin("p", 1 << 30)));
    array.write("v", 0, &vec![1; 200 * PAGE as usize]).unwrap();
    change(&array, |c| c.create_volume("c", NewVolume::thin("p", 1 << 30)));
    let mut told = Vec::new();
    array
        .copy_pages("v", "c", |done, all| {
            // Written while it is copied.
            array.write("v", 199 * PAGE, &[2]).unwrap();
            told.push((done, all));
        })
        .unwrap();
    assert_eq!(told, [(0, 200), (64, 200), (128, 200), (192, 200), (200, 200)]);
    assert_eq!(array.read("c", 199 * PAGE, 1).unwrap(), [1]);
    assert_eq!(array.read("v", 199 * PAGE, 1).unwrap(), [2]);
    assert_eq!(used(&array), 400 * PAGE);
}

#[test]
fn a_full_pool_does_what_the_volume_says() {
    let folder = tempfile::tempdir().unwrap();
    let array = array(folder.path(), 4 * PAGE);
    change(&array, |c| c.create_volume("v", NewVolume::thin("p", 1 << 20)));
    let offline = NewVolume { when_full: WhenFull::Offline, ..NewVolume::thin("p", 1 << 20) };
    change(&array, |c| c.create_volume("o", offline));
    array.write("v", 0, &vec![1; 4 * PAGE as usize]).unwrap();
    let full = array.write("v", 4 * PAGE, &[1]).unwrap_err();
    assert!(matches!(full, Trouble::NoSpace(_)), "{full}");
    // What is there can be written.
    array.write("v", 0, &[2]).unwrap();
    assert!(matches!(array.write("o", 0, &[1]).unwrap_err(), Trouble::NoSpace(_)));
    assert!(matches!(array.write("o", 0, &[1]).unwrap_err(), Trouble::Offline(_)));
    array.unmap("v", 0, PAGE).unwrap();
    array.write("v", 4 * PAGE, &[1]).unwrap();
    let thick = NewVolume { thick: true, ..NewVolume::thin("p", PAGE) };
    let error = array.change(|c| c.create_volume("t", thick)).unwrap_err();
    assert!(matches!(error, Trouble::NoSpace(_)), "{error}");
}

#[test]
fn a_reserve_that_is_used_up_costs_the_oldest_snapshot_or_the_volume() {
    for depletion in [Depletion::DeleteOldest, Depletion::VolumeOffline] {
        let folder = tempfile::tempdir().unwrap();
        let array = array(folder.path(), 1 << 30);
        let new = NewVolume {
            snapshot_reserve: Some((2 * PAGE, depletion)),
            ..NewVolume::thin("p", 1 << 20)
        };
        change(&array, |c| c.create_volume("v", new));
        array.write("v", 0, &vec![1; 4 * PAGE as usize]).unwrap();
        change(&array, |c| c.create_snapshot("v", "s", Map::new()));
        array.write("v", 0, &vec![2; 2 * PAGE as usize]).unwrap();
        let third = array.write("v", 2 * PAGE, &[2]);
        let kept = array.current().count::<array_sim::core::Snapshot>();
        match depletion {
            Depletion::DeleteOldest => assert!(third.is_ok() && kept == 0, "{third:?} {kept}"),
            Depletion::VolumeOffline => {
                assert!(matches!(third, Err(Trouble::Offline(_))) && kept == 1, "{third:?} {kept}");
            }
        }
    }
}

#[test]
fn a_change_that_fails_changes_nothing_and_a_torn_line_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let array = array(folder.path(), 1 << 30);
    change(&array, |c| c.create_volume("v", NewVolume::thin("p", 1 << 20)));
    let before = array.current().json();
    let failed = array.change(|c| {
        c.create_volume("w", NewVolume::thin("p", 1 << 20))?;
        c.create_snapshot("v", "s", Map::new())?;
        Err::<(), _>(Trouble::Invalid("on purpose".to_owned()))
    });
    assert_eq!(failed.unwrap_err().to_string(), "on purpose");
    assert_eq!(array.current().json(), before);
    drop(array);
    let journal = folder.path().join("journal");
    let mut text = std::fs::read_to_string(&journal).unwrap();
    text.push_str("[[\"volume\",\"w\",{\"pool\"");
    std::fs::write(&journal, &text).unwrap();
    assert_eq!(self::array(folder.path(), 1 << 30).current().json(), before);
    text.push_str("\n[]\n");
    std::fs::write(&journal, &text).unwrap();
    let damaged = Array::open(folder.path(), &Options::default()).unwrap_err();
    assert!(damaged.to_string().contains("is damaged"), "{damaged}");
}

/// The program, ended when dropped.
struct Process {
    child: Child,
    url: String,
    admin: String,
}

impl Process {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_array-sim"))
            .args(["truenas", "--pool", &format!("tank={POOL}"), "--state"])
            .arg(folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap();
        let text = |name: &str| told[name].as_str().unwrap().to_owned();
        Self { child, url: text("url"), admin: text("admin") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn killed_at_any_moment_it_keeps_what_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let http = client();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let process = Process::start(folder.path());
        let url = process.url.clone();
        let (http2, url2) = (http.clone(), url.clone());
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let load = tokio::spawn(async move {
            for number in 0..10_000 {
                let name = format!("tank/r{round}n{number}");
                let body = json!({"name": name, "type": "VOLUME", "volsize": PAGE, "sparse": true});
                match ask(&http2, &url2, "POST /pool/dataset", Some(body)).await {
                    Ok((200, _)) => tell.send(name).unwrap(),
                    _ => return,
                }
            }
        });
        // In the middle of its work, whatever it is at.
        for _ in 0..20 + 7 * round {
            acknowledged.push(told.recv().await.unwrap());
        }
        drop(process);
        load.await.unwrap();
        while let Some(name) = told.recv().await {
            acknowledged.push(name);
        }
        let process = Process::start(folder.path());
        let list = ask(&http, &process.url, "GET /pool/dataset?type=VOLUME", None).await.unwrap();
        let there: Vec<&str> =
            list.1.as_array().unwrap().iter().map(|v| v["id"].as_str().unwrap()).collect();
        for name in &acknowledged {
            assert!(there.contains(&name.as_str()), "{name} was acknowledged and is gone");
        }
        // The one that was under way may be there, too; no other.
        assert!(
            there.len() <= acknowledged.len() + 1 + round,
            "{} {}",
            there.len(),
            acknowledged.len()
        );
    }
}

#[tokio::test]
async fn it_can_be_told_to_die_before_or_after_the_work() {
    for (kind, there) in [("die_before", 404), ("die_after", 200)] {
        let folder = tempfile::tempdir().unwrap();
        let http = client();
        let process = Process::start(folder.path());
        let script = json!([{"call": "pool.dataset.create", "effect": {"kind": kind}}]);
        let url = format!("{}/faults", process.admin);
        http.post(url).body(script.to_string()).send().await.unwrap();
        let body = json!({"name": "tank/v", "type": "VOLUME", "volsize": SIZE, "sparse": true});
        assert!(ask(&http, &process.url, "POST /pool/dataset", Some(body)).await.is_err());
        let process = Process::start(folder.path());
        let (status, _) =
            ask(&http, &process.url, "GET /pool/dataset/id/tank%2Fv", None).await.unwrap();
        assert_eq!(status, there, "{kind}");
    }
}

#[tokio::test]
async fn the_admin_port_shows_what_there_is_and_writes_content() {
    let nas = Nas::start().await;
    nas.zvol("tank/v").await;
    nas.map("tank/v", "one", &["iqn.2024-01.test:host"]).await;
    let admin = nas.sim.admin();
    let content = format!("{admin}/content?volume=tank%2Fv&offset=4096");
    nas.http.put(&content).body(vec![9; 100]).send().await.unwrap();
    let bytes = nas.http.get(format!("{content}&length=101")).send().await.unwrap();
    let bytes = bytes.bytes().await.unwrap();
    assert_eq!((bytes[99], bytes[100], bytes.len()), (9, 0, 101));
    let told =
        nas.http.get(format!("{admin}/inventory")).send().await.unwrap().text().await.unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["space"]["tank"]["used"], PAGE);
    assert_eq!(told["exports"][0]["volume"], "tank/v");
    assert_eq!(told["exports"][0]["who"], json!({"only": ["iqn.2024-01.test:host"]}));
    assert!(told["objects"]["volume"]["tank/v"].is_object());
}

#[tokio::test]
async fn a_restart_in_process_is_the_same_array() {
    let nas = Nas::start().await;
    nas.zvol("tank/v").await;
    nas.fill("tank/v", 7, 0, 4096);
    let before = nas.sim.array.current().json();
    let Nas { sim, folder, .. } = nas;
    drop(sim);
    let plan = array_sim::Plan::default();
    let again =
        array_sim::Simulator::start(Arc::new(array_sim::truenas::TrueNas), folder.path(), &plan);
    let again = again.await.unwrap();
    assert_eq!(again.array.current().json(), before);
    assert_eq!(again.array.read("tank/v", 0, 1).unwrap(), [7]);
}
