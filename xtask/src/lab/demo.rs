//! `cargo xtask lab demo`: a NAS and a host, each a guest with a kernel of its own; SRs over NFS and
//! over iSCSI with two paths, made and used by the commands of `smctl` that are shown as they are
//! typed, and a cable that is pulled under a writer.

use std::process::ExitCode;
use std::time::Duration;

use lab::kit::iscsi::{Initiator, Lun, Target};
use lab::kit::{self, lvm, multipath, nfs, udev};
use lab::{Guest, Lab, Network, Running};
use serde_json::Value;

use super::failed;
use crate::demo::steps::{Steps, Terminal};
use crate::failure::{Failure, Result};
use crate::project::{self, Profile};
use crate::tool::Printed;

const MIB: u64 = 1 << 20;
const IQN: &str = "iqn.2026-01.org.example:array";

/// What a host needs, beside the host process of drivers.
const PACKAGES: &[&str] =
    &["smctl", "sm-driver-host", "sm-driver-nfs", "sm-driver-lvmoiscsi", "datapath"];

/// A dead path is known after some seconds.
const PATHS: Duration = Duration::from_secs(60);

pub(super) fn run() -> Result<ExitCode> {
    println!("building smctl and the drivers (the first time takes minutes)");
    let product = project::build(PACKAGES, Profile::Dev)?;
    let program = product.join("smctl").display().to_string();
    let lab = Lab::new().map_err(failed)?;
    let mut steps = Steps::default();
    let outcome = story(&lab, &program, &mut steps);
    steps.end(outcome)
}

/// `smctl` in a guest.
struct Shell<'a> {
    guest: &'a Guest,
    program: &'a str,
}

impl Terminal for Shell<'_> {
    fn prompt(&self) -> String {
        format!("{}#", self.guest.name())
    }

    fn smctl(&self, words: &[&str]) -> Result<Printed> {
        let smctl = kit::smctl::Smctl::new(self.guest, self.program);
        let output = smctl.call(words).run().and_then(lab::Output::success).map_err(failed)?;
        Ok(Printed { stdout: output.text(), stderr: output.errors() })
    }
}

/// The NAS, which serves files and blocks, and the host that uses it.
struct Site {
    networks: [Network; 2],
    nas: Guest,
    host: Guest,
    lun: Lun,
    _services: (nfs::Server, Target),
}

impl Site {
    fn boot(lab: &Lab) -> lab::Result<(Guest, Guest, [Network; 2])> {
        let networks = [lab.network()?, lab.network()?];
        let guest = |name| lab.guest(name).network(&networks[0]).network(&networks[1]);
        let [nas, host] = lab.boot([guest("nas"), guest("host").memory(512)])?;
        Ok((nas, host, networks))
    }

    fn serve(nas: Guest, host: Guest, networks: [Network; 2]) -> lab::Result<Self> {
        kit::xfs(&nas, "/srv/nfs.img", Some(512 * MIB), "/srv/nfs")?;
        let server = nfs::Server::start(&nas, "/srv/nfs")?;
        let portals = [nas.address(&networks[0])?, nas.address(&networks[1])?];
        let mut target = Target::start(&nas, IQN, &portals)?;
        let lun = Lun { number: 5, on: "/srv/lun".into(), bytes: 256 * MIB, serial: 0xa005 };
        target.add(&lun)?;
        target.allow(&Initiator::name_of(&host))?;
        Ok(Self { networks, nas, host, lun, _services: (server, target) })
    }

    /// What a host has installed: the clients, and multipath.
    fn equip(&self) -> lab::Result<()> {
        self.host.load(&["nfsv4"])?;
        udev::start(&self.host)?;
        Initiator::start(&self.host)?;
        lvm::prepare_with_udev(&self.host)?;
        multipath::start(&self.host)
    }

    fn address(&self, number: usize) -> Result<String> {
        let network = self.networks.get(number).unwrap_or(&self.networks[0]);
        Ok(self.nas.address(network).map_err(failed)?.to_string())
    }
}

fn story(lab: &Lab, program: &str, steps: &mut Steps) -> Result<()> {
    steps.title("A NAS and a host, with two networks between them");
    let (nas, host, networks) =
        steps.step("two guests boot, each a kernel of its own", || in_lab(Site::boot(lab)))?;
    let site = steps
        .step("the NAS exports a folder over NFS, and a LUN over iSCSI with two portals", || {
            in_lab(Site::serve(nas, host, networks))
        })?;
    steps.step("the host starts udev, open-iscsi and multipathd", || in_lab(site.equip()))?;
    let shell = Shell { guest: &site.host, program };
    files(&site, &shell, steps)?;
    blocks(&site, &shell, steps)?;

    steps.title("And everything away");
    for (sr, vdi) in
        [("files", "web-2"), ("files", "web"), ("files", "before upgrade"), ("san", "db")]
    {
        steps.type_in(&shell, &["vdi", "destroy", vdi, "--sr", sr])?;
    }
    steps.type_in(&shell, &["sr", "destroy", "files"])?;
    steps.type_in(&shell, &["sr", "destroy", "san"])?;
    steps.step("check: the export is empty, the host has no session and no mount", || {
        let left = in_lab(site.nas.check(["ls", "-A", "/srv/nfs"]))?;
        let sessions = in_lab(site.host.run(["ls", "/sys/class/iscsi_session"]))?.text();
        let mounts = in_lab(site.host.check(["cat", "/proc/mounts"]))?;
        if left.is_empty() && sessions.is_empty() && !mounts.contains("/run/nfs/") {
            return Ok(());
        }
        Err(Failure::new("something is left").cause(format!("{left}\n{sessions}\n{mounts}")))
    })
}

/// An SR of files: a disk is written, snapshotted while it is attached, cloned, put back.
fn files(site: &Site, shell: &Shell<'_>, steps: &mut Steps) -> Result<()> {
    let (server, host) = (format!("server={}", site.address(0)?), &site.host);
    steps.title("An SR over NFS");
    steps.type_in(shell, &["sr", "probe", "--driver", "nfs", &server])?;
    let create = ["sr", "create", "--driver", "nfs", "--name", "files", &server, "serverpath=/"];
    steps.type_in(shell, &create)?;
    steps.type_in(shell, &["vdi", "create", "--name", "web", "--size", "64MiB"])?;
    let attached = steps.type_in_json(shell, &["vdi", "attach", "web", "--json"])?;
    let uri = text(&attached, "/access/0/uri")?;
    for (file, what) in [("/run/first", "a first content"), ("/run/second", "another")] {
        steps.step(&format!("{what}: 16 MiB from /dev/urandom"), || {
            let to = format!("of={file}");
            in_lab(host.check(["dd", "if=/dev/urandom", &to, "bs=1M", "count=16", "status=none"]))
        })?;
    }
    let write = |file: &str| in_lab(host.check(["nbdcopy", file, &uri]));
    steps.step("the host's guest writes the first to the disk, through NBD", || {
        write("/run/first")
    })?;

    steps.title("A snapshot while it is in use, and a clone");
    steps.type_in(shell, &["vdi", "snapshot", "web", "--name", "before upgrade"])?;
    steps.step("the guest goes on and writes the second", || write("/run/second"))?;
    steps.type_in(shell, &["vdi", "detach", "web"])?;
    steps.type_in(shell, &["vdi", "clone", "before upgrade", "--name", "web-2"])?;
    steps.type_in(shell, &["vdi", "tree", "--sr", "files"])?;
    for (vdi, file) in [("web", "/run/second"), ("web-2", "/run/first")] {
        steps.type_in(shell, &["vdi", "export", vdi, "/run/out", "--format", "raw"])?;
        steps.step(&format!("check: it begins with {file} (cmp)"), || {
            let bytes = (16 * MIB).to_string();
            in_lab(host.check(["cmp", "-n", &bytes, file, "/run/out"]))
        })?;
        in_lab(host.check(["rm", "/run/out"]))?;
    }
    Ok(())
}

/// An SR on a LUN, over two paths of which one dies under a writer.
fn blocks(site: &Site, shell: &Shell<'_>, steps: &mut Steps) -> Result<()> {
    let portals = format!("target={},{}", site.address(0)?, site.address(1)?);
    let (iqn, id) = (format!("targetIQN={IQN}"), format!("SCSIid={}", site.lun.scsi_id()));
    steps.title("An SR on a LUN, over two paths");
    let probe = ["sr", "probe", "--driver", "lvmoiscsi", &portals];
    steps.type_in(shell, &probe)?;
    steps.type_in(shell, &[&probe[..], &[&iqn]].concat())?;
    let create = ["sr", "create", "--driver", "lvmoiscsi", "--name", "san", &portals, &iqn, &id];
    steps.type_in(shell, &create)?;
    steps.type_in(
        shell,
        &["vdi", "create", "--sr", "san", "--name", "db", "--size", "32MiB", "--format", "raw"],
    )?;
    let attached = steps.type_in_json(shell, &["vdi", "attach", "db", "--sr", "san", "--json"])?;
    let device = text(&attached, "/access/0/path")?;
    steps.type_in(shell, &["sr", "stat", "san"])?;

    steps.title("A cable is pulled under a writer, and put back");
    let script = "n=0; while [ ! -e /run/stop ]; do dd if=/dev/urandom of=$0 bs=64k count=1 \
                  seek=$((n % 512)) oflag=direct conv=notrunc status=none || exit 1; \
                  n=$((n + 1)); echo $n; done";
    let writer = in_lab(site.host.command(["sh", "-c", script, &device]).start())?;
    steps.step_said("the host's guest writes", || goes_on(site, &writer))?;
    steps.step_said("the first cable is pulled; the path is seen to be dead", || {
        site.networks[0].unplug(&site.host);
        paths(site, 1)
    })?;
    steps.type_in(shell, &["sr", "stat", "san"])?;
    steps.step_said("the guest goes on writing over the other path", || goes_on(site, &writer))?;
    steps.step_said("the cable is put back; the path is seen to be up", || {
        site.networks[0].plug(&site.host);
        paths(site, 2)
    })?;
    steps.type_in(shell, &["sr", "stat", "san"])?;
    steps.step_said("check: no write has failed", || {
        in_lab(site.host.write("/run/stop", ""))?;
        let output = in_lab(writer.wait(PATHS).and_then(lab::Output::success))?;
        Ok(format!("{} writes", output.text().lines().count()))
    })?;
    steps.type_in(shell, &["vdi", "detach", "db", "--sr", "san"])?;
    Ok(())
}

/// Three writes more than there were.
fn goes_on(site: &Site, writer: &Running) -> Result<String> {
    let written = || writer.so_far().lines().count();
    let before = written();
    in_lab(site.host.wait_for("writes", PATHS, |_| {
        let fine = written() > before + 3 && writer.ended().is_none();
        Ok(if fine { Ok(()) } else { Err(format!("{before}, then {}", written())) })
    }))?;
    Ok(format!("{} writes so far", written()))
}

/// Waits until so many of the two paths are up.
fn paths(site: &Site, up: usize) -> Result<String> {
    in_lab(multipath::wait_for(&site.host, up, 2 - up, PATHS))?;
    let shown = in_lab(multipath::paths(&site.host))?;
    let path = |path: &multipath::Path| format!("{} {} {}", path.device, path.dm, path.checker);
    Ok(shown.iter().map(path).collect::<Vec<_>>().join(", "))
}

fn in_lab<T>(result: lab::Result<T>) -> Result<T> {
    result.map_err(failed)
}

fn text(document: &Value, pointer: &str) -> Result<String> {
    let text = document.pointer(pointer).and_then(Value::as_str);
    text.map(str::to_owned)
        .ok_or_else(|| Failure::new(format!("smctl's answer has no {pointer}")).cause(document))
}
