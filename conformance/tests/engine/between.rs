//! A disk that is activated while maintenance, which takes no VDI's lock, exchanges its images.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::datapath::control::Place;
use sm_core::Op;
use sm_core::model::sr::{Budget, SrMaintain, SrMaintained};
use sm_core::model::{Access, AttachMode, Bytes, VdiUuid};

use crate::datapath::{VM, guest};
use crate::{PLACEMENTS, Site};

const LONG: Duration = Duration::from_secs(60);

/// When something is done with a command that passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Asked,
    Answered,
}

type Hook = dyn Fn(&str, When) + Send + Sync;

/// Stands between a data path and those who tell it something.
struct Between {
    control: PathBuf,
    real: PathBuf,
}

impl Between {
    fn new(place: &Place, hook: Arc<Hook>) -> Self {
        let control = place.control();
        let real = control.with_extension("real");
        std::fs::rename(&control, &real).unwrap();
        let listener = UnixListener::bind(&control).unwrap();
        let path = real.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, path, hook) = (client.unwrap(), path.clone(), Arc::clone(&hook));
                std::thread::spawn(move || pass(client, &path, hook.as_ref()));
            }
        });
        Self { control, real }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        let _ = std::fs::rename(&self.real, &self.control);
    }
}

/// Passes commands on, and answers back, a line each, until either side ends.
fn pass(client: UnixStream, real: &std::path::Path, hook: &Hook) -> Option<()> {
    let server = UnixStream::connect(real).ok()?;
    let (mut to_client, mut to_server) = (client.try_clone().ok()?, server.try_clone().ok()?);
    let (mut from_client, mut from_server) = (BufReader::new(client), BufReader::new(server));
    loop {
        let mut line = String::new();
        if from_client.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let asked: serde_json::Value = serde_json::from_str(&line).unwrap();
        let command = asked["command"].as_str().unwrap().to_owned();
        hook(&command, When::Asked);
        to_server.write_all(line.as_bytes()).ok()?;
        line.clear();
        if from_server.read_line(&mut line).ok()? == 0 {
            return None;
        }
        hook(&command, When::Answered);
        to_client.write_all(line.as_bytes()).ok()?;
    }
}

/// A disk that is attached, with two base copies below it that can be merged.
async fn attached(site: &Site) -> (VdiUuid, String) {
    let (disk, uri) = site.served("a").await;
    guest(&uri, &["write -P 1 0 6M", "flush"]);
    let first = site.snapshot(disk).await;
    guest(&uri, &["write -P 2 1M 5M", "flush"]);
    site.snapshot(disk).await;
    guest(&uri, &["write -P 3 2M 1M", "flush"]);
    site.detach(disk).await;
    site.sr.vdi_destroy(&Op::new(), first).await.unwrap();
    let access = site.sr.vdi_attach(&Op::new(), disk, VM, AttachMode::ReadWrite).await.unwrap();
    let [Access::Nbd { uri }] = access.as_slice() else { panic!("{access:?}") };
    (disk, uri.clone())
}

/// It reads as it was written, and its data path has the images that it has.
async fn is_whole(site: &Site, disk: VdiUuid, uri: &str, done: &SrMaintained) {
    assert_eq!(done.merged.len(), 1, "{done:?}");
    let merged = &done.merged[0];
    guest(uri, &["read -P 1 0 1M", "read -P 2 1M 1M", "read -P 3 2M 1M", "read -P 2 3M 3M"]);
    let status = site.sr.datapath(disk).await.unwrap().unwrap();
    let plan = status.plan.unwrap();
    let backing: Vec<_> = plan.backing.iter().map(|layer| layer.path.as_path()).collect();
    let folder = site.sr_folder();
    assert_eq!(backing, [folder.join(format!("{}.vhd", merged.into)).as_std_path()]);
    assert!(!folder.join(format!("{}.vhd", merged.node)).exists());
    guest(uri, &["write -P 4 0 1M", "flush"]);
    site.detach(disk).await;
    let content = site.content(disk).await;
    for (place, byte) in [(0, 4), (1, 2), (2, 3), (3, 2), (5, 2)] {
        assert!(content[place << 20..][..1 << 20].iter().all(|is| *is == byte), "MiB {place}");
    }
    assert_eq!(site.sr.vdi_check(&Op::new(), disk).await.unwrap().findings, []);
}

/// How far maintenance is when the data path is told to open the images that there were before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Far {
    /// It was told that nobody has the leaf open, and has not yet written to it.
    Closed,
    /// It has done all.
    Ended,
}

/// A disk is activated while maintenance merges below it. Answers how often the data path was told
/// to open images.
async fn activated(site: &Site, far: Far) -> usize {
    let (disk, uri) = attached(site).await;
    let (say_closed, closed): (Sender<()>, Receiver<()>) = channel();
    let (say_active, active): (Sender<()>, Receiver<()>) = channel();
    let (say_ended, ended): (Sender<()>, Receiver<()>) = channel();
    let first = Mutex::new(Some(if far == Far::Closed { closed } else { ended }));
    let active = Mutex::new((far == Far::Closed).then_some(active));
    let activations = Arc::new(AtomicUsize::new(0));
    let hook = {
        let activations = Arc::clone(&activations);
        move |command: &str, when| match (command, when) {
            ("activate", When::Asked) => {
                activations.fetch_add(1, Ordering::SeqCst);
                let first = first.lock().unwrap().take();
                if let Some(first) = first {
                    first.recv_timeout(LONG).expect("maintenance is not as far");
                }
            }
            ("activate", When::Answered) => drop(say_active.send(())),
            ("pause", When::Answered) => {
                let active = active.lock().unwrap().take();
                if let Some(active) = active {
                    say_closed.send(()).unwrap();
                    active.recv_timeout(LONG).expect("nothing is activated");
                }
            }
            _ => {}
        }
    };
    let between = Between::new(&site.processes().disk(&disk.to_string()), Arc::new(hook));
    let (manager, other) = site.again().await;
    let maintained = tokio::spawn(async move {
        // Slow enough that the disk's driver is asked to activate it before the images change.
        let budget = Budget { bytes_per_second: Some(Bytes::mib(1)), ..Budget::default() };
        let done = other.maintain(&Op::new(), SrMaintain { budget, dry_run: false }).await.unwrap();
        let _ = say_ended.send(());
        done
    });
    let merges = site.sr_folder().join(".sm/merge");
    let until = Instant::now() + LONG;
    while merges.read_dir_utf8().map_or(0, Iterator::count) == 0 {
        assert!(Instant::now() < until, "no merge begins");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    site.sr.vdi_activate(&Op::new(), disk, VM).await.unwrap();
    let done = maintained.await.unwrap();
    drop(between);
    is_whole(site, disk, &uri, &done).await;
    manager.close().await;
    activations.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_that_were_exchanged_before_they_are_opened_are_asked_for_anew() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        assert_eq!(activated(&site, Far::Ended).await, 2, "the first is refused");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaf_that_is_opened_just_before_its_parent_is_exchanged_goes_over() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        assert_eq!(activated(&site, Far::Closed).await, 1);
    }
}
