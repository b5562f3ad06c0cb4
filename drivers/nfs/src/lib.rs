//! Driver for a folder that an NFS server exports.
//!
//! An SR is the folder `<serverpath>/<sr uuid>` of the export, or with `nosubdir` the export itself;
//! what is in it, and what is done with it, is of [`vhd_folder`]. Here the export is mounted, once
//! on each host for each SR, and what may hang when the server does not answer is kept from those
//! who must answer.
//!
//! # A server that does not answer
//!
//! The mount is a hard one, so whoever reads or writes in it waits in the kernel until the server is
//! back. That is right for guests. An operation of the control plane
//!
//! 1. first asks the server for nothing, by a request of NFS on a connection of its own;
//! 2. looks whether the export is mounted in the kernel's list, not at the mount;
//! 3. works on a thread that it leaves behind when the time is over.
//!
//! So it ends with `unreachable`, at its deadline at the latest. A change that was under way then
//! goes on when the server is back; the same operation repeated finds it, as after a crash.
//!
//! Why not a soft mount: it ends the waiting for guests as well, with write errors, and only an
//! `fsync` tells that something was lost.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod config;
mod place;
mod probe;

use plugin_sdk::config::RawConfig;
use plugin_sdk::model::manifest::Isolation;
use plugin_sdk::model::sr::SrProbed;
use plugin_sdk::model::{Changed, SrUuid};
use plugin_sdk::{Cx, Manifest, Result, Utf8PathBuf, step};
use vhd_folder::{Folder, FolderDriver, Purpose, Site, folder_manifest};

use config::Server;
pub use config::{Config, Host, Options, Path, Version};
use place::Place;

/// The folder of one SR on a server.
#[derive(Debug)]
pub struct Export {
    place: Place,
    folder: Folder,
}

/// One SR on an NFS server.
pub type NfsDriver = FolderDriver<Export>;

impl Site for Export {
    type Config = Config;

    const MANIFEST: Manifest = folder_manifest! {
        name: "nfs",
        title: "NFS 3, 4, 4.1 and 4.2: VHD trees and raw images in an exported folder",
        // A thread that hangs in the kernel must not be one of the toolstack's process.
        isolation: Isolation::Process,
        // To mount.
        needs_root: true,
    };

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        probe::probe(&config, cx).await
    }

    async fn open(config: Config, sr: SrUuid, cx: &Cx) -> Result<Self> {
        let server = Server::new(&config.server, config.nfsversion, config.options.as_ref());
        let target: Utf8PathBuf = place::base().join(sr.to_string());
        let folder = if config.nosubdir.unwrap_or(false) {
            Folder::whole(&target, sr, cx.host())
        } else {
            Folder::new(&target, sr, cx.host())
        };
        Ok(Self { place: Place::new(server, &config.serverpath.0, target), folder })
    }

    async fn work<T: Send + 'static>(
        &self,
        cx: &Cx,
        purpose: Purpose,
        work: impl FnOnce(&Folder, &Cx) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.place.answers(cx).await?;
        let before = self.place.reach(cx).await?;
        if before == Changed::Created {
            step!("sr_attach.mounted");
        }
        let folder = self.folder.clone();
        let result = self.place.run(cx, move |cx| work(&folder, cx)).await;
        let gone = match purpose {
            Purpose::Destroy => result.is_ok(),
            // Whoever could not make or attach an SR has none, and will not detach it.
            Purpose::Create | Purpose::Attach => result.is_err() && before == Changed::Created,
            Purpose::Use => false,
        };
        if gone && let Err(error) = self.place.let_go(cx).await {
            plugin_sdk::tracing::warn!(%error, "an export stays mounted");
        }
        result
    }

    async fn let_go(&self, cx: &Cx) -> Result<Changed> {
        let changed = self.place.let_go(cx).await?;
        step!("sr_detach.unmounted");
        Ok(changed)
    }
}

plugin_sdk::export_driver!(NfsDriver);
