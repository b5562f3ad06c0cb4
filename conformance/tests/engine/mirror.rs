//! Disks that move to another place while they are used, told by `smctl`, with programs of others
//! as guests and as targets. Whoever dies, one place is the disk, and it has all that was answered.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use datapath::control::{Place, Run};
use serde_json::{Value, json};
use sm_core::model::{Bytes, VdiUuid};
use sm_core::{NewVdi, Op};

use crate::typed::text;
use crate::{PLACEMENTS, Site};

#[path = "../../../datapath/tests/common/certificates.rs"]
mod certificates;

use certificates::authority;

const LONG: Duration = Duration::from_secs(60);

/// Bytes of a disk.
const SIZE: u64 = 32 << 20;

/// Ends with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Site {
    async fn large(&self, name: &str) -> VdiUuid {
        let new = NewVdi { name: name.into(), virtual_size: Bytes(SIZE), ..NewVdi::default() };
        self.sr.vdi_create(&Op::new(), new).await.unwrap().vdi.uuid
    }

    fn place(&self, vdi: VdiUuid) -> Place {
        let run = Run::of_installation(self.folder.join("state").as_std_path());
        run.disk(&vdi.to_string())
    }

    fn phase(&self, vdi: &str) -> Value {
        self.json(&["vdi", "mirror", "status", vdi])["mirror"]["phase"].clone()
    }

    /// Kills the data path of a VDI.
    fn kill(&self, vdi: VdiUuid) {
        let place = self.place(vdi);
        let pid = place.process().unwrap().pid.to_string();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        until("its lock to be free", || place.lock().unwrap().is_some());
    }

    /// A server of a raw file that any program could be.
    fn target(&self, name: &str, size: u64, program: &str, words: &[&str]) -> (Program, String) {
        let (file, socket) = (self.folder.join(name), self.folder.join(format!("{name}.sock")));
        if !file.exists() {
            std::fs::File::create(&file).unwrap().set_len(size).unwrap();
        }
        let _ = std::fs::remove_file(&socket);
        let words = words
            .iter()
            .map(|word| word.replace("{socket}", socket.as_str()).replace("{file}", file.as_str()));
        let child = Command::new(program)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}: see `cargo xtask setup`"));
        let program = Program(child);
        until("the target", || UnixStream::connect(&socket).is_ok());
        (program, format!("nbd+unix:///?socket={socket}"))
    }

    fn qemu(&self, name: &str, size: u64) -> (Program, String) {
        let words = ["-f", "raw", "--persistent", "--shared=0", "-k", "{socket}", "{file}"];
        self.target(name, size, "qemu-nbd", &words)
    }
}

/// A guest that must succeed.
fn guest(uri: &str, commands: &[&str]) {
    let mut program = Command::new("qemu-io");
    program.args(["-f", "raw"]);
    for command in commands {
        program.args(["-c", command]);
    }
    let output = program.arg(uri).output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success() && !said.contains("failed"), "{commands:?}: {said}");
}

/// Writes a disk all over and reads back what it wrote.
fn load(folder: &Path, uri: &str, size: u64) -> Program {
    Program(
        Command::new("fio")
            .args(["--thread", "--name=load", "--ioengine=nbd", &format!("--uri={uri}")])
            .args(["--rw=randwrite", "--bs=4k", "--iodepth=8", "--io_size=128m"])
            .args([&format!("--size={size}"), "--rate_iops=6000"])
            .args(["--verify=crc32c", "--verify_state_save=0", "--verify_backlog=512"])
            .args(["--do_verify=1", "--randseed=7"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    )
}

fn end_of(mut load: Program) {
    let mut said = String::new();
    std::io::Read::read_to_string(&mut load.0.stdout.take().unwrap(), &mut said).unwrap();
    assert!(load.0.wait().unwrap().success() && said.contains("err= 0"), "{said}");
}

fn files(who: &str) -> [String; 6] {
    [
        "--certificate".to_owned(),
        format!("ca/{who}-cert.pem"),
        "--key".to_owned(),
        format!("ca/{who}-key.pem"),
        "--authority".to_owned(),
        "ca/ca-cert.pem".to_owned(),
    ]
}

fn with<'a>(words: &[&'a str], more: &'a [String]) -> Vec<&'a str> {
    words.iter().copied().chain(more.iter().map(String::as_str)).collect()
}

/// From one VDI's process to another's as between two hosts, over TCP with TLS, while a guest
/// writes and checks.
#[tokio::test]
async fn a_disk_under_load_moves_to_another_host() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (from, to) = (site.large("from").await, site.large("to").await);
    authority(site.folder.join("ca").as_std_path(), &["localhost", "127.0.0.1"]);
    let uri = site.ok(&["vdi", "attach", "from"]);
    site.ok(&["vdi", "attach", "to"]);
    guest(&uri, &["write -P 9 0 8M", "flush"]);
    site.refuses(
        &["vdi", "serve", "to", "--listen", "127.0.0.1:0"],
        2,
        "other hosts are served with TLS: the certificates are missing",
    );
    let server = files("server");
    let remote = site.ok(&with(&["vdi", "serve", "to", "--listen", "127.0.0.1:0"], &server));
    assert!(remote.starts_with("nbds://127.0.0.1:") && remote.ends_with(&to.to_string()));
    assert!(site.ok(&["vdi", "show", "to"]).contains(&remote));
    assert!(site.ok(&["vdi", "list", "--attached"]).contains("active, remote"));

    let writer = load(site.folder.as_std_path(), &uri, SIZE);
    site.refuses(
        &["vdi", "mirror", "start", "from", &remote],
        9,
        &format!(
            "the data path of VDI {from}: {remote} needs a certificate, its key and an authority"
        ),
    );
    let client = files("client");
    let start = with(&["vdi", "mirror", "start", "from", &remote, "--rate", "4MiB"], &client);
    let begun = site.json(&start);
    assert_eq!(begun["mirror"]["target"], remote.as_str());
    assert_eq!(begun["mirror"]["rate"], 4 << 20);
    site.ok(&["vdi", "mirror", "rate", "from"]);
    let ready = site.json(&["vdi", "mirror", "status", "from", "--wait"]);
    assert_eq!(ready["mirror"]["phase"], "ready");
    // A snapshot meanwhile changes nothing.
    let snapshot = site.ok(&["vdi", "snapshot", "from", "--name", "s"]);
    assert!(site.ok(&["vdi", "list", "--attached"]).contains("active, mirrored"));
    end_of(writer);
    site.ok(&["vdi", "mirror", "status", "from", "--wait"]);
    let moved = site.json(&["vdi", "mirror", "switch", "from", "--verify"])["moved"].clone();
    assert_eq!((&moved["target"], &moved["verified"]), (&json!(remote), &json!(true)));

    // The source is nobody's disk any more, whoever asks and however.
    let gone = format!("VDI {from} was moved to {remote}");
    assert_eq!(site.json(&["vdi", "show", "from"])["moved"], moved);
    assert_eq!(site.json(&["vdi", "mirror", "switch", "from"])["moved"], moved, "done already");
    let refused = Command::new("qemu-io").args(["-f", "raw", "-c", "read 0 512", &uri]).output();
    assert!(!refused.unwrap().status.success());
    site.refuses(&["vdi", "attach", "from"], 12, &gone);
    site.kill(from);
    site.ok(&["sr", "scan", "sr"]);
    assert!(site.place(from).process().is_none_or(|process| !process.is_alive()));
    site.refuses(&["vdi", "attach", "from"], 12, &gone);
    site.ok(&["vdi", "detach", "from"]);
    assert!(!site.place(from).exists());
    site.refuses(&["vdi", "attach", "from", "--datapath", "other"], 12, &gone);
    site.refuses(&["vdi", "export", "from", "x.raw"], 12, &gone);
    assert!(site.ok(&["vdi", "show", "from"]).contains(&remote));

    // The target goes on: at the same address, also after it was killed.
    site.kill(to);
    site.ok(&["sr", "scan", "sr"]);
    assert_eq!(site.json(&["vdi", "show", "to"])["datapath"]["remote"]["uri"], remote.as_str());
    let far = format!("{remote}?tls-certificates={}", site.folder.join("ca"));
    let copied = Command::new("nbdcopy").args([&far, "far.raw"]).current_dir(&site.folder).output();
    let copied = copied.unwrap();
    assert!(copied.status.success(), "{}", text(&copied.stderr));
    site.ok(&["vdi", "serve", "to", "--stop"]);
    assert_eq!(site.json(&["vdi", "serve", "to", "--stop"])["changed"], "already");
    assert!(!Command::new("nbdinfo").args(["--size", &far]).output().unwrap().status.success());
    site.ok(&["vdi", "detach", "to"]);

    // Whoever knows better gets what stayed behind; both hold the same.
    site.ok(&["vdi", "mirror", "forget", "from"]);
    assert_eq!(site.json(&["vdi", "mirror", "forget", "from"])["changed"], "already");
    for (vdi, file) in [("from", "from.raw"), ("to", "to.raw")] {
        site.ok(&["vdi", "export", vdi, file]);
        assert!(site.ok(&["vdi", "check", vdi]).ends_with("is sound"));
    }
    let read = |file: &str| std::fs::read(site.folder.join(file)).unwrap();
    assert!(read("from.raw") == read("to.raw") && read("far.raw") == read("to.raw"));
    site.ok(&["vdi", "destroy", &snapshot]);
}

#[tokio::test]
async fn what_is_no_target_is_refused_and_nothing_is_changed() {
    let site = Site::new(PLACEMENTS[0]).await;
    let disk = site.large("d").await;
    let start = |uri: &str, status: i32, line: &str| {
        let line = line.replace("VDI:", &format!("the data path of VDI {disk}:"));
        site.refuses(&["vdi", "mirror", "start", "d", uri], status, &line);
    };
    let line = format!("VDI {disk} has no data path on this host, which could mirror it");
    start("nbd://127.0.0.1:1", 14, &line);
    let own = site.ok(&["vdi", "attach", "d"]);
    start(&own, 14, &format!("VDI: {own} is this disk itself"));
    start(
        "d2",
        9,
        "VDI: 'd2' is no NBD address: it does not begin with nbd:, nbds:, nbd+unix: or nbds+unix:",
    );
    let nobody = "nbd://127.0.0.1:1/x";
    start(nobody, 11, &format!("VDI: {nobody}: Connection refused (os error 111)"));
    let (_small, uri) = site.qemu("small", SIZE / 2);
    start(&uri, 7, &format!("VDI: the target has {} bytes, the source {SIZE}", SIZE / 2));
    let words = ["-r", "-f", "raw", "--persistent", "--shared=0", "-k", "{socket}", "{file}"];
    let (_fixed, uri) = site.target("fixed", SIZE, "qemu-nbd", &words);
    start(&uri, 14, &format!("VDI: {uri}: the server lets nobody write"));
    let line = format!("VDI {disk} is not mirrored");
    site.refuses(&["vdi", "mirror", "switch", "d"], 3, &line);
    assert_eq!(site.json(&["vdi", "mirror", "cancel", "d"])["changed"], "already");
    assert_eq!(site.ok(&["vdi", "mirror", "status", "d"]), line);
    site.fails(&["vdi", "mirror", "start", "d", "nbds://h/x", "--key", "k"], 2);
    guest(&own, &["write -P 1 0 64k", "read -P 1 0 64k"]);
    site.ok(&["vdi", "detach", "d"]);
}

#[tokio::test]
async fn a_target_that_fails_is_told_and_a_cancel_leaves_the_disk_alone() {
    let site = Site::new(PLACEMENTS[0]).await;
    site.large("d").await;
    let uri = site.ok(&["vdi", "attach", "d"]);
    let writer = load(site.folder.as_std_path(), &uri, SIZE);
    let words = [
        "-f",
        "-U",
        "{socket}",
        "--filter=error",
        "file",
        "{file}",
        "error=ENOSPC",
        "error-pwrite-rate=100%",
    ];
    let (full, target) = site.target("full", SIZE, "nbdkit", &words);
    site.ok(&["vdi", "mirror", "start", "d", &target]);
    until("the target to be full", || site.phase("d") == "retrying");
    let shown = site.ok(&["vdi", "mirror", "status", "d"]);
    assert!(shown.contains("the target fails and is tried again"), "{shown}");
    assert!(shown.contains("the server has failed: no space left\n"), "{shown}");
    drop(full);
    // Another one takes its place, and has everything from then on.
    let (good, target) = site.qemu("full", SIZE);
    site.ok(&["vdi", "mirror", "status", "d", "--wait"]);
    end_of(writer);
    drop(good);
    // A target that is not written to is not missed.
    guest(&uri, &["write -P 6 0 64k"]);
    until("the death to be seen", || site.phase("d") == "retrying");
    let said = site.fails(&["vdi", "mirror", "switch", "d"], 8);
    assert!(said.contains("the mirror is not ready: its target fails: "), "{said}");
    site.ok(&["vdi", "mirror", "cancel", "d"]);
    assert_eq!(site.phase("d"), Value::Null);

    // It ends with the detach.
    let (_good, again) = site.qemu("full", SIZE);
    assert_eq!(again, target);
    site.ok(&["vdi", "mirror", "start", "d", &target, "--rate", "1MiB"]);
    site.ok(&["vdi", "detach", "d"]);
    assert!(site.ok(&["vdi", "check", "d"]).ends_with("is sound"));
    site.ok(&["vdi", "attach", "d"]);
    assert_eq!(site.phase("d"), Value::Null);
    site.ok(&["vdi", "detach", "d"]);
}

/// Killed while it waits for the target at the switch: nothing has been recorded, so the disk is
/// here, with all that was answered.
#[tokio::test]
async fn a_data_path_that_is_killed_at_the_switch_keeps_the_disk_until_it_is_recorded() {
    let site = Site::new(PLACEMENTS[0]).await;
    let disk = site.large("d").await;
    let uri = site.ok(&["vdi", "attach", "d"]);
    let (peer, target) = site.qemu("t", SIZE);
    guest(&uri, &["write -P 4 1M 64k"]);
    site.ok(&["vdi", "mirror", "start", "d", &target, "--wait"]);
    peer.signal("STOP");
    let asked = site.command(&["vdi", "mirror", "switch", "d"]).stderr(Stdio::piped()).spawn();
    let asked = asked.unwrap();
    until("it to switch", || site.phase("d") == "switching");
    site.kill(disk);
    let said = asked.wait_with_output().unwrap();
    assert_eq!(said.status.code(), Some(11));
    let line = format!(
        "smctl: the data path of VDI {disk} gave no answer, and has not recorded that it moved"
    );
    assert_eq!(text(&said.stderr).lines().next(), Some(line.as_str()));
    site.ok(&["sr", "scan", "sr"]);
    assert_eq!(site.json(&["vdi", "mirror", "status", "d"])["moved"], Value::Null);
    guest(&uri, &["read -P 4 1M 64k", "write -P 5 0 64k"]);
    site.ok(&["vdi", "detach", "d"]);
}

/// Killed as soon as the move is recorded, answered or not: the disk is there, and nothing here
/// opens the source.
#[tokio::test]
async fn a_data_path_that_is_killed_after_the_switch_is_not_raised_from_the_dead() {
    let site = Site::new(PLACEMENTS[0]).await;
    let disk = site.large("d").await;
    site.large("t").await;
    let uri = site.ok(&["vdi", "attach", "d"]);
    let target = site.ok(&["vdi", "attach", "t"]);
    let writer = load(site.folder.as_std_path(), &uri, SIZE);
    site.ok(&["vdi", "mirror", "start", "d", &target, "--wait"]);
    let place = site.place(disk);
    let asked = site.command(&["vdi", "mirror", "switch", "d"]).stdout(Stdio::piped()).spawn();
    let asked = asked.unwrap();
    until("the record", || place.moved().is_some());
    site.kill(disk);
    let said = asked.wait_with_output().unwrap();
    assert!(said.status.success(), "what is recorded is so: {}", text(&said.stderr));
    drop(writer);
    let gone = format!("VDI {disk} was moved to {target}");
    site.ok(&["sr", "scan", "sr"]);
    site.refuses(&["vdi", "attach", "d"], 12, &gone);
    let spec = ["vdi", "snapshot", "d"];
    site.refuses(&spec, 12, &gone);
    assert!(!place.control().exists() || place.lock().unwrap().is_some(), "nobody serves it");
    guest(&target, &["read 0 1M"]);
    site.ok(&["vdi", "detach", "d"]);
    site.refuses(&["vdi", "attach", "d"], 12, &gone);
    // It may come back from there under its UUID.
    site.ok(&["vdi", "destroy", "d"]);
    let uuid = disk.to_string();
    site.ok(&["vdi", "create", "--name", "d", "--size", "8MiB", "--uuid", &uuid]);
    site.ok(&["vdi", "attach", "d"]);
    site.ok(&["vdi", "detach", "d"]);
    site.ok(&["vdi", "detach", "t"]);
}

/// The mirror belongs to the data path: whoever asked may die, also at the switch.
#[tokio::test]
async fn a_control_plane_that_dies_at_the_switch_is_told_by_the_next() {
    let site = Site::new(PLACEMENTS[0]).await;
    let disk = site.large("d").await;
    let uri = site.ok(&["vdi", "attach", "d"]);
    let (peer, target) = site.qemu("t", SIZE);
    guest(&uri, &["write -P 4 1M 64k"]);
    site.ok(&["vdi", "mirror", "start", "d", &target, "--wait"]);
    peer.signal("STOP");
    let mut asked = Program(site.command(&["vdi", "mirror", "switch", "d"]).spawn().unwrap());
    until("it to switch", || site.phase("d") == "switching");
    asked.0.kill().unwrap();
    asked.0.wait().unwrap();
    // Nobody changes anything while that is open.
    let line = format!("VDI {disk} is being moved just now");
    site.refuses(&["vdi", "attach", "d", "--datapath", "x", "--read-only"], 8, &line);
    peer.signal("CONT");
    until("the move", || site.json(&["vdi", "mirror", "status", "d"])["moved"] != Value::Null);
    site.refuses(&["vdi", "attach", "d"], 12, &format!("VDI {disk} was moved to {target}"));
    assert_eq!(site.json(&["vdi", "list", "--attached"])["vdis"][0]["datapath"]["state"], "moved");
    // Ended by a signal, its directory tells it still.
    let pid = site.place(disk).process().unwrap().pid.to_string();
    assert!(Command::new("kill").arg(&pid).status().unwrap().success());
    until("it to end", || site.place(disk).lock().unwrap().is_some());
    site.ok(&["vdi", "detach", "d"]);
    assert_eq!(site.json(&["vdi", "show", "d"])["moved"]["target"], target.as_str());
    let file = std::fs::read(site.folder.join("t")).unwrap();
    assert!(file[1 << 20..][..64 << 10].iter().all(|byte| *byte == 4));
}
