//! Driver for a directory on any file system of this host.
//!
//! An SR is the folder `<location>/<sr uuid>`. All that is in it, and what is done with it, is of
//! [`vhd_folder`]; here is where it lies.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

use plugin_sdk::config::RawConfig;
use plugin_sdk::model::SrUuid;
use plugin_sdk::model::sr::{ProbeItem, SrProbed};
use plugin_sdk::{Cx, Manifest, Result, Utf8PathBuf};
use vhd_folder::{Folder, FolderDriver, Purpose, Site, folder_manifest, found};

plugin_sdk::device_config! {
    /// Where the images lie.
    pub struct Config {
        /// Directory that holds one folder for each SR; it must exist.
        pub location: Utf8PathBuf,
    }
}

/// A directory of this host.
#[derive(Debug)]
pub struct Directory {
    folder: Folder,
}

/// One SR in a directory.
pub type FileDriver = FolderDriver<Directory>;

impl Site for Directory {
    type Config = Config;

    const MANIFEST: Manifest = folder_manifest! {
        name: "file",
        title: "Directory on any file system: VHD trees and raw images",
        // It works on the files of whoever runs it; under another user id it could not.
        needs_root: true,
    };

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        let location: Utf8PathBuf = config.complete::<Config>()?.location;
        cx.blocking(move |_| {
            let mut items = vec![ProbeItem { complete: true, ..ProbeItem::default() }];
            items.extend(found(&location)?.into_iter().map(|sr| ProbeItem {
                complete: true,
                sr: Some(sr),
                ..ProbeItem::default()
            }));
            Ok(SrProbed { items })
        })
        .await
    }

    async fn open(config: Config, sr: SrUuid, cx: &Cx) -> Result<Self> {
        Ok(Self { folder: Folder::new(&config.location, sr, cx.host()) })
    }

    // A directory is there or not, so there is nothing to reach.
    async fn work<T: Send + 'static>(
        &self,
        cx: &Cx,
        _: Purpose,
        work: impl FnOnce(&Folder, &Cx) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let folder = self.folder.clone();
        cx.blocking(move |cx| work(&folder, cx)).await
    }
}

plugin_sdk::export_driver!(FileDriver);
