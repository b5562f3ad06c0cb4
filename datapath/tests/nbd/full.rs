//! No space below: on a small file system, in a mount namespace of its own, which takes root.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use datapath::disk::{Drive, Options};

use super::long::{Files, Only, make};
use super::place::{PATIENCE, Place, good, run, until};

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

/// Takes all the space but some.
fn fill(folder: &Path, free: u64) {
    let space = rustix::fs::statvfs(folder).unwrap();
    let bytes = (space.f_bavail * space.f_frsize).checked_sub(free).unwrap();
    let mut file = File::create(folder.join("ballast")).unwrap();
    (0..bytes / 4096).for_each(|_| file.write_all(&[0x5a; 4096]).unwrap());
}

#[test]
fn a_full_disk_fails_what_needs_space_and_goes_on_when_there_is_some() {
    let name = "full::a_full_disk_fails_what_needs_space_and_goes_on_when_there_is_some";
    if !in_namespace(name) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"])
        .arg(folder.path())
        .status()
        .unwrap();
    assert!(mounted.success());
    for files in [Files::Raw, Files::Vhd] {
        let images = tempfile::tempdir_in(folder.path()).unwrap();
        let (plan, _) = make(images.path(), files);
        let drive = Drive::open(&plan, Options::default()).unwrap();
        let place = Place::new(Only(drive.clone()));
        let uri = place.uri("").to_string();
        let words = |command| ["-f", "raw", "-t", "none", "-c", command, &uri].map(str::to_owned);
        let works = |command| {
            let words = words(command);
            let out = good("qemu-io", &words.each_ref().map(String::as_str));
            assert!(out.contains("ops;") && !out.contains("failed"), "{files:?} {command}: {out}");
        };
        let fails = |command| {
            let words = words(command);
            let said = run("qemu-io", &words.each_ref().map(String::as_str));
            let said = said.out + &said.err;
            assert!(said.contains("No space left on device"), "{files:?} {command}: {said}");
        };
        works("write -P 1 0 1M");
        fill(folder.path(), 4 << 20);
        // In parts, and as one.
        fails("write -P 2 8M 12M");
        fails("write -P 2 20M 64k");
        works("read -P 1 0 1M");
        works("write -P 3 512k 512k");
        works("read -P 3 512k 512k");
        // Nothing of what has failed is made up for what was there.
        works("read -P 0 21M 1M");
        std::fs::remove_file(folder.path().join("ballast")).unwrap();
        works("write -P 4 8M 12M");
        works("write -P 5 20M 64k");
        works("read -P 4 8M 12M");
        works("read -P 5 20M 64k");
        works("read -P 1 0 512k");
        until("clients are gone", || place.server.connections().is_empty());
        drive.close(Instant::now() + PATIENCE).unwrap();
        if files == Files::Vhd {
            let layers = [vhd::Layer::Vhd(&plan.leaf.path)];
            let findings = vhd::check::check_chain(&layers);
            let wrong =
                findings.iter().filter(|one| one.severity == vhd::check::Severity::Error).count();
            assert_eq!(wrong, 0, "{findings:?}");
        }
    }
    let unmounted = Command::new("umount").arg("-l").arg(folder.path()).status().unwrap();
    assert!(unmounted.success());
}
