//! The SDK's example driver, as its author would use it.

use std::os::unix::fs::PermissionsExt;

use camino::Utf8PathBuf;
use sm_core::model::{Access, AttachMode, Bytes, Changed, ImageFormat};
use sm_core::{NewSr, NewVdi, Op, StorageManager};

use crate::{PLACEMENTS, path};

#[tokio::test]
async fn it_loads_and_serves_a_disk() {
    for placement in PLACEMENTS {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::from_path_buf(temporary.path().to_owned()).unwrap();
        let location = folder.join("files");
        std::fs::create_dir(&location).unwrap();
        // It does not ask for root's rights, so in a child process it is nobody.
        for (folder, mode) in [(&folder, 0o755), (&location, 0o777)] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let manager = StorageManager::builder(folder.join("state"))
            .driver(path("examples/libscratch.so"))
            .driver_host(path("sm-driver-host"))
            .placement(placement)
            .open()
            .await
            .unwrap();
        let device_config = [("location".to_owned(), location.into_string())].into();
        let new = NewSr { driver: "scratch".into(), device_config, ..NewSr::default() };
        let record = manager.sr_create(&Op::new(), new).await.unwrap();
        let sr = manager.sr(&record.uuid.to_string()).unwrap();
        let op = Op::new();
        let new = NewVdi { name: "d".into(), virtual_size: Bytes::mib(1), ..NewVdi::default() };
        let made = sr.vdi_create(&op, new.clone()).await.unwrap();
        assert_eq!(made.changed, Changed::Created);
        assert_eq!(sr.vdi_create(&op, new).await.unwrap(), made);
        let disk = made.vdi.uuid;
        let access = sr.vdi_attach(&Op::new(), disk, "vm", AttachMode::ReadWrite).await.unwrap();
        let [Access::File { path, format: ImageFormat::Raw, backing, .. }] = access.as_slice()
        else {
            panic!("{access:?}");
        };
        assert!(backing.is_empty());
        assert_eq!(std::fs::metadata(path).unwrap().len(), 1 << 20);
        sr.vdi_detach(&Op::new(), disk, "vm").await.unwrap();
        assert_eq!(sr.scan(&Op::new()).await.unwrap().vdis.len(), 1);
        sr.vdi_destroy(&Op::new(), disk).await.unwrap();
        assert_eq!(sr.vdis(&Op::new()).await.unwrap(), []);
        manager.close().await;
    }
}
