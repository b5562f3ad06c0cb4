//! What the loader's tests share: building fixtures, and driving a future without a runtime.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use sm_loader::{Call, DriverPort, Loader, LoaderOptions, NoServices, Placement};
use sm_model::host::OpenRequest;
use sm_model::{DeviceConfig, Error, HostId, Operation, OperationId, Result, SrUuid};
use tempfile::TempDir;

/// Long enough that only a hang gets there.
pub(crate) const AMPLE: Duration = Duration::from_secs(60);

/// How a fixture is built.
#[derive(Clone, Copy, Default)]
pub(crate) struct Variant {
    /// The folder in `conformance/abi-fixtures`.
    pub(crate) name: &'static str,
    /// A cargo feature of it.
    pub(crate) feature: Option<&'static str>,
    /// A cargo profile of it, other than `dev`.
    pub(crate) profile: Option<&'static str>,
}

/// The `.so` of a fixture, built if it is not.
pub(crate) fn fixture(name: &'static str) -> PathBuf {
    variant(Variant { name, ..Variant::default() })
}

/// As [`fixture`], in a variant.
pub(crate) fn variant(variant: Variant) -> PathBuf {
    built(variant, None)
}

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// `target`, as seen from `target/debug/deps/this_test`.
fn target() -> PathBuf {
    profile_directory().parent().unwrap().to_owned()
}

/// `target/debug`.
fn profile_directory() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned()
}

fn run(mut command: Command) {
    let output = command.output().expect("cargo can be started");
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn built(variant: Variant, rustc: Option<(&Path, &str)>) -> PathBuf {
    let Variant { name, feature, profile } = variant;
    let mut directory = target().join("abi-fixtures");
    if let Some((_, release)) = rustc {
        directory = directory.join(format!("rustc-{release}"));
    }
    std::fs::create_dir_all(&directory).unwrap();
    // Variants have the same file name; whoever builds copies before the next one builds.
    let lock = File::create(directory.join("lock")).unwrap();
    lock.lock().unwrap();
    let manifest = here().join("abi-fixtures").join(name).join("Cargo.toml");
    let mut command = lab::cargo();
    command.args(["build", "--quiet", "--locked", "--manifest-path"]).arg(&manifest);
    command.arg("--target-dir").arg(&directory);
    if let Some(feature) = feature {
        command.args(["--features", feature]);
    }
    if let Some(profile) = profile {
        command.args(["--profile", profile]);
    }
    if let Some((rustc, _)) = rustc {
        command.env("RUSTC", rustc).env_remove("RUSTUP_TOOLCHAIN");
    }
    run(command);
    let built = directory.join(profile.unwrap_or("debug"));
    if name == "future-host" {
        return built.join(name);
    }
    let built = built.join(format!("libfixture_{}.so", name.replace('-', "_")));
    let kept = directory.join(format!(
        "{name}{}{}.so",
        feature.map(|feature| format!("+{feature}")).unwrap_or_default(),
        profile.map(|profile| format!("@{profile}")).unwrap_or_default(),
    ));
    if std::fs::read(&kept).ok() != std::fs::read(&built).ok() {
        let new = kept.with_extension("new");
        std::fs::copy(&built, &new).unwrap();
        std::fs::rename(&new, &kept).unwrap();
    }
    kept
}

/// The fixture `v1-0`, built by another release of the compiler than this test.
pub(crate) fn by_another_compiler() -> (PathBuf, String) {
    let release = |rustc: &Path| -> Option<String> {
        let output = Command::new(rustc).arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        text.split_whitespace().nth(1).map(str::to_owned)
    };
    let ours = release(Path::new(&std::env::var_os("RUSTC").unwrap_or("rustc".into())))
        .expect("the compiler of this test can be asked for its release");
    let mut candidates = vec![PathBuf::from("/usr/bin/rustc")];
    let toolchains = Command::new("rustup").args(["toolchain", "list", "--quiet"]).output();
    for toolchain in
        toolchains.map(|output| output.stdout).unwrap_or_default().split(|b| *b == b'\n')
    {
        let toolchain = String::from_utf8_lossy(toolchain).trim().to_owned();
        let which =
            Command::new("rustup").args(["which", "--toolchain", &toolchain, "rustc"]).output();
        if let Ok(output) = which {
            candidates.push(String::from_utf8_lossy(&output.stdout).trim().into());
        }
    }
    let other = candidates
        .into_iter()
        .filter_map(|rustc| release(&rustc).map(|release| (rustc, release)))
        .find(|(_, release)| *release != ours);
    let Some((rustc, other)) = other else {
        panic!(
            "this test needs a second compiler beside {ours}: install the Debian package \
             rustc-web (/usr/bin/rustc), or another toolchain with rustup"
        );
    };
    let variant = Variant { name: "v1-0", ..Variant::default() };
    (built(variant, Some((&rustc, &other))), other)
}

/// The program `sm-driver-host` of this tree, built if it is not.
pub(crate) fn driver_host() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            if let Some(path) = std::env::var_os("SM_DRIVER_HOST") {
                return path.into();
            }
            let profile = profile_directory();
            let mut command = lab::cargo();
            command.args(["build", "--quiet", "--package", "sm-driver-host", "--manifest-path"]);
            command.arg(here().join("../Cargo.toml")).arg("--target-dir").arg(target());
            match profile.file_name().unwrap().to_str().unwrap() {
                "debug" => {}
                other => _ = command.args(["--profile", other]),
            }
            run(command);
            profile.join("sm-driver-host")
        })
        .clone()
}

/// The `.so` of a driver of this workspace that is a dev-dependency of this package.
pub(crate) fn driver(library: &str) -> PathBuf {
    let path = profile_directory().join("deps").join(format!("lib{library}.so"));
    assert!(path.exists(), "{} was not built as a dev-dependency", path.display());
    path
}

/// A loader whose state lies in a directory of its own.
pub(crate) struct Bench {
    /// The state directory.
    pub(crate) state: TempDir,
    /// The loader.
    pub(crate) loader: Loader,
}

/// A loader with the usual options.
pub(crate) fn bench() -> Bench {
    bench_with(|_| {})
}

/// A loader with other options.
pub(crate) fn bench_with(change: impl FnOnce(&mut LoaderOptions)) -> Bench {
    let state = tempfile::tempdir().unwrap();
    let mut options = LoaderOptions::new(state.path());
    options.driver_host = Some(driver_host());
    options.grace = Duration::from_millis(200);
    change(&mut options);
    Bench { loader: Loader::new(options), state }
}

impl Bench {
    /// Opens a driver without services.
    pub(crate) fn open(
        &self,
        path: impl AsRef<Path>,
        placement: Placement,
    ) -> Result<Arc<dyn DriverPort>> {
        wait(self.loader.open(path, placement, open_request(), Arc::new(NoServices), AMPLE))
    }

    /// The error of an open that must fail.
    pub(crate) fn refusal(&self, path: impl AsRef<Path>, placement: Placement) -> Error {
        match self.open(path, placement) {
            Ok(_) => panic!("the driver was opened"),
            Err(error) => error,
        }
    }
}

/// Opens some SR.
pub(crate) fn open_request() -> OpenRequest {
    OpenRequest {
        sr: Some(SrUuid::random()),
        device_config: DeviceConfig::new(),
        host: HostId("host".into()),
        installation: String::new(),
    }
}

/// A call with ample time.
pub(crate) fn call(operation: Operation) -> Call {
    Call::new(operation, OperationId::random(), AMPLE)
}

/// Tells the fixture `panicky` what to do, in a mutating call.
pub(crate) fn mutate(port: &dyn DriverPort, command: &str) -> Result<String> {
    tell(port, call(Operation::VdiCreate), command)
}

/// As [`mutate`], in a reading call.
pub(crate) fn read(port: &dyn DriverPort, command: &str) -> Result<String> {
    tell(port, call(Operation::SrScan), command)
}

/// As [`mutate`], in any call.
pub(crate) fn tell(port: &dyn DriverPort, call: Call, command: &str) -> Result<String> {
    wait(port.call(call, command.into())).map(|reply| String::from_utf8(reply).unwrap())
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Drives a future on this thread, which has no runtime of any kind.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < AMPLE, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether there is a process of that number that is not a zombie.
pub(crate) fn is_alive(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| {
        !stat.rsplit(')').next().unwrap_or_default().trim().starts_with(['Z', 'X'])
    })
}

/// Whether there is a process of that number, zombies included.
pub(crate) fn is_there(process: u32) -> bool {
    Path::new(&format!("/proc/{process}")).exists()
}
