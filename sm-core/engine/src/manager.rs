//! The storage manager of one installation.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use sm_loader::discover::DiscoverError;
use sm_loader::inspect::Inspection;
use sm_loader::port::{self, DriverPort};
use sm_loader::{DriverModule_Ref, InProcessPort, Loader, LoaderOptions, Placement};
use sm_model::host::OpenRequest;
use sm_model::sr::{SrAttach, SrCreate, SrDestroy, SrProbe, SrProbed, SrRecovered, SrStat};
use sm_model::{DeviceConfig, Error, HostId, Kind, Manifest, Result, SrUuid, name};
use sm_step::step;
use tokio::sync::{Mutex, broadcast};

use crate::catalog::{Catalog, SrRecord};
use crate::caught::Caught;
use crate::events::Event;
use crate::journal;
use crate::locks::{Lock, Locks};
use crate::op::Op;
use crate::quiesced::Quiescing;
use crate::secrets::Secrets;
use crate::select::select;
use crate::services::SrServices;
use crate::serving::Datapaths;
use crate::sqlite::SqliteStore;
use crate::sr::Sr;

/// How long the end of a driver's session may take.
const CLOSE: Duration = Duration::from_secs(5);

/// How long a driver may go on after it was asked to end a call.
const GRACE: Duration = Duration::from_secs(5);

/// Events that a slow watcher may lag behind before it misses some.
const EVENTS: usize = 1024;

/// Which SR to create or introduce.
#[derive(Clone, Debug, Default)]
pub struct NewSr {
    /// The driver.
    pub driver: String,
    /// The UUID; one that follows from the operation id if absent.
    pub uuid: Option<SrUuid>,
    /// The name. Introduce takes the storage's, if the driver keeps one there.
    pub name: String,
    /// The description, as the name.
    pub description: String,
    /// How to reach the backend.
    pub device_config: DeviceConfig,
}

/// A driver that is linked into this program.
#[derive(Clone)]
pub struct StaticDriver {
    /// What it says of itself.
    pub manifest: Manifest,
    /// Its root module.
    pub module: DriverModule_Ref,
}

/// Sets up a [`StorageManager`].
pub struct Builder {
    state_dir: Utf8PathBuf,
    directories: Vec<Utf8PathBuf>,
    files: Vec<Utf8PathBuf>,
    modules: Vec<StaticDriver>,
    placement: Box<PlacementRule>,
    driver_host: Option<Utf8PathBuf>,
    datapath: Option<Utf8PathBuf>,
    freezer: Option<Utf8PathBuf>,
    host: Option<HostId>,
}

/// Says where a driver runs.
type PlacementRule = dyn Fn(&Manifest) -> Placement + Send + Sync;

/// The storage manager of one installation: drivers, SRs, jobs. Cheap to clone.
///
/// Several processes may have one over the same state directory at the same time.
#[derive(Clone)]
pub struct StorageManager {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) catalog: Catalog,
    pub(crate) locks: Locks,
    pub(crate) secrets: Secrets,
    pub(crate) boot: String,
    pub(crate) host: HostId,
    pub(crate) datapaths: Arc<Datapaths>,
    pub(crate) caught: Arc<Caught>,
    pub(crate) quiescing: Quiescing,
    loader: Loader,
    directories: Vec<Utf8PathBuf>,
    files: Vec<Utf8PathBuf>,
    modules: Vec<StaticDriver>,
    placement: Box<PlacementRule>,
    /// Sessions with drivers.
    sessions: std::sync::Mutex<HashMap<SrUuid, Slot>>,
    pub(crate) events: broadcast::Sender<Event>,
}

/// The session of one SR, if it is open. Locked while one is opened, so that two callers do not
/// open two; a driver that hangs in `open` holds up its own SR only.
type Slot = Arc<Mutex<Option<Arc<dyn DriverPort>>>>;

impl Builder {
    /// Looks for drivers (`*.so`) in this directory, after those named before.
    #[must_use]
    pub fn driver_directory(mut self, directory: impl Into<Utf8PathBuf>) -> Self {
        self.directories.push(directory.into());
        self
    }

    /// Uses this driver, before any in a directory.
    #[must_use]
    pub fn driver(mut self, file: impl Into<Utf8PathBuf>) -> Self {
        self.files.push(file.into());
        self
    }

    /// Uses a driver that is linked into this program.
    #[must_use]
    pub fn static_driver(mut self, driver: StaticDriver) -> Self {
        self.modules.push(driver);
        self
    }

    /// Where drivers run; a child process each, if not said otherwise.
    #[must_use]
    pub fn placement(self, placement: Placement) -> Self {
        self.placement_by(move |_| placement)
    }

    /// Where each driver runs, by what it says of itself.
    #[must_use]
    pub fn placement_by(
        mut self,
        rule: impl Fn(&Manifest) -> Placement + Send + Sync + 'static,
    ) -> Self {
        self.placement = Box::new(rule);
        self
    }

    /// The program that runs a driver in a child process; looked for beside this program if not
    /// named.
    #[must_use]
    pub fn driver_host(mut self, program: impl Into<Utf8PathBuf>) -> Self {
        self.driver_host = Some(program.into());
        self
    }

    /// The program that serves attached disks; looked for beside this program if not named.
    #[must_use]
    pub fn datapath(mut self, program: impl Into<Utf8PathBuf>) -> Self {
        self.datapath = Some(program.into());
        self
    }

    /// The program that holds a guest at rest; looked for beside this program if not named.
    #[must_use]
    pub fn freezer(mut self, program: impl Into<Utf8PathBuf>) -> Self {
        self.freezer = Some(program.into());
        self
    }

    /// What this host is called; its host name if not said.
    #[must_use]
    pub fn host(mut self, host: HostId) -> Self {
        self.host = Some(host);
        self
    }

    /// Opens the state directory, making it if it is not there.
    #[expect(clippy::unused_async, reason = "a store in a network will need it")]
    pub async fn open(self) -> Result<StorageManager> {
        let state = self.state_dir.as_std_path();
        std::fs::create_dir_all(state).map_err(|error| {
            Error::from(error)
                .context("path", &self.state_dir)
                .hint("choose a state directory that can be written")
        })?;
        let store = SqliteStore::open(&state.join("catalog.db"))?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(|error| Error::from(error).context("path", "boot_id"))?
            .trim()
            .to_owned();
        let host = self.host.unwrap_or_else(|| {
            HostId(rustix::system::uname().nodename().to_string_lossy().into_owned())
        });
        let options = LoaderOptions {
            driver_host: self.driver_host.map(Into::into),
            ..LoaderOptions::new(state)
        };
        Ok(StorageManager {
            inner: Arc::new(Inner {
                catalog: Catalog::new(Arc::new(store)),
                locks: Locks::new(&state.join("locks"))?,
                secrets: Secrets::new(&state.join("secrets"))?,
                boot,
                host,
                datapaths: Arc::new(Datapaths::new(state, self.datapath)),
                caught: Arc::default(),
                quiescing: Quiescing { program: self.freezer, folder: state.join("quiesce") },
                loader: Loader::new(options),
                directories: self.directories,
                files: self.files,
                modules: self.modules,
                placement: self.placement,
                sessions: std::sync::Mutex::default(),
                events: broadcast::channel(EVENTS).0,
            }),
        })
    }
}

impl Inner {
    fn slots(&self) -> MutexGuard<'_, HashMap<SrUuid, Slot>> {
        // Nothing that can panic runs while it is held.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageManager {
    /// A manager whose state is kept in `state_dir`.
    pub fn builder(state_dir: impl AsRef<Utf8Path>) -> Builder {
        Builder {
            state_dir: state_dir.as_ref().to_owned(),
            directories: Vec::new(),
            files: Vec::new(),
            modules: Vec::new(),
            placement: Box::new(|_| Placement::Child),
            driver_host: None,
            datapath: None,
            freezer: None,
            host: None,
        }
    }

    /// What happens from now on in this process.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// The drivers that were found, and the files that look like drivers and cannot be used. No
    /// code of any of them is run.
    pub fn drivers(&self) -> Vec<Result<Inspection, DiscoverError>> {
        let inner = &self.inner;
        let mut found: Vec<_> = inner
            .files
            .iter()
            .map(|file| sm_loader::inspect::inspect(file).map_err(DiscoverError::from))
            .collect();
        found.extend(sm_loader::discover(&inner.directories));
        found
    }

    /// The driver of that name.
    pub fn driver(&self, name: &str) -> Result<Inspection> {
        let mut names = Vec::new();
        for found in self.drivers().into_iter().flatten() {
            if found.manifest.name == name {
                return Ok(found);
            }
            names.push(found.manifest.name);
        }
        names.sort();
        names.dedup();
        let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Err(Error::not_found(format!("there is no driver {name:?}"))
            .hint(format!("drivers found: {found}; see smctl driver list")))
    }

    pub(crate) fn manifest(&self, name: &str) -> Result<Manifest> {
        match self.inner.modules.iter().find(|driver| driver.manifest.name == name) {
            Some(driver) => Ok(driver.manifest.clone()),
            None => Ok(self.driver(name)?.manifest),
        }
    }

    /// Looks for what a device configuration leaves open and for SRs that exist.
    pub async fn probe(&self, op: &Op, driver: &str, config: DeviceConfig) -> Result<SrProbed> {
        self.manifest(driver)?.check_config(&config, true)?;
        // A probe has no SR, so its secrets are not sealed; they go to the driver as they are.
        let port = self.open_driver(op, driver, None, config).await?;
        let found = port::call(port.as_ref(), op.call(sm_model::Operation::SrProbe), &SrProbe {});
        let found = found.await;
        port.close(CLOSE).await;
        found
    }

    /// Makes an SR on the backend and attaches it.
    pub async fn sr_create(&self, op: &Op, new: NewSr) -> Result<SrRecord> {
        name::check_name(&new.name)?;
        name::check_description(&new.description)?;
        let uuid = new.uuid.unwrap_or_else(|| op.id.derived("sr", 0).into());
        let _held = self.lock(op, &[Lock::operation(op.id), Lock::sr(uuid)]).await?;
        let request = SrCreate { name: new.name.clone(), description: new.description.clone() };
        if let Some(known) = self.record(uuid)? {
            // Only a replay of the very operation that made it may pass.
            if known.created_by == Some(op.id) && known.driver == new.driver {
                return Ok(known);
            }
            return Err(Error::new(Kind::Exists, format!("SR {uuid} is known already")).legacy(42));
        }
        let manifest = self.manifest(&new.driver)?;
        manifest.check_config(&new.device_config, false)?;
        let sealed = self.inner.secrets.seal(uuid, &manifest, &new.device_config)?;
        match self.create_on_backend(op, uuid, &new.driver, sealed, &request).await {
            Ok(record) => {
                let _ = self.inner.events.send(Event::SrAdded { sr: uuid });
                Ok(record)
            }
            Err(error) => {
                self.end_session(uuid).await;
                if !journal::leaves_doubt(&error) {
                    self.inner.secrets.remove(uuid)?;
                    journal::forget(&self.inner.catalog, op.id)?;
                }
                Err(error.operation("sr_create").context("sr", uuid))
            }
        }
    }

    async fn create_on_backend(
        &self,
        op: &Op,
        uuid: SrUuid,
        driver: &str,
        sealed: DeviceConfig,
        request: &SrCreate,
    ) -> Result<SrRecord> {
        // An answer without a record: the process died before it wrote the record. The driver
        // is asked again and finds the SR.
        let _ = journal::begin(&self.inner.catalog, op.id, uuid, request)?;
        step!("sr_create.intent_recorded");
        let port = self.open_session(op, uuid, driver, &sealed).await?;
        let call = op.call(sm_model::Operation::SrCreate);
        let created = port::call(port.as_ref(), call, request).await?;
        step!("sr_create.created_on_backend");
        let attach = op.part("attach");
        port::call(port.as_ref(), attach.call(sm_model::Operation::SrAttach), &SrAttach {}).await?;
        let record = SrRecord {
            uuid,
            driver: driver.to_owned(),
            name: request.name.clone(),
            description: request.description.clone(),
            device_config: created.device_config.clone(),
            attached: true,
            attached_in_boot: self.inner.boot.clone(),
            created: journal::now(),
            created_by: Some(op.id),
        };
        self.put_record(&record)?;
        step!("sr_create.recorded");
        journal::finish::<SrCreate>(&self.inner.catalog, op.id, &created)?;
        Ok(record)
    }

    /// Makes an SR that lies on the backend known here, and attaches it.
    pub async fn sr_introduce(&self, op: &Op, new: NewSr) -> Result<SrRecord> {
        let Some(uuid) = new.uuid else {
            return Err(Error::config("the UUID of the SR to introduce is needed")
                .hint("smctl sr probe shows the SRs that are there"));
        };
        let _held = self.lock(op, &[Lock::sr(uuid)]).await?;
        if let Some(known) = self.record(uuid)? {
            if known.driver == new.driver {
                return Ok(known);
            }
            return Err(Error::new(
                Kind::Exists,
                format!("SR {uuid} is known already, with driver {}", known.driver),
            )
            .legacy(42));
        }
        let manifest = self.manifest(&new.driver)?;
        manifest.check_config(&new.device_config, false)?;
        let sealed = self.inner.secrets.seal(uuid, &manifest, &new.device_config)?;
        let introduce = async {
            let port = self.open_session(op, uuid, &new.driver, &sealed).await?;
            port::call(port.as_ref(), op.call(sm_model::Operation::SrAttach), &SrAttach {}).await?;
            let stat = op.part("stat").call(sm_model::Operation::SrStat);
            let (name, description) = match port::call(port.as_ref(), stat, &SrStat {}).await {
                Ok(info) => (info.name, info.description),
                // A driver that keeps no name of the SR: it has the caller's.
                Err(error) if error.kind == Kind::Unsupported => {
                    (new.name.clone(), new.description.clone())
                }
                Err(error) => return Err(error),
            };
            let record = SrRecord {
                uuid,
                driver: new.driver.clone(),
                name,
                description,
                device_config: sealed.clone(),
                attached: true,
                attached_in_boot: self.inner.boot.clone(),
                created: journal::now(),
                created_by: None,
            };
            self.put_record(&record)?;
            Ok(record)
        };
        match introduce.await {
            Ok(record) => {
                let _ = self.inner.events.send(Event::SrAdded { sr: uuid });
                Ok(record)
            }
            Err(error) => {
                self.end_session(uuid).await;
                self.inner.secrets.remove(uuid)?;
                Err(Error::context(error, "sr", uuid))
            }
        }
    }

    /// The SRs this installation knows.
    pub fn srs(&self) -> Result<Vec<SrRecord>> {
        Ok(self.inner.catalog.list("sr/")?.into_iter().map(|(_, record)| record).collect())
    }

    /// The SR that `selector` means: its UUID, the beginning of it (4 characters or more), or its
    /// name.
    pub fn sr(&self, selector: &str) -> Result<Sr> {
        let records: Vec<SrRecord> = self.srs()?;
        let record = select("SR", selector, &records, |sr| sr.uuid.0, |sr| &sr.name)?.clone();
        Ok(Sr { manager: self.clone(), record })
    }

    /// Removes an SR, which must hold no VDI, from its backend and from this installation. A
    /// retry with the same operation id is success although the SR is not known any more.
    pub async fn sr_destroy(&self, op: &Op, selector: &str) -> Result<SrUuid> {
        match self.sr(selector) {
            Ok(sr) => {
                sr.destroy(op).await?;
                Ok(sr.uuid())
            }
            Err(error) => journal::answered::<SrDestroy>(&self.inner.catalog, op.id)?.ok_or(error),
        }
    }

    /// Ends the sessions with all drivers.
    pub async fn close(self) {
        let slots = std::mem::take(&mut *self.inner.slots());
        for slot in slots.into_values() {
            if let Some(port) = slot.lock().await.take() {
                port.close(CLOSE).await;
            }
        }
    }

    pub(crate) async fn lock(&self, op: &Op, locks: &[Lock]) -> Result<crate::locks::Held> {
        self.inner.locks.take(op, locks).await
    }

    pub(crate) fn record(&self, uuid: SrUuid) -> Result<Option<SrRecord>> {
        Ok(self.inner.catalog.get(&format!("sr/{uuid}"))?.map(|found| found.record))
    }

    pub(crate) fn put_record(&self, record: &SrRecord) -> Result<()> {
        self.inner.catalog.set(&format!("sr/{}", record.uuid), record, true)
    }

    /// Changes the record of an SR, if it is known, whatever others change in it meanwhile.
    pub(crate) fn change_record(&self, uuid: SrUuid, change: impl Fn(&mut SrRecord)) -> Result<()> {
        self.inner.catalog.update(&format!("sr/{uuid}"), true, |record: Option<SrRecord>| {
            let record = record.map(|mut record| {
                change(&mut record);
                record
            });
            Ok((record, ()))
        })
    }

    /// The session with the driver of an SR that is attached; attaches it first if this host has
    /// booted since.
    pub(crate) async fn session(
        &self,
        op: &Op,
        uuid: SrUuid,
    ) -> Result<(SrRecord, Arc<dyn DriverPort>)> {
        let Some(mut record) = self.record(uuid)? else {
            return Err(Error::not_found(format!("SR {uuid} is not known any more")).legacy(47));
        };
        if !record.attached {
            return Err(Error::new(
                Kind::Unreachable,
                format!("SR {uuid} is detached on this host"),
            )
            .retry(sm_model::Retry::Permanent)
            .legacy(47)
            .hint(format!("smctl sr attach {uuid}")));
        }
        let port = self.open_session(op, uuid, &record.driver, &record.device_config).await?;
        if record.attached_in_boot != self.inner.boot {
            self.attach_on_backend(op, port.as_ref()).await?;
            record.attached_in_boot.clone_from(&self.inner.boot);
            self.change_record(uuid, |known| {
                known.attached_in_boot.clone_from(&self.inner.boot);
            })?;
        }
        Ok((record, port))
    }

    pub(crate) async fn attach_on_backend(
        &self,
        op: &Op,
        port: &dyn DriverPort,
    ) -> Result<SrRecovered> {
        let attach = op.part("attach");
        port::call(port, attach.call(sm_model::Operation::SrAttach), &SrAttach {}).await
    }

    pub(crate) async fn open_session(
        &self,
        op: &Op,
        uuid: SrUuid,
        driver: &str,
        config: &DeviceConfig,
    ) -> Result<Arc<dyn DriverPort>> {
        let slot = Arc::clone(self.inner.slots().entry(uuid).or_default());
        let mut session = slot.lock().await;
        if let Some(port) = session.as_ref() {
            if port.health() != port::PortHealth::Poisoned {
                return Ok(Arc::clone(port));
            }
            tracing::warn!(sr = %uuid, "the driver's session no longer answers; opening a new one");
        }
        let port = self.open_driver(op, driver, Some(uuid), config.clone()).await?;
        *session = Some(Arc::clone(&port));
        Ok(port)
    }

    pub(crate) async fn end_session(&self, uuid: SrUuid) {
        let slot = self.inner.slots().remove(&uuid);
        if let Some(slot) = slot
            && let Some(port) = slot.lock().await.take()
        {
            port.close(CLOSE).await;
        }
    }

    async fn open_driver(
        &self,
        op: &Op,
        driver: &str,
        sr: Option<SrUuid>,
        device_config: DeviceConfig,
    ) -> Result<Arc<dyn DriverPort>> {
        let inner = &self.inner;
        let services = Arc::new(SrServices {
            sr: sr.unwrap_or(SrUuid(uuid::Uuid::nil())),
            catalog: inner.catalog.clone(),
            secrets: inner.secrets.clone(),
            boot: inner.boot.clone(),
            datapaths: Arc::clone(&inner.datapaths),
            caught: Arc::clone(&inner.caught),
        });
        let installation = inner.datapaths.installation();
        let request = OpenRequest { sr, device_config, host: inner.host.clone(), installation };
        if let Some(linked) = inner.modules.iter().find(|found| found.manifest.name == driver) {
            let port =
                InProcessPort::from_module(linked.module, request, services, op.budget, GRACE);
            return Ok(Arc::new(port.await?));
        }
        let found = self.driver(driver)?;
        let placement = (inner.placement)(&found.manifest);
        inner.loader.open(&found.path, placement, request, services, op.budget).await
    }
}
