//! A host that is shut out of an SR in a folder that two hosts see.

use std::process::Command;

use camino::Utf8PathBuf;
use sm_core::model::vdi::VdiUpdate;
use sm_core::model::{Access, AttachMode, Changed, HostId, Kind, VdiUuid};
use sm_core::{NewSr, NewVdi, Op, Sr, StorageManager};

use crate::datapath::{VM, answered, guest, kill};
use crate::{PLACEMENTS, Site, installation};

/// What the host of a [`Site`] is called.
fn own() -> HostId {
    let told = Command::new("uname").arg("-n").output().unwrap();
    HostId(String::from_utf8(told.stdout).unwrap().trim().to_owned())
}

/// Another host that knows the SR.
struct Other {
    sr: Sr,
    manager: StorageManager,
    folder: tempfile::TempDir,
}

impl Other {
    async fn of(site: &Site) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        let builder = installation(&path, site.placement).host(HostId("other".to_owned()));
        let manager = builder.open().await.unwrap();
        let config = [("location".to_owned(), site.folder.join("images").into_string())].into();
        let known = NewSr {
            driver: "file".into(),
            uuid: Some(site.sr.uuid()),
            device_config: config,
            ..NewSr::default()
        };
        manager.sr_introduce(&Op::new(), known).await.unwrap();
        let sr = manager.sr(&site.sr.uuid().to_string()).unwrap();
        Self { sr, manager, folder }
    }

    /// Takes a disk that is free by now: how it is reached.
    async fn take(&self, disk: VdiUuid) -> String {
        let mode = AttachMode::ReadWrite;
        let access = self.sr.vdi_attach(&Op::new(), disk, VM, mode).await.unwrap();
        self.sr.vdi_activate(&Op::new(), disk, VM).await.unwrap();
        let [Access::Nbd { uri }] = access.as_slice() else { panic!("{access:?}") };
        uri.clone()
    }

    async fn give_back(self, disk: VdiUuid) {
        self.sr.vdi_deactivate(&Op::new(), disk, VM).await.unwrap();
        self.sr.vdi_detach(&Op::new(), disk, VM).await.unwrap();
        self.manager.close().await;
        self.folder.close().unwrap();
    }

    async fn warnings(&self) -> Vec<String> {
        self.sr.stat(&Op::new()).await.unwrap().warnings
    }
}

fn new(name: &str) -> NewVdi {
    let virtual_size = sm_core::model::Bytes::mib(8);
    NewVdi { name: name.to_owned(), virtual_size, ..NewVdi::default() }
}

#[tokio::test]
async fn a_host_that_is_shut_out_lets_go_of_its_disks_and_comes_back_without_them() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let other = Other::of(&site).await;
        let (disk, uri) = site.served("a").await;
        guest(&uri, &["write -P 1 0 1M", "flush"]);
        let own = own();

        // Its disk is its own until somebody says that it is gone.
        other.sr.vdi_attach(&Op::new(), disk, VM, AttachMode::ReadWrite).await.unwrap();
        let error = other.sr.vdi_activate(&Op::new(), disk, VM).await.unwrap_err();
        let said = format!("VDI {disk} is being written by host {}", own.0);
        assert_eq!((&error.kind, &error.message), (&Kind::InUse, &said));
        let error = other.sr.fence(&Op::new(), &HostId("others".into())).await.unwrap_err();
        assert_eq!(error.kind, Kind::NotFound);
        assert_eq!(error.message, format!("SR {} knows no host others", site.sr.uuid()));
        let error = other.sr.fence(&Op::new(), &HostId("other".into())).await.unwrap_err();
        assert_eq!(error.message, "host other cannot shut itself out");

        // Then its data path lets go of it, which the other one waits for.
        let fenced = other.sr.fence(&Op::new(), &own).await.unwrap();
        assert_eq!((&fenced.changed, fenced.enforced), (&Changed::Modified, false));
        assert_eq!(fenced.vdis, [disk]);
        assert!(fenced.reason.is_some());
        let again = other.sr.fence(&Op::new(), &own).await.unwrap();
        assert_eq!((again.changed, again.epoch), (Changed::Already, fenced.epoch));
        assert_eq!(again.vdis, []);
        let taken = other.take(disk).await;
        guest(&taken, &["read -P 1 0 1M", "write -P 2 0 1M", "flush"]);
        let late = Command::new("qemu-io")
            .args(["-f", "raw", "-c", "write -P 3 0 1M", "-c", "flush", &uri])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&late.stdout) + String::from_utf8_lossy(&late.stderr);
        assert!(said.contains("failed") || !late.status.success(), "{said}");
        guest(&taken, &["read -P 2 0 1M"]);

        // What it wants to change is refused, until it has given back what it had.
        let shut_out = format!("host {} was shut out of the SR by host other", own.0);
        let refused = [
            site.sr.vdi_create(&Op::new(), new("late")).await.map(drop),
            site.sr.vdi_update(&Op::new(), rename(disk)).await.map(drop),
            site.sr.fence(&Op::new(), &HostId("other".into())).await.map(drop),
            site.sr.attach(&Op::new()).await.map(drop),
        ];
        for refused in refused {
            let error = refused.unwrap_err();
            assert_eq!((&error.kind, &error.message), (&Kind::Fenced, &shut_out));
            assert_eq!(error.context["epoch"], fenced.epoch.to_string());
        }
        let warned = other.warnings().await;
        let begin =
            format!("host {} is shut out since epoch {}, by host other", own.0, fenced.epoch);
        assert!(warned.len() == 1 && warned[0].starts_with(&begin), "{warned:?}");
        site.detach(disk).await;
        site.sr.attach(&Op::new()).await.unwrap();
        assert_eq!(other.warnings().await, Vec::<String>::new());
        site.sr.vdi_create(&Op::new(), new("late")).await.unwrap();
        guest(&taken, &["read -P 2 0 1M"]);
        other.give_back(disk).await;
        assert!(site.content(disk).await[..1 << 20].iter().all(|byte| *byte == 2));
    }
}

fn rename(vdi: VdiUuid) -> VdiUpdate {
    serde_json::from_value(serde_json::json!({"vdi": vdi, "name": "renamed"})).unwrap()
}

/// What its data path has left, since it was killed, stays out of the image.
#[tokio::test]
async fn what_was_left_of_a_host_that_was_shut_out_is_never_written() {
    let site = Site::new(PLACEMENTS[0]).await;
    let other = Other::of(&site).await;
    let (disk, uri) = site.served("a").await;
    guest(&uri, &["write -P 1 0 256k", "flush"]);
    answered(&uri, 7);
    kill(site.pid(disk).await);
    other.sr.fence(&Op::new(), &own()).await.unwrap();
    let taken = other.take(disk).await;
    guest(&taken, &["write -P 2 1M 256k", "flush"]);
    other.give_back(disk).await;

    // Nobody has it locked now.
    site.detach(disk).await;
    site.sr.attach(&Op::new()).await.unwrap();
    let content = site.content(disk).await;
    assert!(content[..256 << 10].iter().all(|byte| *byte == 1));
    assert!(content[1 << 20..][..256 << 10].iter().all(|byte| *byte == 2));
    assert!(site.sr.vdi_check(&Op::new(), disk).await.unwrap().findings.is_empty());
}
