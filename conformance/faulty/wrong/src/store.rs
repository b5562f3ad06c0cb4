//! The folder of an SR: `<vdi>.raw` the image, `<vdi>.json` the record, which is written last and
//! removed first. `sr.json` tells that it is an SR. Images that are not there yet are `*.new`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use plugin_sdk::model::sr::SrUsage;
use plugin_sdk::prelude::*;
use serde_json::json;

use crate::disk::{Record, own_size_of};

/// VDIs on a page of a listing.
const PAGE: usize = 20;

/// The folder of one SR.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) folder: Utf8PathBuf,
    defect: String,
    secret: String,
    /// The host that it is opened on.
    pub(crate) host: String,
    /// Taken by whoever copies or removes, in the order that the defect says.
    pub(crate) locks: Arc<[plugin_sdk::tokio::sync::Mutex<()>; 2]>,
    /// What a driver should not have: state that a restart loses.
    pub(crate) memory: Arc<Mutex<Memory>>,
}

/// See [`Store::memory`].
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) names: BTreeMap<VdiUuid, String>,
    pub(crate) sizes: BTreeMap<VdiUuid, Bytes>,
    pub(crate) open: Vec<File>,
    pub(crate) answers: Vec<Vec<u8>>,
    pub(crate) owner: Option<std::thread::ThreadId>,
}

impl Store {
    pub(crate) fn new(
        location: &Utf8Path,
        sr: SrUuid,
        (defect, secret): (String, String),
        host: &HostId,
    ) -> Self {
        let (folder, host) = (location.join(sr.to_string()), host.0.clone());
        Self { folder, defect, secret, host, locks: Arc::default(), memory: Arc::default() }
    }

    /// Whether the driver has this defect.
    pub(crate) fn is(&self, defect: &str) -> bool {
        self.defect == defect
    }

    /// The wish that a call is about.
    pub(crate) fn wish(&self, cx: &Cx) -> OperationId {
        let [high, low] = cx.operation_id().halves();
        let elsewhere = cx.host().0.ends_with('b') && self.is("wish-of-a-host");
        OperationId::from_halves([high, low ^ u64::from(elsewhere)])
    }

    pub(crate) fn path(&self, vdi: VdiUuid, extension: &str) -> Utf8PathBuf {
        self.folder.join(format!("{vdi}.{extension}"))
    }

    pub(crate) fn create_sr(&self, request: &SrCreate) -> Result<Changed> {
        let record = self.folder.join("sr.json");
        if record.exists() {
            return Ok(Changed::Already);
        }
        std::fs::create_dir_all(&self.folder)?;
        files::sync_directory_of(&self.folder)?;
        let mut text = json!({"name": request.name, "description": request.description});
        if self.is("secret-on-disk") {
            text["login"] = self.secret.clone().into();
        }
        step!("sr_create.folder_made");
        files::replace(&record, text.to_string().as_bytes())?;
        Ok(Changed::Created)
    }

    pub(crate) fn recover(&self) -> Result<SrRecovered> {
        self.must_be()?;
        if self.is("process-left") {
            leave_a_process();
        }
        if self.is("recovery-quadratic") {
            self.each_beside_each()?;
        }
        let mut done = SrRecovered::default();
        let busy = self.folder.join("recovering.use");
        if self.is("recovery-once") && File::create_new(&busy).is_err() {
            return Ok(done);
        }
        for entry in self.folder.read_dir_utf8()? {
            let path = entry?.into_path();
            if self.is("wishes-expire") && path.extension() == Some("json") {
                self.forget_old_wishes(&path)?;
            }
            let name = path.file_name().unwrap_or_default().to_owned();
            let lone = path.extension() == Some("raw") && !path.with_extension("json").exists();
            let kept =
                self.is("half-clone") || self.is("stale-space") || self.is("destroy-leaves-image");
            let torn = self.is("damaged-forgotten")
                && path.extension() == Some("raw")
                && std::fs::read(path.with_extension("json"))
                    .is_ok_and(|text| serde_json::from_slice::<Record>(&text).is_err());
            let strange = self.is("tidy-recovery")
                && !matches!(path.extension(), Some("raw" | "json" | "new" | "use" | "writer"));
            let unlocked = self.is("recovery-unlocks") && path.extension() == Some("writer");
            let unfinished = path.extension() == Some("new")
                && (!self.is("leftovers-of-a-host") || name.contains(&self.host));
            if unfinished || lone && !kept || torn || strange || unlocked || self.is_idle(&name) {
                files::remove(&path)?;
                step!("recover.removed");
                done.removed.push(format!("{name}, which was never finished"));
            }
        }
        if self.is("recovery-once") {
            files::remove(&busy)?;
        }
        Ok(done)
    }

    /// Nothing is shared, so that nothing can be merged. The defect rewrites all the same.
    pub(crate) fn maintain(&self) -> Result<()> {
        self.must_be()?;
        for vdi in self.list()?.into_iter().filter(|_| self.is("maintained-in-place")) {
            let image = self.path(vdi, "raw");
            let content = std::fs::read(&image)?;
            File::create(&image)?;
            step!("sr_maintain.emptied");
            std::fs::write(&image, content)?;
        }
        Ok(())
    }

    fn must_be(&self) -> Result<()> {
        if self.folder.join("sr.json").exists() {
            return Ok(());
        }
        Err(Error::not_found(format!("there is no SR in {}", self.folder)))
    }

    pub(crate) fn destroy_sr(&self) -> Result<Changed> {
        if !self.folder.exists() {
            return Ok(Changed::Already);
        }
        if !self.list()?.is_empty() && !self.is("full-sr-destroyed") {
            return Err(Error::new(Kind::InUse, "the SR holds VDIs").legacy(39));
        }
        for entry in self.folder.read_dir_utf8()? {
            let path = entry?.into_path();
            let ours = matches!(
                path.extension(),
                Some("raw" | "json" | "new" | "pool" | "use" | "writer")
            );
            if ours && !(self.is("sr-destroy-leaves") && path.file_name() == Some("sr.json")) {
                files::remove(&path)?;
            }
        }
        // What is left in it is somebody's.
        let _ = std::fs::remove_dir(&self.folder);
        Ok(Changed::Modified)
    }

    pub(crate) fn scan(&self, cursor: Option<&str>) -> Result<SrScanned> {
        self.must_be()?;
        let mut all: Vec<VdiUuid> = self.list()?;
        all.sort();
        if self.is("scan-quadratic") {
            self.each_beside_each()?;
        }
        let from = cursor.and_then(|text| text.parse::<VdiUuid>().ok());
        let rest: Vec<VdiUuid> =
            all.into_iter().filter(|vdi| from.is_none_or(|from| *vdi > from)).collect();
        let more = rest.len() > PAGE;
        let mut page = SrScanned::default();
        for vdi in rest.into_iter().take(PAGE) {
            page.next = more.then(|| vdi.to_string());
            match self.read(vdi) {
                Ok(info) => page.vdis.push(info),
                // Destroyed meanwhile.
                Err(error) if error.kind == Kind::NotFound => {}
                Err(error) => {
                    page.vdis.push(quarantined_vdi(vdi, ImageFormat::Raw, &*error.message));
                }
            }
        }
        if self.is("lost-page") && cursor.is_some() {
            return Ok(SrScanned::default());
        }
        if self.is("foreign-sr") && cursor.is_none() {
            page.vdis.extend(self.of_others());
        }
        Ok(page)
    }

    /// What the defect does to find out whose snapshot a disk is.
    fn each_beside_each(&self) -> Result<()> {
        for _ in self.list()? {
            for other in self.list()? {
                drop(self.read(other)?);
            }
        }
        Ok(())
    }

    /// A disk of another SR beside this one.
    fn of_others(&self) -> Option<VdiInfo> {
        let others = self.folder.parent()?.read_dir_utf8().ok()?;
        let other = others.flatten().find(|entry| *entry.path() != self.folder)?;
        let files = other.path().read_dir_utf8().ok()?.flatten();
        let text = files.filter(|file| file.path().extension() == Some("json"));
        text.filter_map(|file| std::fs::read(file.path()).ok())
            .find_map(|text| serde_json::from_slice::<Record>(&text).ok())
            .map(|record| record.info)
    }

    pub(crate) fn stat_sr(&self) -> Result<SrInfo> {
        self.must_be()?;
        let text = std::fs::read(self.folder.join("sr.json"))?;
        let record: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let said = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
        let mut virtual_allocation = 0;
        let (mut usage, mut all) = (SrUsage::default(), 0);
        let vdis = self.list()?;
        for vdi in &vdis {
            let info = self.read(*vdi)?;
            virtual_allocation += info.virtual_size.0;
            usage.vdis.0 += info.physical_utilisation.0;
        }
        // What snapshots share has several names, and is there once.
        let mut shared = BTreeMap::new();
        for entry in self.folder.read_dir_utf8()? {
            let path = entry?.into_path();
            all += own_size_of(&path);
            if let Ok(facts) = path.metadata()
                && facts.nlink() > 1
            {
                shared.insert(facts.ino(), facts.blocks() * 512);
            }
        }
        usage.base_copies = Bytes(shared.into_values().sum());
        all += usage.base_copies.0;
        let told = usage.vdis.0 + usage.base_copies.0;
        usage.overhead = Bytes(all.saturating_sub(told));
        Ok(SrInfo {
            uuid: self
                .folder
                .file_name()
                .and_then(|name| name.parse().ok())
                .unwrap_or_else(SrUuid::random),
            name: said("name"),
            description: said("description"),
            physical_size: Bytes::gib(1024),
            physical_utilisation: Bytes(all),
            virtual_allocation: Bytes(virtual_allocation),
            vdis: vdis.len() as u64,
            quarantined: vec![],
            health: Health::Ok,
            usage: (!self.is("used-never-grows")).then_some(usage),
            warnings: vec![],
            paths: None,
        })
    }

    /// What the defect does with a secret that it has to give to a program.
    pub(crate) fn leave_a_word_in_tmp(&self) -> Result<()> {
        let path = Utf8PathBuf::from(format!("/tmp/faulty-{}.login", std::process::id()));
        std::fs::write(&path, &self.secret)?;
        files::remove(&path)?;
        Ok(())
    }

    /// What the defect does in a thread of a pool: the first one that comes owns the session.
    pub(crate) async fn on_one_thread(&self) -> Result<()> {
        let memory = Arc::clone(&self.memory);
        let mine = plugin_sdk::tokio::task::spawn_blocking(move || {
            let me = std::thread::current().id();
            std::thread::sleep(std::time::Duration::from_millis(5));
            let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
            *memory.owner.get_or_insert(me) == me
        });
        match mine.await {
            Ok(true) => Ok(()),
            _ => Err(Error::internal("the session is another thread's")),
        }
    }

    /// The VDIs that have a record.
    pub(crate) fn list(&self) -> Result<Vec<VdiUuid>> {
        let entries = self.folder.read_dir_utf8()?.collect::<io::Result<Vec<_>>>()?;
        Ok(entries
            .iter()
            .filter_map(|entry| entry.file_name().strip_suffix(".json"))
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    pub(crate) fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process that nobody waits for, and that ends by itself when nobody looks.
fn leave_a_process() {
    let mut command = std::process::Command::new("sleep");
    command.arg("20").stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let _ = command.stderr(std::process::Stdio::null()).spawn();
}

/// The SRs in a folder.
pub(crate) fn probe(location: &Utf8Path, makes: bool) -> Result<SrProbed> {
    if makes {
        std::fs::write(location.join(".probed"), "")?;
    }
    let mut items = vec![ProbeItem { complete: true, ..ProbeItem::default() }];
    for entry in location.read_dir_utf8()? {
        let path = entry?.into_path();
        let Some(uuid) = path.file_name().and_then(|name| name.parse().ok()) else { continue };
        if path.join("sr.json").exists() {
            let sr = FoundSr { uuid, name: String::new(), description: String::new() };
            items.push(ProbeItem { complete: true, sr: Some(sr), ..ProbeItem::default() });
        }
    }
    Ok(SrProbed { items })
}
