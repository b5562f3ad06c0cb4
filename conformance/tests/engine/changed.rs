//! Changed blocks: whatever is written, killed, deleted and grown, a block that differs between two
//! points in time is among those that are called changed; and programs that others have written
//! are told of it.

use std::process::Command;

use sm_core::model::vdi::{CHANGED_BLOCK, VdiChanges, VdiUpdate};
use sm_core::model::{Access, AttachMode, Bytes, ImageFormat, Kind, VdiUuid};
use sm_core::{NewVdi, Op};

use crate::datapath::{VM, guest, kill};
use crate::{PLACEMENTS, Site};

impl Site {
    async fn changes(&self, from: VdiUuid, to: VdiUuid) -> VdiChanges {
        self.sr.vdi_changed(&Op::new(), from, to).await.unwrap()
    }

    /// The ranges that changed, in units of a block; it must be known.
    async fn changed(&self, from: VdiUuid, to: VdiUuid) -> Vec<(u64, u64)> {
        let changes = self.changes(from, to).await;
        assert_eq!((changes.known, &changes.why), (true, &None));
        let ranges = changes.ranges().unwrap();
        ranges.iter().map(|(at, length)| (at / CHANGED_BLOCK, length / CHANGED_BLOCK)).collect()
    }

    async fn cbt(&self, disk: VdiUuid, enabled: bool) {
        let done = self.sr.vdi_cbt(&Op::new(), disk, enabled).await.unwrap();
        assert_eq!(done.vdi.cbt_enabled, enabled);
    }

    async fn is_tracked(&self, vdi: VdiUuid) -> bool {
        let listed = self.sr.vdis(&Op::new()).await.unwrap();
        let told = self.sr.vdi_stat(&Op::new(), vdi, false).await.unwrap().cbt_enabled;
        assert_eq!(listed.iter().find(|info| info.uuid == vdi).unwrap().cbt_enabled, told);
        told
    }

    fn logs(&self) -> usize {
        let folder = self.sr_folder();
        let names = folder.read_dir_utf8().unwrap().map(|entry| entry.unwrap().path().to_owned());
        names.filter(|path| path.extension() == Some("cbtlog")).count()
    }

    /// Attaches what `vdi` is for reading, with what changed since `from`.
    async fn backup(&self, vdi: VdiUuid, from: VdiUuid) -> (String, VdiChanges) {
        let (access, changes) =
            self.sr.vdi_attach_since(&Op::new(), vdi, "backup", from).await.unwrap();
        self.sr.vdi_activate(&Op::new(), vdi, "backup").await.unwrap();
        let [Access::Nbd { uri }] = access.as_slice() else { panic!("{access:?}") };
        (uri.clone(), changes)
    }

    async fn end_backup(&self, vdi: VdiUuid) {
        self.sr.vdi_deactivate(&Op::new(), vdi, "backup").await.unwrap();
        self.sr.vdi_detach(&Op::new(), vdi, "backup").await.unwrap();
    }
}

/// What `nbdinfo` says is dirty: offset and length of each range, in units of a block.
fn dirty(uri: &str, from: VdiUuid) -> Vec<(u64, u64)> {
    let output = Command::new("nbdinfo")
        .args([&format!("--map=qemu:dirty-bitmap:{from}"), "--json", uri])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let map: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |range: &serde_json::Value, key: &str| range[key].as_u64().unwrap();
    let ranges = map.as_array().unwrap().iter().filter(|range| number(range, "type") & 1 == 1);
    ranges
        .map(|range| {
            (number(range, "offset") / CHANGED_BLOCK, number(range, "length") / CHANGED_BLOCK)
        })
        .collect()
}

#[tokio::test]
async fn a_backup_program_reads_what_changed() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let (disk, uri) = site.served("a").await;
        guest(&uri, &["write -P 1 0 1M"]);
        // While it is attached.
        site.cbt(disk, true).await;
        let again = site.sr.vdi_cbt(&Op::new(), disk, true).await.unwrap();
        assert_eq!(again.changed, sm_core::model::Changed::Already);
        assert!(site.sr.datapath(disk).await.unwrap().unwrap().tracked);
        guest(&uri, &["write -P 2 64k 512"]);
        let monday = site.snapshot(disk).await;
        guest(&uri, &["write -P 3 1M 64k", "write -P 3 1100k 4k", "write -z 2M 128k", "flush"]);
        let tuesday = site.snapshot(disk).await;
        guest(&uri, &["discard 4M 64k"]);
        let wednesday = site.snapshot(disk).await;
        let written = [(16, 2), (32, 2)];
        assert_eq!(site.changed(monday, tuesday).await, written);
        assert_eq!(site.changed(tuesday, wednesday).await, [(64, 1)]);
        assert_eq!(site.changed(monday, wednesday).await, [(16, 2), (32, 2), (64, 1)]);
        assert_eq!(site.changed(tuesday, tuesday).await, []);
        let backwards = site.changes(tuesday, monday).await;
        assert!(!backwards.known && backwards.bitmap.is_empty());
        assert_eq!(backwards.ranges().unwrap(), [(0, 8 << 20)]);
        assert_eq!(site.changed(wednesday, disk).await, []);

        let (uri, changes) = site.backup(wednesday, monday).await;
        assert!(changes.known);
        assert_eq!(dirty(&uri, monday), [(16, 2), (32, 2), (64, 1)]);
        // Its data path is killed, and comes back with what it showed.
        kill(site.pid(wednesday).await);
        site.sr.scan(&Op::new()).await.unwrap();
        assert_eq!(dirty(&uri, monday), [(16, 2), (32, 2), (64, 1)]);
        // A second point in time for the same attachment.
        site.backup(wednesday, tuesday).await;
        assert_eq!(dirty(&uri, tuesday), [(64, 1)]);
        assert_eq!(dirty(&uri, monday), [(16, 2), (32, 2), (64, 1)]);
        let shown = site.sr.datapath(wednesday).await.unwrap().unwrap().bitmaps;
        assert_eq!(shown, [monday.to_string(), tuesday.to_string()]);
        let info = Command::new("qemu-img")
            .args(["map", "--output=json", "--image-opts"])
            .arg(format!(
                "driver=nbd,server.type=unix,server.path={},export={wednesday},\
                 x-dirty-bitmap=qemu:dirty-bitmap:{tuesday}",
                uri.rsplit_once("socket=").unwrap().1
            ))
            .output()
            .unwrap();
        assert!(info.status.success(), "{}", String::from_utf8_lossy(&info.stderr));
        let map: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
        // QEMU shows what is dirty as what holds no data.
        let dirty: Vec<_> =
            map.as_array().unwrap().iter().filter(|range| range["data"] == false).collect();
        assert_eq!(dirty.len(), 1, "{map}");
        assert_eq!(dirty[0]["start"], 4 << 20);
        site.end_backup(wednesday).await;
        assert_eq!(site.processes().disks().unwrap().len(), 1, "the disk's own");

        // What is written to cannot be shown with what is fixed.
        let error = site.sr.vdi_attach_since(&Op::new(), disk, "backup", monday).await.unwrap_err();
        assert_eq!(error.kind, Kind::InUse);
        assert_eq!(
            error.message,
            format!("VDI {disk} is attached for writing, so that what changed is not fixed")
        );
        // One in the middle goes while the disk is attached, the last one too.
        site.sr.vdi_destroy(&Op::new(), tuesday).await.unwrap();
        assert_eq!(site.changed(monday, wednesday).await, [(16, 2), (32, 2), (64, 1)]);
        site.sr.vdi_destroy(&Op::new(), wednesday).await.unwrap();
        site.detach(disk).await;
        site.sr.scan(&Op::new()).await.unwrap();
        assert_eq!(site.logs(), 2, "that of the disk and of the snapshot that is left");
        assert_eq!(site.changed(monday, disk).await, [(16, 2), (32, 2), (64, 1)]);
        site.cbt(disk, false).await;
        assert!(site.is_tracked(monday).await && !site.is_tracked(disk).await);
        site.sr.vdi_destroy(&Op::new(), disk).await.unwrap();
        site.sr.vdi_destroy(&Op::new(), monday).await.unwrap();
        assert_eq!(site.logs(), 0);
    }
}

/// What a guest has been answered is told, whatever is going on; and what differs then is among it.
#[tokio::test]
async fn what_has_changed_by_now_is_asked_of_the_data_path() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let (disk, uri) = site.served("a").await;
        site.cbt(disk, true).await;
        guest(&uri, &["write -P 1 0 64k"]);
        let first = site.snapshot(disk).await;
        assert_eq!(site.changed(first, disk).await, []);
        guest(&uri, &["write -P 2 1M 4k"]);
        assert_eq!(site.changed(first, disk).await, [(16, 1)]);
        let second = site.snapshot(disk).await;
        guest(&uri, &["write -z 2M 64k", "discard 3M 64k"]);
        assert_eq!(site.changed(second, disk).await, [(32, 1), (48, 1)]);
        assert_eq!(site.changed(first, disk).await, [(16, 1), (32, 1), (48, 1)]);
        let place = site.processes().disk(&disk.to_string());
        assert!(!place.changed_since("now").exists(), "what was told is not left behind");

        // Blocks in order, each twice: whatever is asked while they are written, those that were
        // there before are told.
        let mut load = Command::new("fio")
            .args(["--name=load", "--ioengine=nbd", &format!("--uri={uri}"), "--rw=write"])
            .args(["--bs=64k", "--iodepth=1", "--offset=4m", "--size=3m", "--loops=2"])
            .args(["--rate_iops=100"])
            .current_dir(&site.folder)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let (mut asked, mut last) = (0, 0);
        while load.try_wait().unwrap().is_none() {
            let answered = site.sr.datapath(disk).await.unwrap().unwrap().statistics.write.bytes;
            let changes = site.changed(second, disk).await;
            let told: u64 = changes.iter().map(|range| range.1).sum();
            // Of all writes since the snapshot: the zeros and the discard are no writes.
            let before = (64 << 10) + 4096;
            let least = ((answered - before) / CHANGED_BLOCK).min(48) + 2;
            assert!(told >= least && told >= last && told <= 50, "{least}, {last}: {changes:?}");
            (asked, last) = (asked + 1, told);
        }
        assert!(load.wait().unwrap().success() && asked > 0);
        let all = [(32, 1), (48, 1), (64, 48)];
        assert_eq!(site.changed(second, disk).await, all);
        // One that was killed knows no more what it was.
        kill(site.pid(disk).await);
        site.sr.scan(&Op::new()).await.unwrap();
        assert_eq!(site.changed(second, disk).await, [(0, 128)]);
        site.detach(disk).await;
    }
}

#[tokio::test]
async fn a_disk_whose_writes_cannot_be_seen_is_not_tracked() {
    let site = Site::new(PLACEMENTS[0]).await;
    let new = |format, sharable| NewVdi {
        name: "n".into(),
        virtual_size: Bytes::mib(8),
        format: Some(format),
        sharable,
        ..NewVdi::default()
    };
    let refused = async |vdi: VdiUuid, why: &str| {
        let error = site.sr.vdi_cbt(&Op::new(), vdi, true).await.unwrap_err();
        assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::Unsupported, 66));
        assert_eq!(error.message, format!("the changes of VDI {vdi} cannot be tracked: {why}"));
    };
    let made = async |new| site.sr.vdi_create(&Op::new(), new).await.unwrap().vdi.uuid;
    let raw = made(new(ImageFormat::Raw, false)).await;
    refused(raw, "it is raw, and its users write the file themselves").await;
    let sharable = made(new(ImageFormat::Vhd, true)).await;
    refused(sharable, "it is sharable, so that several hosts may write it").await;
    let disk = site.disk("a").await;
    let snapshot = site.snapshot(disk).await;
    refused(snapshot, "it is a snapshot").await;
    let update = VdiUpdate {
        vdi: disk,
        name: None,
        description: None,
        vdi_type: None,
        read_only: None,
        keys: std::collections::BTreeMap::new(),
        incomplete: Some(true),
    };
    site.sr.vdi_update(&Op::new(), update).await.unwrap();
    let error = site.sr.vdi_cbt(&Op::new(), disk, true).await.unwrap_err();
    assert!(matches!(error.kind, Kind::Busy { .. }), "{error:?}");
    let missing = VdiUuid::from(uuid::Uuid::from_u128(7));
    let error = site.sr.vdi_changed(&Op::new(), missing, disk).await.unwrap_err();
    assert_eq!(
        (error.kind.clone(), error.message.clone()),
        (Kind::NotFound, format!("there is no VDI {missing}"))
    );
    assert_eq!(site.logs(), 0);
}

/// A job reads and writes images without a data path; a revert puts others in their place.
#[tokio::test]
async fn what_is_written_past_the_data_path_is_not_claimed_to_be_known() {
    let site = Site::new(PLACEMENTS[0]).await;
    let disk = site.disk("a").await;
    site.cbt(disk, true).await;
    let first = site.snapshot(disk).await;
    let access = site.sr.vdi_attach(&Op::new(), disk, VM, AttachMode::ReadWrite).await.unwrap();
    site.sr.vdi_activate(&Op::new(), disk, VM).await.unwrap();
    let [Access::Nbd { uri }] = access.as_slice() else { panic!("{access:?}") };
    guest(uri, &["write -P 1 0 64k"]);
    site.detach(disk).await;
    assert_eq!(site.changed(first, disk).await, [(0, 1)]);
    let clone = site.sr.vdi_clone(&Op::new(), disk, "c", "").await.unwrap().vdi;
    assert!(!clone.cbt_enabled);
    assert_eq!(site.changed(first, disk).await, [(0, 1)]);
    // The name of a job: such a datapath reads and writes the files.
    let job = format!("job-{}", Op::new().id);
    site.sr.vdi_attach(&Op::new(), disk, &job, AttachMode::ReadWrite).await.unwrap();
    site.sr.vdi_activate(&Op::new(), disk, &job).await.unwrap();
    site.sr.vdi_deactivate(&Op::new(), disk, &job).await.unwrap();
    site.sr.vdi_detach(&Op::new(), disk, &job).await.unwrap();
    assert!(!site.changes(first, disk).await.known);
    let second = site.snapshot(disk).await;
    assert!(!site.changes(first, second).await.known);
    assert_eq!(site.changed(second, disk).await, []);
    site.sr.vdi_revert(&Op::new(), disk, first).await.unwrap();
    let reverted = site.changes(second, disk).await;
    assert_eq!(reverted.why, Some(format!("the log of {disk} was not closed")));
    // From the next snapshot on it is known again.
    let third = site.snapshot(disk).await;
    assert_eq!(site.changed(third, disk).await, []);
    let grown = site.sr.vdi_resize(&Op::new(), disk, Bytes::mib(10)).await.unwrap();
    assert_eq!(grown.vdi.virtual_size, Bytes::mib(10));
    assert_eq!(site.changed(third, disk).await, [(128, 32)]);
}

#[tokio::test]
async fn tracking_begins_and_ends_while_a_guest_writes() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let (disk, uri) = site.served("a").await;
        for round in 0..3_u64 {
            site.cbt(disk, true).await;
            let before = site.snapshot(disk).await;
            guest(&uri, &[&format!("write -P 9 {} 4k", round << 20)]);
            let after = site.snapshot(disk).await;
            assert_eq!(site.changed(before, after).await, [(round * 16, 1)]);
            site.cbt(disk, false).await;
            assert!(!site.sr.datapath(disk).await.unwrap().unwrap().tracked);
            guest(&uri, &["write -P 8 3M 4k"]);
            assert!(!site.changes(after, disk).await.known);
        }
        site.detach(disk).await;
    }
}

/// Small numbers from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % bound
    }
}

#[tokio::test]
async fn blocks_that_differ_are_called_changed_whatever_is_killed() {
    let given = std::env::var("CHANGED_SEED").ok().and_then(|text| text.parse().ok());
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed: u64 = given.unwrap_or(u64::from(clock.subsec_nanos()));
    println!("CHANGED_SEED={seed}");
    let mut dice = Dice(seed);
    let (mut known, mut unknown) = (0, 0);
    for _ in 0..3 {
        let site = Site::new(PLACEMENTS[(dice.below(2)) as usize]).await;
        let (disk, uri) = site.served("a").await;
        site.cbt(disk, true).await;
        let mut points = vec![site.snapshot(disk).await];
        let mut attached = true;
        for _ in 0..25 {
            match dice.below(10) {
                0..4 => {
                    if !attached {
                        site.attach_again(disk).await;
                        attached = true;
                    }
                    let (at, pattern) = (dice.below(2000) * 4096, dice.below(255) + 1);
                    let length = (1 + dice.below(40)) * 4096;
                    let length = length.min((8 << 20) - at);
                    guest(&uri, &[&format!("write -P {pattern} {at} {length}")]);
                }
                4 | 5 => points.push(site.snapshot(disk).await),
                6 => {
                    if attached {
                        kill(site.pid(disk).await);
                        if dice.below(2) == 0 {
                            points.push(site.snapshot(disk).await);
                        } else {
                            site.sr.scan(&Op::new()).await.unwrap();
                        }
                    }
                }
                7 => {
                    if points.len() > 1 {
                        let gone = points.remove(dice.below(points.len() as u64) as usize);
                        site.sr.vdi_destroy(&Op::new(), gone).await.unwrap();
                    }
                }
                8 => {
                    if attached {
                        site.detach(disk).await;
                        attached = false;
                    }
                }
                _ => {
                    site.sr.scan(&Op::new()).await.unwrap();
                }
            }
        }
        if attached {
            site.detach(disk).await;
        }
        points.push(disk);
        let mut contents = Vec::new();
        for point in &points {
            contents.push(site.content(*point).await);
        }
        for (index, from) in points.iter().enumerate() {
            for (to, content) in points.iter().zip(&contents).skip(index + 1) {
                let changes = site.changes(*from, *to).await;
                if changes.known {
                    known += 1;
                } else {
                    unknown += 1;
                }
                let bits = changes.bits().unwrap();
                let blocks = contents[index].chunks(CHANGED_BLOCK as usize);
                for (block, (before, after)) in
                    blocks.zip(content.chunks(CHANGED_BLOCK as usize)).enumerate()
                {
                    let said = bits[block / 8] & (0x80 >> (block % 8)) != 0;
                    assert!(said || before == after, "block {block} from {from} to {to} differs");
                }
            }
        }
    }
    println!("{known} differences known, {unknown} not");
    assert!(known > 0);
}
