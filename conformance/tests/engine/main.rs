//! The core over the file driver, loaded as a shared library: in process and in a child.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod attach;
mod beside;
mod between;
mod changed;
mod checksum;
mod datapath;
mod example;
mod fence;
mod group;
mod jobs;
mod journal;
mod linked;
mod live_merge;
mod maintain;
mod mirror;
mod quarantine;
mod space;
mod typed;

use ::datapath::control::Run;
use camino::Utf8PathBuf;
use conformance::built;
use sm_core::model::{Bytes, VdiUuid};
use sm_core::{Builder, NewSr, NewVdi, Op, Placement, Sr, StorageManager};

/// Both ways a library can run.
const PLACEMENTS: [Placement; 2] = [Placement::InProcess, Placement::Child];

/// An installation in a folder of its own, with one SR.
struct Site {
    manager: StorageManager,
    sr: Sr,
    folder: Utf8PathBuf,
    placement: Placement,
    temporary: Option<tempfile::TempDir>,
}

impl Site {
    async fn new(placement: Placement) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::from_path_buf(temporary.path().to_owned()).unwrap();
        let mut site = Self::in_folder_with(folder, placement, || {}).await;
        site.temporary = Some(temporary);
        site
    }

    /// With whatever `prepare` does to the new folder of the images.
    async fn in_folder_with(
        folder: Utf8PathBuf,
        placement: Placement,
        prepare: impl FnOnce(),
    ) -> Self {
        let manager = manager(&folder, placement).await;
        std::fs::create_dir(folder.join("images")).unwrap();
        prepare();
        let config = [("location".to_owned(), folder.join("images").into_string())].into();
        let new = NewSr {
            driver: "file".into(),
            name: "sr".into(),
            device_config: config,
            ..NewSr::default()
        };
        let record = manager.sr_create(&Op::new(), new).await.unwrap();
        let sr = manager.sr(&record.uuid.to_string()).unwrap();
        Self { manager, sr, folder, placement, temporary: None }
    }

    /// The same installation in another process, as far as the core can tell.
    async fn again(&self) -> (StorageManager, Sr) {
        let manager = manager(&self.folder, self.placement).await;
        let sr = manager.sr(&self.sr.uuid().to_string()).unwrap();
        (manager, sr)
    }

    fn sr_folder(&self) -> Utf8PathBuf {
        self.folder.join("images").join(self.sr.uuid().to_string())
    }

    async fn disk(&self, name: &str) -> VdiUuid {
        let new = NewVdi { name: name.into(), virtual_size: Bytes::mib(8), ..NewVdi::default() };
        self.sr.vdi_create(&Op::new(), new).await.unwrap().vdi.uuid
    }
}

impl Drop for Site {
    /// What a test leaves attached would be served for ever.
    fn drop(&mut self) {
        let run = Run::of_installation(self.folder.join("state").as_std_path());
        for place in run.disks().unwrap_or_default() {
            let _ = ::datapath::control::end(&place, std::time::Duration::from_secs(10));
        }
    }
}

async fn manager(folder: &Utf8PathBuf, placement: Placement) -> StorageManager {
    installation(folder, placement).open().await.unwrap()
}

fn installation(folder: &Utf8PathBuf, placement: Placement) -> Builder {
    StorageManager::builder(folder.join("state"))
        .driver(path("libsm_driver_file.so"))
        .driver_host(path("sm-driver-host"))
        .datapath(path("sm-datapath"))
        .placement(placement)
}

fn path(file: &str) -> Utf8PathBuf {
    Utf8PathBuf::from_path_buf(built::artefact(file)).unwrap()
}

/// Files that a disk or an unfinished operation would have left, with the folder they are in.
fn files(folder: &Utf8PathBuf) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.clone()];
    while let Some(next) = folders.pop() {
        for entry in next.read_dir_utf8().unwrap() {
            let path = entry.unwrap().into_path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(folder).unwrap().to_string());
            }
        }
    }
    found.sort();
    found
}
