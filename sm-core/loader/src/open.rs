//! From a file to an opened driver.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sm_abi::DriverModule_Ref;
use sm_model::host::OpenRequest;
use sm_model::manifest::{Isolation, PanicStrategy};
use sm_model::{Error, Manifest, Result};

use crate::port::DriverPort;
use crate::process::{ProcessOptions, ProcessPort};
use crate::restart::RestartPolicy;
use crate::services::HostServices;
use crate::stage::{Staged, stage};
use crate::{InProcessPort, LoadError, background, child, dl};

/// Where a driver runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In this process: fastest; a crash of the driver is a crash of this process.
    InProcess,
    /// In a child process: a crash of the driver costs the calls in flight.
    Child,
}

/// How this host loads drivers.
#[derive(Clone, Debug)]
pub struct LoaderOptions {
    /// Where private copies of drivers are kept (`<state_dir>/drivers`).
    pub state_dir: PathBuf,
    /// The program `sm-driver-host`. If not given: `SM_DRIVER_HOST`, then beside this program,
    /// then in the directory above that.
    pub driver_host: Option<PathBuf>,
    /// How long a driver that was asked to stop may take to answer. Usually 5 s.
    pub grace: Duration,
    /// How child processes are run.
    pub child: ChildOptions,
}

impl LoaderOptions {
    /// The usual options.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            driver_host: None,
            grace: Duration::from_secs(5),
            child: ChildOptions::default(),
        }
    }
}

/// How child processes are run.
#[derive(Clone, Debug)]
pub struct ChildOptions {
    /// Most address space of a child, in bytes. Threads reserve stacks and arenas without using
    /// them, so this is far above what a driver uses: it ends a leak, it does not budget memory.
    pub memory_limit: Option<u64>,
    /// User and group of a driver that does not need root, if this process is root. Usually
    /// nobody (65534, the kernel's overflow id).
    pub run_as: Option<(u32, u32)>,
    /// Variables added to the environment of every child.
    pub environment: Vec<(OsString, OsString)>,
    /// Variables for the first child of each port only: crash points, for tests of recovery.
    pub first_environment: Vec<(OsString, OsString)>,
    /// When a child that died is started again.
    pub restart: RestartPolicy,
}

impl Default for ChildOptions {
    fn default() -> Self {
        Self {
            memory_limit: Some(4 << 30),
            run_as: Some((65534, 65534)),
            environment: Vec::new(),
            first_environment: Vec::new(),
            restart: RestartPolicy::default(),
        }
    }
}

/// Loads drivers. Keeps nothing between calls but its options: cheap to make, free to share.
#[derive(Clone, Debug)]
pub struct Loader {
    options: LoaderOptions,
}

impl Loader {
    /// A loader with these options.
    pub fn new(options: LoaderOptions) -> Self {
        Self { options }
    }

    /// The options.
    pub fn options(&self) -> &LoaderOptions {
        &self.options
    }

    /// Inspects, verifies and copies a driver. Blocks for as long as it takes to hash and copy the
    /// file if it is new, else for well under a millisecond.
    pub fn stage(&self, path: impl AsRef<Path>) -> Result<Staged, LoadError> {
        stage(path.as_ref(), &self.options.state_dir)
    }

    /// Loads a driver into this process without opening it. Runs the file's constructors.
    pub fn load(&self, path: impl AsRef<Path>) -> Result<DriverModule_Ref, LoadError> {
        let staged = self.stage(path)?;
        let manifest = &staged.inspection.manifest;
        check_placement(manifest, Placement::InProcess)?;
        dl::load(&staged.copy, manifest)
    }

    /// Opens the driver at `path` for one SR, or for a probe (a request without an SR).
    ///
    /// # Errors
    /// Those of [`LoadError`]; `config` if the device configuration does not fit the manifest,
    /// before any code of the driver has run; what the driver's own `open` says; and
    /// `deadline_exceeded` if it takes longer than the budget.
    pub async fn open(
        &self,
        path: impl AsRef<Path>,
        placement: Placement,
        request: OpenRequest,
        services: Arc<dyn HostServices>,
        budget: Duration,
    ) -> Result<Arc<dyn DriverPort>> {
        Ok(match placement {
            Placement::InProcess => {
                Arc::new(self.open_in_process(path, request, services, budget).await?)
            }
            Placement::Child => Arc::new(self.open_child(path, request, services, budget).await?),
        })
    }

    /// As [`Self::open`], in this process.
    pub async fn open_in_process(
        &self,
        path: impl AsRef<Path>,
        request: OpenRequest,
        services: Arc<dyn HostServices>,
        budget: Duration,
    ) -> Result<InProcessPort> {
        let deadline = Instant::now() + budget;
        let staged = self.stage_aside(path.as_ref()).await?;
        let manifest = &staged.inspection.manifest;
        check_open(manifest, &request, Placement::InProcess, services.as_ref())?;
        let module =
            blocking(move || dl::load(&staged.copy, &staged.inspection.manifest)).await??;
        let left = deadline.saturating_duration_since(Instant::now());
        InProcessPort::from_module(module, request, services, left, self.options.grace).await
    }

    /// As [`Self::open`], in a child process.
    pub async fn open_child(
        &self,
        path: impl AsRef<Path>,
        request: OpenRequest,
        services: Arc<dyn HostServices>,
        budget: Duration,
    ) -> Result<ProcessPort> {
        let deadline = Instant::now() + budget;
        let staged = self.stage_aside(path.as_ref()).await?;
        let manifest = &staged.inspection.manifest;
        check_open(manifest, &request, Placement::Child, services.as_ref())?;
        let options = ProcessOptions {
            program: child::locate(self.options.driver_host.as_deref())?,
            grace: self.options.grace,
            child: self.options.child.clone(),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        ProcessPort::open(staged, options, request, services, left).await
    }

    async fn stage_aside(&self, path: &Path) -> Result<Staged> {
        let (path, state) = (path.to_owned(), self.options.state_dir.clone());
        Ok(blocking(move || stage(&path, &state)).await??)
    }
}

/// Runs blocking work on a thread of the loader's own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    background::handle()?.spawn_blocking(work).await.map_err(|error| {
        Error::internal("loading a driver ended in a panic of this host").source(&error)
    })
}

/// All that can be said against an open before code of the driver runs: configuration first,
/// because that is what people get wrong most.
pub(crate) fn check_open(
    manifest: &Manifest,
    request: &OpenRequest,
    placement: Placement,
    services: &dyn HostServices,
) -> Result<()> {
    manifest.check_config(&request.device_config, request.sr.is_none())?;
    let offered = services.names();
    let missing: Vec<String> = manifest
        .services
        .iter()
        .filter(|name| !offered.contains(&name.as_str()))
        .cloned()
        .collect();
    if !missing.is_empty() {
        let offered = offered.iter().map(|name| (*name).to_owned()).collect();
        let driver = manifest.name.clone();
        return Err(LoadError::MissingServices { driver, missing, offered }.into());
    }
    check_placement(manifest, placement)?;
    Ok(())
}

fn check_placement(manifest: &Manifest, placement: Placement) -> Result<(), LoadError> {
    if placement == Placement::Child {
        return Ok(());
    }
    let driver = manifest.name.clone();
    match (manifest.panic, manifest.isolation) {
        (PanicStrategy::Abort, _) => Err(LoadError::PanicAbort { driver }),
        (_, Isolation::Process) => Err(LoadError::NeedsChild { driver }),
        (PanicStrategy::Unwind, Isolation::Any) => Ok(()),
    }
}
