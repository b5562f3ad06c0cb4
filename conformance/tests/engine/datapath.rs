//! Disks that are served: what a guest sees while the control plane comes and goes, and while the
//! images under it change. The guest is a program that others have written.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sm_core::datapath_protocol::State;
use sm_core::model::{Access, AttachMode, Kind, VdiUuid};
use sm_core::{ExportTarget, Limits, NewSnapshot, Op, Rate};

use crate::{PLACEMENTS, Site};

pub(crate) const VM: &str = "vm";

impl Site {
    /// A disk that is attached for writing, and how it is reached.
    pub(crate) async fn served(&self, name: &str) -> (VdiUuid, String) {
        let disk = self.disk(name).await;
        let access = self.sr.vdi_attach(&Op::new(), disk, VM, AttachMode::ReadWrite).await.unwrap();
        self.sr.vdi_activate(&Op::new(), disk, VM).await.unwrap();
        let [Access::Nbd { uri }] = access.as_slice() else { panic!("{access:?}") };
        (disk, uri.clone())
    }

    /// Attaches a disk anew, for writing.
    pub(crate) async fn attach_again(&self, disk: VdiUuid) {
        self.sr.vdi_attach(&Op::new(), disk, VM, AttachMode::ReadWrite).await.unwrap();
        self.sr.vdi_activate(&Op::new(), disk, VM).await.unwrap();
    }

    pub(crate) async fn detach(&self, disk: VdiUuid) {
        self.sr.vdi_deactivate(&Op::new(), disk, VM).await.unwrap();
        self.sr.vdi_detach(&Op::new(), disk, VM).await.unwrap();
    }

    pub(crate) async fn snapshot(&self, disk: VdiUuid) -> VdiUuid {
        let spec = [NewSnapshot { vdi: disk, name: "s".into(), description: String::new() }];
        self.sr.vdi_snapshot(&Op::new(), &spec).await.unwrap().vdis[0].uuid
    }

    pub(crate) async fn pid(&self, disk: VdiUuid) -> u32 {
        self.sr.datapath(disk).await.unwrap().expect("it is served").pid
    }

    /// The content of a disk that nobody writes.
    pub(crate) async fn content(&self, disk: VdiUuid) -> Vec<u8> {
        let path = self.folder.join(format!("{}.raw", Op::new().id));
        let format = sm_core::model::ImageFormat::Raw;
        let target = ExportTarget { path: path.clone(), format, overwrite: false };
        self.sr.export(&Op::new(), disk, target).await.unwrap();
        std::fs::read(path).unwrap()
    }
}

/// Runs commands of `qemu-io` on a disk; they must succeed.
pub(crate) fn guest(uri: &str, commands: &[&str]) {
    let mut program = Command::new("qemu-io");
    program.args(["-f", "raw"]);
    for command in commands {
        program.args(["-c", command]);
    }
    let output = program.arg(uri).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("failed"), "{commands:?}: {text}");
}

/// A child of this very process stays as a zombie until it is waited for.
fn is_gone(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

pub(crate) fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    let until = Instant::now() + Duration::from_secs(60);
    while !is_gone(pid) {
        assert!(Instant::now() < until, "{pid} does not die");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test]
async fn a_disk_is_served_until_its_last_detach_whoever_has_attached_it() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let (disk, uri) = site.served("a").await;
        guest(&uri, &["write -P 1 0 1M", "flush"]);
        let pid = site.pid(disk).await;

        // The control plane ends, another one begins.
        site.manager.clone().close().await;
        let (_manager, sr) = site.again().await;
        guest(&uri, &["read -P 1 0 1M"]);
        let status = sr.datapath(disk).await.unwrap().unwrap();
        assert_eq!((status.pid, status.state), (pid, State::Active));
        assert_eq!(status.statistics.write.bytes, 1 << 20);
        assert!(status.epoch > 1_600_000_000, "{}", status.epoch);
        sr.vdi_attach(&Op::new(), disk, "backup", AttachMode::ReadOnly).await.unwrap();
        sr.vdi_activate(&Op::new(), disk, "backup").await.unwrap();
        sr.scan(&Op::new()).await.unwrap();
        assert_eq!(site.pid(disk).await, pid);

        site.detach(disk).await;
        guest(&uri, &["read -P 1 0 1M"]);
        sr.vdi_deactivate(&Op::new(), disk, "backup").await.unwrap();
        sr.vdi_detach(&Op::new(), disk, "backup").await.unwrap();
        assert!(sr.datapath(disk).await.unwrap().is_none());
        assert!(
            !std::path::Path::new(&format!("/proc/{pid}")).exists() || {
                // A child of this very process stays as a zombie until it is waited for.
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
                stat.contains(") Z ")
            }
        );
    }
}

#[tokio::test]
async fn nobody_is_served_before_activate_and_after_deactivate() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (disk, uri) = site.served("a").await;
    site.sr.vdi_deactivate(&Op::new(), disk, VM).await.unwrap();
    assert_eq!(site.sr.datapath(disk).await.unwrap().unwrap().state, State::Attached);
    let refused = Command::new("qemu-io").args(["-f", "raw", "-c", "read 0 512", &uri]).output();
    assert!(!refused.unwrap().status.success());
    site.sr.vdi_activate(&Op::new(), disk, VM).await.unwrap();
    guest(&uri, &["read -P 0 0 512"]);
    site.detach(disk).await;
}

#[tokio::test]
async fn a_data_path_that_was_killed_is_there_again_with_what_it_had_answered() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (disk, uri) = site.served("a").await;
    // Whoever flushes at its end has all on the storage; this one is killed before.
    let mut writer = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write -P 5 1M 256k", "-c", "sleep 60000", &uri])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while site.sr.datapath(disk).await.unwrap().unwrap().statistics.write.bytes < 256 << 10 {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let pid = site.pid(disk).await;
    kill(pid);
    writer.kill().unwrap();
    writer.wait().unwrap();
    // Anything that looks after it finds that out: a scan, a snapshot, a detach.
    site.sr.scan(&Op::new()).await.unwrap();
    assert_ne!(site.pid(disk).await, pid);
    guest(&uri, &["read -P 5 1M 256k", "write -P 6 2M 64k"]);
    kill(site.pid(disk).await);
    let snapshot = site.snapshot(disk).await;
    kill(site.pid(disk).await);
    site.detach(disk).await;
    assert!(site.sr.vdi_check(&Op::new(), disk).await.unwrap().findings.is_empty());
    for disk in [disk, snapshot] {
        let content = site.content(disk).await;
        assert!(content[1 << 20..][..256 << 10].iter().all(|byte| *byte == 5));
        assert!(content[2 << 20..][..64 << 10].iter().all(|byte| *byte == 6));
    }
}

/// Runs lines of `nbdsh` on a disk; what it said. It needs the Python of the system.
pub(crate) fn nbdsh(uri: &str, lines: &[&str]) -> String {
    let mut program = Command::new("/usr/bin/nbdsh");
    program.env("PATH", "/usr/bin:/bin").args(["-u", uri]);
    for line in lines {
        program.args(["-c", line]);
    }
    let output = program.output().expect("Debian's python3-libnbd is needed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{lines:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Writes without a flush.
pub(crate) fn answered(uri: &str, byte: u8) {
    let write = format!("h.pwrite(bytes([{byte}]) * 262144, 1 << 20)");
    nbdsh(uri, &["import os", &write, "os._exit(0)"]);
}

/// How many sockets the kernel knows under a path: the one that listens, and one for each connection.
fn sockets(path: &std::path::Path) -> usize {
    let all = std::fs::read_to_string("/proc/net/unix").unwrap();
    all.lines().filter(|line| line.ends_with(path.to_str().unwrap())).count()
}

impl Site {
    /// Nothing of the data path of a disk is left, nor of its claim; and the disk has what was
    /// answered.
    async fn is_as_detached(&self, disk: VdiUuid, byte: u8, context: &str) {
        let place = self.processes().disk(&disk.to_string());
        assert!(!place.exists(), "{context}: {:?}", std::fs::read_dir(place.path()));
        let claims = std::fs::read_dir(self.sr_folder().join(".sm/open")).unwrap();
        let claims: Vec<_> = claims.map(|claim| claim.unwrap().file_name()).collect();
        let ours = |name: &&std::ffi::OsString| name.to_str().unwrap().contains(&disk.to_string());
        assert_eq!(claims.iter().find(ours), None, "{context}");
        assert!(self.sr.attachments().unwrap().iter().all(|held| held.vdi != disk), "{context}");
        assert!(self.sr.vdi_check(&Op::new(), disk).await.unwrap().findings.is_empty());
        let content = self.content(disk).await;
        assert!(content[1 << 20..][..256 << 10].iter().all(|is| *is == byte), "{context}");
    }

    /// Where the data paths of this installation are.
    pub(crate) fn processes(&self) -> ::datapath::control::Run {
        ::datapath::control::Run::of_installation(self.folder.join("state").as_std_path())
    }
}

/// It is stopped, so that whoever detaches has to wait for its answer, and killed then.
#[tokio::test]
async fn a_data_path_that_is_killed_while_it_is_detached_leaves_nothing() {
    for (byte, deactivated) in [(5, false), (6, true)] {
        let site = Site::new(PLACEMENTS[0]).await;
        let (disk, uri) = site.served("a").await;
        answered(&uri, byte);
        if deactivated {
            site.sr.vdi_deactivate(&Op::new(), disk, VM).await.unwrap();
        }
        let pid = site.pid(disk).await;
        let control = site.processes().disk(&disk.to_string()).control();
        // The connection of whoever has asked last ends a little later.
        let until = Instant::now() + Duration::from_secs(60);
        while sockets(&control) > 1 {
            assert!(Instant::now() < until, "somebody stays");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(Command::new("kill").args(["-STOP", &pid.to_string()]).status().unwrap().success());
        let sr = site.sr.clone();
        let detach = tokio::spawn(async move {
            if !deactivated {
                sr.vdi_deactivate(&Op::new(), disk, VM).await.unwrap();
            }
            sr.vdi_detach(&Op::new(), disk, VM).await.unwrap();
        });
        while sockets(&control) < 2 {
            assert!(Instant::now() < until, "nobody asks it");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        kill(pid);
        detach.await.unwrap();
        site.is_as_detached(disk, byte, "killed when it was asked").await;
    }
}

/// At any moment of the detach: each time a little later, until it is over before.
#[tokio::test]
async fn a_detach_that_meets_a_kill_at_any_moment_leaves_nothing() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (disk, uri) = site.served("a").await;
    let (mut met, mut late) = (0, 0);
    for round in 1_u8..20 {
        answered(&uri, round);
        let pid = site.pid(disk).await;
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let process =
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let delay = Duration::from_micros(u64::from(round) * 1500);
        let killed = std::thread::spawn(move || {
            std::thread::sleep(delay);
            rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL)
        });
        site.detach(disk).await;
        let in_time = killed.join().unwrap().is_ok();
        site.is_as_detached(disk, round, &format!("killed after {delay:?}")).await;
        (met, late) = if in_time { (met + 1, 0) } else { (met, late + 1) };
        if late == 3 {
            break;
        }
        site.attach_again(disk).await;
    }
    println!("{met} kills met it");
    assert!(met > 0, "every kill came too late");
    let _ = site.sr.vdi_detach(&Op::new(), disk, VM).await;
}

/// Maintenance by another process pauses a disk for as long as it exchanges the images.
#[tokio::test]
async fn a_deactivate_waits_for_the_end_of_somebody_elses_pause() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (disk, uri) = site.served("a").await;
    answered(&uri, 4);
    let place = site.processes().disk(&disk.to_string());
    let control = place.control();
    let mut other = ::datapath::control::find(&place).unwrap().unwrap();
    other.pause(None, Duration::from_secs(30)).unwrap();
    let sr = site.sr.clone();
    let detach = tokio::spawn(async move {
        sr.vdi_deactivate(&Op::new(), disk, VM).await.unwrap();
        sr.vdi_detach(&Op::new(), disk, VM).await.unwrap();
    });
    // The socket that listens, ours, and that of whoever detaches.
    let until = Instant::now() + Duration::from_secs(60);
    while sockets(&control) < 3 {
        assert!(Instant::now() < until, "nobody asks it");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!detach.is_finished(), "it has not waited");
    other.resume(Duration::from_secs(30)).unwrap();
    detach.await.unwrap();
    site.is_as_detached(disk, 4, "paused while it was detached").await;
}

/// Numbers that only grow are written by `fio` in one place after the other, and verified by it.
#[tokio::test]
async fn snapshots_under_load_leave_every_byte_to_the_guest() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let (disk, uri) = site.served("a").await;
        guest(&uri, &["write -P 1 0 8M", "flush"]);
        let before = site.snapshot(disk).await;
        let mut load = Command::new("fio")
            .args(["--name=load", "--ioengine=nbd", &format!("--uri={uri}")])
            .args(["--rw=randwrite", "--bs=4k", "--iodepth=8", "--size=8m", "--io_size=64m"])
            .args([
                "--verify=crc32c",
                "--verify_state_save=0",
                "--verify_backlog=256",
                "--do_verify=1",
                "--randseed=7",
            ])
            .current_dir(&site.folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut taken = 0;
        while load.try_wait().unwrap().is_none() {
            site.snapshot(disk).await;
            taken += 1;
            if taken == 10 {
                break;
            }
        }
        let output = load.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("err= 0"), "{text}");
        assert!(taken > 1, "the load was over before a snapshot");
        site.detach(disk).await;
        assert!(site.sr.vdi_check(&Op::new(), disk).await.unwrap().findings.is_empty());
        assert!(site.content(before).await.iter().all(|byte| *byte == 1));
    }
}

#[tokio::test]
async fn a_disk_that_is_written_can_be_cloned_and_neither_reverted_nor_destroyed() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let (disk, uri) = site.served("a").await;
        guest(&uri, &["write -P 1 0 1M"]);
        let clone = site.sr.vdi_clone(&Op::new(), disk, "c", "").await.unwrap().vdi.uuid;
        guest(&uri, &["write -P 2 0 1M", "read -P 2 0 1M"]);
        assert!(site.content(clone).await[..1 << 20].iter().all(|byte| *byte == 1));

        let snapshot = site.snapshot(disk).await;
        let error = site.sr.vdi_revert(&Op::new(), disk, snapshot).await.unwrap_err();
        assert_eq!(error.kind, Kind::InUse);
        assert_eq!(error.message, format!("VDI {disk} is attached by \"vm\""));
        let error = site.sr.vdi_destroy(&Op::new(), disk).await.unwrap_err();
        assert_eq!(error.kind, Kind::InUse);
        // Its images are not for anybody else to read.
        let path = site.folder.join("x.raw");
        let format = sm_core::model::ImageFormat::Raw;
        let target = ExportTarget { path, format, overwrite: false };
        let error = site.sr.export(&Op::new(), disk, target).await.unwrap_err();
        assert_eq!(error.kind, Kind::InUse);
        site.detach(disk).await;
        assert!(site.sr.vdi_check(&Op::new(), disk).await.unwrap().findings.is_empty());
    }
}

#[tokio::test]
async fn what_another_host_writes_is_not_written_here() {
    let site = Site::new(PLACEMENTS[0]).await;
    let disk = site.disk("a").await;
    let claim = format!("{disk}.there%2c%20boot%201-2%2c%20writing%20since%2012");
    let claims = site.sr_folder().join(".sm/open");
    std::fs::create_dir_all(&claims).unwrap();
    std::fs::write(claims.join(&claim), "").unwrap();
    site.sr.vdi_attach(&Op::new(), disk, VM, AttachMode::ReadWrite).await.unwrap();
    let error = site.sr.vdi_activate(&Op::new(), disk, VM).await.unwrap_err();
    assert_eq!(error.kind, Kind::InUse);
    assert_eq!(error.message, format!("VDI {disk} is being written by host there"));
    let spec = [NewSnapshot { vdi: disk, name: "s".into(), description: String::new() }];
    let error = site.sr.vdi_snapshot(&Op::new(), &spec).await.unwrap_err();
    assert_eq!(error.message, format!("VDI {disk} is being written by host there"));
    std::fs::remove_file(claims.join(&claim)).unwrap();
    site.sr.vdi_activate(&Op::new(), disk, VM).await.unwrap();
    site.detach(disk).await;
    assert_eq!(std::fs::read_dir(claims).unwrap().count(), 0);
}

#[tokio::test]
async fn limits_last_as_long_as_the_attachment() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (disk, _) = site.served("a").await;
    let limits = Limits { operations: Some(Rate { per_second: 100, burst: 100 }), bytes: None };
    site.sr.vdi_limit(&Op::new(), disk, limits).await.unwrap();
    kill(site.pid(disk).await);
    site.sr.scan(&Op::new()).await.unwrap();
    assert_eq!(site.sr.datapath(disk).await.unwrap().unwrap().limits, limits);
    site.detach(disk).await;
    let error = site.sr.vdi_limit(&Op::new(), disk, limits).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported);
}

#[tokio::test]
async fn attaches_that_race_share_one_process() {
    let site = Site::new(PLACEMENTS[0]).await;
    let disk = site.disk("a").await;
    let (_manager, other) = site.again().await;
    let mode = AttachMode::ReadWrite;
    let (first, second) = tokio::join!(
        async { site.sr.vdi_attach(&Op::new(), disk, "one", mode).await.unwrap() },
        async { other.vdi_attach(&Op::new(), disk, "two", mode).await.unwrap() },
    );
    assert_eq!(first, second);
    assert_eq!(site.processes().disks().unwrap().len(), 1);
    let (first, second) =
        tokio::join!(async { site.sr.vdi_activate(&Op::new(), disk, "one").await }, async {
            other.vdi_activate(&Op::new(), disk, "two").await
        },);
    let (error, writer) = match (first, second) {
        (Ok(()), Err(error)) => (error, "one"),
        (Err(error), Ok(())) => (error, "two"),
        both => panic!("one writer: {both:?}"),
    };
    assert_eq!(error.kind, Kind::InUse);
    assert_eq!(error.message, format!("VDI {disk} is being written by {writer:?}"));
}

/// Two state directories with the same SR: neither knows of the processes of the other.
#[tokio::test]
async fn what_one_installation_of_a_host_has_open_another_one_leaves_alone() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (disk, uri) = site.served("a").await;
    guest(&uri, &["write -P 1 0 1M", "flush"]);
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = camino::Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    let manager = crate::manager(&elsewhere, PLACEMENTS[0]).await;
    let config = [("location".to_owned(), site.folder.join("images").into_string())].into();
    let known = sm_core::NewSr {
        driver: "file".into(),
        uuid: Some(site.sr.uuid()),
        device_config: config,
        ..sm_core::NewSr::default()
    };
    manager.sr_introduce(&Op::new(), known).await.unwrap();
    let other = manager.sr(&site.sr.uuid().to_string()).unwrap();

    let ours = site.processes().installation();
    let written =
        format!("VDI {disk} is being written by another installation of this host, {ours}");
    other.vdi_attach(&Op::new(), disk, VM, AttachMode::ReadWrite).await.unwrap();
    let error = other.vdi_activate(&Op::new(), disk, VM).await.unwrap_err();
    assert_eq!((&error.kind, &error.message), (&Kind::InUse, &written));
    let spec = [NewSnapshot { vdi: disk, name: "s".into(), description: String::new() }];
    let error = other.vdi_snapshot(&Op::new(), &spec).await.unwrap_err();
    assert_eq!((&error.kind, &error.message), (&Kind::InUse, &written));
    // Whatever it gives back, and tidies up, is its own.
    other.vdi_detach(&Op::new(), disk, VM).await.unwrap();
    other.vdi_detach(&Op::new(), disk, VM).await.unwrap();
    other.scan(&Op::new()).await.unwrap();
    let dry = sm_core::model::sr::SrMaintain::default();
    other.maintain(&Op::new(), dry).await.unwrap();
    let claims = std::fs::read_dir(site.sr_folder().join(".sm/open")).unwrap();
    let claims: Vec<_> =
        claims.map(|one| one.unwrap().file_name().into_string().unwrap()).collect();
    assert!(claims.len() == 2 && claims.iter().all(|claim| claim.contains(&ours)), "{claims:?}");
    guest(&uri, &["read -P 1 0 1M", "write -P 2 0 1M", "flush"]);
    let snapshot = site.snapshot(disk).await;
    site.detach(disk).await;

    // And the other way round.
    other.vdi_attach(&Op::new(), disk, VM, AttachMode::ReadWrite).await.unwrap();
    other.vdi_activate(&Op::new(), disk, VM).await.unwrap();
    site.sr.vdi_attach(&Op::new(), disk, VM, AttachMode::ReadWrite).await.unwrap();
    let error = site.sr.vdi_activate(&Op::new(), disk, VM).await.unwrap_err();
    assert_eq!(error.kind, Kind::InUse, "{error:?}");
    site.sr.vdi_detach(&Op::new(), disk, VM).await.unwrap();
    other.vdi_deactivate(&Op::new(), disk, VM).await.unwrap();
    other.vdi_detach(&Op::new(), disk, VM).await.unwrap();
    assert!(site.content(snapshot).await[..1 << 20].iter().all(|byte| *byte == 2));
    assert_eq!(std::fs::read_dir(site.sr_folder().join(".sm/open")).unwrap().count(), 0);
    manager.close().await;
}

/// The state directory was lost: nobody knows of the process but its directory.
#[tokio::test]
async fn a_process_that_nobody_needs_is_ended_by_a_scan() {
    let site = Site::new(PLACEMENTS[0]).await;
    let disk = site.disk("a").await;
    let place = site.processes().disk(&disk.to_string());
    let program = crate::path("sm-datapath");
    ::datapath::control::start(&place, program.as_std_path()).unwrap();
    site.sr.scan(&Op::new()).await.unwrap();
    assert!(!place.exists());
}

#[tokio::test]
async fn a_missing_program_is_said_and_nothing_stays() {
    let site = Site::new(PLACEMENTS[0]).await;
    let disk = site.disk("a").await;
    let manager = sm_core::StorageManager::builder(site.folder.join("state"))
        .driver(crate::path("libsm_driver_file.so"))
        .placement(PLACEMENTS[0])
        .datapath("/nowhere/sm-datapath")
        .open()
        .await
        .unwrap();
    let sr = manager.sr(&site.sr.uuid().to_string()).unwrap();
    let error = sr.vdi_attach(&Op::new(), disk, VM, AttachMode::ReadWrite).await.unwrap_err();
    assert_eq!(
        error.message,
        format!(
            "VDI {disk} needs a data path, and the program sm-datapath is not at \
             /nowhere/sm-datapath"
        )
    );
    assert_eq!(sr.attachments().unwrap(), []);
    assert_eq!(std::fs::read_dir(site.sr_folder().join(".sm/open")).unwrap().count(), 0);
}
