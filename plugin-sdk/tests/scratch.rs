//! The example keeps the rules it is an example of.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests")]

#[path = "../examples/scratch.rs"]
mod scratch;

use plugin_sdk::model::operation::Request;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::{self, Opened};
use scratch::Scratch;

async fn opened(folder: &tempfile::TempDir, sr: SrUuid) -> Result<Opened<Scratch>> {
    testing::open::<Scratch>(sr, &[("location", folder.path().to_str().unwrap())]).await
}

fn create(uuid: VdiUuid, size: u64) -> VdiCreate {
    let virtual_size = Bytes(size).0;
    serde_json::from_value(serde_json::json!({
        "uuid": uuid, "name": "disk", "virtual_size": virtual_size, "keys": {"a": "b"},
    }))
    .unwrap()
}

#[test]
fn a_disk_is_made_found_used_and_removed_each_twice() -> Result<()> {
    let folder = tempfile::tempdir()?;
    testing::run(async {
        let sr = SrUuid::random();
        let driver = opened(&folder, sr).await?;
        assert_eq!(driver.call(SrCreate::default()).await?.changed, Changed::Created);
        assert_eq!(driver.call(SrCreate::default()).await?.changed, Changed::Already);

        let vdi = VdiUuid::random();
        let made = driver.call(create(vdi, 1000)).await?;
        assert_eq!((made.changed, made.vdi.virtual_size), (Changed::Created, Bytes(1024)));
        assert_eq!(driver.call(create(vdi, 1000)).await?.changed, Changed::Already);
        assert_eq!(driver.call(create(vdi, 2000)).await.unwrap_err().kind, Kind::Exists);

        // A second session, as after a restart, sees the same disk.
        driver.close().await;
        let driver = opened(&folder, sr).await?;
        let page = driver.call(SrScan::default()).await?;
        assert_eq!(page.vdis[0], driver.call(VdiStat::of(vdi)).await?);
        assert_eq!(page.vdis[0].keys["a"], "b");

        let mode = AttachMode::ReadWrite;
        let attached = driver.call(VdiAttach { vdi, mode }).await?;
        let Access::File { path, .. } = &attached.access[0] else { panic!("{attached:?}") };
        assert_eq!(std::fs::read(path)?, [0; 1024]);
        driver.call(VdiActivate { vdi, mode, tracked: false }).await?;
        driver.call(VdiDeactivate { vdi }).await?;
        driver.call(VdiDetach { vdi }).await?;

        assert_eq!(driver.call(VdiDestroy { vdi }).await?.changed, Changed::Modified);
        assert_eq!(driver.call(VdiDestroy { vdi }).await?.changed, Changed::Already);
        assert_eq!(driver.call(VdiStat::of(vdi)).await.unwrap_err().kind, Kind::NotFound);
        driver.call(SrDetach {}).await?;
        Ok(())
    })
}

#[test]
fn what_is_damaged_is_listed_and_what_was_never_finished_is_removed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    testing::run(async {
        let sr = SrUuid::random();
        let driver = opened(&folder, sr).await?;
        driver.call(SrCreate::default()).await?;
        let (damaged, headless, unfinished) =
            (VdiUuid::random(), VdiUuid::random(), VdiUuid::random());
        for vdi in [damaged, headless, unfinished] {
            driver.call(create(vdi, 4096)).await?;
        }
        let directory = folder.path().join(sr.to_string());
        std::fs::write(directory.join(format!("{damaged}.json")), "{")?;
        std::fs::remove_file(directory.join(format!("{headless}.raw")))?;
        std::fs::remove_file(directory.join(format!("{unfinished}.json")))?;

        let page = driver.call(SrScan::default()).await?;
        assert_eq!(page.vdis.len(), 2);
        assert!(page.vdis.iter().all(|vdi| matches!(vdi.health, Health::Quarantined { .. })));
        // A lost image is not made anew under its old name.
        let again = driver.call(create(headless, 4096)).await;
        assert_eq!(again.unwrap_err().kind, Kind::Corrupt);

        let attached = driver.call(SrAttach {}).await?;
        assert_eq!(attached.removed.len(), 1, "{attached:?}");
        assert!(attached.removed[0].contains(&unfinished.to_string()));
        assert!(driver.call(SrAttach {}).await?.removed.is_empty());
        Ok(())
    })
}

/// Law: the manifest lists what is implemented, and an operation that is not is `unsupported`.
#[test]
fn the_manifest_is_true() -> Result<()> {
    let manifest = testing::manifest::<Scratch>()?;
    assert!(manifest.can(VdiCreate::OPERATION.name()));
    assert!(!manifest.can(VdiSnapshot::OPERATION.name()));
    let folder = tempfile::tempdir()?;
    testing::run(async {
        let driver = opened(&folder, SrUuid::random()).await?;
        let error = driver.call(VdiTree {}).await.unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported);
        assert_eq!(error.message, "the driver scratch does not support vdi_tree");
        Ok(())
    })
}
