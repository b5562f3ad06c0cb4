//! What all checks of a run share: the driver's file, the configuration, the folder, the journal.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sm_loader::{Inspection, Loader, LoaderOptions, ProcessPort, RestartPolicy};
use sm_model::host::{OpenRequest, SECRET_PREFIX};
use sm_model::{HostId, SrUuid, VdiUuid};
use uuid::Uuid;

use crate::config::{CANARY, Config};
use crate::inventory::{Inventory, Kernel, Several, Simulator, Tree, Volumes};
use crate::services::Services;
use crate::{Error, RunOptions};

/// How long a driver that was asked to stop may take, by the contract (DRV-TIME-2).
const GRACE: Duration = Duration::from_secs(5);

/// Least time for an open, which starts a process and loads a library: no measure of the driver.
const OPENING: Duration = Duration::from_secs(60);

/// Where private copies of the driver lie, in a run's own folder.
const STATE: &str = "state";

/// Name of the journal in a run's folder.
pub(crate) const JOURNAL: &str = "owned.jsonl";

/// Where a driver's process writes which steps it passes, outside of its backend.
const STEPS: &str = "steps";

/// Least characters of a secret that is looked for.
const TELLING: usize = 12;

/// The user that a driver without rights runs as; the loader's own choice.
const NOBODY: u32 = 65534;

/// Something that a run has made, and may remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "own", rename_all = "snake_case")]
pub(crate) enum Owned {
    /// The run itself, first of all.
    Run { driver: PathBuf, config: PathBuf },
    /// A folder.
    Folder { path: PathBuf },
    /// An SR, before it is made.
    Sr { sr: SrUuid, config: BTreeMap<String, String> },
    /// A VDI, before it is made.
    Vdi { sr: SrUuid, vdi: VdiUuid },
    /// An SR is gone, with all that was in it.
    Gone { sr: SrUuid },
}

/// See the module.
pub(crate) struct Bench {
    pub(crate) config: Config,
    pub(crate) driver: PathBuf,
    pub(crate) inspection: Inspection,
    /// SHA-256 of the driver's file.
    pub(crate) sha256: String,
    pub(crate) seed: u64,
    /// Folder of this run; what the driver needs lies in `place`.
    pub(crate) scratch: PathBuf,
    pub(crate) place: PathBuf,
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) canary: String,
    /// A sequence that is repeated, in the place of drawn ones.
    pub(crate) ops: Option<Vec<crate::checks::sequences::Step>>,
    /// The SR that is kept for the next check (`suite.keep-sr`), with what its backend held when it
    /// was empty.
    pub(crate) kept: Mutex<Option<Kept>>,
    journal: Mutex<Option<File>>,
}

/// An SR that is there and empty.
pub(crate) struct Kept {
    pub(crate) sr: SrUuid,
    pub(crate) empty: Option<BTreeSet<String>>,
}

impl Bench {
    pub(crate) fn new(options: &RunOptions, seed: u64) -> Result<Self, Error> {
        let inspection = sm_loader::inspect(&options.driver)
            .map_err(|error| Error::Driver(sm_model::Error::from(error)))?;
        let journal = match &options.out {
            Some(out) => {
                fs::create_dir_all(out).map_err(|error| Error::file(out, &error))?;
                let path = out.join(JOURNAL);
                let file = OpenOptions::new().create(true).append(true).open(&path);
                Some(file.map_err(|error| Error::file(&path, &error))?)
            }
            None => None,
        };
        let scratch = options.scratch.join(format!("smc-{}", Uuid::new_v4().simple()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| Error::file(Path::new("a runtime"), &error))?;
        let mut bench = Self {
            config: options.config.clone(),
            driver: options.driver.clone(),
            place: scratch.join("place"),
            canary: format!("canary-{}", Uuid::new_v4().simple()),
            inspection,
            sha256: String::new(),
            seed,
            scratch,
            runtime,
            kept: Mutex::new(None),
            journal: Mutex::new(journal),
            ops: None,
        };
        let config = options.config_path.clone().unwrap_or_default();
        bench.own(&Owned::Run { driver: options.driver.clone(), config })?;
        bench.own(&Owned::Folder { path: bench.scratch.clone() })?;
        bench.make_scratch().map_err(|error| Error::file(&bench.scratch, &error))?;
        bench.refuse_foreign()?;
        // To hash and copy the file takes as long as it takes; no call's time is used for it.
        let loader = Loader::new(LoaderOptions::new(bench.scratch.join(STATE)));
        let staged = loader.stage(&bench.driver).map_err(|error| Error::Driver(error.into()))?;
        bench.sha256 = staged.sha256;
        Ok(bench)
    }

    /// A folder that the driver's user can write, and nobody else.
    fn make_scratch(&self) -> std::io::Result<()> {
        fs::create_dir_all(&self.scratch)?;
        fs::set_permissions(&self.scratch, fs::Permissions::from_mode(0o711))?;
        for folder in [&self.place, &self.scratch.join(STEPS)] {
            fs::create_dir(folder)?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
            if rustix::process::geteuid().is_root() && !self.inspection.manifest.needs_root {
                std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY))?;
            }
        }
        Ok(())
    }

    /// A place with things in it that this run has not made is somebody's.
    fn refuse_foreign(&self) -> Result<(), Error> {
        if self.config.backend.foreign {
            return Ok(());
        }
        let place = match (&self.config.backend.simulator, self.directory()) {
            (Some(address), _) => PathBuf::from(address),
            (None, Some(directory)) => directory,
            (None, None) => PathBuf::from("LVM of this host"),
        };
        // An empty folder is no leak, but is somebody's.
        let folder = self.directory().map(|directory| {
            let entries = fs::read_dir(&directory).map_err(|error| Error::file(&directory, &error));
            Ok::<_, Error>(entries?.flatten().map(|entry| entry.path()).next())
        });
        let first = if let Some(first) = folder.transpose()? {
            first
        } else {
            let found = self.backend().map(|backend| backend.look()).transpose();
            let found = found.map_err(Error::Backend)?.unwrap_or_default();
            found.into_iter().next().map(PathBuf::from)
        };
        first.map_or(Ok(()), |holds| Err(Error::Foreign { directory: place, holds }))
    }

    /// The folder that the driver keeps everything in, if the configuration names it.
    pub(crate) fn directory(&self) -> Option<PathBuf> {
        self.config.directory(&self.place)
    }

    /// The file for the steps that the driver's process passes.
    pub(crate) fn steps_log(&self) -> PathBuf {
        self.scratch.join(STEPS).join("log")
    }

    /// Files of the driver's, in its folder: what of the backend can be damaged and read.
    pub(crate) fn own_files(&self) -> Result<BTreeSet<String>, String> {
        self.directory().map_or(Ok(BTreeSet::new()), |directory| Tree(directory).look())
    }

    /// The folder in which files must lie that the driver names, if the configuration says so.
    pub(crate) fn images(&self) -> Option<PathBuf> {
        self.config.images(&self.place)
    }

    /// The simulated array that is the backend, if it is one.
    pub(crate) fn simulator(&self) -> Option<Simulator> {
        self.config.backend.simulator.clone().map(Simulator)
    }

    /// What of the backend can be looked at.
    fn backend(&self) -> Option<Box<dyn Inventory>> {
        if let Some(address) = &self.config.backend.simulator {
            return Some(Box::new(Simulator(address.clone())));
        }
        if self.config.backend.volume_groups {
            return Some(Box::new(Volumes));
        }
        Some(Box::new(Tree(self.directory()?)))
    }

    /// What of the backend can be looked at, and of this host if it is the run's alone.
    pub(crate) fn inventory(&self) -> Option<Box<dyn Inventory>> {
        let backend = self.backend()?;
        if self.config.backend.host {
            return Some(Box::new(Several(vec![backend, Box::new(Kernel)])));
        }
        Some(backend)
    }

    /// Notes what is about to be made, so that a later `cleanup` finds it.
    pub(crate) fn own(&self, what: &Owned) -> Result<(), Error> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = journal.as_mut() else { return Ok(()) };
        let path = Path::new(JOURNAL);
        let mut line = serde_json::to_string(what).map_err(|e| Error::json(path, &e))?;
        line.push('\n');
        file.write_all(line.as_bytes()).map_err(|error| Error::file(path, &error))
    }

    /// The device configuration of an SR, or of a second one beside it, with references in the place
    /// of secrets.
    pub(crate) fn device_config(&self, second: bool) -> BTreeMap<String, String> {
        let mut config = self.config.device_config(&self.place, second);
        for key in self.config.secrets.keys() {
            config.insert(key.clone(), reference(key));
        }
        config
    }

    /// A secret's text, with what was made up for it.
    fn secret(&self, text: &str) -> String {
        text.replace(CANARY, &self.canary)
    }

    /// Texts of secrets that are long enough to be nothing else where they are found.
    pub(crate) fn secrets(&self) -> Vec<String> {
        let plain = self.config.device_config.values();
        let known: Vec<&String> = plain.chain(self.config.second_sr.values()).collect();
        let texts = self.config.secrets.values().map(|text| self.secret(text));
        texts.filter(|text| text.len() >= TELLING && !known.contains(&text)).collect()
    }

    /// A text without secrets.
    pub(crate) fn hide(&self, text: &str) -> String {
        let hidden = |text: String, secret: &String| text.replace(secret.as_str(), "***");
        self.secrets().iter().fold(text.to_owned(), hidden)
    }

    /// New services: those of a host that has not met the SR.
    pub(crate) fn services(&self) -> Arc<Services> {
        let secrets = self.config.secrets.iter();
        let secrets = secrets.map(|(key, text)| (reference(key), self.secret(text))).collect();
        Arc::new(Services::new(secrets, self.images()))
    }

    /// Opens the driver in a process of its own.
    pub(crate) fn open(
        &self,
        opening: &Opening<'_>,
        services: &Arc<Services>,
    ) -> sm_model::Result<ProcessPort> {
        self.open_on(&self.runtime, opening, services)
    }

    /// As [`Bench::open`], under another runtime.
    pub(crate) fn open_on(
        &self,
        runtime: &tokio::runtime::Runtime,
        opening: &Opening<'_>,
        services: &Arc<Services>,
    ) -> sm_model::Result<ProcessPort> {
        let mut options = LoaderOptions::new(self.scratch.join(STATE));
        options.grace = GRACE;
        options.child.restart = RestartPolicy { deaths: 0, ..Self::restart() };
        options.child.first_environment = opening
            .environment
            .iter()
            .map(|(name, value)| ((*name).into(), value.into()))
            .collect();
        let request = OpenRequest {
            sr: opening.sr,
            device_config: opening
                .device_config
                .clone()
                .unwrap_or_else(|| self.device_config(false)),
            host: HostId(opening.host.into()),
            installation: String::new(),
        };
        let services = Arc::clone(services);
        let budget = self.config.call_budget().max(OPENING);
        let loader = Loader::new(options);
        runtime.block_on(loader.open_child(&self.driver, request, services, budget))
    }

    /// Checks kill drivers for a living: the next child comes at once.
    fn restart() -> RestartPolicy {
        RestartPolicy {
            backoff_min: Duration::ZERO,
            backoff_max: Duration::ZERO,
            ..RestartPolicy::default()
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// How the driver is opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Opening<'a> {
    /// For an SR, or for a probe.
    pub(crate) sr: Option<SrUuid>,
    /// Another host than the usual.
    pub(crate) host: &'a str,
    /// Variables of its first process.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Another configuration than that of the run.
    pub(crate) device_config: Option<BTreeMap<String, String>>,
}

/// What stands in the configuration for a secret.
fn reference(key: &str) -> String {
    format!("{SECRET_PREFIX}conformance/{key}")
}
