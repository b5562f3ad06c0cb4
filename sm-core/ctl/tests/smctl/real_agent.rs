//! The real guest agent on real file systems, in a guest of the lab: what is frozen there is frozen
//! nowhere else. The guest is also the host of its disks, so that its file systems lie on the data
//! paths that are paused while they are frozen.

use std::time::Duration;

use lab::kit::{self, nbd};
use lab::{Call, Guest, Lab, Result, Running};
use serde_json::Value;

use crate::quiesce::AT_ONCE;
use crate::world::{SMCTL, build, driver_file, driver_host};

const AGENT: &str = "/run/qga.sock";
/// There while the agent has something frozen.
const FROZEN: &str = "/run/qga/qga.state.isfrozen";
/// Longer than anything in a guest takes.
const LONG: Duration = Duration::from_secs(60);

/// Appends a number to a file, has it safe on the disk, and says so elsewhere; for ever.
const WRITER: &str = "n=0; while :; do n=$((n+1)); echo $n >> $0/log; sync $0/log || exit 1; \
                      echo $n > $1.new; mv $1.new $1; done";

/// Kills the storage manager, and prints the milliseconds until the guest goes on.
const KILL: &str = "from=$(date +%s%3N); pkill -KILL -x smctl || exit 1; \
                    while test -e $0; do sleep 0.02; done; echo $(($(date +%s%3N)-from))";

/// What the disks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Storage {
    Vhd,
    ThinVolumes,
}

struct Site {
    guest: Guest,
    agent: Option<Running>,
    driver: String,
    writers: Vec<Running>,
    lock: String,
}

impl Site {
    /// With disks that are VHDs, served by data paths; or thin volumes of LVM.
    fn new(storage: Storage) -> Result<Self> {
        // Built before the guest runs, which sees the files.
        assert!(driver_host().with_file_name("sm-freezer").is_file());
        let lvm = ["--lib", "--package", "sm-driver-lvm"];
        let driver = match storage {
            Storage::Vhd => driver_file(),
            Storage::ThinVolumes => build(&lvm, "libsm_driver_lvm.so"),
        };
        let lab = Lab::new()?;
        let disk = lab.disk("pool", 1 << 30)?;
        let guest = lab.guest("vm").memory(1024).disk(&disk).boot()?;
        guest.check(["mkdir", "-p", "/var/tmp/images", "/run/qga", "/srv/e", "/srv/x"])?;
        let driver = driver.to_str().unwrap().to_owned();
        let mut site =
            Self { guest, agent: None, driver, writers: Vec::new(), lock: String::new() };
        let config = if storage == Storage::Vhd {
            "location=/var/tmp/images"
        } else {
            kit::lvm::prepare(&site.guest)?;
            "device=/dev/ubda"
        };
        // The file of a driver says which it is.
        site.ok(&["sr", "create", "--name", "images", config])?;
        let sr = site.json(&["sr", "show", "images"])?;
        site.lock = format!("/var/tmp/images/{}/.sm/lock", sr["sr"]["uuid"].as_str().unwrap());
        for (number, (name, size)) in (0..).zip([("e", "64MiB"), ("x", "320MiB")]) {
            site.ok(&["vdi", "create", "--name", name, "--size", size])?;
            let attached = site.json(&["vdi", "attach", name])?;
            let access = &attached["access"][0];
            let socket = match access["uri"].as_str() {
                Some(uri) => uri.split_once("socket=").unwrap().1.to_owned(),
                None => site.serve(name, access["path"].as_str().unwrap())?,
            };
            let device = nbd::connect(&site.guest, &socket, number)?;
            let make = if name == "e" { "mkfs.ext4" } else { "mkfs.xfs" };
            site.guest.check([make, "-q", &device])?;
            site.guest.check(["mount", &device, &format!("/srv/{name}")])?;
        }
        site.start_agent()?;
        for name in ["e", "x"] {
            let (place, word) = (format!("/srv/{name}"), format!("/run/safe-{name}"));
            let writer = site.guest.command(["sh", "-c", WRITER, &place, &word]).start()?;
            site.writers.push(writer);
        }
        Ok(site)
    }

    /// Puts a program between a volume and its file system, as a hypervisor is: device-mapper of
    /// the same kernel would freeze the file system once more, which is refused.
    fn serve(&self, name: &str, device: &str) -> Result<String> {
        let socket = format!("/run/{name}.nbd");
        let words = ["qemu-nbd", "--fork", "--format=raw", "--cache=none", "--persistent"];
        let place = format!("--socket={socket}");
        self.guest.check(words.into_iter().chain([place.as_str(), device]))?;
        Ok(socket)
    }

    fn start_agent(&mut self) -> Result<()> {
        self.agent = None;
        self.guest.check(["rm", "-f", AGENT])?;
        let words = ["qemu-ga", "--method", "unix-listen", "--path", AGENT];
        let words = [&words[..], &["--statedir", "/run/qga", "--pidfile", "/run/qga/pid"]].concat();
        self.agent = Some(self.guest.command(words).start()?);
        self.guest.wait_for("the agent", LONG, |guest| {
            let there = guest.run(["test", "-S", AGENT])?.status == 0;
            Ok(there.then_some(()).ok_or_else(|| "no socket".to_owned()))
        })
    }

    fn call(&self, words: &[&str]) -> Call<'_> {
        let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        self.guest
            .command([SMCTL, "--driver", &self.driver].into_iter().chain(words.iter().copied()))
            .env("SMCTL_STATE_DIR", "/var/tmp/sm/state")
            .env("SM_RUN_DIR", "/var/tmp/sm/run")
            .env("SMCTL_DRIVER_DIR", "/var/empty")
            .env("SM_DATAPATH", text(&driver_host().with_file_name("sm-datapath")))
            .env("SM_FREEZER", text(&driver_host().with_file_name("sm-freezer")))
    }

    fn ok(&self, words: &[&str]) -> Result<String> {
        self.call(words).check()
    }

    fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.ok(&[&["--json"], words].concat())?;
        Ok(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    fn take<'a>(more: &[&'a str]) -> Vec<&'a str> {
        let words = ["vm-snapshot", "--disk", "e", "--disk", "x", "--agent", AGENT];
        [&words[..], &["--mount", "/srv/e", "--mount", "/srv/x"], more].concat()
    }

    /// A snapshot as a device.
    fn look(&self, snapshot: &str) -> Result<String> {
        let attach = ["vdi", "attach", snapshot, "--read-only", "--datapath", "look"];
        let attached = self.json(&attach)?;
        let access = &attached["access"][0];
        match access["uri"].as_str() {
            Some(uri) => nbd::connect(&self.guest, uri.split_once("socket=").unwrap().1, 2),
            None => Ok(access["path"].as_str().unwrap().to_owned()),
        }
    }

    /// The last number that is safe.
    fn safe(&self, name: &str) -> Result<u64> {
        let text = self.guest.run(["cat", &format!("/run/safe-{name}")])?.text();
        Ok(text.parse().unwrap_or(0))
    }

    /// Waits until both writers have written some more.
    fn written(&self) -> Result<()> {
        for name in ["e", "x"] {
            let before = self.safe(name)?;
            self.guest.wait_for("a writer", LONG, |_| {
                let now = self.safe(name)?;
                Ok(if now > before + 3 { Ok(()) } else { Err(format!("{before}, {now}")) })
            })?;
        }
        Ok(())
    }

    /// What is in the file of a writer, whose numbers must be all there up to the last.
    fn last(text: &str) -> u64 {
        let numbers: Vec<u64> = text.lines().map(|line| line.trim().parse().unwrap()).collect();
        assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{numbers:?}");
        numbers.len() as u64
    }

    fn is_frozen(&self) -> Result<bool> {
        Ok(self.guest.run(["test", "-e", FROZEN])?.status == 0)
    }

    fn wait_frozen(&self, wanted: bool) -> Result<()> {
        self.guest.wait_for("the agent's state", LONG, |_| {
            let frozen = self.is_frozen()?;
            Ok(if frozen == wanted { Ok(()) } else { Err(format!("frozen: {frozen}")) })
        })
    }

    /// A snapshot whose guest is frozen and whose storage waits until the second one is dropped.
    fn begun(&self) -> Result<(Running, Running)> {
        let held = self.guest.command(["flock", &self.lock, "sleep", "600"]).start()?;
        self.guest.wait_for("the lock", LONG, |guest| {
            let free = guest.run(["flock", "-n", &self.lock, "true"])?.status == 0;
            Ok(if free { Err("it is free".to_owned()) } else { Ok(()) })
        })?;
        let running = self.call(&Self::take(&[])).start()?;
        self.wait_frozen(true)?;
        Ok((running, held))
    }

    fn let_storage_go_on(&self, held: Running) -> Result<()> {
        self.guest.run(["pkill", "-KILL", "-x", "sleep"])?;
        drop(held);
        Ok(())
    }
}

/// Whether ext4 has to replay its journal.
fn needs_recovery(guest: &Guest, image: &str) -> Result<bool> {
    Ok(guest.check(["dumpe2fs", "-h", image])?.contains("needs_recovery"))
}

/// A quiesced set of both disks: nothing has to be replayed, and what was safe is there.
fn take_and_look(site: &Site) -> Result<()> {
    site.written()?;

    // A snapshot without the guest's help is as after a power cut: so what follows can fail.
    let live = site.ok(&["vdi", "snapshot", "e", "--name", "live"])?;
    site.ok(&["vdi", "export", &live, "/run/live.raw"])?;
    assert!(needs_recovery(&site.guest, "/run/live.raw")?);

    let safe = [site.safe("e")?, site.safe("x")?];
    let set = site.json(&Site::take(&["--name", "quiesced"]))?;
    assert_eq!(set["consistency"], "fs-consistent", "{set}");
    assert!(!site.is_frozen()?);
    let members = set["members"].as_array().unwrap();
    for (name, safe) in ["e", "x"].into_iter().zip(safe) {
        let disk = site.json(&["vdi", "show", name])?["vdi"]["uuid"].clone();
        let of = |member: &&Value| member["vdi"] == disk;
        let snapshot = members.iter().find(of).unwrap()["snapshot"].as_str().unwrap().to_owned();
        let text = if name == "e" {
            let image = "/run/e.raw";
            site.ok(&["vdi", "export", &snapshot, image])?;
            assert!(!needs_recovery(&site.guest, image)?);
            site.guest.check(["e2fsck", "-fn", image])?;
            site.guest.check(["debugfs", "-R", "cat /log", image])?
        } else {
            // Without its journal: all has to be in its place.
            let device = site.look(&snapshot)?;
            site.guest.check(["mount", "-o", "ro,norecovery,nouuid", &device, "/mnt"])?;
            let text = site.guest.check(["cat", "/mnt/log"])?;
            site.guest.check(["umount", "/mnt"])?;
            text
        };
        let last = Site::last(&text);
        assert!(last >= safe, "{name}: {safe} was safe, {last} is there");
    }
    site.written()
}

#[test]
fn a_real_agent_holds_file_systems_on_thin_volumes() -> Result<()> {
    take_and_look(&Site::new(Storage::ThinVolumes)?)
}

#[test]
fn a_real_agent_holds_ext4_and_xfs_and_they_go_on_whoever_dies() -> Result<()> {
    let mut site = Site::new(Storage::Vhd)?;
    take_and_look(&site)?;

    // The storage manager is killed while the guest is frozen.
    let (running, held) = site.begun()?;
    let waited: u128 = site.guest.check(["sh", "-c", KILL, FROZEN])?.parse().unwrap();
    assert!(waited < AT_ONCE.as_millis(), "the guest was at rest for {waited} ms more");
    assert!(!site.is_frozen()?);
    drop(running);
    site.written()?;
    site.let_storage_go_on(held)?;
    let sets = |site: &Site| -> Result<usize> {
        Ok(site.json(&["snapshot-group", "list"])?["sets"].as_array().unwrap().len())
    };
    assert_eq!(sets(&site)?, 1);
    let disks = site.json(&["vdi", "list"])?["vdis"].as_array().unwrap().len();
    assert_eq!(disks, 5, "two disks, three snapshots");

    // The agent is killed while the guest is frozen; the next one finds that it is.
    let (running, held) = site.begun()?;
    site.guest.check(["pkill", "-KILL", "-x", "qemu-ga"])?;
    site.start_agent()?;
    site.let_storage_go_on(held)?;
    let output = running.wait(LONG)?;
    assert_ne!(output.status, 0, "{}", output.text());
    assert!(output.errors().contains("no snapshot is kept:"), "{}", output.errors());
    site.wait_frozen(false)?;
    site.written()?;
    assert_eq!(site.json(&["vdi", "list"])?["vdis"].as_array().unwrap().len(), disks);

    // A file system that is not there, and an agent that is not.
    let error = site.call(&["vm-snapshot", "--disk", "e", "--agent", AGENT, "--mount", "/none"]);
    let error = error.run()?;
    assert_eq!(error.status, 3, "{}", error.errors());
    assert!(error.errors().contains("has nothing mounted at \"/none\""), "{}", error.errors());
    site.guest.check(["pkill", "-KILL", "-x", "qemu-ga"])?;
    let error = site.call(&Site::take(&[])).run()?;
    assert_eq!(error.status, 11, "{}", error.errors());
    Ok(())
}
