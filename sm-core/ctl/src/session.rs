//! One run of the program: the storage manager, the wish, and the signals that end it.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use sm_core::{CancelFlag, Op, Placement, Sr, StorageManager};
use sm_model::manifest::{self, PanicStrategy};
use sm_model::{Error, Manifest, OperationId, VdiUuid};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::sr::SrCommand;
use crate::cli::{Command, Global, Isolation};
use crate::errors::{Failure, Result, Status};
use crate::output::Style;
use crate::shell;

/// What it takes to ask for the same again: the command as it was typed, and the operation id.
#[derive(Clone, Debug)]
pub(crate) struct Retry {
    argv: Vec<String>,
    id: OperationId,
    secrets: Vec<String>,
    resolved: Vec<(String, String)>,
}

impl Retry {
    pub(crate) fn new(argv: Vec<String>, id: OperationId) -> Self {
        Self { argv, id, secrets: Vec::new(), resolved: Vec::new() }
    }

    pub(crate) fn operation_id(&self) -> OperationId {
        self.id
    }

    /// The command to type. Names that were looked up are replaced by what they meant: after a
    /// rename or a destroy that did happen, the name would mean nothing, or another disk. A secret
    /// that stood on the command line is not repeated.
    pub(crate) fn command(&self) -> String {
        let mut words = self.argv.clone();
        for (selector, uuid) in &self.resolved {
            // Positional words only; a name may equal the value of an option.
            let found =
                (1..words.len()).find(|&n| words[n] == *selector && !words[n - 1].starts_with('-'));
            if let Some(n) = found {
                words[n].clone_from(uuid);
            }
        }
        for word in &mut words {
            let hidden = word
                .split_once('=')
                .filter(|(_, value)| self.secrets.iter().any(|secret| secret == value))
                .map(|(key, _)| format!("{key}=-"));
            if let Some(hidden) = hidden {
                *word = hidden;
            }
        }
        if !words.iter().any(|word| word.starts_with("--operation-id")) {
            words.insert(1.min(words.len()), format!("--operation-id={}", self.id));
        }
        shell::join(words.iter().map(String::as_str))
    }
}

/// [`Retry`], also seen by the thread that waits for signals.
#[derive(Clone, Debug)]
pub(crate) struct SharedRetry(Arc<Mutex<Retry>>);

impl SharedRetry {
    pub(crate) fn new(retry: Retry) -> Self {
        Self(Arc::new(Mutex::new(retry)))
    }

    pub(crate) fn get(&self) -> Retry {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Retry)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// One run of the program.
pub(crate) struct Session {
    pub(crate) manager: StorageManager,
    /// The wish of this command.
    pub(crate) op: Op,
    pub(crate) json: bool,
    /// For stdout.
    pub(crate) style: Style,
    /// As it was typed; [`Op::budget`] has a default.
    pub(crate) timeout: Option<Duration>,
    /// Name of the driver that was typed, if one was.
    pub(crate) driver: Option<String>,
    files: Vec<Utf8PathBuf>,
    retry: SharedRetry,
}

/// Where a driver runs if nobody says it.
fn placement(manifest: &Manifest) -> Placement {
    let may_run_here =
        manifest.isolation == manifest::Isolation::Any && manifest.panic == PanicStrategy::Unwind;
    if may_run_here && manifest.needs_root { Placement::InProcess } else { Placement::Child }
}

impl Session {
    /// Opens the state directory. No driver is looked for, let alone loaded, before it is needed.
    pub(crate) async fn open(global: &Global, retry: &SharedRetry) -> Result<Self> {
        let is_file =
            |word: &&String| word.contains('/') || Utf8Path::new(word).extension() == Some("so");
        let (files, mut names): (Vec<_>, Vec<_>) = global.driver.iter().partition(is_file);
        let driver = names.pop().cloned();
        if let Some(other) = names.first() {
            return Err(Failure::usage(format!(
                "--driver names two drivers: {other} and {}",
                driver.unwrap_or_default()
            )));
        }
        let files: Vec<Utf8PathBuf> = files.into_iter().map(Utf8PathBuf::from).collect();
        let builder = StorageManager::builder(&global.state_dir);
        let mut builder = match global.isolation {
            Isolation::Auto => builder.placement_by(placement),
            Isolation::Child => builder.placement(Placement::Child),
            Isolation::InProcess => builder.placement(Placement::InProcess),
        };
        for file in &files {
            builder = builder.driver(file);
        }
        for directory in driver_directories(&global.driver_dir) {
            builder = builder.driver_directory(directory);
        }
        let manager =
            builder.open().await.map_err(|error| state_error(&global.state_dir, error))?;
        let mut op = Op::new().with_id(retry.get().id);
        if let Some(budget) = global.timeout {
            op = op.with_budget(budget);
        }
        Ok(Self {
            manager,
            op,
            json: global.json,
            style: Style::choose(global.color, &std::io::stdout()),
            timeout: global.timeout,
            driver,
            files,
            retry: retry.clone(),
        })
    }

    /// From now on Ctrl-C and SIGTERM cancel the operation, and the second of them ends this
    /// process. A thread of its own listens: storage that hangs can block all others.
    pub(crate) fn watch_signals(&self) -> Result<()> {
        let cancel = self.op.cancel.clone();
        let retry = self.retry.clone();
        let quiet = self.json;
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
                if let Ok(runtime) = runtime {
                    runtime.block_on(listen(&cancel, &retry, quiet));
                }
            })
            .map_err(|error| Error::internal("no thread for signals").source(&error))?;
        Ok(())
    }

    /// A driver's name where none is needed would be ignored, and somebody meant something by it.
    pub(crate) fn refuse_idle_driver(&self, command: &Command) -> Result<()> {
        let needed = matches!(
            command,
            Command::Sr(
                SrCommand::Probe { .. } | SrCommand::Create { .. } | SrCommand::Introduce { .. }
            )
        );
        match &self.driver {
            Some(name) if !needed => Err(Failure::usage(format!(
                "--driver {name} is a driver's name, which this command does not need"
            ))
            .hint("an SR knows its driver; to add a driver's file, name its .so")),
            _ => Ok(()),
        }
    }

    /// The name of the driver for a new SR.
    pub(crate) fn driver_name(&self) -> Result<String> {
        if let Some(name) = &self.driver {
            return Ok(name.clone());
        }
        if let [file] = self.files.as_slice() {
            let inspection = sm_loader::inspect::inspect(file).map_err(Error::from)?;
            return Ok(inspection.manifest.name);
        }
        let names: Vec<String> =
            self.manager.drivers().into_iter().flatten().map(|found| found.manifest.name).collect();
        Err(Failure::usage("which driver is to serve the SR? --driver is missing")
            .hint(format!("drivers found: {}", crate::driver::name_list(names))))
    }

    /// What to type for `--driver` to mean this driver again.
    pub(crate) fn driver_word(&self, name: &str) -> String {
        match self.files.as_slice() {
            [file] if self.driver.is_none() => file.to_string(),
            _ => name.to_owned(),
        }
    }

    /// How this program was called.
    pub(crate) fn program(&self) -> String {
        self.retry.get().argv.first().cloned().unwrap_or_else(|| "smctl".to_owned())
    }

    /// The SR that is meant.
    pub(crate) fn sr(&self, selector: &str) -> Result<Sr> {
        let sr = self.manager.sr(selector)?;
        self.resolved(selector, sr.uuid().to_string());
        Ok(sr)
    }

    /// The SR that is meant by `--sr`, or the only one there is.
    pub(crate) fn sr_or_only(&self, selector: Option<&str>) -> Result<Sr> {
        if let Some(selector) = selector.filter(|selector| !selector.is_empty()) {
            return self.sr(selector);
        }
        let records = self.manager.srs()?;
        match records.as_slice() {
            [only] => Ok(self.manager.sr(&only.uuid.to_string())?),
            [] => Err(Error::not_found("there is no SR yet")
                .hint("make one with `smctl sr create`, or find one with `smctl sr probe`")
                .into()),
            several => {
                let list: Vec<String> = several
                    .iter()
                    .map(|sr| format!("  {}  {}", sr.uuid, crate::output::escape(&sr.name)))
                    .collect();
                Err(Failure::usage(format!(
                    "which SR is meant? There are {}:\n{}",
                    several.len(),
                    list.join("\n")
                ))
                .hint("say --sr SR, or set SMCTL_SR"))
            }
        }
    }

    /// The UUID of the VDI that is meant. A whole UUID is taken as it is: a retry must reach the
    /// driver even if the VDI is gone by now.
    pub(crate) async fn vdi(&self, sr: &Sr, selector: &str) -> Result<VdiUuid> {
        if let Ok(uuid) = selector.parse() {
            return Ok(uuid);
        }
        let uuid = sr.vdi(&self.op, selector).await?.uuid;
        self.resolved(selector, uuid.to_string());
        Ok(uuid)
    }

    fn resolved(&self, selector: &str, uuid: String) {
        self.retry.change(|retry| retry.resolved.push((selector.to_owned(), uuid)));
    }

    /// Never prints this text in a command to retry.
    pub(crate) fn hide(&self, secret: &str) {
        self.retry.change(|retry| retry.secrets.push(secret.to_owned()));
    }
}

async fn listen(cancel: &CancelFlag, retry: &SharedRetry, quiet: bool) {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals end the process, as they do by default.
        return;
    };
    let mut seen = false;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if seen {
            break;
        }
        seen = true;
        cancel.cancel();
        if !quiet && std::io::stderr().is_terminal() {
            // The terminal has just shown `^C`, perhaps within the bar.
            eprintln!("\nsmctl: cancelling; once more to stop without waiting");
        }
    }
    let failure = Failure::from(
        Error::new(sm_model::Kind::Unknown, "stopped without waiting for the answer")
            .hint("look before doing it again"),
    );
    failure.report(
        Style::choose(crate::cli::ColorWhen::Never, &std::io::stderr()),
        quiet,
        false,
        Some(&retry.get()),
    );
    std::process::exit(i32::from(Status::INTERRUPTED.0));
}

/// Where drivers are looked for.
fn driver_directories(wished: &[Utf8PathBuf]) -> Vec<Utf8PathBuf> {
    let wished: Vec<_> = wished.iter().filter(|path| !path.as_str().is_empty()).cloned().collect();
    if !wished.is_empty() {
        return wished;
    }
    let program = std::env::current_exe().ok().and_then(|path| Utf8PathBuf::try_from(path).ok());
    default_directories(program.as_deref().and_then(Utf8Path::parent))
}

/// The default: installed beside a program in `PREFIX/bin`, the drivers lie in
/// `PREFIX/lib/sm/drivers`; a program elsewhere (a build folder, an unpacked archive) has them in
/// its own folder or in `drivers` there.
fn default_directories(beside: Option<&Utf8Path>) -> Vec<Utf8PathBuf> {
    let mut found = Vec::new();
    if let Some(folder) = beside {
        if matches!(folder.file_name(), Some("bin" | "sbin")) {
            if let Some(prefix) = folder.parent() {
                found.push(prefix.join("lib/sm/drivers"));
            }
        } else {
            found.push(folder.to_owned());
            found.push(folder.join("drivers"));
        }
    }
    let system = Utf8PathBuf::from("/usr/lib/sm/drivers");
    if !found.contains(&system) {
        found.push(system);
    }
    found
}

fn state_error(folder: &Utf8Path, error: Error) -> Failure {
    let mut error = error.context("state_dir", folder);
    if error.kind == sm_model::Kind::Auth {
        error.message = format!("the state directory {folder} cannot be used: {}", error.message);
        return error.hint("run as root, or say --state-dir DIR (SMCTL_STATE_DIR)").into();
    }
    error.into()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn retry(words: &[&str]) -> Retry {
        let argv = words.iter().map(|word| (*word).to_owned()).collect();
        Retry::new(argv, OperationId(Uuid::from_u128(1)))
    }

    const ID: &str = "--operation-id=00000000-0000-0000-0000-000000000001";

    #[test]
    fn the_retry_means_the_same_object() {
        let mut retry = retry(&["smctl", "vdi", "rename", "old", "new name"]);
        retry.resolved.push(("old".into(), "uuid-of-old".into()));
        assert_eq!(retry.command(), format!("smctl {ID} vdi rename uuid-of-old 'new name'"));
    }

    #[test]
    fn the_value_of_an_option_is_not_taken_for_a_name_that_was_looked_up() {
        let mut retry = retry(&["smctl", "vdi", "clone", "--name", "a", "a"]);
        retry.resolved.push(("a".into(), "u".into()));
        assert_eq!(retry.command(), format!("smctl {ID} vdi clone --name a u"));
    }

    #[test]
    fn a_secret_is_not_repeated() {
        let mut retry = retry(&["smctl", "sr", "create", "password=canary", "target=a"]);
        retry.secrets.push("canary".into());
        assert_eq!(retry.command(), format!("smctl {ID} sr create password=- target=a"));
    }

    #[test]
    fn a_retry_of_a_retry_is_the_same_command() {
        let words = ["smctl", ID, "sr", "scan", "images"];
        assert_eq!(retry(&words).command(), words.join(" "));
    }

    #[test]
    fn drivers_lie_beside_the_program() {
        let paths = |folder: &str| {
            default_directories(Some(Utf8Path::new(folder)))
                .into_iter()
                .map(Utf8PathBuf::into_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(paths("/usr/bin"), ["/usr/lib/sm/drivers"]);
        assert_eq!(paths("/opt/sm/bin"), ["/opt/sm/lib/sm/drivers", "/usr/lib/sm/drivers"]);
        assert_eq!(
            paths("/src/target/debug"),
            ["/src/target/debug", "/src/target/debug/drivers", "/usr/lib/sm/drivers"]
        );
    }
}
