//! A good driver of raw files, and on demand one that has a single defect.
//!
//! The key `defect` of its device configuration names a row of [`DEFECTS`]; without it the driver
//! keeps the contract, and a conformance suite must find nothing. It copies where an array would
//! share, so that each line is plain; what is wrong with it is at the place where a real driver had
//! it wrong, behind `self.is("name")`.

#![forbid(unsafe_code)]

mod defects;
mod disk;
mod holders;
mod store;
mod syncs;

use std::time::Duration;

use plugin_sdk::prelude::*;

pub use defects::{DEFECTS, Defect};
use store::Store;

device_config! {
    /// Where the files lie, and what is wrong.
    pub struct Config {
        /// Directory that holds the SRs.
        pub location: Utf8PathBuf,
        /// A name of the list of defects.
        pub defect: Option<String>,
        /// Given only to see where it goes.
        pub password: Option<Secret>,
    }
}

/// Ends with the process.
fn look_again_and_again(at: Utf8PathBuf) {
    std::thread::spawn(move || {
        loop {
            drop(at.metadata());
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

/// One SR.
#[derive(Clone)]
pub struct Faulty(Store);

impl Driver for Faulty {
    type Config = Config;
    const MANIFEST: Manifest = manifest! {
        name: "faulty",
        title: "Raw files, right or wrong as asked",
        operations: [sr_probe, sr_create, sr_attach, sr_detach, sr_destroy, sr_scan, sr_stat,
            sr_recover, sr_maintain, vdi_create, vdi_stat, vdi_update, vdi_resize, vdi_snapshot, vdi_clone,
            vdi_revert, vdi_destroy, vdi_attach, vdi_activate, vdi_deactivate, vdi_detach],
        features: &[
            Feature::new(feature::THIN),
            Feature::new(feature::RAW),
            Feature::new(feature::LIVE_RESIZE),
            Feature::new(feature::DATAPATH),
            Feature::limit(feature::MAX_VDI_SIZE, 64 << 30, "chosen, so that it can be tried"),
            Feature::limit(feature::MAX_CHAIN, 24, "chosen, so that it can be tried"),
        ],
        services: &["secret"],
    };

    async fn probe(config: RawConfig, _: &Cx) -> Result<SrProbed> {
        let config = config.complete::<Config>()?;
        store::probe(&config.location, config.defect.as_deref() == Some("probe-makes"))
    }

    async fn open(config: Config, sr: SrUuid, cx: &Cx) -> Result<Self> {
        let defect = config.defect.unwrap_or_default();
        if !defect.is_empty() && !DEFECTS.iter().any(|known| known.name == defect) {
            return Err(Error::config("the value of defect is no defect"));
        }
        let secret = config.password.map(|secret| secret.reveal().to_owned()).unwrap_or_default();
        if defect == "secret-in-log" {
            plugin_sdk::tracing::info!("logging in as admin:{secret}");
        }
        if defect == "looks-again" {
            look_again_and_again(config.location.clone());
        }
        Ok(Self(Store::new(&config.location, sr, (defect, secret), cx.host())))
    }

    async fn sr_create(&self, cx: &Cx, request: SrCreate) -> Result<SrCreated> {
        let changed = self.0.create_sr(&request)?;
        Ok(SrCreated { changed, device_config: cx.device_config().clone() })
    }

    async fn sr_attach(&self, _: &Cx, _: SrAttach) -> Result<SrRecovered> {
        if self.0.is("file-in-tmp") {
            self.0.leave_a_word_in_tmp()?;
        }
        self.0.recover()
    }

    async fn sr_recover(&self, _: &Cx, _: SrRecover) -> Result<SrRecovered> {
        self.0.recover()
    }

    async fn sr_maintain(&self, _: &Cx, _: SrMaintain) -> Result<SrMaintained> {
        self.0.maintain()?;
        Ok(SrMaintained {
            changed: Changed::Already,
            collected: vec![],
            merged: vec![],
            skipped: vec![],
            planned: vec![],
            remaining: 0,
            bytes_copied: Bytes(0),
            freed: Bytes(0),
            finished: true,
            stopped: None,
        })
    }

    async fn sr_detach(&self, _: &Cx, _: SrDetach) -> Result<SrDone> {
        Ok(SrDone { changed: Changed::Already })
    }

    async fn sr_destroy(&self, _: &Cx, _: SrDestroy) -> Result<SrDone> {
        Ok(SrDone { changed: self.0.destroy_sr()? })
    }

    async fn sr_scan(&self, _: &Cx, request: SrScan) -> Result<SrScanned> {
        self.0.scan(request.cursor.as_deref())
    }

    async fn sr_stat(&self, _: &Cx, _: SrStat) -> Result<SrInfo> {
        if self.0.is("thread-bound") {
            self.0.on_one_thread().await?;
        }
        self.0.stat_sr()
    }

    async fn vdi_create(&self, cx: &Cx, request: VdiCreate) -> Result<VdiDone> {
        cx.check()?;
        if self.0.is("slow-create") {
            plugin_sdk::tokio::time::sleep(Duration::from_millis(1200)).await;
        }
        if self.0.is("panic-in-create") && request.virtual_size.0 == 1 << 63 {
            return Err(broken());
        }
        if self.0.is("hang-in-create") && request.sharable {
            std::future::pending::<()>().await;
        }
        if self.0.is("shell-in-name") {
            let mut command = std::process::Command::new("sh");
            let _ = command.arg("-c").arg(format!("logger={}", request.name)).status();
        }
        if self.0.is("abort-in-create") && request.virtual_size.0 > 1 << 62 {
            std::process::abort();
        }
        self.0.create(&request)
    }

    async fn vdi_stat(&self, _: &Cx, request: VdiStat) -> Result<VdiInfo> {
        if self.0.is("keeps-answers") {
            self.0.memory().answers.push(vec![1; 64 << 10]);
        }
        self.0.read(request.vdi)
    }

    async fn vdi_update(&self, _: &Cx, request: VdiUpdate) -> Result<VdiDone> {
        self.0.update(&request)
    }

    async fn vdi_resize(&self, cx: &Cx, request: VdiResize) -> Result<VdiDone> {
        self.0.resize(self.0.wish(cx), &request)
    }

    async fn vdi_snapshot(&self, cx: &Cx, request: VdiSnapshot) -> Result<VdisDone> {
        let _held = self.0.crosswise(0).await;
        for spec in &request.snapshots {
            self.0.stop_writing(cx, spec.vdi).await?;
        }
        let done = self.0.snapshot(self.0.wish(cx), &request)?;
        for spec in &request.snapshots {
            self.0.go_on(cx, spec.vdi).await?;
        }
        Ok(done)
    }

    async fn vdi_clone(&self, cx: &Cx, request: VdiClone) -> Result<VdiDone> {
        if !self.0.is("clone-goes-on") {
            self.0.stop_writing(cx, request.vdi).await?;
        }
        let done = self.0.clone_vdi(self.0.wish(cx), &request)?;
        self.0.go_on(cx, request.vdi).await?;
        Ok(done)
    }

    async fn vdi_revert(&self, cx: &Cx, request: VdiRevert) -> Result<VdiDone> {
        self.0.revert(self.0.wish(cx), &request)
    }

    async fn vdi_destroy(&self, _: &Cx, request: VdiDestroy) -> Result<VdiDestroyed> {
        let _held = self.0.crosswise(1).await;
        Ok(VdiDestroyed { changed: self.0.destroy(request.vdi)? })
    }

    async fn vdi_attach(&self, _: &Cx, request: VdiAttach) -> Result<VdiAttached> {
        let info = self.0.read(request.vdi)?;
        let writes = request.mode == AttachMode::ReadWrite;
        if writes && info.read_only && !self.0.is("snapshot-writable") {
            let text = format!("VDI {} is read-only", request.vdi);
            return Err(Error::new(Kind::Unsupported, text).context("vdi", request.vdi));
        }
        self.0.attach(request.vdi, writes)
    }

    async fn vdi_activate(&self, _: &Cx, request: VdiActivate) -> Result<VdiDatapathDone> {
        self.0.activate(&request).await?;
        Ok(VdiDatapathDone::default())
    }

    async fn vdi_deactivate(&self, _: &Cx, request: VdiDeactivate) -> Result<VdiDatapathDone> {
        self.0.deactivate(request.vdi)?;
        Ok(VdiDatapathDone::default())
    }

    async fn vdi_detach(&self, _: &Cx, request: VdiDetach) -> Result<VdiDatapathDone> {
        self.0.detach(request.vdi)?;
        Ok(VdiDatapathDone::default())
    }
}

#[expect(clippy::panic, reason = "that is what is asked for")]
pub(crate) fn broken() -> Error {
    panic!("a size that nobody thought of")
}

export_driver!(Faulty);
