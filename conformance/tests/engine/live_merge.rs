//! Chains become shorter, and disks larger, while guests use them. The guests are programs that
//! others have written.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sm_core::datapath_protocol::State;
use sm_core::model::sr::{Budget, SrMaintain, SrMaintained, Stopped};
use sm_core::model::vdi::NodeKind;
use sm_core::model::{Access, AttachMode, Bytes, Kind, VdiUuid};
use sm_core::{NewVdi, Op};

use crate::datapath::{guest, kill};
use crate::{PLACEMENTS, Site, files};

/// Longest wait for anything that must happen.
const LONG: Duration = Duration::from_secs(60);

impl Site {
    pub(crate) async fn maintain(&self) -> SrMaintained {
        self.maintain_within(Budget::default()).await
    }

    pub(crate) async fn maintain_within(&self, budget: Budget) -> SrMaintained {
        self.sr.maintain(&Op::new(), SrMaintain { budget, dry_run: false }).await.unwrap()
    }

    async fn plan(&self) -> SrMaintained {
        let dry = SrMaintain { dry_run: true, ..SrMaintain::default() };
        self.sr.maintain(&Op::new(), dry).await.unwrap()
    }

    /// How many base copies there are.
    pub(crate) async fn bases(&self) -> usize {
        let nodes = self.sr.tree(&Op::new()).await.unwrap().nodes;
        nodes.iter().filter(|node| node.kind == NodeKind::BaseCopy).count()
    }

    pub(crate) async fn check(&self, disks: &[VdiUuid]) {
        for disk in disks {
            let checked = self.sr.vdi_check(&Op::new(), *disk).await.unwrap();
            assert_eq!(checked.findings, [], "{disk}");
        }
    }

    pub(crate) async fn until_it_merges(&self) {
        let until = Instant::now() + LONG;
        while self.left_over().is_empty() {
            assert!(Instant::now() < until, "it does not begin");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// What maintenance, or a change that was cut, would have left.
    fn left_over(&self) -> Vec<String> {
        let ours = |file: &String| {
            [".sm/merge/", ".sm/journal/", ".sm/tmp/"].iter().any(|area| file.starts_with(area))
        };
        files(&self.sr_folder()).into_iter().filter(ours).collect()
    }

    /// A disk of 64 MiB that is served, with one base copy that only it needs.
    async fn with_base(&self) -> (VdiUuid, String) {
        let new = NewVdi { name: "a".into(), virtual_size: Bytes::mib(64), ..NewVdi::default() };
        let disk = self.sr.vdi_create(&Op::new(), new).await.unwrap().vdi.uuid;
        let uri = self.serve(disk, AttachMode::ReadWrite).await;
        guest(&uri, &["write -P 1 0 32M", "flush"]);
        let snapshot = self.snapshot(disk).await;
        self.sr.vdi_destroy(&Op::new(), snapshot).await.unwrap();
        guest(&uri, &["write -P 2 16M 32M", "flush"]);
        (disk, uri)
    }

    pub(crate) async fn serve(&self, disk: VdiUuid, mode: AttachMode) -> String {
        let access = self.sr.vdi_attach(&Op::new(), disk, "vm", mode).await.unwrap();
        self.sr.vdi_activate(&Op::new(), disk, "vm").await.unwrap();
        let [Access::Nbd { uri }] = access.as_slice() else { panic!("{access:?}") };
        uri.clone()
    }
}

/// `fio` that verifies what it writes, until it has written so many MiB.
fn load(site: &Site, uri: &str, size: u32, all: u32) -> Child {
    Command::new("fio")
        .args(["--name=load", "--ioengine=nbd", &format!("--uri={uri}")])
        .args(["--rw=randwrite", "--bs=4k", "--iodepth=8"])
        .args([&format!("--size={size}m"), &format!("--io_size={all}m")])
        .args(["--verify=crc32c", "--verify_state_save=0", "--verify_backlog=256"])
        .args(["--do_verify=1", "--randseed=7"])
        .current_dir(&site.folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// As [`guest`], of a disk that is only read.
fn reader_sees(uri: &str, commands: &[&str]) {
    let mut program = Command::new("qemu-io");
    program.args(["-r", "-f", "raw"]);
    for command in commands {
        program.args(["-c", command]);
    }
    let output = program.arg(uri).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("failed"), "{commands:?}: {text}");
}

fn verified(load: Child) {
    let output = load.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("err= 0"), "{text}");
}

#[tokio::test]
async fn the_leaf_of_a_disk_is_merged_while_it_is_written() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let (disk, uri) = site.with_base().await;
        let plan = site.plan().await;
        assert_eq!((plan.planned.len(), plan.skipped.len()), (1, 0), "{plan:?}");
        assert!(plan.planned[0].live && plan.planned[0].node == disk);
        assert_eq!(plan.planned[0].bytes, Bytes::mib(32));
        let pid = site.pid(disk).await;
        let load = load(&site, &uri, 16, 192);
        let done = site.maintain().await;
        assert!(done.finished && done.merged.len() == 1, "{done:?}");
        let merged = &done.merged[0];
        assert!(merged.live && merged.node == disk, "{done:?}");
        assert!(merged.bytes_copied >= Bytes::mib(32), "{done:?}");
        assert_eq!((done.remaining, done.skipped.len(), site.bases().await), (0, 0, 0));
        verified(load);
        guest(&uri, &["read -P 2 16M 32M", "read -P 0 48M 16M", "write -P 3 60M 1M"]);
        assert_eq!(site.pid(disk).await, pid, "the process is another one");
        assert_eq!(site.left_over(), [] as [String; 0]);
        // A snapshot of what is served now.
        let snapshot = site.snapshot(disk).await;
        guest(&uri, &["read -P 3 60M 1M", "write -P 4 60M 1M"]);
        site.detach(disk).await;
        site.check(&[disk, snapshot]).await;
        let (now, then) = (site.content(disk).await, site.content(snapshot).await);
        assert!(now[16 << 20..48 << 20].iter().all(|byte| *byte == 2));
        assert_eq!((now[60 << 20], then[60 << 20]), (4, 3));
    }
}

#[tokio::test]
async fn base_copies_are_merged_below_disks_that_are_in_use() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let (disk, uri) = site.served("a").await;
        let mut snapshots = Vec::new();
        for level in 1..5_u8 {
            let at = u32::from(level) * 512;
            guest(&uri, &[&format!("write -P {level} {at}k 1M"), "flush"]);
            snapshots.push(site.snapshot(disk).await);
        }
        guest(&uri, &["write -P 9 7M 64k", "flush"]);
        // Below the disk's own image, whose parent the last snapshot needs as well; and one deeper.
        for gone in [0, 2] {
            site.sr.vdi_destroy(&Op::new(), snapshots[gone]).await.unwrap();
        }
        // Somebody reads, too, and has the disk's parent below him.
        let reader = site.serve(snapshots[3], AttachMode::ReadOnly).await;
        reader_sees(&reader, &["read -P 4 2048k 1M"]);
        let before = site.content(snapshots[1]).await;
        assert_eq!(site.bases().await, 4);
        let plan = site.plan().await;
        assert!(
            plan.planned.iter().all(|merge| !merge.live) && plan.planned.len() == 2,
            "{plan:?}"
        );

        let load = load(&site, &uri, 4, 64);
        let done = site.maintain().await;
        assert!(done.finished && done.merged.len() == 2, "{done:?}");
        assert!(done.merged.iter().all(|merge| merge.live), "{done:?}");
        assert_eq!((done.skipped.len(), site.bases().await), (0, 2), "{done:?}");
        verified(load);
        assert_eq!(site.left_over(), [] as [String; 0]);
        // Nothing that is gone is open still.
        for disk in [disk, snapshots[3]] {
            let pid = site.pid(disk).await;
            let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
            let open: Vec<String> = open
                .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
                .map(|path| path.display().to_string())
                .filter(|path| path.contains(".vhd"))
                .collect();
            assert!(open.iter().all(|path| !path.contains("deleted")), "{open:?}");
            let plan = site.sr.datapath(disk).await.unwrap().unwrap().plan.unwrap();
            assert_eq!(plan.backing.len(), 2);
        }
        reader_sees(&reader, &["read -P 4 2048k 1M", "read -P 1 512k 512k"]);
        guest(&uri, &["read -P 9 7M 64k"]);
        site.detach(disk).await;
        site.detach(snapshots[3]).await;
        site.check(&[disk, snapshots[1], snapshots[3]]).await;
        assert!(site.content(snapshots[1]).await == before);
    }
}

#[tokio::test]
async fn what_is_open_in_another_way_is_left_alone() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (disk, uri) = site.with_base().await;
    // By another host.
    let claims = site.sr_folder().join(".sm/open");
    let claim = claims.join(format!("{disk}.there%2c%20boot%201-2"));
    std::fs::write(&claim, "").unwrap();
    let done = site.maintain().await;
    assert_eq!((done.merged.len(), done.skipped.len()), (0, 1), "{done:?}");
    assert_eq!(done.skipped[0].reason, "is part of a disk that is open: there, boot 1-2");
    std::fs::remove_file(&claim).unwrap();
    // A disk that has become larger than its parent.
    site.sr.vdi_resize(&Op::new(), disk, Bytes::mib(80)).await.unwrap();
    let done = site.maintain().await;
    assert_eq!((done.merged.len(), done.skipped.len()), (0, 1), "{done:?}");
    let reason = &done.skipped[0].reason;
    assert!(reason.contains("is smaller, and a disk above is open"), "{reason}");
    guest(&uri, &["read -P 2 16M 32M"]);
    site.detach(disk).await;
    // Closed, it can be done.
    assert_eq!(site.maintain().await.merged.len(), 1);
    site.check(&[disk]).await;
}

#[tokio::test]
async fn a_merge_keeps_to_its_budget_and_a_cancel_ends_it_soon() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (disk, uri) = site.with_base().await;
    let slow = Budget { bytes_per_second: Some(Bytes::mib(1)), ..Budget::default() };
    let began = Instant::now();
    let done = site.maintain_within(Budget { seconds: Some(1), ..slow.clone() }).await;
    assert_eq!((done.stopped, done.remaining), (Some(Stopped::OutOfTime), 1), "{done:?}");
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(site.left_over(), [] as [String; 0]);

    let op = Op::new();
    let id = op.id;
    let (sr, budget) = (site.sr.clone(), slow);
    let work =
        tokio::spawn(async move { sr.maintain(&op, SrMaintain { budget, dry_run: false }).await });
    site.until_it_merges().await;
    site.manager.job_cancel(id).unwrap();
    let error = work.await.unwrap().unwrap_err();
    assert_eq!(error.kind, Kind::Cancelled);
    guest(&uri, &["read -P 2 16M 32M", "write -P 3 0 1M"]);
    assert_eq!(site.maintain().await.merged.len(), 1);
    guest(&uri, &["read -P 3 0 1M", "read -P 1 1M 15M", "read -P 2 16M 32M"]);
    site.detach(disk).await;
    site.check(&[disk]).await;
}

/// What a budget has let through is not copied again, but for what the guest writes in between.
#[tokio::test]
async fn a_merge_whose_time_was_over_goes_on_where_it_was() {
    let site = Site::new(PLACEMENTS[1]).await;
    let (disk, uri) = site.with_base().await;
    let bytes_per_second = Some(Bytes::mib(10));
    let some = Budget { bytes_per_second, seconds: Some(1), ..Budget::default() };
    let first = site.maintain_within(some.clone()).await;
    assert_eq!((first.stopped, first.remaining), (Some(Stopped::OutOfTime), 1), "{first:?}");
    assert!(
        first.bytes_copied >= Bytes::mib(1) && first.bytes_copied < Bytes::mib(32),
        "{first:?}"
    );
    let second = site.maintain_within(some).await;
    assert_eq!((second.stopped, second.remaining), (Some(Stopped::OutOfTime), 1), "{second:?}");
    // Where nothing was copied yet, if anywhere; and where the parent has it.
    guest(&uri, &["write -P 7 50M 64k", "write -P 8 16M 64k", "flush"]);
    let third = site.maintain().await;
    assert_eq!((third.merged.len(), third.skipped.len()), (1, 0), "{third:?}");
    let all = [first, second, third].iter().map(|done| done.bytes_copied.0).sum::<u64>();
    // What was written in between is copied, perhaps again; and what is copied between the last look
    // and the end of the time is not counted.
    let most = (32 << 20) + 2 * (64 << 10);
    assert!((most - (4 << 20)..=most).contains(&all), "{all} bytes were copied");
    let whole = ["read -P 8 16M 64k", "read -P 7 50M 64k", "read -P 1 0 16M"];
    guest(&uri, &whole);
    guest(&uri, &["read -P 2 16448k 32704k"]);
    site.detach(disk).await;
    site.check(&[disk]).await;
    assert!(site.content(disk).await[48 << 20..50 << 20].iter().all(|byte| *byte == 0));
}

/// A percent of a processor is not enough for so much in a second.
#[tokio::test]
async fn a_merge_by_the_data_path_keeps_to_its_share_of_a_processor() {
    let site = Site::new(PLACEMENTS[0]).await;
    let size = Bytes::mib(512);
    let new = NewVdi { name: "a".into(), virtual_size: size, ..NewVdi::default() };
    let disk = site.sr.vdi_create(&Op::new(), new).await.unwrap().vdi.uuid;
    let uri = site.serve(disk, AttachMode::ReadWrite).await;
    guest(&uri, &["write -P 1 0 1M", "flush"]);
    let snapshot = site.snapshot(disk).await;
    site.sr.vdi_destroy(&Op::new(), snapshot).await.unwrap();
    guest(&uri, &["write -P 2 0 256M", "flush"]);
    let little = Budget { cpu_percent: Some(1), seconds: Some(1), ..Budget::default() };
    let done = site.maintain_within(little).await;
    assert_eq!((done.stopped, done.remaining), (Some(Stopped::OutOfTime), 1), "{done:?}");
    assert!(done.bytes_copied < Bytes::mib(128), "{done:?}");
    assert_eq!(site.maintain().await.merged.len(), 1);
    guest(&uri, &["read -P 2 0 256M"]);
    site.detach(disk).await;
}

#[tokio::test]
async fn snapshots_come_first_and_merges_go_on_the_next_time() {
    let site = Site::new(PLACEMENTS[1]).await;
    let (disk, uri) = site.with_base().await;
    let load = load(&site, &uri, 16, 256);
    let (mut merged, mut outrun) = (0, 0);
    for round in 0..6 {
        let slow = Budget { bytes_per_second: Some(Bytes::mib(64)), ..Budget::default() };
        let sr = site.sr.clone();
        let work = tokio::spawn(async move {
            sr.maintain(&Op::new(), SrMaintain { budget: slow, dry_run: false }).await.unwrap()
        });
        tokio::time::sleep(Duration::from_millis(40 * round)).await;
        let snapshot = site.snapshot(disk).await;
        let done = work.await.unwrap();
        merged += done.merged.len();
        outrun += done.skipped.len();
        site.sr.vdi_destroy(&Op::new(), snapshot).await.unwrap();
    }
    verified(load);
    println!("{merged} merged, {outrun} outrun by a snapshot");
    let done = site.maintain().await;
    assert_eq!((done.skipped.len(), site.bases().await), (0, 0), "{done:?}");
    guest(&uri, &["read -P 2 16M 32M"]);
    assert_eq!(site.left_over(), [] as [String; 0]);
    site.detach(disk).await;
    site.check(&[disk]).await;
}

#[tokio::test]
async fn a_data_path_that_is_killed_in_a_merge_loses_nothing() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (disk, uri) = site.with_base().await;
    guest(&uri, &["write -P 5 62M 1M", "flush"]);
    let slow = Budget { bytes_per_second: Some(Bytes::mib(2)), ..Budget::default() };
    let pid = site.pid(disk).await;
    let sr = site.sr.clone();
    let work = tokio::spawn(async move {
        sr.maintain(&Op::new(), SrMaintain { budget: slow, dry_run: false }).await.unwrap()
    });
    site.until_it_merges().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    kill(pid);
    let done = work.await.unwrap();
    assert_eq!((done.merged.len(), done.skipped.len()), (0, 1), "{done:?}");
    assert!(done.skipped[0].reason.starts_with("the data path did not merge it: "), "{done:?}");
    site.sr.scan(&Op::new()).await.unwrap();
    guest(&uri, &["read -P 5 62M 1M", "read -P 2 16M 32M", "read -P 1 0 16M"]);
    let done = site.maintain().await;
    assert_eq!((done.merged.len(), site.bases().await), (1, 0), "{done:?}");
    guest(&uri, &["read -P 5 62M 1M", "read -P 2 16M 32M", "read -P 1 0 16M"]);
    site.detach(disk).await;
    site.check(&[disk]).await;
    assert_eq!(site.left_over(), [] as [String; 0]);
}

/// The control plane is killed at a step of the switch, and the data path at once after it, whatever
/// it has done by then.
#[tokio::test]
async fn whoever_is_killed_at_the_switch_the_disk_is_whole() {
    let steps = [
        "core.datapath_merging",
        "core.datapath_converged",
        "sr_maintain.converged",
        "sr_maintain.journalled",
        "sr_maintain.base_shown",
        "sr_maintain.disk_replaced",
        "sr_maintain.live_replaced",
        "sr_maintain.live_went_on",
    ];
    for step in steps {
        let site = Site::new(PLACEMENTS[0]).await;
        let (disk, uri) = site.with_base().await;
        let pid = site.pid(disk).await;
        let status = Command::new(crate::path("smctl"))
            .args(["sr", "maintain", &site.sr.uuid().to_string()])
            .env("SMCTL_STATE_DIR", site.folder.join("state"))
            .env("SM_STEP_KILL", step)
            .output()
            .unwrap()
            .status;
        assert!(!status.success(), "{step} was not reached");
        kill(pid);
        site.sr.scan(&Op::new()).await.unwrap();
        assert!(site.sr.datapath(disk).await.unwrap().is_some_and(|now| now.pid != pid), "{step}");
        guest(&uri, &["read -P 2 16M 32M", "read -P 1 0 16M", "write -P 3 63M 1M"]);
        let done = site.maintain().await;
        assert_eq!((done.skipped.len(), site.bases().await), (0, 0), "{step}: {done:?}");
        guest(&uri, &["read -P 2 16M 32M", "read -P 1 0 16M", "read -P 3 63M 1M"]);
        assert_eq!(site.left_over(), [] as [String; 0], "{step}");
        site.detach(disk).await;
        site.check(&[disk]).await;
    }
}

#[tokio::test]
async fn a_disk_grows_while_it_is_written() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let (disk, uri) = site.with_base().await;
        let load = load(&site, &uri, 16, 96);
        let reader = site.sr.vdi_attach(&Op::new(), disk, "reader", AttachMode::ReadOnly).await;
        assert_eq!(reader.unwrap(), [Access::Nbd { uri: uri.clone() }]);
        for size in [96, 128, 16 << 10] {
            let done = site.sr.vdi_resize(&Op::new(), disk, Bytes::mib(size)).await.unwrap();
            assert_eq!(done.vdi.virtual_size, Bytes::mib(size));
            let seen = Command::new("nbdinfo").args(["--size", &uri]).output().unwrap();
            let seen = String::from_utf8(seen.stdout).unwrap();
            assert_eq!(seen.trim(), (size << 20).to_string(), "a client that connects now");
            assert_eq!(site.sr.datapath(disk).await.unwrap().unwrap().size, size << 20);
        }
        verified(load);
        guest(&uri, &["write -P 7 16383M 1M", "read -P 7 16383M 1M", "read -P 2 16M 32M"]);
        let error = site.sr.vdi_resize(&Op::new(), disk, Bytes::mib(64)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Limit, "{error:?}");
        assert_eq!(site.sr.datapath(disk).await.unwrap().unwrap().state, State::Active);
        site.sr.vdi_detach(&Op::new(), disk, "reader").await.unwrap();
        site.detach(disk).await;
        site.check(&[disk]).await;
        assert_eq!(site.left_over(), [] as [String; 0]);
    }
}

#[tokio::test]
async fn a_disk_that_is_attached_without_a_data_path_does_not_grow() {
    let site = Site::new(PLACEMENTS[0]).await;
    let format = Some(sm_core::model::ImageFormat::Raw);
    let size = Bytes::mib(8);
    let new = NewVdi { name: "r".into(), virtual_size: size, format, ..NewVdi::default() };
    let disk = site.sr.vdi_create(&Op::new(), new).await.unwrap().vdi.uuid;
    site.sr.vdi_attach(&Op::new(), disk, "vm", AttachMode::ReadWrite).await.unwrap();
    let error = site.sr.vdi_resize(&Op::new(), disk, Bytes::mib(16)).await.unwrap_err();
    assert_eq!(error.message, format!("VDI {disk} is attached by \"vm\""));
    assert_eq!(error.kind, Kind::InUse);
    site.sr.vdi_detach(&Op::new(), disk, "vm").await.unwrap();
}
