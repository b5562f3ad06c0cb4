//! An installation of its own for each test: state directory, storage, and the real program.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

/// The two places where a driver can run.
pub(crate) const PLACES: [&str; 2] = ["child", "in-process"];

pub(crate) const SMCTL: &str = env!("CARGO_BIN_EXE_smctl");

/// The folder of the programs of this build.
fn programs() -> &'static Path {
    Path::new(SMCTL).parent().unwrap()
}

/// The file driver that cargo has built for these tests: the newest of the places it uses.
pub(crate) fn driver_file() -> PathBuf {
    let name = "libsm_driver_file.so";
    [programs().join("deps").join(name), programs().join(name)]
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .unwrap_or_else(|| panic!("cargo has built no {name} beside {SMCTL}"))
        .1
}

/// The programs that run drivers and serve disks. Cargo builds no programs of other packages for a
/// test, so it is asked to.
pub(crate) fn driver_host() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let packages = ["--package", "sm-driver-host", "--package", "datapath"];
        let words = [&["--bins"], &packages[..], &["--package", "sm-quiesce"]].concat();
        build(&words, "sm-driver-host")
    })
}

/// What cargo is asked to build beside the tests.
pub(crate) fn build(words: &[&str], file: &str) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--offline"]).args(words);
    cargo.arg("--target-dir").arg(programs().parent().unwrap());
    if programs().ends_with("release") {
        cargo.arg("--release");
    }
    let built = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status();
    let file = programs().join(file);
    assert!(file.exists(), "no {}: cargo says {built:?}", file.display());
    file
}

/// An installation.
pub(crate) struct World {
    pub(crate) folder: TempDir,
    place: &'static str,
}

impl Drop for World {
    /// What a test leaves attached would be served for ever.
    fn drop(&mut self) {
        let installations = std::fs::read_dir(self.folder.path().join("run")).into_iter().flatten();
        let disks = installations.flat_map(|entry| std::fs::read_dir(entry.unwrap().path()));
        for disk in disks.flatten() {
            let process = std::fs::read(disk.unwrap().path().join("process")).unwrap_or_default();
            let process: Value = serde_json::from_slice(&process).unwrap_or_default();
            if let Some(pid) = process["pid"].as_u64() {
                let _ = Command::new("kill").arg(pid.to_string()).status();
            }
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl World {
    /// Without an SR.
    pub(crate) fn empty(place: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("images")).unwrap();
        Self { folder, place }
    }

    /// With an SR called `images`.
    pub(crate) fn with_sr(place: &'static str) -> Self {
        let world = Self::empty(place);
        world.ok(&["sr", "create", "--driver", "file", "--name", "images", &world.location()]);
        world
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// The device configuration.
    pub(crate) fn location(&self) -> String {
        format!("location={}", self.path("images"))
    }

    /// The program, ready to run in a clean environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(SMCTL);
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LANG", "C.UTF-8")
            .env("SMCTL_STATE_DIR", self.folder.path().join("state"))
            .env("SMCTL_ISOLATION", self.place)
            .env("SMCTL_DRIVER_DIR", driver_file().parent().unwrap())
            .env("SM_RUN_DIR", self.folder.path().join("run"))
            .env("SM_DATAPATH", driver_host().with_file_name("sm-datapath"))
            .env("SM_FREEZER", driver_host().with_file_name("sm-freezer"))
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        // Of the folder `deps` only the driver is of interest.
        if driver_file().parent().unwrap().ends_with("deps") {
            let drivers = self.folder.path().join("drivers");
            if !drivers.exists() {
                std::fs::create_dir(&drivers).unwrap();
                std::os::unix::fs::symlink(driver_file(), drivers.join("libsm_driver_file.so"))
                    .unwrap();
            }
            command.env("SMCTL_DRIVER_DIR", drivers);
        }
        if self.place == "child" {
            command.env("SM_DRIVER_HOST", driver_host());
        }
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    /// Runs what must succeed; answers stdout without the last line feed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.status, 0, "{args:?}: {ran:?}");
        ran.stdout.strip_suffix('\n').unwrap_or(&ran.stdout).to_owned()
    }

    /// Runs what must succeed, with `--json`; answers the document.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(args);
        let ran = self.run(&all);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{args:?}: {}", ran.stdout);
        serde_json::from_str(&ran.stdout)
            .unwrap_or_else(|e| panic!("{args:?}: {e}\n{}", ran.stdout))
    }

    /// Runs what must fail with this status; answers stderr. With `--json` it fails alike, and
    /// stderr is a document that says the same.
    pub(crate) fn fails(&self, args: &[&str], status: i32) -> String {
        let ran = self.run(args);
        assert_eq!((ran.status, ran.stdout.as_str()), (status, ""), "{args:?}: {ran:?}");
        let mut all = vec!["--json"];
        all.extend(args);
        let documented = self.run(&all);
        assert_eq!(documented.status, status, "{args:?}: {documented:?}");
        let document: Value = serde_json::from_str(&documented.stderr)
            .unwrap_or_else(|e| panic!("{args:?}: {e}\n{}", documented.stderr));
        assert_eq!(document["exit_status"], status, "{args:?}");
        assert!(document["error"]["message"].is_string(), "{args:?}: {document}");
        ran.stderr
    }
}
