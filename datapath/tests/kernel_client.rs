//! The kernel's NBD client, and disks below that fail: in guests of the lab, which have a kernel of
//! their own. What a lab needs is in `docs/lab.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datapath::disk::{Drive, Format, Layer, Options, Plan};
use datapath::error::Errno;
use datapath::export::{Export, Exports};
use datapath::nbd::client::{self, Client};
use datapath::nbd::wire::listen_tcp;
use datapath::nbd::{Limits, Listener, Server, Uri};
use lab::kit::nbd;
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

/// A device over the guest's disk that works, or fails in some way.
fn table(line: &str) {
    let words = |words: &[&str]| {
        let output = Command::new("dmsetup").env("DM_DISABLE_UDEV", "1").args(words).output();
        let output = output.unwrap();
        assert!(output.status.success(), "dmsetup {words:?}: {output:?}");
    };
    if !Path::new("/dev/mapper/faulty").exists() {
        return words(&["create", "faulty", "--table", line]);
    }
    words(&["suspend", "--nolockfs", "faulty"]);
    words(&["load", "faulty", "--table", line]);
    words(&["resume", "faulty"]);
}

const HEALTHY: &str = "0 65536 linear /dev/ubda 0";
const NO_WRITES: &str = "0 65536 flakey /dev/ubda 0 0 3600 1 error_writes";
const BROKEN: &str = "0 65536 error";

#[test]
fn a_disk_that_fails_below_fails_the_requests_and_nothing_else() -> Result<()> {
    lab::in_guest(
        |lab| {
            let modules = ["dm-mod", "dm-flakey"];
            Ok(lab.guest("host").disk(&lab.disk("a", 32 * MIB)?).modules(&modules))
        },
        || {
            let folder = tempfile::tempdir().unwrap();
            table(HEALTHY);
            let leaf = Layer { path: "/dev/mapper/faulty".into(), format: Format::Raw };
            let plan = Plan { leaf, backing: Vec::new(), read_only: false };
            let options = Options { direct: true, ..Options::default() };
            let socket = folder.path().join("s");
            let open = || {
                let drive = Drive::open(&plan, options.clone()).unwrap();
                let server = Server::new(Arc::new(Only(drive.clone())), Limits::default());
                let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
                server.serve(Listener::Unix(listener)).unwrap();
                let uri = Uri::unix(socket.clone(), "");
                (drive, server, Client::connect(&uri, &client::Options::default()).unwrap())
            };
            let eio = client::Kind::Server(Errno::Io);
            let (drive, server, client) = open();
            // Short, and long enough to be done in parts.
            for length in [4096, 2 << 20] {
                let mut back = vec![0; length];
                client.write(MIB, &vec![1; length], false).unwrap();
                table(NO_WRITES);
                assert_eq!(client.write(MIB, &vec![2; length], false).unwrap_err().kind, eio);
                client.read(MIB, &mut back).unwrap();
                assert!(back.iter().all(|byte| *byte == 1));
                table(BROKEN);
                assert_eq!(client.read(MIB, &mut back).unwrap_err().kind, eio);
                table(HEALTHY);
                client.write(MIB, &vec![3; length], false).unwrap();
                client.read(MIB, &mut back).unwrap();
                assert!(back.iter().all(|byte| *byte == 3));
            }
            client.flush().unwrap();

            // Nobody knows what a flush has lost that failed: nothing is written until the disk is
            // opened anew.
            client.write(0, &[4; 4096], false).unwrap();
            table(NO_WRITES);
            assert_eq!(client.flush().unwrap_err().kind, eio);
            table(HEALTHY);
            assert_eq!(client.write(0, &[5; 4096], false).unwrap_err().kind, eio);
            assert_eq!(client.flush().unwrap_err().kind, eio);
            let mut back = [0; 4096];
            client.read(0, &mut back).unwrap();
            assert_eq!(back, [4; 4096]);
            drop(client);
            assert!(server.stop(LONG));
            let error = drive.close(Instant::now() + LONG).unwrap_err();
            assert!(error.to_string().contains("an earlier sync failed"), "{error}");
            // The server has the disk, too, until the last of its threads is gone.
            drop(server);
            let end = Instant::now() + LONG;
            while Arc::strong_count(&drive) > 1 {
                assert!(Instant::now() < end, "somebody still has the disk");
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(drive);
            std::fs::remove_file(&socket).unwrap();
            let (drive, server, client) = open();
            client.write(0, &[5; 4096], true).unwrap();
            drop(client);
            assert!(server.stop(LONG));
            drive.close(Instant::now() + LONG).unwrap();
        },
    )
}
