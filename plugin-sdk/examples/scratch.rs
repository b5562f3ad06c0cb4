//! A complete driver: sparse raw files in a directory, `<location>/<sr>/<vdi>.raw`, and beside each
//! a `<vdi>.json` that says what it is. The `.json` is written last and removed first: without it
//! there is no VDI, and what a crash leaves is a stray file that `sr_attach` removes.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;

use plugin_sdk::model::manifest::feature;
use plugin_sdk::model::{
    Access, Bytes, Changed, ImageFormat, Kind, SrUuid, VdiUuid, sr::*, vdi::*,
};
use plugin_sdk::{
    Cx, Driver, Error, Feature, Manifest, Result, Utf8PathBuf, files, manifest, step,
};

plugin_sdk::device_config! {
    /// Where the files lie.
    pub struct Config {
        /// Directory that holds the SRs.
        pub location: Utf8PathBuf,
    }
}

/// The directory of one SR. The driver remembers nothing else.
#[derive(Clone)]
struct Scratch(Utf8PathBuf);

impl Driver for Scratch {
    type Config = Config;
    const MANIFEST: Manifest = manifest! {
        name: "scratch",
        title: "Sparse raw files in a directory",
        operations: [sr_create, sr_attach, sr_detach, sr_destroy, sr_scan, vdi_create, vdi_stat,
            vdi_resize, vdi_destroy, vdi_attach, vdi_activate, vdi_deactivate, vdi_detach],
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
        let mut removed = Vec::new();
        for (vdi, name) in self.files()? {
            if name.ends_with(".new") || !self.path(vdi, "json").exists() {
                fs::remove_file(self.0.join(&name))?;
                removed.push(format!("{name}, which was never finished"));
            }
        }
        Ok(SrRecovered { removed, ..SrRecovered::default() })
    }

    async fn sr_detach(&self, _: &Cx, _: SrDetach) -> Result<SrDone> {
        Ok(SrDone { changed: Changed::Already })
    }

    async fn sr_destroy(&self, _: &Cx, _: SrDestroy) -> Result<SrDone> {
        let removed = removed(fs::remove_dir(&self.0));
        Ok(SrDone {
            changed: removed.map_err(|error| match error.kind() {
                ErrorKind::DirectoryNotEmpty => {
                    Error::new(Kind::InUse, "the SR holds VDIs").legacy(39)
                }
                _ => error.into(),
            })?,
        })
    }

    async fn sr_scan(&self, _: &Cx, _: SrScan) -> Result<SrScanned> {
        let all = self.files()?.into_iter().filter(|(_, name)| name.ends_with(".json"));
        let vdis = all.map(|(vdi, _)| {
            self.read(vdi).unwrap_or_else(|error| {
                // Never left out: a toolstack would forget the disk.
                VdiInfo { health: Health::Quarantined { reason: error.to_string() }, ..blank(vdi) }
            })
        });
        Ok(SrScanned { vdis: vdis.collect(), next: None })
    }

    async fn vdi_create(&self, cx: &Cx, r: VdiCreate) -> Result<VdiDone> {
        let size = r.virtual_size.round_up(Bytes(512));
        let size = size.ok_or_else(|| Error::new(Kind::Limit, "no disk is that large"))?;
        match self.read(r.uuid) {
            Ok(vdi) if vdi.virtual_size == size => Ok(VdiDone { changed: Changed::Already, vdi }),
            Ok(_) => Err(Error::new(Kind::Exists, "a VDI of this UUID has another size")),
            Err(error) if error.kind != Kind::NotFound => Err(error),
            Err(_) => {
                let (name, description, keys) = (r.name, r.description, r.keys);
                let (vdi_type, sharable, incomplete) = (r.vdi_type, r.sharable, r.incomplete);
                let info = VdiInfo {
                    virtual_size: size,
                    name,
                    description,
                    keys,
                    vdi_type,
                    sharable,
                    incomplete,
                    ..blank(r.uuid)
                };
                self.write(cx, info, Changed::Created).await
            }
        }
    }

    async fn vdi_stat(&self, _: &Cx, r: VdiStat) -> Result<VdiInfo> {
        self.read(r.vdi)
    }

    async fn vdi_resize(&self, cx: &Cx, r: VdiResize) -> Result<VdiDone> {
        let vdi = self.read(r.vdi)?;
        match r.virtual_size.round_up(Bytes(512)) {
            Some(size) if size == vdi.virtual_size => {
                Ok(VdiDone { changed: Changed::Already, vdi })
            }
            Some(virtual_size) if virtual_size > vdi.virtual_size => {
                self.write(cx, VdiInfo { virtual_size, ..vdi }, Changed::Modified).await
            }
            _ => Err(Error::new(Kind::Limit, "a VDI does not become smaller").legacy(79)),
        }
    }

    async fn vdi_destroy(&self, _: &Cx, r: VdiDestroy) -> Result<VdiDestroyed> {
        let changed = removed(fs::remove_file(self.path(r.vdi, "json")))?;
        step!("vdi_destroy.forgotten");
        removed(fs::remove_file(self.path(r.vdi, "raw")))?;
        Ok(VdiDestroyed { changed })
    }

    async fn vdi_attach(&self, _: &Cx, r: VdiAttach) -> Result<VdiAttached> {
        let (path, format) = (self.path(self.read(r.vdi)?.uuid, "raw"), ImageFormat::Raw);
        Ok(VdiAttached { access: vec![Access::File { path, format, backing: vec![] }] })
    }

    async fn vdi_activate(&self, _: &Cx, r: VdiActivate) -> Result<VdiDatapathDone> {
        self.read(r.vdi).map(|_| VdiDatapathDone {})
    }

    async fn vdi_deactivate(&self, _: &Cx, _: VdiDeactivate) -> Result<VdiDatapathDone> {
        Ok(VdiDatapathDone {})
    }

    async fn vdi_detach(&self, _: &Cx, _: VdiDetach) -> Result<VdiDatapathDone> {
        Ok(VdiDatapathDone {})
    }
}

impl Scratch {
    fn path(&self, vdi: VdiUuid, extension: &str) -> Utf8PathBuf {
        self.0.join(format!("{vdi}.{extension}"))
    }

    fn files(&self) -> Result<Vec<(VdiUuid, String)>> {
        let names = self.0.read_dir_utf8()?.map(|entry| Ok(entry?.file_name().to_owned()));
        let names = names.collect::<io::Result<Vec<_>>>()?.into_iter();
        Ok(names.filter_map(|name| Some((name.split('.').next()?.parse().ok()?, name))).collect())
    }

    fn read(&self, vdi: VdiUuid) -> Result<VdiInfo> {
        let text = fs::read(self.path(vdi, "json")).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::not_found(format!("there is no VDI {vdi}")),
            _ => error.into(),
        })?;
        let info: VdiInfo = serde_json::from_slice(&text)
            .map_err(|e| Error::new(Kind::Corrupt, format!("{vdi}.json is damaged")).source(&e))?;
        let used = Bytes(self.path(vdi, "raw").metadata()?.blocks() * 512);
        Ok(VdiInfo { physical_utilisation: used, ..info })
    }

    /// The image first, what is said about it second: a stated size is there.
    async fn write(&self, cx: &Cx, info: VdiInfo, changed: Changed) -> Result<VdiDone> {
        let this = self.clone();
        cx.blocking(move |_| {
            let image = this.path(info.uuid, "raw");
            let image = File::options().write(true).create(true).truncate(false).open(image)?;
            image.set_len(info.virtual_size.0)?;
            image.sync_all()?;
            step!("vdi.image_is_there");
            let text = serde_json::to_vec(&info).map_err(io::Error::from)?;
            files::replace(&this.path(info.uuid, "json"), &text)?;
            Ok(VdiDone { changed, vdi: this.read(info.uuid)? })
        })
        .await
    }
}

fn removed(result: io::Result<()>) -> io::Result<Changed> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Changed::Already),
        result => result.map(|()| Changed::Modified),
    }
}

fn blank(uuid: VdiUuid) -> VdiInfo {
    serde_json::from_value(serde_json::json!({})).unwrap()
}

plugin_sdk::export_driver!(Scratch);
