//! A full disk in the middle of each operation, and a directory that cannot be written: on small
//! file systems of their own, in a mount namespace of their own.

use std::fs::File;
use std::io::Write;
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use sm_core::model::sr::{Budget, SrMaintain};
use sm_core::model::vdi::VdiInfo;
use sm_core::model::{AttachMode, Bytes, ImageFormat, Kind, VdiUuid};
use sm_core::{ExportTarget, ImportSource, NewSnapshot, NewVdi, Op, Placement};

use crate::datapath::{guest, nbdsh};
use crate::{PLACEMENTS, Site, files};

/// Runs this test again in a mount namespace of its own, where `true` is answered.
fn in_namespace(test: &str) -> bool {
    const VARIABLE: &str = "TEST_IN_NAMESPACE";
    if std::env::var_os(VARIABLE).is_some() {
        return true;
    }
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(VARIABLE, "1")
        .status()
        .expect("unshare, of Debian's util-linux, and root are needed");
    assert!(status.success(), "{test} failed in its namespace");
    false
}

fn mount(folder: &Utf8Path, options: &str) {
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "tmpfs", folder.as_str()])
        .status()
        .unwrap();
    assert!(status.success(), "mount {options}");
}

/// A file that takes all the space but some.
struct Ballast(Utf8PathBuf);

impl Ballast {
    fn leaving(folder: &Utf8Path, free: u64) -> Self {
        let path = folder.join("ballast");
        let space = rustix::fs::statvfs(folder.as_std_path()).unwrap();
        let bytes = (space.f_bavail * space.f_frsize).saturating_sub(free);
        let mut file = File::create(&path).unwrap();
        let piece = vec![0x5a; 4096];
        for _ in 0..bytes / 4096 {
            file.write_all(&piece).unwrap();
        }
        Self(path)
    }
}

impl Ballast {
    /// Takes all that there is, while somebody else may take some of it too.
    fn all_of(folder: &Utf8Path) -> Self {
        let path = folder.join("ballast");
        let mut file = File::create(&path).unwrap();
        while file.write_all(&[0x5a; 4096]).is_ok() {}
        Self(path)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What the test does to the SR; answers the error's kind.
async fn attempt(site: &Site, what: &str, op: &Op, disks: &Disks) -> Result<(), Kind> {
    let sr = &site.sr;
    let kind = |error: sm_core::model::Error| {
        println!("  {what}: {error}");
        error.kind.clone()
    };
    let new = || NewVdi { virtual_size: Bytes::gib(100), name: "new".into(), ..NewVdi::default() };
    let named = |vdi| [NewSnapshot { vdi, name: "s".into(), description: String::new() }];
    match what {
        "create" => sr.vdi_create(op, new()).await.map(drop).map_err(kind),
        "snapshot" => sr.vdi_snapshot(op, &named(disks.large)).await.map(drop).map_err(kind),
        "clone" => sr.vdi_clone(op, disks.large, "c", "").await.map(drop).map_err(kind),
        "snapshot raw" => sr.vdi_snapshot(op, &named(disks.raw)).await.map(drop).map_err(kind),
        "revert" => sr.vdi_revert(op, disks.large, disks.snapshot).await.map(drop).map_err(kind),
        "resize" => sr.vdi_resize(op, disks.large, Bytes::gib(900)).await.map(drop).map_err(kind),
        "import" => {
            let from = ImportSource::File { path: site.folder.join("in.raw"), format: None };
            sr.import(op, from, NewVdi::default()).await.map(drop).map_err(kind)
        }
        _ => unreachable!("{what}"),
    }
}

/// The disks, without the space they take: an undone move of blocks has made the file longer.
async fn listing(site: &Site, scan: bool) -> Vec<VdiInfo> {
    let op = Op::new();
    let mut vdis =
        if scan { site.sr.scan(&op).await.unwrap().vdis } else { site.sr.vdis(&op).await.unwrap() };
    for vdi in &mut vdis {
        vdi.physical_utilisation = Bytes(0);
        vdi.exclusive = None;
    }
    vdis
}

struct Disks {
    large: VdiUuid,
    snapshot: VdiUuid,
    raw: VdiUuid,
}

async fn hash(site: &Site, vdi: VdiUuid) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let path = site.folder.join("hash.vhd");
    let target = ExportTarget { path: path.clone(), format: ImageFormat::Vhd, overwrite: true };
    site.sr.export(&Op::new(), vdi, target).await.unwrap();
    let disk = vhd::Chain::single(vhd::Layer::Vhd(path.as_std_path()), vhd::Mode::Read).unwrap();
    let mut hasher = DefaultHasher::new();
    for extent in vhd::Extents::new(&disk, 0, vhd::Disk::size(&disk)) {
        let extent = extent.unwrap();
        if extent.kind == vhd::ExtentKind::Data {
            let mut bytes = vec![0; extent.length as usize];
            vhd::Disk::read_at(&disk, extent.offset, &mut bytes).unwrap();
            hasher.write_u64(extent.offset);
            hasher.write(&bytes);
        }
    }
    hasher.finish()
}

/// The law: an error of kind `no_space`, every disk as it was, nothing left over, and with space
/// the same operation works.
#[tokio::test]
async fn a_full_disk_costs_nothing_but_the_operation() {
    if !in_namespace("space::a_full_disk_costs_nothing_but_the_operation") {
        return;
    }
    for placement in PLACEMENTS {
        let temporary = tempfile::tempdir().unwrap();
        let outer = Utf8PathBuf::from_path_buf(temporary.path().to_owned()).unwrap();
        let site = small_site(&outer, placement).await;
        let images = site.folder.join("images");
        let large = site
            .sr
            .vdi_create(
                &Op::new(),
                NewVdi { virtual_size: Bytes::gib(100), name: "large".into(), ..NewVdi::default() },
            )
            .await
            .unwrap()
            .vdi
            .uuid;
        fill(&site, large, 1);
        let spec = [NewSnapshot { vdi: large, name: "s".into(), description: String::new() }];
        let snapshot = site.sr.vdi_snapshot(&Op::new(), &spec).await.unwrap().vdis[0].uuid;
        fill(&site, large, 2);
        let new = NewVdi {
            virtual_size: Bytes::mib(4),
            format: Some(ImageFormat::Raw),
            ..NewVdi::default()
        };
        let raw = site.sr.vdi_create(&Op::new(), new).await.unwrap().vdi.uuid;
        fill(&site, raw, 3);
        let disks = Disks { large, snapshot, raw };
        std::fs::write(site.folder.join("in.raw"), vec![0x77; 8 << 20]).unwrap();

        let all = [large, snapshot, raw];
        for what in ["create", "snapshot", "clone", "snapshot raw", "revert", "resize", "import"] {
            // From no space at all to nearly enough: the cut comes at different places.
            // What the operation before did when there was space is no loss.
            let mut contents = Vec::new();
            for vdi in all {
                contents.push(hash(&site, vdi).await);
            }
            // One wish, asked again and again.
            let op = Op::new();
            let mut refused = 0;
            for free in [0, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20] {
                let before = (listing(&site, false).await, files(&site.sr_folder()));
                let ballast = Ballast::leaving(&images, free);
                let result = attempt(&site, what, &op, &disks).await;
                if result.is_ok() {
                    break;
                }
                refused += 1;
                assert_eq!(result, Err(Kind::NoSpace), "{what} with {free} bytes free");
                let vdis = listing(&site, true).await;
                assert_eq!(vdis, before.0, "{what} with {free} bytes free");
                assert_eq!(files(&site.sr_folder()), before.1, "{what} with {free} bytes free");
                for (vdi, content) in all.iter().zip(&contents) {
                    assert_eq!(hash(&site, *vdi).await, *content, "{what} with {free} free");
                }
                drop(ballast);
            }
            assert!(refused > 0, "{what} never met the full disk");
            assert_eq!(attempt(&site, what, &op, &disks).await, Ok(()), "{what} with space");
            println!("{what}: refused with {refused} amounts of free space");
        }
    }
}

/// Runs a program on a disk; what it said.
fn said(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What a guest meets on a full disk, by three programs that others have written: each request that
/// needs space fails with that very error, and all others are done.
fn meets_a_full_disk(uri: &str) {
    let script = "import errno
def attempt(at):
    try:
        h.pwrite(bytes([9]) * 1048576, at)
        return 'written'
    except nbd.Error as error:
        return error.errno
print('new', attempt(40 << 20), 'old', attempt(5 << 20), 'new', attempt(48 << 20))
h.flush()
print('read', set(h.pread(1 << 20, 5 << 20)), set(h.pread(1 << 20, 7 << 20)))
print('nothing', set(h.pread(1 << 20, 32 << 20)))";
    let told = nbdsh(uri, &[script]);
    let expected = "new ENOSPC old written new ENOSPC\nread {9} {2}\nnothing {0}\n";
    assert_eq!(told, expected);
    let told = said("qemu-io", &["-f", "raw", "-c", "write -P 3 44M 1M", uri]);
    assert!(told.contains("write failed: No space left on device"), "{told}");
    let uri = format!("--uri={uri}");
    let words = ["--name=n", "--ioengine=nbd", &uri, "--rw=write", "--bs=1M"];
    let told = said("fio", &[&words[..], &["--offset=52M", "--size=2M"]].concat());
    assert!(told.contains("err=28"), "{told}");
}

/// Of a disk that is served, and whose leaf is being merged.
#[tokio::test]
async fn a_full_disk_ends_a_merge_and_fails_first_writes_and_all_goes_on_with_space() {
    let name = "space::a_full_disk_ends_a_merge_and_fails_first_writes_and_all_goes_on_with_space";
    if !in_namespace(name) {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let outer = Utf8PathBuf::from_path_buf(temporary.path().to_owned()).unwrap();
    let site = small_site(&outer, PLACEMENTS[1]).await;
    let images = site.folder.join("images");
    let new = NewVdi { name: "a".into(), virtual_size: Bytes::mib(64), ..NewVdi::default() };
    let disk = site.sr.vdi_create(&Op::new(), new).await.unwrap().vdi.uuid;
    let uri = site.serve(disk, AttachMode::ReadWrite).await;
    guest(&uri, &["write -P 1 0 2M", "flush"]);
    let snapshot = site.snapshot(disk).await;
    site.sr.vdi_destroy(&Op::new(), snapshot).await.unwrap();
    guest(&uri, &["write -P 2 4M 8M", "flush"]);
    // No space before the merge begins, and some that it uses up.
    for slow in [None, Some(Bytes::mib(2))] {
        let budget = Budget { bytes_per_second: slow, ..Budget::default() };
        let work = || {
            let (sr, budget) = (site.sr.clone(), budget.clone());
            let request = SrMaintain { budget, dry_run: false };
            tokio::spawn(async move { sr.maintain(&Op::new(), request).await.unwrap() })
        };
        let (ballast, work) = if slow.is_none() {
            let ballast = Ballast::leaving(&images, 128 << 10);
            (ballast, work())
        } else {
            let work = work();
            site.until_it_merges().await;
            (Ballast::all_of(&images), work)
        };
        let done = work.await.unwrap();
        assert_eq!((done.merged.len(), done.skipped.len()), (0, 1), "{done:?}");
        let reason = &done.skipped[0].reason;
        assert!(reason.starts_with("its data path could not merge it: "), "{reason}");
        assert!(reason.contains("No space left on device"), "{reason}");
        meets_a_full_disk(&uri);
        drop(ballast);
        guest(&uri, &["write -P 2 5M 1M", "read -P 2 4M 8M", "read -P 1 0 2M"]);
    }
    guest(&uri, &["write -P 4 40M 1M", "flush"]);
    assert_eq!(site.maintain().await.merged.len(), 1);
    let whole = ["read -P 1 0 2M", "read -P 2 4M 8M", "read -P 4 40M 1M", "read -P 0 48M 1M"];
    guest(&uri, &whole);
    site.detach(disk).await;
    site.check(&[disk]).await;
    assert_eq!(site.bases().await, 0);
}

#[tokio::test]
async fn a_read_only_directory_is_named() {
    if !in_namespace("space::a_read_only_directory_is_named") {
        return;
    }
    for placement in PLACEMENTS {
        let temporary = tempfile::tempdir().unwrap();
        let outer = Utf8PathBuf::from_path_buf(temporary.path().to_owned()).unwrap();
        let site = small_site(&outer, placement).await;
        let disk = site.disk("a").await;
        let images = site.folder.join("images");
        let status =
            Command::new("mount").args(["-o", "remount,ro", images.as_str()]).status().unwrap();
        assert!(status.success());
        let new = NewVdi { virtual_size: Bytes::mib(8), ..NewVdi::default() };
        let error = site.sr.vdi_create(&Op::new(), new).await.unwrap_err();
        assert_eq!(error.kind, Kind::Auth);
        assert!(error.to_string().contains("Read-only file system"), "{error}");
        assert!(error.to_string().contains(images.as_str()), "{error}");
        // Reading goes on.
        assert_eq!(site.sr.vdis(&Op::new()).await.unwrap()[0].uuid, disk);
        let reading = AttachMode::ReadOnly;
        site.sr.vdi_attach(&Op::new(), disk, "vm", reading).await.unwrap();
        site.sr.vdi_detach(&Op::new(), disk, "vm").await.unwrap();
        let writing = AttachMode::ReadWrite;
        let error = site.sr.vdi_attach(&Op::new(), disk, "vm", writing).await.unwrap_err();
        assert_eq!(error.kind, Kind::Auth);
        assert_eq!(site.sr.attachments().unwrap(), []);
    }
}

/// Only the images lie on the small file system: the catalog is another disk's worry.
async fn small_site(outer: &Utf8Path, placement: Placement) -> Site {
    let images = outer.join("images");
    let site =
        Site::in_folder_with(outer.to_owned(), placement, || mount(&images, "size=24m")).await;
    assert!(files(&site.sr_folder()).contains(&".sm/sr.json".to_owned()));
    site
}

/// Writes where the disk has nothing yet.
fn fill(site: &Site, vdi: VdiUuid, seed: u8) {
    let tree = vhd::Tree::open(site.sr_folder().as_std_path()).unwrap();
    let disk = tree.open_disk(vdi.0, vhd::Mode::Write).unwrap();
    vhd::Disk::write_at(&disk, u64::from(seed) << 18, &vec![seed; 64 << 10]).unwrap();
    vhd::Disk::flush(&disk).unwrap();
}
