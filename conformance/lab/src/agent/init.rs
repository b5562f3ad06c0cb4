//! First process of a guest: makes the root, then stays as the parent of orphans.
//!
//! The kernel mounts the machine's own root through `hostfs`, read-only. Over it comes a layer in
//! memory that takes what the guest writes, and, between the two, the folder of programs that the
//! machine does not have.

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use lab::wire::Spec;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_move};
use rustix::system::RebootCommand;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(crate) fn run(folder: &Path) -> ExitCode {
    // What is printed comes out at the console, which the runner shows if the boot fails.
    match begin(folder) {
        Ok(()) => println!("lab: the agent ended"),
        Err(error) => println!("lab: the guest does not come up: {error}"),
    }
    power_off()
}

/// Switches the guest off. What file systems hold in memory is written first.
pub(crate) fn power_off() -> ExitCode {
    rustix::fs::sync();
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    ExitCode::FAILURE
}

fn begin(folder: &Path) -> io::Result<()> {
    attach("proc", "/proc", "proc", "")?;
    // By a mount of its own, because the kernel has covered the machine's /dev, where it may lie.
    attach("none", "/mnt", "hostfs", &folder.display().to_string())?;
    let spec: Spec = serde_json::from_slice(&std::fs::read("/mnt/spec")?)?;
    rustix::mount::unmount("/mnt", UnmountFlags::empty())?;
    let modules = Modules::read(&spec.modules)?;
    modules.load("overlay")?;
    attach("memory", "/mnt", "tmpfs", "size=75%,mode=755")?;
    for folder in ["/mnt/changes", "/mnt/work", "/mnt/root", "/mnt/tools"] {
        std::fs::create_dir(folder)?;
    }
    let below = if let Some(tools) = &spec.tools {
        // A second mount, because no layer of an overlay may lie inside another.
        attach("none", "/mnt/tools", "hostfs", &tools.display().to_string())?;
        "/mnt/tools:/"
    } else {
        "/"
    };
    let layers = format!("lowerdir={below},upperdir=/mnt/changes,workdir=/mnt/work");
    attach("overlay", "/mnt/root", "overlay", &layers)?;
    rustix::process::chdir("/mnt/root")?;
    let release = spec.modules.file_name().unwrap_or_default();
    let place = Path::new("usr/lib/modules").join(release);
    std::fs::create_dir_all(&place)?;
    mount_bind(&spec.modules, &place)?;
    attach("proc", "proc", "proc", "")?;
    attach("sys", "sys", "sysfs", "")?;
    attach("dev", "dev", "devtmpfs", "")?;
    attach("devpts", "dev/pts", "devpts", "")?;
    attach("shm", "dev/shm", "tmpfs", "")?;
    attach("run", "run", "tmpfs", "mode=755")?;
    std::fs::create_dir_all("run/lock")?;
    for share in &spec.shares {
        let path = share.display().to_string();
        attach("none", &format!(".{path}"), "hostfs", &path)?;
    }
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    for module in &spec.load {
        modules.load(module)?;
    }
    modules.load("configfs")?;
    attach("config", "/sys/kernel/config", "configfs", "")?;
    rustix::system::sethostname(spec.name.as_bytes())?;
    raise(&spec)?;
    names(&spec)?;
    // By its path, because /proc/self/exe is outside of the new root.
    let agent = std::env::args_os().next().unwrap_or_default();
    let mut agent = Command::new(agent)
        .arg("serve")
        .env_clear()
        .env(super::FOLDER, "")
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("LAB_GUEST", &spec.name)
        .env("LAB_MODULES", Path::new("/usr/lib/modules").join(release))
        .stdin(Stdio::null())
        .spawn()?;
    let pid = rustix::process::Pid::from_child(&agent);
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::empty()) {
            Ok(Some((ended, _))) if ended == pid => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return agent.wait().map(drop),
        }
    }
}

/// Mounts on a directory, which is made where it can be.
pub(crate) fn attach(source: &str, target: &str, kind: &str, options: &str) -> io::Result<()> {
    let _ = std::fs::create_dir_all(target);
    let words = CString::new(options).map_err(io::Error::other)?;
    if kind == "bind" {
        return Ok(mount_bind(source, target)?);
    }
    mount(source, target, kind, MountFlags::empty(), words.as_c_str())
        .map_err(|error| io::Error::other(format!("mount {kind} on {target}: {error}")))
}

/// Addresses of the network cards, by one call of `ip` for all of them.
fn raise(spec: &Spec) -> io::Result<()> {
    let mut lines = "link set lo up\n".to_owned();
    for (card, address) in spec.addresses.iter().enumerate() {
        let _ = writeln!(lines, "addr add {address}/24 dev vec{card}\nlink set vec{card} up");
    }
    let mut ip = Command::new("ip")
        .env("PATH", PATH)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::other(format!("ip cannot be run: {error}")))?;
    if let Some(mut input) = ip.stdin.take() {
        input.write_all(lines.as_bytes())?;
    }
    if ip.wait()?.success() {
        Ok(())
    } else {
        Err(io::Error::other("the network does not come up"))
    }
}

/// Names without a name server: the machine's cannot be reached, and every service that asks it
/// for a name would wait until it gives up.
fn names(spec: &Spec) -> io::Result<()> {
    let address = spec.addresses.first().map_or("127.0.1.1".to_owned(), ToString::to_string);
    let hosts = format!("127.0.0.1 localhost\n{address} {}\n", spec.name);
    for (file, text) in [("/etc/hosts", hosts.as_str()), ("/etc/resolv.conf", "")] {
        // It may be a link into a folder that is not there.
        let _ = std::fs::remove_file(file);
        std::fs::write(file, text)?;
    }
    let name = format!("{}\n", spec.name);
    std::fs::write("/etc/hostname", name)
}

/// The kernel's modules, by name, with what each needs. Loading them here saves a process each.
pub(crate) struct Modules {
    folder: PathBuf,
    files: HashMap<String, Vec<String>>,
}

impl Modules {
    pub(crate) fn read(folder: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(folder.join("modules.dep"))?;
        let files = text.lines().filter_map(|line| {
            let (file, needs) = line.split_once(':')?;
            let files = std::iter::once(file).chain(needs.split_whitespace());
            Some((plain(file), files.map(str::to_owned).collect()))
        });
        Ok(Self { folder: folder.to_owned(), files: files.collect() })
    }

    /// A module that is part of the kernel is in no list; whoever needs it finds out.
    pub(crate) fn load(&self, name: &str) -> io::Result<()> {
        let Some(files) = self.files.get(&plain(name)) else {
            return if built_in(&self.folder, name) {
                Ok(())
            } else {
                Err(io::Error::other(format!("this kernel has no module {name}")))
            };
        };
        for file in files.iter().rev() {
            let module = File::open(self.folder.join(file))?;
            match rustix::system::finit_module(module, c"", 0) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(io::Error::other(format!("module {file}: {error}"))),
            }
        }
        Ok(())
    }
}

fn built_in(folder: &Path, name: &str) -> bool {
    let list = std::fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    list.lines().any(|line| plain(line) == plain(name))
}

/// `kernel/fs/nfs/nfs-v3.ko` is `nfs_v3`.
fn plain(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.trim_end_matches(".ko").replace('-', "_")
}
