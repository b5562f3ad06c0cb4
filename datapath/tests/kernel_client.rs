//! The kernel's NBD client, and disks below that fail: in guests of the lab, which have a kernel of
//! their own. What a lab needs is in `docs/lab.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datapath::disk::{Drive, Format, Layer, Options, Plan};
use datapath::export::{Export, Exports};
use datapath::nbd::wire::listen_tcp;
use datapath::nbd::{Limits, Listener, Server};
use lab::kit::{dm, nbd};
use lab::{Guest, Lab, Result, Running};
use uuid::Uuid;
use vhd::image::{NewImage, ParentLink, create};

const MIB: u64 = 1 << 20;

/// The program under test; guests see the machine's files.
const PROGRAM: &str = env!("CARGO_BIN_EXE_sm-datapath");

const SOCKET: &str = "/run/disk.sock";

/// Longer than anything in a guest takes.
const LONG: Duration = Duration::from_secs(60);

/// A VHD that is based on another one, both empty; the leaf.
fn images(folder: &Path, size: u64) -> PathBuf {
    let (base, leaf) = (folder.join("base.vhd"), folder.join("leaf.vhd"));
    let uuid = Uuid::from_u128(1);
    create(&base, &NewImage { uuid, size, parent: None }).unwrap();
    let parent = Some(ParentLink { uuid, name: "base.vhd".to_owned() });
    create(&leaf, &NewImage { uuid: Uuid::from_u128(2), size, parent }).unwrap();
    leaf
}

fn serve(guest: &Guest, image: &str, options: &[&str]) -> Result<Running> {
    let words = [PROGRAM, "serve", "--foreground", "--image", image, "--socket", SOCKET];
    guest.command(words.iter().chain(options).copied()).start()
}

/// Ends the program as a system that goes down does.
fn end(guest: &Guest, server: Running) -> Result<()> {
    guest.check(["pkill", "-TERM", "-x", "sm-datapath"])?;
    server.wait(LONG)?.success().map(drop)
}

/// Writes a file; its sum.
fn write_file(guest: &Guest, path: &str, mebibytes: u32) -> Result<String> {
    let (to, count) = (format!("of={path}"), format!("count={mebibytes}"));
    guest.check(["dd", "if=/dev/urandom", &to, "bs=1M", &count, "conv=fsync", "status=none"])?;
    guest.check(["sha256sum", path])
}

const FIO: [&str; 9] = [
    "fio",
    "--name=verify",
    "--ioengine=psync",
    "--direct=1",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--verify_state_save=0",
    "--do_verify=1",
    "--randrepeat=1",
];

#[test]
fn a_file_system_of_the_kernels_client_is_there_again_after_each_connection() -> Result<()> {
    let lab = Lab::new()?;
    let leaf = images(&lab.share(), 96 * MIB);
    let host = lab.guest("host").boot()?;
    let mut server = Some(serve(&host, leaf.to_str().unwrap(), &[])?);
    let device = nbd::connect(&host, SOCKET, 0)?;
    assert_eq!(host.check(["blockdev", "--getsize64", &device])?, (96 * MIB).to_string());
    host.check(["mkfs.ext4", "-q", &device])?;
    host.check(["mount", &device, "/mnt"])?;
    let first = write_file(&host, "/mnt/first", 8)?;
    // What is deleted is trimmed, and what is written afterwards takes its place.
    let gone = write_file(&host, "/mnt/gone", 16)?;
    host.check(["rm", "/mnt/gone"])?;
    host.check(["fstrim", "/mnt"])?;
    let second = write_file(&host, "/mnt/second", 16)?;
    assert_ne!(gone, second);
    host.check(["umount", "/mnt"])?;
    nbd::disconnect(&host, &device)?;

    // The same process, then another one.
    for number in [1, 2] {
        let device = nbd::connect(&host, SOCKET, number)?;
        host.check(["fsck.ext4", "-f", "-n", &device])?;
        host.check(["mount", &device, "/mnt"])?;
        assert_eq!(host.check(["sha256sum", "/mnt/first"])?, first);
        assert_eq!(host.check(["sha256sum", "/mnt/second"])?, second);
        host.check(["umount", "/mnt"])?;
        nbd::disconnect(&host, &device)?;
        if number == 1 {
            end(&host, server.take().unwrap())?;
            server = Some(serve(&host, leaf.to_str().unwrap(), &[])?);
        }
    }
    end(&host, server.take().unwrap())?;
    host.power_off()?;
    let layers = [vhd::Layer::Vhd(&leaf), vhd::Layer::Vhd(&leaf.with_file_name("base.vhd"))];
    let findings = vhd::check::check_chain(&layers);
    let wrong = findings.iter().filter(|found| found.severity == vhd::check::Severity::Error);
    assert_eq!(wrong.count(), 0, "{findings:?}");
    Ok(())
}

#[test]
fn fio_verifies_what_it_wrote_through_the_kernels_client() -> Result<()> {
    let lab = Lab::new()?;
    let leaf = images(&lab.share(), 64 * MIB);
    let host = lab.guest("host").boot()?;
    // Both ways to the file; the guest's kernel may have no ring.
    for options in [&[][..], &["--direct"]] {
        let server = serve(&host, leaf.to_str().unwrap(), options)?;
        let device = nbd::connect(&host, SOCKET, 0)?;
        for (rw, size) in [("randwrite", "4k"), ("write", "1M"), ("randrw", "64k")] {
            let (file, rw, size) =
                (format!("--filename={device}"), format!("--rw={rw}"), format!("--bs={size}"));
            let words = [&file, &rw, &size, "--size=16m", "--fsync=64"];
            let out = host.command(FIO.into_iter().chain(words)).deadline(LONG * 2).check()?;
            assert!(out.contains("err= 0"), "{out}");
        }
        nbd::disconnect(&host, &device)?;
        end(&host, server)?;
    }
    Ok(())
}

/// One disk, whatever it is called.
struct Only(Arc<Drive>);

impl Exports for Only {
    fn names(&self) -> Vec<String> {
        vec![String::new()]
    }

    fn find(&self, _: &str) -> Option<Arc<dyn Export>> {
        Some(self.0.clone())
    }
}

fn run(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {output:?}");
}

/// As a host reaches the disk of another one: without TLS, which the kernel's client does not have.
#[test]
fn the_kernels_client_comes_over_tcp() -> Result<()> {
    lab::in_guest(
        |lab| Ok(lab.guest("host").modules(&["nbd"])),
        || {
            let folder = tempfile::tempdir().unwrap();
            let leaf = images(folder.path(), 32 * MIB);
            let layer = |path: &Path| Layer { path: path.to_owned(), format: Format::Vhd };
            let backing = vec![layer(&folder.path().join("base.vhd"))];
            let plan = Plan { leaf: layer(&leaf), backing, read_only: false };
            let drive = Drive::open(&plan, Options::default()).unwrap();
            let server = Server::new(Arc::new(Only(drive.clone())), Limits::default());
            let listener = listen_tcp("127.0.0.1", 0).unwrap();
            let port = listener.local_addr().unwrap().port().to_string();
            server.serve(Listener::Tcp(listener, None)).unwrap();
            let content: Vec<u8> = (0..3 * MIB).map(|at| (at * 31 % 251) as u8).collect();
            std::fs::write(folder.path().join("content"), &content).unwrap();
            let from = format!("if={}", folder.path().join("content").display());
            run("nbd-client", &["127.0.0.1", &port, "/dev/nbd0"]);
            run("dd", &[&from, "of=/dev/nbd0", "bs=256k", "seek=4", "conv=fsync"]);
            run("nbd-client", &["-d", "/dev/nbd0"]);
            // Another connection, which finds nothing in its cache.
            run("nbd-client", &["127.0.0.1", &port, "/dev/nbd1"]);
            let to = format!("of={}", folder.path().join("back").display());
            run("dd", &["if=/dev/nbd1", &to, "bs=256k", "skip=4", "count=12", "iflag=direct"]);
            run("nbd-client", &["-d", "/dev/nbd1"]);
            assert!(std::fs::read(folder.path().join("back")).unwrap() == content);
            assert!(server.stop(LONG));
            drive.close(Instant::now() + LONG).unwrap();
        },
    )
}

#[test]
fn a_disk_that_fails_below_fails_the_requests_and_nothing_else() -> Result<()> {
    let lab = Lab::new()?;
    let disk = lab.disk("a", 32 * MIB)?;
    let host = lab.guest("host").disk(&disk).boot()?;
    let faulty = dm::Faulty::over(&host, "faulty", "/dev/ubda")?;
    let server = serve(&host, &faulty.path(), &["--format", "raw", "--direct"])?;
    let uri = format!("nbd+unix:///?socket={SOCKET}");
    host.wait_for("a socket", LONG, |host| {
        let there = host.run(["test", "-S", SOCKET])?.status == 0;
        Ok(if there { Ok(()) } else { Err(server.so_far()) })
    })?;
    let io = |cache: &str, command: &str| -> Result<String> {
        let output = host.run(["qemu-io", "-f", "raw", "-t", cache, "-c", command, &uri])?;
        Ok(format!("{command}: {} {}", output.text(), output.errors()))
    };
    let fails = |said: String| assert!(said.contains("Input/output error"), "{said}");
    let works = |said: String| assert!(said.contains("ops;"), "{said}");
    // Short, and long enough to be done in parts. Without the flush at the end of each.
    for length in ["4k", "2M"] {
        works(io("unsafe", &format!("write -P 1 1M {length}"))?);
        faulty.fail_writes()?;
        fails(io("unsafe", &format!("write -P 2 1M {length}"))?);
        works(io("unsafe", &format!("read -P 1 1M {length}"))?);
        faulty.fail()?;
        fails(io("unsafe", &format!("read 1M {length}"))?);
        faulty.healthy()?;
        works(io("unsafe", &format!("read -P 1 1M {length}"))?);
        works(io("unsafe", &format!("write -P 3 1M {length}"))?);
        works(io("unsafe", &format!("read -P 3 1M {length}"))?);
    }
    // Nobody knows what a flush has lost that failed: nothing is written until the disk is opened
    // anew.
    faulty.fail_writes()?;
    fails(io("writeback", "flush")?);
    faulty.healthy()?;
    works(io("unsafe", "read -P 3 1M 4k")?);
    fails(io("unsafe", "write -P 4 1M 4k")?);
    // It says so when it ends, too.
    host.check(["pkill", "-TERM", "-x", "sm-datapath"])?;
    assert_ne!(server.wait(LONG)?.status, 0);
    let server = serve(&host, &faulty.path(), &["--format", "raw", "--direct"])?;
    host.wait_for("a socket", LONG, |host| {
        let there = host.run(["test", "-S", SOCKET])?.status == 0;
        Ok(if there { Ok(()) } else { Err(server.so_far()) })
    })?;
    works(io("writeback", "write -P 4 1M 4k")?);
    end(&host, server)
}
