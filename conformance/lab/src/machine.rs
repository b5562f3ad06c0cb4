//! What a lab needs of the machine, and where it is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::error::{Doing, Error, Result};
use crate::wire;

/// Where the packages of the lab are unpacked, if it is not beside what cargo builds.
const TOOLS: &str = "LAB_TOOLS";

/// What is needed to boot a guest.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) agent: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) modules: PathBuf,
    /// Programs that the machine does not have.
    pub(crate) tools: Option<PathBuf>,
}

impl Machine {
    /// Where consoles are kept: beside what cargo builds, so that `cargo clean` takes them.
    pub(crate) fn logs(&self) -> PathBuf {
        let target = self.agent.parent().and_then(Path::parent);
        target.map_or_else(std::env::temp_dir, Path::to_owned).join("lab/logs")
    }

    /// Looks once in a process.
    pub(crate) fn get() -> Result<Self> {
        static FOUND: OnceLock<std::result::Result<Machine, (String, String)>> = OnceLock::new();
        let found = FOUND.get_or_init(|| match look() {
            Ok(machine) => Ok(machine),
            Err(Error::Unavailable { reason, hint }) => Err((reason, hint)),
            Err(other) => Err((other.to_string(), String::new())),
        });
        found.clone().map_err(|(reason, hint)| Error::Unavailable { reason, hint })
    }
}

fn unavailable(reason: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Unavailable { reason: reason.into(), hint: hint.into() }
}

fn look() -> Result<Machine> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(unavailable("user-mode Linux runs on x86-64 only", "use such a machine"));
    }
    if !rustix::process::geteuid().is_root() {
        let reason =
            "a guest runs behind a read-only view of the machine, which only root can make";
        return Err(unavailable(reason, "run as root"));
    }
    let agent = agent()?;
    let tools = tools(&agent);
    let setup = "cargo xtask setup";
    let root = |path: &str| {
        let places = tools.iter().map(PathBuf::as_path).chain([Path::new("/")]);
        places.map(|place| place.join(path)).find(|path| path.exists())
    };
    let kernel = root("usr/bin/linux.uml")
        .ok_or_else(|| unavailable("there is no user-mode Linux (linux.uml)", setup))?;
    let modules = root("usr/lib/uml/modules").and_then(|folder| {
        let versions = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
        versions.filter(|path| path.join("modules.dep").is_file()).max()
    });
    let modules = modules.ok_or_else(|| {
        unavailable("user-mode Linux has no modules in usr/lib/uml/modules", setup)
    })?;
    for path in [&agent, &kernel, &modules].into_iter().chain(&tools) {
        crate::disk::plain(path)?;
    }
    Ok(Machine { agent, kernel, modules, tools })
}

/// `<target>/<profile>/lab-agent`; `<target>` is where `cargo xtask` unpacks, too.
fn tools(agent: &Path) -> Option<PathBuf> {
    let beside = || Some(agent.parent()?.parent()?.join("lab/tools"));
    let folder = std::env::var_os(TOOLS).map(PathBuf::from).or_else(beside)?;
    folder.is_dir().then_some(folder)
}

/// The helper program of this library. Cargo does not build it for the tests of another package,
/// and one from older sources would misunderstand us.
fn agent() -> Result<PathBuf> {
    let program = std::env::current_exe().doing(|| "find this program".into())?;
    let is_profile = |folder: &&Path| folder.join("deps").is_dir() || folder.join("build").is_dir();
    let folder = program.ancestors().skip(1).take(2).find(is_profile);
    let folder = folder.ok_or_else(|| {
        unavailable(
            format!("{} was not built by cargo, so there is no lab-agent", program.display()),
            "start the lab by cargo",
        )
    })?;
    let agent = folder.join("lab-agent");
    if current(&agent) {
        return Ok(agent);
    }
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "-p", "lab", "--bin", "lab-agent"]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    if folder.file_name().is_some_and(|name| name == "release") {
        cargo.arg("--release");
    }
    let output = cargo.output().doing(|| "run cargo".into())?;
    if current(&agent) {
        return Ok(agent);
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(unavailable(
        format!("{} is not built from the sources of the lab: {said}", agent.display()),
        "cargo build -p lab",
    ))
}

/// The cargo that this program was started by, for a build within a test.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_package(&mut command);
    command
}

/// What cargo says of the package that it runs is not for other commands: some build scripts
/// (`ring`'s) look at it, and a cargo within a test would compile all that needs them again for each
/// package.
pub fn forget_package(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
}

fn current(agent: &Path) -> bool {
    let output = Command::new(agent).arg("--identity").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == wire::identity().as_bytes())
}

/// Memory that a new guest could get, in MiB.
pub(crate) fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kilobytes >> 10)
}

/// Where a lab has its files: in memory if there is room, because guests flush their disks and
/// the machine's own would make every test as slow as it is.
pub(crate) fn base() -> PathBuf {
    const ROOM: u64 = 4 << 30;
    let memory = Path::new("/dev/shm");
    let roomy =
        rustix::fs::statvfs(memory).is_ok_and(|found| found.f_bavail * found.f_frsize > ROOM);
    if roomy { memory.to_owned() } else { std::env::temp_dir() }
}
