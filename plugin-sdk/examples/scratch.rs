//! A complete driver: sparse raw files in a directory, `<location>/<sr>/<vdi>.raw`, and beside each
//! a `<vdi>.json` that says what it is. The `.json` is written last and removed first: without it
//! there is no VDI, and what a crash leaves is a stray file that `sr_attach` removes.
#![forbid(unsafe_code)]

use std::os::unix::fs::MetadataExt as _;
use std::{fs, io};

use plugin_sdk::prelude::*;

device_config! {
    /// Where the files lie.
    pub struct Config {
        /// Directory that holds the SRs.
        pub location: Utf8PathBuf,
    }
}

/// The directory of one SR: all that the driver remembers.
#[derive(Clone)]
pub struct Scratch(Utf8PathBuf);

impl Driver for Scratch {
    type Config = Config;
    const MANIFEST: Manifest = manifest! {
        name: "scratch",
        title: "Sparse raw files in a directory",
        operations: [sr_create, sr_attach, sr_detach, sr_scan, vdi_create, vdi_stat,
            vdi_destroy, vdi_attach, vdi_activate, vdi_deactivate, vdi_detach],
        features: &[Feature::new(feature::THIN), Feature::new(feature::RAW)],
    };

    async fn open(config: Config, sr: SrUuid, _: &Cx) -> Result<Self> {
        Ok(Self(config.location.join(sr.to_string())))
    }

    async fn sr_create(&self, cx: &Cx, _: SrCreate) -> Result<SrCreated> {
        let changed = if self.0.exists() { Changed::Already } else { Changed::Created };
        fs::create_dir_all(&self.0)?;
        files::sync_directory_of(&self.0)?;
        Ok(SrCreated { changed, device_config: cx.device_config().clone() })
    }

    async fn sr_attach(&self, _: &Cx, _: SrAttach) -> Result<SrRecovered> {
        let mut done = SrRecovered::default();
        for (vdi, kind) in self.list()? {
            let described = self.path(vdi, "json").exists();
            // Anything else is somebody's: an administrator's copy, say.
            if kind == "json.new" || (kind == "raw" && !described) {
                files::remove(&self.path(vdi, &kind))?;
                done.removed.push(format!("{vdi}.{kind}, which was never finished"));
            }
        }
        Ok(done)
    }

    async fn sr_detach(&self, _: &Cx, _: SrDetach) -> Result<SrDone> {
        Ok(SrDone { changed: Changed::Already })
    }

    async fn sr_scan(&self, _: &Cx, _: SrScan) -> Result<SrScanned> {
        let mut page = SrScanned::default();
        for (vdi, _) in self.list()?.into_iter().filter(|(_, kind)| kind == "json") {
            page.vdis.push(match self.read(vdi) {
                Err(e) if e.kind == Kind::Corrupt => {
                    quarantined_vdi(vdi, ImageFormat::Raw, &*e.message)
                }
                info => info?,
            });
        }
        Ok(page)
    }

    async fn vdi_create(&self, cx: &Cx, mut request: VdiCreate) -> Result<VdiDone> {
        let size = request.virtual_size.round_up(Bytes(512)).filter(|size| size.0 < 1 << 63);
        let size = size.ok_or_else(|| Error::new(Kind::Limit, "a file is smaller than 8 EiB"))?;
        request.virtual_size = size;
        let this = self.clone();
        cx.blocking(move |_| match this.read(request.uuid) {
            Ok(vdi) if vdi.virtual_size == size => {
                // The call that made it may have died before this.
                files::sync_directory_of(&this.path(vdi.uuid, "json"))?;
                Ok(VdiDone { changed: Changed::Already, vdi })
            }
            Ok(_) => Err(Error::new(Kind::Exists, "a VDI of this UUID has another size")),
            Err(error) if error.kind != Kind::NotFound => Err(error),
            Err(_) => {
                let vdi = new_vdi(request, ImageFormat::Raw);
                let image = fs::File::create(this.path(vdi.uuid, "raw"))?;
                image.set_len(vdi.virtual_size.0)?;
                image.sync_all()?;
                step!("vdi_create.image_made");
                let text = serde_json::json!(vdi).to_string();
                files::replace(&this.path(vdi.uuid, "json"), text.as_bytes())?;
                Ok(VdiDone { changed: Changed::Created, vdi })
            }
        })
        .await
    }

    async fn vdi_stat(&self, _: &Cx, request: VdiStat) -> Result<VdiInfo> {
        self.read(request.vdi)
    }

    async fn vdi_destroy(&self, _: &Cx, request: VdiDestroy) -> Result<VdiDestroyed> {
        let changed = files::remove(&self.path(request.vdi, "json"))?;
        step!("vdi_destroy.forgotten");
        files::remove(&self.path(request.vdi, "raw"))?;
        Ok(VdiDestroyed { changed })
    }

    async fn vdi_attach(&self, _: &Cx, request: VdiAttach) -> Result<VdiAttached> {
        let (path, format) = (self.path(self.read(request.vdi)?.uuid, "raw"), ImageFormat::Raw);
        Ok(VdiAttached {
            access: vec![Access::File {
                path,
                format,
                backing: vec![],
                changes: None,
                shut_out: None,
            }],
        })
    }

    async fn vdi_activate(&self, _: &Cx, _: VdiActivate) -> Result<VdiDatapathDone> {
        Ok(VdiDatapathDone::default())
    }

    async fn vdi_deactivate(&self, _: &Cx, _: VdiDeactivate) -> Result<VdiDatapathDone> {
        Ok(VdiDatapathDone::default())
    }

    async fn vdi_detach(&self, _: &Cx, _: VdiDetach) -> Result<VdiDatapathDone> {
        Ok(VdiDatapathDone::default())
    }
}

impl Scratch {
    fn path(&self, vdi: VdiUuid, extension: &str) -> Utf8PathBuf {
        self.0.join(format!("{vdi}.{extension}"))
    }

    /// The VDIs' files: whose, and what kind.
    fn list(&self) -> Result<Vec<(VdiUuid, String)>> {
        let split = |name: &str| name.split_once('.').map(|(v, k)| (v.parse(), k.to_owned()));
        let entries = self.0.read_dir_utf8()?.collect::<io::Result<Vec<_>>>()?;
        let files = entries.iter().filter_map(|entry| split(entry.file_name()));
        Ok(files.filter_map(|(vdi, kind)| Some((vdi.ok()?, kind))).collect())
    }

    fn read(&self, vdi: VdiUuid) -> Result<VdiInfo> {
        let damaged = |what: &str| Error::new(Kind::Corrupt, format!("{vdi}{what}"));
        let text = fs::read(self.path(vdi, "json")).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::not_found(format!("there is no VDI {vdi}")),
            _ => error.into(),
        })?;
        let info: VdiInfo = serde_json::from_slice(&text)
            .map_err(|error| damaged(".json cannot be read").source(&error))?;
        let image = self.path(vdi, "raw").metadata().map_err(|_| damaged(".raw is missing"))?;
        Ok(VdiInfo { physical_utilisation: Bytes(image.blocks() * 512), ..info })
    }
}

export_driver!(Scratch);
